"""A scene's windows and a network, to files of their probabilities, in this process or on workers."""

from collections.abc import Callable, Generator
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from rasterio.windows import Window, intersect, intersection
from shapely.geometry.base import BaseGeometry

from ocmlflow import executors
from ocmlflow.prediction import inference, tile_store
from ocmlflow.probability import Predict
from ocmlflow.progress import Progress, silent
from ocmlflow.scenes import geobox, partial_read, raster, resample, windows
from ocmlflow.scenes.catalog import Scene
from ocmlflow.scenes.geobox import GeoBox
from ocmlflow.scenes.raster import Pixels
from ocmlflow.scenes.windows import Tile

TILES_PER_TASK = 2
"""Windows side by side that one worker predicts at a time: the second is read while the network sees the first."""

CACHE = 64 << 20
"""Bytes of decoded blocks that each process keeps: more than that saves no time."""
PredictFactory = Callable[[], Predict]
"""Gives a predict function, the same one each time in one process; can be sent to another."""


@dataclass(frozen=True)
class MapSettings:
    """How a scene is predicted."""

    gsd: float
    """Metres per pixel that the network was trained at."""
    multiple: int
    """Windows start at multiples of so many pixels: the stride of the network's coarsest features."""
    size: int
    """Pixels along a side of the windows that the network sees."""
    margin: int
    """Context in pixels that is seen but not kept on each side of a window."""
    batch_size: int
    threshold: int
    """Percent of probability from which a pixel is building."""
    min_area_m2: float
    """Smaller footprints are left out; the mask keeps them."""
    chip_gsd: float
    """Metres per pixel of images that do not say where they lie."""
    on_own_grid: bool
    """Whether the results lie on the scene's own grid, else on that which the network saw."""
    aoi: BaseGeometry | None
    """In degrees (lon, lat); what lies outside counts as no imagery."""
    squared: bool
    """Whether footprints are made right-angled."""
    skip_unreadable: bool
    """Whether what cannot be read of a scene counts as no imagery, else it is an error."""


@dataclass(frozen=True)
class TilePlan:
    """Some windows of a scene that are to be predicted, or all of them."""

    scene: Scene
    settings: MapSettings
    placed: bool
    """Whether the scene says where on earth it lies."""
    own: GeoBox
    """The scene's own."""
    ground: GeoBox
    """What the network sees."""
    kept: Path
    """Folder of what is predicted: a file for each tile."""
    tiles: list[Tile]


def plan(scene: Scene, folder: Path, *, settings: MapSettings) -> TilePlan:
    """All windows of a scene, whose results are to lie under `folder`; InputError where it cannot be opened."""
    with raster.open_scene(scene.image, gsd=settings.chip_gsd, cache=CACHE) as (dataset, own):
        ground, placed = geobox.utm_grid(own, gsd=settings.gsd), raster.is_georeferenced(dataset)
    how = {"size": settings.size, "margin": settings.margin, "multiple": settings.multiple}
    tiles = windows.tiles(ground.height, ground.width, **how)
    return TilePlan(scene, settings, placed, own, ground, folder / f"{scene.id}-tiles", tiles)


def split(whole: TilePlan) -> list[TilePlan]:
    """The windows of a scene in parts, by rows, each for one worker at a time."""
    count = max(whole.settings.batch_size, TILES_PER_TASK)
    return [replace(whole, tiles=whole.tiles[first : first + count]) for first in range(0, len(whole.tiles), count)]


def predict(
    part: TilePlan, network: PredictFactory, progress: Progress
) -> Generator[tuple[Tile, list[Window]], None, None]:
    """Predict the tiles that are not kept yet; gives each, and what of it cannot be read, when its file is whole."""
    settings = part.settings
    spoilt: dict[Any, list[Window]] = {tile.window.toranges(): [] for tile in part.tiles}
    inside = area_filter(part.ground, settings.aoi)

    def seen(window: Window) -> Pixels:
        if not inside(window):
            shape = (int(window.height), int(window.width))
            return Pixels(np.zeros((*shape, 3), np.uint8), np.zeros(shape, bool))
        if settings.skip_unreadable:
            pixels, spoilt[window.toranges()] = partial_read.read_pixels(read, window)
            return pixels
        return read(window)

    part.kept.mkdir(parents=True, exist_ok=True)
    todo = tile_store.missing(part.kept, part.tiles)
    if not todo:
        return
    with (
        raster.open_scene(part.scene.image, gsd=settings.chip_gsd, cache=CACHE) as (dataset, own),
        resample.window_reader(dataset, own, part.ground) as read,
        # Closed before the dataset is, which its thread may be reading.
        closing(inference.predict_tiles(network(), seen, todo, batch_size=settings.batch_size)) as found,
    ):
        for tile, probability, valid in progress(found, len(todo)):
            # Of the core alone, so that what counts as read does not depend on which window is read first.
            holes = [intersection(h, tile.core) for h in spoilt[tile.window.toranges()] if intersect(h, tile.core)]
            for hole in holes:
                _hole(part.kept, hole).touch()
            tile_store.write(part.kept, tile, probability, valid)
            yield tile, holes


def predict_on_workers(
    whole: TilePlan, network: PredictFactory, progress: Progress, executor: Executor
) -> Generator[tuple[Tile, list[Window]], None, None]:
    """The same on workers, which see the plan's folder: the tiles as they come."""
    left = [run for run in split(whole) if tile_store.missing(whole.kept, run.tiles)]
    done = executors.map_unordered(executor, partial(predict_all, network=network), left)
    with closing(done):
        for tiles in progress(done, len(left)):
            yield from tiles


def predict_all(part: TilePlan, network: PredictFactory) -> list[tuple[Tile, list[Window]]]:
    """Predict all tiles that are not kept yet."""
    return list(predict(part, network, silent))


def unreadable_windows(whole: TilePlan) -> list[Window]:
    """What of the tiles that are kept could not be read."""
    return [Window(*map(int, path.stem.split("-"))) for path in sorted(whole.kept.glob("*.hole"))]


def area_filter(of: GeoBox, aoi: BaseGeometry | None) -> Callable[[Window], bool]:
    """Whether a window of the grid meets the area of interest."""
    if aoi is None:
        return lambda window: True
    area = geobox.project_area(aoi, of)
    shapely.prepare(area)
    return lambda window: bool(area.intersects(shapely.Polygon(of.corners(window))))


def _hole(kept: Path, window: Window) -> Path:
    return kept / f"{window.col_off}-{window.row_off}-{window.width}-{window.height}.hole"
