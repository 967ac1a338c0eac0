"""TensorFlow operations that are faster than those of Keras, or that Keras lacks; other backends use Keras."""

from typing import Any, TypeAlias

import keras
from keras import ops

Tensor: TypeAlias = Any  # of whichever backend


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization (arXiv:1502.03167) in one operation; weights and results are those of the Keras layer.

    The channels must be the last axis.
    """

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor = None) -> Tensor:
        if not (training and self.trainable):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        empty = tf.zeros([0])
        normalized, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=empty,
            variance=empty,
            epsilon=self.epsilon,
            is_training=True,
        )
        pixels = ops.cast(ops.size(inputs) // ops.shape(inputs)[-1], "float32")
        # Keras averages the variance of the pixels themselves; TensorFlow gives the unbiased estimate (Bessel).
        variance = variance * (pixels - 1) / pixels
        self.moving_mean.assign(self.moving_mean * self.momentum + mean * (1 - self.momentum))
        self.moving_variance.assign(self.moving_variance * self.momentum + variance * (1 - self.momentum))
        return normalized


def warp(batch: Tensor, matrix: Tensor, *, side: int, interpolation: str, fill: float) -> Tensor:
    """Affine transform of square images: output pixel (x, y) is input pixel (a x + b y + c, d x + e y + f).

    Gives (batch, side, side, channels) float32, with `side` at most that of the input. `matrix` (batch, 8) holds a to f
    and two zeros; `interpolation` is `bilinear` or `nearest`; pixels beyond the edges become `fill`.
    """
    if keras.backend.backend() != "tensorflow":
        copied = ops.copy(matrix)  # on PyTorch, Keras changes the matrix in place
        full_size = ops.image.affine_transform(batch, copied, interpolation, fill_mode="constant", fill_value=fill)
        return full_size[:, :side, :side]
    import tensorflow as tf

    return tf.raw_ops.ImageProjectiveTransformV3(
        images=batch,
        transforms=matrix,
        output_shape=[side, side],
        fill_value=fill,
        interpolation=interpolation.upper(),
        fill_mode="CONSTANT",
    )


def distribute(devices: list[str]) -> None:
    """Make TensorFlow split every batch over these devices from now on."""
    import tensorflow as tf

    tf.distribute.experimental_set_strategy(tf.distribute.MirroredStrategy(devices))


def fused_layer_class(layer: type[keras.layers.Layer]) -> type[keras.layers.Layer]:
    """The class to train with in place of `layer`: FusedBatchNormalization on TensorFlow, else the same class."""
    if layer is keras.layers.BatchNormalization and keras.backend.backend() == "tensorflow":
        return FusedBatchNormalization
    return layer
