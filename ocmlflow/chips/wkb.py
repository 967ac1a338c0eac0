"""Geometries from well-known binary, the surfaces of city models included (OGC 06-103r4)."""

import struct
from collections.abc import Iterator

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from ocmlflow.chips import labels

POLYHEDRAL_SURFACE, TIN, TRIANGLE = 15, 16, 17
SURFACES = (POLYHEDRAL_SURFACE, TIN, TRIANGLE)
"""Types that GEOS does not know; each face of theirs is a polygon."""


def geometries(wkb: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Geometries without heights, (count,) objects, of well-known binary; None where there is none.

    Also (count,) bool, whether a ring was not closed and was closed here, and the reason of each that is refused, by
    its position. A surface becomes the ground below its faces.
    """
    try:
        shapes = shapely.force_2d(shapely.from_wkb(wkb, on_invalid="ignore"))
    except NotImplementedError:  # one of them is a curve: each is read by itself
        shapes = np.full(len(wkb), None, dtype=object)
    closed, refused = np.zeros(len(shapes), bool), {}
    for position in np.flatnonzero(shapely.is_missing(shapes)).tolist():
        if (content := wkb[position]) is None:
            continue
        try:
            shapes[position], closed[position] = _read(bytes(content))
        except NotImplementedError:
            refused[position] = "its geometry is a curve; convert the file, say with ogr2ogr -nlt CONVERT_TO_LINEAR"
        except (ValueError, struct.error, shapely.errors.ShapelyError) as error:
            refused[position] = f"its geometry cannot be read: {error}"
    return shapes, closed, refused


def _read(content: bytes) -> tuple[BaseGeometry, bool]:
    """One geometry, and whether a ring of it was not closed."""
    if _kind(content) in SURFACES:
        faces = labels.polygons(_faces(content, 0, [0]))
        return shapely.union_all(faces) if len(faces) else shapely.Polygon(), False
    try:
        return shapely.force_2d(shapely.from_wkb(content)), False
    except shapely.errors.GEOSException:
        return shapely.force_2d(shapely.from_wkb(content, on_invalid="fix")), True


def _kind(content: bytes) -> int:
    """The type of a geometry, without what says that it has heights or measures; 0 where it is cut off."""
    if len(content) < 5:
        return 0
    (code,) = struct.unpack_from("<I" if content[0] else ">I", content, 1)
    return int((code & 0xFFFF) % 1000)


def _faces(content: bytes, start: int, end: list[int]) -> Iterator[BaseGeometry]:
    """The faces of the surface that begins at byte `start`; sets `end[0]` to the byte after it."""
    order = "<" if content[start] else ">"
    code, count = struct.unpack_from(f"{order}II", content, start + 1)
    position = start + 9
    if _kind(content[start:position]) in (POLYHEDRAL_SURFACE, TIN):
        for _ in range(count):
            yield from _faces(content, position, end)
            position = end[0]
    else:
        has_z = (code & 0xFFFF) // 1000 in (1, 3) or bool(code & 0x80000000)
        has_m = (code & 0xFFFF) // 1000 in (2, 3) or bool(code & 0x40000000)
        size = 2 + has_z + has_m
        rings = []
        for _ in range(count):
            (length,) = struct.unpack_from(f"{order}I", content, position)
            numbers = struct.unpack_from(f"{order}{length * size}d", content, position + 4)
            rings.append(np.reshape(numbers, (length, size))[:, :2])
            position += 4 + 8 * length * size
        if rings:
            yield shapely.Polygon(rings[0], rings[1:])
    end[0] = position
