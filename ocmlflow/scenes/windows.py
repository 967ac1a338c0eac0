"""Height and width, to windows."""

from dataclasses import dataclass
from itertools import pairwise

from rasterio.windows import Window


@dataclass(frozen=True)
class Tile:
    """One step of a prediction over a scene."""

    window: Window
    """What the network sees."""
    core: Window
    """What is kept of it; the cores of a scene touch each pixel once."""


def start_offsets(length: int, *, size: int, stride: int) -> list[int]:
    """First pixel of each window along one axis, in equal steps; the last windows may reach beyond the edge.

    `stride` divides `size`, so that every `size // stride`-th window alone touches each pixel once: those are scored.
    """
    if not 0 < stride <= size or size % stride:
        raise ValueError(f"stride must divide {size}, the window size, got {stride}")
    return list(range(0, -(-max(length - size, 0) // size) * size + 1, stride))


def blocks(height: int, width: int, *, size: int) -> list[Window]:
    """Windows that touch every pixel once, by rows; those at the right and lower edge may be smaller."""
    return [
        Window(col, row, min(size, width - col), min(size, height - row))
        for row in range(0, height, size)
        for col in range(0, width, size)
    ]


def tiles(height: int, width: int, *, size: int, margin: int, multiple: int = 1) -> list[Tile]:
    """Windows inside the scene that overlap by at least `2 * margin`, and the core of each, cut midway in the overlap.

    A core lies at least `margin` pixels inside its window, but at the edge of the scene, where there is no more to
    see. Windows are as few as windows of `size` can be, and along each axis all alike and no larger than that needs: a
    network is compiled for one shape, and little is seen twice. They start at multiples of `multiple`, the stride of
    the network's coarsest features: started elsewhere it would see the same roof otherwise. For that the last of a row
    or column may be smaller by less than `multiple`.
    """
    return [
        Tile(Window(col.first, row.first, col.size, row.size), Window(col.core, row.core, col.keep, row.keep))
        for row in _steps(height, size=size, margin=margin, multiple=multiple)
        for col in _steps(width, size=size, margin=margin, multiple=multiple)
    ]


@dataclass(frozen=True)
class _Step:
    first: int
    size: int
    core: int
    keep: int


def _steps(length: int, *, size: int, margin: int, multiple: int) -> list[_Step]:
    widest = (size - 2 * margin) // multiple
    if margin < 0 or widest <= 0:
        raise ValueError(f"margin must lie in 0..{(size - multiple) // 2} for windows of {size}, got {margin}")
    if length <= size:
        return [_Step(0, length, 0, length)]
    count = -(-(length - 2 * margin) // (widest * multiple))
    stride = -(-(length - 2 * margin) // (count * multiple)) * multiple
    side = stride + 2 * margin
    last = -(-(length - side) // multiple)
    first = [last * number // (count - 1) * multiple for number in range(count)]
    cuts = [(left + right + side) // 2 for left, right in pairwise(first)]
    edges = [0, *cuts, length]
    return [_Step(f, min(side, length - f), a, b - a) for f, a, b in zip(first, edges[:-1], edges[1:], strict=True)]
