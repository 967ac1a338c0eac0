"""A folder of masks that any tool made, to buildings on chips."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from ocmlflow.scenes import geotiff, raster

log = logging.getLogger(__name__)


def reader(folder: Path, rows: gpd.GeoDataFrame) -> Callable[[Any, np.ndarray], np.ndarray]:
    """A function of a chip's row and image to (size, size) float32: 1 building, 0 not.

    Reads `CHIP_ID.tif`, of the chip's own pixels, or `SCENE.tif`, which is warped to them. Masks hold 1 for building,
    0 for none and their nodata value, which counts as none. InputError, before anything is read, where one is missing,
    cannot be opened, or lies elsewhere than its scene's chips.
    """
    missing = [row.id for row in rows.itertuples() if _file(folder, row) is None]
    if missing:
        raise InputError(
            f"{folder} has no mask for {len(missing)} of {len(rows)} chips, as {missing[0]}: "
            "SCENE.tif or CHIP_ID.tif is needed for each"
        )

    for scene, some in rows.groupby("scene"):
        path = folder / f"{scene}.tif"
        whole = some[[_file(folder, row) == path for row in some.itertuples()]]
        if len(whole):
            _check_place(path, whole)

    def read(row: Any, image: np.ndarray) -> np.ndarray:
        path = _file(folder, row)
        assert path is not None
        mask, nodata = _of_chip(path, image.shape[0]) if path.stem == row.id else _of_scene(path, row, image.shape[0])
        found = np.unique(mask[(mask != 0) & (mask != 1) & ~_none(mask, nodata)])
        if found.size:
            raise InputError(
                f"{path} holds {found[:3].tolist()}: a mask is 1 where there is building and 0 elsewhere; "
                "other values must be the file's nodata value"
            )
        return (mask == 1).astype(np.float32)

    return read


def _file(folder: Path, row: Any) -> Path | None:
    """The file that holds a chip's mask; one of its own comes before one of its scene."""
    named = (folder / f"{row.id}.tif", folder / f"{row.scene}.tif")
    return next((path for path in named if path.exists()), None)


def _check_place(path: Path, rows: gpd.GeoDataFrame) -> None:
    """Raise InputError unless a scene's mask says where it lies, and meets its chips; tell of chips that it misses."""
    with _opened(path) as dataset:
        if dataset.crs is None or not raster.is_georeferenced(dataset):
            raise InputError(f"{path} does not say where it lies: masks of scenes need a CRS and a transform")
        inside = rows.intersects(shapely.box(*transform_bounds(dataset.crs, rows.crs, *dataset.bounds)))
    if not inside.any():
        raise InputError(f"{path} lies elsewhere than the {len(rows)} chips of its scene: is its CRS right?")
    if not inside.all():
        log.warning("%s: %d of %d chips lie beyond it, and count as no building", path, (~inside).sum(), len(rows))


@contextmanager
def _opened(path: Path) -> Iterator[DatasetReader]:
    """A mask, open for reading; InputError where it cannot be, or what is read of it."""
    try:
        with geotiff.open_written(path) as dataset:
            yield dataset
    except rasterio.errors.RasterioError as error:
        raise InputError(f"cannot read mask {path}: {error}") from error


def _none(mask: np.ndarray, nodata: float | None) -> np.ndarray:
    """(height, width) bool: where a mask holds its nodata value, which may be NaN."""
    if nodata is None:
        return np.zeros(mask.shape, bool)
    return np.isnan(mask) if np.isnan(nodata) else mask == nodata


def _of_chip(path: Path, size: int) -> tuple[np.ndarray, float | None]:
    with _opened(path) as dataset:
        if dataset.shape != (size, size):
            raise InputError(f"{path} has {dataset.height} x {dataset.width} pixels, the chip {size} x {size}")
        return dataset.read(1), dataset.nodata


def _of_scene(path: Path, row: Any, size: int) -> tuple[np.ndarray, float | None]:
    """The chip's cut of a scene's mask, its nearest pixels; the mask's nodata, or 0, outside of it."""
    half = size / 2 * row.gsd
    transform = Affine(row.gsd, 0, row.x - half, 0, -row.gsd, row.y + half)
    with _opened(path) as dataset:
        place = {"crs": row.utm, "transform": transform, "width": size, "height": size}
        with WarpedVRT(dataset, resampling=Resampling.nearest, **place) as vrt:
            return vrt.read(1), dataset.nodata
