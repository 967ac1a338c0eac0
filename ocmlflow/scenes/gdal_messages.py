"""GDAL's errors in words that can be sent between processes, and the warnings that GDAL gives while it reads."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.io import DatasetReader

GDAL_ERRORS = (rasterio.errors.RasterioError, CPLE_BaseError)
"""What a damaged file can make rasterio raise; some of GDAL's own errors come through as they are."""
METADATA_ERRORS = (*GDAL_ERRORS, ValueError, OverflowError)
"""What damaged metadata can make rasterio raise: texts that are not UTF-8, numbers that are none, unknown CRSs."""
_LOGGER = logging.getLogger("rasterio._err")
"""Where rasterio logs GDAL's warnings, in the thread that reads."""
_HARMLESS = "Retrying again"
"""In the warning of a request over https that is sent again."""
_local = threading.local()


def error_text(error: Exception) -> str:
    """GDAL's message behind an error of rasterio, which is cut off from GDAL's error.

    Where Dask is loaded, GDAL's error can be pickled but not unpickled, which would break a pool of processes.
    """
    message = str(error.__cause__ or error)
    error.__cause__ = error.__context__ = None
    return message


def forget_error(dataset: DatasetReader) -> None:
    """Clear a read error from GDAL's state: rasterio would raise it again at the next call that succeeds."""
    with suppress(Exception):
        _ = dataset.colorinterp


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """The warnings that GDAL gives in this thread meanwhile, such as of libjpeg's; they are not logged."""
    if _keep_warning not in _LOGGER.filters:
        _LOGGER.addFilter(_keep_warning)
    if not _LOGGER.isEnabledFor(logging.WARNING):
        _LOGGER.setLevel(logging.WARNING)
    before = getattr(_local, "messages", None)
    _local.messages = messages = list[str]()
    try:
        yield messages
    finally:
        _local.messages = before


def _keep_warning(record: logging.LogRecord) -> bool:
    """Filter of rasterio's logger: keeps a warning for `collect_warnings`, or lets it through."""
    messages: list[str] | None = getattr(_local, "messages", None)
    if messages is None or record.levelno < logging.WARNING or _HARMLESS in record.getMessage():
        return True
    messages.append(record.getMessage())
    return False
