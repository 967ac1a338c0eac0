"""A scene and a predict function, to files that a GIS opens and footprints that a map editor accepts."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
from rasterio.enums import Resampling

from ocmlflow import grid, inference, metrics, pictures, polygons, raster
from ocmlflow.catalog import Scene

NODATA = 255
"""In both rasters, where the scene has no imagery."""
BLOCK = 4 * raster.TILE
"""Side of what is held in memory of a scene's own grid, in pixels."""
OVERVIEW = 1000
EQUAL_AREA = "EPSG:6933"
"""Areas are true square metres in it, wherever on earth and whatever the scene's CRS."""


@dataclass(frozen=True)
class Settings:
    """How a scene is predicted."""

    gsd: float
    """Metres per pixel that the network was trained at."""
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


@dataclass(frozen=True)
class Map:
    """What was predicted for one scene, on its own grid."""

    probability: Path
    """GeoTIFF, uint8: percent, rounded down, 255 where there is no imagery; cloud-optimized if georeferenced."""
    mask: Path
    """GeoTIFF, uint8: 1 building, 0 not, 255 where there is no imagery (0 for an image without a georeference)."""
    footprints: gpd.GeoDataFrame | None
    """Columns scene, probability, area_m2, geometry, in the scene's CRS; None without a georeference."""
    pixels: int
    """Pixels with imagery."""
    buildings: int
    """Pixels of them that are building."""


def check(scene: Scene, *, settings: Settings) -> tuple[bool, int, int]:
    """Whether a scene says where it lies, its height and its width; InputError where it cannot be predicted."""
    with raster.opened(scene.image, gsd=settings.chip_gsd) as (dataset, own):
        raster.ground_grid(own, gsd=settings.gsd)
        return raster.is_placed(dataset), own.height, own.width


def overview(scene: Scene, made: Map) -> np.ndarray:
    """One picture of two, of at most OVERVIEW pixels a side: the scene, and the same with what is building."""
    with raster.opened(scene.image, gsd=1.0) as (dataset, own):
        shrink = max(1.0, max(own.height, own.width) / OVERVIEW)
        shape = (max(1, round(own.height / shrink)), max(1, round(own.width / shrink)))
        image = np.moveaxis(dataset.read([1, 2, 3], out_shape=(3, *shape)), 0, -1)
    with raster.reopened(made.mask) as mask:
        found = mask.read(1, out_shape=shape)
    return pictures.sheet([[image, pictures.tinted(image, found == 1)]])


def draw(
    scene: Scene, predict: inference.Predict, folder: Path, *, settings: Settings, progress: inference.Progress
) -> Map:
    """Predict a scene of any size and write its rasters under `folder`.

    The scene is warped to the network's resolution as it is read, in windows; the probabilities are warped back to
    the scene's own grid in blocks. Of pixels no more is held than a window or a block; outlines are held to the end.
    """
    with raster.opened(scene.image, gsd=settings.chip_gsd) as (dataset, own):
        placed = raster.is_placed(dataset)
        ground = folder / f"{scene.id}-ground.tif"
        _predict_ground(dataset, own, predict, ground, settings=settings, progress=progress)
        with raster.reopened(ground) as found:
            result = _to_own_grid(scene, dataset, own, found, folder, placed=placed, settings=settings)
        ground.unlink()
    return result


def _predict_ground(
    dataset: rasterio.io.DatasetReader,
    own: raster.Grid,
    predict: inference.Predict,
    path: Path,
    *,
    settings: Settings,
    progress: inference.Progress,
) -> None:
    """Write the probability (float32) of a scene on the ground grid of the network's resolution."""
    target = raster.ground_grid(own, gsd=settings.gsd)
    tiles = grid.tiles(target.height, target.width, size=settings.size, margin=settings.margin)
    with (
        raster.warped(dataset, own, target) as vrt,
        raster.write(path, target, height=target.height, width=target.width, dtype="float32", nodata=None) as out,
    ):
        found = inference.predict_tiles(
            predict, lambda window: raster.read(vrt, window), tiles, batch_size=settings.batch_size
        )
        with closing(found):  # before the dataset is, which its thread may be reading
            for tile, probability in progress(found, len(tiles)):
                out.write(probability, 1, window=tile.core)


def _to_own_grid(
    scene: Scene,
    dataset: rasterio.io.DatasetReader,
    own: raster.Grid,
    ground: rasterio.io.DatasetReader,
    folder: Path,
    *,
    placed: bool,
    settings: Settings,
) -> Map:
    parts: list[polygons.Part] = []
    pixels = buildings = 0
    names = ("probability", "mask")
    plain = {name: folder / f"{scene.id}-{name}-plain.tif" for name in names}
    place = own if placed else None
    size: dict[str, Any] = {"height": own.height, "width": own.width, "dtype": "uint8"}
    target = raster.Grid(ground.crs.to_wkt(), ground.transform, ground.height, ground.width)
    with (
        raster.warped(ground, target, own) as vrt,
        raster.write(plain["probability"], place, nodata=NODATA, **size) as probability_out,
        raster.write(plain["mask"], place, nodata=NODATA if placed else None, **size) as mask_out,
    ):
        probability_out.scales = (0.01,)
        probability_out.set_band_description(1, "probability of building, percent")
        mask_out.set_band_description(1, "building")
        for window in grid.blocks(own.height, own.width, size=BLOCK):
            valid = raster.valid(dataset, window)
            percents = metrics.percent(vrt.read(1, window=window))
            building = (percents >= settings.threshold) & valid
            probability_out.write(np.where(valid, percents, NODATA).astype(np.uint8), 1, window=window)
            # A submission knows 0 and 1 alone.
            mask_out.write(np.where(valid, building, NODATA if placed else 0).astype(np.uint8), 1, window=window)
            pixels += int(valid.sum())
            buildings += int(building.sum())
            if placed:
                parts += polygons.trace(percents, building, window)
    if not placed:
        return Map(plain["probability"], plain["mask"], None, pixels, buildings)
    cogs = {name: folder / f"{scene.id}-{name}.tif" for name in names}
    raster.to_cog(plain["probability"], cogs["probability"], overviews=Resampling.average)
    raster.to_cog(plain["mask"], cogs["mask"], overviews=Resampling.nearest)
    for path in plain.values():
        path.unlink()
    footprints = _footprints(scene, own, parts, settings)
    return Map(cogs["probability"], cogs["mask"], footprints, pixels, buildings)


def _footprints(scene: Scene, own: raster.Grid, parts: list[polygons.Part], settings: Settings) -> gpd.GeoDataFrame:
    # A pixel of the network, in units of the scene's CRS: what is finer is interpolation, not knowledge.
    tolerance = abs(own.transform.determinant) ** 0.5 * max(1.0, settings.gsd / raster.gsd(own))
    found = polygons.to_ground(polygons.join(parts), own.transform, tolerance=tolerance)
    frame = gpd.GeoDataFrame(
        {"scene": scene.id, "probability": [round(f.probability, 4) for f in found]},
        geometry=[f.outline for f in found],
        crs=own.crs,
    )
    frame["area_m2"] = frame.to_crs(EQUAL_AREA).area.round(2)
    return frame[frame.area_m2 >= settings.min_area_m2].reset_index(drop=True)[
        ["scene", "probability", "area_m2", "geometry"]
    ]
