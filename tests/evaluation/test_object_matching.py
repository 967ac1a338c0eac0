import time

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import label as connected
from scipy.optimize import linear_sum_assignment
from shapely.affinity import translate

from ocmlflow.evaluation import object_matching
from ocmlflow.evaluation.object_matching import ObjectCounts


def squares(*corners: tuple[float, float, float]) -> np.ndarray:
    """Squares of x, y and side."""
    return np.array([shapely.box(x, y, x + side, y + side) for x, y, side in corners], dtype=object)


def brute(predicted: np.ndarray, labelled: np.ndarray) -> int:
    """The most pairs of IoU 0.5 or more that one-to-one matching can have, from every pair there is."""
    ious = np.array([[p.intersection(t).area / p.union(t).area for t in labelled] for p in predicted])
    rows, cols = linear_sum_assignment(ious >= 0.5, maximize=True)
    return int((ious[rows, cols] >= 0.5).sum())


def test_known_objects_are_matched_split_and_merged():
    labelled = squares((0, 0, 4), (10, 0, 4), (20, 0, 10), (40, 0, 4), (45, 0, 4))
    predicted = np.concatenate(
        [
            squares((0, 0, 4), (100, 0, 30)),  # right; false
            np.array([shapely.box(20, 0, 24, 10), shapely.box(25, 0, 30, 10)]),  # one in two halves, IoU .4 and .5
            np.array([shapely.box(39, 0, 50, 4)]),  # two in one
        ]
    )
    found = object_matching.count(object_matching.polygon_overlaps(predicted, labelled))
    assert found["all"] == ObjectCounts(tp=2, fp=3, fn=3, splits=1, merges=1)
    assert found["below 25 m²"] == ObjectCounts(tp=1, fn=3)
    assert found["100 to 500 m²"] == ObjectCounts(tp=1, splits=1)
    assert found["from 500 m²"].fp == 1
    assert found["all"].precision == 2 / 5
    assert found["all"].f1 == 4 / 10


@given(st.integers(0, 10**6))
def test_matches_are_as_many_as_a_brute_force_matcher_finds(seed):
    draw = np.random.default_rng(seed)
    labelled = squares(*((10 * x, 10 * y, draw.uniform(3, 9)) for x in range(4) for y in range(4)))
    moved = [translate(t, *draw.uniform(-3, 3, 2)) for t in labelled if draw.random() < 0.8]
    # The moved ones may meet one another, which leaves those that a half covers unique all the same.
    predicted = np.array([*moved, shapely.box(500, 0, 504, 4)], dtype=object)
    found = object_matching.count(object_matching.polygon_overlaps(predicted, labelled))["all"]
    assert found.tp == brute(predicted, labelled)
    assert found.tp + found.fp == len(predicted)
    assert found.tp + found.fn == len(labelled)


def test_specks_are_no_predictions():
    overlaps = object_matching.polygon_overlaps(squares((0, 0, 1), (10, 0, 4)), squares((0, 0, 1), (10, 0, 4)))
    found = object_matching.count(object_matching.without_specks(overlaps, min_area=2))
    assert found["all"] == ObjectCounts(tp=1, fn=1)


def test_overlapping_predictions_match_once():
    found = object_matching.count(
        object_matching.polygon_overlaps(squares((0, 0, 4), (0, 0, 4), (0.5, 0, 4)), squares((0, 0, 4)))
    )
    assert found["all"] == ObjectCounts(tp=1, fp=2, splits=1)


@pytest.mark.parametrize(("predicted", "labelled"), [(0, 0), (0, 1), (1, 0)])
def test_no_objects_are_no_error(predicted, labelled):
    some = squares((0, 0, 4))
    found = object_matching.count(object_matching.polygon_overlaps(some[:predicted], some[:labelled]))["all"]
    assert found == ObjectCounts(fp=predicted, fn=labelled)
    assert object_matching.count(object_matching.raster_overlaps([]))["all"] == ObjectCounts()


@given(st.integers(0, 10**6), st.integers(3, 20), st.integers(3, 20), st.randoms())
def test_blocks_count_what_the_whole_raster_holds(seed, height, width, shuffler):
    """Blocks in any order, some at the edge smaller, are one raster."""
    draw = np.random.default_rng(seed)
    predicted, labelled = (draw.random((2, 24, 31)) < 0.6).copy()
    pieces = [
        object_matching.block(r, c, *(a[r : r + height, c : c + width] for a in (predicted, labelled)))
        for r in range(0, 24, height)
        for c in range(0, 31, width)
    ]
    shuffler.shuffle(pieces)
    found = object_matching.raster_overlaps(pieces)
    (numbered_p, n), (numbered_t, m) = connected(predicted), connected(labelled)
    assert sorted(found.predicted) == sorted(np.bincount(numbered_p.ravel())[1:])
    assert sorted(found.labelled) == sorted(np.bincount(numbered_t.ravel())[1:])
    shared = [((numbered_p == p) & (numbered_t == t)).sum() for p in range(1, n + 1) for t in range(1, m + 1)]
    assert sorted(found.shared) == sorted(s for s in shared if s)
    assert object_matching.count(found) == object_matching.count(
        object_matching.raster_overlaps([object_matching.block(0, 0, predicted, labelled)])
    )


def test_blocks_that_share_no_edge_are_apart():
    full = np.ones((4, 4), bool)
    apart = object_matching.raster_overlaps(
        [object_matching.block(0, 0, full, full), object_matching.block(0, 8, full, full)]
    )
    corner = object_matching.raster_overlaps(
        [object_matching.block(0, 0, full, full), object_matching.block(4, 4, full, full)]
    )
    assert apart.predicted.tolist() == corner.predicted.tolist() == [16, 16]


def test_counts_add_up_by_class():
    one = object_matching.count(object_matching.polygon_overlaps(squares((0, 0, 4)), squares((0, 0, 4), (9, 0, 30))))
    total = object_matching.add_counts([one, one])
    assert total["all"] == ObjectCounts(tp=2, fn=2)
    assert total["from 500 m²"] == ObjectCounts(fn=2)


def test_many_polygons_take_seconds():
    side = np.arange(100)
    x, y = (axis.ravel() * 10.0 for axis in np.meshgrid(side, side))
    labelled = shapely.box(x, y, x + 7, y + 7)
    predicted = shapely.box(x + 1, y, x + 8, y + 7)
    start = time.process_time()
    assert object_matching.count(object_matching.polygon_overlaps(predicted, labelled))["all"].tp == len(labelled)
    assert time.process_time() - start < 6  # a tenth of 100,000, which have a minute
