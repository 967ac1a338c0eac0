"""A scene and a predict function, to files that a GIS opens and footprints that a map editor accepts."""

import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Condition
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from ocmlflow import grid, inference, labels, mosaic, pictures, polygons, raster, resample, salvage, vector
from ocmlflow.catalog import Scene
from ocmlflow.errors import InputError

NODATA = 255
"""In both rasters, where the scene has no imagery."""
BLOCK = 4 * raster.TILE
"""Side of what is held in memory of a scene's own grid, in pixels."""
OVERVIEW = 1000


@dataclass(frozen=True)
class Settings:
    """How a scene is predicted."""

    gsd: float
    """Metres per pixel that the network was trained at."""
    multiple: int
    """Windows start at multiples of so many pixels: the stride of the network's coarsest features."""
    size: int
    """Pixels along a side of the windows that the network sees."""
    margin: int
    """Context in pixels that is seen but not kept on each side of a window."""
    batch_size: int
    threshold: int
    """Percent of probability from which a pixel is building."""
    min_area_m2: float
    """Smaller footprints are left out; the mask keeps them."""
    chip_gsd: float
    """Metres per pixel of images that do not say where they lie."""
    on_own_grid: bool
    """Whether the results lie on the scene's own grid, else on that which the network saw."""
    aoi: BaseGeometry | None
    """In degrees (lon, lat); what lies outside counts as no imagery."""
    skip_unreadable: bool
    """Whether what cannot be read of a scene counts as no imagery, else it is an error."""


@dataclass(frozen=True)
class Look:
    """What is known of a scene before it is predicted."""

    placed: bool
    """Whether it says where on earth it lies."""
    height: int
    width: int
    inside: bool
    """Whether it meets the area of interest."""


@dataclass(frozen=True)
class Map:
    """What was predicted for one scene."""

    probability: Path
    """GeoTIFF, uint8: percent, rounded down, 255 where there is no imagery; cloud-optimized if georeferenced."""
    mask: Path
    """GeoTIFF, uint8: 1 building, 0 not, 255 where there is no imagery (0 for an image without a georeference)."""
    footprints: Path | None
    """GeoParquet, columns scene, probability, area_m2, geometry, in the rasters' CRS; None without a georeference."""
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
    with raster.opened(scene.image, gsd=settings.chip_gsd) as (dataset, own):
        raster.ground_grid(own, gsd=settings.gsd)
        placed = raster.is_placed(dataset)
        if settings.aoi is not None and not placed:
            raise InputError(f"image {scene.image} does not say where it lies, so that no area of interest limits it")
        inside = settings.aoi is None or settings.aoi.intersects(_outline(own))
        return Look(placed, own.height, own.width, inside)


def overview(scene: Scene, made: Map) -> np.ndarray:
    """One picture of two, of at most OVERVIEW pixels a side: the scene, and the same with what is building."""
    with raster.reopened(made.mask) as mask:
        shrink = max(1.0, max(mask.height, mask.width) / OVERVIEW)
        shape = (max(1, round(mask.height / shrink)), max(1, round(mask.width / shrink)))
        found = mask.read(1, out_shape=shape)
    with raster.opened(scene.image, gsd=1.0) as (dataset, _):
        image = np.moveaxis(dataset.read([1, 2, 3], out_shape=(3, *shape)), 0, -1)
    return pictures.sheet([[image, pictures.tinted(image, found == 1)]])


def draw(
    scene: Scene, predict: inference.Predict, folder: Path, *, settings: Settings, progress: inference.Progress
) -> Map:
    """Predict a scene of any size and write its files under `folder`.

    The scene is brought to the network's resolution as it is read, in windows; the probabilities are brought back to
    the scene's own grid in blocks, in a thread of its own that follows the network down the scene. Of pixels no more
    is held than a window and a block, of outlines only those that are not whole. Windows that a call before this one
    has predicted, in the same folder, are not predicted again.
    """
    kept = folder / f"{scene.id}-tiles"
    kept.mkdir(parents=True, exist_ok=True)
    with raster.opened(scene.image, gsd=settings.chip_gsd) as (dataset, own):
        ground = raster.ground_grid(own, gsd=settings.gsd)
        shape = {"size": settings.size, "margin": settings.margin, "multiple": settings.multiple}
        tiles = grid.tiles(ground.height, ground.width, **shape)
        out = own if settings.on_own_grid else ground
        job = _Job(scene, settings, raster.is_placed(dataset), ground, out, tiles, kept, _holes(kept))
        tide = _Tide()
        with ThreadPoolExecutor(1) as thread, resample.on_grid(dataset, own, ground) as read:
            made = thread.submit(_draw, job, tide, folder)
            try:
                with closing(_predict(read, predict, job, progress)) as rows:
                    for row in rows:
                        tide.rise(row)
                        if made.done() and row < ground.height:  # it has failed
                            break
            finally:
                tide.end()
            result = made.result()
    shutil.rmtree(kept)
    return result


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
    scene: Scene
    settings: Settings
    placed: bool
    ground: raster.Grid  # what the network sees
    out: raster.Grid  # where the results lie
    tiles: list[grid.Tile]
    kept: Path  # folder of the tiles that are predicted
    holes: list[Window]  # of the ground grid, that cannot be read


@dataclass
class _Counts:
    pixels: int = 0
    building_pixels: int = 0
    buildings: int = 0
    area_m2: float = 0.0


def _predict(
    read: resample.Read, predict: inference.Predict, job: _Job, progress: inference.Progress
) -> Generator[int, None, None]:
    """Predict the tiles that are not kept yet; gives the row above which all are, each time there is one more."""
    settings = job.settings
    inside = _inside(job.ground, settings.aoi)

    def seen(window: Window) -> raster.Pixels:
        if not inside(window):
            shape = (int(window.height), int(window.width))
            return raster.Pixels(np.zeros((*shape, 3), np.uint8), np.zeros(shape, bool))
        return salvage.pixels(read, window, job.holes) if settings.skip_unreadable else read(window)

    todo = mosaic.missing(job.kept, job.tiles)
    rows = [int(tile.core.row_off) for tile in todo] + [job.ground.height]
    yield rows[0]
    found = inference.predict_tiles(predict, seen, todo, batch_size=settings.batch_size)
    with closing(found):  # before the dataset is, which its thread may be reading
        for row, (tile, probability, valid) in zip(rows[1:], progress(found, len(todo)), strict=True):
            for hole in list(job.holes):
                _hole(job.kept, hole).touch()
            mosaic.write(job.kept, tile, probability, valid)
            yield row


def _inside(ground: raster.Grid, aoi: BaseGeometry | None) -> Callable[[Window], bool]:
    """Whether a window of the ground grid meets the area of interest."""
    if aoi is None:
        return lambda window: True
    (area,) = gpd.GeoSeries([aoi], crs="EPSG:4326").to_crs(ground.crs)
    shapely.prepare(area)
    return lambda window: bool(area.intersects(shapely.Polygon(ground.corners(window))))


def _hole(kept: Path, window: Window) -> Path:
    return kept / f"{window.col_off}-{window.row_off}-{window.width}-{window.height}.hole"


def _holes(kept: Path) -> list[Window]:
    return [Window(*map(int, path.stem.split("-"))) for path in sorted(kept.glob("*.hole"))]


def _draw(job: _Job, tide: _Tide, folder: Path) -> Map:
    """Write the rasters and footprints of a scene that is being predicted."""
    files = {name: folder / f"{job.scene.id}-{name}.tif" for name in ("probability", "mask")}
    plain = {name: folder / f"{job.scene.id}-{name}-plain.tif" if job.placed else files[name] for name in files}
    vectors = folder / f"{job.scene.id}.parquet" if job.placed else None
    counts = _Counts()
    blocks = _paint(job, tide, plain, counts)
    if vectors:
        found = polygons.trace(blocks, width=job.out.width)
        # A pixel of the network, in pixels of the map: what is finer is interpolation, not knowledge.
        tolerance = max(1.0, job.settings.gsd / raster.gsd(job.out))
        least = job.settings.min_area_m2
        frames = vector.frames(found, job.out, scene=job.scene.id, tolerance=tolerance, min_area_m2=least)
        vector.write(_counted(frames, counts), vectors)
    else:
        for _ in blocks:
            pass
    for name, path in plain.items():
        if job.placed:
            how = Resampling.average if name == "probability" else Resampling.nearest
            raster.to_cog(path, files[name], overviews=how)
            path.unlink()
    return Map(
        files["probability"],
        files["mask"],
        vectors,
        **vars(counts),
        outline=_outline(job.out),
        unreadable=[raster.outline(job.ground, hole) for hole in job.holes],
    )


def _paint(job: _Job, tide: _Tide, paths: dict[str, Path], counts: _Counts) -> Iterator[polygons.Block]:
    """Write both rasters block by block, and hand each block on."""
    place = job.out if job.placed else None
    size: dict[str, Any] = {"height": job.out.height, "width": job.out.width, "dtype": "uint8"}
    # A submission knows 0 and 1 alone.
    nothing = NODATA if job.placed else 0
    with (
        raster.opened(job.scene.image, gsd=job.settings.chip_gsd) as (dataset, _),  # this thread's own
        raster.write(paths["probability"], place, nodata=NODATA, **size) as probability,
        raster.write(paths["mask"], place, nodata=NODATA if job.placed else None, **size) as mask,
    ):
        probability.scales = (0.01,)
        probability.set_band_description(1, "probability of building, percent")
        mask.set_band_description(1, "building")
        for window, percents, valid in _blocks(job, tide, dataset):
            building = (percents >= job.settings.threshold) & valid
            probability.write(np.where(valid, percents, np.uint8(NODATA)), 1, window=window)
            mask.write(np.where(valid, building.view(np.uint8), np.uint8(nothing)), 1, window=window)
            counts.pixels += int(np.count_nonzero(valid))
            counts.building_pixels += int(np.count_nonzero(building))
            yield polygons.Block(window, percents, building)


def _blocks(job: _Job, tide: _Tide, dataset: DatasetReader) -> Iterator[tuple[Window, np.ndarray, np.ndarray]]:
    """Each block of the results' grid with its percents (uint8) and where it is valid (bool)."""
    read = mosaic.reader(job.kept, job.tiles)
    inside = _inside(job.ground, job.settings.aoi)
    for window in grid.blocks(job.out.height, job.out.width, size=BLOCK):
        around = mosaic.near(job.ground, job.out, window)
        tide.wait(around.row_off + around.height)
        if inside(around):
            percents = mosaic.percents(read, job.ground, job.out, window)
            valid = read(window)[1] if job.ground == job.out else _valid(job, dataset, window)
            yield window, percents, valid & _wanted(job, window)
        else:
            shape = (window.height, window.width)
            yield window, np.zeros(shape, np.uint8), np.zeros(shape, bool)


def _valid(job: _Job, dataset: DatasetReader, window: Window) -> np.ndarray:
    if not job.settings.skip_unreadable:
        return raster.valid(dataset, window)
    blank = np.zeros((window.height, window.width), bool)
    return salvage.array(partial(raster.valid, dataset), window, blank, [])


def _wanted(job: _Job, window: Window) -> np.ndarray | np.bool_:
    """(height, width) bool: inside the area of interest, and not where the image could not be read."""
    place: dict[str, Any] = {"height": int(window.height), "width": int(window.width)}
    place["transform"] = job.out.transform @ Affine.translation(window.col_off, window.row_off)
    wanted: np.ndarray | np.bool_ = np.True_
    if job.settings.aoi is not None:
        area = gpd.GeoSeries([job.settings.aoi], crs="EPSG:4326").to_crs(job.out.crs)
        wanted = wanted & (labels.burn(area.to_numpy(), **place) == 1)
    if job.holes:
        # And what the probabilities next to them would be mixed with.
        near = 2 * job.settings.gsd
        holes = [shapely.Polygon(job.ground.corners(hole)).buffer(near, join_style="mitre") for hole in job.holes]
        wanted = wanted & (labels.burn(gpd.GeoSeries(holes, crs=job.ground.crs).to_crs(job.out.crs), **place) == 0)
    return wanted


def _counted(frames: Iterator[gpd.GeoDataFrame], counts: _Counts) -> Iterator[gpd.GeoDataFrame]:
    for frame in frames:
        counts.buildings += len(frame)
        counts.area_m2 += float(frame.area_m2.sum())
        yield frame


def _outline(of: raster.Grid) -> shapely.Polygon:
    return raster.outline(of, Window(0, 0, of.width, of.height))
