"""MLflow: runs, parameters, artifacts, the registry. Nothing else here or elsewhere remembers anything."""

import logging
import os
import platform
import re
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import geopandas as gpd
import mlflow
import numpy as np
import pandas as pd
import requests
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
from mlflow.types import Schema, TensorSpec

import ocmlflow
from ocmlflow import storage
from ocmlflow.errors import InputError

log = logging.getLogger(__name__)

VERB, KEY, DIGEST = "ocmlflow.verb", "ocmlflow.key", "ocmlflow.chips.digest"
STATE = "state"
TEMPERATURE = "ocmlflow.temperature"
"""Tag of a version: a calibrated probability is sigmoid(logit(probability) / temperature)."""
EVALUATED_ON = "evaluated_on"
"""Tag of a version: run id of the chips that its threshold and temperature were chosen on."""
CANDIDATE, CHAMPION = "candidate", "champion"
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
            return mlflow.keras.load_model(self.pinned)  # when asked for: TensorFlow takes seconds and half a gigabyte
        except (MlflowException, OSError) as error:
            raise InputError(f"cannot load model {self.uri}. MLflow says: {error}") from error

    def __str__(self) -> str:
        return f"{self.name} version {self.version}" if self.name else self.uri


@contextmanager
def run(verb: str, parameters: Mapping[str, Any], *, resume: Run | None = None) -> Iterator[Run]:
    """The run that `mlflow run` made for this process, or a new one in MLflow's current experiment, or `resume`.

    Logs the parameters that MLflow has not logged itself; a failure ends the run as FAILED and says why on its page.
    """
    if resume:
        _hand_over(resume)
    with mlflow.start_run(run_id=resume.info.run_id if resume else None, log_system_metrics=True) as active:
        if re.fullmatch(r"[a-z]+-[a-z]+-\d+", active.info.run_name or ""):  # MLflow's own, which says nothing
            mlflow.set_tag("mlflow.runName", verb)
        logged = active.data.params
        mlflow.log_params(
            {k: storage.public(str(v)) for k, v in parameters.items() if k not in logged and v is not None}
        )
        mlflow.set_tags({VERB: verb, "ocmlflow.version": ocmlflow.__version__, **_source()})
        try:
            yield active
        except Exception as error:
            describe(f"**Failed**: {type(error).__name__}: {error}")
            raise


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
        _end(find(), "KILLED" if stopped else "FAILED", "interrupted" if stopped else str(error))
        raise
    _end(find(), "FINISHED", "")


def interrupted(verb: str, run_id: str) -> Run:
    """The run of that id, which did not come to its end; InputError for any other."""
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
    mlflow.log_artifact(str(path), STATE)


def drop_state() -> None:
    """Delete the state of the training in the active run."""
    get_artifact_repository(active().info.artifact_uri).delete_artifacts(STATE)


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
    mlflow.set_tag("mlflow.note.content", storage.public(text))


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
    return next(str(version.version) for version in found if version.run_id == run_id)


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


def log_model(model: Any, facts: Mapping[str, Any], *, name: str) -> str:
    """Log an uncompiled keras.Model of built-in layers and register it as `name`; returns the version.

    The version gets the alias `candidate`. `facts` become its metadata and tags.
    """
    import keras

    signature = mlflow.models.ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, -1, -1, 3), "image")]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, -1, -1, 1))]),
    )
    # Named here: MLflow's own guess takes seconds, and knows no backend (mlflow/mlflow issue 16183 for the example).
    requirements = [f"keras=={keras.__version__}", f"numpy=={np.__version__}", "tensorflow>=2.20,<3"]
    info = mlflow.keras.log_model(
        model,
        name="model",
        signature=signature,
        pip_requirements=[f"mlflow=={mlflow.__version__}", *requirements],
        metadata=dict(facts),
        registered_model_name=name,
    )
    version = str(info.registered_model_version)
    client = mlflow.MlflowClient()
    for fact, value in facts.items():
        client.set_model_version_tag(name, version, fact, str(value))
    client.set_registered_model_alias(name, CANDIDATE, version)
    return version


def load_model(uri: str) -> Model:
    """The model at a `models:/name@alias`, `models:/name/version`, `runs:/` or other address of MLflow."""
    try:
        name, version = _registered(uri)
        pinned = f"models:/{name}/{version}" if name else uri
        info = mlflow.models.get_model_info(pinned)
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


def _end(run: Run | None, status: str, why: str) -> None:
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
