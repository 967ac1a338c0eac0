"""Finds the blocks of an image that GDAL decodes with a warning only: what they show is not what was photographed."""

from rasterio.io import DatasetReader
from rasterio.windows import Window

from ocmlflow.scenes import gdal_messages, image_file
from ocmlflow.scenes.gdal_messages import GDAL_ERRORS

Blocks = dict[tuple[int, int], str]
"""GDAL's message about damaged blocks, by their row and column."""


def find(dataset: DatasetReader, window: Window, bands: list[int], level: int | None) -> Blocks:
    """The blocks that meet a window and are decoded with a warning or not at all.

    The file is opened again, since a block that GDAL has in its cache gives no second warning.
    """
    options = {} if level is None else {"overview_level": level}
    found: Blocks = {}
    with image_file.open_image(dataset.name, **options) as fresh:
        for block in _blocks(dataset, window):
            with gdal_messages.collect_warnings() as messages:
                try:
                    fresh.read(bands, window=_block_window(dataset, block))
                except GDAL_ERRORS as error:
                    messages.append(gdal_messages.error_text(error))
            if messages:
                found[block] = messages[0]
    return found


def message(dataset: DatasetReader, window: Window, damaged: Blocks) -> str | None:
    """GDAL's message about a damaged block that meets the window; None where none does."""
    return next((damaged[block] for block in _blocks(dataset, window) if block in damaged), None)


def _blocks(dataset: DatasetReader, window: Window) -> list[tuple[int, int]]:
    """Rows and columns of the blocks that meet a window."""
    height, width = dataset.block_shapes[0]
    rows = range(int(window.row_off) // height, -(-int(window.row_off + window.height) // height))
    cols = range(int(window.col_off) // width, -(-int(window.col_off + window.width) // width))
    return [(row, col) for row in rows for col in cols]


def _block_window(dataset: DatasetReader, block: tuple[int, int]) -> Window:
    height, width = dataset.block_shapes[0]
    whole = Window(0, 0, dataset.width, dataset.height)
    return Window(block[1] * width, block[0] * height, width, height).intersection(whole)
