"""A Keras model, to the predict function of the engine that runs it fastest and gives the same."""

import functools
import importlib.util
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ocmlflow import inference, storage
from ocmlflow.errors import InputError

log = logging.getLogger(__name__)

ENGINES = ("auto", "keras", "openvino")
LIMIT = 1e-4
"""Largest difference of probabilities at which two engines are said to give the same."""
SHAPES = 8
"""Shapes of images for which a compiled network is kept."""


def predict(model: keras.Model, *, engine: str, multiple: int, folder: Path) -> tuple[inference.Predict, str]:
    """A function that predicts images of any size, and the name of the engine that does.

    `auto` takes OpenVINO where it is installed and Keras has no GPU. The network is exported once for a model, into
    `folder`, and kept there only if it gives the model's probabilities. Raises InputError where `openvino` is asked
    for and is not installed, or gives others.
    """
    plain = inference.padded(model.predict_on_batch, multiple)
    installed = importlib.util.find_spec("openvino") is not None
    if engine == "openvino" and not installed:
        raise InputError('engine=openvino needs OpenVINO: pip install -e ".[openvino]"')
    if engine == "keras" or not installed or (engine == "auto" and keras.distribution.list_devices("gpu")):
        return plain, "keras"
    exported = folder / "openvino" / _digest(model)
    if not exported.exists():
        difference = _export(model, exported, multiple)
        if difference > LIMIT:
            shutil.rmtree(exported)
            found = f"OpenVINO differs from Keras by {difference:.1e} in the probability of this model"
            if engine == "openvino":
                raise InputError(f"{found}, more than {LIMIT:.0e}: engine=keras would do")
            log.warning("%s: Keras is used", found)
            return plain, "keras"
        log.info("OpenVINO gives this model's probabilities to %.1e", difference)
    return inference.padded(_openvino(exported), multiple), "openvino"


def _digest(model: keras.Model) -> str:
    from importlib.metadata import version

    weights = (array.tobytes().hex() for array in model.get_weights())
    return storage.digest(model.to_json(), version("openvino"), version("keras"), *weights)


def _export(model: keras.Model, target: Path, multiple: int) -> float:
    """Write the model for OpenVINO; returns the largest difference of probabilities on some noise."""
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    model.export(str(part / "model.xml"), format="openvino", verbose=False)
    side = multiple * -(-256 // multiple)
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    images[1] = np.sort(images[1], axis=0)  # and something smooth
    difference = np.abs(_openvino(part)(images) - model.predict_on_batch(images)).max()
    part.rename(target)
    return float(difference)


def _openvino(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    import openvino

    core = openvino.Core()
    network = core.read_model(folder / "model.xml")
    # Full precision: some processors would otherwise be given half floats. Threads bound to a core wait for whatever
    # else runs there.
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}

    @functools.lru_cache(SHAPES)
    def compiled(shape: tuple[int, ...]) -> Any:
        fixed = network.clone()
        fixed.reshape(list(shape))  # a twelfth of a second, and a tenth faster than one for all shapes
        return core.compile_model(fixed, "CPU", settings)

    def run(images: np.ndarray) -> np.ndarray:
        return np.array(compiled(images.shape)(images)[0])  # its own memory: the next call overwrites the network's

    return run
