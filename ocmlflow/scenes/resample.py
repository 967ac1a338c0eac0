"""Reads a scene on a grid of another resolution: resized from overviews where axes are parallel, warped elsewhere."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile
from rasterio.windows import Window

from ocmlflow.scenes import gdal_messages, geobox, no_imagery, raster
from ocmlflow.scenes.bands import Bands
from ocmlflow.scenes.gdal_messages import METADATA_ERRORS
from ocmlflow.scenes.geobox import GeoBox
from ocmlflow.scenes.raster import Pixels, SceneImage, WarpSource

ReadWindow = Callable[[Window], Pixels]
"""Reads the pixels of a window, which may reach beyond the scene; not valid there."""

STRIP_PIXELS = 1 << 24
"""Largest number of source pixels that are read at a time."""
BLANK_SIDE = 4096
"""Largest width of such a part, in source pixels, of a scene with areas that are known to be blank."""
TOLERANCE = 0.01
"""Shifts by less than this share of a pixel count as none."""


@contextmanager
def window_reader(scene: SceneImage, own: GeoBox, target: GeoBox) -> Iterator[ReadWindow]:
    """A function that reads windows of the target grid; pixels are averaged where the target's are larger.

    A scene whose axes are parallel to the target's is resized, from the smallest overview that is no coarser than the
    target; where both grids coincide it is only read. Other scenes are warped, which takes 2 to 15 times as long.
    """
    if not is_aligned(own, target):
        with warp_reader(scene, own, target) as read:
            yield read
        return
    with ExitStack() as stack:
        level = overview_level(scene, own, target)
        if level is not None:
            scene = stack.enter_context(raster.open_overview(scene, level))
            # The pixels of an overview cover the image evenly, whatever its nominal factor.
            scale = Affine.scale(own.width / scene.width, own.height / scene.height)
            own = GeoBox(own.crs, own.transform @ scale, scene.height, scene.width)
        yield partial(_read, scene, ~own.transform @ target.transform)


@contextmanager
def warp_reader(scene: SceneImage, own: GeoBox, target: GeoBox) -> Iterator[ReadWindow]:
    """A function that reads windows of a target grid whose axes are not those of the image."""
    rules = scene.rules
    alpha = rules.bands.alpha
    declared = [number for number, colour in enumerate(scene.dataset.colorinterp, 1) if colour is ColorInterp.alpha]
    is_plain = declared == ([alpha] if alpha else []) and not (alpha and rules.has_mask)
    if rules.blank or rules.stretch or rules.opaque != 255 or not is_plain:
        yield partial(_read_and_warp, scene, own, target)
        return
    # GDAL would let a nodata value decide over alpha and mask.
    options: dict[str, Any] = {"src_nodata": None} if alpha or rules.has_mask else {}
    with raster.warp(scene.dataset, own, target, alpha, **options) as vrt:
        bands = Bands(rules.bands.colours, alpha or scene.dataset.count + 1)
        source = WarpSource(scene, partial(geobox.source_window, own, target))
        yield partial(raster.read_padded, SceneImage(vrt, replace(rules, bands=bands, has_mask=False), source=source))


def is_aligned(own: GeoBox, target: GeoBox) -> bool:
    """Whether both grids have the same CRS and parallel axes of the same direction."""
    if rasterio.CRS.from_user_input(own.crs) != rasterio.CRS.from_user_input(target.crs):
        return False
    scale = ~own.transform @ target.transform
    return scale.b == scale.d == 0 and scale.a > 0 and scale.e > 0


def overview_level(scene: SceneImage, own: GeoBox, target: GeoBox) -> int | None:
    """Number of the smallest overview that is no coarser than an aligned target; None where none is of use."""
    if not scene.rules.use_overviews:
        return None
    try:
        factors = scene.dataset.overviews(1)
    except METADATA_ERRORS:  # the full resolution may be whole
        gdal_messages.forget_error(scene.dataset)
        return None
    ratio = min(target.transform.a / own.transform.a, target.transform.e / own.transform.e)
    levels = [level for level, factor in enumerate(factors) if factor <= ratio * (1 + TOLERANCE)]
    return levels[-1] if levels else None


def _read_and_warp(scene: SceneImage, own: GeoBox, target: GeoBox, window: Window) -> Pixels:
    """Pixels of a window of the target grid: read by all rules of the image first, then warped."""
    height, width = int(window.height), int(window.width)
    inside = geobox.source_window(own, target, window)
    if not (inside.height and inside.width):
        return _blank(window)
    if inside.height * inside.width > STRIP_PIXELS and height > 1:
        half = height // 2
        upper = _read_and_warp(scene, own, target, Window(window.col_off, window.row_off, width, half))
        lower = _read_and_warp(scene, own, target, Window(window.col_off, window.row_off + half, width, height - half))
        return Pixels(np.vstack([upper.image, lower.image]), np.vstack([upper.valid, lower.valid]))
    colours, alpha = raster.read_bands(scene, inside)
    part, target_part = geobox.part(own, inside), geobox.part(target, window)
    place: dict[str, Any] = {"crs": part.crs, "transform": part.transform, "height": part.height, "width": part.width}
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", count=4, dtype="uint8", photometric="RGB", alpha="YES", **place) as out:
            out.write(np.concatenate([colours, alpha[np.newaxis]]))
        with memory.open() as dataset, raster.warp(dataset, part, target_part, 4) as vrt:
            bands = vrt.read()
    return raster.to_pixels(bands[:3], bands[3])


def _read(scene: SceneImage, to_source: Affine, window: Window) -> Pixels:
    """Pixels of a window of the target grid; `to_source` maps target pixels (col, row) to those of the image."""
    height, width = int(window.height), int(window.width)
    rows = _inside(to_source.f + window.row_off * to_source.e, to_source.e, height, scene.height)
    cols = _inside(to_source.c + window.col_off * to_source.a, to_source.a, width, scene.width)
    # Where parts are known to be blank, narrower strips are blank as a whole, and not read.
    strip_cols = max(1, int(BLANK_SIDE / to_source.a)) if scene.rules.blank else max(1, len(cols))
    strip_rows = max(1, int(STRIP_PIXELS / (min(strip_cols, max(1, len(cols))) * to_source.a * to_source.e)))
    if len(rows) == height <= strip_rows and len(cols) == width <= strip_cols:
        return _resized(scene, to_source, window)
    blank = _blank(window)
    for top in range(rows.start, rows.stop, strip_rows):
        for left in range(cols.start, cols.stop, strip_cols):
            bottom, right = min(top + strip_rows, rows.stop), min(left + strip_cols, cols.stop)
            strip = Window(window.col_off + left, window.row_off + top, right - left, bottom - top)
            pixels = _resized(scene, to_source, strip)
            blank.image[top:bottom, left:right] = pixels.image
            blank.valid[top:bottom, left:right] = pixels.valid
    return blank


def _inside(first: float, scale: float, count: int, length: int) -> range:
    """Which of `count` target pixels along an axis have their centre in the source, which has `length` pixels.

    The first begins at `first` in source pixels, and each is `scale` source pixels long.
    """
    start = max(0, math.ceil(-first / scale - 0.5))
    stop = min(count, math.ceil((length - first) / scale - 0.5))
    return range(start, max(start, stop))


@dataclass(frozen=True)
class _Interval:
    """A box along one axis, in source pixels, and the source pixels that the filter needs for it."""

    start: float
    stop: float
    """Where the box begins and ends; it may reach beyond the source."""
    first: int
    end: int
    """First pixel to read, and the one after the last; both within the source."""

    @property
    def padding(self) -> tuple[int, int]:
        """Pixels that the box reaches beyond what can be read, before and after."""
        return max(0, math.ceil(self.first - self.start)), max(0, math.ceil(self.stop - self.end))

    @property
    def in_padded(self) -> tuple[float, float]:
        """Start and stop of the box, counted from the first pixel read and padded."""
        offset = self.padding[0] - self.first
        return self.start + offset, self.stop + offset


def _interval(start: float, stop: float, *, reach: int, length: int) -> _Interval:
    return _Interval(start, stop, max(0, math.floor(start) - reach), min(length, math.ceil(stop) + reach))


def _resized(scene: SceneImage, to_source: Affine, window: Window) -> Pixels:
    """Pixels of a window of the target grid whose pixels all have their centre in the source."""
    left, top = to_source @ (window.col_off, window.row_off)
    right, bottom = to_source @ (window.col_off + window.width, window.row_off + window.height)
    has_same_size = abs(right - left - window.width) < TOLERANCE and abs(bottom - top - window.height) < TOLERANCE
    if has_same_size and abs(left - round(left)) < TOLERANCE and abs(top - round(top)) < TOLERANCE:
        return raster.read(scene, Window(round(left), round(top), window.width, window.height))
    # The filter reaches one pixel of the coarser grid to each side.
    reach = math.ceil(max(to_source.a, to_source.e, 1))
    x = _interval(left, right, reach=reach, length=scene.width)
    y = _interval(top, bottom, reach=reach, length=scene.height)
    source = Window(x.first, y.first, x.end - x.first, y.end - y.first)
    if no_imagery.is_blank(scene.rules.blank, source, scene.scale):
        return _blank(window)
    colours, alpha = raster.read_bands(scene, source)
    if not alpha.any():
        return _blank(window)
    # A pixel whose centre is inside may reach over the edge by half of itself: there the edge is repeated.
    padding = (y.padding, x.padding)
    if any(map(any, padding)):
        colours = np.pad(colours, ((0, 0), *padding), mode="edge")
        alpha = np.pad(alpha, padding, mode="edge")
    (left, right), (top, bottom) = x.in_padded, y.in_padded
    return _filtered(colours, alpha, (int(window.width), int(window.height)), (left, top, right, bottom))


def _blank(window: Window) -> Pixels:
    """Pixels of a window that shows no imagery."""
    height, width = int(window.height), int(window.width)
    return Pixels(np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool))


def _filtered(
    colours: np.ndarray, alpha: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]
) -> Pixels:
    """The box (left, top, right, bottom) of the source resized to (width, height) with a triangle filter."""
    triangle = Image.Resampling.BILINEAR
    if (alpha > raster.OPAQUE).all():
        planes = [np.asarray(Image.fromarray(plane).resize(size, triangle, box=box)) for plane in colours]
        return raster.to_pixels(np.stack(planes), np.full(size[::-1], 255, np.uint8))
    # Pillow weights RGBA by alpha; otherwise pixels that are not valid would bleed into valid ones.
    bands = np.empty((*alpha.shape, 4), np.uint8)
    for number, plane in enumerate((*colours, alpha)):
        bands[..., number] = plane
    resized = Image.fromarray(bands).resize(size, triangle, box=box)
    valid = np.asarray(resized.getchannel("A")) > raster.OPAQUE
    image = np.array(resized.convert("RGB"))
    image[~valid] = 0
    return Pixels(image, valid)
