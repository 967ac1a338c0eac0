"""Splits a raster into windows and into overlapping tiles."""

from dataclasses import dataclass
from itertools import pairwise

from rasterio.windows import Window


@dataclass(frozen=True)
class Tile:
    """One step of a prediction over a scene."""

    window: Window
    """What the network sees."""
    core: Window
    """The part of the prediction that is kept; the cores of a scene cover each pixel once."""


def start_offsets(length: int, *, size: int, stride: int) -> list[int]:
    """First pixel of each window along one axis, `stride` apart; the last windows may reach beyond the edge.

    Every `size // stride`-th window covers each pixel once; those are the ones that are scored. Raises ValueError
    unless `stride` divides `size`.
    """
    if not 0 < stride <= size or size % stride:
        raise ValueError(f"stride must divide {size}, the window size, got {stride}")
    last = _ceil_div(max(length - size, 0), size) * size
    return list(range(0, last + 1, stride))


def blocks(height: int, width: int, *, size: int) -> list[Window]:
    """Windows that cover every pixel once, row by row; those at the right and lower edge may be smaller."""
    return [
        Window(col, row, min(size, width - col), min(size, height - row))
        for row in range(0, height, size)
        for col in range(0, width, size)
    ]


def tiles(height: int, width: int, *, size: int, margin: int, multiple: int = 1) -> list[Tile]:
    """Tiles whose windows lie inside the scene and overlap by at least `2 * margin`; cores end midway in the overlap.

    A core lies at least `margin` pixels inside its window, except at the edge of the scene. There are as few windows
    as `size` allows. Along each axis they have one length, no longer than needed: a network is compiled for one shape,
    and little is seen twice. Windows start at multiples of `multiple`, the stride of the coarsest features: at other
    offsets a network sees the same roof differently. The last of a row or column may be up to `multiple - 1` smaller.

    Raises ValueError where `margin` leaves nothing of a window.
    """
    return [
        Tile(
            Window(col.start, row.start, col.size, row.size),
            Window(col.core_start, row.core_start, col.core_size, row.core_size),
        )
        for row in _spans(height, size=size, margin=margin, multiple=multiple)
        for col in _spans(width, size=size, margin=margin, multiple=multiple)
    ]


@dataclass(frozen=True)
class _Span:
    """Window and core of a tile along one axis."""

    start: int
    size: int
    core_start: int
    core_size: int


def _spans(length: int, *, size: int, margin: int, multiple: int) -> list[_Span]:
    largest_stride = (size - 2 * margin) // multiple * multiple
    if margin < 0 or largest_stride <= 0:
        raise ValueError(f"margin must lie in 0..{(size - multiple) // 2} for windows of {size}, got {margin}")
    if length <= size:
        return [_Span(0, length, 0, length)]
    count = _ceil_div(length - 2 * margin, largest_stride)
    stride = _ceil_div(length - 2 * margin, count * multiple) * multiple
    side = stride + 2 * margin
    last_multiple = _ceil_div(length - side, multiple)
    starts = [last_multiple * number // (count - 1) * multiple for number in range(count)]
    cuts = [(left + right + side) // 2 for left, right in pairwise(starts)]
    cores = pairwise([0, *cuts, length])
    return [
        _Span(start, min(side, length - start), core_start, core_stop - core_start)
        for start, (core_start, core_stop) in zip(starts, cores, strict=True)
    ]


def _ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
