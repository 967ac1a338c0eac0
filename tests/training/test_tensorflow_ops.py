import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ocmlflow.training import fit, tensorflow_ops
from ocmlflow.training.tensorflow_ops import FusedBatchNormalization


def trained(layer: layers.Layer, images: np.ndarray) -> list[np.ndarray]:
    """What the layer gives in training, the gradients, and its averages afterwards."""
    layer.build(images.shape)
    rng = np.random.default_rng(1)
    layer.set_weights([rng.uniform(0.5, 2, weight.shape) for weight in layer.get_weights()])
    seen = tf.convert_to_tensor(images)
    with tf.GradientTape() as tape:
        tape.watch(seen)
        given = layer(seen, training=True)
        loss = tf.reduce_sum(tf.cast(given, tf.float32) ** 3)
    gradients = tape.gradient(loss, [seen, *layer.trainable_weights])
    return [np.asarray(tf.cast(one, tf.float32)) for one in (given, *gradients, *layer.non_trainable_weights)]


TOLERANCES = {"float32": 1e-4, "mixed_bfloat16": 0.05, "mixed_float16": 0.01}


@pytest.mark.parametrize(("precision", "tolerance"), TOLERANCES.items())
def test_it_is_the_layer_of_keras(precision, tolerance):
    images = np.random.default_rng(0).normal(3, 2, (2, 5, 7, 3)).astype(np.float32)
    ours, theirs = (
        trained(kind(epsilon=1e-3, momentum=0.9, dtype=precision), images)
        for kind in (FusedBatchNormalization, layers.BatchNormalization)
    )
    assert len(ours) == len(theirs) == 6
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


def test_it_rests_where_keras_does():
    images = np.random.default_rng(0).normal(3, 2, (2, 5, 7, 3)).astype(np.float32)
    plain, fused = layers.BatchNormalization(), FusedBatchNormalization()
    for training_, trainable in ((False, True), (True, False)):
        fused.trainable = plain.trainable = trainable
        np.testing.assert_array_equal(*(np.asarray(one(images, training=training_)) for one in (plain, fused)))
    assert np.asarray(fused.moving_mean).tolist() == [0, 0, 0]


def test_a_network_is_trained_with_it_and_stays_as_it_is():
    image = keras.Input((None, None, 3))
    network = keras.Model(image, layers.BatchNormalization(momentum=0.5, name="norm")(image))
    copy = fit.training_copy(network, "float32")
    assert isinstance(copy.get_layer("norm"), FusedBatchNormalization)
    assert copy.get_layer("norm").momentum == 0.5
    assert type(network.get_layer("norm")) is layers.BatchNormalization


@pytest.mark.parametrize(("interpolation", "fill"), [("bilinear", 0.0), ("nearest", 255.0)])
def test_pixels_are_moved_as_keras_moves_them(interpolation, fill):
    batch = np.random.default_rng(0).uniform(0, 255, (2, 12, 12, 3)).astype(np.float32)
    matrix = np.array([[0.9, 0.3, 2, -0.3, 0.9, 1, 0, 0], [0, -1, 14, 1.1, 0, -2, 0, 0]], np.float32)
    found = tensorflow_ops.warp(batch, matrix, side=7, interpolation=interpolation, fill=fill)
    whole = keras.ops.image.affine_transform(batch, matrix, interpolation, fill_mode="constant", fill_value=fill)
    np.testing.assert_allclose(found, whole[:, :7, :7], atol=1e-4)
    assert (np.asarray(found)[1, 0] == fill).all()  # y = -2
