"""A scene and a predict function, to files that a GIS opens and footprints that a map editor accepts."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from threading import Condition
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine
from PIL import Image
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from ocmlflow import georef, grid, inference, labels, mosaic, pictures, polygons, raster, salvage, vector, windows
from ocmlflow.catalog import Scene
from ocmlflow.errors import InputError
from ocmlflow.windows import CACHE, Network, Plan, Settings

NODATA = 255
"""In both rasters, where the scene has no imagery."""
BLOCK = 2 * raster.TILE
"""Side of what is held in memory of a scene's grid, in pixels of the network's resolution, or of its own if finer."""
COARSEST = 20
"""Times the network's pixels that a scene's may be long: of 2 m for one of 0.1 m, where a house is a few of them."""
OVERVIEW = 1000


@dataclass(frozen=True)
class Look:
    """What is known of a scene before it is predicted."""

    placed: bool
    """Whether it says where on earth it lies."""
    height: int
    width: int
    inside: bool
    """Whether it meets the area of interest."""
    taken: datetime | None
    """When, as its catalogue or else its file says."""


@dataclass(frozen=True)
class Map:
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


def check(scene: Scene, *, settings: Settings) -> Look:
    """What is known of a scene before it is predicted; InputError where it cannot be."""
    with raster.opened(scene.image, gsd=settings.chip_gsd, cache=CACHE) as (dataset, own):
        if (metres := georef.gsd(own)) > COARSEST * settings.gsd:
            raise InputError(
                f"image {scene.image} has pixels of {metres:.3g} m, over {COARSEST} times the {settings.gsd:g} m of "
                "the model, which would know no building there: finer imagery would do, or a model of coarser imagery"
            )
        raster.doubt_alpha(dataset)
        ground = georef.ground_grid(own, gsd=settings.gsd)
        placed = raster.is_placed(dataset)
        if settings.aoi is not None and not placed:
            raise InputError(f"image {scene.image} does not say where it lies, so that no area of interest limits it")
        if not (settings.on_own_grid or placed or own == ground):
            raise InputError(
                f"image {scene.image} does not say where it lies, so that its mask is of its own pixels, of "
                f"{settings.chip_gsd} m, not of the model's, of {settings.gsd} m: leave out grid=model"
            )
        inside = windows.inside_of(own, settings.aoi)(_whole(own))
        return Look(placed, own.height, own.width, inside, scene.taken or raster.taken(dataset))


def draw(
    scene: Scene,
    network: Network,
    folder: Path,
    *,
    settings: Settings,
    progress: inference.Progress,
    executor: Executor | None = None,
) -> Map:
    """Predict a scene of any size, in this process or on an executor's workers, and write its files under `folder`.

    The scene is brought to the network's resolution as it is read, in windows; the probabilities are brought back to
    the scene's own grid in blocks, in a thread of its own that follows the network down the scene. Of pixels no more
    is held than a window and a block, of outlines only those that are not whole. Windows that a call before this one
    has predicted, in the same folder, are not predicted again, as long as the map's `tiles` are there.
    """
    whole = windows.plan(scene, folder, settings=settings)
    whole.kept.mkdir(parents=True, exist_ok=True)
    waiting, done = deque(mosaic.missing(whole.kept, whole.tiles)), set()
    job = _Job(whole, whole.own if settings.on_own_grid else whole.ground, windows.holes(whole))
    tide = _Tide()

    def rise() -> None:
        tide.rise(waiting[0].core.row_off if waiting else whole.ground.height)

    on = partial(windows.predict_on, executor=executor) if executor else windows.predict
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


class _Tide:
    """How far down a scene is predicted, for a thread that waits for it."""

    def __init__(self) -> None:
        self._row, self._ended, self._moved = 0, False, Condition()

    def rise(self, row: int) -> None:
        """Everything above this row of the ground grid is predicted."""
        with self._moved:
            self._row = row
            self._moved.notify()

    def end(self) -> None:
        """It rises no more."""
        with self._moved:
            self._ended = True
            self._moved.notify()

    def wait(self, row: int) -> None:
        """Come back when everything above this row is predicted; RuntimeError if it never will be."""
        with self._moved:
            self._moved.wait_for(lambda: self._row >= row or self._ended)
            if self._row < row:
                raise RuntimeError("the scene was not predicted to its end")


@dataclass(frozen=True)
class _Job:
    plan: Plan
    out: georef.Grid  # where the results lie
    holes: list[Window]  # of the ground grid, that could not be read; grows


@dataclass
class _Counts:
    pixels: int = 0
    building_pixels: int = 0
    buildings: int = 0
    area_m2: float = 0.0


def _draw(job: _Job, tide: _Tide, folder: Path) -> Map:
    """Write the rasters and footprints of a scene that is being predicted."""
    name, placed = job.plan.scene.id, job.plan.placed
    files = {kind: folder / f"{name}-{kind}.tif" for kind in ("probability", "mask")}
    plain = {kind: folder / f"{name}-{kind}-plain.tif" if placed else file for kind, file in files.items()}
    counts = _Counts()
    blocks = _paint(job, tide, plain, counts)
    footprints = folder / f"{name}.parquet" if placed else None
    if footprints:
        _outline_buildings(job, blocks, footprints, counts)
        for kind, path in plain.items():
            how = Resampling.average if kind == "probability" else Resampling.nearest
            raster.to_cog(path, files[kind], overviews=how)
            path.unlink()
    else:
        for _ in blocks:
            pass
        for path in files.values():
            raster.check_whole(path)
    holes = sorted(set(job.holes), key=lambda hole: hole.toranges())  # in whichever order they were met
    return Map(
        files["probability"],
        files["mask"],
        footprints,
        _overview(job, files["mask"], folder / f"{name}.jpg"),
        job.plan.kept,
        **vars(counts),
        outline=georef.outline(job.out, _whole(job.out)),
        unreadable=[georef.outline(job.plan.ground, hole) for hole in holes],
    )


def _outline_buildings(job: _Job, blocks: Iterator[polygons.Block], path: Path, counts: _Counts) -> None:
    """Write the footprints in all formats."""
    settings = job.plan.settings
    found = polygons.trace(blocks, width=job.out.width)
    # A pixel of the network, in pixels of the map: what is finer is interpolation, not knowledge.
    tolerance = max(1.0, settings.gsd / georef.gsd(job.out))
    name, least = job.plan.scene.id, settings.min_area_m2
    # The ground grid's CRS is in metres, whatever the scene's own.
    how = {"squared_in": job.plan.ground.crs if settings.squared else None}
    frames = vector.frames(found, job.out, scene=name, tolerance=tolerance, min_area_m2=least, **how)
    vector.write(_counted(frames, counts), path)
    for suffix in vector.DRIVERS:
        copy = path.with_suffix(suffix)
        copy.unlink(missing_ok=True)  # of a call that was interrupted; drivers would add to it
        vector.convert(path, copy)


def _overview(job: _Job, mask: Path, picture: Path) -> Path | None:
    """Write one picture of two, of at most OVERVIEW pixels a side; None where the scene cannot be read."""
    if job.holes:
        return None
    with raster.reopened(mask) as dataset:
        shrink = max(1.0, max(dataset.height, dataset.width) / OVERVIEW)
        shape = (max(1, round(dataset.height / shrink)), max(1, round(dataset.width / shrink)))
        found = dataset.read(1, out_shape=shape)
    try:
        with raster.opened(job.plan.scene.image, gsd=job.plan.settings.chip_gsd, cache=CACHE) as (dataset, _):
            image = raster.shrunk(dataset, shape)
    except InputError:
        if not job.plan.settings.skip_unreadable:
            raise
        return None
    Image.fromarray(pictures.sheet([[image, pictures.tinted(image, found == 1)]])).save(picture, quality=85)
    return picture


def _paint(job: _Job, tide: _Tide, paths: dict[str, Path], counts: _Counts) -> Iterator[polygons.Block]:
    """Write both rasters block by block, and hand each block on."""
    place = job.out if job.plan.placed else None
    size: dict[str, Any] = {"height": job.out.height, "width": job.out.width, "dtype": "uint8"}
    # A submission knows 0 and 1 alone.
    nothing = NODATA if job.plan.placed else 0
    with (
        raster.opened(job.plan.scene.image, gsd=job.plan.settings.chip_gsd, cache=CACHE) as (
            dataset,
            _,
        ),  # this thread's own
        raster.write(paths["probability"], place, nodata=NODATA, **size) as probability,
        raster.write(paths["mask"], place, nodata=NODATA if job.plan.placed else None, **size) as mask,
    ):
        probability.scales = (0.01,)
        probability.set_band_description(1, "probability of building, percent")
        mask.set_band_description(1, "building")
        for window, percents, valid in _blocks(job, tide, dataset):
            building = (percents >= job.plan.settings.threshold) & valid
            probability.write(np.where(valid, percents, np.uint8(NODATA)), 1, window=window)
            mask.write(np.where(valid, building.view(np.uint8), np.uint8(nothing)), 1, window=window)
            counts.pixels += int(np.count_nonzero(valid))
            counts.building_pixels += int(np.count_nonzero(building))
            yield polygons.Block(window, percents, building)


def _blocks(job: _Job, tide: _Tide, dataset: DatasetReader) -> Iterator[tuple[Window, np.ndarray, np.ndarray]]:
    """Each block of the results' grid with its percents (uint8) and where it is valid (bool)."""
    read = mosaic.reader(job.plan.kept, job.plan.tiles)
    aoi = job.plan.settings.aoi
    inside, area = windows.inside_of(job.plan.ground, aoi), None if aoi is None else [georef.on_grid(aoi, job.out)]
    # Smaller where pixels are larger than the network's, by a power of two: blocks share the edges of the files' tiles.
    finer = round(math.log2(max(1.0, georef.gsd(job.out) / job.plan.settings.gsd)))
    for window in grid.blocks(job.out.height, job.out.width, size=BLOCK >> finer):
        around = mosaic.near(job.plan.ground, job.out, window)
        tide.wait(around.row_off + around.height)
        if inside(around):
            percents = mosaic.percents(read, job.plan.ground, job.out, window)
            valid = read(window)[1] if job.plan.ground == job.out else _valid(job, dataset, window)
            yield window, percents, valid & _wanted(job, window, area)
        else:
            shape = (window.height, window.width)
            yield window, np.zeros(shape, np.uint8), np.zeros(shape, bool)


def _valid(job: _Job, dataset: DatasetReader, window: Window) -> np.ndarray:
    if not job.plan.settings.skip_unreadable:
        return raster.valid(dataset, window)
    blank = np.zeros((window.height, window.width), bool)
    return salvage.array(partial(raster.valid, dataset), window, blank, [])


def _wanted(job: _Job, window: Window, area: list[BaseGeometry] | None) -> np.ndarray | np.bool_:
    """(height, width) bool: inside the area of interest, and not where the image could not be read."""
    place: dict[str, Any] = {"height": int(window.height), "width": int(window.width)}
    place["transform"] = job.out.transform @ Affine.translation(window.col_off, window.row_off)
    wanted: np.ndarray | np.bool_ = np.True_
    if area is not None:
        wanted = wanted & (labels.burn(area, **place) == 1)
    if job.holes:
        # And what the probabilities next to them would be mixed with.
        near = 2 * job.plan.settings.gsd
        holes = [shapely.Polygon(job.plan.ground.corners(hole)).buffer(near, join_style="mitre") for hole in job.holes]
        wanted = wanted & (labels.burn(gpd.GeoSeries(holes, crs=job.plan.ground.crs).to_crs(job.out.crs), **place) == 0)
    return wanted


def _counted(frames: Iterator[gpd.GeoDataFrame], counts: _Counts) -> Iterator[gpd.GeoDataFrame]:
    for frame in frames:
        counts.buildings += len(frame)
        counts.area_m2 += float(frame.area_m2.sum())
        yield frame


def _whole(of: georef.Grid) -> Window:
    return Window(0, 0, of.width, of.height)
