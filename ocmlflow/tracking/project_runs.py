"""Tells where the code of a run of `mlflow run` lies."""

import re
from pathlib import Path

from ocmlflow.tracking import runs


def temporary_checkout() -> Path | None:
    """The working folder, if `mlflow run` fetched the code of the active run from an address into it; else None.

    It is a folder for temporary files, which nobody keeps.
    """
    source = runs.active().data.tags.get("mlflow.source.name", "")
    is_address = re.match(r"(?!file:)[\w+.-]+:|[\w.-]+@", source)  # https://…, ssh://…, git@host:…
    return Path.cwd() if is_address else None
