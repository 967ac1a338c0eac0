"""Images and labels, to how far the labels lie from the edges that are seen, in metres."""

from collections.abc import Iterable

import numpy as np
from scipy import fft, ndimage
from skimage.segmentation import find_boundaries

from ocmlflow.chips import labels
from ocmlflow.chips.zarr_store import Chip

REACH_M = 6.0
"""Largest shift that is looked for; the worst of the challenge are 5 to 6 metres off."""


def estimate(chips: Iterable[Chip], *, gsd: float) -> tuple[float, float] | None:
    """How far (east, north), in metres, the labels must move to lie on the edges of the image; None without any.

    The outlines of the labels are laid over the strength of the image's edges at every shift up to REACH_M; the sum
    over all chips is highest where they fit. It says where the drawing lies as a whole, not how well each roof is
    drawn, and is worth little below twenty buildings.
    """
    reach = max(1, round(REACH_M / gsd))
    total = np.zeros((2 * reach + 1, 2 * reach + 1))
    for chip in chips:
        label, valid = labels.decode(chip.label)
        if label.any():
            total += _fit(_edges(chip.image, valid), find_boundaries(label > 0, mode="inner"), reach)
    if not total.any():
        return None
    row, col = (int(i) for i in np.unravel_index(total.argmax(), total.shape))
    south = _peak(total[:, col], row) - reach
    east = _peak(total[row], col) - reach
    return east * gsd, -south * gsd


def _edges(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(height, width) float32: strength of the image's edges, in its own spread; 0 near what is not valid."""
    grey = image.mean(axis=-1, dtype=np.float32)
    strength = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1))
    strength[ndimage.binary_dilation(~valid, iterations=2)] = 0
    # By rank-like compression, or one white wall would outweigh a town.
    strength = np.sqrt(strength)
    return (strength - strength.mean()) / (strength.std() + 1e-6)


def _fit(edges: np.ndarray, outline: np.ndarray, reach: int) -> np.ndarray:
    """(2 reach + 1, 2 reach + 1): mean strength under the outline at each shift (rows down, columns right)."""
    shape = [fft.next_fast_len(side + reach, real=True) for side in edges.shape]
    product = fft.rfft2(edges, shape) * np.conj(fft.rfft2(outline.astype(np.float32), shape))
    found = fft.irfft2(product, shape)
    return np.asarray(np.roll(found, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1])


def _peak(values: np.ndarray, at: int) -> float:
    """Where, between the pixels, a parabola through the highest value and its neighbours has its top."""
    if not 0 < at < len(values) - 1:
        return float(at)
    before, top, after = values[at - 1 : at + 2]
    return float(at + 0.5 * (before - after) / (before - 2 * top + after))
