"""Stores what an evaluation chose for a model in the files of the model, so that it moves where they move."""

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from ocmlflow.errors import InputError

EVALUATION_FILE = "evaluation.json"
"""File of an evaluation, beside MLflow's file MLmodel."""
ITEM_FILE = "stac_item.json"
"""File of the STAC item of a model, beside it."""
THRESHOLD = "threshold"
"""Tag of a version: probability from which a pixel is building."""
TEMPERATURE = "ocmlflow.temperature"
"""Tag of a version: a calibrated probability is sigmoid(logit(probability) / temperature)."""
EVALUATED_ON = "evaluated_on"
"""Tag of a version: run id of the chips that its threshold and temperature were chosen on."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation chose. The defaults are those of a model that was never evaluated."""

    threshold: int = 50
    """Probability from which a pixel is building, in percent."""
    temperature: float = 1.0
    """Temperature that calibrates the probabilities."""
    evaluated_on: str = ""
    """Run id of the chips that both were chosen on."""


def load(address: str, tags: Mapping[str, str]) -> Evaluation:
    """The evaluation of the model at an address: tags of its version come before its files.

    A version that was registered from another one has no tags; its files are those of the other.
    """
    content = {**_read(address), **tags}
    threshold, temperature = content.get(THRESHOLD, 0.5), content.get(TEMPERATURE, 1)
    try:
        found = Evaluation(round(100 * float(threshold)), float(temperature), str(content.get(EVALUATED_ON, "")))
    except (TypeError, ValueError):
        found = Evaluation(-1)
    if not (0 <= found.threshold <= 100 and 0 < found.temperature < math.inf):
        raise InputError(
            f"model {address} has threshold={threshold} and temperature={temperature} in its tags or in "
            f"{EVALUATION_FILE}: a share between 0 and 1 and a positive number are needed; evaluate it again"
        )
    return found


def to_tags(evaluation: Evaluation) -> dict[str, str]:
    """The evaluation as tags of a version."""
    return {
        THRESHOLD: f"{evaluation.threshold / 100:.2f}",
        TEMPERATURE: f"{evaluation.temperature:.4f}",
        EVALUATED_ON: evaluation.evaluated_on,
    }


def write(evaluation: Evaluation, item: Mapping[str, Any] | None, model_id: str, address: str) -> None:
    """Store evaluation and STAC item in the files of the logged model, or, where this server has none, at `address`.

    Raises MlflowException or OSError where they cannot be changed.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, content in ((EVALUATION_FILE, to_tags(evaluation)), (ITEM_FILE, item)):
            if content:
                Path(folder, name).write_text(json.dumps(content, indent=1))
        get_artifact_repository(_files_of(model_id, address)).log_artifacts(folder)


def _files_of(model_id: str, address: str) -> str:
    """Address under which the files of a model may be written."""
    client = mlflow.MlflowClient()
    try:
        return str(client.get_logged_model(model_id).artifact_location)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    if not address.startswith("models:/"):
        return address
    name, version = address.removeprefix("models:/").rsplit("/", 1)
    return str(client.get_model_version_download_uri(name, version))


def _read(address: str) -> dict[str, Any]:
    """The evaluation in the files of a model, as its tags would have it; empty for one that was never evaluated."""
    repository = get_artifact_repository(address)
    if EVALUATION_FILE not in (Path(file.path).name for file in repository.list_artifacts(None)):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            return dict(json.loads(Path(repository.download_artifacts(EVALUATION_FILE, folder)).read_bytes()))
        except (TypeError, ValueError) as error:
            reason = f"{EVALUATION_FILE} of model {address} is damaged ({error})"
            raise InputError(f"{reason}: restore it from a copy, or evaluate the model again") from error
