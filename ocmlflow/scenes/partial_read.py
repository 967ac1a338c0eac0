"""Windows of which some cannot be read, to what can be read of them, and a list of what cannot."""

from collections.abc import Callable

import numpy as np
from rasterio.windows import Window

from ocmlflow.errors import InputError
from ocmlflow.scenes import windows
from ocmlflow.scenes.raster import Pixels
from ocmlflow.scenes.resample import ReadWindow

SMALLEST_PX = 128
"""Side of the windows, in pixels, that are given up as a whole."""


def read_pixels(read: ReadWindow, window: Window, spoilt: list[Window]) -> Pixels:
    """Pixels of a window, not valid where they cannot be read; the windows of those are added to `spoilt`."""

    def stacked(part: Window) -> np.ndarray:
        found = read(part)
        return np.dstack([found.image, found.valid.view(np.uint8)])

    try:
        return read(window)
    except InputError:
        bands = read_array(stacked, window, np.zeros((window.height, window.width, 4), np.uint8), spoilt)
    return Pixels(np.ascontiguousarray(bands[..., :3]), bands[..., 3] == 1)


def read_array(
    read: Callable[[Window], np.ndarray], window: Window, blank: np.ndarray, spoilt: list[Window]
) -> np.ndarray:
    """What `read` gives of a window, and `blank` where it raises InputError; the windows of that go to `spoilt`."""
    try:
        blank[:] = read(window)
    except InputError:
        side = max(window.height, window.width)
        if side <= SMALLEST_PX:
            spoilt.append(window)
            return blank
        for part in windows.blocks(window.height, window.width, size=-(-side // 2)):
            shifted = Window(window.col_off + part.col_off, window.row_off + part.row_off, part.width, part.height)
            read_array(read, shifted, blank[part.toslices()], spoilt)
    return blank
