"""Writes one-band GeoTIFFs, and copies them to cloud-optimized GeoTIFFs (COG)."""

from pathlib import Path

import rasterio
import rasterio.shutil
from rasterio.enums import Resampling
from rasterio.io import DatasetReader

from ocmlflow.scenes import image_file
from ocmlflow.scenes.geobox import GeoBox

TILE = 512
"""Side of the blocks of the files written here, in pixels."""
COPY_CACHE = 64 << 20
"""Bytes of GDAL's block cache while a raster is copied."""


def create(
    path: Path, grid: GeoBox | None, *, height: int, width: int, dtype: str, nodata: float | None
) -> rasterio.io.DatasetWriter:
    """A new tiled one-band GeoTIFF, open for writing; without a georeference where `grid` is None.

    A georeferenced file is sparse: blocks of only `nodata` take no room. Plain TIFFs hold all blocks, since some
    readers do not know sparse files.
    """
    georeference = {"crs": grid.crs, "transform": grid.transform, "sparse_ok": nodata is not None} if grid else {}
    with image_file.ignore_missing_georeference():
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
            **georeference,
        )


def open_written(path: Path) -> DatasetReader:
    """Open a raster that this package wrote, with or without a georeference."""
    with image_file.ignore_missing_georeference():
        return rasterio.open(path)


def check_complete(path: Path) -> None:
    """Raise OSError, naming the file, unless every block of a raster that this package wrote can be read.

    GDAL reports no error where the disk was full when a file was closed.
    """
    try:
        with open_written(path) as dataset:
            for _, window in dataset.block_windows(1):
                dataset.read(1, window=window)
    except rasterio.errors.RasterioIOError as error:
        raise OSError(f"{path} is incomplete, perhaps because the disk was full: {error}") from error


def write_cog(source: Path, target: Path, *, overviews: Resampling) -> None:
    """Copy a GeoTIFF to a cloud-optimized one with overviews; OSError, naming it, where the copy is incomplete."""
    with rasterio.Env(GDAL_CACHEMAX=COPY_CACHE):  # the default is 5 % of the memory
        rasterio.shutil.copy(
            source,
            target,
            driver="COG",
            blocksize=TILE,
            compress="deflate",
            level=3,  # 6 takes twice as long, for files 3 % smaller
            predictor="no",
            overview_resampling=overviews.name,
            bigtiff="if_safer",
            num_threads="all_cpus",
        )
        check_complete(target)
