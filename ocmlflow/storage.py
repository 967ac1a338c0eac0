"""Hrefs: what lies at a path, an https or an s3 address, and putting files there."""

import functools
import hashlib
import os
import posixpath
import re
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import boto3
import botocore.exceptions
import requests
from botocore import UNSIGNED
from botocore.config import Config
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

USER_AGENT = "ocmlflow"  # data.source.coop, a home of the challenge's data, answers 403 to Python's own
TIMEOUT_S = 60
RETRIES = 4
PASSING = (429, 500, 502, 503, 504)
"""Answers of a server that may be another a second later."""


def is_remote(href: str) -> bool:
    """Whether `href` is an address, not a path of this machine."""
    return urlparse(href).scheme in ("http", "https", "s3")


def path(href: str) -> Path:
    """The local path of an href that is not remote; `file://` and `~` are understood."""
    return Path(unquote(urlparse(href).path) if href.startswith("file://") else href).expanduser()


def absolute(href: str) -> str:
    """The same href, independent of the working directory."""
    return href if is_remote(href) else str(path(href).resolve())


def join(base: str, *names: str) -> str:
    """An href below `base`."""
    return posixpath.join(base, *names) if is_remote(base) else str(path(base).joinpath(*names))


def read(href: str) -> bytes:
    """The bytes at `href`; FileNotFoundError or PermissionError, naming it, where there are none to be had."""
    if href.startswith("s3://"):
        return bytes(_s3_call("get_object", href)["Body"].read())
    if is_remote(href):
        return _https("GET", href).content
    return path(href).read_bytes()


def listing(folder: str) -> list[str]:
    """Hrefs of the files in a local folder or below an s3 address, sorted; those of folders in it are not listed."""
    if not is_remote(folder):
        return sorted(str(file) for file in path(folder).iterdir() if file.is_file())
    if not folder.startswith("s3://"):
        raise FileNotFoundError(f"{folder}: the files of a folder can be listed in s3 and locally, not over https")
    bucket, prefix = _bucket_and_key(folder)
    prefix = f"{prefix.rstrip('/')}/".lstrip("/")
    try:
        pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        return sorted(f"s3://{bucket}/{entry['Key']}" for page in pages for entry in page.get("Contents", []))
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        raise FileNotFoundError(f"cannot list {folder}: {error}") from error


def size(href: str) -> int:
    """Bytes of the file at `href`; reads no content."""
    if href.startswith("s3://"):
        return int(_s3_call("head_object", href)["ContentLength"])
    if is_remote(href):
        return int(_https("HEAD", href).headers.get("Content-Length", 0))
    return path(href).stat().st_size


def fingerprint(href: str) -> str:
    """Text that changes when the file at `href` does: size and time, or the server's ETag. Reads no content."""
    if href.startswith("s3://"):
        return str(_s3_call("head_object", href)["ETag"])
    if is_remote(href):
        headers = _https("HEAD", href).headers
        return headers.get("ETag") or f"{headers.get('Content-Length')} {headers.get('Last-Modified')}"
    status = path(href).stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def put(source: Path, href: str) -> None:
    """Move the local file `source` to `href`; a reader of `href` sees the old file or the new one, never half."""
    if href.startswith("s3://"):
        bucket, key = _bucket_and_key(href)
        s3_client().upload_file(str(source), bucket, key)  # an object appears only when it is whole
        source.unlink()
        return
    target = path(href)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")  # same file system as the target, so that the rename is atomic
    try:
        shutil.move(source, part)
    except OSError:
        part.unlink(missing_ok=True)  # on a full disk half a file would be in the way of everything else
        raise
    part.replace(target)


def check_writable(folder: str) -> None:
    """Raise OSError, naming `folder`, unless files can be written there; an empty folder is made."""
    if is_remote(folder) and not folder.startswith("s3://"):
        raise OSError(f"cannot write to {folder}: an output is a folder or an s3:// address")
    probe = join(folder, f".ocmlflow-probe-{secrets.token_hex(8)}")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "probe"
            source.touch()
            put(source, probe)
        delete(probe)
    except (OSError, boto3.exceptions.S3UploadFailedError, botocore.exceptions.BotoCoreError) as error:
        raise OSError(f"cannot write to {folder}: {error}") from error


def delete(href: str) -> None:
    """Remove the file at `href`."""
    if href.startswith("s3://"):
        _s3_call("delete_object", href)
    else:
        path(href).unlink()


def s3_endpoint() -> str | None:
    """Address of the S3 server where it is not Amazon's: the AWS setting, else the one MLflow users have."""
    settings = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL")
    return next((os.environ[name] for name in settings if os.environ.get(name)), None)


def s3_session() -> tuple[boto3.Session, bool]:
    """The session of the environment or profile, and whether requests go unsigned: without credentials, or by wish.

    The wish is GDAL's setting, AWS_NO_SIGN_REQUEST=YES: for public data, of whoever has credentials for other buckets.
    """
    session = boto3.Session()
    unsigned = os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "1")
    return session, unsigned or session.get_credentials() is None


def s3_client() -> Any:
    """A boto3 client of the server that `s3_endpoint` names, the same one while the settings are the same."""
    return _s3_client(tuple((k, v) for k, v in os.environ.items() if k.startswith(("AWS_", "MLFLOW_S3_"))))


@functools.lru_cache(maxsize=4)  # making one takes longer than most requests
def _s3_client(settings: tuple[tuple[str, str], ...]) -> Any:
    session, unsigned = s3_session()
    config = Config(signature_version=UNSIGNED) if unsigned else None
    return session.client("s3", endpoint_url=s3_endpoint(), config=config)


def public(text: str) -> str:
    """The text without the secrets of the addresses in it: user and password, and signatures, behind the `?`."""
    return re.sub(r"((?:https?|s3)://)(?:[^/\s@]+@)?([^\s?]*)(?:\?\S*)?", r"\1\2", text)


def digest(*texts: str) -> str:
    """32 hex digits that name the texts; MLflow takes at most 36 as a dataset's digest."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


def _https(method: str, href: str) -> requests.Response:
    try:
        response = _session(os.getpid()).request(method, href, timeout=TIMEOUT_S, allow_redirects=True)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise FileNotFoundError(f"no answer from {href}") from error
    if not response.ok:
        raise FileNotFoundError(f"{href} answers {response.status_code} {response.reason}")
    return response


@functools.lru_cache(maxsize=1)
def _session(process: int) -> requests.Session:
    """A session of this process that tries again, a little later each time, what a busy server turns away."""
    session = requests.Session()
    session.headers["User-Agent"] = USER_AGENT
    retry = Retry(RETRIES, backoff_factor=0.3, status_forcelist=PASSING, raise_on_status=False)
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _s3_call(operation: str, href: str) -> Any:
    bucket, key = _bucket_and_key(href)
    try:
        return getattr(s3_client(), operation)(Bucket=bucket, Key=key)
    except botocore.exceptions.ClientError as error:
        code = error.response["Error"]["Code"]
        raise FileNotFoundError(f"{href}: the S3 server answers {code}") from error
    except botocore.exceptions.BotoCoreError as error:  # no server, no region, broken credentials
        raise FileNotFoundError(f"{href}: {error}") from error


def _bucket_and_key(href: str) -> tuple[str, str]:
    parts = urlparse(href)
    return parts.netloc, parts.path.lstrip("/")
