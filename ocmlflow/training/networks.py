"""Builds segmentation networks by name, and the models made of them: with probabilities, for images of any size.

A network takes uint8 RGB (batch, height, width, 3) with sides that are multiples of 32, and gives logits (batch,
height, width, 4) float32, the channels `decoders.CHANNELS`. Only plain Keras layers, so that a saved network loads
without this package.
"""

from typing import NamedTuple

import keras
from keras import layers, ops

from ocmlflow.errors import InputError
from ocmlflow.training import decoders, encoders
from ocmlflow.training.encoders import Tensor

STRIDE = 32
"""Sides of an image must be multiples of this."""


def build(*, architecture: str, encoder: str, pretrained: bool) -> keras.Model:
    """A network of this architecture and encoder, with ImageNet or random weights; InputError for unknown names."""
    check(architecture=architecture, encoder=encoder)
    image = keras.Input((None, None, 3), dtype="uint8", name="image")
    logits = decoders.ARCHITECTURES[architecture](encoders.ENCODERS[encoder](image, pretrained))
    return keras.Model(image, logits, name=f"{architecture}-{encoder}")


def check(*, architecture: str, encoder: str) -> None:
    """Raise InputError unless both names are known."""
    for kind, name, known in (
        ("architecture", architecture, decoders.ARCHITECTURES),
        ("encoder", encoder, encoders.ENCODERS),
    ):
        if name not in known:
            raise InputError(f"there is no {kind} {name}; there are: {', '.join(known)}")


def with_probability(network: keras.Model) -> keras.Model:
    """A model of the network that gives probabilities (float32, 0..1) instead of logits.

    The name of its output says what the channels are: networks of earlier versions have one, `probability`.
    """
    name = "-".join(decoders.CHANNELS) if network.output.shape[-1] > 1 else "probability"
    # Always float32: half precision would make the threshold coarse.
    probability = layers.Activation("sigmoid", dtype="float32", name=name)(network.output)
    return keras.Model(network.inputs, probability, name=network.name)


def for_any_size(model: keras.Model) -> keras.Model:
    """A model that takes images of any size and number type: RGB of 0..255, or fractions of 0..1, as float32.

    This is the model that is registered, for users who call it as it is. It pads to multiples of STRIDE by repeating
    edges, and crops again. Its input is float32, as Keras would cut fractions to 0 without a word. A graph cannot raise
    errors on every backend: an image with values below 0 or above 255, such as 16 bits, gets probabilities of NaN.
    This package pads outside of it, because padding inside costs a twelfth of the network's time.
    """
    image = keras.Input((None, None, 3), dtype="float32", name="image")
    lowest = ops.min(image, axis=(1, 2, 3), keepdims=True)
    highest = ops.max(image, axis=(1, 2, 3), keepdims=True)
    has_fractions = ops.any(ops.not_equal(image, ops.round(image)), axis=(1, 2, 3), keepdims=True)
    scale = ops.where(ops.logical_and(has_fractions, highest <= 1), 255.0, 1.0)
    pixels = ops.cast(ops.clip(ops.round(image * scale), 0, 255), "uint8")
    rows = _padding(image[0, :, 0, 0])
    cols = _padding(image[0, 0, :, 0])
    x = model(ops.take(ops.take(pixels, rows.pad, axis=1), cols.pad, axis=2))
    x = ops.take(ops.take(x, rows.crop, axis=1), cols.crop, axis=2)
    x = ops.where(ops.logical_and(lowest >= 0, highest <= 255), x, float("nan"))
    x = layers.Identity(name=model.output_names[0])(x)
    return keras.Model(image, x, name=model.name)


def inner_network(model: keras.Model) -> keras.Model:
    """The model inside one of `for_any_size`, by its equal name; any other model is returned as it is."""
    inner = [layer for layer in model.layers if layer.name == model.name]
    return inner[0] if inner else model


def with_logits(model: keras.Model) -> keras.Model:
    """The network inside a model of `with_probability`, with logits as training needs them."""
    return keras.Model(model.inputs, model.get_layer("logits").output, name=model.name)


def is_encoder_layer(layer: keras.layers.Layer) -> bool:
    """Whether a layer of a network belongs to its encoder."""
    return not layer.name.startswith(("decoder", "logits"))


class _Padding(NamedTuple):
    """Indices, int32, along one side of `length` pixels."""

    pad: Tensor
    """(padded length,): 0 to length - 1, then the last pixel again up to a multiple of STRIDE."""
    crop: Tensor
    """(length,): 0 to length - 1."""


def _padding(line: Tensor) -> _Padding:
    """Padding of an image along one side, of which `line` (length,) is a row or column.

    Its length is known only once there is an image, so indices are sums of ones, not ranges.
    """
    ones = ops.ones_like(ops.cast(line, "float32"))
    blocks = ops.max_pool(ops.reshape(ones, (1, -1, 1)), STRIDE, strides=STRIDE, padding="same")
    padded_ones = ops.reshape(ops.repeat(blocks, STRIDE, axis=1), (-1,))
    pad = ops.minimum(ops.cumsum(padded_ones), ops.sum(ones)) - 1.0
    return _Padding(ops.cast(pad, "int32"), ops.cast(ops.cumsum(ones) - 1.0, "int32"))
