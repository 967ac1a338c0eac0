"""Starts, fills and ends MLflow runs. What a run logs goes through an outbox, so that a server may be away."""

import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import Run as Run  # for pipeline, which does not import mlflow
from PIL import Image

import ocmlflow
from ocmlflow import redaction
from ocmlflow.errors import InputError
from ocmlflow.tracking import database_wait, limits, model_facts, outbox_sender, page_addresses, provenance
from ocmlflow.tracking.model_facts import ModelFacts
from ocmlflow.tracking.outbox import Outbox, UndeliveredError
from ocmlflow.tracking.outbox_sender import SERVER_ERRORS

log = logging.getLogger(__name__)

VERB = "ocmlflow.verb"
"""Tag of a run: the step that it is of."""
KEY = "ocmlflow.key"
"""Tag of a run: digest of its inputs, parameters and code. Runs of equal keys do the same."""
PLACE = "ocmlflow.place"
"""Tag of a run: host and folder that it works in."""
STATE = "state"
"""Artifact folder of the state of a training."""
GENERATED_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")
"""Names that MLflow makes up."""


@contextmanager
def run(
    verb: str, parameters: Mapping[str, Any], *, resume: Run | None = None, system_metrics: bool = True
) -> Iterator[Run]:
    """Open a run for the block: `resume`, the one that `mlflow run` made for this process, or else a new one.

    A new run is in the current experiment; within another run it is a nested one, in the experiment of that one. The
    parameters are logged, but for those that MLflow has logged itself, and with `system_metrics` the load of this
    machine. An error ends the run as FAILED, with its message on the run's page, and an interruption as KILLED.
    InputError where the server does not answer at the start; UndeliveredError where the block succeeds and not all
    could be sent.
    """
    with _started(verb, parameters, resume, system_metrics) as active:
        run_id = active.info.run_id
        status = "FAILED"
        unsent = outbox_sender.unsent_folder() / run_id
        _outboxes[run_id] = Outbox(unsent, partial(outbox_sender.send_entry, run_id))
        outbox_sender.note_server(unsent)
        try:
            yield active
            status = "FINISHED"
        except Exception as error:
            describe(f"**Failed**: {type(error).__name__}: {error}")
            raise
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            describe("**Interrupted**: started again in the same way, or a training with `resume`, it goes on")
            raise
        finally:
            _end(run_id, status)
            if page := page_addresses.run_page(active):
                log.info("this run: %s", page)


@contextmanager
def _started(verb: str, parameters: Mapping[str, Any], resume: Run | None, system_metrics: bool) -> Iterator[Run]:
    """The run, once server and artifact store have accepted a first entry, so that their faults show early."""
    outbox_sender.configure_client()
    try:
        database_wait.open_stores()
        if resume:
            mlflow.set_experiment(experiment_id=resume.info.experiment_id)
            refer_to(resume)
        active = database_wait.when_free(lambda: _start(resume, system_metrics))
        try:
            database_wait.when_free(lambda: _log_start(active, verb, parameters))
        except BaseException:
            _end_quietly("FAILED")
            raise
    except SERVER_ERRORS as error:
        raise unreachable_error(error) from error
    yield active


def _start(resume: Run | None, system_metrics: bool) -> Run:
    """Start or go on with a run in MLflow's client."""
    outer = mlflow.active_run()  # the caller may have a run of its own
    made_for_us = os.environ.get("MLFLOW_RUN_ID")
    try:
        return mlflow.start_run(
            run_id=resume.info.run_id if resume else None,
            experiment_id=outer.info.experiment_id if outer else None,
            nested=outer is not None,
            log_system_metrics=system_metrics,
        )
    except SERVER_ERRORS:
        if made_for_us:  # MLflow forgets it; another attempt is for the same run
            os.environ["MLFLOW_RUN_ID"] = made_for_us
        raise


def _log_start(active: Run, verb: str, parameters: Mapping[str, Any]) -> None:
    """Log what is known of a run at its start; once more changes nothing."""
    if GENERATED_NAME.fullmatch(active.info.run_name or ""):
        mlflow.set_tag("mlflow.runName", verb)
    logged = active.data.params
    mlflow.log_params(
        {
            name: redaction.redact(str(value))
            for name, value in parameters.items()
            if name not in logged and value is not None
        }
    )
    mlflow.set_tags({VERB: verb, "ocmlflow.version": ocmlflow.__version__, **provenance.code_tags()})
    mlflow.log_text(provenance.installed_packages(), "environment.txt")


def unreachable_error(error: Exception) -> InputError:
    """The error to raise where the tracking server cannot be reached."""
    return InputError(
        f"no run can be started at {redaction.redact(mlflow.get_tracking_uri())}: {outbox_sender.error_text(error)}. "
        "`ocmlflow doctor` says what is wrong"
    )


def _end(run_id: str, status: str) -> None:
    """Send what is left, and end the active run; UndeliveredError where only the sending failed."""
    outbox = _outboxes[run_id]
    try:
        with suppress(OSError):  # on a full disk
            outbox.put({"do": "end", "status": status, "time": now()})
        outbox.close()
    except UndeliveredError as error:
        _end_quietly(status)
        message = f"{error}. `ocmlflow send` sends them, `ocmlflow send --run {run_id} --name NAME` under another name"
        if status == "FINISHED":
            raise UndeliveredError(message) from error
        log.error(message)
    else:
        mlflow.end_run(status)
    finally:
        del _outboxes[run_id]


def _end_quietly(status: str) -> None:
    """Close the active run in MLflow's client; a server that is away is asked once."""
    before = os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    with suppress(*SERVER_ERRORS):
        mlflow.end_run(status)
    del os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]
    if before is not None:
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = before


def save_state(path: Path) -> None:
    """Log the state of a training to the active run, in place of the one before."""
    with _errors_as_warnings():
        _log_entry({"do": "file", "folder": STATE}, path, slot=STATE)


def delete_state() -> None:
    """Delete the state of the training in the active run."""
    with _errors_as_warnings():
        _log_entry({"do": "drop", "folder": STATE}, slot=STATE)


def log_metrics(values: Mapping[str, float], *, step: int = 0) -> None:
    """Log metrics to the active run."""
    with _errors_as_warnings():
        _log_entry({"do": "metrics", "values": dict(values), "step": step, "time": now()})


def log_image(image: np.ndarray, name: str, *, step: int | None = None) -> None:
    """Log an image to the active run: as the file `name`, or as one step of the series `name`."""
    with _errors_as_warnings(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ("image.png" if step is not None else name)
        Image.fromarray(image).save(file)
        if step is None:
            _log_entry({"do": "file", "folder": None}, file)
        else:
            _log_entry({"do": "image", "key": name, "step": step, "time": now()}, file)


def log_model(
    model: Any,
    facts: ModelFacts,
    *,
    name: str,
    scores: Mapping[str, float] | None = None,
    dataset: tuple[str, str] | None = None,
    description: str = "",
    item: Mapping[str, Any] | None = None,
) -> None:
    """Log an uncompiled keras.Model of built-in layers to the active run and register it as `name`.

    The version gets the alias `candidate`. `facts` become its metadata and tags; `scores` on `dataset` (name and
    digest) are shown with the model. Its STAC `item` lies among its files.
    """
    run_id = active().info.run_id
    outbox = _outboxes.get(run_id)
    try:
        with tempfile.TemporaryDirectory(dir=outbox.folder if outbox else None) as folder:
            file = Path(folder) / "model.keras"
            model.save(file)
            content = {
                "do": "model",
                "name": name,
                "title": limits.model_title(facts.architecture, facts.encoder, facts.validation),
                "facts": model_facts.to_metadata(facts),
                "scores": dict(scores or {}),
                "dataset": dataset or (None, None),
                "description": description,
                "item": item,
                "time": now(),
            }
            _log_entry(content, file)
    except SERVER_ERRORS as error:
        raise InputError(f"the model cannot be kept: {error}. Make room, then go on with resume={run_id}") from error


def active() -> Run:
    """The run that is open."""
    current = mlflow.active_run()
    if current is None:
        raise RuntimeError("no run is open: call this inside `tracking.run`")
    return current


def identify(tags: Mapping[str, str]) -> None:
    """Set tags by which later runs find the active run; they are on the server when this returns."""
    mlflow.set_tags(limits.tags(tags))


def log_params(values: Mapping[str, Any]) -> None:
    """Log parameters of the active run."""
    mlflow.log_params(dict(values))


def describe(text: str) -> None:
    """Set the description of the active run (Markdown), at the top of its page in MLflow."""
    set_tags({"mlflow.note.content": text})


def set_tags(values: Mapping[str, str]) -> None:
    """Set tags of the active run."""
    with _errors_as_warnings():
        _log_entry({"do": "tags", "values": {name: redaction.redact(value) for name, value in values.items()}})


def refer_to(run: Run) -> None:
    """If `mlflow run` made a run for this process, let its description refer to `run`, which does the work."""
    made_for_us = os.environ.pop("MLFLOW_RUN_ID", None)
    if made_for_us:
        mlflow.MlflowClient().set_tag(made_for_us, "mlflow.note.content", f"Goes on in run {run.info.run_id}.")


_outboxes: dict[str, Outbox] = {}
"""Outboxes of the runs that this process has open, by run id."""


def _log_entry(content: dict[str, Any], *files: Path, slot: str = "") -> None:
    """Add an entry to the outbox of the active run; without an outbox, or on a full disk, send it at once."""
    run_id = active().info.run_id
    outbox = _outboxes.get(run_id)
    if outbox:
        try:
            outbox.put(content, *files, slot=slot)
            return
        except OSError as error:
            log.warning("nothing can be kept in %s, sent directly: %s", outbox.folder, error)
    outbox_sender.send_entry(run_id, content, files[0].parent if files else Path())


@contextmanager
def _errors_as_warnings() -> Iterator[None]:
    """Go on without an entry, where the disk is full and the server away at the same time."""
    try:
        yield
    except SERVER_ERRORS as error:
        log.warning("not logged: %s", error)


def now() -> int:
    """Milliseconds since 1970, as in MLflow's API."""
    return round(1000 * time.time())
