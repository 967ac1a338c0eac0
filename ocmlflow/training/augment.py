"""Augments a batch on the device: random geometry, light, colour, noise and holes, the same geometry for the label.

Strength 1 rotates by up to 15 degrees and shears by up to a tenth, changes light and colour, blurs or sharpens, and
gives a share of the chips noise, half the resolution or a hole. Other strengths scale all of this. Strength 0 leaves
only the eight symmetries of the square and the zoom.
"""

import math
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops, random

from ocmlflow.chips.labels import INVALID
from ocmlflow.training import tensorflow_ops

Tensor: TypeAlias = Any  # of whichever backend

MAX_ANGLE = math.radians(15)
MAX_SHEAR = 0.1
RARE_SHARE = 0.2
"""Share of the chips that get noise, the share that get half the resolution, and the share that get a hole."""
MAX_HOLE = 0.25
"""Longest side of a hole, as a share of the crop's side."""
_HUE_STEP = np.array([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]], np.float32) / math.sqrt(3)
"""Change of a colour (a row vector) per radian of a small rotation about the grey axis."""


def context_side(crop: int, *, strength: float, zoom: float) -> int:
    """Side in pixels of the square to read for a crop of `crop` pixels, so that no transform reaches beyond it."""
    angle, shear = _max_angle(strength), MAX_SHEAR * strength
    return math.ceil(crop * zoom * ((1 + shear) * math.cos(angle) + math.sin(angle)))


def augment(
    image: Tensor, label: Tensor, seed: keras.random.SeedGenerator, *, crop: int, strength: float, zoom: float
) -> tuple[Tensor, Tensor]:
    """Augmented image (batch, crop, crop, 3), RGB 0..255, and label (batch, crop, crop, channels), both float32.

    The input is a batch of (batch, side, side, 3) and (batch, side, side, channels) uint8; the first channel of the
    label is coded as in `chips.labels`. `side` should be `context_side`;
    with less, at least `crop`, pixels beyond the input come out as not valid. `zoom` is the largest factor, both in
    and out.
    """
    image, label = _move(image, label, seed, crop=crop, strength=strength, zoom=zoom)
    if strength:
        image = _change_sharpness(image, seed, strength)
        image = _change_colour(image, seed, strength)
        image = _add_noise(image, seed, strength)
        image, label = _cut_holes(image, label, seed, strength)
    return ops.clip(image, 0.0, 255.0), label


def _max_angle(strength: float) -> float:
    return min(MAX_ANGLE * strength, math.pi / 4)  # the symmetries do the rest


def _uniform(shape: tuple[Any, ...], limit: float, seed: keras.random.SeedGenerator) -> Tensor:
    return random.uniform(shape, -limit, limit, seed=seed)


def _move(
    image: Tensor, label: Tensor, seed: keras.random.SeedGenerator, *, crop: int, strength: float, zoom: float
) -> tuple[Tensor, Tensor]:
    """Zoom, rotate, shear and mirror image and label about their middle, by the same random transform."""
    matrix = _random_transform(ops.shape(image)[0], seed, side=image.shape[1], crop=crop, strength=strength, zoom=zoom)
    image, label = ops.cast(image, "float32"), ops.cast(label, "float32")
    image = tensorflow_ops.warp(image, matrix, side=crop, interpolation="bilinear", fill=0.0)
    # A label must stay a class: nearest pixel, and not valid beyond the edge.
    label = tensorflow_ops.warp(label, matrix, side=crop, interpolation="nearest", fill=float(INVALID))
    return image, label


def _random_transform(
    batch: Any, seed: keras.random.SeedGenerator, *, side: int, crop: int, strength: float, zoom: float
) -> Tensor:
    """(batch, 8) random affine transforms from pixels of the crop to pixels of the input, as `warp` takes them."""
    scale = ops.exp(_uniform((batch,), math.log(zoom), seed))
    angle = _uniform((batch,), _max_angle(strength), seed)
    shear = _uniform((batch,), MAX_SHEAR * strength, seed)
    coin = random.uniform((3, batch), seed=seed) < 0.5
    cos, sin = scale * ops.cos(angle), scale * ops.sin(angle)
    # (batch, 2) each: how far one pixel right, and one pixel down, in the crop leads in the input.
    right = ops.stack([cos, sin], axis=1)
    down = ops.stack([shear * cos - sin, shear * sin + cos], axis=1)
    right = ops.where(coin[0][:, None], -1.0, 1.0) * right
    down = ops.where(coin[1][:, None], -1.0, 1.0) * down
    transposed = coin[2][:, None]
    right, down = ops.where(transposed, down, right), ops.where(transposed, right, down)
    # The first pixel, so that the middle of the crop is the middle of the input.
    first = (side - 1) / 2 - (crop - 1) / 2 * (right + down)
    zero = ops.zeros_like(scale)
    return ops.stack([right[:, 0], down[:, 0], first[:, 0], right[:, 1], down[:, 1], first[:, 1], zero, zero], axis=1)


def _change_sharpness(image: Tensor, seed: keras.random.SeedGenerator, strength: float) -> Tensor:
    """Blur or sharpen every chip a little, and bring some to half their resolution."""
    batch, side = ops.shape(image)[0], image.shape[1]
    smooth = ops.average_pool(image, 3, strides=1, padding="same")
    image += ops.minimum(random.uniform((batch, 1, 1, 1), -0.5, 1.0, seed=seed) * strength, 1.0) * (smooth - image)
    if side % 2:
        return image
    half = ops.average_pool(image, 2, strides=2)
    coarse = ops.image.resize(half, (side, side), interpolation="bilinear")
    return image + ops.cast(_rare_choice(batch, seed, strength), "float32") * (coarse - image)


def _change_colour(image: Tensor, seed: keras.random.SeedGenerator, strength: float) -> Tensor:
    """Change contrast, colour balance, brightness, saturation, hue and gamma of each chip a little."""
    batch, side = ops.shape(image)[0], image.shape[1]
    contrast = ops.exp(strength * _uniform((batch, 1, 1), 0.27, seed))
    saturation = ops.exp(strength * _uniform((batch, 1, 1), 0.3, seed))
    balance = ops.exp(strength * _uniform((batch, 1, 3), 0.08, seed))
    brightness = strength * _uniform((batch, 1, 1), 30.0, seed)
    hue = strength * _uniform((batch, 1, 1), 0.1, seed)
    gamma = strength * _uniform((batch, 1, 1), 0.28, seed)[..., None]
    # All but gamma are linear in the channels, so one matrix and one offset do them: colour @ matrix + offset.
    mean = ops.mean(image, axis=(1, 2, 3))[:, None, None]
    identity = ops.eye(3)
    matrix = identity * contrast * balance
    offset = (1.0 - contrast) * mean * balance + brightness
    saturate = saturation * identity + (1.0 - saturation) / 3.0
    rotate_hue = identity + hue * ops.convert_to_tensor(_HUE_STEP)
    matrix = ops.matmul(ops.matmul(matrix, saturate), rotate_hue)
    offset = ops.matmul(ops.matmul(offset, saturate), rotate_hue)
    pixels = ops.reshape(image, (-1, side * side, 3))
    image = ops.reshape(ops.matmul(pixels, matrix) + offset, (-1, side, side, 3))
    image = ops.clip(image, 0.0, 255.0)
    # A parabola in place of the power: that would take as long as all the rest, and is infinitely steep at black.
    return image * (1.0 + gamma - gamma / 255.0 * image)


def _add_noise(image: Tensor, seed: keras.random.SeedGenerator, strength: float) -> Tensor:
    """Add Gaussian noise to some chips."""
    batch = ops.shape(image)[0]
    limit = ops.where(_rare_choice(batch, seed, strength), 12.0 * strength, 0.0)
    deviation = limit * random.uniform((batch, 1, 1, 1), seed=seed)
    # One field of noise for the whole batch: few of its chips get any.
    return image + deviation * random.normal((1, *image.shape[1:]), seed=seed)


def _cut_holes(
    image: Tensor, label: Tensor, seed: keras.random.SeedGenerator, strength: float
) -> tuple[Tensor, Tensor]:
    """Fill a rectangle of some chips with their mean colour, not valid, so that less context must do around it."""
    batch, side = ops.shape(image)[0], image.shape[1]
    middle = random.uniform((2, batch, 1, 1, 1), 0, side, seed=seed)
    half = random.uniform((2, batch, 1, 1, 1), 0.25, 1.0, seed=seed) * MAX_HOLE * side / 2
    line = ops.arange(side, dtype="float32")
    row, col = ops.reshape(line, (1, side, 1, 1)), ops.reshape(line, (1, 1, side, 1))
    inside = ops.logical_and(ops.abs(row - middle[0]) < half[0], ops.abs(col - middle[1]) < half[1])
    inside = ops.logical_and(inside, _rare_choice(batch, seed, strength))
    mean = ops.mean(image, axis=(1, 2), keepdims=True)
    return ops.where(inside, mean, image), ops.where(inside, float(INVALID), label)


def _rare_choice(batch: Any, seed: keras.random.SeedGenerator, strength: float) -> Tensor:
    """(batch, 1, 1, 1) bool: which chips get a rare effect."""
    return random.uniform((batch, 1, 1, 1), seed=seed) < RARE_SHARE * strength
