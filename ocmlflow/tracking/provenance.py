"""Records which code and packages a run uses."""

import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path

import ocmlflow
from ocmlflow.storage import hrefs


def code_digest() -> str:
    """Digest of the package's code and templates, committed or not: 32 hex digits."""
    package = Path(ocmlflow.__file__).parent
    files = sorted([*package.glob("**/*.py"), *package.glob("**/*.html")])
    return hrefs.digest(*(f"{file.relative_to(package.parent)}\0{file.read_text()}" for file in files))


def installed_packages() -> str:
    """Installed packages and their versions, one a line."""
    return "\n".join(sorted({f"{package.name}=={package.version}" for package in distributions()})) + "\n"


def source_tags() -> dict[str, str]:
    """Tags that name checkout, commit and code, as MLflow sets them itself for a project that runs here."""
    root = Path(ocmlflow.__file__).parent.parent
    tags = {"mlflow.source.name": root.name, **code_tags()}
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        tags["mlflow.source.git.commit"] = head.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass  # no git, or no checkout
    return tags


def code_tags() -> dict[str, str]:
    """Tags that MLflow does not set itself: digest of the code, version of Python, whether the code is committed."""
    root = Path(ocmlflow.__file__).parent.parent
    tags = {"ocmlflow.code": code_digest(), "ocmlflow.python": platform.python_version()}
    if not (root / "MLproject").exists():
        return tags  # an installed package, perhaps within somebody's checkout of something else
    try:
        status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
        tags["ocmlflow.git.dirty"] = str(bool(status.stdout.strip())).lower()
    except (OSError, subprocess.CalledProcessError):
        pass  # no git, or no checkout, as in an image
    return tags
