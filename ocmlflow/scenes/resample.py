"""An open scene and a grid of another resolution, to a function that reads windows of that grid."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import rasterio
from affine import Affine
from PIL import Image
from rasterio.io import DatasetReader
from rasterio.windows import Window

from ocmlflow.scenes import raster
from ocmlflow.scenes.geobox import GeoBox
from ocmlflow.scenes.raster import Pixels

ReadWindow = Callable[[Window], Pixels]
"""A window, which may reach beyond the scene, to its pixels; nothing is valid there."""

SLAB = 1 << 24
"""Pixels of the source that are held at a time."""
NEAR = 0.01
"""Shifts below this share of a pixel are none."""


@contextmanager
def window_reader(dataset: DatasetReader, own: GeoBox, target: GeoBox) -> Iterator[ReadWindow]:
    """A function that reads windows of the target grid, averaged, not skipped, where its pixels are larger.

    A scene whose rows and columns run along the target's is resized, from the overview nearest above the target's
    resolution; where both grids are one it is only read. Any other is warped, which takes two to fifteen times as long.
    """
    if not is_aligned(own, target):
        with raster.warp(dataset, own, target) as vrt:
            yield partial(raster.read_padded, vrt)
        return
    with ExitStack() as stack:
        level = _overview(dataset, own, target)
        if level is not None:
            dataset = stack.enter_context(raster.open_overview(dataset, level))
            # GDAL spreads the pixels of an overview evenly, whatever the factor that it is named by.
            scale = Affine.scale(own.width / dataset.width, own.height / dataset.height)
            own = GeoBox(own.crs, own.transform @ scale, dataset.height, dataset.width)
        yield partial(_read, dataset, ~own.transform @ target.transform)


def is_aligned(own: GeoBox, target: GeoBox) -> bool:
    """Whether both grids have one CRS, and rows and columns that run alike."""
    if rasterio.CRS.from_user_input(own.crs) != rasterio.CRS.from_user_input(target.crs):
        return False
    scale = ~own.transform @ target.transform
    return scale.b == scale.d == 0 and scale.a > 0 and scale.e > 0


def _overview(dataset: DatasetReader, own: GeoBox, target: GeoBox) -> int | None:
    """Number of the smallest overview that is no coarser than the target."""
    coarser = min(target.transform.a / own.transform.a, target.transform.e / own.transform.e)
    fit = [level for level, factor in enumerate(dataset.overviews(1)) if factor <= coarser * (1 + NEAR)]
    return fit[-1] if fit else None


def _read(dataset: DatasetReader, to_source: Affine, window: Window) -> Pixels:
    height, width = int(window.height), int(window.width)
    rows = _inside(to_source.f + window.row_off * to_source.e, to_source.e, height, dataset.height)
    cols = _inside(to_source.c + window.col_off * to_source.a, to_source.a, width, dataset.width)
    step = max(1, int(SLAB / (max(1, len(cols)) * to_source.a * to_source.e)))
    if len(rows) == height <= step and len(cols) == width:
        return _resized(dataset, to_source, window)
    image, valid = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool)
    if not cols:
        return Pixels(image, valid)
    for first in range(rows.start, rows.stop, step):
        slab = range(first, min(first + step, rows.stop))
        at = np.s_[slab.start : slab.stop, cols.start : cols.stop]
        start = (window.row_off + slab.start, window.col_off + cols.start)
        found = _resized(dataset, to_source, Window(start[1], start[0], len(cols), len(slab)))
        image[at], valid[at] = found.image, found.valid
    return Pixels(image, valid)


def _inside(first: float, scale: float, count: int, length: int) -> range:
    """Which of `count` pixels, of `scale` source pixels each from `first` on, have their middle in the source."""
    start = max(0, math.ceil(-first / scale - 0.5))
    stop = min(count, math.ceil((length - first) / scale - 0.5))
    return range(start, max(start, stop))


def _resized(dataset: DatasetReader, to_source: Affine, window: Window) -> Pixels:
    """Pixels of a window of the target grid whose pixels all have their middle in the source."""
    (left, top), (right, bottom) = (
        to_source @ corner
        for corner in (
            (window.col_off, window.row_off),
            (window.col_off + window.width, window.row_off + window.height),
        )
    )
    same = abs(right - left - window.width) < NEAR and abs(bottom - top - window.height) < NEAR
    if same and abs(left - round(left)) < NEAR and abs(top - round(top)) < NEAR:
        return raster.read(dataset, Window(round(left), round(top), window.width, window.height))
    # What the filter reaches of the source: a pixel of the larger grid to each side.
    reach = math.ceil(max(to_source.a, to_source.e, 1))
    first_col, first_row = max(0, math.floor(left) - reach), max(0, math.floor(top) - reach)
    last_col = min(dataset.width, math.ceil(right) + reach)
    last_row = min(dataset.height, math.ceil(bottom) + reach)
    source = Window(first_col, first_row, last_col - first_col, last_row - first_row)
    colours, alpha = raster.read_bands(dataset, source)
    # Pixels whose middle is inside may stick out over the edge by half of themselves: there the edge goes on.
    spare = (
        (max(0, math.ceil(first_row - top)), max(0, math.ceil(bottom - last_row))),
        (max(0, math.ceil(first_col - left)), max(0, math.ceil(right - last_col))),
    )
    if any(map(any, spare)):
        colours, alpha = np.pad(colours, ((0, 0), *spare), mode="edge"), np.pad(alpha, spare, mode="edge")
    x, y = spare[1][0] - first_col, spare[0][0] - first_row
    box = (left + x, top + y, right + x, bottom + y)
    return _filtered(colours, alpha, (int(window.width), int(window.height)), box)


def _filtered(
    colours: np.ndarray, alpha: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]
) -> Pixels:
    """The box (left, top, right, bottom) of the source at another size, by a triangle filter."""
    triangle = Image.Resampling.BILINEAR
    if (alpha > raster.OPAQUE).all():
        planes = [np.asarray(Image.fromarray(plane).resize(size, triangle, box=box)) for plane in colours]
        return raster.to_pixels(np.stack(planes), np.full(size[::-1], 255, np.uint8))
    # Weighted by alpha, or what is not imagery would bleed into what is.
    bands = np.empty((*alpha.shape, 4), np.uint8)
    for number, plane in enumerate((*colours, alpha)):
        bands[..., number] = plane
    found = Image.fromarray(bands).resize(size, triangle, box=box)
    valid = np.asarray(found.getchannel("A")) > raster.OPAQUE
    image = np.array(found.convert("RGB"))
    image[~valid] = 0
    return Pixels(image, valid)
