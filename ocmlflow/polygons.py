"""Probabilities, block by block, to footprints that are whole across the edges of blocks."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from rasterio.features import shapes
from rasterio.windows import Window
from shapely.affinity import affine_transform
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry
from skimage.measure import label as connected


@dataclass(frozen=True)
class Part:
    """The part of a building that lies in one block."""

    outline: BaseGeometry
    """Polygon with holes, along the edges of pixels, in (col, row) of the scene."""
    pixels: int
    percent: int
    """Sum of the percent of its pixels."""
    open: bool
    """Whether it touches the edge of its block, behind which it may go on."""


@dataclass(frozen=True)
class Footprint:
    """One predicted building."""

    outline: BaseGeometry
    """Polygon with holes."""
    probability: float
    """Mean over its pixels, 0..1."""


def trace(percents: np.ndarray, building: np.ndarray, window: Window) -> list[Part]:
    """Parts of buildings in one block of a scene.

    `percents` (height, width) uint8 holds the probability, `building` (height, width) bool what is building; pixels
    that share an edge belong together, those that share a corner do not.
    """
    numbered = connected(building, connectivity=1).astype(np.int32)
    flat = numbered.ravel()
    pixels = np.bincount(flat)
    sums = np.bincount(flat, weights=percents.ravel())
    edges = (numbered[0], numbered[-1], numbered[:, 0], numbered[:, -1])
    touching = set(np.unique(np.concatenate(edges)).tolist())
    place = Affine.translation(window.col_off, window.row_off)
    return [
        Part(shape(outline), int(pixels[int(number)]), int(sums[int(number)]), int(number) in touching)
        for outline, number in shapes(numbered, mask=building, connectivity=4, transform=place)
    ]


def join(parts: Iterable[Part]) -> list[Footprint]:
    """Footprints in (col, row), parts that share an edge made one; the same as traced from the whole scene."""
    parts = list(parts)
    whole = [part for part in parts if not part.open]
    cut = [part for part in parts if part.open]
    joined = [_merge([cut[i] for i in group]) for group in _neighbours(cut)]
    return [Footprint(part.outline, part.percent / part.pixels / 100) for part in whole + joined]


def to_ground(footprints: Iterable[Footprint], transform: Affine, *, tolerance: float) -> list[Footprint]:
    """Footprints in the transform's CRS, their staircases straightened by about `tolerance` of its units."""
    matrix = (transform.a, transform.b, transform.d, transform.e, transform.c, transform.f)
    return [
        Footprint(affine_transform(f.outline, matrix).simplify(tolerance, preserve_topology=True), f.probability)
        for f in footprints
    ]


def _merge(parts: list[Part]) -> Part:
    # Outlines run along whole pixels, so the union is exact; simplify(0) takes out the points left on the seam.
    outline = shapely.union_all([part.outline for part in parts]).simplify(0)
    return Part(outline, sum(p.pixels for p in parts), sum(p.percent for p in parts), open=False)


def _neighbours(parts: list[Part]) -> list[list[int]]:
    """Groups of parts that hang together by shared edges, each in the order of `parts`."""
    outlines = np.array([part.outline for part in parts], dtype=object)
    tree = shapely.STRtree(outlines)
    group = list(range(len(parts)))

    def first(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    for left, right in tree.query(outlines, predicate="touches").T:
        # Parts that meet in a corner touch as well, but share no length.
        if left < right and outlines[left].intersection(outlines[right]).length > 0:
            a, b = sorted((first(int(left)), first(int(right))))
            group[b] = a
    members: dict[int, list[int]] = {}
    for i in range(len(parts)):
        members.setdefault(first(i), []).append(i)
    return list(members.values())
