"""Reads, writes and lists objects at s3 addresses; boto3's settings are the only ones, for GDAL too."""

import functools
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import boto3
import botocore.exceptions
import botocore.session
import requests
from botocore import UNSIGNED
from botocore.config import Config
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3.exceptions import HTTPError, MaxRetryError

REUSE_S = 600
"""Seconds for which a signed address is used again; it stays valid four times as long."""
TIMEOUT_S = 60
"""Seconds to wait for a connection and for each part of an answer, as boto3 does."""
TRANSIENT_STATUSES = (429, 500, 502, 503, 504)
"""HTTP statuses worth retrying."""

ERRORS = (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError, boto3.exceptions.Boto3Error)
"""What boto3 raises where a server refuses, fails or is not there."""

CONNECTION_ERRORS = (
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.EndpointConnectionError,
    botocore.exceptions.ConnectTimeoutError,
    botocore.exceptions.ProxyConnectionError,
    botocore.exceptions.IncompleteReadError,
    requests.ConnectionError,
    requests.Timeout,
    HTTPError,
)
"""Errors of a server that does not answer, or breaks off its answer."""


class ServerUnavailableError(FileNotFoundError):
    """An S3 server does not answer or is busy; trying again later may help."""


class ObjectNotFoundError(FileNotFoundError):
    """An S3 server has no object of that name."""


def read(href: str) -> bytes:
    """All bytes of an object."""
    return read_start(href, None)


def read_start(href: str, count: int | None) -> bytes:
    """The first `count` bytes of an object, or fewer where it is smaller; all of them for None."""
    with _errors_naming(href):
        return bytes(_call("get_object", href)["Body"].read(count))


def read_range(href: str, first: int, last: int) -> bytes:
    """The bytes of an object from `first` to `last`, both included.

    Tries once. Raises ServerUnavailableError where trying again may help, FileNotFoundError where the server refuses,
    and OSError where it answers with another number of bytes. All of them name the address.

    Takes half of the CPU time of boto3's `get_object`: an address is signed once for many ranges of an object.
    """
    with _errors_naming(href):
        signer = _signing_client(client(), _bucket_and_key(href)[0])
        address = _signed_address(signer, href, int(time.time() / REUSE_S))
        request = requests.Request("GET", address, {"Range": f"bytes={first}-{last}"}).prepare()
        # Straight through the adapter: a session would look up proxies, cookies and .netrc for each range.
        response = _adapter(os.getpid()).send(
            request,
            stream=True,
            timeout=TIMEOUT_S,
            verify=_ca_bundle(*_settings()),
            proxies=get_environ_proxies(address),
        )
        content = bytes(response.raw.read())  # all at once; `response.content` would join pieces of 10 kB
    if response.status_code >= 300:
        code = re.search(rb"<Code>(\w+)</Code>", content)
        message = f"{href}: the S3 server answers {code[1].decode() if code else response.status_code}"
        is_transient = response.status_code in TRANSIENT_STATUSES
        raise ServerUnavailableError(message) if is_transient else FileNotFoundError(message)
    if len(content) != last - first + 1:
        raise OSError(f"{href}: the S3 server answers a range of {last - first + 1} bytes with {len(content)}")
    return content


def head(href: str) -> dict[str, Any]:
    """Metadata of an object, as boto3's `head_object` gives them."""
    return dict(_call("head_object", href))


def upload(source: Path, href: str) -> None:
    """Upload a local file; the object appears only when it is complete."""
    with _errors_naming(href):
        client().upload_file(str(source), *_bucket_and_key(href))


def download(href: str, target: Path) -> None:
    """Download an object to a local file."""
    with _errors_naming(href):
        client().download_file(*_bucket_and_key(href), str(target))


def delete(href: str) -> None:
    """Delete an object."""
    _call("delete_object", href)


def list_objects(folder: str, **options: str) -> dict[str, int]:
    """Addresses and sizes in bytes of the objects below `folder`; FileNotFoundError where they cannot be listed.

    `options` go to boto3's `list_objects_v2`, such as Delimiter="/" for the objects directly in the folder.
    """
    bucket = _bucket_and_key(folder)[0]
    entries = [entry for page in _pages(folder, **options) for entry in page.get("Contents", [])]
    return {f"s3://{bucket}/{entry['Key']}": int(entry["Size"]) for entry in entries}


def list_folders(folder: str) -> list[str]:
    """Addresses of the folders directly in `folder`, each with a slash at its end."""
    bucket = _bucket_and_key(folder)[0]
    entries = [entry for page in _pages(folder, Delimiter="/") for entry in page.get("CommonPrefixes", [])]
    return [f"s3://{bucket}/{entry['Prefix']}" for entry in entries]


def _pages(folder: str, **options: str) -> list[dict[str, Any]]:
    bucket, prefix = _bucket_and_key(folder)
    prefix = f"{prefix.rstrip('/')}/".lstrip("/")
    try:
        return list(client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **options))
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        raise FileNotFoundError(f"cannot list {folder}: {error}") from error


def custom_endpoint() -> str | None:
    """Address of the S3 server for programs that do not use boto3; None where it is Amazon's own."""
    address = str(client().meta.endpoint_url)
    return None if _is_amazon(address) else address


def boto_session() -> tuple[boto3.Session, bool]:
    """The boto3 session of the environment or profile, and whether requests go unsigned.

    They do where there are no credentials, and where GDAL's setting AWS_NO_SIGN_REQUEST=YES asks for it: public data
    can be read so by people whose credentials are for other buckets.
    """
    session = boto3.Session()
    unsigned = os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "1")
    return session, unsigned or session.get_credentials() is None


def client() -> Any:
    """A boto3 client; the same one as long as the settings in the environment are the same.

    Settings are boto3's own, from the environment (AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL_S3 ...) or the profile.
    The server may also be named as MLflow's users do, by MLFLOW_S3_ENDPOINT_URL.
    """
    return _client(*_settings())


def _settings() -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in os.environ.items() if name.startswith(("AWS_", "MLFLOW_S3_")))


@functools.lru_cache(maxsize=4)  # making a client takes longer than most requests
def _client(*settings: tuple[str, str]) -> Any:
    session, unsigned = boto_session()
    config = Config(signature_version=UNSIGNED) if unsigned else None
    client = session.client("s3", config=config)
    mlflow_endpoint = os.environ.get("MLFLOW_S3_ENDPOINT_URL")
    if mlflow_endpoint and _is_amazon(client.meta.endpoint_url):
        return session.client("s3", endpoint_url=mlflow_endpoint, config=config)
    return client


@functools.lru_cache(maxsize=4)
def _ca_bundle(*settings: tuple[str, str]) -> str | bool:
    """File of the certificates to trust, of AWS_CA_BUNDLE or the profile; True for those that come with requests."""
    return botocore.session.get_session().get_config_variable("ca_bundle") or True


@functools.lru_cache(maxsize=1)
def _adapter(process: int) -> HTTPAdapter:
    """Connections of this process: a forked one must not share them."""
    return HTTPAdapter(pool_maxsize=16)


@functools.lru_cache(maxsize=1024)
def _signed_address(signer: Any, href: str, period: int) -> str:
    """Presigned address of an object; a new one in each `period` of REUSE_S."""
    bucket, key = _bucket_and_key(href)
    return str(signer.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, ExpiresIn=4 * REUSE_S))


@functools.lru_cache(maxsize=16)
def _signing_client(client: Any, bucket: str) -> Any:
    """A client that presigns addresses of a bucket as `client` signs requests.

    By default boto3 presigns with signature version 2, which encrypted objects refuse, and for the global endpoint,
    which newer regions do not have. Nor does it presign for a bucket of another region than its own.
    """
    session, unsigned = boto_session()
    config = Config(signature_version=UNSIGNED if unsigned else "s3v4")
    endpoint, region = client.meta.endpoint_url, client.meta.region_name
    if not _is_amazon(endpoint):
        return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)
    regional = config.merge(Config(s3={"addressing_style": "virtual"}))
    return session.client("s3", region_name=_bucket_region(client, bucket) or region, config=regional)


def _bucket_region(client: Any, bucket: str) -> str | None:
    """Region of a bucket at Amazon, which anybody may ask for; None where there is no such bucket."""
    try:
        response = client.head_bucket(Bucket=bucket)
    except botocore.exceptions.ClientError as error:
        response = error.response
    return response["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")


def _is_amazon(address: str) -> bool:
    """Whether an endpoint is one of Amazon's public ones; those of a private network (VPC) are used as given."""
    return ".vpce." not in address and bool(re.search(r"\.amazonaws\.com(\.cn)?$", urlparse(address).hostname or ""))


def _call(operation: str, href: str) -> Any:
    bucket, key = _bucket_and_key(href)
    with _errors_naming(href):
        return getattr(client(), operation)(Bucket=bucket, Key=key)


@contextmanager
def _errors_naming(href: str) -> Iterator[None]:
    """Turn errors of boto3 and requests into FileNotFoundErrors that name the address and hide its signature."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        code = error.response["Error"]["Code"]
        message = f"{href}: the S3 server answers {code}"
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in TRANSIENT_STATUSES:
            raise ServerUnavailableError(message) from error
        raise (ObjectNotFoundError if code in ("404", "NoSuchKey") else FileNotFoundError)(message) from error
    except (*ERRORS, requests.RequestException, HTTPError) as error:
        # Waiting does not help against a missing region, broken credentials or an unknown certificate.
        is_transient = isinstance(error, CONNECTION_ERRORS) and not isinstance(error, requests.exceptions.SSLError)
        raise (ServerUnavailableError if is_transient else FileNotFoundError)(f"{href}: {_cause(error)}") from None


def _cause(error: Exception) -> str:
    """What went wrong, and with which server, without the signature of an address, which would let others read."""
    cause = str(error)
    if isinstance(error, requests.RequestException) and error.request is not None and error.request.url:
        reason = error.args[0].reason if error.args and isinstance(error.args[0], MaxRetryError) else error
        cause = f"no answer from {urlparse(error.request.url).netloc}: {reason}"
    return re.sub(r"\?[^\s\"']*", "", cause)


def _bucket_and_key(href: str) -> tuple[str, str]:
    parts = urlparse(href)
    return parts.netloc, parts.path.lstrip("/")
