"""Model and batches, to a fitted model and its history."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import keras
from keras import ops

from ocmlflow import callbacks, kernels
from ocmlflow.augment import augment
from ocmlflow.dataset import Batches, errors_as_they_were
from ocmlflow.errors import InputError
from ocmlflow.labels import NOT_VALID, RING
from ocmlflow.losses import Loss

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
    precision: str
    """Of the network's arithmetic, `float32`, `bfloat16` or `float16`; its weights are float32 always."""
    devices: int
    """Over which each batch is shared out."""
    patience: int | None
    """Epochs without a better validation IoU after which training ends; None for never."""
    seed: int


class Learner(keras.Model):
    """A network that learns from coded batches (batch, side, side, 4) uint8 on any backend of Keras.

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

    def call(self, coded: Tensor, training: bool = False) -> Tensor:
        image, label = self.seen(coded, training)
        logits = self.network(ops.cast(ops.round(image), "uint8"), training=training)
        # Near outlines labels are a little off: nothing is learnt there, but scores count it.
        valid = ops.cast(label < (RING if training else NOT_VALID), "float32")
        building = ops.cast(ops.logical_or(label == 1.0, label == 1.0 + RING), "float32")
        return ops.concatenate([ops.cast(logits, "float32"), building * valid, valid], axis=-1)

    def seen(self, coded: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Image (batch, height, width, 3) and coded label (batch, height, width, 1), float32, of a coded batch."""
        if training:
            recipe = self.recipe
            return augment(coded, self.seed, crop=recipe.crop, strength=recipe.augment, zoom=recipe.zoom)
        coded = ops.cast(coded, "float32")
        return coded[..., :3], coded[..., 3:]

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        logits, label, valid = ops.split(y_pred, 3, axis=-1)
        some = ops.cast(ops.any(valid > 0, axis=(1, 2, 3)), "float32")
        return ops.sum(self.chip_loss(logits, label, valid) * some) / ops.maximum(ops.sum(some), 1.0)

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


def fit(
    network: keras.Model,
    train: Batches,
    validation: Batches,
    *,
    recipe: Recipe,
    loss: Loss,
    report: Callable[[int, dict[str, float]], None],
    save: Callable[[Path], None],
    resume: Path | None,
    progress: bool,
) -> tuple[int, float]:
    """Train the network in place; returns the epoch (from 1) with the best pooled validation IoU, and that IoU.

    The network has the weights of that epoch afterwards. `report(epoch, figures)` is called after each one, when it
    has those of that one, and `save(file)` with the state of the training then; with `resume`, such a file, it goes on
    there. SIGTERM has the state saved after the step that is being made, and raises SystemExit.
    """
    steps = len(train) * recipe.epochs
    trained = for_training(network, recipe.precision)
    learner = Learner(trained, loss, recipe)
    learner.compile(optimizer=optimizer(trained, recipe, steps), jit_compile="auto")

    def tell(epoch: int, figures: dict[str, float]) -> None:
        network.set_weights(trained.get_weights())
        report(epoch, figures)

    reporter = callbacks.Reporter(trained, train.batch_size, tell, recipe.patience)
    # The average is in place when the reporter keeps weights, and the weights themselves when the keeper does.
    average = callbacks.Averaged() if recipe.ema else keras.callbacks.Callback()
    with (
        tempfile.TemporaryDirectory() as folder,
        callbacks.asked_to_end() as asked,
        errors_as_they_were(train, validation),
    ):
        keeper = callbacks.Keeper(reporter, Path(folder) / "state.npz", save, asked)
        for callback in (average, reporter, keeper):
            callback.set_model(learner)
        # Built by its first step, TensorFlow would trace that step twice: a third of the time to the first epoch.
        learner.optimizer.build(learner.trainable_variables)
        if resume:
            keeper.load(resume)
        first = keeper.epochs
        if keeper.steps:
            _end_epoch(learner, train, validation, average, reporter, keeper)
            first += 1
        if first < recipe.epochs and not reporter.enough:
            train.epoch = first
            learner.fit(
                train,
                validation_data=validation,
                initial_epoch=first,  # before which the keeper keeps the epoch that was ended above
                epochs=recipe.epochs,
                shuffle=False,  # the batches are random already, in an order that the seed decides
                callbacks=[average, reporter, keeper],
                verbose=1 if progress else 0,
            )
    network.set_weights(reporter.weights)
    return reporter.best_epoch, reporter.best


def _end_epoch(
    learner: Learner,
    train: Batches,
    validation: Batches,
    average: keras.callbacks.Callback,
    reporter: callbacks.Reporter,
    keeper: callbacks.Keeper,
) -> None:
    """Make what is left of the epoch in whose middle a training was ended: Keras begins with whole ones."""
    epoch, train.epoch = keeper.epochs, keeper.epochs + 1
    reporter.on_epoch_begin(epoch)
    for number in range(keeper.steps, len(train)):
        before = [variable.numpy() for variable in learner.metrics_variables]
        learner.reset_metrics()  # JAX does, TensorFlow does not
        learner.train_on_batch(*train[number])
        for variable, sums in zip(learner.metrics_variables, before, strict=True):
            variable.assign_add(sums)
        reporter.on_train_batch_end(number)
        keeper.on_train_batch_end(number)
    figures = learner.get_metrics_result()
    reporter.on_test_begin()
    average.on_test_begin()
    found = learner.evaluate(validation, return_dict=True, verbose=0)
    reporter.on_epoch_end(epoch, figures | {f"val_{name}": value for name, value in found.items()})
    average.on_test_end()


def for_training(network: keras.Model, precision: str) -> keras.Model:
    """A copy with the same weights whose layers compute in that precision and as fast as they can; float32 logits."""

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        # A sum that is written as one, as ConvNeXt's is, is an operation and takes what it is given.
        if precision != "float32" and layer.name != "logits" and isinstance(layer, keras.layers.Layer):
            config["dtype"] = f"mixed_{precision}"
        return kernels.fused(type(layer)).from_config(config)

    made = keras.models.clone_model(network, clone_function=copy, recursive=True)
    made.set_weights(network.get_weights())
    return made


def share_out(devices: int, batch_size: int) -> None:
    """Have Keras share out each batch over that many devices, from now on; InputError where it cannot.

    To be called before the network is made.
    """
    if devices == 1:
        return
    if keras.backend.backend() != "jax":
        raise InputError(
            f"devices={devices}: batches are shared out on JAX alone, this is {keras.backend.backend()}: "
            "set KERAS_BACKEND=jax"
        )
    found = keras.distribution.list_devices()
    if devices > len(found):
        raise InputError(f"devices={devices} is more than JAX sees: {', '.join(found)}")
    if batch_size % devices:
        raise InputError(f"batch_size={batch_size} is no multiple of devices={devices}")
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=found[:devices]))


def optimizer(network: keras.Model, recipe: Recipe, steps: int) -> keras.optimizers.Optimizer:
    """AdamW (arXiv:1711.05101) with warm-up and cosine decay over that many steps, as the recipe says."""
    warmup = max(1, round(recipe.warmup * steps))
    rate = keras.optimizers.schedules.CosineDecay(
        recipe.learning_rate / 50,
        decay_steps=max(1, steps - warmup),
        alpha=1 / 50,
        warmup_target=recipe.learning_rate,
        warmup_steps=warmup,
    )
    # A share of the steps, not a fixed number: a short training would never leave its start behind.
    momentum = 1 - 1 / max(1.0, recipe.ema * steps)
    average: dict[str, Any] = {"use_ema": True, "ema_momentum": momentum} if recipe.ema else {}
    adam = keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay, global_clipnorm=1.0, **average)
    # Scales and offsets are not decayed: it would only fight the batch norm.
    adam.exclude_from_weight_decay(
        var_list=[variable for variable in network.trainable_variables if len(variable.shape) <= 1]
    )
    # Half floats end at 65,504 and 6e-8: the loss is scaled so that gradients fit, as far as they let it.
    return keras.optimizers.LossScaleOptimizer(adam) if recipe.precision == "float16" else adam
