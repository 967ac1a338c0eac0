import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_erosion
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from ocmlflow.evaluation import calibration, metrics
from ocmlflow.evaluation.metrics import Counts
from ocmlflow.probability import LEVELS, calibrate, to_levels, to_percent

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
        found = to_percent(values.astype(dtype))
        assert found.dtype == np.uint8
        assert found.tolist() == expected
    whole = np.arange(101, dtype=np.float32) / np.float32(100)
    assert to_percent(whole).tolist() == list(range(101))


@given(arrays(np.float32, 50, elements=st.floats(0, 1, width=32)))
def test_percents_are_never_rounded_up(probability):
    found = to_percent(probability).astype(float)
    assert (found / 100 <= probability.astype(float) + 1.1e-6).all()
    assert (found / 100 > probability.astype(float) - 0.01).all()


@given(numbers, st.integers(1, 99))
def test_counts_of_a_histogram_are_those_of_a_direct_comparison(seed, threshold):
    probability, label, valid = some_pixels(seed)
    percents = to_percent(probability)
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
    counted = metrics.counts(metrics.histogram(to_percent(probability), label, valid), threshold=40)
    truth, predicted = label[valid], to_percent(probability)[valid] >= 40
    assert counted.iou == pytest.approx(jaccard_score(truth, predicted))
    assert counted.precision == pytest.approx(precision_score(truth, predicted))
    assert counted.recall == pytest.approx(recall_score(truth, predicted))
    assert counted.f1 == pytest.approx(f1_score(truth, predicted))


@given(numbers, st.integers(0, 300))
def test_histograms_of_parts_add_up(seed, cut):
    probability, label, valid = some_pixels(seed)
    percents = to_percent(probability)
    parts = [metrics.histogram(percents[at], label[at], valid[at]) for at in (np.s_[:cut], np.s_[cut:])]
    whole = metrics.histogram(percents, label, valid)
    np.testing.assert_array_equal(sum(parts), whole)
    assert whole.shape == (2, 101)
    assert whole.sum() == valid.sum()


@given(numbers)
def test_a_higher_threshold_finds_less(seed):
    probability, label, valid = some_pixels(seed)
    histogram = metrics.histogram(to_percent(probability), label, valid)
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


def sure(seed: int, temperature: float, count: int = 40_000):
    """Fine levels and labels of pixels whose model is `temperature` times too sure of itself."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 1.5, count)
    label = (draw.random(count) < 1 / (1 + np.exp(-logits))).astype(np.uint8)
    return to_levels(1 / (1 + np.exp(-logits * temperature))), label


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_the_temperature_is_that_of_a_logistic_regression(temperature):
    levels, label = sure(1, temperature)
    pixels = calibration.level_histogram(levels, label, np.ones(label.shape, bool))
    fitted = calibration.fit_temperature(pixels)
    probability = np.clip(levels / (LEVELS - 1), 1e-7, 1 - 1e-7)
    logits = np.log(probability / (1 - probability))[:, np.newaxis]
    judge = LogisticRegression(C=np.inf, fit_intercept=False).fit(logits, label)
    assert fitted == pytest.approx(1 / judge.coef_.item(), rel=1e-3)
    assert fitted == pytest.approx(temperature, rel=0.05)


def test_the_reliability_curve_is_that_of_scikit_learn():
    levels, label = sure(2, 2.0)
    pixels = calibration.level_histogram(levels, label, np.ones(label.shape, bool))
    curve = calibration.reliability(pixels, temperature=1.0, bins=16)  # no level lies on the border of two of these
    share, probability = calibration_curve(label, levels / (LEVELS - 1), n_bins=16)
    np.testing.assert_allclose(curve.building_share, share, rtol=1e-9)
    np.testing.assert_allclose(curve.probability, probability, rtol=1e-9)
    mended = calibration.reliability(pixels, temperature=calibration.fit_temperature(pixels), bins=16)
    assert calibration.calibration_error(mended) < 0.01 < 0.08 < calibration.calibration_error(curve)


@given(arrays(np.float32, 20, elements=st.floats(0, 1, width=32)), st.floats(0.2, 5))
def test_calibration_keeps_order_and_kind(probability, temperature):
    found = calibrate(probability, temperature)
    assert found.dtype == np.float32
    assert ((found >= 0) & (found <= 1)).all()
    order = np.argsort(probability, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    assert (found[probability == 0.5] == 0.5).all()
    np.testing.assert_array_equal(calibrate(probability, 1.0), probability)


def test_one_class_alone_has_no_temperature():
    pixels = np.zeros((2, LEVELS), int)
    pixels[0, 100] = 5
    assert calibration.fit_temperature(pixels) == 1


@given(st.integers(0, 10**6), st.integers(1, 3))
def test_the_boundary_is_what_an_erosion_takes(seed, width):
    building = np.random.default_rng(seed).random((12, 15)) < 0.9
    eroded = binary_erosion(building, np.ones((3, 3)), iterations=width, border_value=1)
    np.testing.assert_array_equal(metrics.boundary(building, width=width), building & ~eroded)


def test_draws_are_scores_of_blocks_drawn_with_replacement():
    draw = np.random.default_rng(0)
    histograms = draw.integers(0, 50, (6, 2, 101))
    counted = metrics.block_counts(histograms, np.array([0, 0, 1, 2, 2, 2]), threshold=40)
    pooled = metrics.counts(histograms[3:].sum(axis=0), threshold=40)
    assert counted[2].tolist() == [pooled.tp, pooled.fp, pooled.fn]
    drawn = metrics.bootstrap(counted, seed=1)
    tp, fp, fn = counted.T
    alone = tp / (tp + fp + fn)
    assert set(np.round(drawn["iou"], 12)) >= set(np.round(alone, 12))  # a block may be drawn three times
    assert alone.min() <= drawn["iou"].min() <= drawn["iou"].max() <= alone.max()
    low, high = metrics.bootstrap_interval(drawn["iou"], blocks=3)
    assert low < metrics.counts(histograms.sum(axis=0), threshold=40).iou < high
    np.testing.assert_array_equal(metrics.bootstrap(counted, seed=1)["iou"], drawn["iou"])
    assert math.isnan(metrics.bootstrap_interval(drawn["iou"], blocks=1)[0])


def test_the_interval_covers_what_it_says():
    """Of blocks drawn from a known population, about 95 of 100 intervals hold its precision of 0.7."""
    draw = np.random.default_rng(3)
    covered = 0
    for seed in range(100):
        tp = draw.binomial(100, draw.beta(7, 3, 60))
        counted = np.stack([tp, 100 - tp, np.full(60, 10)], axis=1)
        low, high = metrics.bootstrap_interval(metrics.bootstrap(counted, seed=seed)["precision"], blocks=60)
        covered += low <= 0.7 <= high
    assert 87 <= covered <= 99
