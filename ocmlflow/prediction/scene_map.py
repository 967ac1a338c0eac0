"""Maps one scene: predicts its tiles, and writes rasters, footprints and an overview picture."""

from collections.abc import Iterator, Sequence
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
from ocmlflow.prediction import map_writer, polygonize, preflight, scene_tiles, tile_store, vector_files
from ocmlflow.prediction.map_writer import MapJob, MapRasters, Watermark
from ocmlflow.prediction.polygonize import LabelBlock
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

    The scene is resampled to the model's resolution as it is read, tile by tile. A second thread follows down the
    scene: it resamples the probabilities to the grid of the map in blocks, and traces the footprints. Memory holds a
    few tiles, one block, and the outlines of buildings that reach the last row of blocks.

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
    with ThreadPoolExecutor(1) as thread:
        writing = thread.submit(_write_map, job, watermark, folder)
        try:
            with closing(tiles):
                for tile, unreadable in tiles:
                    job.unreadable.extend(unreadable)
                    watermark.advance(tile)
                    if writing.done() and not watermark.is_complete:
                        break  # it has failed
        finally:
            watermark.close()
        return writing.result()


def _write_map(job: MapJob, watermark: Watermark, folder: Path) -> MapFiles:
    """Write the files of a scene while its tiles are being predicted."""
    name = job.plan.scene.id
    probability = folder / f"{name}-probability.tif"
    mask = folder / f"{name}-mask.tif"
    footprints = None
    if job.plan.is_georeferenced:
        footprints = folder / f"{name}.parquet"
        rasters, totals = _write_georeferenced(job, watermark, probability, mask, footprints)
    else:
        rasters, totals = _write_plain(job, watermark, probability, mask), FootprintTotals(0, 0.0)
    unreadable = sorted(set(job.unreadable), key=lambda window: window.toranges())  # tiles come in any order
    return MapFiles(
        probability=probability,
        mask=mask,
        footprints=footprints,
        overview=_write_overview(job, mask, folder / f"{name}.jpg"),
        tiles=job.plan.tile_folder,
        pixels=rasters.pixels,
        building_pixels=rasters.building_pixels,
        buildings=totals.buildings,
        area_m2=totals.area_m2,
        outline=geobox.outline(job.map_grid, preflight.whole_window(job.map_grid)),
        unreadable=[geobox.outline(job.plan.model_grid, window) for window in unreadable],
    )


def _write_plain(job: MapJob, watermark: Watermark, probability: Path, mask: Path) -> MapRasters:
    """Write plain TIFFs of a scene without a georeference."""
    with map_writer.open_rasters(job, probability=probability, mask=mask) as rasters:
        for block in map_writer.blocks(job, watermark):
            rasters.write(block)
    for path in (probability, mask):
        geotiff.check_complete(path)
    return rasters


def _write_georeferenced(
    job: MapJob, watermark: Watermark, probability: Path, mask: Path, footprints: Path
) -> tuple[MapRasters, FootprintTotals]:
    """Write the rasters as COGs, and the footprints in all formats."""
    plain_probability = probability.with_name(f"{probability.stem}-plain.tif")
    plain_mask = mask.with_name(f"{mask.stem}-plain.tif")
    with map_writer.open_rasters(job, probability=plain_probability, mask=plain_mask) as rasters:
        masks = map(rasters.write, map_writer.blocks(job, watermark))
        totals = _write_footprints(job, masks, footprints)
    for suffix in vector_files.DRIVERS:
        copy = footprints.with_suffix(suffix)
        copy.unlink(missing_ok=True)  # left by an interrupted call; GDAL would add to it
        vector_files.convert(footprints, copy)
    geotiff.write_cog(plain_probability, probability, overviews=Resampling.average)
    plain_probability.unlink()
    geotiff.write_cog(plain_mask, mask, overviews=Resampling.nearest)
    plain_mask.unlink()
    return rasters, totals


def _write_footprints(job: MapJob, masks: Iterator[LabelBlock], path: Path) -> FootprintTotals:
    """Trace the masks of all blocks, and write the footprints as GeoParquet."""
    settings = job.plan.settings
    frames = vector_files.frames(
        polygonize.trace(masks),
        job.map_grid,
        scene=job.plan.scene.id,
        # One pixel of the model, in pixels of the map: detail below it comes from interpolation.
        tolerance=max(1.0, settings.gsd / geobox.gsd(job.map_grid)),
        min_area_m2=settings.min_area_m2,
        min_hole_m2=settings.min_hole_m2,
        # The model grid's CRS is in metres, whatever the scene's own.
        squared_in=job.plan.model_grid.crs if settings.squared else None,
    )
    return vector_files.write(frames, path)


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
