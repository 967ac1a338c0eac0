"""Temperature scaling of probabilities (arXiv:1706.04599), reliability curves and the calibration error.

Functions here count pixels by level of probability, one of 65,536, fine enough to fit a temperature.
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import logit

from ocmlflow.probability import LEVELS, calibrate, to_percent

TEMPERATURE_LIMITS = (0.2, 5.0)
"""Limits of a fitted temperature: that of a model without any error would be 0."""


def level_percents(temperature: float) -> np.ndarray:
    """(65536,) uint8: calibrated percent of each level of `probability.to_levels`."""
    return to_percent(calibrate(_levels(), temperature))


def level_histogram(levels: np.ndarray, label: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(2, 65536) int64: valid pixels by label (0, 1) and level; the histograms of parts add up.

    The arrays have the same shape: `levels` uint16, `label` uint8 of 0 and 1, `valid` bool.
    """
    cells = label[valid].astype(np.int64) * LEVELS + levels[valid]
    return np.bincount(cells, minlength=2 * LEVELS).reshape(2, LEVELS)


def fit_temperature(histogram: np.ndarray) -> float:
    """The temperature of the highest likelihood for a level histogram; 1 if it has pixels of one class only."""
    if not histogram.sum(axis=1).all():
        return 1.0
    occurring = np.flatnonzero(histogram.sum(axis=0))
    logits = logit(np.clip(_levels()[occurring], 1e-7, 1 - 1e-7))
    other, building = histogram[:, occurring] / histogram.sum()

    def cross_entropy(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(building @ np.logaddexp(0, -scaled) + other @ np.logaddexp(0, scaled))

    optimum = minimize_scalar(cross_entropy, bounds=np.log(TEMPERATURE_LIMITS), method="bounded")
    return float(np.exp(optimum.x))


def reliability(histogram: np.ndarray, *, temperature: float, bins: int) -> pd.DataFrame:
    """Reliability curve of a level histogram: mean probability, building share and pixels of each bin with pixels.

    `bins` of equal width divide the calibrated probabilities.
    """
    probability = calibrate(_levels(), temperature)
    bin_numbers = np.minimum((probability * bins).astype(int), bins - 1)
    other, building = histogram
    pixels = np.bincount(bin_numbers, weights=other + building, minlength=bins)
    probability_sums = np.bincount(bin_numbers, weights=(other + building) * probability, minlength=bins)
    building_pixels = np.bincount(bin_numbers, weights=building, minlength=bins)
    is_used = pixels > 0
    return pd.DataFrame(
        {
            "probability": probability_sums[is_used] / pixels[is_used],
            "building_share": building_pixels[is_used] / pixels[is_used],
            "pixels": pixels[is_used].astype(np.int64),
        }
    )


def calibration_error(curve: pd.DataFrame) -> float:
    """Expected calibration error of a reliability curve, 0..1; NaN without pixels."""
    total = curve.pixels.sum()
    return float(((curve.probability - curve.building_share).abs() * curve.pixels).sum() / total) if total else np.nan


def _levels() -> np.ndarray:
    """(65536,) float64: probability of each level."""
    return np.arange(LEVELS, dtype=np.float64) / (LEVELS - 1)
