import keras
import numpy as np
import pytest

from ocmlflow.chips.labels import INVALID
from ocmlflow.training import losses
from ocmlflow.training.train_step import PooledScores, Recipe, TrainStep

RECIPE = Recipe(
    epochs=1,
    crop=32,
    augment=0,
    zoom=1,
    learning_rate=1e-3,
    weight_decay=0,
    warmup=0,
    ema=0,
    freeze=0,
    precision="float32",
    devices=1,
    patience=None,
    seed=0,
)


def step(channels: int) -> TrainStep:
    """The step of a network of one layer."""
    image = keras.Input((None, None, 3), dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 255)(image)
    network = keras.Model(image, keras.layers.Conv2D(channels, 1, name="logits")(scaled))
    return TrainStep(network, losses.named("bce"), RECIPE)


def batch(target: int) -> tuple[np.ndarray, np.ndarray]:
    """Two chips of noise, half building, with this target there; the last row is not valid."""
    coded = np.zeros((2, 8, 8, 2), np.uint8)
    coded[:, :, :4] = 1, target
    coded[:, -1, :, 0] = INVALID
    return np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8), coded


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(("target", "wanted"), [(63, (1, 1, 0, 0)), (64 + 21, (1, 1 / 3, 1, 0)), (128, (1, 0, 0, 1))])
def test_the_target_becomes_distance_core_and_touch(channels, target, wanted):
    output = np.asarray(step(channels)(batch(target), training=False))
    assert output.shape[-1] == channels + 5
    np.testing.assert_allclose(output[0, 0, 0, channels:], [*wanted, 1], atol=1e-6)
    assert not output[:, -1, :, channels:].any()
    assert not output[:, :-1, 4:, channels:-1].any()


def test_the_loss_is_that_of_all_channels():
    four = step(4)
    output = np.asarray(four(batch(64 + 21), training=False), np.float64)
    logits, wanted, valid = output[..., :4], output[..., 4:8], output[..., 8:]
    entropy = np.log1p(np.exp(-np.abs(logits))) + np.maximum(logits, 0) - logits * wanted
    means = (entropy * valid).sum((1, 2)) / valid.sum((1, 2))
    expected = (means @ [1, 1, 0.5, 0.5]).mean()
    assert float(four.compute_loss(y_pred=output.astype(np.float32))) == pytest.approx(expected, rel=1e-5)


def test_a_network_of_one_channel_learns_the_mask_alone():
    one = step(1)
    with_target, without = (np.asarray(one(batch(target), training=False)) for target in (200, 0))
    assert float(one.compute_loss(y_pred=with_target)) == float(one.compute_loss(y_pred=without))


def test_pooled_scores_are_counts_added_up():
    scores = PooledScores()
    draw = np.random.default_rng(0)
    tp = fp = fn = 0
    for count in (5, 40):
        logits = draw.normal(size=(1, count, 1, 1)).astype(np.float32)
        label, valid = draw.integers(0, 2, (2, 1, count, 1, 1)).astype(np.float32)
        scores.update_state(logits, label * valid, valid)
        predicted, truth, counted = logits >= 0, label == 1, valid == 1
        tp += (predicted & truth & counted).sum()
        fp += (predicted & ~truth & counted).sum()
        fn += (~predicted & truth & counted).sum()
    found = {name: float(value) for name, value in scores.result().items()}
    assert found == pytest.approx({"iou": tp / (tp + fp + fn), "precision": tp / (tp + fp), "recall": tp / (tp + fn)})
    scores.reset_state()
    assert float(scores.result()["iou"]) == 0
