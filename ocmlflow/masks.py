"""A folder of masks that any tool made, to buildings on chips."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
from affine import Affine
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from ocmlflow import raster
from ocmlflow.errors import InputError


def reader(folder: Path, rows: gpd.GeoDataFrame) -> Callable[[Any, np.ndarray], np.ndarray]:
    """A function of a chip's row and image to (size, size) float32: 1 building, 0 not.

    Reads `CHIP_ID.tif`, of the chip's own pixels, or `SCENE.tif`, which is warped to them. Masks hold 1 for building,
    0 for none and their nodata value, which counts as none. InputError, before anything is read, where one is missing.
    """
    missing = [row.id for row in rows.itertuples() if _file(folder, row) is None]
    if missing:
        raise InputError(
            f"{folder} has no mask for {len(missing)} of {len(rows)} chips, as {missing[0]}: "
            "SCENE.tif or CHIP_ID.tif is needed for each"
        )

    def read(row: Any, image: np.ndarray) -> np.ndarray:
        path = _file(folder, row)
        assert path is not None
        mask, nodata = _of_chip(path, image.shape[0]) if path.stem == row.id else _of_scene(path, row, image.shape[0])
        found = set(np.unique(mask).tolist()) - {0, 1} - ({nodata} if nodata is not None else set())
        if found:
            raise InputError(
                f"{path} holds {sorted(found)[:3]}: a mask is 1 where there is building and 0 elsewhere; "
                "other values must be the file's nodata value"
            )
        return (mask == 1).astype(np.float32)

    return read


def _file(folder: Path, row: Any) -> Path | None:
    """The file that holds a chip's mask; one of its own comes before one of its scene."""
    named = (folder / f"{row.id}.tif", folder / f"{row.scene}.tif")
    return next((path for path in named if path.exists()), None)


def _of_chip(path: Path, size: int) -> tuple[np.ndarray, float | None]:
    with raster.reopened(path) as dataset:
        if dataset.shape != (size, size):
            raise InputError(f"{path} has {dataset.height} x {dataset.width} pixels, the chip {size} x {size}")
        return dataset.read(1), dataset.nodata


def _of_scene(path: Path, row: Any, size: int) -> tuple[np.ndarray, float | None]:
    """The chip's cut of a scene's mask, its nearest pixels; the mask's nodata, or 0, outside of it."""
    half = size / 2 * row.gsd
    transform = Affine(row.gsd, 0, row.x - half, 0, -row.gsd, row.y + half)
    with raster.reopened(path) as dataset:
        if dataset.crs is None:
            raise InputError(f"{path} does not say where it lies: masks of scenes need a CRS")
        place = {"crs": row.utm, "transform": transform, "width": size, "height": size}
        with WarpedVRT(dataset, resampling=Resampling.nearest, **place) as vrt:
            return vrt.read(1), dataset.nodata
