"""Matches predicted buildings with labelled ones as objects, at an IoU of 0.5.

An object is a polygon, or a connected component of a mask. Masks are counted block by block and their objects joined
across block edges, so memory grows with the number of objects, not with the size of the scene.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import shapely

from ocmlflow.prediction import block_join
from ocmlflow.prediction.block_join import BlockJoiner

IOU = 0.5
"""Least IoU of a predicted and a labelled building that match."""
SIZES_M2 = (25.0, 100.0, 500.0)
"""Limits between the size classes, in square metres."""
CLASSES = ("below 25 m²", "25 to 100 m²", "100 to 500 m²", "from 500 m²")
"""Names of the size classes."""


@dataclass(frozen=True)
class ObjectCounts:
    """Counts of matched and unmatched objects; counts of parts add up to those of the whole."""

    tp: int = 0
    """Labelled objects that a predicted one matches."""
    fp: int = 0
    """Predicted objects that match no labelled one."""
    fn: int = 0
    """Labelled objects that no predicted one matches."""
    splits: int = 0
    """Labelled objects that contain at least half the area of each of two or more predicted ones."""
    merges: int = 0
    """Predicted objects that contain at least half the area of each of two or more labelled ones."""

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
        """Share of the predicted objects that match; NaN if none is predicted."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the labelled objects that are matched; NaN if there is none."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN if there is no object."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


@dataclass(frozen=True)
class Overlaps:
    """Areas of predicted and labelled objects, and of their overlaps."""

    predicted: np.ndarray
    """(n,) float64: area of each predicted object, in any unit."""
    labelled: np.ndarray
    """(m,) float64: area of each labelled object, in the same unit."""
    pairs: np.ndarray
    """(k, 2) int: for each pair that overlaps, the index of the predicted and of the labelled object."""
    shared: np.ndarray
    """(k,) float64: area of the intersection of each pair."""


@dataclass(frozen=True)
class ObjectBlock:
    """One block of a scene, with its objects labelled by `block_join.label_objects`."""

    row: int
    """Row of the block's first pixel in the scene."""
    col: int
    """Column of the block's first pixel in the scene."""
    predicted: np.ndarray
    """(height, width) int32: predicted objects, from 1; 0 is none."""
    labelled: np.ndarray
    """(height, width) int32: labelled objects, from 1; 0 is none."""


def polygon_overlaps(predicted: np.ndarray, labelled: np.ndarray) -> Overlaps:
    """Overlaps of two arrays of valid polygons in one CRS; areas are in the square of its unit."""
    pairs = shapely.STRtree(labelled).query(predicted, predicate="intersects").T
    shared = shapely.area(shapely.intersection(predicted[pairs[:, 0]], labelled[pairs[:, 1]]))
    is_overlap = shared > 0  # not a common edge only
    return Overlaps(shapely.area(predicted), shapely.area(labelled), pairs[is_overlap], shared[is_overlap])


def block(row: int, col: int, predicted: np.ndarray, labelled: np.ndarray) -> ObjectBlock:
    """A block of a scene from its predicted and labelled masks, (height, width) bool."""
    return ObjectBlock(row, col, block_join.label_objects(predicted), block_join.label_objects(labelled))


def raster_overlaps(blocks: Iterable[ObjectBlock]) -> Overlaps:
    """Overlaps, in pixels, of the objects of one scene, joined across the edges of its blocks."""
    matcher = ObjectMatcher()
    for part in blocks:
        matcher.add(part)
    return matcher.overlaps()


def without_specks(overlaps: Overlaps, *, min_area: float) -> Overlaps:
    """The same without predicted objects of a smaller area; labelled ones stay, however small."""
    is_kept = overlaps.predicted >= min_area
    new_indices = np.cumsum(is_kept) - 1
    pair_is_kept = is_kept[overlaps.pairs[:, 0]]
    predicted, labelled = overlaps.pairs[pair_is_kept].T
    pairs = np.stack([new_indices[predicted], labelled], axis=1)
    return Overlaps(overlaps.predicted[is_kept], overlaps.labelled, pairs, overlaps.shared[pair_is_kept])


def match(overlaps: Overlaps, *, iou: float = IOU) -> np.ndarray:
    """(n,) int: index of the labelled object that matches each predicted one, -1 for none.

    Matching is one to one, the highest IoU first. That is the only possible matching, and the largest, where the
    objects of each side do not overlap one another and `iou` is above a half.
    """
    predicted, labelled = overlaps.pairs.T
    ious = overlaps.shared / (overlaps.predicted[predicted] + overlaps.labelled[labelled] - overlaps.shared)
    candidates = np.flatnonzero(ious >= iou)
    matches = np.full(len(overlaps.predicted), -1)
    is_matched = np.zeros(len(overlaps.labelled), bool)
    for pair in candidates[np.argsort(-ious[candidates], kind="stable")]:
        p = predicted[pair]
        t = labelled[pair]
        if matches[p] < 0 and not is_matched[t]:
            matches[p] = t
            is_matched[t] = True
    return matches


def count(overlaps: Overlaps, *, pixel_m2: float = 1.0) -> dict[str, ObjectCounts]:
    """Counts of objects by size class, and together as `all`; `pixel_m2` turns the areas into square metres.

    A match counts in the class of its labelled object, so that recall is that of labelled buildings of the class.
    """
    matches = match(overlaps)
    predicted_m2 = overlaps.predicted * pixel_m2
    labelled_m2 = overlaps.labelled * pixel_m2
    matched = matches[matches >= 0]
    missed = np.setdiff1d(np.arange(len(labelled_m2)), matched)
    merged, split = merges_and_splits(overlaps)
    # In the order of the fields of ObjectCounts.
    areas_m2 = [
        labelled_m2[matched],
        predicted_m2[matches < 0],
        labelled_m2[missed],
        labelled_m2[split],
        predicted_m2[merged],
    ]
    by_class = np.stack([np.bincount(np.digitize(m2, SIZES_M2), minlength=len(CLASSES)) for m2 in areas_m2], axis=1)
    counts = {name: ObjectCounts(*map(int, numbers)) for name, numbers in zip(CLASSES, by_class, strict=True)}
    return {"all": sum(counts.values(), start=ObjectCounts()), **counts}


def merges_and_splits(overlaps: Overlaps) -> tuple[np.ndarray, np.ndarray]:
    """(n,) bool of the predicted objects and (m,) bool of the labelled ones: which contain two or more of the others.

    An object contains another if at least half of the other's area lies in it.
    """
    predicted, labelled = overlaps.pairs.T
    merges = _holds_several(predicted, overlaps.shared / overlaps.labelled[labelled], len(overlaps.predicted))
    splits = _holds_several(labelled, overlaps.shared / overlaps.predicted[predicted], len(overlaps.labelled))
    return merges, splits


def add_counts(parts: Iterable[dict[str, ObjectCounts]]) -> dict[str, ObjectCounts]:
    """The sum of counts, class by class."""
    total = {name: ObjectCounts() for name in ("all", *CLASSES)}
    for part in parts:
        total = {name: counts + part[name] for name, counts in total.items()}
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


def _holds_several(holders: np.ndarray, shares: np.ndarray, count: int) -> np.ndarray:
    """(count,) bool: which objects contain two or more others by at least half; `shares` is how much of each."""
    return np.bincount(holders[shares >= 0.5], minlength=count) >= 2


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
