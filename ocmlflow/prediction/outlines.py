"""Makes outlines fit for map editors: valid when rounded, without pinholes and overlaps, below 2,000 corners."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pyarrow as pa
import shapely
from pyproj import Transformer
from shapely.geometry.base import BaseGeometry

GRID_DEG = 1e-7
"""Coordinates in degrees are rounded to this, about a centimetre, as RFC 7946 advises."""
MAX_CORNERS = 1_800
"""Corners of an outline, holes included. OpenStreetMap takes 2,000 nodes in a way; the rest is for cuts to add some."""
COARSER = 2, 4
"""Factors by which the tolerance of simplification grows, before an outline with too many corners is split."""
GAP_DEG = 3 * GRID_DEG
"""Distance that a cut leaves between neighbours: rounding moves each of them by less than one step of the grid."""
ROUNDS = 8
"""Rounding or cutting again may find more to do, hardly ever more than three times."""


class WrittenOutlines:
    """Outlines that are written already, for those to come to keep clear of.

    They are held as WKB, some 400 bytes for a building: a hundredth of what the network needs for the ground around it.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[np.ndarray, pa.Array]] = []

    def add(self, outlines: np.ndarray) -> None:
        """Add outlines, in the CRS that all of them share."""
        self._batches.append((shapely.bounds(outlines), pa.array(shapely.to_wkb(outlines), pa.binary())))

    def near(self, outlines: np.ndarray) -> np.ndarray:
        """The written outlines whose bounds meet the bounds of all these together."""
        left, bottom, right, top = shapely.total_bounds(outlines)
        found = []
        for bounds, wkb in self._batches:
            meets = (bounds[:, :2] <= (right, top)).all(axis=1) & (bounds[:, 2:] >= (left, bottom)).all(axis=1)
            found.append(shapely.from_wkb(wkb.filter(pa.array(meets)).to_numpy(zero_copy_only=False)))
        return np.concatenate([np.empty(0, object), *found])


def to_degrees(outlines: np.ndarray, crs: str) -> np.ndarray:
    """Outlines in degrees (lon, lat) on the grid of GRID_DEG, valid; MultiPolygons where rounding or 180 degrees cuts.

    Outlines that rounding leaves nothing of are empty.
    """
    degrees = project(outlines, crs, "EPSG:4326")
    west, _, east, _ = shapely.bounds(degrees).T
    for number in np.flatnonzero(east - west > 180):
        degrees[number] = _cut_at_180(degrees[number])
    # Simplifying in another CRS may leave a ring that crosses itself in degrees; rounding raises on such a one.
    crossed = ~shapely.is_valid(degrees)
    degrees[crossed] = shapely.make_valid(degrees[crossed], method="structure", keep_collapsed=False)
    return np.asarray(shapely.set_precision(degrees, GRID_DEG))


def from_degrees(outlines: np.ndarray, crs: str) -> np.ndarray:
    """Outlines in degrees (lon, lat), in a CRS."""
    return project(outlines, "EPSG:4326", crs)


def rounding_safe(outlines: np.ndarray, crs: str) -> np.ndarray:
    """The outlines, in which those that rounding would split, or take a hole from, are replaced by what it leaves.

    What is split becomes a MultiPolygon, what vanishes an empty polygon.
    """
    safe = outlines.copy()
    changed = np.arange(len(outlines))
    for _ in range(ROUNDS):
        degrees = to_degrees(safe[changed], crs)
        differs = (_counts(degrees) != _counts(safe[changed])).any(axis=0)
        changed = changed[differs]
        safe[changed] = from_degrees(degrees[differs], crs)
    return safe


def fill_holes(outlines: np.ndarray, crs: str, *, equal_area: str, min_hole_m2: float) -> np.ndarray:
    """The outlines without holes below an area, measured in an equal-area CRS."""
    filled = outlines.copy()
    for number in np.flatnonzero(shapely.get_num_interior_rings(outlines)):
        exterior, *holes = shapely.get_rings(outlines[number])
        areas = shapely.area(project(shapely.polygons(holes), crs, equal_area))
        filled[number] = shapely.Polygon(exterior, [h for h, m2 in zip(holes, areas, strict=True) if m2 >= min_hole_m2])
    return filled


def shorten(outlines: np.ndarray, *, tolerance: float) -> np.ndarray:
    """The outlines, of at most MAX_CORNERS each.

    Longer ones are simplified further; if that is not enough, they are split into the parts of a MultiPolygon.
    """
    short = outlines.copy()
    for factor in COARSER:
        long = shapely.get_num_coordinates(short) > MAX_CORNERS
        short[long] = shapely.simplify(short[long], factor * tolerance, preserve_topology=True)
    for number in np.flatnonzero(shapely.get_num_coordinates(short) > MAX_CORNERS):
        short[number] = shapely.multipolygons(list(_split(short[number])))
    return short


def cut_overlaps(outlines: np.ndarray, written: WrittenOutlines, crs: str) -> np.ndarray | None:
    """The polygons, cut where they overlap a written one or a larger one of them; None where none overlaps.

    Overlaps that rounding would make count too; a cut leaves a gap of GAP_DEG. What is cut into parts becomes a
    MultiPolygon, what is covered an empty polygon. The parts may overlap others again: call it until it returns None.
    """
    if not len(outlines):
        return None
    fixed = written.near(outlines)
    order = np.argsort(-shapely.area(outlines), kind="stable")
    both = np.concatenate([fixed, outlines[order]])
    degrees = to_degrees(both, crs)
    pairs = _overlaps(both, degrees, first=len(fixed))
    if not pairs:
        return None
    for keeper, number in pairs:
        keep_clear = shapely.buffer(degrees[keeper], GAP_DEG, join_style="mitre")
        degrees[number] = degrees[number] - keep_clear
    changed = sorted({number for _, number in pairs})
    both[changed] = rounding_safe(from_degrees(degrees[changed], crs), crs)
    cut = outlines.copy()
    cut[order] = both[len(fixed) :]
    return cut


def polygons(outline: BaseGeometry) -> list[BaseGeometry]:
    """The polygons of an outline, largest first."""
    parts = [part for part in shapely.get_parts(outline) if part.geom_type == "Polygon" and not part.is_empty]
    return sorted(parts, key=lambda part: -part.area)


def project(outlines: np.ndarray, crs: str, target: str) -> np.ndarray:
    """Outlines brought from one CRS to another, corner by corner."""
    transformer = _transformer(crs, target)
    return np.asarray(shapely.transform(outlines, lambda points: np.column_stack(transformer.transform(*points.T))))


@lru_cache(16)
def _transformer(crs: str, target: str) -> Transformer:
    """Transformers are kept: to make one takes as long as to transform a thousand outlines."""
    return Transformer.from_crs(crs, target, always_xy=True)


def _counts(outlines: np.ndarray) -> np.ndarray:
    """Number of polygons and of rings of each outline, (2, count)."""
    parts, owners = shapely.get_parts(outlines, return_index=True)
    _, rings = shapely.get_rings(parts, return_index=True)
    return np.stack([np.bincount(numbers, minlength=len(outlines)) for numbers in (owners, owners[rings])])


def _overlaps(outlines: np.ndarray, degrees: np.ndarray, *, first: int) -> list[tuple[int, int]]:
    """Sorted pairs of outlines that overlap in their CRS or in degrees, the second from number `first` on."""
    numbers, others = shapely.STRtree(degrees).query(degrees, predicate="dwithin", distance=GRID_DEG)
    candidate = (numbers < others) & (others >= first)
    numbers, others = numbers[candidate], others[candidate]
    overlap = np.zeros(len(numbers), bool)
    for geometries in (outlines, degrees):
        overlap |= shapely.relate_pattern(geometries[numbers], geometries[others], "T********")
    return sorted(zip(numbers[overlap].tolist(), others[overlap].tolist(), strict=True))


def _split(outline: BaseGeometry) -> Iterator[BaseGeometry]:
    """Halves of a polygon, across its longer side, until each part has at most MAX_CORNERS."""
    if shapely.get_num_coordinates(outline) <= MAX_CORNERS:
        yield outline
        return
    left, bottom, right, top = outline.bounds
    if right - left > top - bottom:
        middle = (left + right) / 2
        halves = shapely.box(left, bottom, middle, top), shapely.box(middle, bottom, right, top)
    else:
        middle = (bottom + top) / 2
        halves = shapely.box(left, bottom, right, middle), shapely.box(left, middle, right, top)
    for half in halves:
        for part in polygons(outline & half):
            yield from _split(part)


def _cut_at_180(outline: BaseGeometry) -> BaseGeometry:
    """An outline in degrees that crosses 180 degrees, cut there, as RFC 7946 asks."""
    whole = shapely.transform(outline, lambda points: np.column_stack([points[:, 0] % 360, points[:, 1]]))
    east = shapely.box(0, -90, 180, 90) & whole
    west = shapely.affinity.translate(shapely.box(180, -90, 360, 90) & whole, -360)
    return shapely.union_all([*polygons(east), *polygons(west)])
