"""Geometry of a raster on the ground: its grid, ground sampling distance (GSD), UTM grid and outlines in degrees."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from affine import Affine
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import ProjError
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from ocmlflow.errors import InputError

CORNER_COLS, CORNER_ROWS = np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1])
"""Corners of a window of one pixel, clockwise from the upper left."""
TURNS = -360, 0, 360
"""Degrees that may be added to the longitude of a place, to name the same place."""
NEAR_DEG = 0.1
"""Degrees around a grid that count as near it: more than its edges curve, and more than the margins of its tiles."""
SEGMENT_DEG = 1e-3
"""Longest edge of a projected area: over this length, a hundred metres, a straight edge bends by millimetres."""

NO_DATUM_M = 100.0
"""Metres that places of two datums typically lie apart, where nothing else is known."""
DOUBTFUL_M = 5.0
"""A place that may be misplaced by more metres is warned of: roofs and footprints no longer overlap."""


@dataclass(frozen=True)
class GeoBox:
    """Where the pixels of a raster lie."""

    crs: str
    """WKT or a code such as EPSG:32636."""
    transform: Affine
    """From pixel (col, row) to (x, y) of the CRS."""
    height: int
    width: int

    def corners(self, window: Window) -> list[tuple[float, float]]:
        """(x, y) of the window's corners, clockwise from the upper left."""
        cols = (window.col_off + window.width * CORNER_COLS).tolist()
        rows = (window.row_off + window.height * CORNER_ROWS).tolist()
        return [self.transform @ corner for corner in zip(cols, rows, strict=True)]


def gsd(grid: GeoBox) -> float:
    """Ground sampling distance: metres per pixel in the middle of the grid, along the ellipsoid.

    The transform may say otherwise: two scenes of the challenge are georeferenced in a UTM zone far from their own.
    """
    lons, lats = _lonlats(grid, *_middle(grid))
    _, _, metres = Geod(ellps="WGS84").inv([lons[0]] * 2, [lats[0]] * 2, lons[1:], lats[1:])
    return math.sqrt(metres[0] * metres[1])


def scale_factors(own: GeoBox, target: GeoBox) -> tuple[float, float]:
    """Pixels of the target per pixel of `own`, along rows and columns, in the middle of `own`; at most 1."""
    to_target = Transformer.from_crs(own.crs, target.crs, always_xy=True)
    cols, rows = ~target.transform @ to_target.transform(*(own.transform @ _middle(own)))
    across, down = np.hypot(cols[1:] - cols[0], rows[1:] - rows[0]).clip(max=1)
    return float(across), float(down)


def check_on_earth(grid: GeoBox) -> None:
    """Raise InputError unless the grid lies on earth and in one piece: a CRS may have a seam, most at 180 degrees."""
    try:
        zone = _utm(grid)
        to_zone = Transformer.from_crs(grid.crs, zone, always_xy=True)
    except ProjError as error:
        raise InputError(
            f"its CRS, {_name(grid.crs)}, does not say where on earth it lies: export it in one that does, or, if only "
            "the name is wrong, give it the right one, say with gdal_edit.py -a_srs EPSG:CODE"
        ) from error
    cols: Any = grid.width * CORNER_COLS
    rows: Any = grid.height * CORNER_ROWS
    in_zone = to_zone.transform(*(grid.transform @ (cols, rows)))
    back_cols, back_rows = ~grid.transform @ to_zone.transform(*in_zone, direction="INVERSE")
    if not np.hypot(back_cols - cols, back_rows - rows).max() <= max(grid.width, grid.height):  # true for infinity too
        raise InputError(
            f"it reaches beyond the edge of its CRS, {_name(grid.crs)}; bring it to another, say with "
            f"gdalwarp -t_srs {zone}"
        )


def place_error_m(source: CRS | str, target: CRS | str, x: float, y: float) -> float:
    """Metres by which (x, y) of a CRS may be misplaced in another, by what PROJ knows; 0 where it names no accuracy.

    NO_DATUM_M where PROJ knows no transformation between the datums and takes degrees of one for those of the other
    (its "ballpark" transformation), unless both ellipsoids are the same.
    """
    transformer = Transformer.from_crs(source, target, always_xy=True)
    transformer.transform(x, y)
    try:
        operation: Any = transformer.get_last_used_operation()
    except ProjError:  # there is only one
        operation = transformer
    if "ballpark" in operation.description.lower():
        own, other = (CRS(crs).get_geod() for crs in (source, target))
        is_same = own and other and abs(own.a - other.a) < 1 and abs(own.b - other.b) < 1
        return 0.0 if is_same else NO_DATUM_M
    return max(float(operation.accuracy or 0), 0.0)


def place_doubt(source: CRS | str, target: CRS | str, x: float, y: float) -> str:
    """In words, that a place may be misplaced by more than DOUBTFUL_M metres; empty where it is not."""
    metres = place_error_m(source, target, x, y)
    if metres <= DOUBTFUL_M:
        return ""
    return (
        f"the datum of the CRS, {CRS(source).name}, is known to about {metres:.0f} m only: outlines may be shifted by "
        "that much; save the file in a CRS with a datum, such as EPSG:4326 or a UTM zone"
    )


def utm_grid(own: GeoBox, *, gsd: float) -> GeoBox:
    """Grid of square pixels of `gsd` metres that covers `own`, north up, in the UTM zone of its middle.

    Its corners are multiples of `gsd`, so that the pixels of all scenes of a zone are aligned.
    """
    crs = _utm(own)
    left, bottom, right, top = transform_bounds(own.crs, crs, *_bounds(own), densify_pts=21)
    first_col, first_row = math.floor(left / gsd + 1e-6), math.floor(-top / gsd + 1e-6)
    width = max(math.ceil(right / gsd - 1e-6) - first_col, 1)
    height = max(math.ceil(-bottom / gsd - 1e-6) - first_row, 1)
    return GeoBox(crs, Affine(gsd, 0, first_col * gsd, 0, -gsd, -first_row * gsd), height, width)


def outline(grid: GeoBox, window: Window) -> BaseGeometry:
    """Outline of a window in degrees (lon, lat); two polygons where 180 degrees cut it, as in RFC 7946."""
    cols, rows = window.col_off + window.width * CORNER_COLS, window.row_off + window.height * CORNER_ROWS
    return _outlines(grid, cols[np.newaxis], rows[np.newaxis])[0]


def outlines(grid: GeoBox, rows: np.ndarray, cols: np.ndarray, *, size: int) -> np.ndarray:
    """Outlines, as `outline` gives them, of square windows by their first rows and columns: (count,) polygons."""
    return _outlines(grid, cols[:, np.newaxis] + size * CORNER_COLS, rows[:, np.newaxis] + size * CORNER_ROWS)


def project_area(area: BaseGeometry, grid: GeoBox) -> BaseGeometry:
    """The part of an area in degrees (lon, lat) on the grid or near it, projected to the grid's CRS.

    Its edges are cut into short ones first: long edges that are straight in degrees, as in GeoJSON, bend by kilometres.
    """
    lons, lats = _lonlats(grid, grid.width * CORNER_COLS, grid.height * CORNER_ROWS)
    near = shapely.box(lons.min() - NEAR_DEG, lats.min() - NEAR_DEG, lons.max() + NEAR_DEG, lats.max() + NEAR_DEG)
    parts = [shapely.affinity.translate(area, turn).intersection(near) for turn in TURNS]
    fine = shapely.segmentize(shapely.union_all(parts), SEGMENT_DEG)
    to_grid = Transformer.from_crs("EPSG:4326", grid.crs, always_xy=True)
    return shapely.transform(fine, lambda points: np.column_stack(to_grid.transform(*points.T)))


def part(grid: GeoBox, window: Window) -> GeoBox:
    """The grid of a window."""
    transform = grid.transform @ Affine.translation(window.col_off, window.row_off)
    return GeoBox(grid.crs, transform, int(window.height), int(window.width))


def source_window(source: GeoBox, target: GeoBox, window: Window) -> Window:
    """The window of the source grid that a window of the target grid is made of; empty where they do not meet."""
    steps = np.linspace(0, 1, 21)
    cols, rows = np.meshgrid(window.col_off + steps * window.width, window.row_off + steps * window.height)
    to_source = Transformer.from_crs(target.crs, source.crs, always_xy=True)
    cols, rows = ~source.transform @ to_source.transform(*(target.transform @ (cols.ravel(), rows.ravel())))
    # The filter reaches a pixel of the coarser grid, and edges that bend between the points less than that.
    reach = 2 + math.ceil(max(np.ptp(cols) / max(window.width, 1), np.ptp(rows) / max(window.height, 1)))
    left, right = (int(min(max(col, 0), source.width)) for col in (cols.min() - reach, cols.max() + reach))
    top, bottom = (int(min(max(row, 0), source.height)) for row in (rows.min() - reach, rows.max() + reach))
    return Window(left, top, right - left, bottom - top)


def equal_area_crs(grid: GeoBox) -> str:
    """An equal-area CRS around the grid, as a PROJ string: areas in it are square metres of ground."""
    lons, _ = _lonlats(grid, *_middle(grid))
    return f"+proj=cea +lat_ts=30 +lon_0={lons[0]:.0f} +datum=WGS84"


def _outlines(grid: GeoBox, cols: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Polygons in degrees, (count,), from the pixel coordinates of their corners, each (count, corners)."""
    lons, lats = _lonlats(grid, cols, rows)
    polygons = np.asarray(shapely.polygons(np.stack([lons, lats], axis=-1)))
    for number in np.flatnonzero(np.abs(lons).max(axis=-1) > 180):
        turned = [shapely.affinity.translate(polygons[number], turn) for turn in TURNS]
        polygons[number] = shapely.union_all(shapely.clip_by_rect(turned, -180, -90, 180, 90))
    return polygons


def _lonlats(grid: GeoBox, cols: Any, rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """Longitudes and latitudes of points of the grid; longitudes go beyond 180 where the grid does."""
    to_lonlat = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    lons, lats = to_lonlat.transform(*(grid.transform @ (cols, rows)))
    middle, _ = to_lonlat.transform(*(grid.transform @ (grid.width / 2, grid.height / 2)))
    return lons + 360 * np.round((middle - lons) / 360), lats


def _bounds(grid: GeoBox) -> tuple[float, float, float, float]:
    xs, ys = zip(*grid.corners(Window(0, 0, grid.width, grid.height)), strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _middle(grid: GeoBox) -> tuple[Any, Any]:
    """(cols, rows) of three points: the middle of the grid, one pixel to the right of it, and one below it."""
    return grid.width / 2 + np.array([0, 1, 0]), grid.height / 2 + np.array([0, 0, 1])


def _utm(grid: GeoBox) -> str:
    """Code of the UTM zone of the grid's middle, such as EPSG:32636."""
    x, y = grid.transform @ (grid.width / 2, grid.height / 2)
    lon, lat = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True).transform(x, y)
    if not (abs(lon) <= 360 and abs(lat) <= 90):  # true for NaN and infinity too
        raise InputError(f"the transform {grid.transform[:6]} lies outside its CRS, {_name(grid.crs)}")
    zone = math.floor((lon + 180) / 6) % 60 + 1
    return f"EPSG:{(32600 if lat >= 0 else 32700) + zone}"


def _name(crs: str) -> str:
    return str(CRS(crs).name)
