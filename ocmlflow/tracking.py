"""MLflow: runs, parameters, artifacts, the registry. Nothing else here or elsewhere remembers anything."""

import logging
import os
import platform
import re
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import geopandas as gpd
import mlflow
import numpy as np
import pandas as pd
import requests
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Metric, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
from mlflow.types import Schema, TensorSpec
from PIL import Image

import ocmlflow
from ocmlflow import outbox, storage
from ocmlflow.errors import InputError

log = logging.getLogger(__name__)

VERB, KEY, DIGEST = "ocmlflow.verb", "ocmlflow.key", "ocmlflow.chips.digest"
STATE = "state"
TEMPERATURE = "ocmlflow.temperature"
"""Tag of a version: a calibrated probability is sigmoid(logit(probability) / temperature)."""
EVALUATED_ON = "evaluated_on"
"""Tag of a version: run id of the chips that its threshold and temperature were chosen on."""
_NAMELESS = re.compile(r"[a-z]+-[a-z]+-\d+")
"""A name that MLflow made up, which says nothing."""
CANDIDATE, CHAMPION = "candidate", "champion"
AWAY = (MlflowException, OSError, *storage.S3_ERRORS)
"""What MLflow raises where the tracking server or the artifact store does not do: of its own, of requests, of boto3."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ocmlflow"


@dataclass(frozen=True)
class Model:
    """A registered version, or any other model that `train` logged."""

    uri: str
    """As it was asked for."""
    pinned: str
    """Its address, which stays that of this one when an alias moves on."""
    key: str
    """MLflow's id of the logged model: the same id, the same network."""
    facts: dict[str, Any]
    """What training recorded with it: gsd, chips (run id), trained_on, multiple, data, run, encoder …"""
    name: str
    """Registered name; empty for a model that is not registered."""
    version: str
    threshold: int
    """Percent; chosen by the version's last evaluation, 50 before."""
    temperature: float
    """What its logits are divided by to give true probabilities; measured by an evaluation, 1 before."""
    evaluated_on: str
    """Run id of the chips that its last evaluation chose the two on; empty before."""

    @cached_property
    def keras(self) -> Any:
        """keras.Model: uint8 RGB (batch, height, width, 3) to probability (batch, height, width, 1) float32."""
        try:
            # When asked for: TensorFlow takes seconds and half a gigabyte.
            return mlflow.keras.load_model(self.pinned, load_model_kwargs={"safe_mode": True, "compile": False})
        except (MlflowException, OSError) as error:
            raise InputError(f"cannot load model {self.uri}. MLflow says: {error}") from error
        except (TypeError, ValueError) as error:
            raise InputError(f"model {self.uri} is refused, it is not of Keras' own layers alone: {error}") from error

    def __str__(self) -> str:
        return f"{self.name} version {self.version}" if self.name else self.uri


@contextmanager
def run(verb: str, parameters: Mapping[str, Any], *, resume: Run | None = None) -> Iterator[Run]:
    """The run that `mlflow run` made for this process, or a new one in MLflow's current experiment, or `resume`.

    Logs the parameters that MLflow has not logged itself; a failure ends the run as FAILED and says why on its page,
    an interruption as KILLED.
    """
    with _begun(verb, parameters, resume) as active:
        run_id, status = active.info.run_id, "FAILED"
        _outboxes[run_id] = outbox.Outbox(unsent_folder() / run_id, partial(_deliver, run_id))
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
    try:
        if resume:
            _hand_over(resume)
        active = mlflow.start_run(run_id=resume.info.run_id if resume else None, log_system_metrics=True)
        try:
            if _NAMELESS.fullmatch(active.info.run_name or ""):
                mlflow.set_tag("mlflow.runName", verb)
            logged = active.data.params
            mlflow.log_params(
                {k: storage.public(str(v)) for k, v in parameters.items() if k not in logged and v is not None}
            )
            mlflow.set_tags({VERB: verb, "ocmlflow.version": ocmlflow.__version__, **_source()})
            mlflow.log_text(_environment(), "environment.txt")
        except BaseException:
            _end_quietly("FAILED")
            raise
    except AWAY as error:
        raise InputError(
            f"no run can be started at {storage.public(mlflow.get_tracking_uri())}: {error}. "
            "`python -m entrypoints.doctor` says what is wrong"
        ) from error
    yield active


def _end(run_id: str, status: str) -> None:
    """End the active run when all that it had to tell is sent, or raise UndeliveredError if nothing else went wrong."""
    box = _outboxes[run_id]
    try:
        with suppress(OSError):  # on a full disk
            box.put({"do": "end", "status": status, "time": _now()})
        box.close()
    except outbox.UndeliveredError as error:
        _end_quietly(status)
        message = f"{error}. `python -m entrypoints.send` sends them"
        if status == "FINISHED":
            raise outbox.UndeliveredError(message) from error
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


def check_server(address: str | None = None) -> str:
    """The address of the tracking server for another machine, `address` or our own; InputError unless it will do."""
    ours = mlflow.get_tracking_uri()
    for found in filter(None, (ours, address)):
        parts = urlparse(found)
        if parts.password or parts.username:
            raise InputError(
                "the tracking address carries a password, which the job would show: give it as "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, here and to the job as secrets"
            )
        if parts.scheme not in ("http", "https", "databricks") and found != "databricks":
            raise InputError(
                f"another machine cannot reach runs in {found}: set MLFLOW_TRACKING_URI to a server's address"
            )
    try:
        if urlparse(ours).scheme.startswith("http"):  # MLflow itself would ask again for minutes
            requests.get(f"{ours.rstrip('/')}/health", timeout=10).raise_for_status()
        mlflow.MlflowClient().search_experiments(max_results=1)
    except (MlflowException, requests.RequestException) as error:
        raise InputError(f"the tracking server {ours} does not answer: {error}") from error
    return address or ours


def new_run(step: str, backend: str, experiment: str | None) -> Run:
    """A new run in that experiment, or the current one, for a step of the checkout that another machine runs."""
    client = mlflow.MlflowClient()
    if experiment:
        known = client.get_experiment_by_name(experiment)
        number = str(known.experiment_id if known else client.create_experiment(experiment))
    else:
        number = str(mlflow.tracking.fluent._get_experiment_id())
    tags = {"mlflow.source.type": "PROJECT", "mlflow.project.entryPoint": step, "mlflow.project.backend": backend}
    return client.create_run(number, tags={**tags, **_checkout()}, run_name=step)


def project_run(folder: Path) -> Run | None:
    """The run that MLflow made for the project in that folder, if it has come so far."""
    client = mlflow.MlflowClient()
    experiments = [found.experiment_id for found in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`mlflow.source.name` = '{folder}'")
    return found[0] if found else None


def run_of(run_id: str) -> Run:
    """The run of that id."""
    return mlflow.get_run(run_id)


def workspace_run(run_id: str) -> int:
    """Number of the Databricks job run that MLflow submitted for a run."""
    return int(mlflow.get_run(run_id).data.tags["mlflow.databricks.shellJobRunID"])


def say_source(run_id: str, step: str) -> None:
    """Name the run after its step, and its source as this checkout rather than the copy that was sent."""
    for tag, value in {"mlflow.runName": step, **_checkout()}.items():
        mlflow.MlflowClient().set_tag(run_id, tag, value)


@contextmanager
def ending(find: Callable[[], Run | None]) -> Iterator[None]:
    """See that the run that `find` gives, and another machine fills, ends with the block if it has not ended."""
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        _end_elsewhere(find(), "KILLED" if stopped else "FAILED", "interrupted" if stopped else str(error))
        raise
    _end_elsewhere(find(), "FINISHED", "")


def interrupted(verb: str, run_id: str) -> Run:
    """The run of that id, which did not come to its end; InputError for any other.

    What it left to be sent is sent first.
    """
    if (unsent_folder() / run_id).exists():
        send(unsent_folder() / run_id)
    try:
        found = mlflow.get_run(run_id)
    except MlflowException as error:
        raise InputError(f"resume={run_id} names no run of {mlflow.get_tracking_uri()}") from error
    if found.data.tags.get(VERB) != verb or found.info.status == "FINISHED":
        raise InputError(
            f"resume={run_id}: a `{verb}` run that was interrupted is needed, that one is a {found.info.status} "
            f"`{found.data.tags.get(VERB, 'foreign')}` run"
        )
    return found


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
        _tell({"do": "metrics", "values": dict(values), "step": step, "time": _now()})


def log_image(image: np.ndarray, name: str, *, step: int | None = None) -> None:
    """Log an image to the active run: as the file `name`, or as one step of the series `name`."""
    with _as_far_as_disks_allow(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ("image.png" if step is not None else name)
        Image.fromarray(image).save(file)
        if step is None:
            _tell({"do": "file", "folder": None}, file)
        else:
            _tell({"do": "image", "key": name, "step": step, "time": _now()}, file)


def state_of(run: Run, folder: Path) -> Path:
    """A copy in `folder` of the state that an interrupted training left; InputError where it left none."""
    address = f"runs:/{run.info.run_id}/{STATE}"
    try:
        copy = mlflow.artifacts.download_artifacts(address, dst_path=str(folder))
    except (MlflowException, OSError) as error:
        raise InputError(
            f"run {run.info.run_id} left no state: it ended before its first epoch was whole; start it anew"
        ) from error
    (found,) = Path(copy).iterdir()
    return found


def active() -> Run:
    """The run that `run` has open."""
    found = mlflow.active_run()
    if found is None:
        raise RuntimeError("no run is open: call this inside `tracking.run`")
    return found


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
        _tell({"do": "tags", "values": {name: storage.public(value) for name, value in values.items()}})


def newest(verb: str, *, key: str | None = None) -> Run | None:
    """The newest finished run of a verb in the active run's experiment, with this key if one is given."""
    wanted = f"attributes.status = 'FINISHED' and tags.`{VERB}` = '{verb}'"
    if key:
        wanted += f" and tags.`{KEY}` = '{key}'"
    experiment = active().info.experiment_id
    found = mlflow.MlflowClient().search_runs([experiment], wanted, order_by=["attributes.start_time DESC"])
    return found[0] if found else None


def chips_run(chips: str | None) -> str:
    """Run id of the chips named by a run id or a `runs:/` address, or of the newest finished `prepare` run."""
    if chips is None:
        found = newest("prepare")
        if found is None:
            raise InputError(
                "this experiment has no finished `prepare` run: make chips first, with "
                "`mlflow run . -e prepare -P catalog=HREF`, or name such a run of another one with chips=RUN_ID"
            )
        return str(found.info.run_id)
    run_id = chips.removeprefix("runs:/").split("/")[0]
    try:
        found = mlflow.get_run(run_id)
    except MlflowException as error:
        raise InputError(f"chips={chips} names no run of {mlflow.get_tracking_uri()}") from error
    if found.data.tags.get(VERB) != "prepare" or found.info.status != "FINISHED":
        verb = found.data.tags.get(VERB, "foreign")
        raise InputError(
            f"chips={chips}: a finished `prepare` run is needed, that one is a {found.info.status} `{verb}` run"
        )
    return run_id


def chips_digest(run_id: str) -> str:
    """The digest of the chips of a `prepare` run."""
    return str(mlflow.get_run(run_id).data.tags[DIGEST])


def version_of(run_id: str, name: str) -> str:
    """The version of a registered model that a `train` run made."""
    found = mlflow.MlflowClient().search_model_versions(f"name = '{name}'")  # Unity Catalog filters by name alone
    for version in found:
        if version.run_id == run_id:
            return str(version.version)
    raise InputError(f"run {run_id} has registered no version of {name}; unsent ones: `python -m entrypoints.send`")


def chips_folder(run_id: str) -> Path:
    """Local folder with the chips of a `prepare` run: where they lie, or a copy in the user's cache."""
    address = RunsArtifactRepository.get_underlying_uri(f"runs:/{run_id}/chips")
    if urlparse(address).scheme in ("", "file"):
        return storage.path(address)
    target = CACHE / "chips" / run_id
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as part:
            mlflow.artifacts.download_artifacts(f"runs:/{run_id}/chips", dst_path=part)
            try:
                (Path(part) / "chips").rename(target)
            except OSError:
                if not target.exists():  # else another process was faster, with the same files
                    raise
    return target


def chips_file(run_id: str, name: str) -> Path:
    """A local copy of one file of the chips of a `prepare` run; InputError where it cannot be had."""
    try:
        return Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/chips/{name}"))
    except (MlflowException, OSError) as error:
        raise InputError(f"cannot read {name} of the chips of run {run_id}: {error}") from error


def trained_on(model: Model) -> gpd.GeoDataFrame:
    """The index rows of all chips that a model, and the models it started from, were trained on."""
    rows = []
    for step in model.facts["trained_on"]:
        index = gpd.read_parquet(chips_file(step["chips"], "index.parquet"))
        rows.append(index[index.split == "train" if step["fold"] is None else index.fold != step["fold"]])
    return pd.concat(rows, ignore_index=True)


def chosen_on(model: Model) -> gpd.GeoDataFrame:
    """The index rows of all validation chips: those that epochs were chosen on, and threshold and temperature."""
    steps = list(model.facts["trained_on"])
    if model.evaluated_on:
        steps.append({"chips": model.evaluated_on, "fold": model.facts.get("fold")})
    rows = []
    for step in steps:
        index = gpd.read_parquet(chips_file(step["chips"], "index.parquet"))
        rows.append(index[index.split == "validation" if step["fold"] is None else index.fold == step["fold"]])
    return pd.concat(rows, ignore_index=True)


def log_dataset(index: Any, *, source: str, digest: str) -> None:
    """Name the chips (rows of an index) as what the active run trains on."""
    rows = index.drop(columns="geometry")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on whole numbers, which are whole here, and on kinds of source
        dataset = from_pandas(rows, source=storage.absolute(source), name="chips", digest=digest)
    mlflow.log_input(dataset, context="training")


def register(name: str) -> None:
    """Make the registered model `name` unless it exists; InputError where it cannot be made."""
    try:
        mlflow.MlflowClient().create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise InputError(f"cannot register a model as {name}: {error}") from error


def metric_name(name: str) -> str:
    """The name, with an underscore for each character that MLflow takes in no name."""
    return re.sub(r"[^\w\-./ ]", "_", name)


def log_model(model: Any, facts: Mapping[str, Any], *, name: str) -> None:
    """Log an uncompiled keras.Model of built-in layers to the active run and register it as `name`.

    The version gets the alias `candidate`. `facts` become its metadata and tags.
    """
    run_id = active().info.run_id
    box = _outboxes.get(run_id)
    try:
        with tempfile.TemporaryDirectory(dir=box.folder if box else None) as folder:
            file = Path(folder) / "model.keras"
            model.save(file)
            _tell({"do": "model", "name": name, "facts": dict(facts)}, file)
    except AWAY as error:
        raise InputError(f"the model cannot be kept: {error}. Make room, then go on with resume={run_id}") from error


def load_model(uri: str) -> Model:
    """The model at a `models:/name@alias`, `models:/name/version`, `runs:/` or other address of MLflow."""
    try:
        name, version = _registered(uri)
        pinned = f"models:/{name}/{version}" if name else uri
        info = mlflow.models.get_model_info(pinned)
        if info.flavors.get("keras", {}).get("save_exported_model", True):
            raise InputError(
                f"model {uri} is no Keras file but {', '.join(sorted(info.flavors))}: that could run any code"
            )
        facts = dict(info.metadata or {})
        tags = mlflow.MlflowClient().get_model_version(name, version).tags if name else {}
        missing = {"gsd", "trained_on"} - facts.keys()
        if missing:
            raise InputError(f"model {uri} does not say its {' and '.join(sorted(missing))}: `train` did not log it")
        threshold = round(100 * float(tags.get("threshold", 0.5)))
        temperature, evaluated_on = float(tags.get(TEMPERATURE, 1)), tags.get(EVALUATED_ON, "")
        return Model(uri, pinned, info.model_uuid, facts, name, version, threshold, temperature, evaluated_on)
    except (MlflowException, OSError) as error:
        raise InputError(f"no model {uri}{_hint()}. MLflow says: {error}") from error


def keras_file(model: Model, folder: Path) -> Path:
    """A copy, in `folder`, of the file that Keras loads a model from; InputError where it cannot be had."""
    try:
        return Path(mlflow.artifacts.download_artifacts(f"{model.pinned}/data/model.keras", dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        raise InputError(f"cannot fetch model {model.uri}. MLflow says: {error}") from error


def champion(name: str) -> Model | None:
    """The present champion of a registered model, if it has one."""
    if CHAMPION not in mlflow.MlflowClient().get_registered_model(name).aliases:
        return None
    return load_model(f"models:/{name}@{CHAMPION}")


def promote(model: Model) -> None:
    """Make a registered version the champion."""
    mlflow.MlflowClient().set_registered_model_alias(model.name, CHAMPION, model.version)


def describe_version(model: Model, tags: Mapping[str, Any], description: str) -> None:
    """Set tags and the description of a registered version."""
    client = mlflow.MlflowClient()
    for tag, value in tags.items():
        client.set_model_version_tag(model.name, model.version, tag, str(value))
    client.update_model_version(model.name, model.version, description)


def code_digest() -> str:
    """32 hex digits that name the code of package and entry points as it lies here, committed or not."""
    root = Path(ocmlflow.__file__).parent.parent
    files = sorted(
        [*root.glob("ocmlflow/**/*.py"), *root.glob("entrypoints/**/*.py"), *root.glob("ocmlflow/**/*.html")]
    )
    return storage.digest(*(f"{file.relative_to(root)}\0{file.read_text()}" for file in files))


def server_version() -> str:
    """The version of MLflow that the tracking server runs."""
    with suppress(ValueError):
        found = requests.get(f"{mlflow.get_tracking_uri().rstrip('/')}/version", timeout=storage.TIMEOUT_S)
        if found.ok and re.match(r"\d+\.\d+", found.text):
            return found.text.strip()
    return "of a version that it does not tell"


def artifact_location() -> str:
    """Where the artifacts of new runs go."""
    with _probe() as run:
        return str(run.info.artifact_uri)


def probe_artifacts(content: bytes) -> tuple[str, bytes]:
    """Where artifacts go, and what comes back of that content; leaves nothing."""
    with _probe() as run, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "probe").write_bytes(content)
        mlflow.MlflowClient().log_artifact(run.info.run_id, f"{folder}/probe")
        back = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/probe", dst_path=f"{folder}/back")
        get_artifact_repository(run.info.artifact_uri).delete_artifacts("probe")
        return str(run.info.artifact_uri), Path(back).read_bytes()


@contextmanager
def _probe() -> Iterator[Run]:
    """A run that is deleted afterwards."""
    run = mlflow.start_run(run_name="doctor", log_system_metrics=False)
    try:
        yield run
    finally:
        mlflow.end_run()
        mlflow.delete_run(run.info.run_id)


def unsent_folder() -> Path:
    """Where runs keep what is not sent yet, a folder each."""
    return Path(os.environ.get("XDG_STATE_HOME", "~/.local/state")).expanduser() / "ocmlflow" / "unsent"


def send(folder: Path) -> None:
    """Send what a run left in its folder of `unsent_folder` to the tracking server, or raise UndeliveredError."""
    outbox.deliver_left(folder, partial(_deliver, folder.name))


_NEVER = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")
_outboxes: dict[str, outbox.Outbox] = {}
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
    _deliver(run_id, told, files[0].parent if files else Path())


@contextmanager
def _as_far_as_disks_allow() -> Iterator[None]:
    """On a full disk, and a server that is away at the same time, work goes on without what is told here."""
    try:
        yield
    except AWAY as error:
        log.warning("not kept: %s", error)


def _deliver(run_id: str, told: Mapping[str, Any], folder: Path) -> None:
    """Tell the server one thing of a run; the files, if it has some, are in the folder."""
    try:
        _DELIVER[told["do"]](run_id, told, folder)
    except MlflowException as error:
        if error.error_code in _NEVER:
            raise outbox.RefusedError(f"{told['do']} of run {run_id}: {error}") from error
        raise


def _deliver_metrics(run_id: str, told: Mapping[str, Any], folder: Path) -> None:
    metrics = [Metric(name, value, told["time"], told["step"]) for name, value in told["values"].items()]
    mlflow.MlflowClient().log_batch(run_id, metrics=metrics)


def _deliver_tags(run_id: str, told: Mapping[str, Any], folder: Path) -> None:
    mlflow.MlflowClient().log_batch(run_id, tags=[RunTag(name, value) for name, value in told["values"].items()])


def _deliver_file(run_id: str, told: Mapping[str, Any], folder: Path) -> None:
    for file in folder.iterdir():
        if file.name != outbox.TOLD:
            mlflow.MlflowClient().log_artifact(run_id, str(file), told["folder"])


def _deliver_image(run_id: str, told: Mapping[str, Any], folder: Path) -> None:
    with Image.open(folder / "image.png") as image:
        mlflow.MlflowClient().log_image(run_id, image, key=told["key"], step=told["step"], timestamp=told["time"])


def _deliver_drop(run_id: str, told: Mapping[str, Any], folder: Path) -> None:
    address = mlflow.get_run(run_id).info.artifact_uri
    get_artifact_repository(address).delete_artifacts(told["folder"])


def _deliver_end(run_id: str, told: Mapping[str, Any], folder: Path) -> None:
    mlflow.MlflowClient().set_terminated(run_id, told["status"], told["time"])


def _deliver_model(run_id: str, told: Mapping[str, Any], folder: Path) -> None:
    """Log, register, describe. What is done is noted in the folder: a second try goes on from there."""
    client, name, facts = mlflow.MlflowClient(), told["name"], told["facts"]
    logged, registered = folder / "logged.txt", folder / "registered.txt"
    if not logged.exists():
        logged.write_text(_log_keras(run_id, folder / "model.keras", facts))
    if not registered.exists():
        registered.write_text(str(mlflow.register_model(logged.read_text(), name).version))
    version = registered.read_text()
    for fact, value in facts.items():
        client.set_model_version_tag(name, version, fact, str(value))
    client.set_registered_model_alias(name, CANDIDATE, version)
    client.set_tag(run_id, "ocmlflow.version_made", f"{name}/{version}")
    log.info("registered %s version %s", name, version)


def _log_keras(run_id: str, file: Path, facts: Mapping[str, Any]) -> str:
    """Log the model in a file to a run; returns its address."""
    import keras

    signature = mlflow.models.ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, -1, -1, 3), "image")]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, -1, -1, 1))]),
    )
    # Named here: MLflow's own guess takes seconds, and knows no backend (mlflow/mlflow issue 16183 for the example).
    requirements = [f"keras=={keras.__version__}", f"numpy=={np.__version__}", "tensorflow>=2.20,<3"]
    info = mlflow.models.Model.log(
        None,
        mlflow.keras,
        name="model",
        run_id=run_id,
        model=keras.saving.load_model(file, compile=False, safe_mode=True),
        signature=signature,
        pip_requirements=[f"mlflow=={mlflow.__version__}", *requirements],
        metadata=dict(facts),
    )
    return str(info.model_uri)


_DELIVER: dict[str, Callable[[str, Mapping[str, Any], Path], None]] = {
    "metrics": _deliver_metrics,
    "tags": _deliver_tags,
    "file": _deliver_file,
    "image": _deliver_image,
    "drop": _deliver_drop,
    "model": _deliver_model,
    "end": _deliver_end,
}


def _now() -> int:
    """Milliseconds, as MLflow counts them."""
    return round(1000 * time.time())


def _environment() -> str:
    """The packages of this environment and their versions."""
    return "\n".join(sorted({f"{found.name}=={found.version}" for found in distributions()})) + "\n"


def _hand_over(resume: Run) -> None:
    """Make the experiment of a run the current one, and have the run that `mlflow run` made say where it goes on."""
    mlflow.set_experiment(experiment_id=resume.info.experiment_id)
    new = os.environ.pop("MLFLOW_RUN_ID", None)
    if new:
        mlflow.MlflowClient().set_tag(new, "mlflow.note.content", f"Goes on in run {resume.info.run_id}.")


def _registered(uri: str) -> tuple[str, str]:
    """Name and version of a `models:/` address; empty for what is not registered."""
    if not uri.startswith("models:/"):
        return "", ""
    name, separator, which = uri.removeprefix("models:/").rpartition("@" if "@" in uri else "/")
    if separator == "@":
        which = mlflow.MlflowClient().get_model_version_by_alias(name, which).version
    return name, str(which) if name else ""


def _end_elsewhere(run: Run | None, status: str, why: str) -> None:
    """End the run, and say why on its page, unless its own process did."""
    if run is None:
        return
    client = mlflow.MlflowClient()
    if client.get_run(run.info.run_id).info.status in ("RUNNING", "SCHEDULED"):
        if why:
            client.set_tag(run.info.run_id, "mlflow.note.content", storage.public(f"**{status.title()}**: {why}"))
        client.set_terminated(run.info.run_id, status)


def _checkout() -> dict[str, str]:
    """Tags that say which code was sent, as MLflow has them for a project that runs here."""
    root = Path(ocmlflow.__file__).parent.parent
    tags = {"mlflow.source.name": root.name, **_source()}
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        tags["mlflow.source.git.commit"] = head.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass  # no git, or no checkout
    return tags


def _hint() -> str:
    try:
        known = {m.name: sorted(m.aliases) for m in mlflow.MlflowClient().search_registered_models()}
    except (MlflowException, OSError):
        return f": {mlflow.get_tracking_uri()} does not answer"
    if not known:
        return f": no model is registered at {mlflow.get_tracking_uri()}; `mlflow run . -e train` registers one"
    listed = "; ".join(
        f"{name} with {', '.join('@' + a for a in aliases) or 'no alias'}" for name, aliases in known.items()
    )
    return f". Registered are {listed}, and their versions by number, as models:/NAME/1"


def _source() -> dict[str, str]:
    """What MLflow does not record: the code as it lies here, and whether it differs from the commit."""
    root = Path(ocmlflow.__file__).parent.parent
    tags = {"ocmlflow.code": code_digest(), "ocmlflow.python": platform.python_version()}
    try:
        status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
        tags["ocmlflow.git.dirty"] = str(bool(status.stdout.strip())).lower()
    except (OSError, subprocess.CalledProcessError):
        pass  # no git, or no checkout: an image of the code, say
    return tags
