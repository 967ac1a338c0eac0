"""A predict function and an open scene, to probabilities, window by window."""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from rasterio.windows import Window

from ocmlflow.grid import Tile
from ocmlflow.raster import Pixels

Predict = Callable[[np.ndarray], np.ndarray]
"""(batch, height, width, 3) uint8 RGB to (batch, height, width, 1) probability, float 0..1."""

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Items and their number to the same items, with a bar or some other sign of life."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def padded(predict: Predict, multiple: int) -> Predict:
    """The same function for images of any size: filled with black up to a multiple of `multiple`, and cut again."""

    def any_size(images: np.ndarray) -> np.ndarray:
        height, width = images.shape[1:3]
        below, right = -height % multiple, -width % multiple
        filled = np.pad(images, ((0, 0), (0, below), (0, right), (0, 0)))
        return np.asarray(predict(filled))[:, :height, :width]

    return any_size


def predict_tiles(
    predict: Predict, read: Callable[[Window], Pixels], tiles: Iterable[Tile], *, batch_size: int
) -> Generator[tuple[Tile, np.ndarray], None, None]:
    """Each tile with the probability of its core, (height, width) float32; 0 where its window shows no imagery.

    The next batch is read, in a thread of its own, while the network works on the present one.
    """
    batches = _batches(iter(tiles), batch_size)
    for batch, pixels in _ahead(lambda batch: (batch, [read(tile.window) for tile in batch]), batches):
        seen = [number for number, found in enumerate(pixels) if found.valid.any()]
        probabilities = dict(zip(seen, predict(np.stack([pixels[i].image for i in seen])), strict=True)) if seen else {}
        for number, tile in enumerate(batch):
            core = tile.core
            if number not in probabilities:
                yield tile, np.zeros((core.height, core.width), np.float32)
                continue
            top, left = core.row_off - tile.window.row_off, core.col_off - tile.window.col_off
            kept = probabilities[number][top : top + core.height, left : left + core.width, 0]
            yield tile, kept.astype(np.float32)


def _batches(tiles: Iterator[Tile], batch_size: int) -> Iterator[list[Tile]]:
    while batch := list(islice(tiles, batch_size)):
        yield batch


def _ahead(function: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """The function's results in order, the next one in the making while the caller has the present one."""
    with ThreadPoolExecutor(1) as worker:
        waiting = None
        for item in items:
            following = worker.submit(function, item)
            if waiting:
                yield waiting.result()
            waiting = following
        if waiting:
            yield waiting.result()
