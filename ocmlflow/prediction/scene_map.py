"""A scene and a predict function, to files that a GIS opens and footprints that a map editor accepts."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import geopandas as gpd
from PIL import Image
from rasterio.enums import Resampling
from shapely.geometry.base import BaseGeometry

from ocmlflow import pictures
from ocmlflow.errors import InputError
from ocmlflow.prediction import map_writer, polygonize, preflight, scene_tiles, tile_store, vector_files
from ocmlflow.prediction.map_writer import MapCounts, MapJob, Watermark
from ocmlflow.prediction.polygonize import MaskBlock
from ocmlflow.prediction.scene_tiles import CACHE, MapSettings, PredictFactory
from ocmlflow.progress import Progress
from ocmlflow.scenes import geobox, geotiff, raster
from ocmlflow.scenes.catalog import Scene

OVERVIEW_PX = 1000


@dataclass(frozen=True)
class MapFiles:
    """What was predicted for one scene."""

    probability: Path
    """GeoTIFF, uint8: percent, rounded down, 255 where there is no imagery; cloud-optimized if georeferenced."""
    mask: Path
    """GeoTIFF, uint8: 1 building, 0 not, 255 where there is no imagery (0 for an image without a georeference)."""
    footprints: Path | None
    """GeoParquet, columns scene, probability, area_m2, geometry, in the rasters' CRS; None without a georeference.

    Beside it lie the same in the formats of `vector.DRIVERS`.
    """
    overview: Path | None
    """JPEG of two pictures: the scene, and the same with what is building; None where it cannot be read."""
    tiles: Path
    """Folder of what the network said, of no use once the files above are where they belong."""
    pixels: int
    """Pixels with imagery."""
    building_pixels: int
    """Pixels of them that are building."""
    buildings: int
    """Footprints."""
    area_m2: float
    """Their area."""
    outline: BaseGeometry
    """Of the rasters, in degrees (lon, lat)."""
    unreadable: Sequence[BaseGeometry]
    """Outlines in degrees of what could not be read and counts as no imagery."""


def map_scene(
    scene: Scene,
    network: PredictFactory,
    folder: Path,
    *,
    settings: MapSettings,
    progress: Progress,
    executor: Executor | None = None,
) -> MapFiles:
    """Predict a scene of any size, in this process or on an executor's workers, and write its files under `folder`.

    The scene is brought to the network's resolution as it is read, in windows; the probabilities are brought back to
    the scene's own grid in blocks, in a thread of its own that follows the network down the scene. Of pixels no more
    is held than a window and a block, of outlines only those that are not whole. Windows that a call before this one
    has predicted, in the same folder, are not predicted again, as long as the map's `tiles` are there.
    """
    whole = scene_tiles.plan(scene, folder, settings=settings)
    whole.kept.mkdir(parents=True, exist_ok=True)
    waiting, done = deque(tile_store.missing(whole.kept, whole.tiles)), set()
    job = MapJob(whole, whole.own if settings.on_own_grid else whole.ground, scene_tiles.unreadable_windows(whole))
    tide = Watermark()

    def rise() -> None:
        tide.rise(waiting[0].core.row_off if waiting else whole.ground.height)

    on = partial(scene_tiles.predict_on_workers, executor=executor) if executor else scene_tiles.predict
    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(_draw, job, tide, folder)
        try:
            rise()
            with closing(on(whole, network, progress=progress)) as found:
                for tile, holes in found:
                    job.holes.extend(holes)
                    done.add(tile)
                    while waiting and waiting[0] in done:
                        done.remove(waiting.popleft())
                    rise()
                    if made.done() and waiting:  # it has failed
                        break
        finally:
            tide.end()
        return made.result()


def _draw(job: MapJob, tide: Watermark, folder: Path) -> MapFiles:
    """Write the rasters and footprints of a scene that is being predicted."""
    name, placed = job.plan.scene.id, job.plan.placed
    files = {kind: folder / f"{name}-{kind}.tif" for kind in ("probability", "mask")}
    plain = {kind: folder / f"{name}-{kind}-plain.tif" if placed else file for kind, file in files.items()}
    counts = MapCounts()
    blocks = map_writer.write_rasters(job, tide, plain, counts)
    footprints = folder / f"{name}.parquet" if placed else None
    if footprints:
        _outline_buildings(job, blocks, footprints, counts)
        for kind, path in plain.items():
            how = Resampling.average if kind == "probability" else Resampling.nearest
            geotiff.write_cog(path, files[kind], overviews=how)
            path.unlink()
    else:
        for _ in blocks:
            pass
        for path in files.values():
            geotiff.check_complete(path)
    holes = sorted(set(job.holes), key=lambda hole: hole.toranges())  # in whichever order they were met
    return MapFiles(
        files["probability"],
        files["mask"],
        footprints,
        _overview(job, files["mask"], folder / f"{name}.jpg"),
        job.plan.kept,
        **vars(counts),
        outline=geobox.outline(job.out, preflight.whole_window(job.out)),
        unreadable=[geobox.outline(job.plan.ground, hole) for hole in holes],
    )


def _outline_buildings(job: MapJob, blocks: Iterator[MaskBlock], path: Path, counts: MapCounts) -> None:
    """Write the footprints in all formats."""
    settings = job.plan.settings
    found = polygonize.trace(blocks)
    # A pixel of the network, in pixels of the map: what is finer is interpolation, not knowledge.
    tolerance = max(1.0, settings.gsd / geobox.gsd(job.out))
    name, least = job.plan.scene.id, settings.min_area_m2
    # The ground grid's CRS is in metres, whatever the scene's own.
    how = {"squared_in": job.plan.ground.crs if settings.squared else None}
    frames = vector_files.frames(found, job.out, scene=name, tolerance=tolerance, min_area_m2=least, **how)
    vector_files.write(_counted(frames, counts), path)
    for suffix in vector_files.DRIVERS:
        copy = path.with_suffix(suffix)
        copy.unlink(missing_ok=True)  # of a call that was interrupted; drivers would add to it
        vector_files.convert(path, copy)


def _overview(job: MapJob, mask: Path, picture: Path) -> Path | None:
    """Write one picture of two, of at most OVERVIEW_PX pixels a side; None where the scene cannot be read."""
    if job.holes:
        return None
    with geotiff.open_written(mask) as dataset:
        shrink = max(1.0, max(dataset.height, dataset.width) / OVERVIEW_PX)
        shape = (max(1, round(dataset.height / shrink)), max(1, round(dataset.width / shrink)))
        found = dataset.read(1, out_shape=shape)
    try:
        with raster.open_scene(job.plan.scene.image, gsd=job.plan.settings.chip_gsd, cache=CACHE) as (dataset, _):
            image = raster.read_reduced(dataset, shape)
    except InputError:
        if not job.plan.settings.skip_unreadable:
            raise
        return None
    Image.fromarray(pictures.contact_sheet([[image, pictures.tint_buildings(image, found == 1)]])).save(
        picture, quality=85
    )
    return picture


def _counted(frames: Iterator[gpd.GeoDataFrame], counts: MapCounts) -> Iterator[gpd.GeoDataFrame]:
    for frame in frames:
        counts.buildings += len(frame)
        counts.area_m2 += float(frame.area_m2.sum())
        yield frame
