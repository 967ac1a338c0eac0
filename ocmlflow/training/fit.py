"""Model and batches, to a fitted model and its history."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import keras

from ocmlflow.errors import InputError
from ocmlflow.training import callbacks, optimizer, tensorflow_ops
from ocmlflow.training.callbacks import EpochReporter, StateCheckpoint, SwapAveragedWeights
from ocmlflow.training.dataset import Batches, RemainingBatches, reraise_batch_error
from ocmlflow.training.losses import Loss
from ocmlflow.training.train_step import Recipe, TrainStep


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
    trained = training_copy(network, recipe.precision)
    learner = TrainStep(trained, loss, recipe)
    learner.compile(optimizer=optimizer.build(trained, recipe, steps), jit_compile="auto")

    def tell(epoch: int, figures: dict[str, float]) -> None:
        network.set_weights(trained.get_weights())
        report(epoch, figures)

    reporter = EpochReporter(trained, train.batch_size, tell, recipe.patience)
    # The average is in place when the reporter keeps weights, and the weights themselves when the keeper does.
    average = SwapAveragedWeights() if recipe.ema else keras.callbacks.Callback()
    with (
        tempfile.TemporaryDirectory() as folder,
        callbacks.sigterm_flag() as asked,
        reraise_batch_error(train, validation),
    ):
        keeper = StateCheckpoint(reporter, Path(folder) / "state.npz", save, asked)
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
            learner.fit(RemainingBatches(train, keeper.steps), initial_epoch=first - 1, epochs=first, **how)
        if first < recipe.epochs and not reporter.enough:
            train.epoch = first
            learner.fit(train, initial_epoch=first, epochs=recipe.epochs, **how)
    network.set_weights(reporter.weights)
    return reporter.best_epoch, reporter.best


def training_copy(network: keras.Model, precision: str) -> keras.Model:
    """A copy with the same weights whose layers compute in that precision and as fast as they can; float32 logits."""

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        # A sum that is written as one, as ConvNeXt's is, is an operation and takes what it is given.
        if precision != "float32" and layer.name != "logits" and isinstance(layer, keras.layers.Layer):
            config["dtype"] = f"mixed_{precision}"
        return tensorflow_ops.fused_layer_class(type(layer)).from_config(config)

    made = keras.models.clone_model(network, clone_function=copy, recursive=True)
    made.set_weights(network.get_weights())
    return made


def distribute(devices: int, *, batch_size: int, precision: str) -> None:
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
    tensorflow_ops.distribute(found[:devices])
