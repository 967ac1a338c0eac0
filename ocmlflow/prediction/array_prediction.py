"""Predicts an image that is in memory."""

import numpy as np
from rasterio.windows import Window

from ocmlflow.errors import InputError
from ocmlflow.prediction import inference
from ocmlflow.probability import Predict
from ocmlflow.scenes import windows
from ocmlflow.scenes.raster import OPAQUE, Pixels

SIZE, MARGIN = 1184, 160
"""Window and the context that is trimmed from each side of it, in pixels."""


def predict_image(predict: Predict, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability (height, width) float32 and valid (height, width) bool of an image of any size.

    The image is uint8, (height, width, 3) RGB or (height, width, 4) RGBA; what is transparent is not valid, and its
    probability is 0. Raises InputError for any other image.
    """
    pixels = _pixels(image)
    height, width = pixels.valid.shape
    tiles = windows.tiles(height, width, size=SIZE, margin=MARGIN)

    def read(window: Window) -> Pixels:
        rows, cols = window.toslices()
        return Pixels(pixels.image[rows, cols], pixels.valid[rows, cols])

    probability = np.zeros((height, width), np.float32)
    for core in inference.predict_tiles(predict, read, tiles, batch_size=1):
        probability[core.tile.core.toslices()] = np.where(core.valid, core.probability, 0)
    return probability, pixels.valid


def _pixels(image: np.ndarray) -> Pixels:
    if image.ndim != 3 or image.shape[2] not in (3, 4) or image.dtype != np.uint8 or 0 in image.shape:
        raise InputError(
            f"the image has shape {image.shape} and type {image.dtype}: (height, width, 3) or (height, width, 4) of "
            "uint8 is needed, red, green, blue of 0 to 255"
        )
    valid = image[..., 3] > OPAQUE if image.shape[2] == 4 else np.ones(image.shape[:2], bool)
    return Pixels(np.where(valid[..., np.newaxis], image[..., :3], 0).astype(np.uint8), valid)
