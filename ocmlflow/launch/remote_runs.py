"""Runs that other machines fill: made, named and ended from here."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import mlflow
import requests
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from ocmlflow import redaction
from ocmlflow.errors import InputError
from ocmlflow.tracking import provenance, server_check


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
            server_check.ask("/health").raise_for_status()
        mlflow.MlflowClient().search_experiments(max_results=1)
    except (MlflowException, requests.RequestException) as error:
        raise InputError(f"the tracking server {ours} does not answer: {error}") from error
    return address or ours


def new_run(step: str, backend: str, experiment: str | None) -> Run:
    """A new run in that experiment, or the current one, for a step of the checkout that another machine runs."""
    tags = {"mlflow.source.type": "PROJECT", "mlflow.project.entryPoint": step, "mlflow.project.backend": backend}
    return mlflow.MlflowClient().create_run(
        _experiment_id(experiment), tags={**tags, **provenance.checkout()}, run_name=step
    )


def _experiment_id(name: str | None) -> str:
    """Id of the experiment of that name, made if there is none; without a name, of MLflow's current one."""
    current = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if current and not name:
        return current
    client, name = mlflow.MlflowClient(), name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
    experiment = client.get_experiment_by_name(name)
    return str(experiment.experiment_id if experiment else client.create_experiment(name))


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
    for tag, value in {"mlflow.runName": step, **provenance.checkout()}.items():
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


def _end_elsewhere(run: Run | None, status: str, why: str) -> None:
    """End the run, and say why on its page, unless its own process did."""
    if run is None:
        return
    client = mlflow.MlflowClient()
    if client.get_run(run.info.run_id).info.status in ("RUNNING", "SCHEDULED"):
        if why:
            client.set_tag(run.info.run_id, "mlflow.note.content", redaction.redact(f"**{status.title()}**: {why}"))
        client.set_terminated(run.info.run_id, status)
