"""A scene and a predict function, to files that a GIS opens and footprints that a map editor accepts."""

from dataclasses import dataclass
from datetime import datetime

from rasterio.windows import Window

from ocmlflow.errors import InputError
from ocmlflow.prediction import scene_tiles
from ocmlflow.prediction.scene_tiles import CACHE, MapSettings
from ocmlflow.scenes import geobox, raster
from ocmlflow.scenes.catalog import Scene
from ocmlflow.scenes.geobox import GeoBox

MAX_GSD_RATIO = 20
"""Times the network's pixels that a scene's may be long: of 2 m for one of 0.1 m, where a house is a few of them."""


@dataclass(frozen=True)
class SceneCheck:
    """What is known of a scene before it is predicted."""

    placed: bool
    """Whether it says where on earth it lies."""
    height: int
    width: int
    inside: bool
    """Whether it meets the area of interest."""
    acquired: datetime | None
    """When, as its catalogue or else its file says."""


def check(scene: Scene, *, settings: MapSettings) -> SceneCheck:
    """What is known of a scene before it is predicted; InputError where it cannot be."""
    with raster.open_scene(scene.image, gsd=settings.chip_gsd, cache=CACHE) as (dataset, own):
        if (metres := geobox.gsd(own)) > MAX_GSD_RATIO * settings.gsd:
            raise InputError(
                f"image {scene.image} has pixels of {metres:.3g} m, over {MAX_GSD_RATIO} times the "
                f"{settings.gsd:g} m of the model, which would know no building there: "
                "finer imagery would do, or a model of coarser imagery"
            )
        raster.warn_of_doubtful_alpha(dataset)
        ground = geobox.utm_grid(own, gsd=settings.gsd)
        placed = raster.is_georeferenced(dataset)
        if settings.aoi is not None and not placed:
            raise InputError(f"image {scene.image} does not say where it lies, so that no area of interest limits it")
        if not (settings.on_own_grid or placed or own == ground):
            raise InputError(
                f"image {scene.image} does not say where it lies, so that its mask is of its own pixels, of "
                f"{settings.chip_gsd} m, not of the model's, of {settings.gsd} m: leave out grid=model"
            )
        inside = scene_tiles.area_filter(own, settings.aoi)(whole_window(own))
        return SceneCheck(placed, own.height, own.width, inside, scene.acquired or raster.acquired(dataset))


def whole_window(of: GeoBox) -> Window:
    """The window of all pixels of a grid."""
    return Window(0, 0, of.width, of.height)
