"""Opens scenes (paths, https, s3) with rasterio, and reads windows of them as RGB pixels with their validity."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from threading import Lock

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from ocmlflow import redaction
from ocmlflow.errors import InputError
from ocmlflow.scenes import gdal_settings, geobox
from ocmlflow.scenes.geobox import GeoBox

log = logging.getLogger(__name__)

OPAQUE = 127
"""Alpha above this is imagery: the challenge compresses alpha as JPEG, which leaves 1..127 along its edges."""
DOUBTFUL_SHARE = 0.2
"""An alpha band is doubted where a larger share of it is neither transparent nor opaque."""
CACHE = 384 << 20
"""Bytes of GDAL's block cache in each process; GDAL's default is 5 % of the machine's memory."""
_NO_TRANSFORM = (Affine.identity(), Affine.scale(1, -1))
"""Transforms of images without a georeference: GDAL's default, and the same with rows counted downwards."""
_MADE_UP_PLACE = "EPSG:32631", 500_000.0, 5_000_000.0
"""CRS, x and y given to chips without a georeference, so that they are read, warped and written like any scene."""


@dataclass(frozen=True)
class Pixels:
    """A window of a scene."""

    image: np.ndarray
    """(height, width, 3) uint8 RGB; black where not valid, whatever the file holds there."""
    valid: np.ndarray
    """(height, width) bool, True where the scene has imagery."""


@contextmanager
def open_scene(href: str, *, gsd: float | None = None, cache: int = CACHE) -> Iterator[tuple[DatasetReader, GeoBox]]:
    """The dataset at `href` (path, https, s3) and its own grid.

    An image without a georeference needs `gsd`, its metres per pixel; it gets a grid of that resolution at a made-up
    place. `cache` limits GDAL's block cache in bytes; the first call in a process decides.

    Raises InputError where the image cannot be opened, is not RGB of 8 bits, or has neither a georeference nor a `gsd`.
    """
    with gdal_settings.environment(href, cache=cache):
        try:
            with ignore_missing_georeference():  # `is_georeferenced` is asked instead
                # Other drivers may read any file that the image names; `scenes.vrt` checks what VRTs name.
                driver = "VRT" if href.lower().endswith(".vrt") else "GTiff"
                dataset = rasterio.open(gdal_settings.name(href), driver=driver)
        except rasterio.errors.RasterioIOError as error:
            raise InputError(f"cannot open image {href}: {_gdal_message(error)}") from error
        with dataset:
            _check_bands(dataset, href)
            yield dataset, _own_grid(dataset, href, gsd)


def is_georeferenced(dataset: DatasetReader) -> bool:
    """Whether an image has both a CRS and a transform."""
    return dataset.crs is not None and dataset.transform not in _NO_TRANSFORM


def warn_of_doubtful_alpha(dataset: DatasetReader) -> None:
    """Warn where an alpha band looks like a picture: GDAL takes any unnamed fourth band for alpha, infrared too.

    Alpha is 0 or 255, except at edges and in the noise of lossy compression. Reads four small windows of the band.
    """
    if ColorInterp.alpha not in dataset.colorinterp:
        return
    band = _alpha_band(dataset)
    shares = []
    for row, col in product((0.3, 0.7), repeat=2):
        window = Window(int(dataset.width * col) - 128, int(dataset.height * row) - 128, 256, 256)
        inside = window.intersection(Window(0, 0, dataset.width, dataset.height))
        try:
            alpha = dataset.read(band, window=inside)
        except rasterio.errors.RasterioIOError:  # reported when the window is read for use
            _forget_error(dataset)
        else:
            shares.append(((alpha > 32) & (alpha < 223)).mean())
    if shares and np.mean(shares) > DOUBTFUL_SHARE:
        log.warning(
            "image %s: %.0f %% of its alpha band is neither transparent nor opaque; values up to 127 count as no "
            "imagery. If it is another band, such as infrared: gdal_edit.py -colorinterp_%d undefined FILE",
            redaction.redact(dataset.name),
            100 * np.mean(shares),
            band,
        )


def acquired(dataset: DatasetReader) -> datetime | None:
    """Time of the image by the DateTime tag of TIFF 6.0, read as UTC since it has no zone; None where there is none."""
    try:
        return datetime.strptime(dataset.tags().get("TIFFTAG_DATETIME", ""), "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def warp(dataset: DatasetReader, own: GeoBox, target: GeoBox) -> WarpedVRT:
    """The dataset on the target grid, warped as it is read; pixels are averaged where the target's are larger."""
    has_alpha = ColorInterp.alpha in dataset.colorinterp
    # GDAL would guess the scale from the bounds of its blocks: a rotated image would seem to shrink, and be blurred.
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
        # Turns nodata values, mask bands and the edges of the dataset into alpha, so that one rule says what is valid.
        add_alpha=not has_alpha,
        tolerance=0.01,  # in pixels; the default of an eighth shifts pixels as the window changes
        XSCALE=across,
        YSCALE=down,
    )


def read(dataset: DatasetReader, window: Window) -> Pixels:
    """Pixels of a window inside the dataset; InputError where they cannot be read."""
    colours, alpha = read_bands(dataset, window)
    return to_pixels(colours, alpha)


def read_bands(dataset: DatasetReader, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """RGB (3, height, width) and alpha (height, width), both uint8, of a window inside the dataset.

    Alpha comes from the alpha band, else from the mask or nodata value, else it is 255. Raises InputError where the
    window cannot be read.
    """
    try:
        colours = _rgb_bands(dataset)
        if ColorInterp.alpha in dataset.colorinterp:  # one call, so that a warped dataset is warped once
            bands = dataset.read([*colours, _alpha_band(dataset)], window=window)
            return bands[:3], bands[3]
        return dataset.read(colours, window=window), dataset.dataset_mask(window=window)
    except rasterio.errors.RasterioIOError as error:
        raise read_error(dataset, window, error) from error


def read_reduced(dataset: DatasetReader, shape: tuple[int, int]) -> np.ndarray:
    """The whole dataset as (height, width, 3) uint8 RGB of this shape; InputError where it cannot be read."""
    try:
        return np.moveaxis(dataset.read(_rgb_bands(dataset), out_shape=(3, *shape)), 0, -1)
    except rasterio.errors.RasterioIOError as error:
        raise read_error(dataset, Window(0, 0, dataset.width, dataset.height), error) from error


def to_pixels(colours: np.ndarray, alpha: np.ndarray) -> Pixels:
    """Pixels of RGB (3, height, width) and alpha (height, width), both uint8."""
    valid = alpha > OPAQUE
    if not valid.all():
        colours = colours * valid.view(np.uint8)  # a view: numpy would convert bools one by one
    image = np.empty((*valid.shape, 3), np.uint8)
    for band in range(3):  # band by band: numpy's own transposed copy takes five times as long
        image[..., band] = colours[band]
    return Pixels(image, valid)


def read_valid(dataset: DatasetReader, window: Window) -> np.ndarray:
    """Validity of a window inside the dataset, (height, width) bool; InputError where it cannot be read."""
    try:
        if ColorInterp.alpha in dataset.colorinterp:
            return dataset.read(_alpha_band(dataset), window=window) > OPAQUE
        return dataset.dataset_mask(window=window) > OPAQUE
    except rasterio.errors.RasterioIOError as error:
        raise read_error(dataset, window, error) from error


def read_padded(dataset: DatasetReader, window: Window) -> Pixels:
    """Pixels of a window that may reach beyond the dataset; not valid there."""
    inside = Window(0, 0, dataset.width, dataset.height).intersection(window)
    pixels = read(dataset, inside)
    top, left = int(inside.row_off - window.row_off), int(inside.col_off - window.col_off)
    rows = (top, int(window.height - inside.height) - top)
    cols = (left, int(window.width - inside.width) - left)
    # Padded here, since GDAL's boundless reads take four to five times as long.
    return Pixels(np.pad(pixels.image, (rows, cols, (0, 0))), np.pad(pixels.valid, (rows, cols)))


def open_overview(dataset: DatasetReader, level: int) -> DatasetReader:
    """Open overview number `level` of the dataset."""
    with ignore_missing_georeference():
        return rasterio.open(dataset.name, overview_level=level)


_WARNING_FILTERS = Lock()


@contextmanager
def ignore_missing_georeference() -> Iterator[None]:
    """Silence rasterio's NotGeoreferencedWarning; under a lock, since all threads share the warning filters."""
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def read_error(dataset: DatasetReader, window: Window, error: Exception) -> InputError:
    """The error to raise where a window of the dataset cannot be read, naming file, window and cause."""
    _forget_error(dataset)
    file = dataset.src_dataset.name if isinstance(dataset, WarpedVRT) else dataset.name
    (top, bottom), (left, right) = window.toranges()
    where = f"rows {top}-{bottom}, columns {left}-{right}"
    return InputError(f"cannot read image {redaction.redact(file)} at {where}: {_gdal_message(error)}")


def _forget_error(dataset: DatasetReader) -> None:
    """Clear a read error from GDAL's state: rasterio would raise it again at the next call that succeeds."""
    with suppress(Exception):
        _ = dataset.colorinterp


def _gdal_message(error: Exception) -> str:
    """GDAL's message behind an error of rasterio, which is cut off from GDAL's error.

    Where Dask is loaded, GDAL's error can be pickled but not unpickled, which would break a pool of processes.
    """
    message = str(error.__cause__ or error)
    error.__cause__ = error.__context__ = None
    return message


def _check_bands(dataset: DatasetReader, href: str) -> None:
    if dataset.count < 3 or set(dataset.dtypes[:3]) != {"uint8"}:
        palette = " and a palette" if ColorInterp.palette in dataset.colorinterp else ""
        raise InputError(
            f"image {href} has {dataset.count} band(s) of {', '.join(sorted(set(dataset.dtypes)))}{palette}; "
            "red, green and blue of 8 bits (uint8) are needed: convert it, say with gdal_translate"
        )


def _rgb_bands(dataset: DatasetReader) -> list[int]:
    """Numbers of the red, green and blue band; the first three where the file does not name all of them."""
    wanted = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(colour in dataset.colorinterp for colour in wanted):
        return [dataset.colorinterp.index(colour) + 1 for colour in wanted]
    return [1, 2, 3]


def _alpha_band(dataset: DatasetReader) -> int:
    return int(dataset.colorinterp.index(ColorInterp.alpha)) + 1


def _own_grid(dataset: DatasetReader, href: str, gsd: float | None) -> GeoBox:
    if is_georeferenced(dataset):
        own = GeoBox(dataset.crs.to_wkt(), dataset.transform, dataset.height, dataset.width)
        try:
            geobox.check_on_earth(own)
        except InputError as error:
            raise InputError(f"image {href} has no valid place on earth: {error}") from error
        return own
    if dataset.transform not in _NO_TRANSFORM:
        raise InputError(
            f"image {href} has a transform, such as that of a .tfw file, but no CRS, so its place on earth is unknown: "
            "set the CRS that it is in, say with gdal_edit.py -a_srs EPSG:CODE"
        )
    if gsd is None:
        raise InputError(f"image {href} has no georeference (CRS and transform), which is needed here")
    crs, x, y = _MADE_UP_PLACE
    return GeoBox(
        crs, Affine(gsd, 0, round(x / gsd) * gsd, 0, -gsd, round(y / gsd) * gsd), dataset.height, dataset.width
    )
