"""Finds collars: areas of one colour around the imagery that no alpha, mask or nodata value declares as no imagery."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.measure import label as connected

MAX_BLACK, MIN_WHITE = 10, 245
"""Largest value of any channel of black, and smallest of white, with the noise of JPEG."""
SMALL_SHARE = 0.2
"""An area along this share of the imagery's edge is a collar from a tenth of the size on."""
INSIDE_FACTOR = 10
"""A black area that does not reach the edge is no imagery from so many times the size on."""
NEAR, SAME, SAME_SHARE = 4, 2, 0.8
"""Another colour than black and white must be as flat as none on the ground is: pixels differ by at most NEAR from it,
and this share of them by at most SAME."""
NOISE = 8
"""Difference from such a colour that JPEG makes."""
CANDIDATES = 3
"""Most frequent colours along the edge that are looked at."""


@dataclass(frozen=True)
class Collar:
    """An area of one colour that is no imagery."""

    pixels: np.ndarray
    """(rows, cols) bool."""
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    """Range of its red, green and blue."""
    name: str
    """The colour in words."""


def find(image: np.ndarray, valid: np.ndarray, *, pixel_m2: float, collar_m2: float) -> list[Collar]:
    """The collars of a coarse view of a scene, (rows, cols, 3) uint8, with its validity, (rows, cols) bool.

    A connected area of one colour is a collar if it reaches the edge of the valid pixels and is black or white and of
    at least `collar_m2` square metres, or lies along a fifth of the edge and has a tenth of that. A black area that
    does not reach the edge must have ten times as much.
    """
    edge = valid & ~ndimage.binary_erosion(valid, np.ones((3, 3)))
    if not edge.any():
        return []
    black = valid & (image.max(axis=-1) <= MAX_BLACK)
    white = valid & (image.min(axis=-1) >= MIN_WHITE)
    collars = [
        Collar(_pieces(black, edge, pixel_m2, collar_m2, inside=True), (0,) * 3, (MAX_BLACK,) * 3, "black"),
        Collar(_pieces(white, edge, pixel_m2, collar_m2, inside=False), (MIN_WHITE,) * 3, (255,) * 3, "white"),
    ]
    collars += [_of_colour(image, valid, edge, colour, pixel_m2 / collar_m2) for colour in _edge_colours(image[edge])]
    return [collar for collar in collars if collar.pixels.any()]


def _pieces(mask: np.ndarray, edge: np.ndarray, pixel_m2: float, collar_m2: float, *, inside: bool) -> np.ndarray:
    """(rows, cols) bool: the pieces of a black or white mask that are collars; `inside` need not reach the edge."""
    if not mask.any():
        return mask
    pieces, area_m2, share = _measure(mask, edge, pixel_m2)
    is_collar = (share >= SMALL_SHARE) & (area_m2 >= collar_m2 / 10) | (share > 0) & (area_m2 >= collar_m2)
    if inside:
        is_collar |= area_m2 >= INSIDE_FACTOR * collar_m2
    return _chosen(pieces, is_collar)


def _of_colour(image: np.ndarray, valid: np.ndarray, edge: np.ndarray, colour: np.ndarray, area: float) -> Collar:
    """The pieces of another colour that are collars; `area` is that of a pixel, in units of `collar_m2`."""
    difference = np.abs(image.astype(np.int16) - colour).max(axis=-1)
    mask = valid & (difference <= NEAR)
    pieces, areas, share = _measure(mask, edge, area)
    same = np.bincount(pieces[mask & (difference <= SAME)], minlength=len(areas)) * area
    is_collar = (share >= SMALL_SHARE) & (areas >= 1 / 10) & (same >= SAME_SHARE * areas)
    low, high = ((colour + noise).clip(0, 255).tolist() for noise in (-NOISE, NOISE))
    name = f"one colour {tuple(colour.tolist())}"
    return Collar(_chosen(pieces, is_collar), (low[0], low[1], low[2]), (high[0], high[1], high[2]), name)


def _measure(mask: np.ndarray, edge: np.ndarray, pixel_area: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the connected pieces of a mask, (rows, cols); the area and the share of the edge of each number."""
    pieces = connected(mask, connectivity=1)
    area = np.bincount(pieces.ravel()) * pixel_area
    return pieces, area, np.bincount(pieces[edge], minlength=len(area)) / np.count_nonzero(edge)


def _chosen(pieces: np.ndarray, is_chosen: np.ndarray) -> np.ndarray:
    """(rows, cols) bool: the pieces of these numbers; 0 is no piece."""
    is_chosen[0] = False
    return np.asarray(is_chosen[pieces])


def _edge_colours(colours: np.ndarray) -> list[np.ndarray]:
    """The most frequent colours of pixels (count, 3), other than black and white."""
    bins, counts = np.unique(colours // NOISE, axis=0, return_counts=True)
    frequent = np.argsort(counts)[::-1][:CANDIDATES]
    members = [colours[(colours // NOISE == bins[number]).all(axis=-1)] for number in frequent]
    middles = [np.median(alike, axis=0).astype(np.int16) for alike in members if len(alike) >= len(colours) / 40]
    return [middle for middle in middles if middle.max() > MAX_BLACK and middle.min() < MIN_WHITE]
