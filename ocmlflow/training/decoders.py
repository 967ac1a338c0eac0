"""ARCHITECTURES and ENCODERS: name to a function that builds a network.

A network takes uint8 RGB (batch, height, width, 3), sides multiples of 32, and gives logits (batch, height, width, 1)
float32. Plain layers of Keras alone, so that a saved one loads where this package has never been.
"""

from collections.abc import Callable

from keras import layers

from ocmlflow.training.encoders import Stages, Tensor


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


def _conv_norm_relu(x: Tensor, channels: int, name: str) -> Tensor:
    how = {"padding": "same", "use_bias": False, "kernel_initializer": "he_uniform"}
    x = layers.Conv2D(channels, 3, **how, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)
