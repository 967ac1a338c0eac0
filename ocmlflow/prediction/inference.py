"""Runs a predict function over the tiles of a scene, with test-time augmentation, ensembles and calibration."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


@dataclass(frozen=True)
class TilePrediction:
    """What a predict function says of the core of a tile."""

    tile: Tile
    probability: np.ndarray
    """(height, width) float32: probability of building, 0..1; 0 in a window without imagery."""
    distance: np.ndarray | None
    """(height, width) float32: distance to the building's own edge, as `Predict` gives it; None if unknown."""
    valid: np.ndarray
    """(height, width) bool: where there is imagery."""


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

    def predict_calibrated(images: np.ndarray) -> np.ndarray:
        predicted = np.array(predict(images))
        predicted[..., 0] = calibrate(predicted[..., 0], temperature)
        return predicted

    return predict_calibrated


def building_and_distance(predict: Predict) -> Predict:
    """A predict function of the first two channels of a network, or of its one."""
    return lambda images: predict(images)[..., :2]


def averaged(predicts: Sequence[Predict], tta: str) -> Predict:
    """A predict function that gives the mean of others, each on all views of an image, of that name in SYMMETRIES.

    It gives the distance only if all of them do.
    """
    views = SYMMETRIES[tta]
    if len(predicts) * len(views) == 1:
        return predicts[0]

    def predict_mean(images: np.ndarray) -> np.ndarray:
        total = np.zeros((*images.shape[:3], 2), np.float32)
        for turns, mirrored in views:
            view = np.rot90(images, turns, axes=(1, 2))
            view = np.ascontiguousarray(view[:, :, ::-1] if mirrored else view)
            for predict in predicts:
                predicted = predict(view)
                total = total[..., : predicted.shape[-1]]
                predicted = np.rot90(predicted[:, :, ::-1] if mirrored else predicted, -turns, axes=(1, 2))
                total += predicted[..., : total.shape[-1]]
        return total / np.float32(len(predicts) * len(views))

    return predict_mean


def predict_tiles(
    predict: Predict, read: Callable[[Window], Pixels], tiles: Iterable[Tile], *, batch_size: int
) -> Generator[TilePrediction, None, None]:
    """Predict tiles in batches.

    The network never sees a window without any imagery. A thread reads the next batch while the network runs on the
    present one.
    """
    for batch, pixels in _prefetch(partial(_read_batch, read), _batches(tiles, batch_size)):
        for tile, tile_pixels, predicted in zip(batch, pixels, _predict_batch(predict, pixels), strict=True):
            core = _core_slices(tile)
            channels = predicted[core].astype(np.float32)
            distance = channels[..., 1] if channels.shape[-1] > 1 else None
            yield TilePrediction(tile, channels[..., 0], distance, tile_pixels.valid[core])


def _read_batch(read: Callable[[Window], Pixels], batch: list[Tile]) -> tuple[list[Tile], list[Pixels]]:
    return batch, [read(tile.window) for tile in batch]


def _predict_batch(predict: Predict, pixels: list[Pixels]) -> list[np.ndarray]:
    """What is predicted of each window, (height, width, channels); one channel of 0 where a window has no imagery."""
    predictions: list[np.ndarray] = [np.zeros((*window.valid.shape, 1), np.float32) for window in pixels]
    with_imagery = [number for number, window in enumerate(pixels) if window.valid.any()]
    for shape in sorted({pixels[number].valid.shape for number in with_imagery}):  # smaller at the edge of a scene
        numbers = [number for number in with_imagery if pixels[number].valid.shape == shape]
        predicted = predict(np.stack([pixels[number].image for number in numbers]))
        for number, window in zip(numbers, predicted, strict=True):
            predictions[number] = window
    return predictions


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
