"""Files below an address, to what stands for a folder of them: parts are fetched when first needed, and kept a while.

What is kept lies in one folder of bounded size, for all runs, threads and processes of a user.
"""

import errno
import fcntl
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

from ocmlflow import redaction
from ocmlflow.errors import InputError
from ocmlflow.storage import hrefs, s3
from ocmlflow.storage.s3 import ServerUnavailableError

log = logging.getLogger(__name__)

LIMIT_GB = 20.0
"""Size of the cache where nothing is set; half of what the disk has room for, where that is less."""
WHOLE_FILE_BYTES = 1_000_000
"""Files of up to so many bytes come whole: it takes as long as a part, and the labels of 64 chips are in one."""
SLACK = 0.1
"""Share of the cache that is emptied at a time."""
PATIENCE_S = 300
"""For how long an S3 server that is away or busy is asked again: a training lost costs more."""
SIZE_FILE, PARTIAL_FOLDER = "held", "parts"
"""In the cache: how many bytes it holds; and what is just being written."""
WIDTH = 20
"""Digits of that number: the file is written over, for to empty it first takes ext4 longer than all else here."""
ABANDONED_S = 3600
"""Age at which a file that is being written was left by a process that was killed."""

Fetch: TypeAlias = Callable[[str, int, int | None], bytes]
"""Takes a file's name, its first byte to be read, from the end if negative, and how many there are, None for all."""


class RangeCache:
    """A folder of files, at most `limit` bytes but for what is just being written. Those used last stay longest."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._making = [threading.Lock() for _ in range(1024)]  # a thread waits for what another one fetches already
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, name: str, size: int, make: Callable[[Path], object], first: int, count: int) -> bytes:
        """Bytes of the file of that name and size; `make` writes it, to another name, if it is not there."""
        with self._open(name, size, make) as file:
            file.seek(first)
            return file.read(count)

    def _open(self, name: str, size: int, make: Callable[[Path], object]) -> BinaryIO:
        with self._making[hash(name) % len(self._making)]:
            try:
                file = (self.folder / name).open("rb")
            except FileNotFoundError:
                return self._add(name, size, make)
            found = os.fstat(file.fileno())
            if found.st_size != size:  # the machine went down while it was written
                file.close()
                return self._add(name, size, make)
            if time.time() - found.st_mtime > 1:
                os.utime(file.fileno())
            return file

    def _add(self, name: str, size: int, make: Callable[[Path], object]) -> BinaryIO:
        part = self.folder / PARTIAL_FOLDER / uuid.uuid4().hex
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            try:
                make(part)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._shrink()
                make(part)
            found = part.stat().st_size
            if found != size:
                raise OSError(f"{name} has {found} bytes where {size} were expected")
            file = part.open("rb")
            if self._make_room(size):
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                part.replace(self.folder / name)
            return file
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, size: int) -> bool:
        """Count a file of that size in, and delete others where there is no room; False if there never will be any."""
        if size > self.limit * (1 - SLACK):
            return False
        with self._held() as count:
            text = os.pread(count, WIDTH, 0)
            held = int(text) if text.isdigit() else self._emptied_to(self.limit)
            if held + size > self.limit:
                held = self._emptied_to(round(self.limit * (1 - SLACK)) - size)
            os.pwrite(count, b"%0*d" % (WIDTH, held + size), 0)
        return True

    def _shrink(self) -> None:
        """On a full disk, be content with half of the room, in this process from now on."""
        with self._held() as count:
            held = self._emptied_to(self.limit)
            self.limit = held // 2
            log.warning("the disk is full: the cache %s shrinks to %.1f GB", self.folder, self.limit / 1e9)
            os.pwrite(count, b"%0*d" % (WIDTH, self._emptied_to(self.limit)), 0)

    @contextmanager
    def _held(self) -> Iterator[int]:
        """Descriptor of the file that says how many bytes are held, while no other thread or process has it."""
        count = os.open(self.folder / SIZE_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(count, fcntl.LOCK_EX)
            yield count
        finally:
            os.close(count)

    def _emptied_to(self, limit: int) -> int:
        """Delete the files that were not used for longest until those left have at most so many bytes; their bytes."""
        found = []
        for top, _, names in os.walk(self.folder):
            for name in names:
                try:
                    status = os.stat(os.path.join(top, name))
                except FileNotFoundError:  # just finished, or deleted
                    continue
                found.append((status.st_mtime, status.st_size, os.path.join(top, name)))
        held, parts = sum(size for _, size, _ in found), str(self.folder / PARTIAL_FOLDER)
        for used, size, path in sorted(found):
            if held <= limit:
                break
            if path == str(self.folder / SIZE_FILE) or (path.startswith(parts) and time.time() - used < ABANDONED_S):
                continue
            Path(path).unlink(missing_ok=True)
            held -= size
        return held


def size_limit(folder: Path) -> int:
    """Bytes that the cache in that folder may take: OCMLFLOW_CACHE_GB, or what LIMIT_GB says."""
    told = os.environ.get("OCMLFLOW_CACHE_GB")
    if told is None:
        folder.mkdir(parents=True, exist_ok=True)
        room = os.statvfs(folder)
        held = (folder / SIZE_FILE).read_text() if (folder / SIZE_FILE).exists() else ""
        free = room.f_bavail * room.f_frsize + (int(held) if held.isdecimal() else 0)
        return round(min(LIMIT_GB * 1e9, free / 2))
    try:
        gigabytes = float(told)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < float("inf"):
        raise InputError(f"OCMLFLOW_CACHE_GB={told}: a number of gigabytes is needed, as 20 or 0.5")
    return round(gigabytes * 1e9)


def open_ranges(address: str, sizes: Mapping[str, int], cache: RangeCache, key: str) -> Fetch:
    """What stands for the folder at an s3 address whose files have these sizes; no more than what is asked for comes.

    `key` names the address in the cache.
    """

    def fetch(name: str, first: int, count: int | None) -> bytes:
        size = _size(address, sizes, name)
        first, last = _span(size, first, count)
        href, begin, end, entry = hrefs.join(address, name), first, last, f"{key}/{name}/{first}-{last}"
        if size <= WHOLE_FILE_BYTES:
            begin, end, entry = 0, size, f"{key}/{name}"

        def make(part: Path) -> None:
            part.write_bytes(_patiently(href, begin, end))

        return cache.read(entry, end - begin, make, first - begin, last - first)

    return fetch


def open_whole_files(
    address: str, sizes: Mapping[str, int], cache: RangeCache, key: str, download: Callable[[str, Path], None]
) -> Fetch:
    """The same where `download` brings files by name, and only whole; InputError where they do not fit the cache."""
    if sum(sizes.values()) > cache.limit * (1 - SLACK):
        raise InputError(
            f"{address} has {sum(sizes.values()) / 1e9:.1f} GB, the cache in {cache.folder} "
            f"{cache.limit / 1e9:.1f}: every chip would bring its file again. Set OCMLFLOW_CACHE_GB higher, or keep "
            "artifacts in s3:// directly, of which parts can be read"
        )

    def fetch(name: str, first: int, count: int | None) -> bytes:
        size = _size(address, sizes, name)
        first, last = _span(size, first, count)
        return cache.read(f"{key}/{name}", size, lambda part: download(name, part), first, last - first)

    return fetch


def _size(address: str, sizes: Mapping[str, int], name: str) -> int:
    if name not in sizes:
        raise FileNotFoundError(f"{hrefs.join(address, name)} is not there")
    return sizes[name]


def _span(size: int, first: int, count: int | None) -> tuple[int, int]:
    """First byte and the one after the last."""
    first = max(size + first, 0) if first < 0 else first
    return first, size if count is None else min(first + count, size)


def _patiently(href: str, begin: int, end: int) -> bytes:
    """Bytes of an s3 address, from a server that may be away for a while."""
    began, wait = time.monotonic(), 0.5
    while begin < end:
        try:
            return s3.read_range(href, begin, end - 1)
        except ServerUnavailableError as error:
            if time.monotonic() + wait > began + PATIENCE_S:
                raise
            if wait == 0.5:
                log.warning("%s; it is asked again for up to %d s", redaction.redact(str(error)), PATIENCE_S)
            time.sleep(wait)
            wait = min(2 * wait, 30)
    return b""
