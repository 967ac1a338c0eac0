"""Keras callbacks of a training: averaged weights, epoch reports and early stopping, checkpoints of its state."""

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
    """Swaps the optimizer's averaged weights in for validation, and from the end of an epoch to the next one.

    In place of `keras.callbacks.SwapEMAWeights`, which loses the weights on PyTorch and their last digits on
    TensorFlow.
    """

    def __init__(self) -> None:
        super().__init__()
        self._averages_in_place = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._swap(to_averages=False)

    def on_test_begin(self, logs: Any = None) -> None:
        self._swap(to_averages=True)

    def on_test_end(self, logs: Any = None) -> None:
        self._swap(to_averages=False)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._swap(to_averages=True)

    def _swap(self, *, to_averages: bool) -> None:
        if to_averages == self._averages_in_place:
            return
        self._averages_in_place = to_averages
        # A LossScaleOptimizer keeps the averages in the optimizer inside it.
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        pairs = zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True)
        for variable, average in pairs:
            values = np.array(variable.numpy())  # a copy: on PyTorch the array shares the variable's memory
            variable.assign(average)
            average.assign(values)


class EpochReporter(keras.callbacks.Callback):
    """Reports the figures of each epoch by `report(epoch, figures)` and keeps the weights of the best one.

    The best epoch is the one with the highest validation IoU. Stops training after `patience` epochs without a better
    one. Raises InputError where the loss is no longer a number.
    """

    def __init__(
        self,
        network: keras.Model,
        batch_size: int,
        report: Callable[[int, dict[str, float]], None],
        patience: int | None,
    ) -> None:
        super().__init__()
        self.network = network
        self.batch_size = batch_size
        self.report = report
        self.patience = patience
        self.best = -math.inf
        self.best_epoch = 0
        self.weights = self._copy_weights()
        self.stopped_early = False
        self._steps = 0
        self._epoch_began = 0.0
        self._validation_began = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._steps = 0
        self._epoch_began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._steps += 1

    def on_test_begin(self, logs: Any = None) -> None:
        self._validation_began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        figures = {name: float(value) for name, value in (logs or {}).items()}
        figures["learning_rate"] = float(ops.convert_to_numpy(self.model.optimizer.learning_rate))
        figures["chips_per_second"] = self._steps * self.batch_size / (self._validation_began - self._epoch_began)
        figures["seconds"] = time.perf_counter() - self._epoch_began
        if not math.isfinite(figures["loss"]):
            raise InputError(f"the loss of epoch {epoch + 1} is {figures['loss']}: a lower learning_rate may help")
        if figures["val_iou"] > self.best:
            self.best = figures["val_iou"]
            self.best_epoch = epoch + 1
            self.weights = self._copy_weights()
        shown = ("loss", "iou", "val_loss", "val_iou", "val_precision", "val_recall", "seconds")
        log.info("epoch %d: %s", epoch + 1, ", ".join(f"{name} {figures[name]:.3f}" for name in shown))
        self.report(epoch + 1, figures)
        self.stopped_early = self.patience is not None and epoch + 1 - self.best_epoch >= self.patience
        if self.stopped_early:
            log.info("no better validation IoU in %d epochs: training stops", self.patience)
        self.model.stop_training = self.stopped_early

    def _copy_weights(self) -> list[np.ndarray]:
        # On PyTorch, the arrays of get_weights share memory with the network and would go on changing.
        return [np.array(weights) for weights in self.network.get_weights()]


class StateCheckpoint(keras.callbacks.Callback):
    """Writes the whole state of a training to a file before each epoch but the first, and hands it to `save`.

    When `stop_asked()` turns true it stops training after the current step and raises SystemExit. During validation it
    stops at once; the state is then the one before the last step, and resuming repeats that step.
    """

    def __init__(
        self, reporter: EpochReporter, path: Path, save: Callable[[Path], None], stop_asked: Callable[[], bool]
    ) -> None:
        super().__init__()
        self.reporter = reporter
        self.path = path
        self.save = save
        self.stop_asked = stop_asked
        self.epochs = 0
        """Whole epochs done."""
        self.steps = 0
        """Steps done of the epoch after those."""
        self.metric_sums: list[np.ndarray] = []
        """Sums of the metrics over those steps, to go on with after resuming in the middle of an epoch."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch > self.epochs:
            self.epochs = epoch
            self.steps = 0
            self._write()
            self._send()
        if self.metric_sums:
            for variable, total in zip(self.model.metrics_variables, self.metric_sums, strict=True):
                variable.assign(total)
            self.metric_sums = []
        if self.stop_asked():
            self._stop()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        steps_left = self.params["steps"] - batch - 1
        stop_now = self.stop_asked() and steps_left > 0  # after the last step, the validation stops it
        # Before the last step the state is written in any case, for a validation that is stopped.
        if not stop_now and steps_left != 1:
            return
        if hasattr(self.model, "jax_state_sync"):  # JAX keeps the weights elsewhere while it trains
            self.model.jax_state_sync()
        self._write()
        if stop_now:
            self._send()
            self._stop()

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.stop_asked():
            self._send()
            self._stop()

    def _stop(self) -> None:
        log.warning("stopped by SIGTERM, %d steps into epoch %d", self.steps, self.epochs + 1)
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
        except OSError as error:  # such as a full disk: training goes on, and can be resumed from the state before
            part.unlink(missing_ok=True)
            log.warning("the state after epoch %d is not kept: %s", self.epochs, error)

    def load(self, path: Path) -> None:
        """Restore the state from a file; InputError where it belongs to another network."""
        variables = self._variables()
        with np.load(path) as state:
            shapes = [state[f"now-{n}"].shape for n in range(len(variables)) if f"now-{n}" in state]
            if shapes != [tuple(variable.shape) for variable in variables]:
                raise InputError(
                    f"the state in {path.name} is that of another network: resume with the architecture and encoder "
                    "that it was written with"
                )
            for n, variable in enumerate(variables):
                variable.assign(state[f"now-{n}"])
            self.reporter.weights = [state[f"kept-{n}"] for n in range(len(self.reporter.weights))]
            self.reporter.best = float(state["best"])
            self.reporter.best_epoch = int(state["best_epoch"])
            self.epochs = int(state["epoch"])
            self.steps = int(state["steps"])
            if self.steps:
                self.metric_sums = [state[f"sum-{n}"] for n in range(len(self.model.metrics_variables))]

    def _variables(self) -> list[keras.Variable]:
        return [*self.model.network.variables, *self.model.optimizer.variables, self.model.seed.state]


@contextmanager
def sigterm_flag() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM only sets a flag, so that the current step can finish; gives a function to read it.

    Only the main thread may handle signals: in any other, the flag is never set.
    """
    received = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield received.is_set
        return
    previous = signal.signal(signal.SIGTERM, lambda number, frame: received.set())
    try:
        yield received.is_set
    finally:
        signal.signal(signal.SIGTERM, previous)
