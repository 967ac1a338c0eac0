"""Footprints, to a label array."""

from collections.abc import Iterable

import numpy as np
import shapely
from affine import Affine
from rasterio.features import rasterize
from shapely.geometry.base import BaseGeometry

NOT_VALID = 255
"""Stands in a coded label where the scene has no imagery."""


def polygons(geometries: Iterable[BaseGeometry | None]) -> list[BaseGeometry]:
    """The polygonal parts of the geometries, valid and not empty.

    Points, lines, nulls and what lies nowhere (reprojected from outside its CRS, to infinity) are left out.
    """
    placed = (g for g in geometries if g is not None and not g.is_empty and np.isfinite(g.bounds).all())
    areas = (shapely.make_valid(g) for g in placed)
    parts = (part for area in areas for part in shapely.get_parts(shapely.get_parts(area)))
    return [part for part in parts if part.geom_type == "Polygon" and part.area > 0]


def burn(footprints: Iterable[BaseGeometry], transform: Affine, *, height: int, width: int) -> np.ndarray:
    """(height, width) uint8: 1 where a pixel's centre lies in a footprint, else 0; both in the transform's CRS."""
    shapes = [(footprint, 1) for footprint in footprints]
    if not shapes:
        return np.zeros((height, width), np.uint8)
    return rasterize(shapes, out_shape=(height, width), transform=transform, fill=0, dtype=np.uint8)


def encode(label: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """One uint8 array of both, the form that is stored: 1 building, 0 not, 255 not valid."""
    return np.where(valid, label, NOT_VALID).astype(np.uint8)


def decode(coded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label (uint8 0, 1) and valid (bool) of a coded label; the label is 0 where nothing is valid."""
    valid = coded != NOT_VALID
    return np.where(valid, coded, 0).astype(np.uint8), valid
