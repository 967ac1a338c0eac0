"""Counts pixels of predictions against labels: IoU, precision, recall, F1, threshold sweep, bootstrap intervals.

Probabilities are compared in whole percent, as `ocmlflow.probability` explains.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import minimum_filter

THRESHOLDS = range(1, 100)
"""Thresholds of the sweep, in percent."""
BOOTSTRAP_DRAWS = 2000
"""Resamples of a bootstrap."""


@dataclass(frozen=True)
class Counts:
    """Counts of valid pixels; counts of parts add up to those of the whole."""

    tp: int = 0
    """True positives: building, predicted as building."""
    fp: int = 0
    """False positives: not building, predicted as building."""
    fn: int = 0
    """False negatives: building, not predicted as building."""
    tn: int = 0
    """True negatives: not building, not predicted as building."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def pixels(self) -> int:
        """All pixels counted."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def iou(self) -> float:
        """Intersection over union of the building class, 0..1; NaN if no pixel is building or predicted so."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """Share of the predicted building pixels that are building; NaN if none is predicted."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the building pixels that are predicted; NaN if there is none."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN if no pixel is building or predicted so."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


def histogram(percents: np.ndarray, label: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(2, 101) int64: valid pixels by label (0, 1) and percent; the histograms of parts add up.

    The arrays have the same shape: `percents` uint8 of 0..100, `label` uint8 of 0 and 1, `valid` bool.
    """
    cells = label[valid].astype(np.int64) * 101 + percents[valid]
    return np.bincount(cells, minlength=202).reshape(2, 101)


def counts(histogram: np.ndarray, *, threshold: int) -> Counts:
    """Counts from a histogram, with pixels of at least `threshold` percent predicted as building."""
    other, building = histogram  # by label, 0 and 1
    return Counts(
        tp=int(building[threshold:].sum()),
        fp=int(other[threshold:].sum()),
        fn=int(building[:threshold].sum()),
        tn=int(other[:threshold].sum()),
    )


def best_threshold(histogram: np.ndarray) -> int:
    """Threshold, in percent, of the highest IoU; the middle one of equals, far from where the IoU falls."""
    ious = np.nan_to_num([counts(histogram, threshold=t).iou for t in THRESHOLDS])
    best = np.flatnonzero(np.isclose(ious, ious.max(), rtol=0, atol=1e-9))
    return THRESHOLDS[int(best[len(best) // 2])]


def boundary(building: np.ndarray, *, width: int) -> np.ndarray:
    """(height, width) bool: pixels of buildings at most `width` pixels from their outline, for boundary IoU.

    The edge of the array is no outline, as a building may go on behind it. Source: arXiv:2103.16562.
    """
    inside = minimum_filter(building.astype(np.uint8), size=2 * width + 1, mode="nearest")
    return building & (inside == 0)


def block_counts(histograms: np.ndarray, blocks: np.ndarray, *, threshold: int) -> np.ndarray:
    """(blocks, 3) int64: tp, fp and fn of each spatial block, from the (chips, 2, 101) histograms of its chips.

    `blocks` (chips,) int is the block of each chip, numbered from 0.
    """
    other = histograms[:, 0]
    building = histograms[:, 1]
    of_chips = [building[:, threshold:].sum(1), other[:, threshold:].sum(1), building[:, :threshold].sum(1)]
    return np.stack([np.bincount(blocks, weights=pixels) for pixels in of_chips], axis=1).astype(np.int64)


def bootstrap(block_counts: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """Bootstrap over spatial blocks: (BOOTSTRAP_DRAWS,) float for each of iou, precision, recall and f1.

    `block_counts` (blocks, 3) are those of the function of that name. The same number of blocks and seed draw the same
    blocks, so the draws of two models may be subtracted for a paired difference.
    """
    count = len(block_counts)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), BOOTSTRAP_DRAWS)
    tp, fp, fn = (weights @ block_counts).T.astype(float)
    with np.errstate(invalid="ignore"):
        return {
            "iou": tp / (tp + fp + fn),
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
            "f1": 2 * tp / (2 * tp + fp + fn),
        }


def bootstrap_interval(draws: np.ndarray, *, blocks: int) -> tuple[float, float]:
    """The 95 percent interval of a bootstrap's draws; NaN for fewer than two blocks, which do not vary."""
    draws = draws[~np.isnan(draws)]
    if blocks < 2 or not len(draws):
        return float("nan"), float("nan")
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
