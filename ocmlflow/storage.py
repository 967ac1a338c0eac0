"""Hrefs: what lies at a path, an https or an s3 address, and putting files there."""

import functools
import hashlib
import os
import posixpath
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import boto3
import botocore.exceptions
import requests
from botocore import UNSIGNED
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

USER_AGENT = "ocmlflow"  # data.source.coop, a home of the challenge's data, answers 403 to Python's own
TIMEOUT_S = 60
RETRIES = 4
SIGNED_S = 600
"""For so long a signed address is used again."""
PASSING = (429, 500, 502, 503, 504)
"""Answers of a server that may be another a second later."""

S3_ERRORS = (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError, boto3.exceptions.Boto3Error)
"""What boto3 raises where a server refuses, fails or is not there."""
SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "DATABRICKS_TOKEN",
)
"""Environment variables whose values are shown nowhere."""


class AwayError(FileNotFoundError):
    """An S3 server does not answer, or is busy: it may do a while later."""


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
        with _told_of(href):
            return bytes(_s3_call("get_object", href)["Body"].read())
    if is_remote(href):
        return _https("GET", href).content
    return path(href).read_bytes()


def read_span(href: str, first: int, last: int) -> bytes:
    """The bytes of an s3 address from the first to the last; OSError, naming it, where others come.

    One try, in half of the time that boto3's own call takes, for it signs once for many parts of a file.
    """
    client = s3_client()
    with _told_of(href):
        address = _signed(client, href, int(time.time() / SIGNED_S))
        request = AWSRequest("GET", address, {"Range": f"bytes={first}-{last}"}, stream_output=True)
        answer = client._endpoint.http_session.send(request.prepare())  # what boto3 sends with: its certificates, proxy
        found = bytes(answer.raw.read())  # at one go, where `content` takes 64 kB at a time
    if answer.status_code >= 300:
        code = re.search(rb"<Code>(\w+)</Code>", found)
        said = f"{href}: the S3 server answers {code[1].decode() if code else answer.status_code}"
        raise (AwayError if answer.status_code in PASSING else FileNotFoundError)(said)
    if len(found) != last - first + 1:
        raise OSError(f"{href}: the S3 server answers a range of {last - first + 1} bytes with {len(found)}")
    return found


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


def mirror(source: str, target: str) -> int:
    """Make the files below `target` those below `source`, folders or s3 addresses; returns how many there are."""
    names = tree(source)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "file"
            if source.startswith("s3://"):
                s3_client().download_file(*_bucket_and_key(join(source, name)), str(file))
            else:
                shutil.copyfile(join(source, name), file)
            put(file, join(target, name))
    for name in tree(target).keys() - names:
        delete(join(target, name))
    return len(names)


def tree(folder: str) -> dict[str, int]:
    """Names, relative to it, of all files below a folder or an s3 address, and their bytes."""
    if not folder.startswith("s3://"):
        return {
            str(file.relative_to(folder)): file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()
        }
    bucket, prefix = _bucket_and_key(folder)
    prefix = f"{prefix.rstrip('/')}/".lstrip("/")
    try:
        pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = [entry for page in pages for entry in page.get("Contents", [])]
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        raise FileNotFoundError(f"cannot list {folder}: {error}") from error
    return {entry["Key"].removeprefix(prefix): int(entry["Size"]) for entry in found}


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
    """Address of the S3 server where it is not Amazon's, for those who do not ask boto3."""
    address = str(s3_client().meta.endpoint_url)
    return None if _is_amazon(address) else address


def s3_session() -> tuple[boto3.Session, bool]:
    """The session of the environment or profile, and whether requests go unsigned: without credentials, or by wish.

    The wish is GDAL's setting, AWS_NO_SIGN_REQUEST=YES: for public data, of whoever has credentials for other buckets.
    """
    session = boto3.Session()
    unsigned = os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "1")
    return session, unsigned or session.get_credentials() is None


def s3_client() -> Any:
    """A boto3 client, the same one while the settings are the same. Its settings are the only ones of S3 here.

    They are boto3's own, of the environment (AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL_S3 ...) or of the profile; the
    address may also be that of MLflow's users, MLFLOW_S3_ENDPOINT_URL. MLflow asks boto3 itself; GDAL is told.
    """
    return _s3_client(tuple((k, v) for k, v in os.environ.items() if k.startswith(("AWS_", "MLFLOW_S3_"))))


@functools.lru_cache(maxsize=1024)
def _signed(client: Any, href: str, when: int) -> str:
    bucket, key = _bucket_and_key(href)
    return str(client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, ExpiresIn=4 * SIGNED_S))


@functools.lru_cache(maxsize=4)  # making one takes longer than most requests
def _s3_client(settings: tuple[tuple[str, str], ...]) -> Any:
    session, unsigned = s3_session()
    config = Config(signature_version=UNSIGNED) if unsigned else None
    client = session.client("s3", config=config)
    mlflows = os.environ.get("MLFLOW_S3_ENDPOINT_URL")
    if mlflows and _is_amazon(client.meta.endpoint_url):
        return session.client("s3", endpoint_url=mlflows, config=config)
    return client


def _is_amazon(address: str) -> bool:
    return bool(re.search(r"\.amazonaws\.com(\.cn)?$", urlparse(address).hostname or ""))


def public(text: str) -> str:
    """The text without secrets: user, password and signature (behind the `?`) of addresses, and those of SECRETS."""
    for value in (os.environ.get(name) for name in SECRETS):
        if value and len(value) >= 8:  # shorter ones are words
            text = text.replace(value, "***")
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
    with _told_of(href):
        return getattr(s3_client(), operation)(Bucket=bucket, Key=key)


@contextmanager
def _told_of(href: str) -> Iterator[None]:
    """Have what S3 raises in the block name the address."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        said = f"{href}: the S3 server answers {error.response['Error']['Code']}"
        passing = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in PASSING
        raise (AwayError if passing else FileNotFoundError)(said) from error
    except (botocore.exceptions.HTTPClientError, botocore.exceptions.IncompleteReadError, HTTPError) as error:
        raise AwayError(f"{href}: {error}") from error
    except botocore.exceptions.BotoCoreError as error:  # no region, broken credentials
        raise FileNotFoundError(f"{href}: {error}") from error


def _bucket_and_key(href: str) -> tuple[str, str]:
    parts = urlparse(href)
    return parts.netloc, parts.path.lstrip("/")
