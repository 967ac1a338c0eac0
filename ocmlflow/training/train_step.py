"""One training step as a Keras model: augmentation, network, loss and pooled scores, on any backend."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import keras
from keras import ops

from ocmlflow.chips import targets
from ocmlflow.chips.labels import INVALID, NEAR_OUTLINE
from ocmlflow.training.augment import augment
from ocmlflow.training.losses import Loss, bce

Tensor: TypeAlias = Any  # of whichever backend

SIDE_WEIGHT = 0.5
"""Weight of the loss of core, and of touch, beside that of building and distance."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a training, apart from its data."""

    epochs: int
    """Passes over the training chips."""
    crop: int
    """Pixels along a side of the crops that the network is trained on."""
    augment: float
    """Strength of the augmentation; `augment` describes strength 1."""
    zoom: float
    """Largest factor of the augmentation's zoom, both in and out."""
    learning_rate: float
    """Peak learning rate, after the warm-up; a cosine then lowers it to a fiftieth."""
    weight_decay: float
    """Weight decay of AdamW."""
    warmup: float
    """Share of the steps in which the learning rate rises."""
    ema: float
    """Share of the steps over which weights are averaged for validation and for the result; 0 for no average."""
    freeze: int
    """First epochs in which the encoder's weights stay as they are; its batch norm averages still follow the data."""
    precision: str
    """Precision of the network's arithmetic: `float32`, `bfloat16` or `float16`. Weights are always float32."""
    devices: int
    """Devices that each batch is split over."""
    patience: int | None
    """Epochs without a better validation IoU after which training stops; None for never."""
    seed: int
    """Seed of the augmentation."""


def replicas(recipe: Recipe) -> int:
    """Number of devices whose losses and gradients are summed: on TensorFlow all, on JAX one, which acts for all."""
    return recipe.devices if keras.backend.backend() == "tensorflow" else 1


class TrainStep(keras.Model):
    """Trains a network on the batches of `dataset`.

    Augmentation runs inside, on the device. The output has the logits, what they should be (building, distance, core,
    touch) and valid as its channels, because loss and metrics need the label as it was moved with its image. Distance,
    core and touch cost nothing where the network, of an earlier version, gives one channel.
    """

    def __init__(self, network: keras.Model, loss: Loss, recipe: Recipe) -> None:
        super().__init__()
        self.network = network
        self.chip_loss = loss
        self.recipe = recipe
        self.seed = keras.random.SeedGenerator(recipe.seed)
        self.scores = PooledScores()
        # On a GPU, Keras would compile steps with XLA, which lacks TensorFlow's operation for moving pixels.
        self.supports_jit = keras.backend.backend() != "tensorflow"
        # Else Keras calls it once without augmentation, on sides that need not be a multiple of 32.
        self.built = True

    def call(self, batch: tuple[Tensor, Tensor], training: bool = False) -> Tensor:
        image, coded = self.augmented(*batch, training)
        label, target = coded[..., :1], coded[..., 1:]
        logits = self.network(ops.cast(ops.round(image), "uint8"), training=training)
        # Labels are a little off near outlines: training ignores those pixels, scores count them.
        valid = ops.cast(label < (NEAR_OUTLINE if training else INVALID), "float32")
        building = ops.cast(ops.logical_or(label == 1.0, label == 1.0 + NEAR_OUTLINE), "float32")
        wanted = ops.concatenate([building, _target_channels(target)], axis=-1) * valid
        return ops.concatenate([ops.cast(logits, "float32"), wanted, valid], axis=-1)

    def augmented(self, image: Tensor, label: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Image (batch, height, width, 3) and coded label (batch, height, width, 2), float32, augmented in training."""
        if training:
            recipe = self.recipe
            return augment(image, label, self.seed, crop=recipe.crop, strength=recipe.augment, zoom=recipe.zoom)
        return ops.cast(image, "float32"), ops.cast(label, "float32")

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        logits, wanted, valid = _split(y_pred)
        has_valid = ops.cast(ops.any(valid > 0, axis=(1, 2, 3)), "float32")
        mean = ops.sum(self._chip_losses(logits, wanted, valid) * has_valid) / ops.maximum(ops.sum(has_valid), 1.0)
        return mean / replicas(self.recipe)  # the loss that Keras reports is corrected for this

    def _chip_losses(self, logits: Tensor, wanted: Tensor, valid: Tensor) -> Tensor:
        """(batch,) the loss of each chip, all channels together."""
        building, *others = (logits[..., channel : channel + 1] for channel in range(logits.shape[-1]))
        total = self.chip_loss(building, wanted[..., :1], valid)
        if others:
            distance, core, touch = others
            total += bce(distance, wanted[..., 1:2], valid)
            total += SIDE_WEIGHT * self.chip_loss(core, wanted[..., 2:3], valid)
            total += SIDE_WEIGHT * self.chip_loss(touch, wanted[..., 3:], valid)
        return total

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        logits, wanted, valid = _split(y_pred)
        self.scores.update_state(logits[..., :1], wanted[..., :1], valid)
        return self.get_metrics_result()


def _target_channels(target: Tensor) -> Tensor:
    """(batch, height, width, 3) float32: distance 0..1, core and touch 0 or 1, of coded targets, float32."""
    distance = ops.mod(target, float(targets.CORE)) / targets.STEPS
    core = ops.mod(ops.floor(target / targets.CORE), 2.0)
    return ops.concatenate([distance, core, ops.floor(target / targets.TOUCH)], axis=-1)


def _split(output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, what they should be, and valid, of the output of `TrainStep`."""
    return output[..., :-5], output[..., -5:-1], output[..., -1:]


class PooledScores(keras.metrics.Metric):
    """IoU, precision and recall of the building class at probability 0.5, over the valid pixels of all batches."""

    def __init__(self) -> None:
        super().__init__(name="scores")
        self.totals = [self.add_variable((), "zeros", name=name) for name in ("tp", "fp", "fn")]

    def update_state(self, logits: Tensor, label: Tensor, valid: Tensor) -> None:
        predicted = ops.cast(logits >= 0.0, "float32") * valid
        confusion = (predicted * label, predicted * (1.0 - label), (valid - predicted) * label)
        for total, pixels in zip(self.totals, confusion, strict=True):
            total.assign(total + ops.sum(pixels))

    def result(self) -> dict[str, Tensor]:
        tp, fp, fn = (ops.convert_to_tensor(total) for total in self.totals)
        tiny = 1e-12  # gives 0 where there is no building and none is predicted: NaN would spoil the curve
        return {"iou": tp / (tp + fp + fn + tiny), "precision": tp / (tp + fp + tiny), "recall": tp / (tp + fn + tiny)}
