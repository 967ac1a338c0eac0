"""A scene, before any chip of it is cut, to its grid, its footprints and where it has imagery at all."""

from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from rasterio.io import DatasetReader
from rasterio.windows import Window
from scipy import ndimage
from skimage.measure import label as connected

from ocmlflow.chips import footprints
from ocmlflow.chips.footprints import LabelFootprints
from ocmlflow.errors import InputError
from ocmlflow.scenes import geobox, raster, resample
from ocmlflow.scenes.catalog import Scene
from ocmlflow.scenes.geobox import GeoBox

COARSE_M = 1.0
"""Metres per pixel of the overview that is looked at, or coarser where that is more than MAX_SIDE pixels."""
MAX_SIDE = 2048
MAX_BLACK = 10
"""No channel of what is black is above this."""


@dataclass(frozen=True)
class Overview:
    """A scene at a glance: one coarse pixel stands for `factor` x `factor` pixels of its grid."""

    factor: int
    imagery: np.ndarray
    """(rows, cols) bool: whether there is imagery."""
    black: np.ndarray
    """(rows, cols) bool: opaque black that is no imagery, and what lies next to it; looked at pixel by pixel later."""


@dataclass(frozen=True)
class SceneSurvey:
    """What is known of a scene before it is cut."""

    scene: Scene
    grid: GeoBox
    """That its chips are cut on."""
    native_gsd: float
    """Metres per pixel of the image as it is."""
    footprints: LabelFootprints
    """In the CRS of the grid."""
    outside: int
    """Footprints whose middle lies on no imagery."""
    overview: Overview


def survey(
    scene: Scene, *, gsd: float, black_m2: float, bbox: tuple[float, float, float, float] | None
) -> SceneSurvey | None:
    """What is known of a labelled scene; None where it lies outside `bbox` (west, south, east, north in degrees).

    Opaque black in one piece of at least `black_m2` square metres is taken for no imagery. Reads the header of the
    image, its smallest overview that is fine enough, and the labels. Raises InputError where it cannot be cut.
    """
    with raster.open_scene(scene.image) as (dataset, own):
        grid = geobox.utm_grid(own, gsd=gsd)
        whole = Window(0, 0, grid.width, grid.height)
        if bbox and not geobox.outline(grid, whole).intersects(shapely.box(*bbox)):
            return None
        found = footprints.read(scene, grid.crs)
        _check_on_image(scene, grid, found)
        raster.warn_of_doubtful_alpha(dataset)
        overview = _overview(dataset, own, grid, black_m2)
    return SceneSurvey(scene, grid, geobox.gsd(own), found, _outside(found, grid, overview), overview)


def black_fill(overview: Overview, image: np.ndarray, window: Window) -> np.ndarray | None:
    """(height, width) bool: pixels of a window of the grid that are part of a large black area; None for none."""
    rows = np.arange(int(window.row_off), int(window.row_off + window.height)) // overview.factor
    cols = np.arange(int(window.col_off), int(window.col_off + window.width)) // overview.factor
    inside = np.outer((rows >= 0) & (rows < overview.black.shape[0]), (cols >= 0) & (cols < overview.black.shape[1]))
    near = overview.black[np.ix_(rows.clip(0, len(overview.black) - 1), cols.clip(0, overview.black.shape[1] - 1))]
    near = near & inside
    return near & (image.max(axis=-1) <= MAX_BLACK) if near.any() else None


def _check_on_image(scene: Scene, grid: GeoBox, found: LabelFootprints) -> None:
    extent = shapely.Polygon(grid.corners(Window(0, 0, grid.width, grid.height)))
    if len(found.polygons) and not shapely.intersects(found.polygons, extent).any():
        raise InputError(
            f"none of the {len(found.polygons)} footprints of scene {scene.id} lies on its image: "
            f"check that {scene.labels[0]} belongs to {scene.image} and that its CRS is the one it names"
        )


def _overview(dataset: DatasetReader, own: GeoBox, grid: GeoBox, black_m2: float) -> Overview:
    gsd = grid.transform.a
    factor = max(1, round(COARSE_M / gsd), -(-max(grid.height, grid.width) // MAX_SIDE))
    height, width = -(-grid.height // factor), -(-grid.width // factor)
    coarse = GeoBox(grid.crs, grid.transform @ Affine.scale(factor), height, width)
    with resample.window_reader(dataset, own, coarse) as read:
        pixels = read(Window(0, 0, width, height))
    black = np.zeros_like(pixels.valid)
    if black_m2:
        pieces = connected(pixels.valid & (pixels.image.max(axis=-1) <= MAX_BLACK), connectivity=1)
        large = np.bincount(pieces.ravel()) * (factor * gsd) ** 2 >= black_m2
        large[0] = False
        black = large[pieces]
    next_to = ndimage.binary_dilation(black, np.ones((3, 3))) if black.any() else black
    return Overview(factor, pixels.valid & ~black, next_to)


def _outside(found: LabelFootprints, grid: GeoBox, overview: Overview) -> int:
    if not len(found.polygons):
        return 0
    middles = shapely.point_on_surface(found.polygons)
    cols, rows = ~grid.transform @ (shapely.get_x(middles), shapely.get_y(middles))
    row, col = (np.floor(values / overview.factor).astype(int) for values in (rows, cols))
    height, width = overview.imagery.shape
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    return int((~(inside & overview.imagery[row.clip(0, height - 1), col.clip(0, width - 1)])).sum())
