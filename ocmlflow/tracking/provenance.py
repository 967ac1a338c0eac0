"""The code and the packages that a run is made with, in words and digests."""

import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path

import ocmlflow
from ocmlflow.storage import hrefs


def code_digest() -> str:
    """32 hex digits that name the code of package and entry points as it lies here, committed or not."""
    root = Path(ocmlflow.__file__).parent.parent
    files = sorted(
        [*root.glob("ocmlflow/**/*.py"), *root.glob("entrypoints/**/*.py"), *root.glob("ocmlflow/**/*.html")]
    )
    return hrefs.digest(*(f"{file.relative_to(root)}\0{file.read_text()}" for file in files))


def environment() -> str:
    """The packages of this environment and their versions."""
    return "\n".join(sorted({f"{found.name}=={found.version}" for found in distributions()})) + "\n"


def checkout() -> dict[str, str]:
    """Tags that say which code was sent, as MLflow has them for a project that runs here."""
    root = Path(ocmlflow.__file__).parent.parent
    tags = {"mlflow.source.name": root.name, **source()}
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        tags["mlflow.source.git.commit"] = head.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass  # no git, or no checkout
    return tags


def source() -> dict[str, str]:
    """What MLflow does not record: the code as it lies here, and whether it differs from the commit."""
    root = Path(ocmlflow.__file__).parent.parent
    tags = {"ocmlflow.code": code_digest(), "ocmlflow.python": platform.python_version()}
    try:
        status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
        tags["ocmlflow.git.dirty"] = str(bool(status.stdout.strip())).lower()
    except (OSError, subprocess.CalledProcessError):
        pass  # no git, or no checkout: an image of the code, say
    return tags
