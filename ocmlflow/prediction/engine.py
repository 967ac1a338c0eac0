"""Keras models, to the predict function of the engine that runs them fastest and gives the same."""

import functools
import importlib.util
import logging
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ocmlflow import executors
from ocmlflow.errors import InputError
from ocmlflow.prediction import inference
from ocmlflow.probability import Predict
from ocmlflow.storage import hrefs

log = logging.getLogger(__name__)

ENGINES = ("auto", "keras", "openvino")
MAX_DIFFERENCE = 1e-4
"""Largest difference of probabilities at which two engines are said to give the same."""
COMPILED_SHAPES = 2
"""Shapes of images for which a compiled network is kept, each takes up to 400 MB: of a scene's windows, and turned."""
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Where Linux has a GPU that Keras might use, of any make."""


@dataclass(frozen=True)
class Member:
    """One model of an ensemble, as a file that any process can run."""

    engine: str
    """One of ENGINES, not `auto`."""
    file: Path
    """The model: of Keras, or exported for OpenVINO."""
    multiple: int
    """Sides of its images are multiples of this."""
    temperature: float
    """What its logits are divided by."""


@dataclass(frozen=True)
class Ensemble:
    """A predict function that is not running yet, and can be sent to another process: call it to get the function."""

    members: tuple[Member, ...]
    tta: str
    """Name of the views whose mean it gives, of `inference.SYMMETRIES`."""

    def __call__(self) -> Predict:
        """The function; the same one each time in one process. It takes images of any size, from any thread."""
        return _running(self)


def prepare_member(
    fetch: Callable[[], Path], key: str, *, engine: str, multiple: int, temperature: float, folder: Path
) -> Member:
    """The Keras model whose file `fetch` gives, and which `key` names, for the engine that is asked for.

    `auto` takes OpenVINO where it is installed and Keras has no GPU. The model is exported once, into `folder`, and
    kept there only if it gives Keras's probabilities; Keras itself is not loaded again after that. Raises InputError
    where `openvino` is asked for and is not installed, or gives others.
    """
    installed = importlib.util.find_spec("openvino") is not None
    if engine == "openvino" and not installed:
        raise InputError('engine=openvino needs OpenVINO: pip install -e ".[openvino]"')
    plain = Member("keras", folder / "keras" / f"{key}.keras", multiple, temperature)
    exported = folder / "openvino" / hrefs.digest(key, version("openvino"), version("keras")) if installed else None
    if engine == "keras" or exported is None or (engine == "auto" and _has_gpu()):
        return _kept(plain, fetch)
    fast = Member("openvino", exported / "model.xml", multiple, temperature)
    if not exported.exists():
        part = exported.with_name(f"{exported.name}.{uuid.uuid4().hex}.part")
        part.mkdir(parents=True)
        try:
            if unfit := _unfit(fetch(), part, multiple):
                if engine == "openvino":
                    raise InputError(f"{unfit}: engine=keras would do")
                log.warning("%s: Keras is used", unfit)
                return _kept(plain, fetch)
            part.rename(exported)
        except OSError:
            if not exported.exists():  # else another process was faster
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return fast


def _kept(member: Member, fetch: Callable[[], Path]) -> Member:
    """The member, whose file lies where every worker sees it."""
    if not member.file.exists():
        member.file.parent.mkdir(parents=True, exist_ok=True)
        part = member.file.with_name(f"{uuid.uuid4().hex}.part")
        shutil.copyfile(fetch(), part)
        part.replace(member.file)
    return member


def _has_gpu() -> bool:
    """Whether Keras sees a GPU; it is not loaded to be asked where there can be none."""
    if Path("/dev").is_dir() and Path("/proc").is_dir() and not any(Path(driver).exists() for driver in _DRIVERS):
        return False
    import keras

    return bool(keras.distribution.list_devices("gpu"))


@functools.lru_cache(2)
def _running(network: Ensemble) -> Predict:
    found = []
    for one in network.members:
        run = _openvino(one.file, executors.threads_per_task()) if one.engine == "openvino" else _keras(one.file)
        found.append(inference.calibrated(inference.padded(run, one.multiple), one.temperature))
    predict, lock = inference.averaged(found, network.tta), Lock()

    def one_at_a_time(images: np.ndarray) -> np.ndarray:
        with lock:  # each call takes all the threads there are
            return predict(images)

    return one_at_a_time


def _unfit(file: Path, folder: Path, multiple: int) -> str:
    """Export a Keras model's file into the folder; why the export will not do, or nothing.

    In a process of its own: what TensorFlow takes of the memory it never gives back.
    """
    code = (
        "import sys; from ocmlflow.prediction import engine; "
        "print(engine.export(sys.argv[1], sys.argv[2], int(sys.argv[3])))"
    )
    command = [sys.executable, "-c", code, str(file.resolve()), str(folder.resolve()), str(multiple)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    if done.returncode:
        return f"the model cannot be exported to OpenVINO ({(done.stderr.strip().splitlines() or ['no reason'])[-1]})"
    difference = float(done.stdout.split()[-1])
    if difference > MAX_DIFFERENCE:
        return (
            f"OpenVINO differs from Keras by {difference:.1e} in the probability of this model, "
            f"more than {MAX_DIFFERENCE:.0e}"
        )
    log.info("OpenVINO gives this model's probabilities to %.1e", difference)
    return ""


def export(file: str, folder: str, multiple: int) -> float:
    """Write a Keras model's file for OpenVINO; returns the largest difference of probabilities on some noise."""
    model = _loaded(Path(file))
    target = Path(folder) / "model.xml"
    model.export(str(target), format="openvino", verbose=False)
    side = multiple * -(-256 // multiple)
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    images[1] = np.sort(images[1], axis=0)  # and something smooth
    found = _openvino(target, executors.threads_per_task())(images)
    return float(np.abs(found - model.predict_on_batch(images)).max())


def _keras(file: Path) -> Predict:
    return _loaded(file).predict_on_batch


def _loaded(file: Path) -> Any:
    """The keras.Model of a file; InputError where that is of more than Keras' own layers, which could run any code."""
    import keras

    from ocmlflow.training import networks

    try:
        return networks.inner_network(keras.saving.load_model(file, compile=False, safe_mode=True))
    except (TypeError, ValueError) as error:
        raise InputError(f"the model in {file} is refused, it is not of Keras' own layers alone: {error}") from error


def _openvino(file: Path, threads: int) -> Predict:
    import openvino

    core = openvino.Core()
    network = core.read_model(file)
    # Full precision: some processors would otherwise be given half floats. Threads bound to a core wait for whatever
    # else runs there.
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}

    @functools.lru_cache(COMPILED_SHAPES)
    def compiled(shape: tuple[int, ...]) -> Any:
        fixed = network.clone()
        fixed.reshape(list(shape))  # a twelfth of a second, and a tenth faster than one for all shapes
        return core.compile_model(fixed, "CPU", {**settings, "INFERENCE_NUM_THREADS": threads})

    def run(images: np.ndarray) -> np.ndarray:
        return np.array(compiled(images.shape)(images)[0])  # its own memory: the next call overwrites the network's

    return run
