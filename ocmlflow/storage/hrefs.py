"""Reads, lists, moves and deletes files by href: a local path, an https or an s3 address."""

import hashlib
import os
import posixpath
import re
import secrets
import shutil
import tempfile
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

import requests

from ocmlflow.storage import https, s3
from ocmlflow.storage.s3 import ObjectNotFoundError


def is_remote(href: str) -> bool:
    """Whether `href` is an http, https or s3 address; anything else is a local path."""
    return urlparse(href).scheme in ("http", "https", "s3")


def is_https(href: str) -> bool:
    """Whether `href` is an http or https address."""
    return urlparse(href).scheme in ("http", "https")


def local_path(href: str) -> Path:
    """The path of a local href, which may start with `file://` or `~`."""
    return Path(unquote(urlparse(href).path) if href.startswith("file://") else href).expanduser()


def absolute(href: str) -> str:
    """The same href, independent of the working directory.

    A symbolic link keeps its own name, because scenes and places are named after files and folders.
    """
    return href if is_remote(href) else str(local_path(href).parent.resolve() / local_path(href).name)


def join(base: str, *names: str) -> str:
    """An href below `base`."""
    return posixpath.join(base, *names) if is_remote(base) else str(local_path(base).joinpath(*names))


def resolve(href: str, base: str = "") -> str:
    """Absolute href of what a file at `base` names, encoded as its storage needs it.

    In http(s) addresses, spaces and letters beyond ASCII are percent-encoded. In paths and s3 addresses, `%20` is taken
    for a space where only a file of that name exists, and accented letters may be composed or not.
    """
    if is_https(href) or (is_https(base) and not urlparse(href).scheme):
        encoded = re.sub("%(?![0-9A-Fa-f]{2})", "%25", href)  # a percent sign that encodes nothing
        return requests.utils.requote_uri(urljoin(base, encoded) if base else encoded)
    if href.startswith("file://"):
        return str(local_path(href))
    if urlparse(href).scheme and not _is_drive(href) and not href.startswith("s3://"):
        return href  # of a scheme that nothing here reads, as the error will say
    if not base or href.startswith("s3://"):
        place = href
    elif base.startswith("s3://"):
        bucket, _, key = base.removeprefix("s3://").partition("/")
        place = f"s3://{bucket}/{posixpath.normpath(posixpath.join(posixpath.dirname(key), href))}"
    else:
        place = os.path.normpath(local_path(base).parent / href)
    spellings = [place, unquote(place)]
    if not is_remote(place):
        spellings += [unicodedata.normalize(form, unquote(place)) for form in ("NFC", "NFD")]
    different = list(dict.fromkeys(spellings))
    return next(filter(_exists, different), place) if len(different) > 1 else place


def _is_drive(href: str) -> bool:
    return len(urlparse(href).scheme) == 1  # of a path on Windows


def _exists(href: str) -> bool:
    try:
        size(href)
    except OSError:
        return False
    return True


def read(href: str, *, limit: int | None = None) -> bytes:
    """The content of the file at `href`.

    Raises an OSError that names it where it cannot be read, is a device or a pipe, or has more than `limit` bytes.
    """
    if limit is None:
        return https.request("GET", href).content if is_https(href) else _read_start(href, None)
    return _check_limit(read_start(href, limit + 1), href, limit)


def request(method: str, href: str, *, limit: int, body: object = None, headers: dict[str, str] | None = None) -> bytes:
    """What an http(s) server answers to a request with a JSON body; errors as of `read`."""
    return _check_limit(https.read_start(method, href, limit + 1, body, headers), href, limit)


def _check_limit(content: bytes, href: str, limit: int) -> bytes:
    if len(content) > limit:
        raise OSError(f"{href} is larger than {limit / (1 << 20):.0f} MB, the limit for such files")
    return content


def read_start(href: str, count: int) -> bytes:
    """The first `count` bytes of the file at `href`, or fewer where it is smaller; otherwise as `read`."""
    return https.read_start("GET", href, count) if is_https(href) else _read_start(href, count)


def _read_start(href: str, count: int | None) -> bytes:
    if href.startswith("s3://"):
        return s3.read_start(href, count)
    path = local_path(href)
    if path.exists() and not (path.is_file() or path.is_dir()):  # reading one may never end
        raise OSError(f"{href} is a device or a pipe, not a file")
    with path.open("rb") as file:
        return file.read(-1 if count is None else count)


def sends_ranges(href: str) -> bool:
    """Whether the server of the file at `href` sends parts of it (byte ranges), as S3 does; True for a local file."""
    if not is_https(href):
        return True
    with https.request("GET", href, headers={"Range": "bytes=0-0"}, stream=True) as response:
        return response.status_code == 206


def list_files(folder: str) -> list[str]:
    """Sorted hrefs of the files directly in a local folder or at an s3 address, without subfolders."""
    if not is_remote(folder):
        return sorted(str(file) for file in local_path(folder).iterdir() if file.is_file())
    if not folder.startswith("s3://"):
        raise FileNotFoundError(f"{folder}: folders can be listed locally and in s3, not over https")
    return sorted(s3.list_objects(folder, Delimiter="/"))


def list_folders(folder: str) -> list[str]:
    """Sorted hrefs of the folders directly in a local folder or at an s3 address; none over https."""
    if folder.startswith("s3://"):
        return sorted(s3.list_folders(folder))
    if is_remote(folder):
        return []
    return sorted(str(path) for path in local_path(folder).iterdir() if path.is_dir())


def size(href: str) -> int:
    """Size in bytes of the file at `href`, without reading its content."""
    if href.startswith("s3://"):
        return int(s3.head(href)["ContentLength"])
    if is_remote(href):
        return int(_headers(href).get("Content-Length", 0))
    return local_path(href).stat().st_size


def fingerprint(href: str) -> str:
    """Text that changes when the file at `href` does: its size and time, or the server's ETag.

    The content is not read.
    """
    if href.startswith("s3://"):
        return str(s3.head(href)["ETag"])
    if is_remote(href):
        headers = _headers(href)
        return headers.get("ETag") or f"{headers.get('Content-Length')} {headers.get('Last-Modified')}"
    status = local_path(href).stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def put(source: Path, href: str) -> None:
    """Move the local file `source` to `href`, atomically: readers of `href` see the old file or the new one."""
    if href.startswith("s3://"):
        s3.upload(source, href)
        source.unlink()
        return
    target = local_path(href)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A rename is atomic within one file system. The name is random, for another process may put the same file.
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    try:
        shutil.move(source, part)
    except BaseException:
        part.unlink(missing_ok=True)  # on a full disk, half a file would take up room
        raise
    part.replace(target)


def mirror(source: str, target: str) -> int:
    """Make the folder `target` a copy of the folder `source`; returns the number of files.

    Either may be in s3. Files of `target` that `source` lacks are deleted, objects that vanish meanwhile are skipped.
    """
    copied = set()
    for name in sorted(list_recursive(source)):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "file"
            try:
                _download(join(source, name), file)
            except ObjectNotFoundError:
                continue
            put(file, join(target, name))
        copied.add(name)
    for name in list_recursive(target).keys() - copied:
        delete(join(target, name))
    return len(copied)


def list_recursive(folder: str) -> dict[str, int]:
    """Relative names and sizes in bytes of all files below a local folder or an s3 address."""
    if not folder.startswith("s3://"):
        return {
            file.relative_to(folder).as_posix(): file.stat().st_size
            for file in Path(folder).rglob("*")
            if file.is_file()
        }
    prefix = f"{folder.rstrip('/')}/"
    return {address.removeprefix(prefix): size for address, size in s3.list_objects(folder).items()}


def check_writable(folder: str) -> None:
    """Raise OSError, naming `folder`, unless files can be written there; a local folder is created."""
    if is_remote(folder) and not folder.startswith("s3://"):
        raise OSError(f"cannot write to {folder}: an output is a folder or an s3:// address")
    probe = join(folder, f".ocmlflow-probe-{secrets.token_hex(8)}")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "probe"
            source.touch()
            put(source, probe)
        delete(probe)
    except (OSError, *s3.ERRORS) as error:
        raise OSError(f"cannot write to {folder}: {error}") from error


def delete(href: str) -> None:
    """Delete the file at `href`."""
    if href.startswith("s3://"):
        s3.delete(href)
    else:
        local_path(href).unlink()


def digest(*texts: str) -> str:
    """Hash of the texts, 32 hex digits of SHA-256; MLflow takes at most 36 as a dataset's digest."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


def _download(href: str, target: Path) -> None:
    if href.startswith("s3://"):
        s3.download(href, target)
    else:
        shutil.copyfile(href, target)


def _headers(href: str) -> Mapping[str, str]:
    """What a server says of a file; Content-Length is the file's. Addresses signed for GET refuse HEAD."""
    try:
        return https.request("HEAD", href).headers
    except FileNotFoundError:
        with https.request("GET", href, headers={"Range": "bytes=0-0"}, stream=True) as response:
            length = response.headers.get("Content-Range", "").rpartition("/")[2]
            return {**response.headers, "Content-Length": length or response.headers.get("Content-Length", "0")}
