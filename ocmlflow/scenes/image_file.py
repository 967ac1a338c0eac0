"""Opens image files with rasterio, in the formats that are read, and says in words why one cannot be opened or read."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any

import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader
from rasterio.windows import Window

from ocmlflow import redaction
from ocmlflow.errors import InputError
from ocmlflow.scenes import gdal_messages, gdal_settings
from ocmlflow.scenes.gdal_messages import METADATA_ERRORS
from ocmlflow.storage import hrefs

_WARNING_FILTERS = Lock()


def open_image(href: str, **options: Any) -> DatasetReader:
    """The open file at an href, in `gdal_settings.environment`; InputError where it cannot be opened."""
    try:
        with ignore_missing_georeference():  # `is_georeferenced` is asked instead
            return rasterio.open(gdal_settings.name(href), driver=gdal_settings.driver(href), **options)
    except METADATA_ERRORS as error:
        reason = gdal_messages.error_text(error)
        raise InputError(f"cannot open image {redaction.redact(href)}: {_advice(href) or reason}") from error


def read_error(name: str, window: Window, reason: str) -> InputError:
    """The error to raise where a window of an image cannot be read, naming file, window and cause."""
    (top, bottom), (left, right) = window.toranges()
    where = f"rows {top}-{bottom}, columns {left}-{right}"
    return InputError(f"cannot read image {redaction.redact(name)} at {where}: {reason}")


@contextmanager
def ignore_missing_georeference() -> Iterator[None]:
    """Silence rasterio's NotGeoreferencedWarning; under a lock, since all threads share the warning filters."""
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _advice(href: str) -> str:
    """What would do for a file that GDAL cannot open; empty where nothing is known."""
    start, sends_ranges = b"", True
    with suppress(OSError):
        start, sends_ranges = hrefs.read_start(href, 512), hrefs.sends_ranges(href)
    if not sends_ranges:
        return (
            "its server sends whole files only, no parts of them (byte ranges): copy the file first, and name the copy"
        )
    if not start or start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return ""
    return (
        "it is none of GeoTIFF, JPEG 2000, PNG and JPEG. If it is an image that GDAL knows: gdal_translate IN OUT.tif"
    )
