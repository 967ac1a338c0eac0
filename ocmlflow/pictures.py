"""Draws labels, predictions and errors over images, and joins pictures to contact sheets."""

from collections.abc import Sequence

import numpy as np
from skimage.segmentation import find_boundaries

OUTLINE_COLOUR = (255, 0, 255)
INVALID_COLOUR = (90, 90, 110)
GAP = 6
"""White pixels between the pictures of a contact sheet."""
HIT_COLOUR, FALSE_COLOUR, MISSED_COLOUR = (60, 170, 90), (220, 60, 50), (50, 110, 220)


def draw_outlines(image: np.ndarray, label: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The image with the outlines of its label: (height, width, 3) uint8, grey where not valid."""
    picture = image.copy()
    picture[~valid] = INVALID_COLOUR
    picture[find_boundaries(label > 0, mode="inner")] = OUTLINE_COLOUR
    return picture


def to_grey(probability: np.ndarray) -> np.ndarray:
    """A probability (height, width), 0..1, as a grey picture: (height, width, 3) uint8."""
    return np.repeat((np.clip(probability, 0, 1) * 255).astype(np.uint8)[..., np.newaxis], 3, axis=-1)


def draw_errors(image: np.ndarray, building: np.ndarray, label: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The image in grey, tinted by hits, false positives and misses: (height, width, 3) uint8.

    `building` is the prediction, `label` the truth; not valid pixels are grey.
    """
    picture = image.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    picture = _tint(picture, building & (label > 0), HIT_COLOUR)
    picture = _tint(picture, building & (label == 0), FALSE_COLOUR)
    picture = _tint(picture, ~building & (label > 0), MISSED_COLOUR)
    picture[~valid] = INVALID_COLOUR
    return picture.astype(np.uint8)


def tint_buildings(image: np.ndarray, building: np.ndarray) -> np.ndarray:
    """The image, tinted where `building` is True: (height, width, 3) uint8."""
    return _tint(image, building, FALSE_COLOUR)


def contact_sheet(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """One picture of rows of pictures, all of the same size, with white gaps between them."""
    gap_above_and_left, gap_below_and_right = ((GAP, 0), (GAP, 0), (0, 0)), ((0, GAP), (0, GAP), (0, 0))
    strips = [
        np.concatenate([np.pad(picture, gap_above_and_left, constant_values=255) for picture in row], axis=1)
        for row in rows
    ]
    return np.pad(np.concatenate(strips, axis=0), gap_below_and_right, constant_values=255)


def _tint(image: np.ndarray, where: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    tinted = image.copy()
    tinted[where] = 0.45 * image[where] + 0.55 * np.array(colour)  # computed there alone: pictures may be large
    return tinted
