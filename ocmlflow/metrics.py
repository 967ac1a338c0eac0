"""Predictions and labels, to counts of pixels, to scores.

Probabilities are compared in whole percent, rounded down: the same percent is written to the probability rasters, so
that `raster >= 42` is the mask of threshold 0.42 wherever it is computed.
"""

from dataclasses import dataclass

import numpy as np

THRESHOLDS = range(1, 100)
"""Percent of the threshold sweep."""


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


def percent(probability: np.ndarray) -> np.ndarray:
    """uint8 of the same shape: the probability (float, 0..1) in whole percent, rounded down."""
    # A ten-thousandth of a percent takes up the error of float32, in which 0.29 is 28.9999992 percent.
    return np.floor(probability * np.float32(100) + np.float32(1e-4)).astype(np.uint8)


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


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
