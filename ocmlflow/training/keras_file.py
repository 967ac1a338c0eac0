"""Checks that a Keras file is whole before Keras loads it, as Keras calls damaged files unsafe, or shows no name."""

import struct
import zipfile
import zlib
from pathlib import Path

from ocmlflow.errors import InputError

PARTS = ("config.json", "metadata.json", "model.weights.h5")
"""Files in the archive that a Keras file is (https://keras.io/guides/serialization_and_saving)."""
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What zipfile raises for a damaged archive."""


def check(file: Path, name: str) -> None:
    """Raise InputError, with the name of the model, where its file is missing, cut short or altered."""
    if reason := _damage(file):
        raise InputError(f"{name} is damaged: {reason}. Restore its file {file.name} from a copy, or train it again")


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
