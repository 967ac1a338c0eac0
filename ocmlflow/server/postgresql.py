"""The installed PostgreSQL: creates a database, and runs its server and client programs."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ocmlflow.errors import InputError

DEBIAN = Path("/usr/lib/postgresql")
"""Debian keeps the programs of each version in a folder of its own here, which is not on PATH."""


def create(data: Path, password: str) -> None:
    """Create an empty database in the new folder `data`, for a user mlflow with that password."""
    initdb, user_options = find_program("initdb"), _user_options()
    if data.exists() and any(data.iterdir()):
        raise InputError(f"{data} holds a database whose settings are gone: move it away, or restore a backup")
    part = data.with_name("postgresql.part")
    password_file = data.with_name("postgresql.password")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700, parents=True)
    try:
        password_file.unlink(missing_ok=True)
        password_file.touch(mode=0o600)
        password_file.write_text(password)
        if user_options:
            for path in (part, password_file):
                shutil.chown(path, user_options["user"], user_options["group"])
        words = ["-D", str(part), "-U", "mlflow", "-A", "scram-sha-256", "--encoding=UTF8", f"--pwfile={password_file}"]
        done = subprocess.run([initdb, *words], capture_output=True, text=True, cwd="/", **user_options)
        if done.returncode:
            raise InputError(
                f"PostgreSQL cannot create a database in {data}, which its user {user_options.get('user', '')} must "
                f"be able to reach: {done.stderr.strip()}"
            )
        part.rename(data)
    finally:
        password_file.unlink(missing_ok=True)
        shutil.rmtree(part, ignore_errors=True)


def server_command(data: Path, port: int) -> tuple[list[str], dict[str, Any]]:
    """The command that runs the server, and the options of subprocess to run it with."""
    return [find_program("postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", ""], _user_options()


def answers(port: int, *, environment: dict[str, str]) -> bool:
    """Whether the server takes connections."""
    command = [find_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    return subprocess.run(command, env=environment).returncode == 0


def run_client(name: str, *words: str, environment: dict[str, str]) -> None:
    """Run a client program; InputError with its message if it fails."""
    done = subprocess.run([find_program(name), *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{name} fails: {done.stderr.strip()}")


def find_program(name: str) -> str:
    """Path of a program of PostgreSQL, of the newest version installed."""
    of_debian = sorted(DEBIAN.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    program = str(of_debian[-1]) if of_debian else shutil.which(name)
    if not program:
        raise InputError(f"the program {name} is not installed: apt-get install postgresql, or give --database sqlite")
    return program


def _user_options() -> dict[str, Any]:
    """Options of subprocess that run a program as the user postgres where we are root: PostgreSQL refuses root."""
    if os.geteuid():
        return {}
    import pwd  # not on Windows

    try:
        pwd.getpwnam("postgres")
    except KeyError:
        raise InputError(
            "PostgreSQL does not run as root, and the user postgres, which its Debian package makes, is missing: run "
            "as another user, make that one with `useradd --system postgres`, or give --database sqlite"
        ) from None
    return {"user": "postgres", "group": "postgres", "extra_groups": []}
