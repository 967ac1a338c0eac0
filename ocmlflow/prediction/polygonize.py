"""Probabilities, block by block, to footprints that are whole across the edges of blocks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from rasterio.features import shapes
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry
from skimage.measure import label as connected

MAX_HOLES = 2000
"""With more, an outline is noise, no building, and stays as it was traced: straightening takes time by the square."""


@dataclass(frozen=True)
class MaskBlock:
    """A window of a scene in which buildings are looked for."""

    window: Window
    percents: np.ndarray
    """(height, width) uint8: the probability."""
    building: np.ndarray
    """(height, width) bool."""


@dataclass(frozen=True)
class PredictedFootprint:
    """One predicted building."""

    outline: BaseGeometry
    """Polygon with holes."""
    probability: float
    """Mean over its pixels, 0..1."""


@dataclass(frozen=True)
class _Part:
    """What one block shows of a building."""

    outline: BaseGeometry  # along the edges of pixels, in (col, row) of the scene
    pixels: int
    percent: int  # sum over its pixels


def trace(blocks: Iterable[MaskBlock], *, width: int) -> Iterator[PredictedFootprint]:
    """Footprints in (col, row) of a scene of that width, the same as if it were traced in one piece.

    Pixels that share an edge belong together, those that share a corner do not. The blocks touch every pixel once and
    come by rows, as those of `grid.blocks` do. A building is handed out as soon as nothing can be added to it; held
    are those alone that reach the lower edge of the blocks seen so far.
    """
    above, left = np.zeros(width, np.int64), np.zeros(0, np.int64)  # numbers of the parts along the open edges
    held: dict[int, list[_Part]] = {}  # by the number of the building they belong to
    merged: dict[int, int] = {}  # number of a building to that of the one it turned out to be a part of
    row, number = 0, 0
    for block in blocks:
        across = slice(block.window.col_off, block.window.col_off + block.window.width)
        if block.window.row_off != row:
            row = block.window.row_off
            yield from _closed(held, merged, above)
        if block.window.col_off == 0:
            left = np.zeros(block.window.height, np.int64)
        if not block.building.any():
            above[across] = left[:] = 0
            continue
        numbered = connected(block.building, connectivity=1).astype(np.int32)
        # Numbers of the whole scene, each new part a building of its own until it meets another.
        upper, lower, first, last = (
            np.where(edge > 0, edge + np.int64(number), 0)
            for edge in (numbered[0], numbered[-1], numbered[:, 0], numbered[:, -1])
        )
        open_parts = set(np.concatenate([upper, lower, first, last]).tolist())
        for i, part in _parts(numbered, block):
            if number + i in open_parts:
                held[number + i] = [part]
            else:
                yield _footprint([part])
        number += int(numbered.max())
        _meet(held, merged, above[across], upper)
        _meet(held, merged, left, first)
        above[across], left = lower, last
    yield from _closed(held, merged, np.zeros(0, np.int64))


def to_ground(
    footprints: Iterable[PredictedFootprint], transform: Affine, *, tolerance: float
) -> list[PredictedFootprint]:
    """Footprints in the transform's CRS, their staircases straightened by about `tolerance` of its units."""
    found = list(footprints)
    outlines = np.array([footprint.outline for footprint in found], object)
    # Not as a product of matrices, whose last digits depend on how many threads make it.
    outlines = shapely.transform(outlines, lambda corners: np.stack(transform @ tuple(corners.T), axis=1))
    few = shapely.get_num_interior_rings(outlines) <= MAX_HOLES
    outlines[few] = shapely.simplify(outlines[few], tolerance, preserve_topology=True)
    return [PredictedFootprint(outline, one.probability) for outline, one in zip(outlines, found, strict=True)]


def _parts(numbered: np.ndarray, block: MaskBlock) -> Iterator[tuple[int, _Part]]:
    numbers = numbered[block.building]
    pixels = np.bincount(numbers)
    sums = np.bincount(numbers, weights=block.percents[block.building])
    place = Affine.translation(block.window.col_off, block.window.row_off)
    for outline, i in shapes(numbered, mask=block.building, connectivity=4, transform=place):
        yield int(i), _Part(_polygon(outline["coordinates"]), int(pixels[int(i)]), int(sums[int(i)]))


def _polygon(rings: list[list[tuple[float, float]]]) -> BaseGeometry:
    # Rings as arrays: shapely's own `shape` takes each corner by itself, eight times as long.
    outer, *holes = (np.array(ring) for ring in rings)
    return shapely.Polygon(outer, holes)


def _meet(held: dict[int, list[_Part]], merged: dict[int, int], one: np.ndarray, other: np.ndarray) -> None:
    """Make one building of those whose pixels lie side by side along two edges, given by their numbers, 0 for none."""
    both = (one > 0) & (other > 0)
    for a, b in set(zip(one[both].tolist(), other[both].tolist(), strict=True)):
        first, second = sorted((_root(merged, a), _root(merged, b)))
        if first != second:
            merged[second] = first
            held[first] += held.pop(second)


def _root(merged: dict[int, int], number: int) -> int:
    while number in merged:
        number = merged[number]
    return number


def _closed(held: dict[int, list[_Part]], merged: dict[int, int], above: np.ndarray) -> Iterator[PredictedFootprint]:
    """The buildings of which nothing lies along the open edge, held no longer; the numbers on it become their roots."""
    numbers, places = np.unique(above, return_inverse=True)
    roots = np.array([_root(merged, number) for number in numbers.tolist()], np.int64)
    above[:] = roots[places]
    merged.clear()
    for number in sorted(held.keys() - set(roots.tolist())):
        yield _footprint(held.pop(number))
    for number, parts in held.items():
        held[number] = [_merge(parts)]


def _footprint(parts: list[_Part]) -> PredictedFootprint:
    whole = _merge(parts)
    return PredictedFootprint(whole.outline, whole.percent / whole.pixels / 100)


def _merge(parts: list[_Part]) -> _Part:
    if len(parts) == 1:
        return parts[0]
    # Outlines run along whole pixels, so the union is exact; simplify(0) takes out the points left on the seam.
    outline = shapely.union_all([part.outline for part in parts]).simplify(0)
    return _Part(outline, sum(p.pixels for p in parts), sum(p.percent for p in parts))
