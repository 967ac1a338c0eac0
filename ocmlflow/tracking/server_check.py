"""What a tracking server and its artifact store answer."""

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
    """What the tracking server answers there, asked once, as MLflow's client asks: with its credentials, its trust."""
    server = get_default_host_creds(mlflow.get_tracking_uri())
    return http_request(server, path, "GET", max_retries=0, timeout=ANSWER_S, raise_on_status=False)


def open_database() -> None:
    """Raise one of `delivery.AWAY` if runs are in a database that does not open. MLflow itself tries for minutes."""
    address = mlflow.get_tracking_uri()
    if re.match(rf"({'|'.join(DATABASE_ENGINES)})\b", address) and not address.startswith("sqlite"):
        sqlalchemy.create_engine(address).connect().close()


def version() -> str | None:
    """The version of MLflow that the tracking server runs, if it tells."""
    with suppress(MlflowException):
        found = ask("/version")
        if found.ok and re.match(r"\d+\.\d+", found.text):
            return found.text.strip()
    return None


def artifact_location() -> str:
    """Where the artifacts of new runs go."""
    with _probe() as run:
        return str(run.info.artifact_uri)


def round_trip(content: bytes) -> tuple[str, bytes]:
    """Where artifacts go, and what comes back of that content; leaves nothing."""
    outbox_sender.configure_client()
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
