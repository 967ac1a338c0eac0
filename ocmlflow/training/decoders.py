"""Decoders (U-Net, FPN): from an encoder's features to logits of the size of the image, one for each of CHANNELS.

Features come finest first, each half the size of the one before. Logits are (batch, height, width, 4) float32. Only
plain Keras layers, so that a saved network loads without this package.
"""

from collections.abc import Callable

from keras import layers

from ocmlflow.training.encoders import Stages, Tensor

CHANNELS = ("building", "distance", "core", "touch")
"""What a network gives for each pixel: whether it is building, its distance to the edge of its own building (1 for
`targets.CLIP_M` and more), whether it lies in the core of a building, and whether two buildings touch there."""


def unet(stages: Stages) -> Tensor:
    """U-Net decoder (arXiv:1505.04597): logits of the size of the image."""
    *skips, x = stages
    for number, channels in enumerate((128, 64, 32, 16, 16)):
        x = layers.UpSampling2D(2, interpolation="nearest", name=f"decoder{number}_up")(x)
        if skips:
            x = layers.Concatenate(name=f"decoder{number}_skip")([x, skips.pop()])
        for step in "ab":
            x = _conv_norm_relu(x, channels, f"decoder{number}{step}")
    return layers.Conv2D(len(CHANNELS), 3, padding="same", dtype="float32", name="logits")(x)


def fpn(stages: Stages) -> Tensor:
    """Feature pyramid (arXiv:1612.03144) with the head of Panoptic FPN (arXiv:1901.02446): logits like `unet`.

    Each level is brought to a quarter of the image's size and added to one sum. Features at half the size, where the
    encoder has them, sharpen the result. Upsampling is nearest, because bilinear with Keras on TensorFlow needs a known
    image size.
    """
    *skips, x = stages
    levels = []
    for level in (3, 2, 1, 0):  # number of halvings from a quarter of the size
        if level < 3:
            x = layers.UpSampling2D(2, interpolation="nearest", name=f"decoder{level}_up")(x)
            lateral = layers.Conv2D(64, 1, name=f"decoder{level}_lateral")(skips.pop())
            x = layers.Add(name=f"decoder{level}_add")([x, lateral])
        else:
            x = layers.Conv2D(64, 1, name=f"decoder{level}_lateral")(x)
        levels.append(_to_quarter_size(x, level))
    x = layers.UpSampling2D(2, interpolation="nearest", name="decoder_half")(layers.Add(name="decoder_sum")(levels))
    if skips:
        x = layers.Concatenate(name="decoder_skip")([x, skips.pop()])
    x = layers.Conv2D(16, 3, padding="same", name="decoder_last")(_conv_norm_relu(x, 32, "decoder"))
    x = layers.UpSampling2D(2, interpolation="nearest", name="decoder_whole")(x)
    return layers.Conv2D(len(CHANNELS), 3, padding="same", dtype="float32", name="logits")(x)


ARCHITECTURES: dict[str, Callable[[Stages], Tensor]] = {"unet": unet, "fpn": fpn}
"""Decoder of each architecture, by name."""


def _to_quarter_size(x: Tensor, level: int) -> Tensor:
    """Features of a pyramid level, `level` halvings below a quarter of the image's size, brought to that quarter."""
    x = _conv_norm_relu(x, 64, f"decoder{level}a")
    for step in range(level):
        x = layers.UpSampling2D(2, interpolation="nearest", name=f"decoder{level}_larger{step}")(x)
        if step < level - 1:
            x = _conv_norm_relu(x, 64, f"decoder{level}{'bc'[step]}")
    return x


def _conv_norm_relu(x: Tensor, channels: int, name: str) -> Tensor:
    x = layers.Conv2D(
        channels, 3, padding="same", use_bias=False, kernel_initializer="he_uniform", name=f"{name}_conv"
    )(x)
    x = layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)
