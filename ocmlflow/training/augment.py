"""A batch, to an augmented batch, on the device: one draw moves image, label and validity together.

At strength 1, and in proportion at others: rotation by up to 15 degrees, a tenth of shear, light and colour, and for a
share of the chips noise, blur or sharpening, half the resolution, and holes. At 0 only the eight symmetries and the
zoom are left.
"""

import math
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops, random

from ocmlflow.chips.labels import INVALID
from ocmlflow.training import tensorflow_ops

Tensor: TypeAlias = Any  # of whichever backend

ANGLE = math.radians(15)
SHEAR = 0.1
RARE_SHARE = 0.2
"""Share of the chips that noise, lower resolution and holes each come upon."""
MAX_HOLE = 0.25
"""Longest side of a hole, of the crop's."""
_HUE = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], np.float32) / math.sqrt(3)
"""What a small turn about the grey axis adds to a colour, for each radian."""


def context_side(crop: int, *, strength: float, zoom: float) -> int:
    """Side of the square that a crop of `crop` pixels is cut from, so that zooming and turning show no border."""
    angle, shear = _angle(strength), SHEAR * strength
    return math.ceil(crop * zoom * ((1 + shear) * math.cos(angle) + math.sin(angle)))


def augment(
    image: Tensor, label: Tensor, seed: keras.random.SeedGenerator, *, crop: int, strength: float, zoom: float
) -> tuple[Tensor, Tensor]:
    """Image (batch, crop, crop, 3), RGB 0..255, and coded label (batch, crop, crop, 1), float32.

    They are made of those of a batch, (batch, side, side, 3) and (batch, side, side, 1) uint8.

    `side` is `context_side`, or at least `crop`; what a turn brings in from beyond it is not valid. `zoom` is the
    largest, in and out.
    """
    image, label = _moved(image, label, seed, crop, strength, zoom)
    if strength:
        image = _focus(image, seed, strength)
        image = _colour(image, seed, strength)
        image = _noise(image, seed, strength)
        image, label = _holes(image, label, seed, strength)
    return ops.clip(image, 0.0, 255.0), label


def _angle(strength: float) -> float:
    return min(ANGLE * strength, math.pi / 4)  # the symmetries do the rest


def _moved(
    image: Tensor, label: Tensor, seed: keras.random.SeedGenerator, crop: int, strength: float, zoom: float
) -> tuple[Tensor, Tensor]:
    """One of the eight symmetries of the square, zoomed, turned and sheared about the middle."""
    batch, side = ops.shape(image)[0], image.shape[1]

    def draw(most: float) -> Tensor:
        return random.uniform((batch,), -most, most, seed=seed)

    scale, angle, shear = ops.exp(draw(math.log(zoom))), draw(_angle(strength)), draw(SHEAR * strength)
    cos, sin = scale * ops.cos(angle), scale * ops.sin(angle)
    # From a pixel (x, y) of the result to one of the input: x' = a x + b y + c, y' = d x + e y + f.
    a, b, d, e = cos, shear * cos - sin, sin, shear * sin + cos
    turned = random.uniform((3, batch), seed=seed) < 0.5
    across, down = ops.where(turned[0], -1.0, 1.0), ops.where(turned[1], -1.0, 1.0)
    a, d, b, e = across * a, across * d, down * b, down * e
    a, b, d, e = (ops.where(turned[2], *pair) for pair in ((b, a), (a, b), (e, d), (d, e)))
    middle, centre = (side - 1) / 2, (crop - 1) / 2
    zero = ops.zeros_like(a)
    matrix = ops.stack([a, b, middle - centre * (a + b), d, e, middle - centre * (d + e), zero, zero], axis=1)
    image, label = (ops.cast(part, "float32") for part in (image, label))
    # Interpolated labels are no labels: nearest for them, and not valid from beyond the edge.
    image = tensorflow_ops.warp(image, matrix, side=crop, interpolation="bilinear", fill=0.0)
    label = tensorflow_ops.warp(label, matrix, side=crop, interpolation="nearest", fill=float(INVALID))
    return image, label


def _focus(image: Tensor, seed: keras.random.SeedGenerator, strength: float) -> Tensor:
    """Blurred or sharpened a little, and some chips at half their resolution."""
    batch, side = ops.shape(image)[0], image.shape[1]
    smooth = ops.average_pool(image, 3, strides=1, padding="same")
    image += ops.minimum(random.uniform((batch, 1, 1, 1), -0.5, 1.0, seed=seed) * strength, 1.0) * (smooth - image)
    if side % 2:
        return image
    half = ops.average_pool(image, 2, strides=2)
    coarse = ops.image.resize(half, (side, side), interpolation="bilinear")
    return image + ops.cast(_rarely(batch, seed, strength), "float32") * (coarse - image)


def _colour(image: Tensor, seed: keras.random.SeedGenerator, strength: float) -> Tensor:
    """Contrast, the balance of the channels, brightness, saturation, hue and gamma, a little off for each chip."""
    batch, side = ops.shape(image)[0], image.shape[1]

    def draw(most: float, channels: int = 1) -> Tensor:
        return strength * random.uniform((batch, 1, channels), -most, most, seed=seed)

    # All but gamma are sums of a pixel's channels, and one matrix: colours are rows, and go to colour @ turn + shift.
    contrast, saturation, balance = ops.exp(draw(0.27)), ops.exp(draw(0.3)), ops.exp(draw(0.08, 3))
    mean, one = ops.mean(image, axis=(1, 2, 3))[:, None, None], ops.eye(3)
    turn, shift = one * contrast * balance, (1.0 - contrast) * mean * balance + draw(30.0)
    for step in (saturation * one + (1.0 - saturation) / 3.0, one + draw(0.1) * ops.convert_to_tensor(_HUE.T)):
        turn, shift = ops.matmul(turn, step), ops.matmul(shift, step)
    image = ops.reshape(ops.matmul(ops.reshape(image, (-1, side * side, 3)), turn) + shift, (-1, side, side, 3))
    image = ops.clip(image, 0.0, 255.0)
    # Gamma but for its slope at black; a power takes as long as all else here.
    bend = draw(0.28)[..., None]
    return image * (1.0 + bend - bend / 255.0 * image)


def _noise(image: Tensor, seed: keras.random.SeedGenerator, strength: float) -> Tensor:
    batch = ops.shape(image)[0]
    most = ops.where(_rarely(batch, seed, strength), 12.0 * strength, 0.0)
    amount = most * random.uniform((batch, 1, 1, 1), seed=seed)
    return image + amount * random.normal((1, *image.shape[1:]), seed=seed)  # the few chips of a batch share it


def _holes(image: Tensor, label: Tensor, seed: keras.random.SeedGenerator, strength: float) -> tuple[Tensor, Tensor]:
    """Some chips with a rectangle of their mean colour, in which nothing is to be learnt.

    What lies beside it is to be told by less of its surroundings.
    """
    batch, side = ops.shape(image)[0], image.shape[1]
    middle = random.uniform((2, batch, 1, 1, 1), 0, side, seed=seed)
    half = random.uniform((2, batch, 1, 1, 1), 0.25, 1.0, seed=seed) * MAX_HOLE * side / 2
    line = ops.arange(side, dtype="float32")
    row, col = ops.reshape(line, (1, side, 1, 1)), ops.reshape(line, (1, 1, side, 1))
    inside = ops.logical_and(ops.abs(row - middle[0]) < half[0], ops.abs(col - middle[1]) < half[1])
    inside = ops.logical_and(inside, _rarely(batch, seed, strength))
    mean = ops.mean(image, axis=(1, 2), keepdims=True)
    return ops.where(inside, mean, image), ops.where(inside, float(INVALID), label)


def _rarely(batch: Any, seed: keras.random.SeedGenerator, strength: float) -> Tensor:
    return random.uniform((batch, 1, 1, 1), seed=seed) < RARE_SHARE * strength
