"""Probabilities of building: as percent, as 16-bit levels, calibrated.

Probabilities are compared in whole percent, rounded down. The same percent is written to the probability rasters, so
`raster >= 42` is the mask of threshold 0.42 wherever it is computed.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import expit, logit

Predict = Callable[[np.ndarray], np.ndarray]
"""(batch, height, width, 3) uint8 RGB to (batch, height, width, 1) probability, float 0..1."""

LEVELS = 2**16
"""Steps of a probability kept as uint16: fine enough to fit a temperature, and half of a float32."""


def to_percent(probability: np.ndarray) -> np.ndarray:
    """uint8 of the same shape: the probability (float, 0..1) in whole percent, rounded down."""
    # A ten-thousandth of a percent takes up the error of float32, in which 0.29 is 28.9999992 percent.
    return np.floor(probability * np.float32(100) + np.float32(1e-4)).astype(np.uint8)


def to_levels(probability: np.ndarray) -> np.ndarray:
    """uint16 of the same shape: the probability (float, 0..1) in 65,536 levels, rounded."""
    return np.round(np.asarray(probability, np.float32) * np.float32(LEVELS - 1)).astype(np.uint16)


def calibrate(probability: np.ndarray, temperature: float) -> np.ndarray:
    """The probability (float, 0..1) that a model of this temperature means: sigmoid(logit(probability) / temperature).

    A model that is too sure has a temperature above 1 (arXiv:1706.04599). Order is kept; shape and dtype as well.
    """
    if temperature == 1:
        return probability
    clipped = np.clip(probability, 1e-7, 1 - 1e-7)
    return expit(logit(clipped) / temperature).astype(probability.dtype)
