"""Simplifies the pixel outlines of buildings so that walls which two of them share stay one line.

Outlines are taken apart into arcs at the corners where three of them, or two and the background, meet. Each arc is
simplified by itself (Douglas and Peucker 1973), always in the same direction: both buildings of a wall get the same
line, whether they are simplified together or not.
"""

from dataclasses import dataclass

import numpy as np
import shapely

_STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
"""Steps from one pixel corner to the next; the step of a number and the one two further are opposite."""
_DIRECTIONS = np.array([number.bit_count() for number in range(16)])
"""Number of directions in a set of them, as bits."""


@dataclass(frozen=True)
class SimplifiedOutlines:
    """Outlines whose corners are corners of the pixel outlines."""

    polygons: np.ndarray
    """(count,) valid Polygons."""
    is_shared: np.ndarray
    """(coordinates,) bool, for each of `shapely.get_coordinates(polygons)`: another outline has the corner too."""
    lean: np.ndarray
    """(coordinates,) float64: mean distance, in pixels, by which the pixel outline lies to the side of the wall from
    this corner to the next one; positive from x towards -y."""


@dataclass(frozen=True)
class _Corners:
    """Corners of rings, and where other rings meet them; one ring after the other, without the closing corner."""

    points: np.ndarray
    """(corners, 2) int64: col and row."""
    ring: np.ndarray
    """(corners,) number of the ring, ascending."""
    key: np.ndarray
    """(corners,) int64 that is the same for corners in the same place."""
    is_node: np.ndarray
    """(corners,) bool: outlines part there."""
    is_shared: np.ndarray
    """(corners,) bool: outlines touch there."""

    def __getitem__(self, which: np.ndarray) -> "_Corners":
        return _Corners(*(values[which] for values in vars(self).values()))


def simplify(outlines: np.ndarray, around: np.ndarray, *, tolerance: float) -> SimplifiedOutlines:
    """The outlines, (count,) Polygons along pixel edges in pixels, simplified by `tolerance` pixels.

    `around` are the other outlines that may touch them. Holes of which nothing is left go; an outline of which nothing
    is left stays as it is.
    """
    if not len(outlines):
        return SimplifiedOutlines(outlines, np.zeros(0, bool), np.zeros(0))
    rings, owner = shapely.get_rings(np.concatenate([outlines, around]), return_index=True)
    corners = _corners(rings)
    corners = _from_best_start(corners[owner[corners.ring] < len(outlines)])
    is_left = _is_left(corners, tolerance)
    is_left &= np.bincount(corners.ring[is_left], minlength=len(rings))[corners.ring] >= 3
    exterior = np.flatnonzero(np.diff(owner, prepend=-1))
    has_exterior = np.isin(exterior, corners.ring[is_left])
    is_left &= has_exterior[owner[corners.ring]]
    return _assembled(outlines, corners[is_left], owner, _lean(corners, is_left))


def _corners(rings: np.ndarray) -> _Corners:
    """The corners of rings that run along pixel edges, and the places on straight edges where others meet them."""
    points, ring = shapely.get_coordinates(rings, return_index=True)
    points = np.rint(points).astype(np.int64)
    is_edge = ring[1:] == ring[:-1]
    ring, start, delta = ring[:-1][is_edge], points[:-1][is_edge], np.diff(points, axis=0)[is_edge]
    length = np.abs(delta).sum(axis=1)
    leaves = np.where(delta[:, 0] != 0, 1 - np.sign(delta[:, 0]), 2 - np.sign(delta[:, 1]))
    edge = np.repeat(np.arange(len(length)), length)
    along = np.arange(len(edge)) - np.repeat(np.cumsum(length) - length, length)
    points = start[edge] + along[:, np.newaxis] * _STEPS[leaves[edge]]
    ring, leaves = ring[edge], leaves[edge]
    before = np.arange(len(ring)) - 1
    is_first = np.flatnonzero(np.diff(ring, prepend=-1))
    before[is_first] = np.append(is_first[1:], len(ring)) - 1
    comes = (leaves[before] + 2) % 4
    key = _key(points)
    order = np.argsort(key, kind="stable")
    place_first = np.flatnonzero(np.diff(key[order], prepend=-1))
    visits = np.diff(place_first, append=len(key))
    directions = np.bitwise_or.reduceat((1 << leaves | 1 << comes)[order], place_first)
    is_node, is_shared = np.zeros((2, len(key)), bool)
    is_node[order] = np.repeat(_DIRECTIONS[directions] > 2, visits)
    is_shared[order] = np.repeat(visits > 1, visits)
    turns = (leaves + 2) % 4 != comes
    return _Corners(points, ring, key, is_node, is_shared)[turns | is_node]


def _from_best_start(corners: _Corners) -> _Corners:
    """The corners, each ring rotated to start at a node, or else at the corner farthest from its middle."""
    first = np.flatnonzero(np.diff(corners.ring, prepend=-1))
    count = np.diff(first, append=len(corners.ring))
    low, high = (np.repeat(edge.reduceat(corners.points, first), count, axis=0) for edge in (np.minimum, np.maximum))
    distance = ((2 * corners.points - low - high) ** 2).sum(axis=1)
    distance[corners.is_node] = np.iinfo(np.int64).max
    is_best = distance == np.repeat(np.maximum.reduceat(distance, first), count)
    key = np.where(is_best, corners.key, np.iinfo(np.int64).max)
    is_start = np.flatnonzero(key == np.repeat(np.minimum.reduceat(key, first), count))
    start = is_start[np.searchsorted(is_start, first)] - first
    position = np.arange(len(corners.ring)) - np.repeat(first, count)
    return corners[np.repeat(first, count) + (position + np.repeat(start, count)) % np.repeat(count, count)]


def _is_left(corners: _Corners, tolerance: float) -> np.ndarray:
    """(corners,) bool: which are left of rings that start at a node, or have none."""
    is_first = np.diff(corners.ring, prepend=-1) != 0
    start = np.flatnonzero(is_first | corners.is_node)
    count = np.diff(start, append=len(corners.ring))
    ring_first = np.flatnonzero(is_first)
    end = np.append(start[1:], 0)
    is_last = np.append(is_first[start[1:]], True)
    end[is_last] = ring_first
    arc = np.repeat(np.arange(len(start)), count + 1)
    position = np.arange(len(arc)) - np.repeat(np.cumsum(count + 1) - count - 1, count + 1)
    ahead, behind = corners.key[start], corners.key[end]
    is_loop = ahead == behind
    ahead = np.where(is_loop, corners.key[np.minimum(start + 1, len(corners.key) - 1)], ahead)
    behind = np.where(is_loop, corners.key[start + count - 1], behind)
    position = np.where((ahead > behind)[arc], count[arc] - position, position)
    number = np.where(position == count[arc], end[arc], start[arc] + position)
    # The third coordinate, which GEOS carries along, tells which corners are left.
    lines = shapely.linestrings(np.column_stack([corners.points[number], number]).astype(float), indices=arc)
    kept = shapely.get_coordinates(shapely.simplify(lines, tolerance, preserve_topology=False), include_z=True)[:, 2]
    is_left = np.zeros(len(corners.ring), bool)
    is_left[kept.astype(np.int64)] = True
    return is_left


def _lean(corners: _Corners, is_left: np.ndarray) -> np.ndarray:
    """SimplifiedOutlines.lean of the corners that are left: twice the area beside a wall over twice its length."""
    twice_area = np.cumsum(_cross(corners.points, _next(corners.points, corners.ring)))
    left = np.flatnonzero(is_left)
    ring, points = corners.ring[left], corners.points[left]
    ring_ends = np.append(np.flatnonzero(np.diff(corners.ring)), len(corners.ring) - 1)
    is_last = np.diff(ring, append=-1) != 0
    last = np.append(left[1:], 0) - 1  # the corner before the next one that is left
    last[is_last] = ring_ends[np.searchsorted(corners.ring[ring_ends], ring[is_last])]
    along = twice_area[last] - twice_area[left] + _cross(corners.points, _next(corners.points, corners.ring))[left]
    following = _next(points, ring)
    length = np.maximum(np.hypot(*(following - points).T), 1e-9)
    return np.asarray((along - _cross(points, following)) / (2 * length))


def _next(points: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """The point that follows each one in its ring."""
    is_first = np.diff(ring, prepend=-1) != 0
    following = np.arange(len(ring)) + 1
    following[np.roll(is_first, -1)] = np.flatnonzero(is_first)
    return np.asarray(points[following])


def _cross(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.asarray(points[:, 0] * others[:, 1] - points[:, 1] * others[:, 0])


def _assembled(outlines: np.ndarray, left: _Corners, owner: np.ndarray, lean: np.ndarray) -> SimplifiedOutlines:
    """Polygons of the corners that are left; outlines of which none is left stay as they are."""
    polygons = outlines.copy()
    rings, ring = np.unique(left.ring, return_inverse=True)
    changed, place = np.unique(owner[rings], return_inverse=True)
    if len(rings):
        closed = shapely.linearrings(left.points.astype(float), indices=ring)
        polygons[changed] = shapely.polygons(np.asarray(closed), indices=place)
    crossed = np.flatnonzero(~shapely.is_valid(polygons))
    for number in crossed:
        parts = shapely.get_parts(shapely.make_valid(polygons[number], method="structure", keep_collapsed=False))
        largest = max(parts, key=shapely.area)
        polygons[number] = outlines[number] if largest.is_empty else largest
    # Corners that were repaired are new: all of them stay.
    is_as_left = ~np.isin(owner[left.ring], crossed)
    _, outline = shapely.get_coordinates(polygons, return_index=True)
    is_changed = np.isin(outline, np.setdiff1d(changed, crossed))
    is_shared, leans = np.ones(len(outline), bool), np.zeros(len(outline))
    _, count = np.unique(left.ring[is_as_left], return_counts=True)
    closing = np.cumsum(count)
    is_shared[is_changed] = np.insert(left.is_shared[is_as_left], closing, False)
    leans[is_changed] = np.insert(lean[is_as_left], closing, 0)
    return SimplifiedOutlines(polygons, is_shared, leans)


def _key(points: np.ndarray) -> np.ndarray:
    """One number for each place: columns are below 2**31, as are rows."""
    return np.asarray(points[:, 0] * 2**31 + points[:, 1])
