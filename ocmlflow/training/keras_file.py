"""Makes Keras files such that other versions load them, checks them, and says why one does not load."""

import json
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from ocmlflow.errors import InputError

PARTS = ("config.json", "metadata.json", "model.weights.h5")
"""Files in the archive that a Keras file is (https://keras.io/guides/serialization_and_saving)."""
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What zipfile raises for a damaged archive."""


def make_portable(file: Path) -> None:
    """Change the Keras file of a trained model such that older versions of Keras load it too.

    It then has no initializers, which a trained model does not need: Keras 3.15 writes `input_axes` for them, and older
    versions refuse that. Nor has it the options of batch renormalization, of 3.14, where that is off.
    """
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["config.json"] = json.dumps(_for_older_versions(json.loads(parts["config.json"]))).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def _for_older_versions(config: Any) -> Any:
    """The configuration of a model, where all weights begin with zeros, and without what is off."""
    if isinstance(config, list):
        return [_for_older_versions(part) for part in config]
    if not isinstance(config, dict):
        return config
    zeros: dict[str, Any] = {
        "module": "keras.initializers",
        "class_name": "Zeros",
        "config": {},
        "registered_name": None,
    }
    return {
        name: zeros if name.endswith("_initializer") and part is not None else _for_older_versions(part)
        for name, part in config.items()
        if not (name.startswith("renorm") and not config.get("renorm"))
    }


def check(file: Path, name: str) -> None:
    """Raise InputError, with the name of the model, where its file is missing, cut short or altered."""
    if reason := _damage(file):
        raise InputError(f"{name} is damaged: {reason}. Restore its file {file.name} from a copy, or train it again")


def load_error(file: Path, name: str, error: Exception) -> InputError:
    """The error to raise where Keras does not load a whole file: unsafe, of another version, or of other layers."""
    import keras  # late: whoever checks a file alone does not wait for it

    with zipfile.ZipFile(file) as archive:
        saved_by = str(json.loads(archive.read("metadata.json")).get("keras_version", "of an unknown version"))
    if "safe_mode" in str(error):
        return InputError(f"{name} is refused because it is unsafe, loading it could run any code: {error}")
    if saved_by == keras.__version__:
        return InputError(f"{name} is refused: it needs more than Keras' own layers: {error}")
    age = "newer" if _numbers(saved_by) > _numbers(keras.__version__) else "older"
    return InputError(
        f"{name} was saved by Keras {saved_by}, {age} than Keras {keras.__version__} that is installed here, and does "
        f'not load: pip install "keras=={saved_by}" would do. Keras says: {error}'
    )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _damage(file: Path) -> str:
    """What is wrong with a Keras file, or ""; its parts are compared with their checksums."""
    if not file.is_file():
        return f"{file} does not exist"
    try:
        with zipfile.ZipFile(file) as archive:
            altered = archive.testzip()
            missing = [part for part in PARTS if part not in archive.namelist()]
    except _ZIP_ERRORS as error:
        return f"{file} is cut short or altered ({error})"
    if altered:
        return f"{altered} in {file} does not match its checksum"
    return f"{file} has no {', '.join(missing)}" if missing else ""
