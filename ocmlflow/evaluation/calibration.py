"""Predictions and labels, to counts of pixels, to scores.

Probabilities are compared in whole percent, rounded down: the same percent is written to the probability rasters, so
that `raster >= 42` is the mask of threshold 0.42 wherever it is computed.
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import logit

from ocmlflow.probability import LEVELS, calibrate, to_percent

TEMPERATURES = 0.2, 5.0
"""Limits of a fitted temperature: without any error, a model would be infinitely sure of itself."""


def level_percents(temperature: float) -> np.ndarray:
    """(65536,) uint8: calibrated percent of each level of `fine`."""
    return to_percent(calibrate(_levels(), temperature))


def level_histogram(levels: np.ndarray, label: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(2, 65536) int64: valid pixels by label (0, 1) and level of `fine`; the histograms of parts add up."""
    return np.bincount(label[valid].astype(np.int64) * LEVELS + levels[valid], minlength=2 * LEVELS).reshape(2, LEVELS)


def fit_temperature(pixels: np.ndarray) -> float:
    """The temperature of the highest likelihood for a fine histogram; 1 where it has one class alone."""
    if not pixels.sum(axis=1).all():
        return 1.0
    seen = np.flatnonzero(pixels.sum(axis=0))
    logits, (other, building) = logit(np.clip(_levels()[seen], 1e-7, 1 - 1e-7)), pixels[:, seen] / pixels.sum()

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(building @ np.logaddexp(0, -scaled) + other @ np.logaddexp(0, scaled))

    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))


def reliability(pixels: np.ndarray, *, temperature: float, bins: int) -> pd.DataFrame:
    """Probability, building share and pixels of each of equally wide bins of a fine histogram that hold any."""
    meant = calibrate(_levels(), temperature)
    which = np.minimum((meant * bins).astype(int), bins - 1)
    other, building = pixels
    count = np.bincount(which, weights=other + building, minlength=bins)
    sums = np.bincount(which, weights=(other + building) * meant, minlength=bins)
    built = np.bincount(which, weights=building, minlength=bins)
    some = count > 0
    return pd.DataFrame(
        {
            "probability": sums[some] / count[some],
            "building_share": built[some] / count[some],
            "pixels": count[some].astype(np.int64),
        }
    )


def calibration_error(curve: pd.DataFrame) -> float:
    """Expected calibration error of a reliability curve, 0..1; NaN without pixels."""
    total = curve.pixels.sum()
    return float(((curve.probability - curve.building_share).abs() * curve.pixels).sum() / total) if total else np.nan


def _levels() -> np.ndarray:
    return np.arange(LEVELS, dtype=np.float64) / (LEVELS - 1)
