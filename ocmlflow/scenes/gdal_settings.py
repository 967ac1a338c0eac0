"""GDAL's settings for reading a file from disk, over https or from S3."""

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

import rasterio
from rasterio.session import AWSSession

from ocmlflow.storage import hrefs, https, s3

_DRIVERS = {".vrt": "VRT", ".jp2": "JP2OpenJPEG", ".j2k": "JP2OpenJPEG", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""GDAL's drivers of formats other than GeoTIFF, by suffix. Drivers of more formats may read any file that the image
names; `scenes.vrt` checks what VRTs name."""


@contextmanager
def environment(href: str, *, cache: int, sidecars: bool = False) -> Iterator[None]:
    """The rasterio environment in which `href` can be opened; `cache` limits GDAL's block cache in bytes.

    A remote file is read with the files beside it, such as a mask, only with `sidecars`, since GDAL asks for a dozen of
    them. S3 is read with boto3's settings: credentials, endpoint and unsigned requests are those of `storage.s3`.
    """
    options: dict[str, Any] = {"GDAL_HTTP_USERAGENT": https.USER_AGENT, "GDAL_CACHEMAX": cache}
    # A VRT on this disk may name tiles on S3 or over https.
    content = hrefs.read(href) if href.lower().endswith(".vrt") and not hrefs.is_remote(href) else b""
    if hrefs.is_remote(href) or b">/vsi" in content:
        # Saves the request that lists the folder, and reads the header in one request.
        readdir = "TRUE" if sidecars else "EMPTY_DIR"
        options |= {"GDAL_DISABLE_READDIR_ON_OPEN": readdir, "GDAL_INGESTED_BYTES_AT_OPEN": "65536"}
        options |= {"GDAL_HTTP_MAX_RETRY": "4", "GDAL_HTTP_RETRY_DELAY": "0.5"}  # seconds, doubled each time
    if not (href.startswith("s3://") or b">/vsis3/" in content):
        if hrefs.is_remote(href):
            options["CPL_VSIL_CURL_USE_HEAD"] = "NO"  # addresses signed for GET refuse HEAD
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


def driver(href: str) -> str:
    """GDAL's driver for the image at an href, by its suffix."""
    return _DRIVERS.get(posixpath.splitext(urlparse(href).path)[1].lower(), "GTiff")


def name(href: str) -> str:
    """The href as rasterio opens it."""
    return href if hrefs.is_remote(href) else str(hrefs.local_path(href))
