"""Separates touching buildings: cuts the mask of a window into one object for each building.

Where the network has learned the distance to each building's own edge, that distance falls to 0 at walls that touch.
Without it, the distance to the edge of the mask stands in, which is lowest where two buildings meet in a neck. Either
way each hill of the distance is a building (a watershed), and hills whose pass is hardly lower than their tops are one.
"""

import numpy as np
from scipy import ndimage
from skimage import measure, segmentation

from ocmlflow.chips.targets import CLIP_M

DISTANCE_STEPS = 250
"""Value of the largest learned distance."""
SMOOTHING_M = 0.3
"""Standard deviation of the Gaussian that smooths the distance, in metres."""
LEARNED_DROP_M = 0.6
"""Hills of the learned distance are two buildings if each rises so much above the pass between them, in metres."""
GEOMETRIC_DROP_M = 1.0
"""The same for the distance to the edge of the mask."""
LEAST_TOP_M = 0.1
"""A hill has at least this height, in metres: lower ones are noise between buildings."""
LEVELS_M = 1.41, 1.0, 0.7, 0.4, 0.0
"""Heights above which hills are looked at: nowhere above the first can two of the learned distance rise by the drop."""
ROUNDING_M = 0.5
"""Outlines are smoothed by about this radius, in metres."""
NARROW = 0.7
"""Ground belongs to the nearer of the buildings around it where their blurred shares add up to this: a gap of 0.3 m."""


def separate(building: np.ndarray, distance: np.ndarray | None, *, gsd: float) -> np.ndarray:
    """The building of each pixel of a mask: (height, width) int32 from 1, 0 where there is none.

    `building` is the mask, (height, width) bool, and `gsd` its metres per pixel. `distance`, (height, width) uint8,
    is the learned distance to the building's own edge, 0 to DISTANCE_STEPS for 0 to CLIP_M; None if none is known.
    Pixels of a building may lie in several pieces.
    """
    labels = ndimage.label(building)[0]
    if not labels.any():
        return np.asarray(labels)
    if distance is None:
        metres, drop_m = ndimage.distance_transform_edt(building) * gsd, GEOMETRIC_DROP_M
    else:
        metres, drop_m = distance * (CLIP_M / DISTANCE_STEPS), LEARNED_DROP_M
    height = ndimage.gaussian_filter(metres.astype(np.float32), SMOOTHING_M / gsd)
    basins = _basins(height, building, labels, drop_m)
    return _merged(basins, height, drop_m)


def smooth(labels: np.ndarray, *, gsd: float) -> np.ndarray:
    """The labels of separated buildings with rounded staircases: (height, width) int32.

    Each building is blurred by itself; a pixel goes to the building of the largest value there, if it is at least a
    half. One stays with its own building where that has the largest value, and all together reach a half: so a wall
    that two share goes on to its end. What is too thin to reach a half stays as it is.
    """
    side = 2 * max(1, round(ROUNDING_M / gsd)) + 1
    smoothed = np.zeros_like(labels)
    best, total = np.zeros((2, *labels.shape), np.float32)
    thin = []
    for number, part in enumerate(ndimage.find_objects(labels), 1):
        if part is None:
            continue
        box = tuple(slice(max(0, axis.start - side), axis.stop + side) for axis in part)
        own = labels[box] == number
        blurred = own.astype(np.float32)
        for _ in range(2):
            blurred = ndimage.uniform_filter(blurred, side)
        total[box] += blurred
        if blurred.max() < 0.5:
            thin.append((box, own, number))
        inside = blurred > best[box]
        smoothed[box][inside] = number
        best[box][inside] = blurred[inside]
    is_between = ((labels == smoothed) & (labels > 0) & (total >= 0.5)) | (total >= NARROW)
    smoothed[(best < 0.5) & ~is_between] = 0
    for box, own, number in thin:
        smoothed[box][own & (smoothed[box] == 0)] = number
    return smoothed


def connected(labels: np.ndarray) -> np.ndarray:
    """The labels numbered anew, int32 from 1, so that each is one piece of pixels that share edges."""
    return np.asarray(measure.label(labels, background=0, connectivity=1)).astype(np.int32)


def _basins(height: np.ndarray, building: np.ndarray, components: np.ndarray, drop_m: float) -> np.ndarray:
    """The basin of each pixel: the hill that it belongs to, (height, width) int32 from 1.

    A connected component of the mask without a top is one basin. Hills that `_merged` would merge anyway may be one.
    """
    is_top = (ndimage.maximum_filter(height, 5) == height) & building & (height > LEAST_TOP_M)
    tops = ndimage.label(is_top, np.ones((3, 3)))[0]
    settled = _settled(height, building, components, tops, drop_m)
    basins, count = ndimage.label(settled)
    unsettled = building & ~settled
    if not unsettled.any():
        return np.asarray(basins)
    # Flooding takes most of the time: what is settled takes part by its rim alone.
    is_flooded = unsettled | (settled & ndimage.binary_dilation(unsettled))
    markers = np.where(settled | (tops == 0), basins, tops + count)
    flooded = segmentation.watershed(-height, markers, mask=is_flooded)
    return np.asarray(np.where(is_flooded, flooded, basins), np.int32)


def _settled(
    height: np.ndarray, building: np.ndarray, components: np.ndarray, tops: np.ndarray, drop_m: float
) -> np.ndarray:
    """(height, width) bool: the hills, down to some level, that are one building whatever lies between their tops.

    All passes between the tops of a connected region above a level are higher than the level. So the tops are merged
    if all but one rise by less than `drop_m` above it.
    """
    at = np.flatnonzero(tops)
    at = at[np.unique(tops.flat[at], return_index=True)[1]]
    at = at[np.argsort(-height.flat[at], kind="stable")]  # one pixel of each top, the highest first
    settled = np.zeros(building.shape, bool)
    for level in LEVELS_M:
        regions = ndimage.label((height > level) & building)[0] if level else components
        region_of = regions.flat[at]
        is_high = height.flat[at] >= level + drop_m
        count = regions.max() + 1
        is_settled = np.bincount(region_of[is_high], minlength=count) < 2
        if level:
            is_settled &= np.bincount(region_of, minlength=count) > 0
        is_settled[0] = False
        settled |= is_settled[regions]
        is_highest = np.zeros(len(at), bool)
        is_highest[np.unique(region_of, return_index=True)[1]] = True
        at = at[is_highest | ~is_settled[region_of]]
    return settled


def _merged(basins: np.ndarray, height: np.ndarray, drop_m: float) -> np.ndarray:
    """Basins merged until the lower of two neighbouring tops rises by `drop_m` above the pass between them.

    From the highest pass down, so that the order of the labels does not matter.
    """
    first, second, passes = _passes(basins, height)
    top = np.zeros(basins.max() + 1, np.float32)
    np.maximum.at(top, basins.ravel(), height.ravel())
    parent = np.arange(basins.max() + 1)

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for pair in np.lexsort((second, first, -passes)):
        low, high = sorted((root(first[pair]), root(second[pair])), key=lambda number: (top[number], number))
        if low != high and top[low] - passes[pair] < drop_m:
            parent[low] = high
    roots = np.array([root(number) for number in range(len(parent))], np.int32)
    return roots[basins]


def _passes(basins: np.ndarray, height: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of neighbouring basins, the first of the smaller number, and the height of the pass between them."""
    sides = []
    for one, other in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        is_border = (basins[one] != basins[other]) & (basins[one] > 0) & (basins[other] > 0)
        numbers = np.sort([basins[one][is_border], basins[other][is_border]], axis=0)
        sides.append((*numbers, np.minimum(height[one], height[other])[is_border]))
    first, second, at_border = (np.concatenate(values) for values in zip(*sides, strict=True))
    order = np.lexsort((-at_border, second, first))
    first, second, at_border = first[order], second[order], at_border[order]
    is_highest = np.ones(len(order), bool)
    is_highest[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return first[is_highest], second[is_highest], at_border[is_highest]
