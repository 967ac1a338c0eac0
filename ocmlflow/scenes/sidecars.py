"""The files beside an image that say how it is read: masks, overviews, metadata and places in files of their own."""

import posixpath
from urllib.parse import urlparse

from ocmlflow.storage import hrefs
from ocmlflow.storage.s3 import ServerUnavailableError

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LARGEST_XML = 1 << 20
"""Bytes of the largest metadata file that is read of a remote image."""
_APPENDED = (".msk", ".ovr", ".aux.xml", ".msk.ovr")
"""Suffixes after the image's whole name."""
_REPLACING = (".tfw", ".wld", ".tifw", ".jgw", ".pgw", ".j2w", ".tab", ".prj", ".RPB", "_RPC.TXT", "_rpc.txt", ".aux")
"""Suffixes in place of the image's own."""


def find(href: str) -> list[str]:
    """Hrefs of the files beside an image that GDAL would read with it; of a remote one, only those that can be told.

    An address with a query names one file, and has none beside it.
    """
    if not hrefs.is_remote(href):
        return [name for name in _names(href, _REPLACING) if hrefs.local_path(name).is_file()]
    if urlparse(href).query:
        return []
    return [name for name in _names(href, _REPLACING[:2]) if _is_sidecar(name)]


def are_beside(href: str) -> bool:
    """Whether there are any beside a remote image; GDAL looks for those of a local one by itself."""
    return hrefs.is_remote(href) and bool(find(href))


def fingerprint(href: str) -> str:
    """Text that changes when the image or a file beside it does; OSError where the image cannot be read."""
    beside = [f"{posixpath.basename(name)} {hrefs.fingerprint(name)}" for name in find(href)]
    return " ".join([hrefs.fingerprint(href), *beside])


def _names(href: str, replacing: tuple[str, ...]) -> list[str]:
    stem, _ = posixpath.splitext(href)
    return [href + suffix for suffix in _APPENDED] + [stem + suffix for suffix in replacing]


def _is_sidecar(href: str) -> bool:
    """Whether a remote file is there and is what its name says: some servers answer any name with a page."""
    try:
        start = hrefs.read_start(href, 64)
    except ServerUnavailableError:
        raise
    except FileNotFoundError:
        return False
    if href.endswith((".msk", ".ovr")):
        return start.startswith(_TIFF_STARTS)
    if href.endswith(".aux.xml"):
        # It may also name files of overviews and masks, local ones too.
        content = hrefs.read_start(href, _LARGEST_XML)
        return b"<PAMDataset" in start and b"_FILE" not in content
    return start[:1] in b"0123456789-+. " and b"<" not in start
