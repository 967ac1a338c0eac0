"""Copies the code of the checkout, and builds and pushes a Docker image of the copy."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ocmlflow.errors import InputError
from ocmlflow.storage import hrefs

FILES = (
    ".dockerignore",
    "Dockerfile",
    "MLproject",
    "conda.yaml",
    "requirements-gpu.txt",
    "requirements.txt",
    "entrypoints",
    "ocmlflow",
)
"""All that is sent to another machine: no history, data, environment or results."""


def stage(root: Path, folder: Path) -> str:
    """Copy the code from the checkout to a new or empty folder; returns 12 hex digits of its digest.

    The digest counts the code as it is, committed or not. InputError where a file is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
        elif source.is_file():
            shutil.copy(source, folder / name)
        else:
            raise InputError(f"{source} is missing: launch from a checkout of the project, or from its archive")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hrefs.digest(*(f"{path.relative_to(folder)}\0{path.read_text()}" for path in files))[:12]


def check_repository(repository: str) -> None:
    """Raise InputError unless an image name gives its registry, and no tag."""
    host, slash, _ = repository.partition("/")
    if not slash or not (re.search(r"[.:]", host) or host == "localhost"):
        raise InputError(
            f"repository-uri {repository} names no registry: Docker would push it to docker.io, for all to see. Write "
            f"the registry's host before it, as registry.your.org/{repository}"
        )
    if host.endswith("example.com"):
        raise InputError(f"repository-uri {repository} is the example that came with the file: write your registry")
    if ":" in repository.rpartition("/")[2] or "@" in repository:
        raise InputError(f"repository-uri {repository} carries a tag: leave it out, the launcher tags by content")


def check_engine() -> None:
    """Raise InputError unless a Docker engine answers."""
    _docker("version", "--format", "{{.Server.Version}}", why="no Docker engine answers")


def build_and_push(folder: Path, repository: str, tag: str, arguments: Sequence[str]) -> str:
    """Build an image of the copy, with these arguments of `docker build`, and push it; returns NAME:TAG@DIGEST."""
    name = f"{repository}:{tag}"
    # The label makes the image unique: Docker at times pushes one that has several names under another name.
    _docker(
        "build", "--label", f"ocmlflow.image={name}", "--tag", name, *arguments, str(folder), why="no image", show=True
    )
    _docker("push", name, why=f"{name} is not pushed, no `docker login` to that registry perhaps", show=True)
    digests = json.loads(_docker("image", "inspect", "--format", "{{json .RepoDigests}}", name, why="no image"))
    pushed = [digest for digest in digests if digest.startswith(f"{repository}@")]
    if not pushed:
        raise InputError(f"the engine knows no digest of {name} after the push: its registry gave {digests or 'none'}")
    return f"{name}@{pushed[0].partition('@')[2]}"


def _docker(*words: str, why: str, show: bool = False) -> str:
    """Run a docker command; its output, unless that is shown as it comes. InputError, with `why`, if it fails."""
    try:
        done = subprocess.run(
            ["docker", *words],
            stdout=None if show else subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            text=True,
        )
    except FileNotFoundError:
        raise InputError(f"{why}: the command docker is not installed") from None
    if done.returncode:
        raise InputError(
            f"{why}: docker {words[0]} ended with status {done.returncode} {(done.stderr or '').strip()}".rstrip()
        )
    return done.stdout or ""
