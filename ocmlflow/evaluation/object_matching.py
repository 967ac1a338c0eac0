"""Buildings as objects: predicted and labelled ones, matched where they overlap by half of what they cover together.

An object is a polygon, or the pixels of a raster that hang together by their edges. Rasters are counted block by block
and joined across the edges of blocks, so that memory hangs on a block and its objects, never on the scene.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import shapely
from scipy.ndimage import label as connected
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

IOU = 0.5
"""From here on a predicted and a labelled building are the same."""
SIZES_M2 = (25.0, 100.0, 500.0)
"""Between the size classes."""
CLASSES = ("below 25 m²", "25 to 100 m²", "100 to 500 m²", "from 500 m²")


@dataclass(frozen=True)
class ObjectCounts:
    """Objects, counted; counts of parts add up to those of the whole."""

    tp: int = 0
    """Labelled, and predicted as such."""
    fp: int = 0
    """Predicted, but no match for any label."""
    fn: int = 0
    """Labelled, but matched by no prediction."""
    splits: int = 0
    """Labelled buildings within which two or more predicted ones lie with half of their area."""
    merges: int = 0
    """Predicted buildings within which two or more labelled ones lie with half of their area."""

    def __add__(self, other: "ObjectCounts") -> "ObjectCounts":
        return ObjectCounts(
            self.tp + other.tp,
            self.fp + other.fp,
            self.fn + other.fn,
            self.splits + other.splits,
            self.merges + other.merges,
        )

    @property
    def precision(self) -> float:
        """Share of the predicted buildings that match; NaN where none is predicted."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the labelled buildings that are matched; NaN where there is none."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN without buildings."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


@dataclass(frozen=True)
class Overlaps:
    """How predicted and labelled objects overlap."""

    predicted: np.ndarray
    """(n,) float64: area of each predicted object, in any unit."""
    labelled: np.ndarray
    """(m,) float64: area of each labelled one, in the same unit."""
    pairs: np.ndarray
    """(k, 2) int: numbers of the predicted and of the labelled object of every pair that overlaps."""
    shared: np.ndarray
    """(k,) float64: area that the two of a pair share."""


@dataclass(frozen=True)
class ObjectBlock:
    """Part of a raster, its objects numbered from 1 in the block; 0 is none."""

    row: int
    """Of its first pixel, in the scene."""
    col: int
    predicted: np.ndarray
    """(height, width) int32."""
    labelled: np.ndarray
    """(height, width) int32."""


def polygon_overlaps(predicted: np.ndarray, labelled: np.ndarray) -> Overlaps:
    """Overlaps of valid polygons, two arrays of objects in one CRS; areas in the square of its unit."""
    pairs = shapely.STRtree(labelled).query(predicted, predicate="intersects").T
    shared = shapely.area(shapely.intersection(predicted[pairs[:, 0]], labelled[pairs[:, 1]]))
    some = shared > 0
    return Overlaps(shapely.area(predicted), shapely.area(labelled), pairs[some], shared[some])


def numbered(building: np.ndarray) -> np.ndarray:
    """(height, width) int32: the objects of a bool array, numbered from 1; 0 is none."""
    return np.asarray(connected(building)[0])


def block(row: int, col: int, predicted: np.ndarray, labelled: np.ndarray) -> ObjectBlock:
    """The block at that place of its scene, of two arrays (height, width) bool."""
    return ObjectBlock(row, col, numbered(predicted), numbered(labelled))


def raster_overlaps(blocks: Iterable[ObjectBlock]) -> Overlaps:
    """Overlaps, in pixels, of the objects of blocks of one scene that do not overlap; whole across their edges."""
    mosaic = ObjectMatcher()
    for found in blocks:
        mosaic.add(found)
    return mosaic.overlaps()


def without_specks(found: Overlaps, *, least: float) -> Overlaps:
    """The same without predicted objects of less than that area; labelled ones stay, however small."""
    kept = found.predicted >= least
    pairs = kept[found.pairs[:, 0]]
    renumbered = np.cumsum(kept) - 1
    numbers = np.stack([renumbered[found.pairs[pairs, 0]], found.pairs[pairs, 1]], axis=1)
    return Overlaps(found.predicted[kept], found.labelled, numbers, found.shared[pairs])


def match(found: Overlaps, *, iou: float = IOU) -> np.ndarray:
    """(n,) int: the labelled object that each predicted one matches, -1 for none.

    One matches one, the highest IoU first. That is the only choice, and the best, where objects of a side do not
    overlap one another and IoU is above a half.
    """
    predicted, labelled = found.pairs.T
    ious = found.shared / (found.predicted[predicted] + found.labelled[labelled] - found.shared)
    partner, taken = np.full(len(found.predicted), -1), np.zeros(len(found.labelled), bool)
    candidates = np.flatnonzero(ious >= iou)
    for pair in candidates[np.argsort(-ious[candidates], kind="stable")]:
        p, t = predicted[pair], labelled[pair]
        if partner[p] < 0 and not taken[t]:
            partner[p], taken[t] = t, True
    return partner


def count(found: Overlaps, *, pixel_m2: float = 1.0) -> dict[str, ObjectCounts]:
    """Objects by size class and, as `all`, together; `pixel_m2` turns the areas into square metres.

    A building's class is that of its label, where it has one, so that a class's recall is of labelled buildings.
    """
    partner = match(found)
    hit = partner[partner >= 0]
    missed = np.setdiff1d(np.arange(len(found.labelled)), hit)
    # A hair above the half: parts of equal size are no majority, rounding is none either.
    split = _holding(found.pairs[:, 1], found.shared / found.predicted[found.pairs[:, 0]], len(found.labelled))
    merged = _holding(found.pairs[:, 0], found.shared / found.labelled[found.pairs[:, 1]], len(found.predicted))
    labelled, predicted = found.labelled * pixel_m2, found.predicted * pixel_m2
    groups = labelled[hit], predicted[partner < 0], labelled[missed], labelled[split], predicted[merged]
    numbers = np.stack([np.bincount(np.digitize(areas, SIZES_M2), minlength=len(CLASSES)) for areas in groups], axis=1)
    classes = {name: ObjectCounts(*map(int, row)) for name, row in zip(CLASSES, numbers, strict=True)}
    return {"all": sum(classes.values(), start=ObjectCounts()), **classes}


def add_counts(parts: Iterable[dict[str, ObjectCounts]]) -> dict[str, ObjectCounts]:
    """The counts of parts, added up class by class."""
    total = {name: ObjectCounts() for name in ("all", *CLASSES)}
    for part in parts:
        total = {name: total[name] + part[name] for name in total}
    return total


class ObjectMatcher:
    """A scene's blocks, of which it keeps counts and the objects along edges until the neighbours come."""

    def __init__(self) -> None:
        self._first = [0, 0]
        self._areas: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self._pairs: list[np.ndarray] = []
        self._shared: list[np.ndarray] = []
        self._waiting: dict[tuple[int, str, int], list[tuple[int, np.ndarray]]] = {}
        self._links: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])

    def add(self, found: ObjectBlock) -> None:
        """Count a block, and link its objects with those of its neighbours that came before."""
        pairs, shared = _shared(found)
        self._pairs.append(pairs + self._first)
        self._shared.append(shared)
        height, width = found.predicted.shape
        for side, part in enumerate((found.predicted, found.labelled)):
            for line, other, at, start, edge in (
                ("bottom", "top", found.row + height, found.col, part[-1]),
                ("top", "bottom", found.row, found.col, part[0]),
                ("right", "left", found.col + width, found.row, part[:, -1]),
                ("left", "right", found.col, found.row, part[:, 0]),
            ):
                if edge.any():
                    numbers = np.where(edge > 0, edge.astype(np.int64) + self._first[side], 0)
                    self._link(side, (side, other, at), start, numbers)
                    self._waiting.setdefault((side, line, at), []).append((start, numbers))
            areas = np.bincount(part.ravel())[1:]
            self._areas[side].append(areas)
            self._first[side] += len(areas)

    def overlaps(self) -> Overlaps:
        """Overlaps, in pixels, of the whole objects of all blocks so far."""
        predicted, labelled = (self._whole(side) for side in (0, 1))
        areas = [
            np.bincount(whole, weights=np.concatenate([np.zeros(0), *parts])).astype(float)
            for whole, parts in zip((predicted, labelled), self._areas, strict=True)
        ]
        parts = np.concatenate([np.zeros((0, 2), np.int64), *self._pairs])
        whole = np.stack([predicted[parts[:, 0]], labelled[parts[:, 1]]], axis=1)
        pairs, which = np.unique(whole, axis=0, return_inverse=True)
        shared = np.concatenate([np.zeros(0), *self._shared])
        return Overlaps(areas[0], areas[1], pairs, np.bincount(which.ravel(), weights=shared, minlength=len(pairs)))

    def _whole(self, side: int) -> np.ndarray:
        """(parts,) int: the whole object, from 0, that each part belongs to."""
        count = self._first[side]
        if not count:
            return np.zeros(0, np.int64)
        links = np.concatenate([np.zeros((0, 2), np.int64), *self._links[side]]) - 1
        graph = coo_array((np.ones(len(links), bool), links.T), shape=(count, count))
        return np.asarray(connected_components(graph, directed=False)[1]).astype(np.int64)

    def _link(self, side: int, key: tuple[int, str, int], start: int, numbers: np.ndarray) -> None:
        for other_start, others in self._waiting.get(key, []):
            low, high = max(start, other_start), min(start + len(numbers), other_start + len(others))
            if low >= high:
                continue
            pair = np.stack([numbers[low - start : high - start], others[low - other_start : high - other_start]], 1)
            self._links[side].append(np.unique(pair[pair.all(axis=1)], axis=0))


def _shared(found: ObjectBlock) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a block's objects, as (k, 2) numbers from 0, and the pixels they share."""
    both = (found.predicted > 0) & (found.labelled > 0)
    predicted, labelled = found.predicted[both].astype(np.int64), found.labelled[both]
    across = int(labelled.max(initial=0)) + 1
    codes, pixels = np.unique(predicted * across + labelled, return_counts=True)
    return np.stack([codes // across - 1, codes % across - 1], axis=1), pixels


def _holding(holder: np.ndarray, share: np.ndarray, count: int) -> np.ndarray:
    """(count,) bool: which objects hold at least two others by half."""
    return np.bincount(holder[share >= 0.5], minlength=count) >= 2


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
