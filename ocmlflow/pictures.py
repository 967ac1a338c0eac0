"""Arrays, to pictures that show at a glance whether labels and predictions sit on their roofs."""

from collections.abc import Sequence

import numpy as np
from skimage.segmentation import find_boundaries

OUTLINE_COLOUR = (255, 0, 255)
INVALID_COLOUR = (90, 90, 110)
GAP = 6
HIT_COLOUR, FALSE_COLOUR, MISSED_COLOUR = (60, 170, 90), (220, 60, 50), (50, 110, 220)


def draw_outlines(image: np.ndarray, label: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8: the image with the outlines of the label drawn over, grey where nothing is valid."""
    picture = image.copy()
    picture[~valid] = INVALID_COLOUR
    picture[find_boundaries(label > 0, mode="inner")] = OUTLINE_COLOUR
    return picture


def to_grey(probability: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8 of a probability, 0..1."""
    return np.repeat((np.clip(probability, 0, 1) * 255).astype(np.uint8)[..., np.newaxis], 3, axis=-1)


def draw_errors(image: np.ndarray, building: np.ndarray, label: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8: the image in grey, tinted where building was found, falsely found, and missed."""
    light = image.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    for colour, where in (
        (HIT_COLOUR, building & (label > 0)),
        (FALSE_COLOUR, building & (label == 0)),
        (MISSED_COLOUR, ~building & (label > 0)),
    ):
        light = _tint(light, where, colour)
    light[~valid] = INVALID_COLOUR
    return light.astype(np.uint8)


def tint_buildings(image: np.ndarray, building: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8: the image, tinted where there is building."""
    return _tint(image, building, FALSE_COLOUR)


def contact_sheet(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """One picture of rows of equally large pictures."""
    tall = [
        np.concatenate([np.pad(p, ((GAP, 0), (GAP, 0), (0, 0)), constant_values=255) for p in row], 1) for row in rows
    ]
    return np.pad(np.concatenate(tall, 0), ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


def _tint(image: np.ndarray, where: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    found = image.copy()
    found[where] = 0.45 * image[where] + 0.55 * np.array(colour)  # a picture of a thousand pixels a side is not small
    return found
