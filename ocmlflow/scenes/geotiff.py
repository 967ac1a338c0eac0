"""An open scene and a window, to pixels; and rasters back to files that a GIS opens."""

from pathlib import Path

import rasterio
import rasterio.shutil
from rasterio.enums import Resampling
from rasterio.io import DatasetReader

from ocmlflow.scenes import raster
from ocmlflow.scenes.geobox import GeoBox

TILE = 512
"""Side of the blocks of the files written here, in pixels."""
WRITING = 64 << 20
"""Bytes of decoded blocks that are kept while a raster is copied."""


def create(
    path: Path, grid: GeoBox | None, *, height: int, width: int, dtype: str, nodata: float | None
) -> rasterio.io.DatasetWriter:
    """A new tiled one-band GeoTIFF, open for writing; without a georeference where `grid` is None.

    Blocks of nothing but `nodata` take no room where there is a georeference; a plain TIFF, for readers of any kind,
    has them all.
    """
    place = {"crs": grid.crs, "transform": grid.transform, "sparse_ok": nodata is not None} if grid else {}
    with raster.ignore_missing_georeference():  # chips have none to give
        return rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=height,
            width=width,
            count=1,
            dtype=dtype,
            nodata=nodata,
            tiled=True,
            blockxsize=TILE,
            blockysize=TILE,
            compress="deflate",
            zlevel=1,
            bigtiff="if_safer",
            **place,
        )


def open_written(path: Path) -> DatasetReader:
    """A raster that was written here, open for reading."""
    with raster.ignore_missing_georeference():
        return rasterio.open(path)


def check_complete(path: Path) -> None:
    """Raise OSError, naming it, unless all of a raster that was written here can be read.

    GDAL does not tell of a disk that was full when a file was closed.
    """
    try:
        with open_written(path) as dataset:
            for _, window in dataset.block_windows(1):
                dataset.read(1, window=window)
    except rasterio.errors.RasterioIOError as error:
        raise OSError(f"{path} is not whole, as if the disk had been full: {error}") from error


def write_cog(source: Path, target: Path, *, overviews: Resampling) -> None:
    """Copy a GeoTIFF to a cloud-optimized one with overviews; OSError, naming it, where it does not become whole."""
    with rasterio.Env(GDAL_CACHEMAX=WRITING):  # else a twentieth of the machine's memory
        rasterio.shutil.copy(
            source,
            target,
            driver="COG",
            blocksize=TILE,
            compress="deflate",
            level=3,  # 6 takes twice as long, for a thirtieth less
            predictor="no",
            overview_resampling=overviews.name,
            bigtiff="if_safer",
            num_threads="all_cpus",
        )
        check_complete(target)
