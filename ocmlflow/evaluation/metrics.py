"""Predictions and labels, to counts of pixels, to scores.

Probabilities are compared in whole percent, rounded down: the same percent is written to the probability rasters, so
that `raster >= 42` is the mask of threshold 0.42 wherever it is computed.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import minimum_filter

THRESHOLDS = range(1, 100)
"""Percent of the threshold sweep."""
BOOTSTRAP_DRAWS = 2000
"""Of a bootstrap."""


@dataclass(frozen=True)
class Counts:
    """Valid pixels, counted; counts of parts add up to those of the whole."""

    tp: int = 0
    """Building, and predicted so."""
    fp: int = 0
    """Not building, but predicted so."""
    fn: int = 0
    """Building, but not predicted so."""
    tn: int = 0
    """Not building, nor predicted so."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def pixels(self) -> int:
        """All pixels counted."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def iou(self) -> float:
        """Intersection over union of the building class, 0..1; NaN where no pixel is building or predicted so."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """Share of the predicted building pixels that are building; NaN where none is predicted."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the building pixels that are predicted; NaN where there is none."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN where no pixel is building or predicted so."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


def histogram(percents: np.ndarray, label: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(2, 101) int64: valid pixels by label (0, 1) and percent; the histograms of parts add up.

    All three arrays have one shape: uint8 of 0..100, uint8 of 0 and 1, bool.
    """
    cells = label[valid].astype(np.int64) * 101 + percents[valid]
    return np.bincount(cells, minlength=202).reshape(2, 101)


def counts(histogram: np.ndarray, *, threshold: int) -> Counts:
    """The counts of a histogram when a pixel of at least `threshold` percent is called building."""
    other, building = histogram
    return Counts(
        tp=int(building[threshold:].sum()),
        fp=int(other[threshold:].sum()),
        fn=int(building[:threshold].sum()),
        tn=int(other[:threshold].sum()),
    )


def best_threshold(histogram: np.ndarray) -> int:
    """Percent of the highest IoU; the middle one of equals, so that nothing hangs on a border."""
    ious = np.nan_to_num([counts(histogram, threshold=t).iou for t in THRESHOLDS])
    best = np.flatnonzero(np.isclose(ious, ious.max(), rtol=0, atol=1e-9))
    return THRESHOLDS[int(best[len(best) // 2])]


def boundary(building: np.ndarray, *, width: int) -> np.ndarray:
    """(height, width) bool: the pixels of buildings that lie at most `width` pixels from their edge.

    The edge of the array is none: behind it a building may go on. Boundary IoU (arXiv:2103.16562) is the IoU of these.
    """
    inside = minimum_filter(building.astype(np.uint8), size=2 * width + 1, mode="nearest")
    return building & (inside == 0)


def block_counts(histograms: np.ndarray, blocks: np.ndarray, *, threshold: int) -> np.ndarray:
    """(blocks, 3) int64: tp, fp and fn of each block of ground, of chips' (chips, 2, 101) histograms.

    `blocks` (chips,) int numbers the block of each chip from 0.
    """
    other, building = histograms[:, 0], histograms[:, 1]
    counted = [building[:, threshold:].sum(1), other[:, threshold:].sum(1), building[:, :threshold].sum(1)]
    return np.stack([np.bincount(blocks, weights=c) for c in counted], axis=1).astype(np.int64)


def bootstrap(counted: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """(BOOTSTRAP_DRAWS,) float each of iou, precision, recall and f1: bootstrap over the rows of `block_counts`.

    The same number of blocks and seed draw the same blocks: subtract the draws of two models for a paired difference.
    """
    weights = np.random.default_rng(seed).multinomial(
        len(counted), np.full(len(counted), 1 / len(counted)), BOOTSTRAP_DRAWS
    )
    tp, fp, fn = (weights @ counted).T.astype(float)
    with np.errstate(invalid="ignore"):
        return {
            "iou": tp / (tp + fp + fn),
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
            "f1": 2 * tp / (2 * tp + fp + fn),
        }


def bootstrap_interval(drawn: np.ndarray, *, blocks: int) -> tuple[float, float]:
    """The middle 95 percent of a bootstrap's draws; NaN for fewer than two blocks, which cannot tell."""
    drawn = drawn[~np.isnan(drawn)]
    if blocks < 2 or not len(drawn):
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
