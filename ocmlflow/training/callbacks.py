"""What is done between the steps of a training: figures told, the best weights and the whole state kept."""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from ocmlflow.errors import InputError

log = logging.getLogger(__name__)


class SwapAveragedWeights(keras.callbacks.Callback):
    """Has the averaged weights of the optimizer in place while the network is validated, and until the next epoch.

    As `keras.callbacks.SwapEMAWeights`, which loses the weights on PyTorch, and their last digits on TensorFlow.
    """

    def __init__(self) -> None:
        super().__init__()
        self._in_place = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._put(False)

    def on_test_begin(self, logs: Any = None) -> None:
        self._put(True)

    def on_test_end(self, logs: Any = None) -> None:
        self._put(False)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._put(True)

    def _put(self, average: bool) -> None:
        if average == self._in_place:
            return
        self._in_place = average
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        pairs = zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True)
        for variable, other in pairs:
            held = np.array(variable.numpy())  # of its own: on PyTorch it would change with the variable
            variable.assign(other)
            other.assign(held)


class EpochReporter(keras.callbacks.Callback):
    """Hands the figures of each epoch to `report(epoch, figures)` and keeps the weights of the best one.

    Ends the training after `patience` epochs without a better one.
    """

    def __init__(
        self,
        network: keras.Model,
        batch_size: int,
        report: Callable[[int, dict[str, float]], None],
        patience: int | None,
    ) -> None:
        super().__init__()
        self.network, self.batch_size, self.report, self.patience = network, batch_size, report, patience
        self.best, self.best_epoch, self.weights = -math.inf, 0, self._weights()
        self.started = self.trained = 0.0
        self.steps = 0
        self.enough = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.started, self.steps = time.perf_counter(), 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1

    def on_test_begin(self, logs: Any = None) -> None:
        self.trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        figures = {name: float(value) for name, value in (logs or {}).items()}
        figures["learning_rate"] = float(ops.convert_to_numpy(self.model.optimizer.learning_rate))
        figures["chips_per_second"] = self.steps * self.batch_size / (self.trained - self.started)
        figures["seconds"] = time.perf_counter() - self.started
        if not math.isfinite(figures["loss"]):
            raise InputError(f"the loss of epoch {epoch + 1} is {figures['loss']}: a lower learning_rate would do")
        if figures["val_iou"] > self.best:
            self.best, self.best_epoch, self.weights = figures["val_iou"], epoch + 1, self._weights()
        shown = ("loss", "iou", "val_loss", "val_iou", "val_precision", "val_recall", "seconds")
        log.info("epoch %d: %s", epoch + 1, ", ".join(f"{name} {figures[name]:.3f}" for name in shown))
        self.report(epoch + 1, figures)
        self.enough = self.patience is not None and epoch + 1 - self.best_epoch >= self.patience
        if self.enough:
            log.info("no better validation IoU in %d epochs: the training ends", self.patience)
        self.model.stop_training = self.enough

    def _weights(self) -> list[np.ndarray]:
        return [np.array(weights) for weights in self.network.get_weights()]  # PyTorch's would go on changing


class StateCheckpoint(keras.callbacks.Callback):
    """Writes the whole state of a training to a file before each epoch but the first, and hands it to `save`.

    When `asked` to end the training it does so after the step that is being made, and raises SystemExit; in a
    validation at once, with the state before the last step, which is to be made again.
    """

    def __init__(
        self, reporter: EpochReporter, path: Path, save: Callable[[Path], None], asked: Callable[[], bool]
    ) -> None:
        super().__init__()
        self.reporter, self.path, self.save, self.asked = reporter, path, save, asked
        self.epochs, self.steps = 0, 0
        """Made before: whole epochs, and steps of the next."""
        self.sums: list[np.ndarray] = []
        """Of the metrics, in the steps of an epoch in whose middle a training was ended."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch > self.epochs:
            self.epochs, self.steps = epoch, 0
            self._write()
            self._send()
        for variable, total in zip(self.model.metrics_variables if self.sums else (), self.sums, strict=True):
            variable.assign(total)
        self.sums = []
        if self.asked():
            self._end()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        left, asked = self.params["steps"] - batch - 1, self.asked()
        if left != 1 and not (left and asked):
            return
        if hasattr(self.model, "jax_state_sync"):  # JAX has the weights elsewhere while it trains
            self.model.jax_state_sync()
        self._write()
        if asked:
            self._send()
            self._end()

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.asked():
            self._send()
            self._end()

    def _end(self) -> None:
        log.warning("asked to end: %d steps into epoch %d", self.steps, self.epochs + 1)
        raise SystemExit(128 + signal.SIGTERM)

    def _send(self) -> None:
        if self.path.exists():
            self.save(self.path)

    def _write(self) -> None:
        state: dict[str, Any] = {f"now-{n}": variable.numpy() for n, variable in enumerate(self._variables())}
        state |= {f"kept-{n}": weights for n, weights in enumerate(self.reporter.weights)}
        state |= {f"sum-{n}": variable.numpy() for n, variable in enumerate(self.model.metrics_variables)}
        state |= {"epoch": self.epochs, "steps": self.steps}
        state |= {"best": self.reporter.best, "best_epoch": self.reporter.best_epoch}
        part = self.path.with_name(f"part-{self.path.name}")
        try:
            np.savez(part, **state)
            part.replace(self.path)
        except OSError as error:  # a full disk: the training goes on, and can be resumed from the state before
            part.unlink(missing_ok=True)
            log.warning("the state after epoch %d is not kept: %s", self.epochs, error)

    def load(self, path: Path) -> None:
        """Bring the training to where the file was written; InputError where it is that of another one."""
        variables = self._variables()
        with np.load(path) as state:
            shapes = [state[f"now-{n}"].shape for n in range(len(variables)) if f"now-{n}" in state]
            if shapes != [tuple(variable.shape) for variable in variables]:
                raise InputError(f"the state in {path.name} is that of another network: it cannot go on here")
            for n, variable in enumerate(variables):
                variable.assign(state[f"now-{n}"])
            self.reporter.weights = [state[f"kept-{n}"] for n in range(len(self.reporter.weights))]
            self.reporter.best, self.reporter.best_epoch = float(state["best"]), int(state["best_epoch"])
            self.epochs, self.steps = int(state["epoch"]), int(state["steps"])
            if self.steps:
                self.sums = [state[f"sum-{n}"] for n in range(len(self.model.metrics_variables))]

    def _variables(self) -> list[keras.Variable]:
        return [*self.model.network.variables, *self.model.optimizer.variables, self.model.seed.state]


@contextmanager
def sigterm_flag() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGTERM came, which does nothing else meanwhile: a step is made whole first."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # others are told nothing
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
