"""Child runs of the active run, to fill here or in another process."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlflow
from mlflow.entities import Run

from ocmlflow.tracking import limits, run_pages, runs


@contextmanager
def child(verb: str, name: str, parameters: Mapping[str, Any]) -> Iterator[Run]:
    """A child run of the active run, with that name."""
    experiment = runs.active().info.experiment_id
    short = limits.clip(name, limits.RUN_NAME, "the name of a run")
    with mlflow.start_run(experiment_id=experiment, nested=True, run_name=short) as active_child:
        mlflow.log_params(dict(parameters))
        mlflow.set_tag(runs.VERB, verb)
        yield active_child


def create_child(verb: str, title: str) -> str:
    """Run id of a new child run of the active run, for another process to fill; it is named after verb and title."""
    parent = runs.active().info
    tags = {"mlflow.parentRunId": parent.run_id} | ({run_pages.TITLE: title} if title else {})
    short = limits.clip(f"{verb} {title}".strip(), limits.RUN_NAME, "the name of a run")
    return str(mlflow.MlflowClient().create_run(parent.experiment_id, tags=tags, run_name=short).info.run_id)


def run_variables(run_id: str) -> dict[str, str]:
    """Environment variables with which another process logs to a run of the same server."""
    return {
        "MLFLOW_RUN_ID": run_id,
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "MLFLOW_EXPERIMENT_ID": runs.active().info.experiment_id,
    }


def end_if_running(run_id: str, status: str) -> None:
    """End a run whose own process did not end it."""
    client = mlflow.MlflowClient()
    if client.get_run(run_id).info.status == "RUNNING":
        client.set_terminated(run_id, status)
