"""Reads damaged rasters: what can be read of a window, and which parts of it cannot."""

from collections.abc import Callable
from functools import partial

import numpy as np
from rasterio.windows import Window

from ocmlflow.errors import InputError
from ocmlflow.scenes import windows
from ocmlflow.scenes.raster import Pixels
from ocmlflow.scenes.resample import ReadWindow

SMALLEST_PX = 128
"""Side in pixels of a window that is not split further: it counts as unreadable as a whole."""


def read_pixels(read: ReadWindow, window: Window) -> tuple[Pixels, list[Window]]:
    """Pixels of a window, not valid where they cannot be read, and the windows that cannot."""
    try:
        return read(window), []
    except InputError:
        blank = np.zeros((window.height, window.width, 4), np.uint8)
    bands, unreadable = read_array(partial(_stacked, read), window, blank)
    return Pixels(np.ascontiguousarray(bands[..., :3]), bands[..., 3] == 1), unreadable


def read_array(
    read: Callable[[Window], np.ndarray], window: Window, blank: np.ndarray
) -> tuple[np.ndarray, list[Window]]:
    """What `read` gives for a window, with parts of `blank` where it raises InputError, and the windows of those parts.

    `blank` has shape and dtype of what `read` gives. The window is split in four, again and again, around its damage.
    """
    try:
        return read(window), []
    except InputError:
        side = max(window.height, window.width)
    if side <= SMALLEST_PX:
        return blank, [window]
    array, unreadable = blank.copy(), []
    for part in windows.blocks(window.height, window.width, size=-(-side // 2)):
        at = part.toslices()
        shifted = Window(window.col_off + part.col_off, window.row_off + part.row_off, part.width, part.height)
        array[at], unreadable_in_part = read_array(read, shifted, blank[at])
        unreadable += unreadable_in_part
    return array, unreadable


def _stacked(read: ReadWindow, window: Window) -> np.ndarray:
    """(height, width, 4) uint8: RGB and validity."""
    pixels = read(window)
    return np.dstack([pixels.image, pixels.valid.view(np.uint8)])
