"""Runs: begun, told about, and ended. MLflow is the only memory; what is told to it goes through an outbox."""

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
from mlflow.entities import Run as Run  # pipeline has it from here
from PIL import Image

import ocmlflow
from ocmlflow import redaction
from ocmlflow.errors import InputError
from ocmlflow.tracking import model_facts, outbox_sender, provenance
from ocmlflow.tracking.model_facts import ModelFacts
from ocmlflow.tracking.outbox import Outbox, UndeliveredError
from ocmlflow.tracking.outbox_sender import AWAY

log = logging.getLogger(__name__)

VERB, KEY, PLACE = "ocmlflow.verb", "ocmlflow.key", "ocmlflow.place"
STATE = "state"
_NAMELESS = re.compile(r"[a-z]+-[a-z]+-\d+")
"""A name that MLflow made up, which says nothing."""


@contextmanager
def run(verb: str, parameters: Mapping[str, Any], *, resume: Run | None = None) -> Iterator[Run]:
    """The run that `mlflow run` made for this process, or a new one in MLflow's current experiment, or `resume`.

    Logs the parameters that MLflow has not logged itself; a failure ends the run as FAILED and says why on its page,
    an interruption as KILLED.
    """
    with _begun(verb, parameters, resume) as active:
        run_id, status = active.info.run_id, "FAILED"
        _outboxes[run_id] = Outbox(outbox_sender.unsent_folder() / run_id, partial(outbox_sender.deliver, run_id))
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


@contextmanager
def _begun(verb: str, parameters: Mapping[str, Any], resume: Run | None) -> Iterator[Run]:
    """The run, of which server and artifact store have taken the first words; what fails here, fails early."""
    outbox_sender.configure_client()
    try:
        if resume:
            _hand_over(resume)
        active = mlflow.start_run(
            run_id=resume.info.run_id if resume else None,
            nested=mlflow.active_run() is not None,  # of a caller that has a run of its own
            log_system_metrics=True,
        )
        try:
            if _NAMELESS.fullmatch(active.info.run_name or ""):
                mlflow.set_tag("mlflow.runName", verb)
            logged = active.data.params
            mlflow.log_params(
                {k: redaction.redact(str(v)) for k, v in parameters.items() if k not in logged and v is not None}
            )
            mlflow.set_tags({VERB: verb, "ocmlflow.version": ocmlflow.__version__, **provenance.source()})
            mlflow.log_text(provenance.environment(), "environment.txt")
        except BaseException:
            _end_quietly("FAILED")
            raise
    except AWAY as error:
        raise no_answer(error) from error
    yield active


def no_answer(error: Exception) -> InputError:
    """The error to raise where the tracking server does not answer."""
    return InputError(
        f"no run can be started at {redaction.redact(mlflow.get_tracking_uri())}: {outbox_sender.error_text(error)}. "
        "`ocmlflow doctor` says what is wrong"
    )


def _end(run_id: str, status: str) -> None:
    """End the active run when all that it had to tell is sent, or raise UndeliveredError if nothing else went wrong."""
    box = _outboxes[run_id]
    try:
        with suppress(OSError):  # on a full disk
            box.put({"do": "end", "status": status, "time": now()})
        box.close()
    except UndeliveredError as error:
        _end_quietly(status)
        message = f"{error}. `ocmlflow send` sends them"
        if status == "FINISHED":
            raise UndeliveredError(message) from error
        log.error(message)
    else:
        mlflow.end_run(status)
    finally:
        del _outboxes[run_id]


def _end_quietly(status: str) -> None:
    """Have MLflow forget the active run; a server that is away is asked once."""
    before = os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    with suppress(*AWAY):
        mlflow.end_run(status)
    del os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]
    if before is not None:
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = before


def keep_state(path: Path) -> None:
    """Store the state of a training in the active run, in place of the one before."""
    with _as_far_as_disks_allow():
        _tell({"do": "file", "folder": STATE}, path, slot=STATE)


def drop_state() -> None:
    """Delete the state of the training in the active run."""
    with _as_far_as_disks_allow():
        _tell({"do": "drop", "folder": STATE}, slot=STATE)


def log_metrics(values: Mapping[str, float], *, step: int = 0) -> None:
    """Log metrics to the active run."""
    with _as_far_as_disks_allow():
        _tell({"do": "metrics", "values": dict(values), "step": step, "time": now()})


def log_image(image: np.ndarray, name: str, *, step: int | None = None) -> None:
    """Log an image to the active run: as the file `name`, or as one step of the series `name`."""
    with _as_far_as_disks_allow(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ("image.png" if step is not None else name)
        Image.fromarray(image).save(file)
        if step is None:
            _tell({"do": "file", "folder": None}, file)
        else:
            _tell({"do": "image", "key": name, "step": step, "time": now()}, file)


def log_model(model: Any, facts: ModelFacts, *, name: str) -> None:
    """Log an uncompiled keras.Model of built-in layers to the active run and register it as `name`.

    The version gets the alias `candidate`. `facts` become its metadata and tags.
    """
    run_id = active().info.run_id
    box = _outboxes.get(run_id)
    try:
        with tempfile.TemporaryDirectory(dir=box.folder if box else None) as folder:
            file = Path(folder) / "model.keras"
            model.save(file)
            _tell({"do": "model", "name": name, "facts": model_facts.to_metadata(facts)}, file)
    except AWAY as error:
        raise InputError(f"the model cannot be kept: {error}. Make room, then go on with resume={run_id}") from error


def active() -> Run:
    """The run that `run` has open."""
    found = mlflow.active_run()
    if found is None:
        raise RuntimeError("no run is open: call this inside `tracking.run`")
    return found


def identify(tags: Mapping[str, str]) -> None:
    """Set tags of the active run that later runs find it by; the server has them when this returns."""
    mlflow.set_tags(dict(tags))


def log_params(values: Mapping[str, Any]) -> None:
    """Log parameters of the active run."""
    mlflow.log_params(dict(values))


@contextmanager
def child(verb: str, name: str, parameters: Mapping[str, Any]) -> Iterator[Run]:
    """A child run of the active run, with that name."""
    with mlflow.start_run(nested=True, run_name=name) as active_child:
        mlflow.log_params(dict(parameters))
        mlflow.set_tag(VERB, verb)
        yield active_child


def create_child(name: str) -> str:
    """Run id of a new child run of the active run, for another process to fill."""
    parent = active().info
    tags = {"mlflow.parentRunId": parent.run_id}
    return str(mlflow.MlflowClient().create_run(parent.experiment_id, tags=tags, run_name=name).info.run_id)


def variables(run_id: str) -> dict[str, str]:
    """Environment variables by which MLflow, in another process, fills a run of this server."""
    return {
        "MLFLOW_RUN_ID": run_id,
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "MLFLOW_EXPERIMENT_ID": active().info.experiment_id,
    }


def end_if_running(run_id: str, status: str) -> None:
    """End a run that its process could not end."""
    client = mlflow.MlflowClient()
    if client.get_run(run_id).info.status == "RUNNING":
        client.set_terminated(run_id, status)


def describe(text: str) -> None:
    """Set the active run's description (Markdown), which MLflow shows above everything."""
    set_tags({"mlflow.note.content": text})


def name_run(verb: str, what: str) -> None:
    """Add to the active run's name what tells it from others of its verb; a name that a user gave stays as it is."""
    given = active().info.run_name or ""
    if given == verb or _NAMELESS.fullmatch(given):
        set_tags({"mlflow.runName": f"{verb} {what}"})


def picture(file: str) -> str:
    """Markdown, for a description, that shows a picture among the active run's artifacts on MLflow's page."""
    return f"![{file}](get-artifact?path={file}&run_uuid={active().info.run_id})"


def set_tags(values: Mapping[str, str]) -> None:
    """Set tags of the active run."""
    with _as_far_as_disks_allow():
        _tell({"do": "tags", "values": {name: redaction.redact(value) for name, value in values.items()}})


def goes_on_in(run: Run) -> None:
    """Have the run that `mlflow run` made for this process, if it did, say in which other one the work is."""
    new = os.environ.pop("MLFLOW_RUN_ID", None)
    if new:
        mlflow.MlflowClient().set_tag(new, "mlflow.note.content", f"Goes on in run {run.info.run_id}.")


def metric_name(name: str) -> str:
    """The name, with an underscore for each character that MLflow takes in no name."""
    return re.sub(r"[^\w\-./ ]", "_", name)


_outboxes: dict[str, Outbox] = {}
"""Of the runs that this process has open."""


def _tell(told: dict[str, Any], *files: Path, slot: str = "") -> None:
    """Have the active run's outbox send this, or send it at once where it has none or the disk is full."""
    run_id = active().info.run_id
    box = _outboxes.get(run_id)
    if box:
        try:
            box.put(told, *files, slot=slot)
            return
        except OSError as error:
            log.warning("cannot be kept in %s, it is sent without: %s", box.folder, error)
    outbox_sender.deliver(run_id, told, files[0].parent if files else Path())


@contextmanager
def _as_far_as_disks_allow() -> Iterator[None]:
    """On a full disk, and a server that is away at the same time, work goes on without what is told here."""
    try:
        yield
    except AWAY as error:
        log.warning("not kept: %s", error)


def now() -> int:
    """Milliseconds, as MLflow counts them."""
    return round(1000 * time.time())


def _hand_over(resume: Run) -> None:
    """Make the experiment of a run the current one, and have the run that `mlflow run` made say where it goes on."""
    mlflow.set_experiment(experiment_id=resume.info.experiment_id)
    goes_on_in(resume)
