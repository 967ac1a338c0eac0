"""Runs a predict function over the tiles of a scene, with test-time augmentation, ensembles and calibration."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
from rasterio.windows import Window

from ocmlflow.probability import Predict, calibrate
from ocmlflow.scenes.raster import Pixels
from ocmlflow.scenes.windows import Tile

SYMMETRIES = {
    "none": ((0, False),),
    "flips": ((0, False), (0, True), (2, False), (2, True)),
    "d4": tuple((turns, mirrored) for turns in range(4) for mirrored in (False, True)),
}
"""Views of an image for test-time augmentation, by name: quarter turns, and whether it is then mirrored."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def padded(predict: Predict, multiple: int) -> Predict:
    """A predict function for images of any size: padded with black to a multiple of `multiple`, and cropped again."""

    def predict_any_size(images: np.ndarray) -> np.ndarray:
        height, width = images.shape[1:3]
        below = -height % multiple
        right = -width % multiple
        if below or right:
            images = np.pad(images, ((0, 0), (0, below), (0, right), (0, 0)))
        return np.asarray(predict(images))[:, :height, :width]

    return predict_any_size


def calibrated(predict: Predict, temperature: float) -> Predict:
    """A predict function whose probabilities are calibrated by a temperature."""
    if temperature == 1:
        return predict
    return lambda images: calibrate(predict(images), temperature)


def averaged(predicts: Sequence[Predict], tta: str) -> Predict:
    """A predict function that gives the mean of others, each on all views of an image, of that name in SYMMETRIES."""
    views = SYMMETRIES[tta]
    if len(predicts) * len(views) == 1:
        return predicts[0]

    def predict_mean(images: np.ndarray) -> np.ndarray:
        total = np.zeros((*images.shape[:3], 1), np.float32)
        for turns, mirrored in views:
            view = np.rot90(images, turns, axes=(1, 2))
            view = np.ascontiguousarray(view[:, :, ::-1] if mirrored else view)
            for predict in predicts:
                probability = predict(view)
                total += np.rot90(probability[:, :, ::-1] if mirrored else probability, -turns, axes=(1, 2))
        return total / np.float32(len(predicts) * len(views))

    return predict_mean


def predict_tiles(
    predict: Predict, read: Callable[[Window], Pixels], tiles: Iterable[Tile], *, batch_size: int
) -> Generator[tuple[Tile, np.ndarray, np.ndarray], None, None]:
    """Predict tiles in batches: each tile with probability (height, width) float32 and valid, bool alike, of its core.

    The network never sees a window without any imagery; the probability there is 0. A thread reads the next batch
    while the network runs on the present one.
    """
    for batch, pixels in _prefetch(partial(_read_batch, read), _batches(tiles, batch_size)):
        probabilities = _predict_batch(predict, pixels)
        for tile, tile_pixels, probability in zip(batch, pixels, probabilities, strict=True):
            core = _core_slices(tile)
            yield tile, probability[core].astype(np.float32), tile_pixels.valid[core]


def _read_batch(read: Callable[[Window], Pixels], batch: list[Tile]) -> tuple[list[Tile], list[Pixels]]:
    return batch, [read(tile.window) for tile in batch]


def _predict_batch(predict: Predict, pixels: list[Pixels]) -> list[np.ndarray]:
    """Probability (height, width) of each window; 0 where a window has no imagery."""
    probabilities: list[np.ndarray] = [np.zeros(window.valid.shape, np.float32) for window in pixels]
    with_imagery = [number for number, window in enumerate(pixels) if window.valid.any()]
    for shape in sorted({pixels[number].valid.shape for number in with_imagery}):  # smaller at the edge of a scene
        numbers = [number for number in with_imagery if pixels[number].valid.shape == shape]
        predicted = predict(np.stack([pixels[number].image for number in numbers]))
        for number, probability in zip(numbers, predicted, strict=True):
            probabilities[number] = probability[..., 0]
    return probabilities


def _core_slices(tile: Tile) -> tuple[slice, slice]:
    """Where the core lies in the window."""
    top = tile.core.row_off - tile.window.row_off
    left = tile.core.col_off - tile.window.col_off
    return np.s_[top : top + tile.core.height, left : left + tile.core.width]


def _batches(tiles: Iterable[Tile], batch_size: int) -> Iterator[list[Tile]]:
    rest = iter(tiles)
    while batch := list(islice(rest, batch_size)):
        yield batch


def _prefetch(function: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """The results of a function in order; a thread computes the next one while the caller uses the present one."""
    with ThreadPoolExecutor(1) as thread:
        present = None
        for item in items:
            following = thread.submit(function, item)
            if present:
                yield present.result()
            present = following
        if present:
            yield present.result()
