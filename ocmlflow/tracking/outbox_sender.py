"""Sends the entries of an outbox to the tracking server."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import sqlalchemy.exc
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types import Schema, TensorSpec
from PIL import Image

from ocmlflow.errors import InputError
from ocmlflow.redaction import redact
from ocmlflow.storage import s3
from ocmlflow.tracking import limits, model_evaluation, outbox
from ocmlflow.tracking.outbox import RefusedError, UndeliveredError
from ocmlflow.training import keras_file

log = logging.getLogger(__name__)

VERSION_TAGS = {"architecture", "encoder", "fold", "gsd", "init", "validation"}
"""Facts that a version has as tags too, for people and searches; all are in the metadata of the model."""
SERVER_FILE = "server.txt"
"""File in the folder of a run with the address of the server that its entries are for."""
CANDIDATE = "candidate"
"""Alias of the newest version of a registered model."""
SERVER_ERRORS = (MlflowException, OSError, sqlalchemy.exc.SQLAlchemyError, *s3.ERRORS)
"""Errors that MLflow raises where the tracking server, its database or the artifact store fails: its own, and those of
requests, SQLAlchemy and boto3 that it lets through."""


def error_text(error: Exception) -> str:
    """The message of an error in one line; of an error of SQLAlchemy, that of the database alone."""
    return " ".join(str(getattr(error, "orig", error)).split())


def unsent_folder() -> Path:
    """The folder in which each run keeps its unsent entries, in a folder of its own."""
    return Path(os.environ.get("XDG_STATE_HOME", "~/.local/state")).expanduser() / "ocmlflow" / "unsent"


def server_address() -> str:
    """Address of the current tracking server, without secrets; the same from every working folder."""
    scheme, separator, path = mlflow.get_tracking_uri().partition(":///")
    if separator and scheme.startswith("sqlite"):
        return f"{scheme}:///{Path(path).absolute()}"
    return redact(mlflow.get_tracking_uri()).rstrip("/")


def note_server(folder: Path) -> None:
    """Note in the folder of a run which server its entries are for."""
    with suppress(OSError):  # on a full disk
        (folder / SERVER_FILE).write_text(server_address())


def other_server(folder: Path) -> str:
    """Address of the server that the entries in a folder are for, if it is not the current one; else empty."""
    file = folder / SERVER_FILE
    noted = file.read_text() if file.exists() else ""
    return noted if noted != server_address() else ""


def send_folder(folder: Path, *, name: str | None = None) -> None:
    """Send the entries that a run left in its folder in `unsent_folder`; UndeliveredError where one is left.

    With `name`, models are registered under that name. Entries for another server are left.
    """
    if other := other_server(folder):
        raise UndeliveredError(
            f"the entries in {folder} are for {other}, not for {server_address()}: set MLFLOW_TRACKING_URI={other}"
        )
    outbox.deliver_unsent(folder, partial(send_entry, folder.name, name=name))


def send_unsent(run_id: str | None, *, name: str | None = None) -> None:
    """Send what runs of this user left in `unsent_folder` for the current server: all of them, or the run named.

    With `name`, models are registered under that name. InputError where the named run left nothing, and where some
    entries are refused or the server is away. What is for other servers is listed and left.
    """
    folders = [folder for folder in outbox.unsent(unsent_folder()) if run_id in (None, folder.name)]
    if run_id and not folders:
        raise InputError(f"run {run_id} left nothing in {unsent_folder()}: all its entries are sent")
    failures = []
    sent = 0
    for folder in folders:
        if not run_id and (other := other_server(folder)):
            log.warning("run %s left something for %s: MLFLOW_TRACKING_URI=%s sends it", folder.name, other, other)
            continue
        try:
            send_folder(folder, name=name)
            sent += 1
            log.info("run %s: all is sent", folder.name)
        except UndeliveredError as error:
            failures.append(f"run {folder.name}: {error}")
    if failures:
        raise InputError("; ".join(failures))
    log.info("%d runs had something left to send to %s, in %s", sent, server_address(), unsent_folder())


def configure_client() -> None:
    """Set up MLflow's client for proxied artifacts, where the user has not done so.

    They pass through the tracking server. By default the client asks that server for signed addresses of the S3 server
    behind it, and fails where it cannot reach that one. On one machine both ways were equally fast.
    """
    for direction in ("DOWNLOAD", "UPLOAD"):
        os.environ.setdefault(f"MLFLOW_ENABLE_PROXY_MULTIPART_{direction}", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one bar for each file of the chips


_FINAL_ERRORS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")


def send_entry(run_id: str, content: Mapping[str, Any], folder: Path, *, name: str | None = None) -> None:
    """Send one entry of a run; its files are in the folder. RefusedError where the server will never accept it.

    With `name`, a model is registered under that name.
    """
    if name and content["do"] == "model":
        content = {**content, "name": name}
    try:
        _SENDERS[content["do"]](run_id, content, folder)
    except MlflowException as error:
        if error.error_code in _FINAL_ERRORS:
            raise RefusedError(f"{content['do']} of run {run_id}: {error}") from error
        raise


def _send_metrics(run_id: str, content: Mapping[str, Any], folder: Path) -> None:
    metrics = [Metric(name, value, content["time"], content["step"]) for name, value in content["values"].items()]
    mlflow.MlflowClient().log_batch(run_id, metrics=metrics)


def _send_tags(run_id: str, content: Mapping[str, Any], folder: Path) -> None:
    tags = [RunTag(name, value) for name, value in limits.tags(content["values"]).items()]
    mlflow.MlflowClient().log_batch(run_id, tags=tags)


def _send_file(run_id: str, content: Mapping[str, Any], folder: Path) -> None:
    for file in folder.iterdir():
        if file.name != outbox.ENTRY_FILE:
            mlflow.MlflowClient().log_artifact(run_id, str(file), content["folder"])


def _send_image(run_id: str, content: Mapping[str, Any], folder: Path) -> None:
    with Image.open(folder / "image.png") as image:
        mlflow.MlflowClient().log_image(
            run_id, image, key=content["key"], step=content["step"], timestamp=content["time"]
        )


def _send_drop(run_id: str, content: Mapping[str, Any], folder: Path) -> None:
    address = mlflow.get_run(run_id).info.artifact_uri
    get_artifact_repository(address).delete_artifacts(content["folder"])


def _send_end(run_id: str, content: Mapping[str, Any], folder: Path) -> None:
    mlflow.MlflowClient().set_terminated(run_id, content["status"], content["time"])


def _send_model(run_id: str, content: Mapping[str, Any], folder: Path) -> None:
    """Log a model, register it and tag it. Files in the folder note what is done, so that another attempt goes on."""
    client = mlflow.MlflowClient()
    name, facts = content["name"], content["facts"]
    logged, registered = folder / "logged.txt", folder / "registered.txt"
    if not logged.exists():
        logged.write_text(_log_keras(run_id, folder / "model.keras", facts, content.get("title", "model")))
        _add_item(logged.read_text().removeprefix("models:/"), content.get("item"), folder)
    if not registered.exists() or not registered.read_text().startswith(f"{name}/"):
        registered.write_text(f"{name}/{mlflow.register_model(logged.read_text(), name).version}")
    version = registered.read_text().rpartition("/")[2]
    _log_scores(run_id, logged.read_text().removeprefix("models:/"), content)
    _describe_version(name, version, logged.read_text().removeprefix("models:/"), content)
    _make_candidate(name, version)
    client.set_tag(run_id, "ocmlflow.version_made", f"{name}/{version}")
    log.info("registered %s version %s", name, version)


def _add_item(model_id: str, item: Mapping[str, Any] | None, folder: Path) -> None:
    """Write the STAC item of a logged model among its files."""
    if item:
        (folder / model_evaluation.ITEM_FILE).write_text(json.dumps(item, indent=1))
        location = mlflow.MlflowClient().get_logged_model(model_id).artifact_location
        get_artifact_repository(location).log_artifact(str(folder / model_evaluation.ITEM_FILE))


def _describe_version(name: str, version: str, model_id: str, content: Mapping[str, Any]) -> None:
    """Set description and tags of a new version, and the description of its logged model; a refusal is logged."""
    client = mlflow.MlflowClient()
    description = limits.clip(content.get("description", ""), limits.VERSION_DESCRIPTION, "the version's description")
    try:
        client.update_model_version(name, version, description)
        client.set_logged_model_tags(model_id, {"mlflow.note.content": description})
        for fact in VERSION_TAGS & content["facts"].keys():
            client.set_model_version_tag(name, version, fact, str(content["facts"][fact]))
    except MlflowException as error:
        if error.error_code not in _FINAL_ERRORS:
            raise
        log.warning("%s version %s lacks a description or tags: %s", name, version, error)


def _log_scores(run_id: str, model_id: str, content: Mapping[str, Any]) -> None:
    """Log the scores of a training as those of its model, on its validation chips."""
    name, digest = content.get("dataset", (None, None))
    more = {"model_id": model_id, "dataset_name": name, "dataset_digest": digest, "run_id": run_id}
    metrics = [Metric(key, value, content["time"], 0, **more) for key, value in content.get("scores", {}).items()]
    mlflow.MlflowClient().log_batch(run_id, metrics=metrics)


def _make_candidate(name: str, version: str) -> None:
    """Set the alias. MLflow refuses it where another training sets it for the first time at the same moment."""
    for attempt in range(5):
        try:
            mlflow.MlflowClient().set_registered_model_alias(name, CANDIDATE, version)
            return
        except MlflowException as error:
            if attempt == 4 or "registered_model_aliases" not in str(error):
                raise


def _log_keras(run_id: str, file: Path, facts: Mapping[str, Any], title: str) -> str:
    """Log the Keras model in a file to a run, under that title; its address."""
    import keras

    loaded = keras.saving.load_model(file, compile=False, safe_mode=True)
    signature = mlflow.models.ModelSignature(
        # Not uint8: MLflow would cut fractions that come as JSON to 0, without a word.
        inputs=Schema([TensorSpec(np.dtype("float32"), (-1, -1, -1, 3), "image")]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, -1, -1, loaded.outputs[0].shape[-1] or -1))]),
    )
    # Given, as MLflow's own guess takes seconds and misses the backend (mlflow/mlflow issue 16183).
    requirements = [f"keras=={keras.__version__}", f"numpy=={np.__version__}", "tensorflow>=2.20,<3"]
    info = mlflow.models.Model.log(
        None,
        SimpleNamespace(save_model=_save_portable),
        name=title,
        run_id=run_id,
        step=-1,  # MLflow copies what a run logs at the model's step to the model: no system metrics there
        model=loaded,
        signature=signature,
        pip_requirements=[f"mlflow=={mlflow.__version__}", *requirements],
        metadata=dict(facts),
    )
    return str(info.model_uri)


def _save_portable(path: str, **more: Any) -> None:
    """Save a model as `mlflow.keras` does, in a Keras file that older versions of Keras load too."""
    mlflow.keras.save_model(path=path, **more)
    keras_file.make_portable(Path(path, "data", "model.keras"))


_SENDERS: dict[str, Callable[[str, Mapping[str, Any], Path], None]] = {
    "metrics": _send_metrics,
    "tags": _send_tags,
    "file": _send_file,
    "image": _send_image,
    "drop": _send_drop,
    "model": _send_model,
    "end": _send_end,
}
