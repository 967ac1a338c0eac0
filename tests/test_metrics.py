import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from ocmlflow import metrics
from ocmlflow.metrics import Counts

numbers = st.integers(0, 1000)
tallies = st.builds(Counts, numbers, numbers, numbers, numbers)


def some_pixels(seed: int, count: int = 300):
    """Probability, label and valid of as many pixels."""
    draw = np.random.default_rng(seed)
    return draw.random(count, np.float32), draw.integers(0, 2, count, np.uint8), draw.random(count) < 0.8


def test_scores_of_four_pixels():
    # One right, one false, two missed, one rightly left alone.
    counted = Counts(tp=1, fp=1, fn=2, tn=1)
    assert (counted.iou, counted.precision, counted.recall, counted.f1) == (1 / 4, 1 / 2, 1 / 3, 2 / 5)
    assert counted.pixels == 5


def test_scores_of_nothing_are_no_number():
    empty = Counts(tn=7)
    assert all(math.isnan(score) for score in (empty.iou, empty.precision, empty.recall, empty.f1))


@given(tallies, tallies)
def test_counts_add_up(a, b):
    assert (a + b).pixels == a.pixels + b.pixels
    assert (a + b).tp == a.tp + b.tp
    assert a + Counts() == a


def test_probabilities_become_whole_percents():
    values = np.array([0, 0.0099, 0.01, 0.29, 0.57, 0.58, 0.999, 1])
    expected = [0, 0, 1, 29, 57, 58, 99, 100]
    for dtype in (np.float32, np.float64):
        found = metrics.percent(values.astype(dtype))
        assert found.dtype == np.uint8
        assert found.tolist() == expected
    whole = np.arange(101, dtype=np.float32) / np.float32(100)
    assert metrics.percent(whole).tolist() == list(range(101))


@given(arrays(np.float32, 50, elements=st.floats(0, 1, width=32)))
def test_percents_are_never_rounded_up(probability):
    found = metrics.percent(probability).astype(float)
    assert (found / 100 <= probability.astype(float) + 1.1e-6).all()
    assert (found / 100 > probability.astype(float) - 0.01).all()


@given(numbers, st.integers(1, 99))
def test_counts_of_a_histogram_are_those_of_a_direct_comparison(seed, threshold):
    probability, label, valid = some_pixels(seed)
    percents = metrics.percent(probability)
    counted = metrics.counts(metrics.histogram(percents, label, valid), threshold=threshold)
    predicted, truth = (percents >= threshold)[valid], label[valid] == 1
    assert counted == Counts(
        tp=(predicted & truth).sum(),
        fp=(predicted & ~truth).sum(),
        fn=(~predicted & truth).sum(),
        tn=(~predicted & ~truth).sum(),
    )


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_scikit_learn(seed):
    probability, label, valid = some_pixels(seed)
    counted = metrics.counts(metrics.histogram(metrics.percent(probability), label, valid), threshold=40)
    truth, predicted = label[valid], metrics.percent(probability)[valid] >= 40
    assert counted.iou == pytest.approx(jaccard_score(truth, predicted))
    assert counted.precision == pytest.approx(precision_score(truth, predicted))
    assert counted.recall == pytest.approx(recall_score(truth, predicted))
    assert counted.f1 == pytest.approx(f1_score(truth, predicted))


@given(numbers, st.integers(0, 300))
def test_histograms_of_parts_add_up(seed, cut):
    probability, label, valid = some_pixels(seed)
    percents = metrics.percent(probability)
    parts = [metrics.histogram(percents[at], label[at], valid[at]) for at in (np.s_[:cut], np.s_[cut:])]
    whole = metrics.histogram(percents, label, valid)
    np.testing.assert_array_equal(sum(parts), whole)
    assert whole.shape == (2, 101)
    assert whole.sum() == valid.sum()


@given(numbers)
def test_a_higher_threshold_finds_less(seed):
    probability, label, valid = some_pixels(seed)
    histogram = metrics.histogram(metrics.percent(probability), label, valid)
    sweep = [metrics.counts(histogram, threshold=t) for t in metrics.THRESHOLDS]
    for lower, higher in pairwise(sweep):
        assert lower.tp >= higher.tp
        assert lower.fp >= higher.fp
        assert lower.pixels == higher.pixels
    best = metrics.counts(histogram, threshold=metrics.best_threshold(histogram)).iou
    assert best == pytest.approx(np.nanmax([counted.iou for counted in sweep]))


def test_of_equally_good_thresholds_the_middle_is_best():
    histogram = np.zeros((2, 101), int)
    histogram[0, 20], histogram[1, 60] = 5, 5  # right from 21 to 60 percent
    assert metrics.best_threshold(histogram) in (40, 41)
    assert metrics.best_threshold(np.zeros((2, 101), int)) == 50
