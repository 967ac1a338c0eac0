"""Read-through disk cache for remote files: ranges of bytes are fetched when first read, and kept.

The cache is one folder of bounded size. All runs, threads and processes of a user share it.
"""

import errno
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeAlias

import portalocker

from ocmlflow import redaction
from ocmlflow.errors import InputError
from ocmlflow.storage import hrefs, s3
from ocmlflow.storage.s3 import ServerUnavailableError

log = logging.getLogger(__name__)

LIMIT_GB = 20.0
"""Default size of the cache; half of the free disk space where that is less."""
WHOLE_FILE_BYTES = 1_000_000
"""Files of at most this size are fetched whole: it takes as long as a part, and one holds the labels of 64 chips."""
SLACK = 0.1
"""Share of the cache that is freed at a time."""
PATIENCE_S = 300
"""Seconds for which an unavailable S3 server is asked again: a lost training costs more."""
SIZE_FILE, PARTIAL_FOLDER = "held", "parts"
"""In the cache folder: the file with the number of bytes in the cache, and the folder of files being written."""
SIZE_DIGITS = 20
"""Digits of that number. With a fixed width it is overwritten in place; truncating first is slow on ext4."""
ABANDONED_S = 3600
"""Age in seconds at which a file being written was left behind by a process that was killed."""

Fetch: TypeAlias = Callable[[str, int, int | None], bytes]
"""Reads part of a file: takes its name, the first byte (negative: from the end) and the count (None: all the rest)."""


class RangeCache:
    """A folder of at most `limit` bytes of files, besides those being written; the least recently used go first."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        # By name: a thread waits for a file that another thread is already fetching.
        self._locks = [threading.Lock() for _ in range(1024)]
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, name: str, size: int, fetch: Callable[[Path], object], first: int, count: int) -> bytes:
        """`count` bytes from byte `first` on of the file `name`, which has `size` bytes.

        Where the file is not in the cache, `fetch` is called with a path to write it to.
        """
        with self._open(name, size, fetch) as file:
            file.seek(first)
            return file.read(count)

    def _open(self, name: str, size: int, fetch: Callable[[Path], object]) -> BinaryIO:
        path = self.folder / name
        with self._locks[hash(name) % len(self._locks)]:
            try:
                file = path.open("rb")
            except FileNotFoundError:
                return self._add(name, size, fetch)
            status = os.fstat(file.fileno())
            if status.st_size != size:  # the machine went down while it was written
                file.close()
                return self._add(name, size, fetch)
            if time.time() - status.st_mtime > 1:
                _mark_as_used(path)
            return file

    def _add(self, name: str, size: int, fetch: Callable[[Path], object]) -> BinaryIO:
        """Fetch a file into the cache, and open it; one that is too large for the cache is opened and not kept."""
        part = self.folder / PARTIAL_FOLDER / uuid.uuid4().hex
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._write(part, fetch)
            written = part.stat().st_size
            if written != size:
                raise OSError(f"{name} has {written} bytes where {size} were expected")
            file = part.open("rb")
            if self._make_room(size):
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                part.replace(self.folder / name)
            return file
        finally:
            part.unlink(missing_ok=True)

    def _write(self, part: Path, fetch: Callable[[Path], object]) -> None:
        """Fetch a file; on a full disk, once more after the cache was halved."""
        try:
            fetch(part)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._halve()
            fetch(part)

    def _make_room(self, size: int) -> bool:
        """Reserve room for a file, and delete others for it if necessary; False where it can never fit."""
        if size > self.limit * (1 - SLACK):
            return False
        with self._locked_size() as file:
            text = file.read(SIZE_DIGITS)
            used = int(text) if text.isdigit() else self._evict(self.limit)
            if used + size > self.limit:
                used = self._evict(round(self.limit * (1 - SLACK)) - size)
            _write_size(file, used + size)
        return True

    def _halve(self) -> None:
        """Free half of the cache, and use no more than that half in this process from now on."""
        with self._locked_size() as file:
            self.limit = self._evict(self.limit) // 2
            log.warning("the disk is full: the cache %s shrinks to %.1f GB", self.folder, self.limit / 1e9)
            _write_size(file, self._evict(self.limit))

    @contextmanager
    def _locked_size(self) -> Iterator[BinaryIO]:
        """The open size file, while no other thread or process has it."""
        descriptor = os.open(self.folder / SIZE_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        with open(descriptor, "r+b", buffering=0) as file:
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE)
            yield file  # closing it unlocks it

    def _evict(self, limit: int) -> int:
        """Delete the least recently used files until at most `limit` bytes are left; returns the bytes left."""
        files = list(self._files())
        used = sum(size for _, size, _ in files)
        partial_folder = self.folder / PARTIAL_FOLDER
        for last_use, size, path in sorted(files):
            if used <= limit:
                break
            is_being_written = path.parent == partial_folder and time.time() - last_use < ABANDONED_S
            if path != self.folder / SIZE_FILE and not is_being_written:
                path.unlink(missing_ok=True)
                used -= size
        return used

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Time of the last use, size and path of every file in the cache."""
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = Path(folder, name)
                try:
                    status = path.stat()
                except FileNotFoundError:  # finished or deleted meanwhile
                    continue
                yield status.st_mtime, status.st_size, path


def size_limit(folder: Path) -> int:
    """Bytes that the cache in `folder` may take: OCMLFLOW_CACHE_GB, else LIMIT_GB or half of the free disk space."""
    setting = os.environ.get("OCMLFLOW_CACHE_GB")
    if setting is None:
        folder.mkdir(parents=True, exist_ok=True)
        size_file = folder / SIZE_FILE
        text = size_file.read_text() if size_file.exists() else ""
        free = shutil.disk_usage(folder).free + (int(text) if text.isdecimal() else 0)
        return round(min(LIMIT_GB * 1e9, free / 2))
    try:
        gigabytes = float(setting)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < float("inf"):
        raise InputError(f"OCMLFLOW_CACHE_GB={setting}: a number of gigabytes is needed, such as 20 or 0.5")
    return round(gigabytes * 1e9)


def open_ranges(address: str, sizes: Mapping[str, int], cache: RangeCache, key: str) -> Fetch:
    """A function that reads ranges of the files below an s3 address through the cache; fetches only what it reads.

    `sizes` gives the bytes of each file by name, `key` stands for the address in the cache.
    """

    def read(name: str, first: int, count: int | None) -> bytes:
        size = _size(address, sizes, name)
        start, stop = _span(size, first, count)
        href = hrefs.join(address, name)
        if size <= WHOLE_FILE_BYTES:
            return cache.read(f"{key}/{name}", size, partial(_download, href, 0, size), start, stop - start)
        entry = f"{key}/{name}/{start}-{stop}"
        return cache.read(entry, stop - start, partial(_download, href, start, stop), 0, stop - start)

    return read


def open_whole_files(
    address: str, sizes: Mapping[str, int], cache: RangeCache, key: str, download: Callable[[str, Path], None]
) -> Fetch:
    """Like `open_ranges`, for servers that send whole files only: `download` fetches a file by name to a path.

    Raises InputError where the files do not fit the cache together.
    """
    total = sum(sizes.values())
    if total > cache.limit * (1 - SLACK):
        raise InputError(
            f"{address} has {total / 1e9:.1f} GB, the cache in {cache.folder} {cache.limit / 1e9:.1f} GB: every chip "
            "would download its file again. Set OCMLFLOW_CACHE_GB higher, or keep artifacts in s3:// directly, of "
            "which parts can be read"
        )

    def read(name: str, first: int, count: int | None) -> bytes:
        size = _size(address, sizes, name)
        start, stop = _span(size, first, count)
        return cache.read(f"{key}/{name}", size, partial(download, name), start, stop - start)

    return read


def _mark_as_used(path: Path) -> None:
    try:
        os.utime(path)
    except FileNotFoundError:  # evicted meanwhile; whoever has it open can still read it
        return


def _write_size(file: BinaryIO, size: int) -> None:
    file.seek(0)
    file.write(b"%0*d" % (SIZE_DIGITS, size))


def _size(address: str, sizes: Mapping[str, int], name: str) -> int:
    if name not in sizes:
        raise FileNotFoundError(f"{hrefs.join(address, name)} does not exist")
    return sizes[name]


def _span(size: int, first: int, count: int | None) -> tuple[int, int]:
    """First byte and the one after the last, of a part of a file of `size` bytes."""
    start = max(size + first, 0) if first < 0 else first
    return start, size if count is None else min(start + count, size)


def _download(href: str, start: int, stop: int, path: Path) -> None:
    path.write_bytes(_read_patiently(href, start, stop))


def _read_patiently(href: str, start: int, stop: int) -> bytes:
    """Bytes of an object in S3; an unavailable server is asked again for PATIENCE_S seconds."""
    if start >= stop:
        return b""
    deadline = time.monotonic() + PATIENCE_S
    wait = first_wait = 0.5
    while True:
        try:
            return s3.read_range(href, start, stop - 1)
        except ServerUnavailableError as error:
            if time.monotonic() + wait > deadline:
                raise
            if wait == first_wait:
                log.warning("%s; trying again for up to %d s", redaction.redact(str(error)), PATIENCE_S)
        time.sleep(wait)
        wait = min(2 * wait, 30)
