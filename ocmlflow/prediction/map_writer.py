"""Writes the probability and mask rasters of a scene block by block, behind the tiles that are being predicted."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Condition
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine
from rasterio.io import DatasetWriter
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from ocmlflow.chips import labels
from ocmlflow.prediction import scene_tiles, tile_store
from ocmlflow.prediction.scene_tiles import CACHE, TilePlan
from ocmlflow.scenes import geobox, geotiff, image_file, partial_read, raster, windows
from ocmlflow.scenes.geobox import GeoBox
from ocmlflow.scenes.raster import SceneImage
from ocmlflow.scenes.windows import Tile

NODATA = 255
"""Value of both rasters where the scene has no imagery."""
BLOCK = 2 * geotiff.TILE
"""Side of the blocks held in memory, in pixels of the map or, where those are larger, of the model."""
UNREADABLE_REACH = 2
"""Pixels of the model around a part that cannot be read which count as unreadable too."""


class Watermark:
    """The row of the model grid above which a scene is predicted, for threads that wait for it."""

    def __init__(self, pending: Iterable[Tile], height: int) -> None:
        self._pending = deque(pending)
        self._predicted: set[Tile] = set()
        self._height = height
        self._closed = False
        self._changed = Condition()

    def advance(self, tile: Tile) -> None:
        """Count a tile as predicted; tiles may come in any order."""
        with self._changed:
            self._predicted.add(tile)
            while self._pending and self._pending[0] in self._predicted:
                self._predicted.remove(self._pending.popleft())
            self._changed.notify_all()

    def close(self) -> None:
        """End the wait of the other threads: no more tiles come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self, row: int) -> None:
        """Wait until everything above this row is predicted; RuntimeError if it never will be."""
        with self._changed:
            self._changed.wait_for(lambda: self.row >= row or self._closed)
            if self.row < row:
                raise RuntimeError("the scene was not predicted to its end")

    @property
    def row(self) -> int:
        """Everything above this row of the model grid is predicted."""
        return int(self._pending[0].core.row_off) if self._pending else self._height

    @property
    def is_complete(self) -> bool:
        """Whether all tiles are predicted."""
        return not self._pending


@dataclass(frozen=True)
class MapJob:
    """A scene that is being mapped."""

    plan: TilePlan
    """All tiles of the scene."""
    map_grid: GeoBox
    """Grid of the rasters that are written: the scene's own or the model's."""
    unreadable: list[Window]
    """Windows of the model grid that could not be read; grows while the scene is predicted."""


@dataclass(frozen=True)
class MapBlock:
    """One block of a map."""

    window: Window
    """Where the block lies in the map grid."""
    percents: np.ndarray
    """(height, width) uint8: probability of building in percent."""
    valid: np.ndarray
    """(height, width) bool: where there is imagery inside the area of interest."""


class MapRasters:
    """The probability and mask rasters of a map, open for writing; counts the pixels that it writes."""

    def __init__(self, probability: DatasetWriter, mask: DatasetWriter, *, threshold: int, mask_nodata: int) -> None:
        self.pixels = 0
        self.building_pixels = 0
        self._probability = probability
        self._mask = mask
        self._threshold = threshold
        self._mask_nodata = np.uint8(mask_nodata)

    def write(self, block: MapBlock) -> None:
        """Write a block to both rasters."""
        valid = block.valid
        building = (block.percents >= self._threshold) & valid
        self._probability.write(np.where(valid, block.percents, np.uint8(NODATA)), 1, window=block.window)
        self._mask.write(np.where(valid, building.view(np.uint8), self._mask_nodata), 1, window=block.window)
        self.pixels += int(np.count_nonzero(valid))
        self.building_pixels += int(np.count_nonzero(building))


@contextmanager
def open_rasters(job: MapJob, *, probability: Path, mask: Path) -> Iterator[MapRasters]:
    """Open the two rasters of a map for writing.

    Without a georeference the mask has no nodata value and is 0 where there is no imagery: the challenge's submission
    allows 0 and 1 alone.
    """
    grid = job.map_grid if job.plan.is_georeferenced else None
    mask_nodata = NODATA if job.plan.is_georeferenced else None
    size: dict[str, Any] = {"height": job.map_grid.height, "width": job.map_grid.width, "dtype": "uint8"}
    with (
        geotiff.create(probability, grid, nodata=NODATA, **size) as probability_file,
        geotiff.create(mask, grid, nodata=mask_nodata, **size) as mask_file,
    ):
        probability_file.scales = (0.01,)
        probability_file.set_band_description(1, "probability of building, percent")
        mask_file.set_band_description(1, "building")
        yield MapRasters(
            probability_file, mask_file, threshold=job.plan.settings.threshold, mask_nodata=mask_nodata or 0
        )


def blocks(job: MapJob, watermark: Watermark) -> Iterator[MapBlock]:
    """Blocks of the map, row by row, each as soon as the tiles that it needs are predicted."""
    plan = job.plan
    meets_area = scene_tiles.area_filter(plan.model_grid, plan.settings.aoi)
    area = None if plan.settings.aoi is None else geobox.project_area(plan.settings.aoi, job.map_grid)
    read_tiles = tile_store.reader(plan.tile_folder, plan.tiles)
    # A dataset of its own, as this runs in another thread than the prediction.
    with raster.open_scene(plan.scene.image, gsd=plan.settings.chip_gsd, rules=plan.rules, cache=CACHE) as (image, _):
        for window in windows.blocks(job.map_grid.height, job.map_grid.width, size=_block_size(job)):
            source = tile_store.source_window(plan.model_grid, job.map_grid, window)
            watermark.wait(source.row_off + source.height)
            if not meets_area(source):
                shape = (window.height, window.width)
                yield MapBlock(window, np.zeros(shape, np.uint8), np.zeros(shape, bool))
                continue
            percents = tile_store.resampled_percents(read_tiles, plan.model_grid, job.map_grid, window)
            is_same_grid = plan.model_grid == job.map_grid
            valid = read_tiles(window).valid if is_same_grid else _imagery(plan, image, window)
            counts = inside_area(job.map_grid, window, area) & readable(job, job.map_grid, window)
            yield MapBlock(window, percents, valid & counts)


def inside_area(grid: GeoBox, window: Window, area: BaseGeometry | None) -> np.ndarray | np.bool_:
    """(height, width) bool: inside the area of interest, given in the grid's CRS."""
    return np.True_ if area is None else _rasterize(gpd.GeoSeries([area], crs=grid.crs), grid, window)


def readable(job: MapJob, grid: GeoBox, window: Window) -> np.ndarray | np.bool_:
    """(height, width) bool: where the image could be read, on a window of the map's or the model's grid."""
    if not job.unreadable:
        return np.True_
    model_grid = job.plan.model_grid
    # Resampling mixes the probabilities of neighbours: those next to an unreadable window are left out too.
    reach_m = UNREADABLE_REACH * job.plan.settings.gsd
    outlines = [
        shapely.Polygon(model_grid.corners(part)).buffer(reach_m, join_style="mitre") for part in job.unreadable
    ]
    return ~_rasterize(gpd.GeoSeries(outlines, crs=model_grid.crs).to_crs(grid.crs), grid, window)


def _block_size(job: MapJob) -> int:
    """Smaller than BLOCK by a power of two where the map is coarser than the model, so that tiles of the files fit."""
    ratio = max(1.0, geobox.gsd(job.map_grid) / job.plan.settings.gsd)
    return BLOCK >> round(math.log2(ratio))


def _imagery(plan: TilePlan, image: SceneImage, window: Window) -> np.ndarray:
    """(height, width) bool: where the scene has imagery."""
    if not plan.settings.skip_unreadable:
        return raster.read_valid(image, window)
    blank = np.zeros((window.height, window.width), bool)
    valid, _ = partial_read.read_array(partial(raster.read_valid, image), window, blank)
    return valid


def _rasterize(polygons: gpd.GeoSeries, grid: GeoBox, window: Window) -> np.ndarray:
    """(height, width) bool: the pixels of a window of the grid whose centres lie in a polygon."""
    transform = grid.transform @ Affine.translation(window.col_off, window.row_off)
    with image_file.ignore_missing_georeference():  # rasterio changes the warning filters of all threads
        return labels.rasterize(polygons, transform, height=int(window.height), width=int(window.width)) == 1
