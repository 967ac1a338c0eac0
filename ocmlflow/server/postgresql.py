"""PostgreSQL as it is installed here: an empty database, its server and its client programs."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ocmlflow.errors import InputError

DEBIAN = Path("/usr/lib/postgresql")
"""Debian keeps the programs of each version in a folder there, off PATH."""


def make(data: Path, password: str) -> None:
    """Make an empty database cluster in the new folder `data`, of the user mlflow and its password."""
    initdb, rights = program("initdb"), _rights()
    if data.exists() and any(data.iterdir()):
        raise InputError(f"{data} holds a database whose settings are gone: move it away, or restore a backup")
    part, told = data.with_name("postgresql.part"), data.with_name("postgresql.password")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700, parents=True)
    try:
        told.unlink(missing_ok=True)
        told.touch(mode=0o600)
        told.write_text(password)
        if rights:
            for path in (part, told):
                shutil.chown(path, rights["user"], rights["group"])
        words = ["-D", str(part), "-U", "mlflow", "-A", "scram-sha-256", "--encoding=UTF8", f"--pwfile={told}"]
        made = subprocess.run([initdb, *words], capture_output=True, text=True, cwd="/", **rights)
        if made.returncode:
            raise InputError(
                f"PostgreSQL makes no database in {data}, which its user {rights.get('user', '')} must be able to "
                f"reach: {made.stderr.strip()}"
            )
        part.rename(data)
    finally:
        told.unlink(missing_ok=True)
        shutil.rmtree(part, ignore_errors=True)


def command(data: Path, port: int) -> tuple[list[str], dict[str, Any]]:
    """The command of the server, and how subprocess is to run it."""
    return [program("postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", ""], _rights()


def answers(port: int, *, environment: dict[str, str]) -> bool:
    """Whether the server takes connections."""
    command = [program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    return subprocess.run(command, env=environment).returncode == 0


def call(name: str, *words: str, environment: dict[str, str]) -> None:
    """Run a client program; InputError, with what it says, if it fails."""
    done = subprocess.run([program(name), *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{name} fails: {done.stderr.strip()}")


def program(name: str) -> str:
    """Path of a program of PostgreSQL, the newest installed."""
    of_debian = sorted(DEBIAN.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = str(of_debian[-1]) if of_debian else shutil.which(name)
    if not found:
        raise InputError(f"the program {name} is not installed: apt-get install postgresql, or give --database sqlite")
    return found


def _rights() -> dict[str, Any]:
    """Options of subprocess that take root's rights from PostgreSQL, which refuses to run with them."""
    if os.geteuid():
        return {}
    import pwd  # POSIX alone has it

    try:
        pwd.getpwnam("postgres")
    except KeyError:
        raise InputError(
            "PostgreSQL does not run as root, and there is no user postgres, whom its Debian package makes: be another "
            "user, make that one by `useradd --system postgres`, or give --database sqlite"
        ) from None
    return {"user": "postgres", "group": "postgres", "extra_groups": []}
