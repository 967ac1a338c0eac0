"""Reads masks that another tool predicted, for chips, so that they can be scored like a model's predictions."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from affine import Affine
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds

from ocmlflow.errors import InputError
from ocmlflow.scenes import georeference, geotiff

log = logging.getLogger(__name__)


def reader(folder: Path, rows: gpd.GeoDataFrame) -> Callable[[Any, np.ndarray], np.ndarray]:
    """A function that gives the mask of a chip: its row and image to (size, size, 1) float32, 1 building, 0 not.

    A mask is `CHIP_ID.tif`, in the chip's own pixels, or `SCENE.tif`, which is warped to them. It holds 1 for building,
    0 for none, and its nodata value, which counts as none. Raises InputError, before any mask is read, if one is
    missing, cannot be opened, or lies elsewhere than the chips of its scene.
    """
    missing = [row.id for row in rows.itertuples() if _find_file(folder, row) is None]
    if missing:
        raise InputError(
            f"{folder} has no mask for {len(missing)} of {len(rows)} chips, such as {missing[0]}: "
            "SCENE.tif or CHIP_ID.tif is needed for each"
        )
    for scene, chips in rows.groupby("scene"):
        path = folder / f"{scene}.tif"
        from_scene = chips[[_find_file(folder, row) == path for row in chips.itertuples()]]
        if len(from_scene):
            _check_location(path, from_scene)
    return partial(_read, folder)


def _read(folder: Path, row: Any, image: np.ndarray) -> np.ndarray:
    """(size, size, 1) float32 of the chip's mask; InputError if it holds other values than 0, 1 and nodata."""
    path = _find_file(folder, row)
    assert path is not None
    size = image.shape[0]
    mask, nodata = _read_chip_file(path, size) if path.stem == row.id else _read_scene_file(path, row, size)
    others = np.unique(mask[(mask != 0) & (mask != 1) & ~_is_nodata(mask, nodata)])
    if others.size:
        raise InputError(
            f"{path} holds {others[:3].tolist()}: a mask is 1 where there is building and 0 elsewhere; "
            "other values must be the file's nodata value"
        )
    return (mask == 1).astype(np.float32)[..., np.newaxis]


def _find_file(folder: Path, row: Any) -> Path | None:
    """The file with a chip's mask; a file of the chip is preferred to one of its scene."""
    candidates = (folder / f"{row.id}.tif", folder / f"{row.scene}.tif")
    return next((path for path in candidates if path.exists()), None)


def _check_location(path: Path, rows: gpd.GeoDataFrame) -> None:
    """Raise InputError unless a scene's mask is georeferenced and covers chips of it; warn of chips outside it."""
    with _open(path) as dataset:
        if dataset.crs is None or not georeference.is_georeferenced(dataset):
            raise InputError(f"{path} has no georeference: masks of scenes need a CRS and a transform")
        is_covered = rows.intersects(shapely.box(*transform_bounds(dataset.crs, rows.crs, *dataset.bounds)))
    if not is_covered.any():
        raise InputError(f"{path} lies elsewhere than the {len(rows)} chips of its scene: is its CRS right?")
    if not is_covered.all():
        log.warning("%s: %d of %d chips lie outside it and count as no building", path, (~is_covered).sum(), len(rows))


@contextmanager
def _open(path: Path) -> Iterator[DatasetReader]:
    """Open a mask for reading; InputError if it cannot be opened or read."""
    try:
        with geotiff.open_written(path) as dataset:
            yield dataset
    except rasterio.errors.RasterioError as error:
        raise InputError(f"cannot read mask {path}: {error}") from error


def _is_nodata(mask: np.ndarray, nodata: float | None) -> np.ndarray:
    """(height, width) bool: where a mask holds its nodata value, which may be NaN."""
    if nodata is None:
        return np.zeros(mask.shape, bool)
    return np.isnan(mask) if np.isnan(nodata) else mask == nodata


def _read_chip_file(path: Path, size: int) -> tuple[np.ndarray, float | None]:
    """The mask of a chip and its nodata value; InputError if it has another size."""
    with _open(path) as dataset:
        if dataset.shape != (size, size):
            raise InputError(f"{path} has {dataset.height} x {dataset.width} pixels, the chip {size} x {size}")
        return dataset.read(1), dataset.nodata


def _read_scene_file(path: Path, row: Any, size: int) -> tuple[np.ndarray, float | None]:
    """A scene's mask on the pixels of a chip, by nearest neighbour, and its nodata value.

    Pixels outside the mask get the nodata value, or 0 if there is none.
    """
    half_m = size / 2 * row.gsd
    transform = Affine(row.gsd, 0, row.x - half_m, 0, -row.gsd, row.y + half_m)
    grid = {"crs": row.utm, "transform": transform, "width": size, "height": size}
    with _open(path) as dataset, WarpedVRT(dataset, resampling=Resampling.nearest, **grid) as vrt:
        return vrt.read(1), dataset.nodata
