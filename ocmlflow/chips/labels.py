"""Burns footprints into label rasters, and codes labels as they are stored."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import shapely
from affine import Affine
from rasterio import features
from shapely.geometry.base import BaseGeometry

Polygons: TypeAlias = Sequence[BaseGeometry] | np.ndarray
"""Shapely polygons, as a sequence or an array of objects."""
INVALID = 255
"""Code in a label where the scene has no imagery."""
NEAR_OUTLINE = 2
"""Added to a label's code near the outline of a footprint: 3 building, 2 not. Training ignores both."""


def polygons(geometries: Iterable[BaseGeometry | None]) -> np.ndarray:
    """(count,) object array of the valid, non-empty polygons in the geometries, as of `take_apart`."""
    return take_apart(geometries)[0]


def take_apart(geometries: Iterable[BaseGeometry | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(count,) object array of the valid, non-empty polygons in the geometries.

    Also (count,) int, the position of the geometry that each is of, and (geometries,) bool, whether it had to be
    repaired. Multipolygons and collections, nested too, are taken apart. A polygon whose ring crosses itself becomes
    all that the ring encloses, once or more often, less its holes. Points, lines, nulls and geometries at infinity
    (reprojected from outside their CRS) are left out.
    """
    shapes = np.array([*geometries, None], dtype=object)[:-1]  # with None, numpy makes one array of objects of any list
    finite = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes)) & np.isfinite(shapely.bounds(shapes)).all(axis=-1)
    simple, index = parts(shapely.force_2d(shapes[finite]))
    is_area = shapely.get_type_id(simple) == shapely.GeometryType.POLYGON
    areas, owners = simple[is_area], np.flatnonzero(finite)[index][is_area]
    invalid = ~shapely.is_valid(areas)
    repaired = np.zeros(len(shapes), bool)
    repaired[owners[invalid]] = True
    multiple = np.flatnonzero(np.bincount(owners, minlength=len(shapes)) > 1)
    repaired[multiple] |= ~shapely.is_valid(shapes[multiple])  # valid parts may overlap
    # Repaired one by one, with this method: else ground that is drawn twice would become a hole.
    areas[invalid] = shapely.make_valid(areas[invalid], method="structure", keep_collapsed=False)
    valid, index = shapely.get_parts(areas, return_index=True)
    has_area = shapely.area(valid) > 0
    return valid[has_area], owners[index][has_area], repaired


def parts(geometries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(count,) points, lines and polygons that geometries consist of, and (count,) int, the geometry each is of."""
    simple, owners = geometries, np.arange(len(geometries))
    while (shapely.get_type_id(simple) >= shapely.GeometryType.MULTIPOINT).any():
        simple, index = shapely.get_parts(simple, return_index=True)
        owners = owners[index]
    return simple, owners


def rasterize(footprints: Polygons, transform: Affine, *, height: int, width: int) -> np.ndarray:
    """(height, width) uint8: 1 where the middle of a pixel lies in a footprint, else 0.

    Footprints are in the CRS of the transform.
    """
    if not len(footprints):
        return np.zeros((height, width), np.uint8)
    return features.rasterize(
        footprints, out_shape=(height, width), transform=transform, fill=0, default_value=1, dtype="uint8"
    )


def near_outline(footprints: Polygons, transform: Affine, *, height: int, width: int, buffer_m: float) -> np.ndarray:
    """(height, width) bool: whether the middle of a pixel is within `buffer_m` metres of a footprint's outline."""
    around = shapely.buffer(shapely.boundary(np.asarray(footprints, dtype=object)), buffer_m)
    return rasterize(around, transform, height=height, width=width) > 0


def encode(label: np.ndarray, valid: np.ndarray, near_outline: np.ndarray | None = None) -> np.ndarray:
    """Label, validity and nearness to outlines as one uint8 array, the form that is stored.

    Codes: 1 building, 0 not, 3 and 2 the same near an outline, 255 not valid.
    """
    coded = label if near_outline is None else label + NEAR_OUTLINE * near_outline.astype(np.uint8)
    return np.where(valid, coded, INVALID).astype(np.uint8)


def decode(coded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label (uint8, 0 or 1) and valid (bool) of a coded label; the label is 0 where it is not valid."""
    valid = coded != INVALID
    return np.where(valid, coded & 1, 0).astype(np.uint8), valid


def count_pixels(coded: np.ndarray) -> tuple[int, int]:
    """Number of valid pixels, and of building pixels, of a coded label."""
    valid = int(np.count_nonzero(coded != INVALID))
    odd = int(np.count_nonzero(coded & 1))  # building, or not valid
    return valid, odd - (coded.size - valid)
