"""Converts probabilities of building to whole percent and to 16-bit levels, and calibrates them.

Thresholds are applied to whole percent, rounded down. Probability rasters hold the same percent, so `raster >= 42` is
the mask of threshold 0.42 wherever it is computed.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import expit, logit

Predict = Callable[[np.ndarray], np.ndarray]
"""Takes (batch, height, width, 3) uint8 RGB, returns (batch, height, width, channels) float, 0..1.

The first channel is the probability of building. The second, if the model has learned it, is the distance to the edge
of the pixel's own building: 1 is `targets.CLIP_M` metres and more.
"""

LEVELS = 2**16
"""Number of values of a probability stored as uint16: fine enough to fit a temperature, half the size of float32."""


def to_percent(probability: np.ndarray) -> np.ndarray:
    """The probability (float, 0..1) in whole percent, rounded down: uint8 of the same shape."""
    # The added ten-thousandth of a percent makes up for float32, in which 0.29 is 28.9999992 percent.
    return np.floor(probability * np.float32(100) + np.float32(1e-4)).astype(np.uint8)


def to_levels(probability: np.ndarray) -> np.ndarray:
    """The probability (float, 0..1) rounded to 65,536 levels: uint16 of the same shape."""
    return np.round(np.asarray(probability, np.float32) * np.float32(LEVELS - 1)).astype(np.uint16)


def calibrate(probability: np.ndarray, temperature: float) -> np.ndarray:
    """The probability (float, 0..1) after temperature scaling: sigmoid(logit(probability) / temperature).

    A temperature above 1 corrects an overconfident model (arXiv:1706.04599). Order, shape and dtype stay the same.
    """
    if temperature == 1:
        return probability
    clipped = np.clip(probability, 1e-7, 1 - 1e-7)
    return expit(logit(clipped) / temperature).astype(probability.dtype)
