"""What a tracking server and its artifact store answer."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import requests
from mlflow.entities import Run
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from ocmlflow import delivery, storage


def version() -> str:
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


def round_trip(content: bytes) -> tuple[str, bytes]:
    """Where artifacts go, and what comes back of that content; leaves nothing."""
    delivery.through_the_server()
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
