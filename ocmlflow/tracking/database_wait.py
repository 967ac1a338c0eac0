"""Waits for a SQLite database that another process creates or holds, where MLflow gives up at once."""

import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import mlflow
import portalocker

from ocmlflow.storage import hrefs
from ocmlflow.tracking.outbox_sender import SERVER_ERRORS

log = logging.getLogger(__name__)

WAIT_S = 120
"""Seconds after which no further attempt is made."""
PAUSE_S = 1
"""Seconds between two attempts."""
_BUSY = ("already exists", "database is locked", "duplicate column name", "no such table")
"""What SQLite says of a database that another process holds, or makes the tables of."""
_T = TypeVar("_T")


def when_free(action: Callable[[], _T]) -> _T:
    """Result of an action, tried again while another process has the database; its last error after WAIT_S."""
    deadline = time.monotonic() + WAIT_S
    waited = False
    while True:
        try:
            return action()
        except SERVER_ERRORS as error:
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
        if not waited:
            log.warning("another process has the database %s: waiting up to %d s", mlflow.get_tracking_uri(), WAIT_S)
        waited = True
        time.sleep(PAUSE_S)


def open_stores() -> None:
    """Let MLflow make the tables of runs and of registered models, if the database is new.

    One process of a user does so at a time: two at once would add the same columns.
    """
    uri = mlflow.get_tracking_uri()
    if not uri.startswith("sqlite"):
        mlflow.search_experiments(max_results=1)
        return
    with Path(tempfile.gettempdir(), f"ocmlflow-{os.getuid()}-{hrefs.digest(uri)}.lock").open("w") as lock:
        portalocker.lock(lock, portalocker.LOCK_EX)  # until it is closed
        when_free(lambda: mlflow.MlflowClient().search_experiments(max_results=1))  # the client makes them already
        when_free(lambda: mlflow.MlflowClient().search_registered_models(max_results=1))


def _is_busy(error: Exception) -> bool:
    return mlflow.get_tracking_uri().startswith("sqlite") and any(text in str(error) for text in _BUSY)
