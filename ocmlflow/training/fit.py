"""The training loop: fits a network, keeps its best weights, and saves and resumes the state of a training."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from ocmlflow.errors import InputError
from ocmlflow.training import callbacks, optimizer, tensorflow_ops
from ocmlflow.training.callbacks import EpochReporter, StateCheckpoint, SwapAveragedWeights
from ocmlflow.training.dataset import Batches, Crops, RemainingBatches, reraise_batch_error
from ocmlflow.training.losses import Loss
from ocmlflow.training.train_step import Recipe, TrainStep


def fit(
    network: keras.Model,
    train: Crops,
    validation: Batches,
    *,
    recipe: Recipe,
    loss: Loss,
    report: Callable[[int, dict[str, float]], None],
    save: Callable[[Path], None],
    resume: Path | None,
    progress: bool,
) -> tuple[int, float]:
    """Train the network in place; returns the best epoch (from 1) and its IoU, pooled over the validation chips.

    The network ends with the weights of that epoch. After each epoch, `report(epoch, figures)` is called while the
    network has the weights of that epoch, and `save(file)` with a file of the training's whole state. With `resume`,
    such a file, training goes on from there. On SIGTERM the state is saved after the current step, and SystemExit
    raised.
    """
    trained = training_copy(network, recipe.precision)
    step_model = TrainStep(trained, loss, recipe)
    step_model.compile(optimizer=optimizer.build(trained, recipe, len(train) * recipe.epochs), jit_compile="auto")

    def report_with_weights(epoch: int, figures: dict[str, float]) -> None:
        network.set_weights(trained.get_weights())
        report(epoch, figures)

    reporter = EpochReporter(trained, train.batch_size, report_with_weights, recipe.patience)
    # Called in this order: the reporter keeps the averaged weights, the checkpoint the weights themselves.
    average = SwapAveragedWeights() if recipe.ema else keras.callbacks.Callback()
    with (
        tempfile.TemporaryDirectory() as folder,
        callbacks.sigterm_flag() as stop_asked,
        reraise_batch_error(train, validation),
    ):
        checkpoint = StateCheckpoint(reporter, Path(folder) / "state.npz", save, stop_asked)
        for callback in (average, reporter, checkpoint):
            callback.set_model(step_model)
        # Left to the first step, TensorFlow would trace that step twice, a third of the time to the first epoch.
        step_model.optimizer.build(step_model.trainable_variables)
        if resume:
            checkpoint.load(resume)
        fit_options = {
            "validation_data": validation,
            "shuffle": False,  # the batches are already random, in an order that the seed decides
            "callbacks": [average, reporter, checkpoint],
            "verbose": 1 if progress else 0,
        }
        _fit_from(checkpoint, step_model, train, recipe.epochs, fit_options)
    network.set_weights(reporter.weights)
    return reporter.best_epoch, reporter.best


def _fit_from(
    checkpoint: StateCheckpoint, step_model: TrainStep, train: Crops, epochs: int, fit_options: dict[str, Any]
) -> None:
    """Train up to epoch number `epochs`, from where the checkpoint stands."""
    epoch = checkpoint.epochs
    if checkpoint.steps:  # the rest of the epoch by itself, because Keras only starts with whole epochs
        train.epoch = epoch + 1
        rest = RemainingBatches(train, checkpoint.steps)
        step_model.fit(rest, initial_epoch=epoch, epochs=epoch + 1, **fit_options)
        epoch += 1
    if epoch < epochs and not checkpoint.reporter.stopped_early:
        train.epoch = epoch
        step_model.fit(train, initial_epoch=epoch, epochs=epochs, **fit_options)


def training_copy(network: keras.Model, precision: str) -> keras.Model:
    """A copy of the network, same weights, whose layers compute in this precision and train fast; float32 logits."""

    def copy_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        # A plain `+` in a network, as in ConvNeXt, is an operation, not a layer, and has no precision of its own.
        if precision != "float32" and layer.name != "logits" and isinstance(layer, keras.layers.Layer):
            config["dtype"] = f"mixed_{precision}"
        return tensorflow_ops.fused_layer_class(type(layer)).from_config(config)

    trained = keras.models.clone_model(network, clone_function=copy_layer, recursive=True)
    trained.set_weights(network.get_weights())
    return trained


def distribute(devices: int, *, batch_size: int, precision: str) -> None:
    """Make Keras split every batch over this many devices from now on; InputError where that cannot be done.

    Call it before the network is built.
    """
    if devices == 1:
        return
    backend = keras.backend.backend()
    if backend not in ("jax", "tensorflow"):
        raise InputError(
            f"devices={devices}: the backend {backend} trains on one device only; set KERAS_BACKEND=tensorflow or jax"
        )
    available = keras.distribution.list_devices()
    if devices > len(available):
        raise InputError(f"devices={devices} is more than {backend} sees: {', '.join(available)}")
    if batch_size % devices:
        raise InputError(f"batch_size={batch_size} must be a multiple of devices={devices}")
    if backend == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=available[:devices]))
        return
    if precision == "float16":  # Keras checks for overflow on the first device only
        raise InputError(
            f"devices={devices}: with float16, TensorFlow trains on one device only; use precision=bfloat16"
        )
    tensorflow_ops.distribute(available[:devices])
