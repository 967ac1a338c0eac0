"""Sets of chips, as runs keep them: of which run, where they lie, and which of them a model has seen."""

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import geopandas as gpd
import mlflow
import pandas as pd
from mlflow.data.pandas_dataset import from_pandas
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

from ocmlflow import storage, tracking
from ocmlflow.errors import InputError
from ocmlflow.registry import Model

DIGEST = "ocmlflow.chips.digest"
"""Tag of a run: the digest of the chips that it made or used."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ocmlflow"


def run_of(chips: str | None) -> str:
    """Run id of the chips named by a run id or a `runs:/` address, or of the newest finished `prepare` run."""
    if chips is None:
        found = tracking.newest("prepare")
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
    if found.data.tags.get(tracking.VERB) != "prepare" or found.info.status != "FINISHED":
        verb = found.data.tags.get(tracking.VERB, "foreign")
        raise InputError(
            f"chips={chips}: a finished `prepare` run is needed, that one is a {found.info.status} `{verb}` run"
        )
    return run_id


def digest(run_id: str) -> str:
    """The digest of the chips of a `prepare` run."""
    return str(mlflow.get_run(run_id).data.tags[DIGEST])


def folder(run_id: str) -> Path:
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


def file(run_id: str, name: str) -> Path:
    """A local copy of one file of the chips of a `prepare` run; InputError where it cannot be had."""
    try:
        return Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/chips/{name}"))
    except (MlflowException, OSError) as error:
        raise InputError(f"cannot read {name} of the chips of run {run_id}: {error}") from error


def trained_on(model: Model) -> gpd.GeoDataFrame:
    """The index rows of all chips that a model, and the models it started from, were trained on."""
    rows = []
    for step in model.facts["trained_on"]:
        index = gpd.read_parquet(file(step["chips"], "index.parquet"))
        rows.append(index[index.split == "train" if step["fold"] is None else index.fold != step["fold"]])
    return pd.concat(rows, ignore_index=True)


def chosen_on(model: Model) -> gpd.GeoDataFrame:
    """The index rows of all validation chips: those that epochs were chosen on, and threshold and temperature."""
    steps = list(model.facts["trained_on"])
    if model.evaluated_on:
        steps.append({"chips": model.evaluated_on, "fold": model.facts.get("fold")})
    rows = []
    for step in steps:
        index = gpd.read_parquet(file(step["chips"], "index.parquet"))
        rows.append(index[index.split == "validation" if step["fold"] is None else index.fold == step["fold"]])
    return pd.concat(rows, ignore_index=True)


def log_dataset(index: Any, *, source: str, digest: str) -> None:
    """Name the chips (rows of an index) as what the active run trains on."""
    rows = index.drop(columns="geometry")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on whole numbers, which are whole here, and on kinds of source
        dataset = from_pandas(rows, source=storage.absolute(source), name="chips", digest=digest)
    mlflow.log_input(dataset, context="training")
