"""Buildings as objects: predicted and labelled ones, matched where they overlap by half of what they cover together.

An object is a polygon, or the pixels of a raster that hang together by their edges. Rasters are counted block by block
and joined across the edges of blocks, so that memory hangs on a block and its objects, never on the scene.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import shapely

from ocmlflow.prediction import block_join
from ocmlflow.prediction.block_join import BlockJoiner

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


def block(row: int, col: int, predicted: np.ndarray, labelled: np.ndarray) -> ObjectBlock:
    """A block of a scene from its predicted and labelled masks, (height, width) bool."""
    return ObjectBlock(row, col, block_join.label_objects(predicted), block_join.label_objects(labelled))


def raster_overlaps(blocks: Iterable[ObjectBlock]) -> Overlaps:
    """Overlaps, in pixels, of the objects of one scene, joined across the edges of its blocks."""
    matcher = ObjectMatcher()
    for part in blocks:
        matcher.add(part)
    return matcher.overlaps()


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
    """Overlaps of the predicted and labelled objects of a scene, whose blocks come in any order."""

    def __init__(self) -> None:
        self._predicted = _BlockObjects()
        self._labelled = _BlockObjects()
        self._pairs: list[np.ndarray] = []
        self._shared: list[np.ndarray] = []

    def add(self, block: ObjectBlock) -> None:
        """Add a block of the scene; blocks must not overlap."""
        first_predicted = self._predicted.add(block.row, block.col, block.predicted)
        first_labelled = self._labelled.add(block.row, block.col, block.labelled)
        pairs, shared = _overlaps_in_block(block)
        self._pairs.append(pairs + np.array([first_predicted, first_labelled]))
        self._shared.append(shared)

    def overlaps(self) -> Overlaps:
        """Overlaps, in pixels, of the objects of all blocks so far, joined across block edges."""
        predicted_objects = self._predicted.objects()
        labelled_objects = self._labelled.objects()
        part_pairs = np.concatenate([np.zeros((0, 2), np.int64), *self._pairs])
        object_pairs = np.stack([predicted_objects[part_pairs[:, 0]], labelled_objects[part_pairs[:, 1]]], axis=1)
        pairs, pair_numbers = np.unique(object_pairs, axis=0, return_inverse=True)
        shared = np.concatenate([np.zeros(0), *self._shared])
        return Overlaps(
            self._predicted.areas(predicted_objects),
            self._labelled.areas(labelled_objects),
            pairs,
            np.bincount(pair_numbers.ravel(), weights=shared, minlength=len(pairs)),
        )


class _BlockObjects:
    """The predicted or the labelled objects of blocks: their areas, and which parts are one object."""

    def __init__(self) -> None:
        self._joiner = BlockJoiner()
        self._part_areas: list[np.ndarray] = []

    def add(self, row: int, col: int, labels: np.ndarray) -> int:
        """Add a block's labels; returns the number, from 0, of its first part."""
        self._part_areas.append(np.bincount(labels.ravel())[1:])
        return self._joiner.add(row, col, labels)

    def objects(self) -> np.ndarray:
        """(parts,) int64: the number, from 0, of the whole object that each part belongs to."""
        first_parts = np.arange(self._joiner.count)
        is_first = np.ones(self._joiner.count, bool)
        for numbers in self._joiner.joined_objects():
            parts = np.array(numbers) - 1
            first_parts[parts] = parts[0]
            is_first[parts[1:]] = False
        objects_of_first_parts = np.cumsum(is_first) - 1
        return np.asarray(objects_of_first_parts[first_parts])

    def areas(self, objects: np.ndarray) -> np.ndarray:
        """(objects,) float64: pixels of each whole object, given the object of each part."""
        return np.bincount(objects, weights=np.concatenate([np.zeros(0), *self._part_areas])).astype(float)


def _overlaps_in_block(block: ObjectBlock) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a block's objects that overlap, as (k, 2) numbers from 0, and the pixels that each pair shares."""
    both = (block.predicted > 0) & (block.labelled > 0)
    predicted = block.predicted[both].astype(np.int64)
    labelled = block.labelled[both].astype(np.int64)
    base = int(labelled.max(initial=0)) + 1
    codes, pixels = np.unique(predicted * base + labelled, return_counts=True)
    return np.stack([codes // base - 1, codes % base - 1], axis=1), pixels


def _holding(holder: np.ndarray, share: np.ndarray, count: int) -> np.ndarray:
    """(count,) bool: which objects hold at least two others by half."""
    return np.bincount(holder[share >= 0.5], minlength=count) >= 2


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
