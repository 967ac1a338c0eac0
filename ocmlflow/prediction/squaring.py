"""Makes outlines of buildings right-angled: walls turn to the building's main direction or across it."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from ocmlflow.prediction.simplification import SimplifiedOutlines

MIN_IOU = 0.85
"""Least IoU of a squared outline with the outline that it replaces: round and skew buildings stay as they are."""
MAX_TURN_DEG = 30.0
"""Walls turn by at most this angle; those farther from both directions are oblique."""
SAME_DEG = 12.0
"""Walls within this angle of each other count for the same direction."""
CHAMFER_M = 2.0
"""Shorter oblique walls, which are corners that the network has rounded, go."""
STEP_M = 0.5
"""Shorter steps in a wall go."""
HAIR = 1e-4
"""Share of the smaller outline that two of them may have in common: rounding makes such hairs."""
MAX_CORNERS = 1_000
"""Outlines with more corners are noise and stay."""
ALONG, ACROSS, OBLIQUE = range(3)


@dataclass
class _Wall:
    """A straight wall: the points whose product with the normal is `offset`."""

    kind: int
    normal: np.ndarray
    offset: float
    length: float
    end: np.ndarray
    """Where it ended before it was turned."""


def square(simple: SimplifiedOutlines, *, gsd: float) -> np.ndarray:
    """The polygons, (count,) in pixels, right-angled where that changes them little; the others as they are.

    Shared corners, and walls between two of them, stay; other walls turn about the middle of the pixels along them.
    """
    outlines = simple.polygons
    if not len(outlines):
        return outlines
    ends = np.cumsum(shapely.get_num_coordinates(outlines))[:-1]
    parts = zip(outlines, np.split(simple.is_shared, ends), np.split(simple.lean * gsd, ends), strict=True)
    squares = [_square(outline, is_fixed, lean, gsd) for outline, is_fixed, lean in parts]
    has_square = np.array([square is not None for square in squares], bool)
    changed = outlines.copy()
    changed[has_square] = [square for square in squares if square is not None]
    is_good = shapely.is_valid(changed) & shapely.is_valid(outlines) & has_square
    plain, new = outlines[is_good], changed[is_good]
    common = shapely.area(shapely.intersection(plain, new))
    is_good[is_good] = common / (shapely.area(plain) + shapely.area(new) - common) >= MIN_IOU
    return np.where(is_good, changed, outlines)


def without_overlap(squares: np.ndarray, outlines: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The squared outlines, of which those that overlap others are as in `outlines`, the smaller of two first.

    What overlaps without being squared, stays.
    """
    apart = squares.copy()
    is_square = ~shapely.equals_exact(squares, outlines)
    while True:
        both = np.concatenate([others, apart])
        one, other = shapely.STRtree(both).query(apart, predicate="intersects")
        one = one + len(others)
        one, other = one[one != other], other[one != other]
        area = shapely.area(both)
        common = shapely.area(shapely.intersection(both[one], both[other]))
        overlap = common > HAIR * np.minimum(area[one], area[other])
        can_change = np.concatenate([np.zeros(len(others), bool), is_square])
        first = ~can_change[other] | (area[one] < area[other]) | ((area[one] == area[other]) & (one < other))
        back = one[overlap & can_change[one] & first] - len(others)
        if not len(back):
            return apart
        apart[back], is_square[back] = outlines[back], False


def _square(outline: BaseGeometry, is_fixed: np.ndarray, lean: np.ndarray, gsd: float) -> BaseGeometry | None:
    """The outline, right-angled; None where that cannot be. Courtyards that cannot be stay as they are."""
    points = shapely.get_coordinates(outline)
    if len(points) > MAX_CORNERS:
        return None
    ends = np.cumsum(shapely.get_num_coordinates(shapely.get_rings(outline)))[:-1]
    rings = np.split(points, ends)
    angle = _main_direction(np.concatenate([np.diff(ring, axis=0) for ring in rings]))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    exterior, *holes = (
        _square_ring((ring[:-1] - points[0]) * gsd @ turn, fixed[:-1], leans[:-1])
        for ring, fixed, leans in zip(rings, np.split(is_fixed, ends), np.split(lean, ends), strict=True)
    )
    if exterior is None:
        return None
    back = [
        ring if square is None else square @ turn.T / gsd + points[0]
        for ring, square in zip(rings[1:], holes, strict=True)
    ]
    return shapely.Polygon(exterior @ turn.T / gsd + points[0], back)


def _main_direction(walls: np.ndarray) -> float:
    """Direction that most length of the walls, (count, 2) vectors, follows or crosses, in radians."""
    length = np.hypot(*walls.T)
    angle = np.arctan2(walls[:, 1], walls[:, 0])
    away = (angle[np.newaxis] - angle[:, np.newaxis] + math.pi / 4) % (math.pi / 2) - math.pi / 4
    weight = length * np.maximum(0, 1 - np.abs(away) / math.radians(SAME_DEG))
    best = int(np.argmax(weight.sum(axis=1)))
    return float(angle[best] + (away[best] * weight[best]).sum() / weight[best].sum())


def _square_ring(points: np.ndarray, is_fixed: np.ndarray, lean: np.ndarray) -> np.ndarray | None:
    """A ring, (corners, 2) without the closing one, whose main direction is x; None where that cannot be."""
    if not is_fixed.any():
        walls = _walls(np.concatenate([points, points[:1]]), lean)
        first = next((n for n in range(len(walls)) if walls[n].kind != walls[n - 1].kind), None)
        if first is None:
            return None
        walls = _joined(walls[first:] + walls[:first])
        return _crossings([*walls, walls[0]]) if len(walls) > 2 else None
    start = int(np.argmax(is_fixed))
    points, is_fixed, lean = (np.roll(values, -start, axis=0) for values in (points, is_fixed, lean))
    points, stops = np.concatenate([points, points[:1]]), [*np.flatnonzero(is_fixed).tolist(), len(points)]
    corners = []
    for begin, end in pairwise(stops):
        between = _square_run(points[begin : end + 1], lean[begin:end])
        if between is None:
            return None
        corners += [points[begin : begin + 1], between]
    return np.concatenate(corners) if sum(map(len, corners)) > 2 else None


def _square_run(points: np.ndarray, lean: np.ndarray) -> np.ndarray | None:
    """The corners between the first and the last of these, which stay; None where that cannot be."""
    walls = _joined(_walls(points, lean)) if len(points) > 2 else []
    for wall, corner in zip(walls[:1] + walls[-1:], (points[0], points[-1]), strict=False):
        wall.offset = float(wall.normal @ corner)
    return _crossings(walls)


def _walls(points: np.ndarray, lean: np.ndarray) -> list[_Wall]:
    """The walls along a line of points, without chamfers and small steps."""
    walls = []
    for (start, end), aside in zip(pairwise(points), lean.tolist(), strict=True):
        x, y = (end - start).tolist()
        length = math.hypot(x, y)
        off = math.degrees(math.atan2(min(abs(x), abs(y)), max(abs(x), abs(y))))
        if length < (STEP_M if off <= MAX_TURN_DEG else CHAMFER_M):
            continue
        if off > MAX_TURN_DEG:
            kind, normal = OBLIQUE, np.array([-y, x]) / length
        else:
            kind, normal = (ALONG, np.array([0.0, 1.0])) if abs(x) > abs(y) else (ACROSS, np.array([1.0, 0.0]))
        middle = (start + end) / 2 + np.array([y, -x]) * aside / length
        walls.append(_Wall(kind, normal, float(normal @ middle), length, end))
    return walls


def _joined(walls: list[_Wall]) -> list[_Wall]:
    """The walls, those one behind the other as one, or with a step between them."""
    joined: list[_Wall] = []
    for wall in walls:
        last = joined[-1] if joined else None
        if last is None or wall.kind != last.kind or wall.kind == OBLIQUE:
            joined.append(wall)
        elif abs(wall.offset - last.offset) <= STEP_M:
            length = last.length + wall.length
            last.offset = (last.offset * last.length + wall.offset * wall.length) / length
            last.length, last.end = length, wall.end
        else:
            normal = last.normal[::-1]
            joined += [_Wall(1 - last.kind, normal, float(normal @ last.end), 0.0, last.end), wall]
    return joined


def _crossings(walls: list[_Wall]) -> np.ndarray | None:
    """Where each wall crosses the next one, (walls - 1, 2); None where two are nearly parallel."""
    corners = np.empty((max(0, len(walls) - 1), 2))
    for number, (one, other) in enumerate(pairwise(walls)):
        (a, b), (c, d) = one.normal, other.normal
        determinant = a * d - b * c
        if abs(determinant) < math.sin(math.radians(SAME_DEG)):
            return None
        corners[number] = (one.offset * d - b * other.offset, a * other.offset - one.offset * c)
        corners[number] /= determinant
    return corners
