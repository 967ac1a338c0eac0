"""Settings of a team's server: made with its passwords and empty database, kept as JSON in its folder."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from ocmlflow.errors import InputError
from ocmlflow.server import postgresql, processes

FILE = "settings.json"
CLIENT_FILE = "client.env"
"""Environment variables of a client, for a shell to read."""


def read(folder: Path) -> dict[str, Any]:
    """The settings of the server in that folder; InputError if there is none."""
    if not (folder / FILE).exists():
        raise InputError(f"{folder} holds no server: `ocmlflow server up` makes one")
    return dict(json.loads((folder / FILE).read_text()))


def read_or_create(
    folder: Path,
    *,
    database: str,
    port: int,
    s3_port: int,
    database_port: int,
    workers: int,
    allowed_hosts: str | None,
) -> dict[str, Any]:
    """The settings of the server in that folder; if there is none, a new server is made with those given.

    A new server gets folders, passwords and an empty database. InputError where a port is taken, or where PostgreSQL
    cannot make the database.
    """
    if (folder / FILE).exists():
        return read(folder)
    password = secrets.token_urlsafe(30)
    s3 = {
        "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
        "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{s3_port}",
    }
    settings: dict[str, Any] = {
        "url": f"http://127.0.0.1:{port}",
        "s3": s3,
        "password": password,
        "ports": {"mlflow": port, "s3": s3_port, "postgresql": database_port},
        "workers": workers,
        "allowed_hosts": allowed_hosts,
        "parts": ["s3", "mlflow"],
        "store": f"sqlite:///{folder}/mlflow.db",
    }
    if database == "postgresql":
        settings["parts"] = ["s3", "postgresql", "mlflow"]
        settings["store"] = f"postgresql+psycopg2://mlflow:{password}@127.0.0.1:{database_port}/postgres"
    processes.check_ports(settings, *settings["parts"])
    if database == "postgresql":
        postgresql.create(folder / "postgresql", password)
    (folder / "s3").mkdir(parents=True, exist_ok=True)
    _write_secret(folder / "s3.json", json.dumps({"identities": [_s3_owner(s3)]}))
    # A session token of other credentials in the shell would not fit this key.
    client = {"MLFLOW_TRACKING_URI": settings["url"], **s3, "AWS_SESSION_TOKEN": ""}
    _write_secret(folder / CLIENT_FILE, "".join(f"{name}={value}\n" for name, value in client.items()))
    _write_secret(folder / FILE, json.dumps(settings))  # last: a server without it is made again
    return settings


def _s3_owner(s3: dict[str, str]) -> dict[str, Any]:
    """The user of the S3 server, in the form of SeaweedFS's configuration."""
    # Rights in these buckets alone: for a user with all rights, SeaweedFS makes missing buckets, misspelt ones too.
    rights = ("Admin", "Read", "Write", "List", "Tagging")
    return {
        "name": "team",
        "credentials": [{"accessKey": s3["AWS_ACCESS_KEY_ID"], "secretKey": s3["AWS_SECRET_ACCESS_KEY"]}],
        "actions": [f"{right}:{bucket}" for bucket in processes.BUCKETS for right in rights],
    }


def _write_secret(path: Path, text: str) -> None:
    """Write a file that its owner alone can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
