"""An open scene and a window, to pixels; and rasters back to files that a GIS opens."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from threading import Lock
from typing import Any
from urllib.parse import urlparse

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader
from rasterio.session import AWSSession
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from ocmlflow import redaction
from ocmlflow.errors import InputError
from ocmlflow.scenes import geobox
from ocmlflow.scenes.geobox import GeoBox
from ocmlflow.storage import hrefs, s3

log = logging.getLogger(__name__)

OPAQUE = 127
"""Alpha above this is imagery: the challenge's alpha is JPEG, with 1..127 along the edges of no data."""
DOUBTFUL = 0.2
"""Share of an alpha that is neither clear nor opaque above which it is doubted."""
CACHE = 384 << 20
"""Bytes of decoded blocks that each process keeps; GDAL itself would take a twentieth of the machine, in each."""
_NO_TRANSFORM = (Affine.identity(), Affine.scale(1, -1))
"""Of images that say no place: GDAL's own, and that of pixels counted downwards."""
# Chips without a georeference get this one, so that they are read, warped and written like any scene.
_NOWHERE = "EPSG:32631", 500_000.0, 5_000_000.0


@dataclass(frozen=True)
class Pixels:
    """A window of a scene."""

    image: np.ndarray
    """(height, width, 3) uint8 RGB; black where there is no imagery, whatever the file holds there."""
    valid: np.ndarray
    """(height, width) bool, True where the scene has imagery."""


@contextmanager
def open_scene(href: str, *, gsd: float | None = None, cache: int = CACHE) -> Iterator[tuple[DatasetReader, GeoBox]]:
    """The dataset at `href` (path, https, s3) and its own grid.

    An image without a georeference needs `gsd`, its metres per pixel, and is laid on a grid of that resolution
    somewhere. Raises InputError for what is no RGB image of 8 bits, has no place on earth and no `gsd`, or is not
    there. A process keeps at most `cache` bytes of decoded blocks, by the first call of all.
    """
    with _environment(href, cache):
        try:
            with ignore_missing_georeference():  # `is_georeferenced` is asked instead
                dataset = rasterio.open(_gdal_name(href), driver="GTiff")  # others may read any file they name
        except rasterio.errors.RasterioIOError as error:
            raise InputError(f"cannot open image {href}: {_said(error)}") from error
        with dataset:
            _check_bands(dataset, href)
            yield dataset, _own_grid(dataset, href, gsd)


def is_georeferenced(dataset: DatasetReader) -> bool:
    """Whether an image says where on earth it lies."""
    return dataset.crs is not None and dataset.transform not in _NO_TRANSFORM


def warn_of_doubtful_alpha(dataset: DatasetReader) -> None:
    """Warn where an alpha band looks like a picture: GDAL calls any fourth band so that nobody named, infrared too.

    Alpha is 0 or 255, but for the edges and the noise of a lossy one. Reads that band of four small windows.
    """
    if ColorInterp.alpha not in dataset.colorinterp:
        return
    band, side, seen = dataset.colorinterp.index(ColorInterp.alpha) + 1, 256, []
    for row, col in product((0.3, 0.7), repeat=2):
        window = Window(int(dataset.width * col) - side // 2, int(dataset.height * row) - side // 2, side, side)
        inside = window.intersection(Window(0, 0, dataset.width, dataset.height))
        try:
            seen.append(dataset.read(band, window=inside).ravel())
        except rasterio.errors.RasterioIOError:  # told where it matters
            _forget_error(dataset)
    between = [((values > 32) & (values < 223)).mean() for values in seen]
    if between and np.mean(between) > DOUBTFUL:
        log.warning(
            "image %s: %.0f %% of its alpha is neither clear nor opaque; what is below half is taken for no imagery. "
            "If it is another band, infrared perhaps: gdal_edit.py -colorinterp_%d undefined FILE",
            redaction.redact(dataset.name),
            100 * np.mean(between),
            band,
        )


def acquired(dataset: DatasetReader) -> datetime | None:
    """When, as the tag DateTime of TIFF 6.0 says, whose clock nobody knows; None where there is none."""
    try:
        return datetime.strptime(dataset.tags().get("TIFFTAG_DATETIME", ""), "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def warp(dataset: DatasetReader, own: GeoBox, target: GeoBox) -> WarpedVRT:
    """The dataset on the target grid, warped as it is read; averaged, not skipped, where pixels become larger."""
    has_alpha = ColorInterp.alpha in dataset.colorinterp
    # GDAL would guess it from the bounds of its blocks, by which what is turned seems to shrink, and blur it.
    across, down = geobox.scale_factors(own, target)
    return WarpedVRT(
        dataset,
        src_crs=own.crs,
        src_transform=own.transform,
        crs=target.crs,
        transform=target.transform,
        height=target.height,
        width=target.width,
        resampling=Resampling.bilinear,
        # Nodata values, mask bands and the edges of the dataset become alpha, so that one rule says what is imagery.
        add_alpha=not has_alpha,
        tolerance=0.01,  # in pixels; the default of an eighth shifts pixels as the window changes
        XSCALE=across,
        YSCALE=down,
    )


def read(dataset: DatasetReader, window: Window) -> Pixels:
    """Pixels of a window that lies inside the dataset; InputError where they cannot be decoded."""
    colours, alpha = read_bands(dataset, window)
    return to_pixels(colours, alpha)


def read_bands(dataset: DatasetReader, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Colours (3, height, width) and alpha (height, width), uint8, of a window that lies inside the dataset.

    Alpha is 255 where the dataset's alpha band, mask or nodata value does not say otherwise. Raises InputError where
    the file cannot be decoded or does not answer.
    """
    try:
        colours = _colours(dataset)
        if ColorInterp.alpha in dataset.colorinterp:  # one call, so that a warped dataset is warped once
            bands = dataset.read([*colours, dataset.colorinterp.index(ColorInterp.alpha) + 1], window=window)
            return bands[:3], bands[3]
        return dataset.read(colours, window=window), dataset.dataset_mask(window=window)
    except rasterio.errors.RasterioIOError as error:
        raise read_error(dataset, window, error) from error


def read_reduced(dataset: DatasetReader, shape: tuple[int, int]) -> np.ndarray:
    """(height, width, 3) uint8 RGB: all of the dataset in so many pixels; InputError as `planes`."""
    try:
        return np.moveaxis(dataset.read(_colours(dataset), out_shape=(3, *shape)), 0, -1)
    except rasterio.errors.RasterioIOError as error:
        raise read_error(dataset, Window(0, 0, dataset.width, dataset.height), error) from error


def to_pixels(colours: np.ndarray, alpha: np.ndarray) -> Pixels:
    """Pixels of colours (3, height, width) uint8 and alpha (height, width) uint8."""
    seen = alpha > OPAQUE
    if not seen.all():
        colours = colours * seen.view(np.uint8)  # as numbers: numpy would convert them one by one
    image = np.empty((*seen.shape, 3), np.uint8)
    for band in range(3):  # plane by plane: numpy's own transposed copy takes five times as long
        image[..., band] = colours[band]
    return Pixels(image, seen)


def read_valid(dataset: DatasetReader, window: Window) -> np.ndarray:
    """(height, width) bool of a window that lies inside the dataset: where it has imagery; InputError as `planes`."""
    try:
        if ColorInterp.alpha in dataset.colorinterp:
            return dataset.read(dataset.colorinterp.index(ColorInterp.alpha) + 1, window=window) > OPAQUE
        return dataset.dataset_mask(window=window) > OPAQUE
    except rasterio.errors.RasterioIOError as error:
        raise read_error(dataset, window, error) from error


def read_padded(dataset: DatasetReader, window: Window) -> Pixels:
    """Pixels of a window that may reach beyond the dataset, where nothing is valid."""
    inside = Window(0, 0, dataset.width, dataset.height).intersection(window)
    found = read(dataset, inside)
    top, left = int(inside.row_off - window.row_off), int(inside.col_off - window.col_off)
    rows = (top, int(window.height - inside.height) - top)
    cols = (left, int(window.width - inside.width) - left)
    # Read inside and pad: GDAL's own boundless reading costs four to five times as much.
    return Pixels(np.pad(found.image, (rows, cols, (0, 0))), np.pad(found.valid, (rows, cols)))


def open_overview(dataset: DatasetReader, level: int) -> DatasetReader:
    """The dataset's overview of that number, open for reading."""
    with ignore_missing_georeference():
        return rasterio.open(dataset.name, overview_level=level)


_FILTERS = Lock()


@contextmanager
def ignore_missing_georeference() -> Iterator[None]:
    """Say nothing of images without a georeference; Python's filters are those of all threads at once."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def read_error(dataset: DatasetReader, window: Window, error: Exception) -> InputError:
    """The error to raise where a window of the dataset cannot be decoded, naming file, window and cause."""
    _forget_error(dataset)
    file = dataset.src_dataset.name if isinstance(dataset, WarpedVRT) else dataset.name
    (top, bottom), (left, right) = window.toranges()
    where = f"rows {top}-{bottom}, columns {left}-{right}"
    return InputError(f"cannot read image {redaction.redact(file)} at {where}: {_said(error)}")


def _forget_error(dataset: DatasetReader) -> None:
    """After an error of reading: GDAL keeps it, and rasterio would raise it at the next call that works."""
    with suppress(Exception):
        _ = dataset.colorinterp


def _said(error: Exception) -> str:
    """GDAL's own words for an error of rasterio's, which holds GDAL's error no longer.

    Where Dask is loaded, that error would break the pool of processes: it can be sent to another, but not read there.
    """
    words = str(error.__cause__ or error)
    error.__cause__ = error.__context__ = None
    return words


def _check_bands(dataset: DatasetReader, href: str) -> None:
    if dataset.count < 3 or set(dataset.dtypes[:3]) != {"uint8"}:
        palette = " and a palette" if ColorInterp.palette in dataset.colorinterp else ""
        raise InputError(
            f"image {href} has {dataset.count} band(s) of {', '.join(sorted(set(dataset.dtypes)))}{palette}; "
            "red, green and blue of 8 bits (uint8) are needed: convert it, say with gdal_translate"
        )


def _colours(dataset: DatasetReader) -> list[int]:
    """Numbers of the red, green and blue band; the first three where the file names none."""
    wanted = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(colour in dataset.colorinterp for colour in wanted):
        return [dataset.colorinterp.index(colour) + 1 for colour in wanted]
    return [1, 2, 3]


def _own_grid(dataset: DatasetReader, href: str, gsd: float | None) -> GeoBox:
    if is_georeferenced(dataset):
        own = GeoBox(dataset.crs.to_wkt(), dataset.transform, dataset.height, dataset.width)
        try:
            geobox.check_on_earth(own)
        except InputError as error:
            raise InputError(f"image {href} has no place on the ground: {error}") from error
        return own
    if dataset.transform not in _NO_TRANSFORM:
        raise InputError(
            f"image {href} has a transform, such as that of a .tfw file, but no CRS, so nobody knows where on earth it "
            "lies: give it the CRS that it is in, say with gdal_edit.py -a_srs EPSG:CODE"
        )
    if gsd is None:
        raise InputError(f"image {href} has no georeference (CRS and transform): its place on the ground is needed")
    crs, x, y = _NOWHERE
    return GeoBox(
        crs, Affine(gsd, 0, round(x / gsd) * gsd, 0, -gsd, round(y / gsd) * gsd), dataset.height, dataset.width
    )


def _gdal_name(href: str) -> str:
    return href if hrefs.is_remote(href) else str(hrefs.local_path(href))


@contextmanager
def _environment(href: str, cache: int) -> Iterator[None]:
    options: dict[str, Any] = {
        "GDAL_HTTP_USERAGENT": hrefs.USER_AGENT,
        "GDAL_CACHEMAX": cache,
    }  # rasterio wants bytes
    if hrefs.is_remote(href):
        # One request for the file asked for, none for the listing of its folder.
        options |= {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_INGESTED_BYTES_AT_OPEN": "65536"}
        options |= {"GDAL_HTTP_MAX_RETRY": "4", "GDAL_HTTP_RETRY_DELAY": "0.5"}  # seconds, doubled each time
    if href.startswith("s3://"):
        session, unsigned = s3.boto_session()
        server = urlparse(s3.custom_endpoint() or "")
        if server.netloc:
            options |= {"AWS_HTTPS": "NO" if server.scheme == "http" else "YES", "AWS_VIRTUAL_HOSTING": "FALSE"}
        aws = AWSSession(session, aws_unsigned=unsigned, endpoint_url=server.netloc or None)
        with rasterio.Env(aws, **options):
            yield
    else:
        with rasterio.Env(**options):
            yield
