"""ARCHITECTURES and ENCODERS: name to a function that builds a network.

A network takes uint8 RGB (batch, height, width, 3), sides multiples of 32, and gives logits (batch, height, width, 1)
float32. Plain layers of Keras alone, so that a saved one loads where this package has never been.
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
    """The network of that name on that encoder, with ImageNet weights or random ones."""
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
    """The network with probabilities (float32, 0..1) in place of logits."""
    # Float32 whatever the policy of training is: half floats would make the threshold coarse.
    probability = layers.Activation("sigmoid", dtype="float32", name="probability")(network.output)
    return keras.Model(network.inputs, probability, name=network.name)


def for_any_size(model: keras.Model) -> keras.Model:
    """The model for images whose sides are no multiples of STRIDE too: their edges are repeated, and cut off again.

    That is what is registered, for whoever takes it as it is. Here it is done outside: within, it takes a twelfth of a
    network's time.
    """
    image = keras.Input((None, None, 3), dtype="uint8", name="image")
    rows, cols = _indices(image[0, :, 0, 0]), _indices(image[0, 0, :, 0])
    x = model(ops.take(ops.take(image, rows.padded, axis=1), cols.padded, axis=2))
    x = ops.take(ops.take(x, rows.cut, axis=1), cols.cut, axis=2)
    return keras.Model(image, x, name=model.name)


def inner_network(model: keras.Model) -> keras.Model:
    """The model that `for_any_size` was given, which has its name; one that was never given to it as it is."""
    within = [layer for layer in model.layers if layer.name == model.name]
    return within[0] if within else model


def with_logits(model: keras.Model) -> keras.Model:
    """The network that `with_probability` was made of, to be trained on."""
    return keras.Model(model.inputs, model.get_layer("logits").output, name=model.name)


def is_encoder_layer(layer: keras.layers.Layer) -> bool:
    """Whether a layer of a network is none of those that an architecture adds."""
    return not layer.name.startswith(("decoder", "logits"))


class _Indices(NamedTuple):
    """Along one side of an image: (n',) int32 that lead to a multiple of STRIDE, and (n,) that lead back."""

    padded: Tensor
    cut: Tensor


def _indices(line: Tensor) -> _Indices:
    """Those of an image of which `line` (n,) is a row or column; n is known only when there is an image."""
    ones = ops.ones_like(ops.cast(line, "float32"))
    some = ops.max_pool(ops.reshape(ones, (1, -1, 1)), STRIDE, strides=STRIDE, padding="same")
    many = ops.reshape(ops.repeat(some, STRIDE, axis=1), (-1,))
    padded = ops.minimum(ops.cumsum(many), ops.sum(ones)) - 1.0
    return _Indices(ops.cast(padded, "int32"), ops.cast(ops.cumsum(ones) - 1.0, "int32"))
