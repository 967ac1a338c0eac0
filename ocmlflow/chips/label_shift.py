"""Estimates how far the labels of a scene are shifted from its image, in metres."""

from collections.abc import Iterable

import numpy as np
from scipy import fft, ndimage
from skimage.segmentation import find_boundaries

from ocmlflow.chips import labels
from ocmlflow.chips.zarr_store import Chip

MAX_SHIFT_M = 6.0
"""Largest shift that is found, along each axis; the worst of the challenge are 5 to 6 metres."""


def estimate(chips: Iterable[Chip], *, gsd: float) -> tuple[float, float] | None:
    """How far (east, north), in metres, the labels must move to fit the image; None without buildings.

    Cross-correlates the outlines of the labels with the edges of the image, summed over all chips, for shifts up to
    MAX_SHIFT_M. The maximum is the shift of the drawing as a whole. It is unreliable with fewer than twenty buildings.
    """
    reach = max(1, round(MAX_SHIFT_M / gsd))
    total = np.zeros((2 * reach + 1, 2 * reach + 1))
    for chip in chips:
        label, valid = labels.decode(chip.label)
        if label.any():
            total += _correlate(_edges(chip.image, valid), find_boundaries(label > 0, mode="inner"), reach)
    if not total.any():
        return None
    row, col = (int(pixel) for pixel in np.unravel_index(total.argmax(), total.shape))
    south = _peak(total[:, col], row) - reach
    east = _peak(total[row], col) - reach
    return east * gsd, -south * gsd


def _edges(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(height, width) float32: strength of the image's edges, standardized, and none near invalid pixels."""
    grey = image.mean(axis=-1, dtype=np.float32)
    strength = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1))
    strength[ndimage.binary_dilation(~valid, iterations=2)] = 0
    # The root, because one white wall would outweigh a town.
    strength = np.sqrt(strength)
    return (strength - strength.mean()) / (strength.std() + 1e-6)


def _correlate(edges: np.ndarray, outline: np.ndarray, reach: int) -> np.ndarray:
    """(2 reach + 1, 2 reach + 1): edge strength under the outline, summed, at each shift (rows down, columns right)."""
    shape = [fft.next_fast_len(side + reach, real=True) for side in edges.shape]
    product = fft.rfft2(edges, shape) * np.conj(fft.rfft2(outline.astype(np.float32), shape))
    correlation = fft.irfft2(product, shape)
    return np.asarray(np.roll(correlation, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1])


def _peak(values: np.ndarray, at: int) -> float:
    """Position, between pixels, of the top of a parabola through the highest value, at `at`, and its neighbours."""
    if not 0 < at < len(values) - 1:
        return float(at)
    before, top, after = values[at - 1 : at + 2]
    return float(at + 0.5 * (before - after) / (before - 2 * top + after))
