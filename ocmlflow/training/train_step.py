"""Batches, to the loss and the scores of a network that learns from them, on any backend of Keras."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import keras
from keras import ops

from ocmlflow.chips.labels import INVALID, NEAR_OUTLINE
from ocmlflow.training.augment import augment
from ocmlflow.training.losses import Loss

Tensor: TypeAlias = Any  # of whichever backend


@dataclass(frozen=True)
class Recipe:
    """What a training is told, beside its data."""

    epochs: int
    crop: int
    """Pixels along a side of what the network sees in training."""
    augment: float
    """Strength of the augmentation, 1 as `augment` describes it."""
    zoom: float
    """Largest, in and out."""
    learning_rate: float
    """At its highest, after the warm-up; then down to a fiftieth along a cosine."""
    weight_decay: float
    warmup: float
    """Share of the steps in which the learning rate rises."""
    ema: float
    """Share of the steps over which the weights that are validated and kept are averaged; 0 for the last ones."""
    freeze: int
    """Epochs in which the encoder's weights are left as they are; its averages of batch norm follow the data."""
    precision: str
    """Of the network's arithmetic, `float32`, `bfloat16` or `float16`; its weights are float32 always."""
    devices: int
    """Over which each batch is shared out."""
    patience: int | None
    """Epochs without a better validation IoU after which training ends; None for never."""
    seed: int


def replicas(recipe: Recipe) -> int:
    """Devices whose losses and gradients are added up: TensorFlow does that, JAX works as one."""
    return recipe.devices if keras.backend.backend() == "tensorflow" else 1


class TrainStep(keras.Model):
    """A network that learns from batches as `dataset` makes them, on any backend of Keras.

    Augmentation runs inside, on the device; the output is logits, label and valid, one channel each, so that loss and
    metrics see the label that was moved with its image.
    """

    def __init__(self, network: keras.Model, loss: Loss, recipe: Recipe) -> None:
        super().__init__()
        self.network = network
        self.chip_loss = loss
        self.recipe = recipe
        self.seed = keras.random.SeedGenerator(recipe.seed)
        self.scores = PooledScores()
        # Moving pixels on TensorFlow is no operation of XLA, which Keras would compile steps with on a GPU.
        self.supports_jit = keras.backend.backend() != "tensorflow"
        self.built = True  # or Keras would try it, without augmentation, on sides that only augmentation makes fit

    def call(self, batch: tuple[Tensor, Tensor], training: bool = False) -> Tensor:
        image, label = self.augmented(*batch, training)
        logits = self.network(ops.cast(ops.round(image), "uint8"), training=training)
        # Near outlines labels are a little off: nothing is learnt there, but scores count it.
        valid = ops.cast(label < (NEAR_OUTLINE if training else INVALID), "float32")
        building = ops.cast(ops.logical_or(label == 1.0, label == 1.0 + NEAR_OUTLINE), "float32")
        return ops.concatenate([ops.cast(logits, "float32"), building * valid, valid], axis=-1)

    def augmented(self, image: Tensor, label: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Image (batch, height, width, 3) and coded label (batch, height, width, 1), float32, of those of a batch."""
        if training:
            recipe = self.recipe
            return augment(image, label, self.seed, crop=recipe.crop, strength=recipe.augment, zoom=recipe.zoom)
        return ops.cast(image, "float32"), ops.cast(label, "float32")

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        logits, label, valid = ops.split(y_pred, 3, axis=-1)
        some = ops.cast(ops.any(valid > 0, axis=(1, 2, 3)), "float32")
        mean = ops.sum(self.chip_loss(logits, label, valid) * some) / ops.maximum(ops.sum(some), 1.0)
        return mean / replicas(self.recipe)  # Keras allows for that where it tells the loss

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        self.scores.update_state(*ops.split(y_pred, 3, axis=-1))
        return self.get_metrics_result()


class PooledScores(keras.metrics.Metric):
    """IoU, precision and recall of the building class at probability 0.5, pooled over all valid pixels seen."""

    def __init__(self) -> None:
        super().__init__(name="scores")
        self.totals = [self.add_variable((), "zeros", name=name) for name in ("tp", "fp", "fn")]

    def update_state(self, logits: Tensor, label: Tensor, valid: Tensor) -> None:
        predicted = ops.cast(logits >= 0.0, "float32") * valid
        found = (predicted * label, predicted * (1.0 - label), (valid - predicted) * label)
        for total, pixels in zip(self.totals, found, strict=True):
            total.assign(total + ops.sum(pixels))

    def result(self) -> dict[str, Tensor]:
        tp, fp, fn = (ops.convert_to_tensor(total) for total in self.totals)
        tiny = 1e-12  # no building and none predicted: 0, where NaN would spoil the curve
        return {"iou": tp / (tp + fp + fn + tiny), "precision": tp / (tp + fp + tiny), "recall": tp / (tp + fn + tiny)}
