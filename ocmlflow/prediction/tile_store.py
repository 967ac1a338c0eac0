"""Tiles' probabilities, each a file that is whole or not there, to windows of all of them."""

import bisect
import math
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
from affine import Affine
from PIL import Image
from rasterio.io import MemoryFile
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from ocmlflow.probability import to_percent
from ocmlflow.scenes import geobox, raster, resample
from ocmlflow.scenes.geobox import GeoBox
from ocmlflow.scenes.windows import Tile

STEPS_PER_PERCENT = 300
"""Steps of probability in one percent: sums of whole percents stay exact."""
_HIDDEN = np.uint16(1 << 15)
_LEAST = 1e-3

ReadSteps = Callable[[Window], tuple[np.ndarray, np.ndarray]]
"""A window to steps of probability (height, width) uint16, 0 to 100 * STEPS_PER_PERCENT, and valid, bool alike."""


def write(folder: Path, tile: Tile, probability: np.ndarray, valid: np.ndarray) -> None:
    """Keep what a tile's core shows: probability (height, width) float, 0..1, and valid (height, width) bool.

    The file has its name only once it is whole. Where nothing is valid it is almost empty.
    """
    steps = np.rint(probability * np.float32(100 * STEPS_PER_PERCENT)).astype(np.uint16)
    coded = steps | np.where(valid, np.uint16(0), _HIDDEN) if valid.any() else np.empty(0, np.uint16)
    new = _path(folder, tile).with_suffix(f".{uuid.uuid4().hex}.new")  # another process may be writing the same
    with new.open("wb") as file:
        np.save(file, coded)
    new.replace(_path(folder, tile))


def missing(folder: Path, tiles: list[Tile]) -> list[Tile]:
    """The tiles that are not kept yet, in their order."""
    there = {path.name for path in folder.glob("*.npy")}
    return [tile for tile in tiles if _path(folder, tile).name not in there]


def reader(folder: Path, tiles: list[Tile]) -> ReadSteps:
    """A function that reads windows across the tiles of `grid.tiles`, all of them kept."""
    rows, cols = ({int(getattr(t.core, name)): t for t in tiles} for name in ("row_off", "col_off"))
    by_place = {(int(t.core.row_off), int(t.core.col_off)): t for t in tiles}

    def read(window: Window) -> tuple[np.ndarray, np.ndarray]:
        coded = np.full((int(window.height), int(window.width)), _HIDDEN)
        for row in _met(list(rows), window.row_off, window.height):
            for col in _met(list(cols), window.col_off, window.width):
                _paste(coded, window, np.load(_path(folder, by_place[row, col]), mmap_mode="r"), row, col)
        return coded & ~_HIDDEN, coded < _HIDDEN

    return read


def source_window(ground: GeoBox, own: GeoBox, window: Window) -> Window:
    """The window of the ground grid that says what a window of another grid shows."""
    xs, ys = zip(*own.corners(window), strict=True)
    left, bottom, right, top = transform_bounds(own.crs, ground.crs, min(xs), min(ys), max(xs), max(ys), densify_pts=21)
    (first_col, first_row), (last_col, last_row) = ~ground.transform @ (left, top), ~ground.transform @ (right, bottom)
    reach = 2 + math.ceil(max(1.0, geobox.gsd(own) / geobox.gsd(ground)))
    col, row = max(math.floor(first_col) - reach, 0), max(math.floor(first_row) - reach, 0)
    width = min(math.ceil(last_col) + reach, ground.width) - col
    height = min(math.ceil(last_row) + reach, ground.height) - row
    return Window(col, row, max(width, 1), max(height, 1))


def resampled_percents(read: ReadSteps, ground: GeoBox, own: GeoBox, window: Window) -> np.ndarray:
    """(height, width) uint8: probability, in whole percent rounded down, on a window of another grid."""
    if ground == own:
        return (read(window)[0] // STEPS_PER_PERCENT).astype(np.uint8)
    around = source_window(ground, own, window)
    steps, valid = read(around)
    probability = steps.astype(np.float32) / np.float32(100 * STEPS_PER_PERCENT)

    def brought(values: np.ndarray) -> np.ndarray:
        if resample.is_aligned(own, ground):
            return _resized(values, around, ~ground.transform @ own.transform, window)
        return _warped(values, _part(ground, around), _part(own, window))

    if valid.all():
        return to_percent(brought(probability))
    # Weighted, or what the network says of no imagery would bleed into what is.
    weight, weighted = brought(valid.astype(np.float32)), brought(np.where(valid, probability, np.float32(0)))
    return to_percent(np.divide(weighted, weight, out=np.zeros_like(weight), where=weight > _LEAST).clip(0, 1))


def _resized(probability: np.ndarray, around: Window, to_ground: Affine, window: Window) -> np.ndarray:
    corners = ((window.col_off, window.row_off), (window.col_off + window.width, window.row_off + window.height))
    (left, top), (right, bottom) = (to_ground @ corner for corner in corners)
    # The grids' edges may differ by a millionth of a pixel.
    box = (
        max(left - around.col_off, 0.0),
        max(top - around.row_off, 0.0),
        min(right - around.col_off, float(around.width)),
        min(bottom - around.row_off, float(around.height)),
    )
    size = (int(window.width), int(window.height))
    return np.asarray(Image.fromarray(probability).resize(size, Image.Resampling.BILINEAR, box=box))


def _warped(probability: np.ndarray, ground: GeoBox, own: GeoBox) -> np.ndarray:
    place = {"crs": ground.crs, "transform": ground.transform, "height": ground.height, "width": ground.width}
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", count=1, dtype="float32", **place) as out:
            out.write(probability, 1)
        with memory.open() as dataset, raster.warp(dataset, ground, own) as vrt:
            return vrt.read(1)


def _part(grid: GeoBox, window: Window) -> GeoBox:
    transform = grid.transform @ Affine.translation(window.col_off, window.row_off)
    return GeoBox(grid.crs, transform, int(window.height), int(window.width))


def _met(starts: list[int], first: int, length: int) -> list[int]:
    """Which of the sorted starts begin a core that meets the pixels from `first` on."""
    return starts[max(bisect.bisect_right(starts, first) - 1, 0) : bisect.bisect_left(starts, first + length)]


def _paste(coded: np.ndarray, window: Window, core: np.ndarray, row: int, col: int) -> None:
    if not core.size:
        return
    top, left = max(row, window.row_off), max(col, window.col_off)
    bottom = min(row + core.shape[0], window.row_off + window.height)
    right = min(col + core.shape[1], window.col_off + window.width)
    coded[top - window.row_off : bottom - window.row_off, left - window.col_off : right - window.col_off] = core[
        top - row : bottom - row, left - col : right - col
    ]


def _path(folder: Path, tile: Tile) -> Path:
    return folder / f"{tile.core.row_off}-{tile.core.col_off}.npy"
