"""Where the pixels of a raster lie: grids on the ground, their resolution and outlines."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from affine import Affine
from pyproj import CRS, Geod, Transformer
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from shapely import Polygon

from ocmlflow.errors import InputError


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a raster lie."""

    crs: str
    """As WKT, or an authority's code."""
    transform: Affine
    """From pixel (col, row) to (x, y) of the CRS."""
    height: int
    width: int

    def corners(self, window: Window) -> list[tuple[float, float]]:
        """(x, y) of the window's corners, clockwise from the first pixel's."""
        left, upper, right, lower = (
            window.col_off,
            window.row_off,
            window.col_off + window.width,
            window.row_off + window.height,
        )
        return [self.transform @ corner for corner in ((left, upper), (right, upper), (right, lower), (left, lower))]


def gsd(grid: Grid) -> float:
    """Metres of ground per pixel in the middle of the grid, along the ellipsoid.

    From the ground and not from the transform: two scenes of the challenge are filed in a UTM zone far from their
    own, where pixels are not as long as their transform says.
    """
    to_lonlat = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    lons, lats = to_lonlat.transform(*_middle(grid))
    _, _, metres = Geod(ellps="WGS84").inv([lons[0]] * 2, [lats[0]] * 2, lons[1:], lats[1:])
    return math.sqrt(metres[0] * metres[1])


def shrinking(own: Grid, target: Grid) -> tuple[float, float]:
    """Pixels of the target per pixel of `own` along its rows and its columns, in its middle; 1 where that is more."""
    to_target = Transformer.from_crs(own.crs, target.crs, always_xy=True)
    cols, rows = ~target.transform @ to_target.transform(*_middle(own))
    across, down = np.hypot(cols[1:] - cols[0], rows[1:] - rows[0]).clip(max=1)
    return float(across), float(down)


def ground_grid(own: Grid, *, gsd: float) -> Grid:
    """Grid of square pixels of `gsd` metres over all of `own`, north up in the UTM zone of its middle.

    Its corners are whole multiples of `gsd`, so that scenes of one zone share one grid.
    """
    crs = _utm(own)
    left, bottom, right, top = transform_bounds(own.crs, crs, *_bounds(own), densify_pts=21)
    first_col, first_row = math.floor(left / gsd + 1e-6), math.floor(-top / gsd + 1e-6)
    width = max(math.ceil(right / gsd - 1e-6) - first_col, 1)
    height = max(math.ceil(-bottom / gsd - 1e-6) - first_row, 1)
    return Grid(crs, Affine(gsd, 0, first_col * gsd, 0, -gsd, -first_row * gsd), height, width)


def outline(grid: Grid, window: Window) -> Polygon:
    """The window's outline in degrees (lon, lat)."""
    to_lonlat = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    xs, ys = zip(*grid.corners(window), strict=True)
    return Polygon(zip(*to_lonlat.transform(xs, ys), strict=True))


def outlines(grid: Grid, rows: np.ndarray, cols: np.ndarray, *, size: int) -> np.ndarray:
    """(count,) polygons in degrees (lon, lat): the outlines of square windows by their first row and column."""
    xs, ys = grid.transform @ (
        cols[:, np.newaxis] + np.array([0, size, size, 0]),
        rows[:, np.newaxis] + np.array([0, 0, size, size]),
    )
    lons, lats = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True).transform(xs, ys)
    return np.asarray(shapely.polygons(np.stack([lons, lats], axis=-1)))


def _middle(grid: Grid) -> tuple[Any, Any]:
    """(x, y) of the middle of the grid, of the point a pixel along its row, and of that a pixel down its column."""
    cols: Any = grid.width / 2 + np.array([0, 1, 0])
    rows: Any = grid.height / 2 + np.array([0, 0, 1])
    return grid.transform @ (cols, rows)


def _bounds(grid: Grid) -> tuple[float, float, float, float]:
    xs, ys = zip(*grid.corners(Window(0, 0, grid.width, grid.height)), strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _utm(grid: Grid) -> str:
    """The UTM zone of the grid's middle; the grid's own CRS where that is this zone already."""
    x, y = grid.transform @ (grid.width / 2, grid.height / 2)
    lon, lat = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True).transform(x, y)
    if not (abs(lon) <= 360 and abs(lat) <= 90):  # NaN and infinity included
        raise InputError(f"the transform {grid.transform[:6]} lies outside its CRS, {CRS(grid.crs).name}")
    zone = math.floor((lon + 180) / 6) % 60 + 1
    return f"EPSG:{(32600 if lat >= 0 else 32700) + zone}"
