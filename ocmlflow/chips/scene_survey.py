"""Surveys a scene before it is cut: its grid, its footprints, and where it shows imagery."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import shapely
from affine import Affine
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from ocmlflow.chips import footprints, labels
from ocmlflow.chips.footprints import LabelFootprints
from ocmlflow.chips.label_files import State
from ocmlflow.chips.label_table import LabelTable
from ocmlflow.errors import InputError
from ocmlflow.scenes import geobox, georeference, inspection, raster, resample
from ocmlflow.scenes.catalog import Scene
from ocmlflow.scenes.geobox import GeoBox
from ocmlflow.scenes.raster import SceneImage
from ocmlflow.scenes.reading_rules import ReadingRules
from ocmlflow.scenes.stretching import Stretch

COARSE_M = 1.0
"""Resolution of the overview, in metres per pixel; coarser where its side would have more than MAX_SIDE pixels."""
MAX_SIDE = 2048
MOST = 0.5
"""A footprint that covers a larger share of a scene's imagery is doubted."""


@dataclass(frozen=True)
class Overview:
    """A coarse view of a scene."""

    factor: int
    """Pixels of the scene's grid along a side of a coarse pixel."""
    imagery: np.ndarray
    """(rows, cols) bool: where there is imagery."""


@dataclass(frozen=True)
class SceneSurvey:
    """What is known of a scene before it is cut."""

    scene: Scene
    grid: GeoBox
    """Target grid of the chips, in the scene's UTM zone."""
    labelled: BaseGeometry | None
    """The ground that was labelled, in the CRS of the grid; None where all of it was."""
    native_gsd: float
    """Metres per pixel of the image itself."""
    footprints: LabelFootprints
    """In the CRS of the grid."""
    overview: Overview
    """Where the scene shows imagery."""
    rules: ReadingRules
    """How its image is read."""
    remarks: tuple[str, ...]
    """What is odd about the scene, for a log."""


def survey(
    scene: Scene,
    *,
    gsd: float,
    collar_m2: float,
    stretch: Stretch | None = None,
    bbox: tuple[float, float, float, float] | None = None,
    aoi: BaseGeometry | None = None,
    layer: str | None = None,
    where: str | None = None,
    tables: Mapping[str, LabelTable] | None = None,
) -> SceneSurvey | None:
    """Survey of a labelled scene; None where it lies outside `bbox` (west, south, east, north) or `aoi`, in degrees.

    Areas of one colour at the edge of the imagery count as no imagery from `collar_m2` square metres on (see
    `collars.find`); 0 keeps them. `stretch` brings images of other than 8 bits to 0 to 255. What lies outside `aoi`,
    the ground that was labelled, counts as no imagery. `layer`, `where` and `tables` are those of `footprints.read`.
    Reads the image's header, its smallest overview that is fine enough, and the labels. Raises InputError for an image
    or labels that cannot be read or do not fit each other.
    """
    with raster.open_scene(scene.image, band_names=scene.bands, stretch=stretch) as (image, own):
        georeference.check_resolution(own, scene.image, gsd=gsd, seen_by="the chips")
        grid = geobox.utm_grid(own, gsd=gsd)
        full_window = Window(0, 0, grid.width, grid.height)
        extent = shapely.Polygon(grid.corners(full_window))
        area = None if aoi is None else geobox.project_area(aoi, grid)
        if bbox and not geobox.outline(grid, full_window).intersects(shapely.box(*bbox)):
            return None
        if area is not None and not area.intersects(extent):
            return None
        drawn = footprints.read(scene, grid.crs, extent=extent, layer=layer, where=where, tables=tables or {})
        doubt = geobox.place_doubt(own.crs, grid.crs, *(own.transform @ (own.width / 2, own.height / 2)))
        _check_on_image(scene, extent, drawn, doubt)
        coarse = _coarse_grid(grid)
        image = inspection.inspect(image, own, [grid, coarse], collar_m2=collar_m2)
        overview = _overview(image, own, coarse, grid)
    if area is not None:
        overview = replace(overview, imagery=overview.imagery & _meets(area, grid, overview))
    drawn = _mark_outside(drawn, grid, overview)
    remarks = [*image.rules.notes, *([f"image {scene.image}: {doubt}"] if doubt else [])]
    remarks += [*drawn.remarks, *_coverage_doubts(drawn, grid, overview), *_outside_remarks(drawn)]
    return SceneSurvey(scene, grid, area, geobox.gsd(own), drawn, overview, image.rules, tuple(remarks))


def _check_on_image(scene: Scene, extent: shapely.Polygon, drawn: LabelFootprints, doubt: str) -> None:
    """Raise InputError where a scene has footprints, but none on its image, of whose place there may be a doubt."""
    if len(drawn.polygons) and not shapely.intersects(drawn.polygons, extent).any():
        raise InputError(
            f"none of the {len(drawn.polygons)} footprints of scene {scene.id} lies on its image: "
            f"check that {scene.labels[0]} belongs to {scene.image} and that its CRS is the one it names"
            + (f"; {doubt}" if doubt else "")
        )


def _coarse_grid(grid: GeoBox) -> GeoBox:
    """The grid of a scene's overview."""
    factor = max(1, round(COARSE_M / grid.transform.a), -(-max(grid.height, grid.width) // MAX_SIDE))
    return GeoBox(grid.crs, grid.transform @ Affine.scale(factor), -(-grid.height // factor), -(-grid.width // factor))


def _overview(image: SceneImage, own: GeoBox, coarse: GeoBox, grid: GeoBox) -> Overview:
    """Overview, on the grid `coarse`, of a scene whose chips are cut on `grid`."""
    with resample.window_reader(image, own, coarse) as read:
        pixels = read(Window(0, 0, coarse.width, coarse.height))
    return Overview(round(coarse.transform.a / grid.transform.a), pixels.valid)


def _meets(area: BaseGeometry, grid: GeoBox, overview: Overview) -> np.ndarray:
    """(rows, cols) bool: coarse pixels of the overview that an area in the CRS of the grid touches."""
    height, width = overview.imagery.shape
    coarse = grid.transform @ Affine.scale(overview.factor)
    near = area.buffer(overview.factor * grid.transform.a)  # half a pixel's diagonal and more: no chip is missed
    return labels.rasterize([near], coarse, height=height, width=width) > 0


def _mark_outside(drawn: LabelFootprints, grid: GeoBox, overview: Overview) -> LabelFootprints:
    """The same footprints; the features of which no polygon has its middle on imagery get the state OUTSIDE."""
    if not len(drawn.polygons):
        return drawn
    middles = shapely.point_on_surface(drawn.polygons)
    cols, rows = ~grid.transform @ (shapely.get_x(middles), shapely.get_y(middles))
    row, col = (np.floor(values / overview.factor).astype(int) for values in (rows, cols))
    height, width = overview.imagery.shape
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    on_imagery = inside & overview.imagery[row.clip(0, height - 1), col.clip(0, width - 1)]
    states = drawn.states.copy()
    states[np.setdiff1d(drawn.features, drawn.features[on_imagery])] = State.OUTSIDE
    return replace(drawn, states=states)


def _outside_remarks(drawn: LabelFootprints) -> list[str]:
    outside = drawn.count(State.OUTSIDE)
    return [f"{outside} of {drawn.drawn} features lie on no imagery"] if outside else []


def _coverage_doubts(drawn: LabelFootprints, grid: GeoBox, overview: Overview) -> list[str]:
    """A remark about the footprint that covers most of the imagery, if there is one."""
    pixel_m2 = (overview.factor * grid.transform.a) ** 2
    imagery = np.count_nonzero(overview.imagery)
    coarse = grid.transform @ Affine.scale(overview.factor)
    height, width = overview.imagery.shape
    for polygon in drawn.polygons[shapely.area(drawn.polygons) > MOST * imagery * pixel_m2]:
        covered = np.count_nonzero(
            overview.imagery & (labels.rasterize([polygon], coarse, height=height, width=width) > 0)
        )
        if covered > MOST * imagery:
            return [
                f"one footprint covers {covered / imagery:.0%} of the imagery ({covered * pixel_m2:.0f} m2), as an "
                "outline of the imagery, of land use or of the labelled ground does; if it is no building, leave it "
                "out of the labels, say with where="
            ]
    return []
