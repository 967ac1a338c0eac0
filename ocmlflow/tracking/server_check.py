"""Asks the tracking server and its artifact store whether they work."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import requests
import sqlalchemy
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from ocmlflow.tracking import outbox_sender

ANSWER_S = 10


def ask(path: str) -> requests.Response:
    """Response of the tracking server to one GET request, with the credentials and certificates of MLflow's client."""
    server = get_default_host_creds(mlflow.get_tracking_uri())
    return http_request(server, path, "GET", max_retries=0, timeout=ANSWER_S, raise_on_status=False)


def tracking_uri() -> str:
    """Address of the tracking server, or of the database that stands for one."""
    return str(mlflow.get_tracking_uri())


def client_version() -> str:
    """The version of MLflow that is installed here."""
    return str(mlflow.__version__)


def check_reachable() -> None:
    """Raise one of `outbox_sender.SERVER_ERRORS` unless the tracking server or database answers."""
    _open_database()
    mlflow.MlflowClient().search_experiments(max_results=1)


def _open_database() -> None:
    """Connect to the database that runs are in, if they are in one: MLflow itself retries for minutes."""
    address = mlflow.get_tracking_uri()
    if re.match(rf"({'|'.join(DATABASE_ENGINES)})\b", address) and not address.startswith("sqlite"):
        sqlalchemy.create_engine(address).connect().close()


def version() -> str | None:
    """The version of MLflow that the tracking server runs; None if it does not say."""
    with suppress(MlflowException):
        response = ask("/version")
        if response.ok and re.match(r"\d+\.\d+", response.text):
            return response.text.strip()
    return None


def artifact_location() -> str:
    """Address that the artifacts of a new run go to."""
    with _probe() as run:
        return str(run.info.artifact_uri)


def round_trip(content: bytes) -> tuple[str, bytes]:
    """Write an artifact and read it back: its address, and the bytes read. Nothing is left of it."""
    outbox_sender.configure_client()
    with _probe() as run, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "probe").write_bytes(content)
        mlflow.MlflowClient().log_artifact(run.info.run_id, f"{folder}/probe")
        copy = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/probe", dst_path=f"{folder}/back")
        get_artifact_repository(run.info.artifact_uri).delete_artifacts("probe")
        return str(run.info.artifact_uri), Path(copy).read_bytes()


@contextmanager
def _probe() -> Iterator[Run]:
    """A run that is deleted after the block."""
    run = mlflow.start_run(run_name="doctor", log_system_metrics=False)
    try:
        yield run
    finally:
        mlflow.end_run()
        mlflow.delete_run(run.info.run_id)
