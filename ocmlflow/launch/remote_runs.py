"""MLflow runs of steps on other machines: creates them, tags them, and ends those that nobody else ended."""

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
    """The address that another machine reaches the tracking server by: `address`, or our own if None.

    InputError where that machine could not use it, where it holds a password, and where the server does not answer.
    """
    ours = mlflow.get_tracking_uri()
    for uri in filter(None, (ours, address)):
        parts = urlparse(uri)
        if parts.password or parts.username:
            raise InputError(
                "the tracking address carries a password, which the job would show: give it as "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, here and to the job as secrets"
            )
        if parts.scheme not in ("http", "https", "databricks") and uri != "databricks":
            raise InputError(
                f"another machine cannot reach runs in {uri}: set MLFLOW_TRACKING_URI to a server's address"
            )
    try:
        if urlparse(ours).scheme.startswith("http"):  # MLflow itself retries for minutes
            server_check.ask("/health").raise_for_status()
        mlflow.MlflowClient().search_experiments(max_results=1)
    except (MlflowException, requests.RequestException) as error:
        raise InputError(f"the tracking server {ours} does not answer: {error}") from error
    return address or ours


def create_run(step: str, backend: str, experiment: str | None) -> Run:
    """A new run, in that experiment or the current one, for a step that another machine runs."""
    tags = {"mlflow.source.type": "PROJECT", "mlflow.project.entryPoint": step, "mlflow.project.backend": backend}
    return mlflow.MlflowClient().create_run(
        _experiment_id(experiment), tags={**tags, **provenance.source_tags()}, run_name=step
    )


def _experiment_id(name: str | None) -> str:
    """Id of the experiment of that name, created if needed; without a name, of the current experiment."""
    current = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if current and not name:
        return current
    client, name = mlflow.MlflowClient(), name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
    experiment = client.get_experiment_by_name(name)
    return str(experiment.experiment_id if experiment else client.create_experiment(name))


def find_project_run(folder: Path) -> str | None:
    """Id of the run that MLflow created for the project in that folder; None if there is none yet."""
    client = mlflow.MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`mlflow.source.name` = '{folder}'")
    return str(runs[0].info.run_id) if runs else None


def databricks_job_run(run_id: str) -> int:
    """Id of the Databricks job run that MLflow submitted for a run."""
    return int(mlflow.get_run(run_id).data.tags["mlflow.databricks.shellJobRunID"])


def tag_source(run_id: str, step: str) -> None:
    """Name a run after its step, and give this checkout as its source instead of the copy that was sent."""
    for tag, value in {"mlflow.runName": step, **provenance.source_tags()}.items():
        mlflow.MlflowClient().set_tag(run_id, tag, value)


@contextmanager
def ended_with_block(run_id: str) -> Iterator[None]:
    """End a run of another machine when the block ends, unless its own process has ended it.

    It is then FINISHED; FAILED after an error, and KILLED after Ctrl-C.
    """
    with ended_on_failure(lambda: run_id):
        yield
    _end(run_id, "FINISHED", "")


@contextmanager
def ended_on_failure(find: Callable[[], str | None]) -> Iterator[None]:
    """If the block fails, end the run whose id `find` gives, unless its own process has ended it."""
    try:
        yield
    except BaseException as error:
        run_id = find()
        if run_id and isinstance(error, KeyboardInterrupt):
            _end(run_id, "KILLED", "interrupted")
        elif run_id:
            _end(run_id, "FAILED", str(error))
        raise


def _end(run_id: str, status: str, reason: str) -> None:
    """End a run that has not ended, and give the reason on its page."""
    client = mlflow.MlflowClient()
    if client.get_run(run_id).info.status in ("RUNNING", "SCHEDULED"):
        if reason:
            client.set_tag(run_id, "mlflow.note.content", redaction.redact(f"**{status.title()}**: {reason}"))
        client.set_terminated(run_id, status)
