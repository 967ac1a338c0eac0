"""Draws what a network learns of each footprint by itself, so that it tells buildings apart that touch.

A target is one byte a pixel: bits 0 to 5 are the distance to the edge of the pixel's own footprint, in STEPS for 0 to
CLIP_M metres; bit 6 is set in the core of a footprint, bit 7 where two footprints touch. Networks learn cores and
touching borders since the U-Net paper (arXiv:1505.04597), distances since arXiv:1611.08303.
"""

import math

import numpy as np
import shapely
from affine import Affine
from scipy import ndimage

from ocmlflow.chips import labels

CLIP_M = 2.0
"""Distances are counted up to here, in metres."""
STEPS = 63
"""Value of the distance from CLIP_M on."""
CORE_M = 0.5
"""The core of a footprint is what is deeper inside, in metres; of a narrow one, what is deeper than a quarter of its
largest inner distance."""
TOUCH_M = 0.5
"""Two footprints touch where both are nearer than this, in metres, and none has its core."""
ROUNDING_M = 0.001
"""Both are more generous by this, in metres: the last digits of coordinates, which differ from format to format, must
decide nothing."""
CORE, TOUCH = 64, 128
"""Bits of a target."""


def draw(footprints: labels.Polygons, transform: Affine, *, height: int, width: int, gsd: float) -> np.ndarray:
    """(height, width) uint8: the targets of a window, which do not depend on where it ends.

    `footprints` are valid polygons in the CRS of the transform, in metres, of all that reach within CLIP_M of the
    window; `gsd` is its metres per pixel. Where footprints overlap, the smaller one is on top.
    """
    drawn = np.asarray(footprints, dtype=object)
    target = np.zeros((height, width), np.uint8)
    if not len(drawn):
        return target
    margin = math.ceil(CLIP_M / gsd) + 1  # what is cut off is farther from every pixel than CLIP_M
    depths = np.minimum(CORE_M, 0.25 * shapely.length(shapely.maximum_inscribed_circle(drawn, gsd / 4))) - ROUNDING_M
    for number in np.argsort(-np.round(shapely.area(drawn), 2), kind="stable"):
        box = _box(drawn[number], transform, height=height, width=width, margin=margin)
        if box is not None:
            _draw_one(target, drawn[number], transform, box, depth=float(depths[number]), gsd=gsd)
    touching = labels.rasterize(_touching(drawn), transform, height=height, width=width) > 0
    target[touching & (target & CORE == 0)] |= TOUCH
    return target


def _box(
    footprint: shapely.Polygon, transform: Affine, *, height: int, width: int, margin: int
) -> tuple[int, int, int, int] | None:
    """Top, left, bottom and right pixel of a footprint, cut to a margin around the window; None if it lies outside."""
    left, bottom, right, top = footprint.bounds
    corners = np.array([~transform @ corner for corner in ((left, top), (right, bottom), (left, bottom), (right, top))])
    first, last = np.floor(corners.min(axis=0)).astype(int), np.ceil(corners.max(axis=0)).astype(int)
    if (first >= (width, height)).any() or (last <= 0).any():
        return None
    top_px, left_px = max(int(first[1]), -margin), max(int(first[0]), -margin)
    return top_px, left_px, min(int(last[1]), height + margin), min(int(last[0]), width + margin)


def _draw_one(
    target: np.ndarray,
    footprint: shapely.Polygon,
    transform: Affine,
    box: tuple[int, int, int, int],
    *,
    depth: float,
    gsd: float,
) -> None:
    """Draw distance and core of one footprint into the target, over what is there."""
    top, left, bottom, right = box
    shifted = transform @ Affine.translation(left - 1, top - 1)
    own = labels.rasterize([footprint], shifted, height=bottom - top + 2, width=right - left + 2) > 0
    # To the middle of the nearest pixel outside, less half a pixel: about to the edge.
    inside = ndimage.distance_transform_edt(own) * gsd - gsd / 2
    values = np.rint(np.minimum(inside / CLIP_M, 1).clip(0) * STEPS).astype(np.uint8)
    values[inside >= depth] |= CORE
    height, width = target.shape
    seen = np.s_[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    part = np.s_[
        seen[0].start - top + 1 : seen[0].stop - top + 1,
        seen[1].start - left + 1 : seen[1].stop - left + 1,
    ]
    view = target[seen]
    view[own[part]] = values[part][own[part]]


def _touching(footprints: np.ndarray) -> np.ndarray:
    """Polygons of the ground within TOUCH_M of two footprints."""
    around = shapely.buffer(footprints, TOUCH_M + ROUNDING_M)
    one, other = shapely.STRtree(around).query(around)
    between = shapely.intersection(around[one[one < other]], around[other[one < other]])
    return labels.polygons(between)
