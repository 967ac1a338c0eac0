"""Checks a scene before it is predicted: resolution, georeference, area of interest."""

import logging
from dataclasses import dataclass
from datetime import datetime

from rasterio.windows import Window

from ocmlflow.errors import InputError
from ocmlflow.prediction import scene_tiles
from ocmlflow.prediction.scene_tiles import CACHE, MapSettings
from ocmlflow.redaction import redact
from ocmlflow.scenes import geobox, georeference, raster
from ocmlflow.scenes.catalog import Scene
from ocmlflow.scenes.geobox import GeoBox

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SceneCheck:
    """What is known of a scene before it is predicted."""

    is_georeferenced: bool
    """Whether the image has a CRS and a transform, its own or a sidecar's."""
    height: int
    """Pixels of the image."""
    width: int
    """Pixels of the image."""
    inside: bool
    """Whether the scene meets the area of interest."""
    acquired: datetime | None
    """Time of acquisition from the catalogue, or else from the file; None if neither states it."""


def check(scene: Scene, *, settings: MapSettings) -> SceneCheck:
    """What is known of a scene before it is predicted.

    Raises InputError if the scene cannot be opened, is too coarse or fine for the model, or has no georeference where
    the settings need one. Warns of a datum that is not known.
    """
    with raster.open_scene(
        scene.image, gsd=settings.chip_gsd, band_names=scene.bands, stretch=settings.stretch, cache=CACHE
    ) as (image, own_grid):
        is_georeferenced = georeference.is_georeferenced(image.dataset)
        georeference.check_resolution(own_grid, scene.image, gsd=settings.gsd, seen_by="the model")
        if not is_georeferenced:
            _check_without_georeference(scene, own_grid, settings)
        middle = own_grid.transform @ (own_grid.width / 2, own_grid.height / 2)
        if doubt := geobox.place_doubt(own_grid.crs, "EPSG:4326", *middle):
            log.warning("image %s: %s", redact(scene.image), doubt)
        return SceneCheck(
            is_georeferenced=is_georeferenced,
            height=own_grid.height,
            width=own_grid.width,
            inside=scene_tiles.area_filter(own_grid, settings.aoi)(whole_window(own_grid)),
            acquired=scene.acquired or raster.acquired(image),
        )


def whole_window(grid: GeoBox) -> Window:
    """The window of all pixels of a grid."""
    return Window(0, 0, grid.width, grid.height)


def _check_without_georeference(scene: Scene, own_grid: GeoBox, settings: MapSettings) -> None:
    """Raise InputError if the settings need a georeference, which this image lacks."""
    if settings.aoi is not None:
        raise InputError(f"image {scene.image} has no georeference, so aoi= cannot be applied to it: leave out aoi=")
    if not settings.on_own_grid and own_grid != geobox.utm_grid(own_grid, gsd=settings.gsd):
        raise InputError(
            f"image {scene.image} has no georeference, so its mask has its own pixels of {settings.chip_gsd} m, not "
            f"the model's of {settings.gsd} m: leave out grid=model"
        )
