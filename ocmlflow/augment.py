"""A batch, to an augmented batch, on the device: one draw moves image, label and validity together."""

import math
from typing import Any, TypeAlias

import keras
from keras import ops, random

Tensor: TypeAlias = Any  # of whichever backend

SCALE = 1.18
"""Largest zoom in or out: the model must hold at resolutions a little off its own."""
ANGLE = math.radians(15)
"""Largest rotation beside the eight symmetries."""


def context(crop: int) -> int:
    """Side of the square that a crop of `crop` pixels is cut from, so that zooming and turning show no border."""
    return math.ceil(crop * SCALE * (math.cos(ANGLE) + math.sin(ANGLE)))


def augment(coded: Tensor, seed: keras.random.SeedGenerator, *, crop: int) -> Tensor:
    """(batch, crop, crop, 4) float32 of a (batch, side, side, 4) uint8 batch: RGB 0..255 and the coded label.

    `side` is that of `context`, or at least `crop`; what a turn brings in from beyond it is not valid.
    """
    coded = _symmetry(ops.cast(coded, "float32"), seed)
    image, label = _zoom_and_turn(coded[..., :3], coded[..., 3:], seed)
    margin = (coded.shape[1] - crop) // 2
    inner = slice(margin, margin + crop)
    return ops.concatenate([_colour(image[:, inner, inner], seed), label[:, inner, inner]], axis=-1)


def _symmetry(x: Tensor, seed: keras.random.SeedGenerator) -> Tensor:
    """One of the eight symmetries of the square for each chip."""
    draw = random.uniform((3, ops.shape(x)[0], 1, 1, 1), seed=seed)
    x = ops.where(draw[0] < 0.5, ops.flip(x, axis=2), x)
    x = ops.where(draw[1] < 0.5, ops.flip(x, axis=1), x)
    return ops.where(draw[2] < 0.5, ops.transpose(x, (0, 2, 1, 3)), x)


def _zoom_and_turn(image: Tensor, label: Tensor, seed: keras.random.SeedGenerator) -> tuple[Tensor, Tensor]:
    batch, side = ops.shape(image)[0], image.shape[1]
    zoom = ops.exp(random.uniform((batch,), -math.log(SCALE), math.log(SCALE), seed=seed))
    angle = random.uniform((batch,), -ANGLE, ANGLE, seed=seed)
    a, b = zoom * ops.cos(angle), zoom * ops.sin(angle)
    centre = (side - 1) / 2
    zero = ops.zeros_like(a)
    # From a pixel (x, y) of the result to one of the input: x' = a x - b y + c, y' = b x + a y + f.
    rows = [a, -b, centre - a * centre + b * centre, b, a, centre - b * centre - a * centre, zero, zero]
    matrix = ops.stack(rows, axis=1)
    # Interpolated labels are no labels: nearest for them, and 255 (not valid) from beyond the edge.
    return (
        ops.image.affine_transform(image, matrix, interpolation="bilinear", fill_mode="constant", fill_value=0),
        ops.image.affine_transform(label, matrix, interpolation="nearest", fill_mode="constant", fill_value=255),
    )


def _colour(image: Tensor, seed: keras.random.SeedGenerator) -> Tensor:
    """Brightness, contrast, and the balance of the channels, a little off for each chip."""
    batch = ops.shape(image)[0]
    contrast = random.uniform((batch, 1, 1, 1), 0.75, 1.3, seed=seed)
    brightness = random.uniform((batch, 1, 1, 1), -30.0, 30.0, seed=seed)
    balance = random.uniform((batch, 1, 1, 3), 0.92, 1.08, seed=seed)
    mean = ops.mean(image, axis=(1, 2, 3), keepdims=True)
    changed = ((image - mean) * contrast + mean) * balance + brightness
    return ops.clip(changed, 0.0, 255.0)
