"""Runs Keras models by the fastest engine that gives the same probabilities: Keras itself, or OpenVINO on a CPU."""

import functools
import hashlib
import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import tempfile
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

DIGESTS = "digests.json"
"""In the folder of a cached model: the SHA-256 of each file."""
ENGINES = ("auto", "keras", "openvino")
MAX_DIFFERENCE = 1e-4
"""Largest difference of probabilities between OpenVINO and Keras."""
COMPILED_SHAPES = 2
"""Image shapes whose compiled network is kept, up to 400 MB each: one scene's windows, upright and turned."""
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Device files of the GPUs, of any make, that Keras might use on Linux."""


@dataclass(frozen=True)
class Member:
    """One model of an ensemble, as a file that any process can load."""

    engine: str
    """One of ENGINES, not `auto`."""
    file: Path
    """The Keras model, or its OpenVINO export."""
    multiple: int
    """Image sides must be multiples of so many pixels."""
    temperature: float
    """Calibration temperature, which divides the logits."""


@dataclass(frozen=True)
class Ensemble:
    """Models and views whose mean is predicted; call it to get the predict function.

    It can be sent to another process, where the models are loaded at the first call.
    """

    members: tuple[Member, ...]
    """The models."""
    tta: str
    """Test-time augmentation, a name of `inference.SYMMETRIES`."""

    def __call__(self) -> Predict:
        """The predict function, the same one each time in one process; for images of any size, from any thread."""
        return _load(self)


def prepare_member(
    fetch: Callable[[], Path], key: str, *, engine: str, multiple: int, temperature: float, folder: Path
) -> Member:
    """Prepare a Keras model for an engine, as a file in `folder`, which all workers must see.

    `fetch` downloads the Keras file, `key` names the model. `auto` takes OpenVINO if it is installed and Keras has no
    GPU. A model is exported to OpenVINO once, and the export is kept only if it gives the probabilities of Keras.
    Raises InputError if `openvino` is asked for, and is not installed or gives other probabilities.
    """
    is_installed = importlib.util.find_spec("openvino") is not None
    if engine == "openvino" and not is_installed:
        raise InputError('engine=openvino needs OpenVINO: pip install -e ".[openvino]"')
    if engine == "keras" or not is_installed or (engine == "auto" and _has_gpu()):
        return _copy_keras(fetch, Member("keras", folder / "keras" / key / "model.keras", multiple, temperature))
    exported = folder / "openvino" / hrefs.digest(key, version("openvino"), version("keras"))
    reason = _fill_once(exported, lambda part: _export_in_subprocess(fetch(), part, multiple))
    if not reason:
        return Member("openvino", exported / "model.xml", multiple, temperature)
    if engine == "openvino":
        raise InputError(f"{reason}: use engine=keras")
    log.warning("%s: Keras is used", reason)
    return _copy_keras(fetch, Member("keras", folder / "keras" / key / "model.keras", multiple, temperature))


def _copy_keras(fetch: Callable[[], Path], member: Member) -> Member:
    """The member, after its Keras file was copied to where all workers see it."""

    def copy(part: Path) -> str:
        shutil.copyfile(fetch(), part / member.file.name)
        return ""

    _fill_once(member.file.parent, copy)
    return member


def _fill_once(folder: Path, fill: Callable[[Path], str]) -> str:
    """Have a folder filled, which appears once it is complete; returns why that fails, or "".

    A folder whose files still have their digests is left as it is; one that is damaged is filled again.
    """
    if folder.exists():
        if _is_intact(folder):
            return ""
        log.warning("%s is damaged, or of an earlier version: it is made again", folder)
        shutil.rmtree(folder)
    part = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.part")
    part.mkdir(parents=True)
    try:
        reason = fill(part)
        if not reason:
            (part / DIGESTS).write_text(json.dumps(_digests(part)))
            part.rename(folder)
        return reason
    except OSError:
        if not folder.exists():  # else another process was faster
            raise
        return ""
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _is_intact(folder: Path) -> bool:
    """Whether the files of a folder have the digests that are written beside them."""
    try:
        return bool(json.loads((folder / DIGESTS).read_bytes()) == _digests(folder))
    except (OSError, ValueError):
        return False


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder, by name, without the digests themselves."""
    digests = {}
    for file in folder.iterdir():
        if file.name != DIGESTS:
            with file.open("rb") as stream:
                digests[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def _has_gpu() -> bool:
    """Whether Keras sees a GPU; Keras is loaded only where there may be one."""
    if Path("/dev").is_dir() and Path("/proc").is_dir() and not any(Path(driver).exists() for driver in _DRIVERS):
        return False
    import keras

    return bool(keras.distribution.list_devices("gpu"))


@functools.lru_cache(2)
def _load(ensemble: Ensemble) -> Predict:
    predicts = []
    for member in ensemble.members:
        if member.engine == "openvino":
            predict_file = _openvino(member.file, executors.threads_per_task())
        else:
            predict_file = _load_keras(member.file).predict_on_batch
        padded = inference.padded(inference.building_and_distance(predict_file), member.multiple)
        predicts.append(inference.calibrated(padded, member.temperature))
    predict = inference.averaged(predicts, ensemble.tta)
    lock = Lock()

    def one_at_a_time(images: np.ndarray) -> np.ndarray:
        with lock:  # each call uses all threads
            return predict(images)

    return one_at_a_time


def _export_in_subprocess(file: Path, folder: Path, multiple: int) -> str:
    """Export a Keras file into a folder; returns why the export fails, or "".

    In another process, as TensorFlow never gives back the memory that it takes.
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
    """Export a Keras file to OpenVINO; returns the largest difference of their probabilities on random images."""
    import openvino

    model = _load_keras(Path(file))
    target = Path(folder) / "model.xml"
    with tempfile.TemporaryDirectory(dir=folder) as saved:  # Keras' own export to OpenVINO fails on Python 3.13
        model.export(saved, format="tf_saved_model", verbose=False)
        openvino.save_model(openvino.convert_model(saved), target, compress_to_fp16=False)
    side = multiple * -(-256 // multiple)
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    images[1] = np.sort(images[1], axis=0)  # and something smooth
    probability = _openvino(target, executors.threads_per_task())(images)
    return float(np.abs(probability - model.predict_on_batch(images)).max())


def _load_keras(file: Path) -> Any:
    """Load a keras.Model; InputError if it has other layers than Keras' own, which could run any code."""
    import keras

    from ocmlflow.training import keras_file, networks

    keras_file.check(file, "the model")
    try:
        return networks.inner_network(keras.saving.load_model(file, compile=False, safe_mode=True))
    except (TypeError, ValueError) as error:
        raise keras_file.load_error(file, f"the model in {file}", error) from error


def _openvino(file: Path, threads: int) -> Predict:
    """The predict function of an OpenVINO model."""
    import openvino

    core = openvino.Core()
    network = core.read_model(file)
    # Full precision, as some processors would use half floats. No pinning, as a thread bound to a core waits for
    # whatever else runs there.
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}

    @functools.lru_cache(COMPILED_SHAPES)
    def compiled(shape: tuple[int, ...]) -> Any:
        fixed = network.clone()
        fixed.reshape(list(shape))  # takes 0.08 s, and runs a tenth faster than one network for all shapes
        return core.compile_model(fixed, "CPU", {**settings, "INFERENCE_NUM_THREADS": threads})

    def predict(images: np.ndarray) -> np.ndarray:
        return np.array(compiled(images.shape)(images)[0])  # copied, as the next call overwrites the result

    return predict
