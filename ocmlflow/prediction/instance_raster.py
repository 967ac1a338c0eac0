"""Writes the raster that names the footprint of each pixel."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine
from rasterio import features
from rasterio.enums import Resampling
from rasterio.windows import Window

from ocmlflow.scenes import geotiff, image_file, windows
from ocmlflow.scenes.geobox import GeoBox

BLOCK = 2 * geotiff.TILE
"""Side of the blocks held in memory, in pixels."""
NODATA = 0
"""Value where there is no footprint."""


def write(footprints: Path, grid: GeoBox, path: Path) -> None:
    """Write a COG, uint32, of the footprint at the centre of each pixel: its row in the GeoParquet file, from 1.

    The footprints are in the CRS of `grid`, the pixels of the COG. All of them are held in memory.
    """
    outlines = gpd.read_parquet(footprints, columns=["geometry"]).geometry.to_numpy()
    tree = shapely.STRtree(outlines)
    plain = path.with_name(f"{path.stem}-plain.tif")
    with geotiff.create(plain, grid, height=grid.height, width=grid.width, dtype="uint32", nodata=NODATA) as out:
        out.set_band_description(1, "row of the footprint, from 1")
        for window in windows.blocks(grid.height, grid.width, size=BLOCK):
            near = np.sort(tree.query(shapely.Polygon(grid.corners(window)), predicate="intersects"))
            if len(near):
                out.write(_rasterize(outlines, near, grid, window), 1, window=window)
    geotiff.write_cog(plain, path, overviews=Resampling.nearest)
    plain.unlink()


def _rasterize(outlines: np.ndarray, numbers: np.ndarray, grid: GeoBox, window: Window) -> np.ndarray:
    """(height, width) uint32: of the outlines of these numbers, the number + 1 of the one at each pixel's centre."""
    with image_file.ignore_missing_georeference():  # rasterio changes the warning filters of all threads
        return np.asarray(
            features.rasterize(
                zip(outlines[numbers], numbers + 1, strict=True),
                (int(window.height), int(window.width)),
                fill=NODATA,
                transform=grid.transform @ Affine.translation(window.col_off, window.row_off),
                dtype="uint32",
            )
        )
