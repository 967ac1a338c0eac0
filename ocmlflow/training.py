"""Model and batches, to a fitted model and its history."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
from keras import ops

from ocmlflow import callbacks, kernels, models
from ocmlflow.dataset import Batches, Rest, errors_as_they_were
from ocmlflow.errors import InputError
from ocmlflow.learner import Learner, Recipe, summed
from ocmlflow.losses import Loss


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
        how = {
            "validation_data": validation,
            "shuffle": False,  # the batches are random already, in an order that the seed decides
            "callbacks": [average, reporter, keeper],
            "verbose": 1 if progress else 0,
        }
        if keeper.steps:  # Keras begins with whole epochs
            first, train.epoch = first + 1, first + 1
            learner.fit(Rest(train, keeper.steps), initial_epoch=first - 1, epochs=first, **how)
        if first < recipe.epochs and not reporter.enough:
            train.epoch = first
            learner.fit(train, initial_epoch=first, epochs=recipe.epochs, **how)
    network.set_weights(reporter.weights)
    return reporter.best_epoch, reporter.best


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


def share_out(devices: int, *, batch_size: int, precision: str) -> None:
    """Have Keras share out each batch over that many devices, from now on; InputError where it cannot.

    To be called before the network is made.
    """
    if devices == 1:
        return
    backend = keras.backend.backend()
    if backend not in ("jax", "tensorflow"):
        raise InputError(
            f"devices={devices}: batches are shared out on TensorFlow and JAX alone, this is {backend}: "
            "set KERAS_BACKEND=tensorflow"
        )
    found = keras.distribution.list_devices()
    if devices > len(found):
        raise InputError(f"devices={devices} is more than {backend} sees: {', '.join(found)}")
    if batch_size % devices:
        raise InputError(f"batch_size={batch_size} is no multiple of devices={devices}")
    if backend == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=found[:devices]))
        return
    if precision == "float16":  # Keras would look for overflows on the first device alone
        raise InputError(f"devices={devices}: TensorFlow trains with float16 on one alone; precision=bfloat16 would do")
    kernels.share_out(found[:devices])


class Thawing(keras.optimizers.AdamW):
    """AdamW (arXiv:1711.05101) that leaves the `frozen` variables as they are in its first steps.

    Their moments are made all the same: begun later, they would make the first steps after that several times too long.
    """

    def __init__(self, *args: Any, frozen: Iterable[keras.Variable], frozen_steps: int, **settings: Any) -> None:
        super().__init__(*args, **settings)
        # Keras takes variables that an optimizer keeps for its own.
        self.frozen, self.frozen_steps = {id(variable) for variable in frozen}, frozen_steps

    def build(self, variables: list[keras.Variable]) -> None:
        self.late = [id(variable) in self.frozen for variable in variables]
        super().build(variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        if self.frozen and self.late[self._get_variable_index(variable)]:
            learning_rate = ops.where(self.iterations >= self.frozen_steps, learning_rate, 0.0)
            if len(variable.shape) > 1:
                self.assign_sub(variable, variable * (self.weight_decay * learning_rate))
        super().update_step(gradient, variable, learning_rate)

    def finalize_variable_values(self, var_list: list[keras.Variable]) -> None:
        """Nothing: `callbacks.Averaged` puts averages in place, and the weights themselves go on to another `fit`."""


def optimizer(network: keras.Model, recipe: Recipe, steps: int) -> keras.optimizers.Optimizer:
    """AdamW with warm-up and cosine decay over that many steps, as the recipe says."""
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
    encoder = [layer for layer in network.layers if models.of_encoder(layer)] if recipe.freeze else []
    frozen = [variable for layer in encoder for variable in layer.trainable_variables]
    adam = Thawing(
        rate,
        weight_decay=recipe.weight_decay,
        global_clipnorm=1.0 / summed(recipe),  # each device clips its own
        frozen=frozen,
        frozen_steps=recipe.freeze * steps // recipe.epochs,
        **average,
    )
    # Scales and offsets are not decayed: it would only fight the batch norm. What is frozen is as it learns.
    scales = [variable for variable in network.trainable_variables if len(variable.shape) <= 1]
    adam.exclude_from_weight_decay(var_list=[*scales, *frozen])
    # Half floats end at 65,504 and 6e-8: the loss is scaled so that gradients fit, as far as they let it.
    return keras.optimizers.LossScaleOptimizer(adam) if recipe.precision == "float16" else adam
