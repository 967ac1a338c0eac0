import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ocmlflow import norm, training


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
        for kind in (norm.FusedBatchNormalization, layers.BatchNormalization)
    )
    assert len(ours) == len(theirs) == 6
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


def test_it_rests_where_keras_does():
    images = np.random.default_rng(0).normal(3, 2, (2, 5, 7, 3)).astype(np.float32)
    plain, fused = layers.BatchNormalization(), norm.FusedBatchNormalization()
    for training_, trainable in ((False, True), (True, False)):
        fused.trainable = plain.trainable = trainable
        np.testing.assert_array_equal(*(np.asarray(one(images, training=training_)) for one in (plain, fused)))
    assert np.asarray(fused.moving_mean).tolist() == [0, 0, 0]


def test_a_network_is_trained_with_it_and_stays_as_it_is():
    image = keras.Input((None, None, 3))
    network = keras.Model(image, layers.BatchNormalization(momentum=0.5, name="norm")(image))
    copy = training.for_training(network, "float32")
    assert isinstance(copy.get_layer("norm"), norm.FusedBatchNormalization)
    assert copy.get_layer("norm").momentum == 0.5
    assert type(network.get_layer("norm")) is layers.BatchNormalization
