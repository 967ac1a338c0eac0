"""What the verbs share: flags, logging, progress, and how a user's mistake ends."""

import argparse
import fcntl
import logging
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlparse

_T = TypeVar("_T")

log = logging.getLogger(__name__)

MODEL_NAME = "open-cities-buildings"


def parser(verb: str, description: str) -> argparse.ArgumentParser:
    """A parser that shows every default in its help and takes no abbreviations."""
    return argparse.ArgumentParser(
        prog=f"python -m entrypoints.{verb}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )


def number(low: float, high: float = float("inf"), *, whole: bool = False) -> Callable[[str], float]:
    """A parser's type for numbers of `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"a {'whole ' * whole}number is needed, got {text}") from None
        if not (low <= value <= high and math.isfinite(value)):
            kind = "d" if whole else "g"
            limits = f"at least {low:{kind}}" if high == float("inf") else f"{low:{kind}} to {high:{kind}}"
            raise argparse.ArgumentTypeError(f"must be {limits}, got {text}")
        return value

    return parse


def whole(low: int, high: float = float("inf")) -> Callable[[str], float]:
    """A parser's type for whole numbers of `low` to `high`."""
    return number(low, high, whole=True)


seed = whole(0, 2**32 - 1)
"""A parser's type for seeds, as far as numpy takes them."""


def switch(text: str) -> bool:
    """A parser's type for true and false."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false is needed, got {text}")
    return text.lower() == "true"


def share(text: str) -> tuple[int, int]:
    """A parser's type for one of several equal parts of the work: I/N, I from 0, as (I, N)."""
    first, slash, last = text.partition("/")
    if not (slash and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"I/N with I from 0 to N - 1 is needed, as 0/4, got {text}")
    return int(first), int(last)


def href(text: str) -> str:
    """A parser's type for a path or address that is handed on to steps, which MLflow runs in the folder of the code."""
    from ocmlflow.storage import hrefs

    return hrefs.absolute(text)


def hrefs(text: str) -> str:
    """The same for several, by commas; nothing between two stays nothing."""
    return ",".join(href(part.strip()) if part.strip() else "" for part in text.split(","))


def progress(items: Iterable[_T], total: int, what: str = "") -> Iterable[_T]:
    """The items, with a bar on a terminal and nothing elsewhere."""
    from tqdm import tqdm

    return tqdm(items, total=total, desc=what, disable=None, leave=False)


@contextmanager
def in_the_making(folder: Path, *, shared: bool = False) -> Iterator[Path]:
    """A folder for what is in the making, of this process alone or, `shared`, of several that each make a part.

    What is in it is kept if the block fails, and where it is shared.
    """
    from ocmlflow.errors import InputError

    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # To be read and written: a disk over NFS gives no lock of the first kind without the one, nor of the second without
    # the other.
    with folder.with_suffix(".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is making the same, in {folder}: wait for it, or give work=") from None
        except OSError as error:
            raise InputError(f"the disk of {folder} locks no files ({error}): give work= on another") from error
        yield folder
        if not shared:
            shutil.rmtree(folder)


def check_writable(output: str) -> None:
    """Raise InputError, naming the output, unless results can be written there."""
    from ocmlflow.errors import InputError
    from ocmlflow.storage import hrefs

    try:
        hrefs.check_writable(output)
    except OSError as error:
        raise InputError(str(error)) from error


def check_seen(folder: Path, scheduler: str | None, executor: Executor) -> None:
    """Raise InputError unless the workers of a Dask cluster, if there is one, see the folder."""
    from ocmlflow.errors import InputError

    if scheduler and not executor.submit(os.path.isdir, folder).result():
        raise InputError(f"the workers of {scheduler} do not see the folder {folder}: give work= on a shared disk")


def start(main: Callable[[Any], None], arguments: Any) -> None:
    """Run a verb; a mistake of the user's ends it with one line that says what would do, and exit status 1.

    Ctrl-C ends it with one line too, and 130, as shells have it.
    """
    shown = logging.StreamHandler()
    shown.setFormatter(_Public("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[shown])
    _take_credentials_out_of_the_address()
    # A scheduler that takes its machine back asks first: the run is ended, and what it had to tell is sent.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # greetings and hints; what goes wrong reaches Python
    if not sys.stderr.isatty():
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from ocmlflow.errors import InputError

    noisy = (
        "alembic",
        "mlflow.store",
        "mlflow.system_metrics",
        "absl",
        "tensorflow",
        "pyogrio",
        "rasterio",
        "botocore",
    )
    for name in noisy:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        main(arguments)
    except InputError as error:
        from ocmlflow import redaction

        sys.exit(f"error: {redaction.redact(str(error))}")
    except KeyboardInterrupt:
        log.warning("interrupted")
        sys.exit(128 + signal.SIGINT)
    except Exception:
        log.exception("a mistake of the program's, or a fault of what it stands on")
        sys.exit(1)


def _take_credentials_out_of_the_address() -> None:
    """Give MLflow a user and password in the variables it has for them: it prints the address of every run."""
    address = urlparse(os.environ.get("MLFLOW_TRACKING_URI", ""))
    who, separator, host = address.netloc.rpartition("@")
    if address.scheme in ("http", "https") and separator:
        user, _, password = who.partition(":")
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
        os.environ["MLFLOW_TRACKING_URI"] = address._replace(netloc=host).geturl()


class _Public(logging.Formatter):
    """Shows no secret, in a traceback either."""

    def format(self, record: logging.LogRecord) -> str:
        from ocmlflow import redaction

        return redaction.redact(super().format(record))
