"""S3 addresses, to what lies there. boto3's settings are the only ones, and hold for all who read S3 here."""

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
from botocore import UNSIGNED
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from urllib3.exceptions import HTTPError

SIGNED_S = 600
"""For so long a signed address is used again."""
TRANSIENT_STATUSES = (429, 500, 502, 503, 504)
"""Answers of a server that may be another a second later."""

ERRORS = (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError, boto3.exceptions.Boto3Error)
"""What boto3 raises where a server refuses, fails or is not there."""

AWAY = (
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.EndpointConnectionError,
    botocore.exceptions.ConnectTimeoutError,
    botocore.exceptions.ProxyConnectionError,
    botocore.exceptions.IncompleteReadError,
    HTTPError,
)
"""Those of a server that is not there, or goes away."""


class ServerUnavailableError(FileNotFoundError):
    """An S3 server does not answer, or is busy: it may do a while later."""


class ObjectNotFoundError(FileNotFoundError):
    """An S3 server has no object of that name."""


def read(href: str) -> bytes:
    """All bytes of an address."""
    with _told_of(href):
        return bytes(_call("get_object", href)["Body"].read())


def read_range(href: str, first: int, last: int) -> bytes:
    """The bytes of an s3 address from the first to the last; OSError, naming it, where others come.

    One try, in half of the time that boto3's own call takes, for it signs once for many parts of a file.
    """
    with _told_of(href):
        signer = _signer(client(), _bucket_and_key(href)[0])
        address = _signed(signer, href, int(time.time() / SIGNED_S))
        request = AWSRequest("GET", address, {"Range": f"bytes={first}-{last}"}, stream_output=True)
        answer = signer._endpoint.http_session.send(request.prepare())  # what boto3 sends with: its certificates, proxy
        found = bytes(answer.raw.read())  # at one go, where `content` takes 64 kB at a time
    if answer.status_code >= 300:
        code = re.search(rb"<Code>(\w+)</Code>", found)
        said = f"{href}: the S3 server answers {code[1].decode() if code else answer.status_code}"
        raise (ServerUnavailableError if answer.status_code in TRANSIENT_STATUSES else FileNotFoundError)(said)
    if len(found) != last - first + 1:
        raise OSError(f"{href}: the S3 server answers a range of {last - first + 1} bytes with {len(found)}")
    return found


def head(href: str) -> dict[str, Any]:
    """What is known of the object there."""
    return dict(_call("head_object", href))


def upload(source: Path, href: str) -> None:
    """Put a local file there; the object appears only when it is whole."""
    with _told_of(href):
        client().upload_file(str(source), *_bucket_and_key(href))


def download(href: str, target: Path) -> None:
    """Put what lies there into a local file."""
    with _told_of(href):
        client().download_file(*_bucket_and_key(href), str(target))


def delete(href: str) -> None:
    """Remove the object there."""
    _call("delete_object", href)


def list_objects(folder: str, **how: str) -> dict[str, int]:
    """Addresses of the objects below another one, and their bytes; FileNotFoundError where they cannot be listed."""
    bucket, prefix = _bucket_and_key(folder)
    prefix = f"{prefix.rstrip('/')}/".lstrip("/")
    try:
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **how)
        found = [entry for page in pages for entry in page.get("Contents", [])]
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        raise FileNotFoundError(f"cannot list {folder}: {error}") from error
    return {f"s3://{bucket}/{entry['Key']}": int(entry["Size"]) for entry in found}


def custom_endpoint() -> str | None:
    """Address of the S3 server where it is not Amazon's, for those who do not ask boto3."""
    address = str(client().meta.endpoint_url)
    return None if _is_amazon(address) else address


def boto_session() -> tuple[boto3.Session, bool]:
    """The session of the environment or profile, and whether requests go unsigned: without credentials, or by wish.

    The wish is GDAL's setting, AWS_NO_SIGN_REQUEST=YES: for public data, of whoever has credentials for other buckets.
    """
    session = boto3.Session()
    unsigned = os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "1")
    return session, unsigned or session.get_credentials() is None


def client() -> Any:
    """A boto3 client, the same one while the settings are the same. Its settings are the only ones of S3 here.

    They are boto3's own, of the environment (AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL_S3 ...) or of the profile; the
    address may also be that of MLflow's users, MLFLOW_S3_ENDPOINT_URL. MLflow asks boto3 itself; GDAL is told.
    """
    return _client(tuple((k, v) for k, v in os.environ.items() if k.startswith(("AWS_", "MLFLOW_S3_"))))


@functools.lru_cache(maxsize=1024)
def _signed(signer: Any, href: str, when: int) -> str:
    bucket, key = _bucket_and_key(href)
    return str(signer.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, ExpiresIn=4 * SIGNED_S))


@functools.lru_cache(maxsize=16)
def _signer(asked: Any, bucket: str) -> Any:
    """A client that signs addresses of a bucket as its requests are signed.

    By itself boto3 signs addresses in an older way, which encrypted objects do not take, and for an address of all
    regions, which newer ones do not have; nor does it sign for a bucket of another region than its own.
    """
    session, unsigned = boto_session()
    signed = Config(signature_version=UNSIGNED if unsigned else "s3v4")
    address, region = asked.meta.endpoint_url, asked.meta.region_name
    if not _is_amazon(address):
        return session.client("s3", endpoint_url=address, region_name=region, config=signed)
    regional = signed.merge(Config(s3={"addressing_style": "virtual"}))
    return session.client("s3", region_name=_region(asked, bucket) or region, config=regional)


def _region(asked: Any, bucket: str) -> str | None:
    """The region of a bucket of Amazon's, which is told to whoever asks; None where there is no such bucket."""
    try:
        answer = asked.head_bucket(Bucket=bucket)
    except botocore.exceptions.ClientError as error:
        answer = error.response
    return answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")


@functools.lru_cache(maxsize=4)  # making one takes longer than most requests
def _client(settings: tuple[tuple[str, str], ...]) -> Any:
    session, unsigned = boto_session()
    config = Config(signature_version=UNSIGNED) if unsigned else None
    made = session.client("s3", config=config)
    mlflows = os.environ.get("MLFLOW_S3_ENDPOINT_URL")
    if mlflows and _is_amazon(made.meta.endpoint_url):
        return session.client("s3", endpoint_url=mlflows, config=config)
    return made


def _is_amazon(address: str) -> bool:
    """Whether it is one of Amazon's for all; those of a private network are taken as they are given."""
    return ".vpce." not in address and bool(re.search(r"\.amazonaws\.com(\.cn)?$", urlparse(address).hostname or ""))


def _call(operation: str, href: str) -> Any:
    bucket, key = _bucket_and_key(href)
    with _told_of(href):
        return getattr(client(), operation)(Bucket=bucket, Key=key)


@contextmanager
def _told_of(href: str) -> Iterator[None]:
    """Have what S3 raises in the block name the address."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        code = error.response["Error"]["Code"]
        said = f"{href}: the S3 server answers {code}"
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in TRANSIENT_STATUSES:
            raise ServerUnavailableError(said) from error
        raise (ObjectNotFoundError if code in ("404", "NoSuchKey") else FileNotFoundError)(said) from error
    except (botocore.exceptions.BotoCoreError, boto3.exceptions.Boto3Error, HTTPError) as error:
        said = re.sub(r"\?[^\s\"']*", "", str(error))  # of the address, whose signature lets others read
        # Others will not pass by waiting: no region, broken credentials, a certificate that is not known.
        raise (ServerUnavailableError if isinstance(error, AWAY) else FileNotFoundError)(f"{href}: {said}") from None


def _bucket_and_key(href: str) -> tuple[str, str]:
    parts = urlparse(href)
    return parts.netloc, parts.path.lstrip("/")
