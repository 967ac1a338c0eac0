"""What TensorFlow does in one operation and Keras in several, on more pixels than are kept, or not at all."""

from typing import Any, TypeAlias

import keras
from keras import ops

Tensor: TypeAlias = Any  # of whichever backend


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """The layer of Keras with the same weights and results (arXiv:1502.03167), where the last axis is the channels."""

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor = None) -> Tensor:
        if not (training and self.trainable):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        gamma, beta = (tf.convert_to_tensor(variable) for variable in (self.gamma, self.beta))
        empty = tf.zeros([0])
        normal, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=gamma, offset=beta, mean=empty, variance=empty, epsilon=self.epsilon, is_training=True
        )
        pixels = ops.cast(ops.size(inputs) // ops.shape(inputs)[-1], "float32")
        # Keras averages the variance of what it has seen, TensorFlow's is that of what it is a sample of.
        for average, seen in ((self.moving_mean, mean), (self.moving_variance, variance * (pixels - 1) / pixels)):
            average.assign(average * self.momentum + seen * (1 - self.momentum))
        return normal


def warp(batch: Tensor, matrix: Tensor, *, side: int, interpolation: str, fill: float) -> Tensor:
    """(batch, side, side, channels) float32, whose pixel (x, y) is the batch's at (a x + b y + c, d x + e y + f).

    `side` is at most that of the batch, also square; `matrix` (batch, 8) has a to f and two zeros, `interpolation` is
    `bilinear` or `nearest`, and `fill` what lies beyond the edges.
    """
    if keras.backend.backend() != "tensorflow":
        own = ops.copy(matrix)  # on PyTorch, Keras changes what it is given
        whole = ops.image.affine_transform(batch, own, interpolation, fill_mode="constant", fill_value=fill)
        return whole[:, :side, :side]
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
    """Have TensorFlow share out each batch over those devices, from now on."""
    import tensorflow as tf

    tf.distribute.experimental_set_strategy(tf.distribute.MirroredStrategy(devices))


def fused_layer_class(layer: type[keras.layers.Layer]) -> type[keras.layers.Layer]:
    """The class to train in place of a layer's own: the fused one for batch normalization on TensorFlow."""
    if layer is keras.layers.BatchNormalization and keras.backend.backend() == "tensorflow":
        return FusedBatchNormalization
    return layer
