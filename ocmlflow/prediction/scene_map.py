"""Maps one scene: predicts its tiles, and writes rasters, footprints and an overview picture."""

from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rasterio.enums import Resampling
from shapely.geometry.base import BaseGeometry

from ocmlflow import pictures
from ocmlflow.errors import InputError
from ocmlflow.prediction import (
    building_writer,
    instance_raster,
    map_writer,
    preflight,
    scene_tiles,
    tile_store,
    vector_files,
)
from ocmlflow.prediction.map_writer import MapJob, MapRasters, Watermark
from ocmlflow.prediction.scene_tiles import CACHE, MapSettings, PredictFactory, TilePlan
from ocmlflow.prediction.vector_files import FootprintTotals
from ocmlflow.progress import Progress
from ocmlflow.scenes import geobox, geotiff, raster
from ocmlflow.scenes.catalog import Scene

OVERVIEW_PX = 1000
"""Longer side of each of the overview's two pictures, in pixels."""


@dataclass(frozen=True)
class MapFiles:
    """The files of one predicted scene, and its figures."""

    probability: Path
    """GeoTIFF, uint8: percent, rounded down, 255 where there is no imagery; cloud-optimized if georeferenced."""
    mask: Path
    """GeoTIFF, uint8: 1 building, 0 not, 255 where there is no imagery (0 for an image without a georeference)."""
    footprints: Path | None
    """GeoParquet, columns `vector_files.COLUMNS`, in the rasters' CRS; None without a georeference.

    Copies in the formats of `vector_files.DRIVERS`, in degrees, lie beside it.
    """
    instances: Path | None
    """COG, uint32: row of the footprint at each pixel in the GeoParquet file, from 1; 0 none. None if not asked for."""
    overview: Path | None
    """JPEG of the scene beside the same with its buildings tinted; None where the scene cannot be read."""
    tiles: Path
    """Folder of the predicted tiles, of no use once the files above are in the output."""
    pixels: int
    """Pixels with imagery."""
    building_pixels: int
    """Pixels that are building."""
    buildings: int
    """Number of footprints."""
    area_m2: float
    """Area of all footprints."""
    outline: BaseGeometry
    """Outline of the rasters, in degrees (lon, lat)."""
    unreadable: Sequence[BaseGeometry]
    """Outlines, in degrees, of the parts that could not be read and count as no imagery."""


def map_scene(
    scene: Scene,
    network: PredictFactory,
    folder: Path,
    *,
    settings: MapSettings,
    progress: Progress,
    executor: Executor | None = None,
    plan: TilePlan | None = None,
) -> MapFiles:
    """Predict a scene of any size, in this process or on an executor's workers, and write its files under `folder`.

    The scene is resampled to the model's resolution as it is read, tile by tile. Two threads follow down the scene:
    one resamples the probabilities to the grid of the map in blocks, the other finds the footprints on the model's
    grid. Memory holds a few tiles, a block of each, and the outlines of buildings that reach the last row of blocks.

    `plan` is the scene's, where it is known already. Tiles that an earlier call has predicted in the same folder are
    not predicted again, as long as the `tiles` of MapFiles are there. Raises InputError where the scene cannot be read,
    unless the settings skip unreadable parts.
    """
    plan = plan or scene_tiles.plan(scene, folder, settings=settings)
    plan.tile_folder.mkdir(parents=True, exist_ok=True)
    map_grid = plan.own_grid if settings.on_own_grid else plan.model_grid
    job = MapJob(plan, map_grid, unreadable=scene_tiles.unreadable_windows(plan))
    watermark = Watermark(tile_store.missing(plan.tile_folder, plan.tiles), plan.model_grid.height)
    if executor:
        tiles = scene_tiles.predict_on_workers(plan, network, progress, executor)
    else:
        tiles = scene_tiles.predict(plan, network, progress)
    probability, mask = (folder / f"{scene.id}-{kind}.tif" for kind in ("probability", "mask"))
    footprints = folder / f"{scene.id}.parquet" if plan.is_georeferenced else None
    with ThreadPoolExecutor(2) as threads:
        writing_rasters = threads.submit(_write_rasters, job, watermark, probability, mask)
        writing_footprints = threads.submit(_write_footprints, job, watermark, footprints)
        try:
            with closing(tiles):
                for tile, unreadable in tiles:
                    job.unreadable.extend(unreadable)
                    watermark.advance(tile)
                    for writing in (writing_rasters, writing_footprints):
                        if writing.done():
                            writing.result()  # raises what has ended it too early
        finally:
            watermark.close()
    rasters, totals = writing_rasters.result(), writing_footprints.result()
    instances = None
    if footprints and settings.instances:
        instances = folder / f"{scene.id}-instances.tif"
        instance_raster.write(footprints, map_grid, instances)
    unreadable = sorted(set(job.unreadable), key=lambda window: window.toranges())  # tiles come in any order
    return MapFiles(
        probability=probability,
        mask=mask,
        footprints=footprints,
        instances=instances,
        overview=_write_overview(job, mask, folder / f"{scene.id}.jpg"),
        tiles=plan.tile_folder,
        pixels=rasters.pixels,
        building_pixels=rasters.building_pixels,
        buildings=totals.buildings,
        area_m2=totals.area_m2,
        outline=geobox.outline(map_grid, preflight.whole_window(map_grid)),
        unreadable=[geobox.outline(plan.model_grid, window) for window in unreadable],
    )


def _write_rasters(job: MapJob, watermark: Watermark, probability: Path, mask: Path) -> MapRasters:
    """Write the rasters of a scene: COGs, or plain TIFFs without a georeference."""
    if not job.plan.is_georeferenced:
        rasters = _write_plain(job, watermark, probability, mask)
        for path in (probability, mask):
            geotiff.check_complete(path)
        return rasters
    plain_probability, plain_mask = (path.with_name(f"{path.stem}-plain.tif") for path in (probability, mask))
    rasters = _write_plain(job, watermark, plain_probability, plain_mask)
    geotiff.write_cog(plain_probability, probability, overviews=Resampling.average)
    plain_probability.unlink()
    geotiff.write_cog(plain_mask, mask, overviews=Resampling.nearest)
    plain_mask.unlink()
    return rasters


def _write_plain(job: MapJob, watermark: Watermark, probability: Path, mask: Path) -> MapRasters:
    """Write the rasters of a scene as plain TIFFs while its tiles are being predicted."""
    with map_writer.open_rasters(job, probability=probability, mask=mask) as rasters:
        for block in map_writer.blocks(job, watermark):
            rasters.write(block)
    return rasters


def _write_footprints(job: MapJob, watermark: Watermark, path: Path | None) -> FootprintTotals:
    """Write the footprints of a scene in all formats while its tiles are being predicted; no path, none."""
    if path is None:
        return FootprintTotals(0, 0.0)
    totals = building_writer.write(job, watermark, path)
    for suffix in vector_files.DRIVERS:
        copy = path.with_suffix(suffix)
        copy.unlink(missing_ok=True)  # left by an interrupted call; GDAL would add to it
        vector_files.convert(path, copy)
    return totals


def _write_overview(job: MapJob, mask: Path, picture: Path) -> Path | None:
    """Write the scene beside the same with its buildings tinted; None where the scene cannot be read."""
    if job.unreadable:
        return None
    with geotiff.open_written(mask) as dataset:
        shrink = max(1.0, max(dataset.height, dataset.width) / OVERVIEW_PX)
        shape = (max(1, round(dataset.height / shrink)), max(1, round(dataset.width / shrink)))
        building = dataset.read(1, out_shape=shape) == 1
    image = _read_reduced(job, shape)
    if image is None:
        return None
    sheet = pictures.contact_sheet([[image, pictures.tint_buildings(image, building)]])
    Image.fromarray(sheet).save(picture, quality=85)
    return picture


def _read_reduced(job: MapJob, shape: tuple[int, int]) -> np.ndarray | None:
    """The whole scene at a reduced size; None where it cannot be read and the settings allow that."""
    settings = job.plan.settings
    try:
        with raster.open_scene(job.plan.scene.image, gsd=settings.chip_gsd, rules=job.plan.rules, cache=CACHE) as (
            image,
            _,
        ):
            return raster.read_reduced(image, shape)
    except InputError:
        if not settings.skip_unreadable:
            raise
        return None
