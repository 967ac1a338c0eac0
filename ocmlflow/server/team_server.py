"""A tracking server for a team without containers: MLflow, its database and an S3 server, on this machine alone.

The server lives in one folder, with its data, settings and logs.
"""

import contextlib
import logging
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocmlflow.errors import InputError
from ocmlflow.server import postgresql, processes, settings
from ocmlflow.storage import hrefs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartStatus:
    """State of one part of the server."""

    name: str
    """s3, postgresql or mlflow."""
    process_id: int | None
    """Of the process that `up` started; None if it no longer runs."""
    answers: bool
    """Whether it answers requests."""


def up(
    folder: Path,
    *,
    database: str,
    port: int,
    s3_port: int,
    database_port: int,
    workers: int,
    allowed_hosts: str | None,
) -> str:
    """Start every part that does not run, and wait until it answers; the address of MLflow.

    The options count where the folder holds no server yet; later calls use the settings kept there.
    """
    known = settings.read_or_create(
        folder,
        database=database,
        port=port,
        s3_port=s3_port,
        database_port=database_port,
        workers=workers,
        allowed_hosts=allowed_hosts,
    )
    for name in known["parts"]:
        processes.start(folder, known, name)
    return str(known["url"])


def down(folder: Path) -> None:
    """Stop the processes that `up` started, by their ids; data is kept."""
    processes.stop(folder)


def status(folder: Path) -> list[PartStatus]:
    """State of every part of the server."""
    known = settings.read(folder)
    parts = []
    for name in known["parts"]:
        process = processes.find(folder, name)
        answers = process is not None and processes.answers(known, name)
        parts.append(PartStatus(name, process.pid if process else None, answers))
    return parts


def backup(folder: Path, target: Path) -> None:
    """Copy database and buckets into the new folder `target`.

    The database comes first, so that each run in it has its artifacts.
    """
    known = settings.read(folder)
    if target.exists():
        raise InputError(f"{target} exists: give a new folder for the backup")
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    if "postgresql" in known["parts"]:
        _run_postgresql(known, "pg_dump", "--format=custom", "--no-owner", f"--file={part}/database.dump", "postgres")
    else:
        _copy_sqlite(folder / "mlflow.db", part / "mlflow.db")
    try:
        with processes.as_owner(known):
            count = sum(hrefs.mirror(f"s3://{bucket}", str(part / bucket)) for bucket in processes.BUCKETS)
    except OSError as error:
        raise InputError(f"the buckets cannot be copied, is the server up? {error}") from error
    part.rename(target)
    log.info("database and %d objects are in %s", count, target)


def restore(folder: Path, source: Path) -> None:
    """Replace database and buckets by those of a backup; MLflow must be stopped."""
    known = settings.read(folder)
    dump = source / ("database.dump" if "postgresql" in known["parts"] else "mlflow.db")
    if not dump.exists():
        raise InputError(f"{source} holds no backup of this server: {dump.name} is not there")
    _start_all_but_mlflow(folder, known)
    if dump.suffix == ".db":
        for journal in folder.glob("mlflow.db-*"):  # left by a server that was killed; belongs to the old database
            journal.unlink()
        shutil.copyfile(dump, folder / "mlflow.db")
    else:
        # Emptied first: `pg_restore --clean` cannot drop tables of a newer MLflow that refer to those of the backup.
        empty = "DROP SCHEMA public CASCADE; CREATE SCHEMA public"
        _run_postgresql(known, "psql", "--quiet", "--set=ON_ERROR_STOP=1", f"--command={empty}", "postgres")
        _run_postgresql(known, "pg_restore", "--single-transaction", "--no-owner", "--dbname=postgres", str(dump))
    with processes.as_owner(known):
        for bucket in processes.BUCKETS:
            hrefs.mirror(str(source / bucket), f"s3://{bucket}")
    log.info("restored; `ocmlflow server up` starts MLflow on it")


def clean(folder: Path, *, older_than: str) -> None:
    """Remove rows and artifacts of runs that were deleted at least that long ago, such as 30d."""
    _run_mlflow(settings.read(folder), "gc", "--older-than", older_than, "--backend-store-uri")


def upgrade(folder: Path) -> None:
    """Migrate the database to the installed version of MLflow; MLflow must be stopped."""
    known = settings.read(folder)
    _start_all_but_mlflow(folder, known)
    _run_mlflow(known, "db", "upgrade")


def _start_all_but_mlflow(folder: Path, known: dict[str, Any]) -> None:
    if processes.find(folder, "mlflow"):
        raise InputError("stop MLflow first: `ocmlflow server down`, and `up` afterwards")
    for name in known["parts"][:-1]:
        processes.start(folder, known, name)


def _copy_sqlite(source: Path, target: Path) -> None:
    """Copy a database that MLflow may be writing to."""
    with contextlib.closing(sqlite3.connect(source)) as database, contextlib.closing(sqlite3.connect(target)) as copy:
        database.backup(copy)


def _run_mlflow(known: dict[str, Any], *words: str) -> None:
    """Run a command of MLflow whose last argument is the address of the database."""
    # That address holds the password: it comes by a variable, as everybody sees a command line.
    code = "import os, sys; from mlflow.cli import cli; cli([*sys.argv[1:], os.environ['STORE']])"
    variables = {"STORE": known["store"], "MLFLOW_TRACKING_URI": known["url"], **known["s3"]}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, env=processes.environment(variables), capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"MLflow fails: {done.stderr.strip().replace(known['password'], '***')}")
    log.info(done.stdout.strip() or "done")


def _run_postgresql(known: dict[str, Any], program: str, *words: str) -> None:
    """Run a client program of PostgreSQL on the database."""
    connection = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(known["ports"]["postgresql"]),
        "PGUSER": "mlflow",
        "PGPASSWORD": known["password"],
    }
    postgresql.run_client(program, *words, environment=processes.environment(connection))
