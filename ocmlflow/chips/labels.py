"""Footprints, to label arrays."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import shapely
from affine import Affine
from rasterio import features
from shapely.geometry.base import BaseGeometry

Polygons: TypeAlias = Sequence[BaseGeometry] | np.ndarray
"""Polygons, as a sequence or an array of objects."""
INVALID = 255
"""Stands in a coded label where the scene has no imagery."""
NEAR_OUTLINE = 2
"""Added in a coded label where the outline of a footprint is near: 3 building, 2 not; training leaves both out."""
BOUNDARY_M = 0.3
"""Width of the boundary inside a building."""
TOUCHING_M = 0.6
"""Two buildings nearer than twice this touch."""
INTERIOR, BOUNDARY, TOUCHING = 1, 2, 3


def polygons(geometries: Iterable[BaseGeometry | None]) -> np.ndarray:
    """(count,) array of the polygonal parts of the geometries, valid and not empty.

    A valid one stays as it is. One whose ring crosses itself becomes all that the ring goes around, once or more, less
    its holes. Points, lines, nulls and what lies nowhere (reprojected from outside its CRS, to infinity) are left out.
    """
    given = np.array([g for g in geometries if g is not None], dtype=object)
    placed = given[~shapely.is_empty(given) & np.isfinite(shapely.bounds(given)).all(axis=-1)]
    parts = shapely.get_parts(shapely.get_parts(shapely.force_2d(placed)))
    drawn = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
    crooked = ~shapely.is_valid(drawn)
    # Each by itself, and not by the default method: both would make holes of what is drawn twice.
    drawn[crooked] = shapely.make_valid(drawn[crooked], method="structure", keep_collapsed=False)
    found = shapely.get_parts(drawn)
    return np.asarray(found[shapely.area(found) > 0])


def rasterize(footprints: Polygons, transform: Affine, *, height: int, width: int) -> np.ndarray:
    """(height, width) uint8: 1 where a pixel's centre lies in a footprint, else 0; both in the transform's CRS."""
    if not len(footprints):
        return np.zeros((height, width), np.uint8)
    return features.rasterize(
        footprints, out_shape=(height, width), transform=transform, fill=0, default_value=1, dtype="uint8"
    )


def near_outline(footprints: Polygons, transform: Affine, *, height: int, width: int, buffer_m: float) -> np.ndarray:
    """(height, width) bool: pixels whose centre is nearer than `buffer_m` to the outline of a footprint, in metres."""
    around = shapely.buffer(shapely.boundary(np.asarray(footprints, dtype=object)), buffer_m)
    return rasterize(around, transform, height=height, width=width) > 0


def boundary_classes(footprints: Polygons, transform: Affine, *, height: int, width: int) -> np.ndarray:
    """(height, width) uint8: 0 not building, 1 inside of one, 2 its boundary, 3 where two buildings touch.

    Inside is what lies deeper than BOUNDARY_M in any footprint; where two touch is ground and boundary nearer than
    TOUCHING_M to both. Two footprints that overlap so deeply that their insides meet are one building, drawn twice or
    in pieces, and do not touch. As networks learn them that part buildings which stand close, from the U-Net paper
    (arXiv:1505.04597) on.
    """
    drawn = np.asarray(footprints, dtype=object)
    place = {"height": height, "width": width}
    inside, around = shapely.buffer(drawn, -BOUNDARY_M), shapely.buffer(drawn, TOUCHING_M)
    one, other = shapely.STRtree(around).query(around)
    two = (one < other) & ~shapely.intersects(inside[one], inside[other])
    between = shapely.intersection(around[one[two]], around[other[two]])
    found = rasterize(drawn, transform, **place) * BOUNDARY
    found[rasterize(polygons(between), transform, **place) > 0] = TOUCHING
    found[rasterize(polygons(inside), transform, **place) > 0] = INTERIOR
    return found


def encode(label: np.ndarray, valid: np.ndarray, near_outline: np.ndarray | None = None) -> np.ndarray:
    """One uint8 array, the form that is stored: 1 building, 0 not, 3 and 2 near an outline, 255 not valid."""
    coded = label if near_outline is None else label + NEAR_OUTLINE * near_outline.astype(np.uint8)
    return np.where(valid, coded, INVALID).astype(np.uint8)


def decode(coded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label (uint8 0, 1) and valid (bool) of a coded label; the label is 0 where nothing is valid."""
    valid = coded != INVALID
    return np.where(valid, coded & 1, 0).astype(np.uint8), valid


def count_pixels(coded: np.ndarray) -> tuple[int, int]:
    """Numbers of the valid pixels and of the building pixels of a coded label."""
    valid = int(np.count_nonzero(coded != INVALID))
    odd = int(np.count_nonzero(coded & 1))  # building, or not valid
    return valid, odd - (coded.size - valid)
