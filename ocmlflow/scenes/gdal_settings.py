"""GDAL's settings for reading a file from disk, over https or from S3."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

import rasterio
from rasterio.session import AWSSession

from ocmlflow.storage import hrefs, s3


@contextmanager
def environment(href: str, *, cache: int) -> Iterator[None]:
    """The rasterio environment in which `href` can be opened; `cache` limits GDAL's block cache in bytes.

    S3 is read with boto3's settings: credentials, endpoint and unsigned requests are those of `storage.s3`.
    """
    options: dict[str, Any] = {"GDAL_HTTP_USERAGENT": hrefs.USER_AGENT, "GDAL_CACHEMAX": cache}
    # A VRT on this disk may name tiles on S3 or over https.
    content = hrefs.read(href) if href.lower().endswith(".vrt") and not hrefs.is_remote(href) else b""
    if hrefs.is_remote(href) or b">/vsi" in content:
        # Saves the request that lists the folder, and reads the header in one request.
        options |= {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_INGESTED_BYTES_AT_OPEN": "65536"}
        options |= {"GDAL_HTTP_MAX_RETRY": "4", "GDAL_HTTP_RETRY_DELAY": "0.5"}  # seconds, doubled each time
    if not (href.startswith("s3://") or b">/vsis3/" in content):
        with rasterio.Env(**options):
            yield
        return
    session, unsigned = s3.boto_session()
    server = urlparse(s3.custom_endpoint() or "")
    if server.netloc:
        options |= {"AWS_HTTPS": "NO" if server.scheme == "http" else "YES", "AWS_VIRTUAL_HOSTING": "FALSE"}
    aws = AWSSession(session, aws_unsigned=unsigned, endpoint_url=server.netloc or None)
    with rasterio.Env(aws, **options):
        yield


def name(href: str) -> str:
    """The href as rasterio opens it."""
    return href if hrefs.is_remote(href) else str(hrefs.local_path(href))
