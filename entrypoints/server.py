"""A tracking server for a team without containers: MLflow, its database and an S3 server, on this machine alone.

`up` starts what is not running, `status` says what is, `down` stops what `up` started, by process id. Data is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from entrypoints import parser, start, whole

log = logging.getLogger(__name__)

ACTIONS = ("up", "down", "status", "backup", "restore", "clean", "upgrade")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The verb's parameters and their defaults."""
    p = parser("server", "An MLflow server with a database and an S3 server, on this machine, without containers.")
    p.add_argument("action", choices=ACTIONS, help="what to do with it")
    p.add_argument("--folder", default=".server", help="where data, settings and logs are kept")
    p.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql", help="at the first `up`")
    p.add_argument("--port", type=whole(1024, 65535), default=5000, help="of MLflow, at the first `up`")
    p.add_argument("--s3_port", type=whole(1024, 55535), default=8333, help="of the S3 server, at the first `up`")
    p.add_argument("--database_port", type=whole(1024, 65535), default=5433, help="of PostgreSQL, at the first `up`")
    p.add_argument("--workers", type=whole(1), default=2, help="processes of MLflow, at the first `up`")
    p.add_argument(
        "--allowed_hosts",
        default=None,
        help="names, with their ports and separated by commas, under which others reach MLflow; at the first `up`",
    )
    p.add_argument("--backup", default="backup", help="folder that `backup` makes and `restore` reads")
    p.add_argument("--older_than", default="30d", help="since when runs that `clean` removes are deleted")
    return p.parse_args(words)


def main(args: argparse.Namespace) -> None:
    folder = Path(args.folder).resolve()
    match args.action:
        case "up":
            up(folder, args)
        case "down":
            down(folder)
        case "status":
            status(folder)
        case "backup":
            backup(folder, Path(args.backup).resolve())
        case "restore":
            restore(folder, Path(args.backup).resolve())
        case "clean":
            clean(folder, args.older_than)
        case "upgrade":
            upgrade(folder)


def up(folder: Path, args: argparse.Namespace) -> None:
    """Start what is not running, wait until it answers, and say how to use it."""
    from ocmlflow.server import processes

    settings = _settings(folder, args)
    for name in settings["parts"]:
        processes.run(folder, settings, name)
    print(f"MLflow is at {settings['url']}; its settings for this shell: set -a; . {folder}/client.env; set +a")


def down(folder: Path) -> None:
    """Stop what `up` started; data is kept."""
    from ocmlflow.server import processes

    processes.stop(folder)


def status(folder: Path) -> None:
    """Say of each part whether it runs and answers; InputError where one does not."""
    from ocmlflow.errors import InputError
    from ocmlflow.server import processes

    settings = _read(folder)
    bad = []
    for name in settings["parts"]:
        process = processes.process(folder, name)
        answers = process and processes.answers(settings, name)
        state = "answers" if answers else "does not answer" if process else "does not run"
        print(f"{name:<11} {state}{f', process {process.pid}' if process else ''}")
        bad += [] if answers else [name]
    if bad:
        raise InputError(f"{', '.join(bad)}: see the logs in {folder}; `python -m entrypoints.server up` starts it")


def backup(folder: Path, target: Path) -> None:
    """Copy database and buckets into the folder `target`: the database first, so that no run lacks its artifacts."""
    from ocmlflow.errors import InputError
    from ocmlflow.server import processes
    from ocmlflow.storage import hrefs

    settings = _read(folder)
    if target.exists():
        raise InputError(f"{target} exists: a backup goes to a folder of its own")
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    if "postgresql" in settings["parts"]:
        _postgres(settings, "pg_dump", "--format=custom", "--no-owner", f"--file={part}/database.dump", "postgres")
    else:
        import sqlite3

        source, copy = (sqlite3.connect(place / "mlflow.db") for place in (folder, part))
        with contextlib.closing(source), contextlib.closing(copy):
            source.backup(copy)
    try:
        with processes.as_owner(settings):
            count = sum(hrefs.mirror(f"s3://{bucket}", str(part / bucket)) for bucket in processes.BUCKETS)
    except OSError as error:
        raise InputError(f"the buckets cannot be copied, is the server up? {error}") from error
    part.rename(target)
    log.info("database and %d objects are in %s", count, target)


def restore(folder: Path, source: Path) -> None:
    """Bring database and buckets to what `backup` kept; MLflow is stopped for it and started again."""
    from ocmlflow.errors import InputError
    from ocmlflow.server import processes
    from ocmlflow.storage import hrefs

    settings = _read(folder)
    dump = source / ("database.dump" if "postgresql" in settings["parts"] else "mlflow.db")
    if not dump.exists():
        raise InputError(f"{source} holds no backup of this server: {dump.name} is not there")
    _run_all_but_mlflow(folder, settings)
    if dump.suffix == ".db":
        for left in folder.glob("mlflow.db-*"):  # of a server that was killed, and of another database
            left.unlink()
        shutil.copyfile(dump, folder / "mlflow.db")
    else:
        # Emptied first: tables of a newer MLflow hang on those of the backup, which `pg_restore --clean` cannot drop.
        empty = "DROP SCHEMA public CASCADE; CREATE SCHEMA public"
        _postgres(settings, "psql", "--quiet", "--set=ON_ERROR_STOP=1", f"--command={empty}", "postgres")
        _postgres(settings, "pg_restore", "--single-transaction", "--no-owner", "--dbname=postgres", str(dump))
    with processes.as_owner(settings):
        for bucket in processes.BUCKETS:
            hrefs.mirror(str(source / bucket), f"s3://{bucket}")
    log.info("restored; `python -m entrypoints.server up` starts MLflow on it")


def clean(folder: Path, older_than: str) -> None:
    """Remove the rows and artifacts of runs that were deleted so long ago."""
    _mlflow(_read(folder), "gc", "--older-than", older_than, "--backend-store-uri")


def upgrade(folder: Path) -> None:
    """Bring the tables to what the MLflow installed here wants."""
    settings = _read(folder)
    _run_all_but_mlflow(folder, settings)
    _mlflow(settings, "db", "upgrade")


def _mlflow(settings: dict[str, Any], *words: str) -> None:
    """Run a command of MLflow's that ends with the database's address, whose password stays off the command line."""
    from ocmlflow.errors import InputError
    from ocmlflow.server import processes

    code = "import os, sys; from mlflow.cli import cli; cli([*sys.argv[1:], os.environ['STORE']])"
    known = {"STORE": settings["store"], "MLFLOW_TRACKING_URI": settings["url"], **settings["s3"]}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, env=processes.environment(known), capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"MLflow fails: {done.stderr.strip().replace(settings['password'], '***')}")
    log.info(done.stdout.strip() or "done")


def _postgres(settings: dict[str, Any], program: str, *words: str) -> None:
    """Run a client program of PostgreSQL on the database."""
    from ocmlflow.server import postgresql, processes

    where = {"PGHOST": "127.0.0.1", "PGPORT": str(settings["ports"]["postgresql"]), "PGUSER": "mlflow"}
    postgresql.call(program, *words, environment=processes.environment({**where, "PGPASSWORD": settings["password"]}))


def _run_all_but_mlflow(folder: Path, settings: dict[str, Any]) -> None:
    from ocmlflow.errors import InputError
    from ocmlflow.server import processes

    if processes.process(folder, "mlflow"):
        raise InputError("stop MLflow first: `python -m entrypoints.server down`, and `up` afterwards")
    for name in settings["parts"][:-1]:
        processes.run(folder, settings, name)


def _settings(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What the first `up` settled, secrets included; it makes folders, passwords and an empty database."""
    from ocmlflow.server import postgresql, processes

    kept = folder / "settings.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    key, secret, password = secrets.token_hex(10), secrets.token_urlsafe(30), secrets.token_urlsafe(30)
    s3 = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_DEFAULT_REGION": "us-east-1"}
    s3["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{args.s3_port}"
    settings: dict[str, Any] = {"url": f"http://127.0.0.1:{args.port}", "s3": s3, "password": password}
    settings |= {"ports": {"mlflow": args.port, "s3": args.s3_port, "postgresql": args.database_port}}
    settings |= {"workers": args.workers, "allowed_hosts": args.allowed_hosts}
    settings |= {"parts": ["s3", "mlflow"], "store": f"sqlite:///{folder}/mlflow.db"}
    if args.database == "postgresql":
        settings["parts"] = ["s3", "postgresql", "mlflow"]
        settings["store"] = f"postgresql+psycopg2://mlflow:{password}@127.0.0.1:{args.database_port}/postgres"
    processes.check_ports(settings, *settings["parts"])
    if args.database == "postgresql":
        postgresql.make(folder / "postgresql", password)
    (folder / "s3").mkdir(parents=True, exist_ok=True)
    # Rights in these buckets alone: whoever may do everything has missing ones made for him, misspelt ones too.
    rights = ("Admin", "Read", "Write", "List", "Tagging")
    actions = [f"{right}:{bucket}" for bucket in processes.BUCKETS for right in rights]
    owner = {"credentials": [{"accessKey": key, "secretKey": secret}], "name": "team", "actions": actions}
    _write_secret(folder / "s3.json", json.dumps({"identities": [owner]}))
    # Temporary credentials that a shell has of elsewhere bring a token, which does not go with this key.
    client = {"MLFLOW_TRACKING_URI": settings["url"], **s3, "AWS_SESSION_TOKEN": ""}
    _write_secret(folder / "client.env", "".join(f"{name}={value}\n" for name, value in client.items()))
    _write_secret(kept, json.dumps(settings))
    return settings


def _read(folder: Path) -> dict[str, Any]:
    from ocmlflow.errors import InputError

    if not (folder / "settings.json").exists():
        raise InputError(f"{folder} holds no server: `python -m entrypoints.server up` makes one")
    return dict(json.loads((folder / "settings.json").read_text()))


def _write_secret(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


if __name__ == "__main__":
    start(main, parse())
