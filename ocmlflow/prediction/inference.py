"""A predict function and an open scene, to probabilities, window by window."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
from rasterio.windows import Window

from ocmlflow.probability import Predict, calibrate
from ocmlflow.scenes.raster import Pixels
from ocmlflow.scenes.windows import Tile

SYMMETRIES = {"none": ((0, False),), "flips": ((0, False), (0, True), (2, False), (2, True))}
SYMMETRIES["d4"] = tuple((turns, flip) for turns in range(4) for flip in (False, True))
"""Ways to look at an image, by name: quarter turns, and whether it is then mirrored."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def padded(predict: Predict, multiple: int) -> Predict:
    """The same function for images of any size: filled with black up to a multiple of `multiple`, and cut again."""

    def any_size(images: np.ndarray) -> np.ndarray:
        height, width = images.shape[1:3]
        below, right = -height % multiple, -width % multiple
        if below or right:
            images = np.pad(images, ((0, 0), (0, below), (0, right), (0, 0)))
        return np.asarray(predict(images))[:, :height, :width]

    return any_size


def calibrated(predict: Predict, temperature: float) -> Predict:
    """The same function, its probabilities calibrated."""
    if temperature == 1:
        return predict
    return lambda images: calibrate(predict(images), temperature)


def averaged(predicts: Sequence[Predict], tta: str) -> Predict:
    """The mean of some functions, each seeing the images in all the SYMMETRIES of that name."""
    ways = SYMMETRIES[tta]
    if len(predicts) * len(ways) == 1:
        return predicts[0]

    def mean(images: np.ndarray) -> np.ndarray:
        found = np.zeros((*images.shape[:3], 1), np.float32)
        for turns, flip in ways:
            seen = np.rot90(images, turns, axes=(1, 2))
            seen = np.ascontiguousarray(seen[:, :, ::-1] if flip else seen)
            for predict in predicts:
                back = predict(seen)
                found += np.rot90(back[:, :, ::-1] if flip else back, -turns, axes=(1, 2))
        return found / np.float32(len(predicts) * len(ways))

    return mean


def predict_tiles(
    predict: Predict, read: Callable[[Window], Pixels], tiles: Iterable[Tile], *, batch_size: int
) -> Generator[tuple[Tile, np.ndarray, np.ndarray], None, None]:
    """Each tile with what its core shows: probability (height, width) float32, and valid (height, width) bool.

    The probability is 0 where the window shows no imagery at all; the network never sees such a window. The next batch
    is read, in a thread of its own, while the network works on the present one.
    """
    for batch, pixels in _ahead(
        lambda batch: (batch, [read(tile.window) for tile in batch]), _batches(tiles, batch_size)
    ):
        seen = [number for number, found in enumerate(pixels) if found.valid.any()]
        shapes = {pixels[number].valid.shape for number in seen}
        probabilities: dict[int, np.ndarray] = {}
        for shape in sorted(shapes):  # windows at the edge of a scene may be smaller
            alike = [number for number in seen if pixels[number].valid.shape == shape]
            probabilities |= dict(zip(alike, predict(np.stack([pixels[i].image for i in alike])), strict=True))
        for number, tile in enumerate(batch):
            core, window = tile.core, tile.window
            top, left = core.row_off - window.row_off, core.col_off - window.col_off
            at = np.s_[top : top + core.height, left : left + core.width]
            valid = pixels[number].valid[at]
            if number in probabilities:
                yield tile, probabilities[number][at][..., 0].astype(np.float32), valid
            else:
                yield tile, np.zeros(valid.shape, np.float32), valid


def _batches(tiles: Iterable[Tile], batch_size: int) -> Iterator[list[Tile]]:
    rest = iter(tiles)
    while batch := list(islice(rest, batch_size)):
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
