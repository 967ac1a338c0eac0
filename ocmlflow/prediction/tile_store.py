"""Keeps what was predicted of tiles in files, and reads any window of the scene across them.

A file has its name only once it is complete, so a prediction that was interrupted goes on where it stopped.
"""

import bisect
import math
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from affine import Affine
from PIL import Image
from rasterio.io import MemoryFile
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from ocmlflow.prediction.inference import TilePrediction
from ocmlflow.prediction.separation import DISTANCE_STEPS
from ocmlflow.probability import to_percent
from ocmlflow.scenes import geobox, raster, resample
from ocmlflow.scenes.geobox import GeoBox
from ocmlflow.scenes.windows import Tile

STEPS_PER_PERCENT = 300
"""Steps in which probabilities are kept: whole percents are whole numbers of steps."""
_NOT_VALID = np.uint16(1 << 15)
"""Bit that marks a pixel without imagery."""
_WITH_DISTANCE = np.dtype([("coded", "<u2"), ("distance", "u1")])
"""A pixel of a tile whose network has learned distances."""
_MIN_WEIGHT = 1e-3
"""A resampled pixel with a smaller share of valid pixels gets probability 0."""


class StoredPixels(NamedTuple):
    """A window of the scene."""

    steps: np.ndarray
    """(height, width) uint16: probability of building in steps, 0 to 100 * STEPS_PER_PERCENT."""
    valid: np.ndarray
    """(height, width) bool: where there is imagery."""
    distance: np.ndarray | None
    """(height, width) uint8: distance to the building's own edge, 0 to DISTANCE_STEPS; None where none is known."""


ReadPixels = Callable[[Window], StoredPixels]
"""Reads a window of the scene."""


def write(folder: Path, prediction: TilePrediction) -> None:
    """Keep what was predicted of a tile; the file of a tile without any valid pixel is almost empty."""
    pixels: np.ndarray = np.empty(0, np.uint16)
    if prediction.valid.any():
        steps = np.rint(prediction.probability * np.float32(100 * STEPS_PER_PERCENT)).astype(np.uint16)
        pixels = steps | np.where(prediction.valid, np.uint16(0), _NOT_VALID)
        if prediction.distance is not None:
            with_distance = np.empty(pixels.shape, _WITH_DISTANCE)
            with_distance["coded"] = pixels
            with_distance["distance"] = np.rint(prediction.distance * np.float32(DISTANCE_STEPS))
            pixels = with_distance
    path = _path(folder, prediction.tile)
    new = path.with_suffix(f".{uuid.uuid4().hex}.new")  # another process may be writing the same tile
    with new.open("wb") as file:
        np.save(file, pixels)
    new.replace(path)


def missing(folder: Path, tiles: list[Tile]) -> list[Tile]:
    """The tiles that are not kept yet, in their order."""
    kept = {path.name for path in folder.glob("*.npy")}
    return [tile for tile in tiles if _path(folder, tile).name not in kept]


def reader(folder: Path, tiles: list[Tile]) -> ReadPixels:
    """A function that reads windows across the cores of `windows.tiles`, all of which are kept."""
    by_corner = {(int(tile.core.row_off), int(tile.core.col_off)): tile for tile in tiles}
    rows = sorted({row for row, _ in by_corner})
    cols = sorted({col for _, col in by_corner})

    def read(window: Window) -> StoredPixels:
        coded = np.full((int(window.height), int(window.width)), _NOT_VALID)
        distance = None
        for row in _starts_in_reach(rows, window.row_off, window.height):
            for col in _starts_in_reach(cols, window.col_off, window.width):
                core = np.load(_path(folder, by_corner[row, col]), mmap_mode="r")
                if core.dtype == _WITH_DISTANCE:
                    distance = np.zeros(coded.shape, np.uint8) if distance is None else distance
                    _paste(distance, window, core["distance"], row, col)
                    core = core["coded"]
                _paste(coded, window, core, row, col)
        return StoredPixels(coded & ~_NOT_VALID, coded < _NOT_VALID, distance)

    return read


def source_window(model_grid: GeoBox, map_grid: GeoBox, window: Window) -> Window:
    """The window of the model grid that resampling needs for a window of the map grid."""
    xs, ys = zip(*map_grid.corners(window), strict=True)
    left, bottom, right, top = transform_bounds(
        map_grid.crs, model_grid.crs, min(xs), min(ys), max(xs), max(ys), densify_pts=21
    )
    to_pixels = ~model_grid.transform
    first_col, first_row = to_pixels @ (left, top)
    last_col, last_row = to_pixels @ (right, bottom)
    # Bilinear resampling reads one pixel around, or as many as one pixel of a coarser map is wide.
    reach = 2 + math.ceil(max(1.0, geobox.gsd(map_grid) / geobox.gsd(model_grid)))
    col = max(math.floor(first_col) - reach, 0)
    row = max(math.floor(first_row) - reach, 0)
    width = min(math.ceil(last_col) + reach, model_grid.width) - col
    height = min(math.ceil(last_row) + reach, model_grid.height) - row
    return Window(col, row, max(width, 1), max(height, 1))


def resampled_percents(read: ReadPixels, model_grid: GeoBox, map_grid: GeoBox, window: Window) -> np.ndarray:
    """(height, width) uint8: probability in whole percent, rounded down, on a window of the map grid."""
    if model_grid == map_grid:
        return (read(window).steps // STEPS_PER_PERCENT).astype(np.uint8)
    source = source_window(model_grid, map_grid, window)
    steps, valid, _ = read(source)
    probability = steps.astype(np.float32) / np.float32(100 * STEPS_PER_PERCENT)
    if resample.is_aligned(map_grid, model_grid):
        to_model = ~model_grid.transform @ map_grid.transform
        to_map = partial(_resize, source=source, to_source=to_model, window=window)
    else:
        to_map = partial(_warp, source=_crop(model_grid, source), target=_crop(map_grid, window))
    if valid.all():
        return to_percent(to_map(probability))
    # A mean over the valid pixels: what the network says of the others must not bleed in.
    weight = to_map(valid.astype(np.float32))
    weighted = to_map(np.where(valid, probability, np.float32(0)))
    mean = np.divide(weighted, weight, out=np.zeros_like(weight), where=weight > _MIN_WEIGHT)
    return to_percent(mean.clip(0, 1))


def _resize(values: np.ndarray, *, source: Window, to_source: Affine, window: Window) -> np.ndarray:
    """Values of a source window, resampled to a window of a grid whose axes are parallel to the source's."""
    left, top = to_source @ (window.col_off, window.row_off)
    right, bottom = to_source @ (window.col_off + window.width, window.row_off + window.height)
    # The edges of the two grids may differ by a millionth of a pixel.
    box = (
        max(left - source.col_off, 0.0),
        max(top - source.row_off, 0.0),
        min(right - source.col_off, float(source.width)),
        min(bottom - source.row_off, float(source.height)),
    )
    size = (int(window.width), int(window.height))
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR, box=box))


def _warp(values: np.ndarray, *, source: GeoBox, target: GeoBox) -> np.ndarray:
    """Values of the source grid, warped to the target grid by GDAL."""
    profile = {"crs": source.crs, "transform": source.transform, "height": source.height, "width": source.width}
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", count=1, dtype="float32", **profile) as out:
            out.write(values, 1)
        with memory.open() as dataset, raster.warp(dataset, source, target) as vrt:
            return vrt.read(1)


def _crop(grid: GeoBox, window: Window) -> GeoBox:
    """The grid of the pixels of a window."""
    transform = grid.transform @ Affine.translation(window.col_off, window.row_off)
    return GeoBox(grid.crs, transform, int(window.height), int(window.width))


def _starts_in_reach(starts: list[int], first: int, length: int) -> list[int]:
    """The starts, of those sorted, of the cores that overlap `length` pixels from `first` on."""
    return starts[max(bisect.bisect_right(starts, first) - 1, 0) : bisect.bisect_left(starts, first + length)]


def _paste(coded: np.ndarray, window: Window, core: np.ndarray, row: int, col: int) -> None:
    """Copy the part of a core that starts at (row, col) into the pixels of a window; an empty core has none."""
    if not core.size:
        return
    top = max(row, window.row_off)
    left = max(col, window.col_off)
    bottom = min(row + core.shape[0], window.row_off + window.height)
    right = min(col + core.shape[1], window.col_off + window.width)
    inside_window = np.s_[
        top - window.row_off : bottom - window.row_off, left - window.col_off : right - window.col_off
    ]
    coded[inside_window] = core[top - row : bottom - row, left - col : right - col]


def _path(folder: Path, tile: Tile) -> Path:
    return folder / f"{tile.core.row_off}-{tile.core.col_off}.npy"
