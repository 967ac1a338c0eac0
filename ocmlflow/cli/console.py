"""Runs a command from a terminal: logging, signals, exit codes, one line for a user's mistake."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from urllib.parse import unquote, urlparse

from ocmlflow.errors import InputError
from ocmlflow.redaction import redact

log = logging.getLogger(__name__)

NOISY = (
    "absl",
    "alembic",
    "botocore",
    "mlflow.store",
    "mlflow.system_metrics",
    "pyogrio",
    "rasterio",
    "tensorflow",
)
"""Loggers of which only warnings are shown."""


def run(command: Callable[[], object]) -> None:
    """Run a command; a user's mistake ends it with one line that says what would do, and exit status 1.

    Ctrl-C ends it with one line and status 130, SIGTERM with 143, as shells have it. Anything else that goes wrong is
    logged with its traceback, and the status is 1.
    """
    _set_up_logging()
    move_credentials_to_variables()
    # A scheduler that takes its machine back sends SIGTERM first: the run is ended, and what it logged is sent.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # greetings and hints; errors reach Python
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # ours leads to the view that shows it
    if not sys.stderr.isatty():
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        command()
    except InputError as error:
        sys.exit(f"error: {redact(str(error))}")
    except KeyboardInterrupt:
        log.warning("interrupted")
        sys.exit(128 + signal.SIGINT)
    except Exception:
        log.exception("internal error")
        sys.exit(1)


def move_credentials_to_variables() -> None:
    """Move user and password of MLFLOW_TRACKING_URI to MLflow's own variables: MLflow prints each run's address."""
    address = urlparse(os.environ.get("MLFLOW_TRACKING_URI", ""))
    credentials, separator, host = address.netloc.rpartition("@")
    if address.scheme in ("http", "https") and separator:
        user, _, password = credentials.partition(":")
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
        os.environ["MLFLOW_TRACKING_URI"] = address._replace(netloc=host).geturl()


def _set_up_logging() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_RedactingFormatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


class _RedactingFormatter(logging.Formatter):
    """Shows no secret, not even in a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
