"""Compares an image's overviews with its full resolution: they may be left from another state of the file."""

import numpy as np
from rasterio.io import DatasetReader
from rasterio.windows import Window

from ocmlflow.errors import InputError
from ocmlflow.scenes import gdal_messages, raster, stretching
from ocmlflow.scenes.gdal_messages import METADATA_ERRORS
from ocmlflow.scenes.raster import Pixels, SceneImage

WINDOWS = 3
"""Windows along each side of an overview that are compared."""
FULL_PX, CELL_PX = 256, 16
"""Side of a window in pixels of the full resolution, and of the cells that are compared in pixels of the overview."""
VALID_TOLERANCE, COLOUR_TOLERANCE = 0.25, 24
"""Differences that resampling may make of a cell's share of imagery, and of its mean colour."""


def is_alike(image: SceneImage, level: int) -> bool:
    """Whether an overview shows what the image shows, by a few windows; False where it cannot be read."""
    try:
        with raster.open_overview(image, level) as overview:
            return all(_shows_the_same(image, overview, window) for window in _windows(image, overview))
    except InputError:
        return False


def written_blocks(dataset: DatasetReader, band: int, overview: SceneImage | None = None) -> np.ndarray:
    """(rows, cols) bool: which blocks of a TIFF's band, or of an overview of it, are in the file."""
    blocked = overview.dataset if overview else dataset
    height, width = blocked.block_shapes[0]
    level = {"ovr": overview.level} if overview else {}
    written = np.ones((-(-blocked.height // height), -(-blocked.width // width)), bool)
    try:
        for row, col in np.ndindex(written.shape):
            offset = dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band, **level)
            written[row, col] = offset is not None
    except METADATA_ERRORS:  # the table of blocks is damaged: reading tells which
        gdal_messages.forget_error(dataset)
    return written


def _windows(image: SceneImage, overview: SceneImage) -> list[Window]:
    """Windows of an overview to compare: spread over it, and where it has blocks that were never written."""
    side = max(CELL_PX, round(FULL_PX / max(overview.scale)))
    windows = stretching.sample_windows(overview.height, overview.width, count=WINDOWS, side=side)
    if overview.dataset.driver != "GTiff":
        return windows
    height, width = overview.dataset.block_shapes[0]
    inside = Window(0, 0, overview.width, overview.height)
    missing = np.argwhere(~written_blocks(image.dataset, image.rules.bands.colours[0], overview))
    for row, col in missing[:: max(1, len(missing) // WINDOWS**2)].tolist():
        windows.append(Window(col * width, row * height, side, side).intersection(inside))
    return windows


def _shows_the_same(image: SceneImage, overview: SceneImage, window: Window) -> bool:
    """Whether each cell of a window shows about the same; True where the full resolution cannot be read."""
    down, across = overview.scale
    top, left = round(window.row_off * down), round(window.col_off * across)
    bottom = min(round((window.row_off + window.height) * down), image.height)
    right = min(round((window.col_off + window.width) * across), image.width)
    try:
        full = raster.read(image, Window(left, top, right - left, bottom - top))
    except InputError:
        return True
    coarse = raster.read(overview, window)
    cells = max(1, int(window.height) // CELL_PX), max(1, int(window.width) // CELL_PX)
    share, mean = _cell_means(full, cells)
    coarse_share, coarse_mean = _cell_means(coarse, cells)
    shown = (share > 0.5) & (coarse_share > 0.5)
    return bool(
        (np.abs(share - coarse_share) <= VALID_TOLERANCE).all()
        and (np.abs(mean - coarse_mean)[shown] <= COLOUR_TOLERANCE).all()
    )


def _cell_means(pixels: Pixels, cells: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Share of valid pixels (rows, cols), and mean colour of these (rows, cols, 3), of equal cells of a window."""
    height, width = pixels.valid.shape
    rows = np.linspace(0, height, cells[0], endpoint=False).astype(int)
    cols = np.linspace(0, width, cells[1], endpoint=False).astype(int)

    def total(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.add.reduceat(np.add.reduceat(values.astype(float), rows, axis=0), cols, axis=1))

    valid = total(pixels.valid)
    mean = total(pixels.image) / np.maximum(valid, 1)[..., np.newaxis]
    return valid / total(np.ones_like(pixels.valid)), mean
