"""Predicts the tiles of a scene, in this process or on workers, and keeps each in a file of its own."""

import logging
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import shapely
from rasterio.windows import Window, intersect, intersection
from shapely.geometry.base import BaseGeometry

from ocmlflow import executors
from ocmlflow.prediction import inference, tile_store
from ocmlflow.probability import Predict
from ocmlflow.progress import Progress, silent
from ocmlflow.scenes import geobox, georeference, inspection, partial_read, raster, resample, windows
from ocmlflow.scenes.catalog import Scene
from ocmlflow.scenes.geobox import GeoBox
from ocmlflow.scenes.raster import Pixels
from ocmlflow.scenes.reading_rules import ReadingRules
from ocmlflow.scenes.resample import ReadWindow
from ocmlflow.scenes.stretching import Stretch
from ocmlflow.scenes.windows import Tile

log = logging.getLogger(__name__)

TILES_PER_TASK = 2
"""Least number of tiles in one task of a worker: the second is read while the network runs on the first."""
CACHE = 64 << 20
"""Bytes of decoded image blocks that each process caches; more saves no time."""
PredictFactory = Callable[[], Predict]
"""Returns a predict function, the same one each time in one process; can be sent to another process."""


@dataclass(frozen=True)
class MapSettings:
    """How a scene is predicted."""

    gsd: float
    """Ground resolution of the model, in metres per pixel."""
    multiple: int
    """Tiles start at multiples of so many pixels, the stride of the network's coarsest features."""
    size: int
    """Largest side of the windows that the network sees, in pixels."""
    margin: int
    """Context on each side of a window that the network sees and the map does not use, in pixels."""
    batch_size: int
    """Windows that the network sees at once."""
    threshold: int
    """A pixel of at least this probability, in percent, is building."""
    min_area_m2: float
    """Smaller footprints are left out; the mask keeps them."""
    min_hole_m2: float
    """Smaller holes of footprints are filled; the mask keeps them."""
    chip_gsd: float
    """Assumed resolution of images without a georeference, in metres per pixel."""
    on_own_grid: bool
    """Whether the map lies on the scene's own grid; otherwise on the model's."""
    aoi: BaseGeometry | None
    """Area of interest, in degrees (lon, lat): what lies outside counts as no imagery. None is everywhere."""
    collar_m2: float
    """Areas of one colour at the edge count as no imagery from so many square metres on; 0 keeps them."""
    stretch: Stretch | None
    """Brings images of other than 8 bits to 0 to 255."""
    separate: bool
    """Whether buildings that touch are told apart; otherwise they are one footprint."""
    instances: bool
    """Whether a raster of the footprint at each pixel is written."""
    outline: str
    """Style of the footprints, one of `ground_outlines.OUTLINES`."""
    skip_unreadable: bool
    """Whether unreadable parts of a scene count as no imagery; otherwise they are an error."""


@dataclass(frozen=True)
class TilePlan:
    """The tiles of a scene that are to be predicted, all of them or a part."""

    scene: Scene
    """The scene that is predicted."""
    settings: MapSettings
    """How it is predicted."""
    rules: ReadingRules
    """How the image is read."""
    is_georeferenced: bool
    """Whether the image has a CRS and a transform."""
    own_grid: GeoBox
    """Pixel grid of the scene itself."""
    model_grid: GeoBox
    """Pixel grid that the network sees, in the scene's UTM zone at the model's resolution; tiles lie in it."""
    tile_folder: Path
    """Folder of the predicted tiles."""
    tiles: list[Tile]
    """Tiles of the model grid, row by row."""


def plan(scene: Scene, folder: Path, *, settings: MapSettings) -> TilePlan:
    """All tiles of a scene, to be kept in a folder under `folder`; InputError if the scene cannot be opened."""
    with raster.open_scene(
        scene.image, gsd=settings.chip_gsd, band_names=scene.bands, stretch=settings.stretch, cache=CACHE
    ) as (image, own_grid):
        is_georeferenced = georeference.is_georeferenced(image.dataset)
        model_grid = geobox.utm_grid(own_grid, gsd=settings.gsd)
        rules = inspection.inspect(image, own_grid, [model_grid], collar_m2=settings.collar_m2).rules
    for note in rules.notes:
        log.warning("scene %s: %s", scene.id, note)
    tiles = windows.tiles(
        model_grid.height,
        model_grid.width,
        size=settings.size,
        margin=settings.margin,
        multiple=settings.multiple,
    )
    tile_folder = folder / f"{scene.id}-tiles"
    return TilePlan(scene, settings, rules, is_georeferenced, own_grid, model_grid, tile_folder, tiles)


def split(plan: TilePlan) -> list[TilePlan]:
    """A plan in parts of a few neighbouring tiles, each one task for a worker."""
    count = max(plan.settings.batch_size, TILES_PER_TASK)
    return [replace(plan, tiles=plan.tiles[first : first + count]) for first in range(0, len(plan.tiles), count)]


def predict(
    plan: TilePlan, network: PredictFactory, progress: Progress
) -> Generator[tuple[Tile, list[Window]], None, None]:
    """Predict the tiles of a plan that are not kept yet, and keep each in a file.

    Gives each tile once its file is complete, with the windows of the model grid in it that could not be read.
    """
    plan.tile_folder.mkdir(parents=True, exist_ok=True)
    missing = tile_store.missing(plan.tile_folder, plan.tiles)
    if not missing:
        return
    settings = plan.settings
    with (
        raster.open_scene(plan.scene.image, gsd=settings.chip_gsd, rules=plan.rules, cache=CACHE) as (image, own_grid),
        resample.window_reader(image, own_grid, plan.model_grid) as read,
    ):
        reader = _TileReader(read, plan)
        # Closed before the dataset, which its thread may be reading.
        with closing(
            inference.predict_tiles(network(), reader.read, missing, batch_size=settings.batch_size)
        ) as predictions:
            for prediction in progress(predictions, len(missing)):
                unreadable = reader.unreadable_in(prediction.tile)
                for window in unreadable:
                    _mark_unreadable(plan.tile_folder, window)
                tile_store.write(plan.tile_folder, prediction)
                yield prediction.tile, unreadable


def predict_on_workers(
    plan: TilePlan, network: PredictFactory, progress: Progress, executor: Executor
) -> Generator[tuple[Tile, list[Window]], None, None]:
    """The same as `predict` on the workers of an executor, which must see the tile folder; tiles come in any order."""
    parts = [part for part in split(plan) if tile_store.missing(plan.tile_folder, part.tiles)]
    results = executors.map_unordered(executor, partial(predict_all, network=network), parts)
    with closing(results):
        for tiles in progress(results, len(parts)):
            yield from tiles


def predict_all(plan: TilePlan, network: PredictFactory) -> list[tuple[Tile, list[Window]]]:
    """Predict all tiles of a plan that are not kept yet; returns what `predict` gives."""
    return list(predict(plan, network, silent))


def unreadable_windows(plan: TilePlan) -> list[Window]:
    """Windows of the model grid that could not be read for the tiles that are kept."""
    return [Window(*map(int, path.stem.split("-"))) for path in sorted(plan.tile_folder.glob("*.hole"))]


def area_filter(grid: GeoBox, aoi: BaseGeometry | None) -> Callable[[Window], bool]:
    """A function that tells whether a window of the grid meets the area of interest."""
    if aoi is None:
        return lambda window: True
    area = geobox.project_area(aoi, grid)
    shapely.prepare(area)
    return lambda window: bool(area.intersects(shapely.Polygon(grid.corners(window))))


class _TileReader:
    """Reads the windows of a plan, without what lies outside the area of interest or cannot be read."""

    def __init__(self, read: ReadWindow, plan: TilePlan) -> None:
        self._read = read
        self._meets_area = area_filter(plan.model_grid, plan.settings.aoi)
        self._skip_unreadable = plan.settings.skip_unreadable
        self._unreadable: dict[Window, list[Window]] = {}

    def read(self, window: Window) -> Pixels:
        """Pixels of a window of the model grid; not valid where there is nothing to predict."""
        if not self._meets_area(window):
            shape = (int(window.height), int(window.width))
            return Pixels(np.zeros((*shape, 3), np.uint8), np.zeros(shape, bool))
        if not self._skip_unreadable:
            return self._read(window)
        pixels, self._unreadable[window] = partial_read.read_pixels(self._read, window)
        return pixels

    def unreadable_in(self, tile: Tile) -> list[Window]:
        """The unreadable windows of a tile that was read, cut to its core."""
        # Only the core, so that the result does not depend on which of two overlapping windows is read first.
        parts = self._unreadable.pop(tile.window, [])
        return [intersection(part, tile.core) for part in parts if intersect(part, tile.core)]


def _mark_unreadable(tile_folder: Path, window: Window) -> None:
    """Note an unreadable window in the name of an empty file, for `unreadable_windows`."""
    (tile_folder / f"{window.col_off}-{window.row_off}-{window.width}-{window.height}.hole").touch()
