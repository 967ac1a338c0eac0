"""A scene and a predict function, to files that a GIS opens and footprints that a map editor accepts."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Condition
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine
from rasterio.io import DatasetReader
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from ocmlflow.chips import labels
from ocmlflow.prediction import scene_tiles, tile_store
from ocmlflow.prediction.polygonize import MaskBlock
from ocmlflow.prediction.scene_tiles import CACHE, TilePlan
from ocmlflow.scenes import geobox, geotiff, partial_read, raster, windows
from ocmlflow.scenes.geobox import GeoBox

NODATA = 255
"""In both rasters, where the scene has no imagery."""
BLOCK = 2 * geotiff.TILE
"""Side of what is held in memory of a scene's grid, in pixels of the network's resolution, or of its own if finer."""


class Watermark:
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
class MapJob:
    """A scene that is being mapped."""

    plan: TilePlan
    out: GeoBox  # where the results lie
    holes: list[Window]  # of the ground grid, that could not be read; grows


@dataclass
class MapCounts:
    """What was found so far in a scene."""

    pixels: int = 0
    building_pixels: int = 0
    buildings: int = 0
    area_m2: float = 0.0


def write_rasters(job: MapJob, tide: Watermark, paths: dict[str, Path], counts: MapCounts) -> Iterator[MaskBlock]:
    """Write both rasters block by block, and hand each block on."""
    place = job.out if job.plan.placed else None
    size: dict[str, Any] = {"height": job.out.height, "width": job.out.width, "dtype": "uint8"}
    # A submission knows 0 and 1 alone.
    nothing = NODATA if job.plan.placed else 0
    with (
        raster.open_scene(job.plan.scene.image, gsd=job.plan.settings.chip_gsd, cache=CACHE) as (
            dataset,
            _,
        ),  # this thread's own
        geotiff.create(paths["probability"], place, nodata=NODATA, **size) as probability,
        geotiff.create(paths["mask"], place, nodata=NODATA if job.plan.placed else None, **size) as mask,
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
            yield MaskBlock(window, percents, building)


def _blocks(job: MapJob, tide: Watermark, dataset: DatasetReader) -> Iterator[tuple[Window, np.ndarray, np.ndarray]]:
    """Each block of the results' grid with its percents (uint8) and where it is valid (bool)."""
    read = tile_store.reader(job.plan.kept, job.plan.tiles)
    aoi = job.plan.settings.aoi
    inside, area = (
        scene_tiles.area_filter(job.plan.ground, aoi),
        None if aoi is None else [geobox.project_area(aoi, job.out)],
    )
    # Smaller where pixels are larger than the network's, by a power of two: blocks share the edges of the files' tiles.
    finer = round(math.log2(max(1.0, geobox.gsd(job.out) / job.plan.settings.gsd)))
    for window in windows.blocks(job.out.height, job.out.width, size=BLOCK >> finer):
        around = tile_store.source_window(job.plan.ground, job.out, window)
        tide.wait(around.row_off + around.height)
        if inside(around):
            percents = tile_store.resampled_percents(read, job.plan.ground, job.out, window)
            valid = read(window)[1] if job.plan.ground == job.out else _valid(job, dataset, window)
            yield window, percents, valid & _wanted(job, window, area)
        else:
            shape = (window.height, window.width)
            yield window, np.zeros(shape, np.uint8), np.zeros(shape, bool)


def _valid(job: MapJob, dataset: DatasetReader, window: Window) -> np.ndarray:
    if not job.plan.settings.skip_unreadable:
        return raster.read_valid(dataset, window)
    blank = np.zeros((window.height, window.width), bool)
    valid, _ = partial_read.read_array(partial(raster.read_valid, dataset), window, blank)
    return valid


def _wanted(job: MapJob, window: Window, area: list[BaseGeometry] | None) -> np.ndarray | np.bool_:
    """(height, width) bool: inside the area of interest, and not where the image could not be read."""
    place: dict[str, Any] = {"height": int(window.height), "width": int(window.width)}
    place["transform"] = job.out.transform @ Affine.translation(window.col_off, window.row_off)
    wanted: np.ndarray | np.bool_ = np.True_
    if area is not None:
        wanted = wanted & (labels.rasterize(area, **place) == 1)
    if job.holes:
        # And what the probabilities next to them would be mixed with.
        near = 2 * job.plan.settings.gsd
        holes = [shapely.Polygon(job.plan.ground.corners(hole)).buffer(near, join_style="mitre") for hole in job.holes]
        wanted = wanted & (
            labels.rasterize(gpd.GeoSeries(holes, crs=job.plan.ground.crs).to_crs(job.out.crs), **place) == 0
        )
    return wanted
