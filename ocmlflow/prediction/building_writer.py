"""Writes the footprints of a scene, traced on the model's grid behind the tiles that are being predicted."""

from pathlib import Path

import geopandas as gpd
import numpy as np
from rasterio.windows import Window

from ocmlflow.prediction import instances, map_writer, outlines, polygonize, scene_tiles, tile_store, vector_files
from ocmlflow.prediction.instances import Evidence, ReadEvidence
from ocmlflow.prediction.map_writer import MapJob, Watermark
from ocmlflow.prediction.vector_files import FootprintTotals
from ocmlflow.scenes import geobox
from ocmlflow.scenes.geobox import GeoBox


def write(job: MapJob, watermark: Watermark, path: Path) -> FootprintTotals:
    """Write the footprints of a scene as GeoParquet in the map's CRS, while its tiles are being predicted.

    They are found on the model's grid, so that they are the same whatever the grid of the map.
    """
    grid, settings = job.plan.model_grid, job.plan.settings
    blocks = instances.blocks(
        evidence_reader(job, watermark),
        grid.height,
        grid.width,
        gsd=settings.gsd,
        threshold=settings.threshold,
        separate=settings.separate,
    )
    frames = vector_files.frames(
        polygonize.trace(blocks),
        grid,
        scene=job.plan.scene.id,
        outline=settings.outline,
        min_area_m2=settings.min_area_m2,
        min_hole_m2=settings.min_hole_m2,
    )
    return vector_files.write((on_map(frame, grid, job.map_grid) for frame in frames), path)


def evidence_reader(job: MapJob, watermark: Watermark) -> ReadEvidence:
    """A function that waits until a window of the model's grid is predicted, and reads what the network says of it."""
    plan = job.plan
    grid = plan.model_grid
    meets_area = scene_tiles.area_filter(grid, plan.settings.aoi)
    area = None if plan.settings.aoi is None else geobox.project_area(plan.settings.aoi, grid)
    read_tiles = tile_store.reader(plan.tile_folder, plan.tiles)

    def read(window: Window) -> Evidence:
        # With the rows below whose unreadable parts reach into the window.
        bottom = window.row_off + window.height + map_writer.UNREADABLE_REACH + 1
        watermark.wait(min(bottom, grid.height))
        if not meets_area(window):
            shape = (int(window.height), int(window.width))
            return Evidence(np.zeros(shape, np.uint8), np.zeros(shape, bool), None)
        pixels = read_tiles(window)
        percents = (pixels.steps // tile_store.STEPS_PER_PERCENT).astype(np.uint8)
        inside = map_writer.inside_area(grid, window, area) & map_writer.readable(job, grid, window)
        valid = pixels.valid & inside
        # Where there is no imagery, distances depend on the tiles.
        distance = None if pixels.distance is None else np.where(valid, pixels.distance, np.uint8(0))
        return Evidence(percents, valid, distance)

    return read


def on_map(frame: gpd.GeoDataFrame, grid: GeoBox, map_grid: GeoBox) -> gpd.GeoDataFrame:
    """A frame of footprints in the CRS of `grid`, brought to that of the map; `area_m2` stays."""
    if map_grid.crs == grid.crs:
        return frame
    projected = outlines.project(frame.geometry.to_numpy(), grid.crs, map_grid.crs)
    return frame.set_geometry(gpd.GeoSeries(projected, index=frame.index, crs=map_grid.crs))
