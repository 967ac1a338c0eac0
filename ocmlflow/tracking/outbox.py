"""Durable queue of MLflow log entries: kept in a local folder, and delivered to the server in order, now or later.

An entry is a folder `NNNNNN` or `NNNNNN.SLOT` with `entry.json` and files. A later entry of the same slot replaces one
that is not delivered yet.
"""

import json
import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import portalocker

from ocmlflow.errors import InputError

log = logging.getLogger(__name__)

RETRY_S = 30
"""Seconds between two attempts while the server is away. Each new entry makes another attempt."""
REFUSED = ".refused"
"""Suffix of an entry that the server refused for good."""
ENTRY_FILE = "entry.json"
"""File of an entry, beside the files that it was given."""

Deliver: TypeAlias = Callable[[dict[str, Any], Path], None]
"""Takes the content of an entry, and its folder.

Raises RefusedError for an entry that will never be accepted, and any other error where a later attempt may succeed.
"""


class RefusedError(Exception):
    """The server answered, and will not accept this entry at any time."""


class UndeliveredError(InputError):
    """Entries are left in the folder."""


class Outbox:
    """The entries of one run. A thread delivers them, so that whoever adds one never waits for the server."""

    def __init__(self, folder: Path, deliver: Deliver) -> None:
        """Raises UndeliveredError where another process has the folder, InputError where no file can be locked."""
        self.folder, self.deliver = folder, deliver
        self._lock = _lock(folder)
        self._number = max([0, *(int(entry.name[:6]) for entry in _all_entries(folder))])
        self._new_entry = threading.Event()
        self._closing = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._deliver_all, daemon=True, name="outbox")
        self._thread.start()

    def put(self, content: Mapping[str, Any], *files: Path, slot: str = "") -> None:
        """Add an entry, and move the files into it. Raises OSError, and leaves nothing, where the disk is full."""
        self._number += 1
        part = self.folder / f"{self._number:06d}.part"
        try:
            part.mkdir()
            (part / ENTRY_FILE).write_text(json.dumps(content))  # before the files: if it fails, they stay in place
            for file in files:
                shutil.move(file, part / file.name)
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            raise
        part.rename(part.with_suffix(f".{slot}" if slot else ""))
        self._new_entry.set()

    def drop(self, slot: str) -> None:
        """Delete the undelivered entries of a slot: room on a full disk."""
        for entry in _all_entries(self.folder):
            if entry.suffix == f".{slot}":
                shutil.rmtree(entry, ignore_errors=True)

    def close(self) -> None:
        """Deliver what is left; UndeliveredError, with the reason, if the last attempt fails."""
        self._closing = True
        self._new_entry.set()
        self._thread.join()
        count = _count(self.folder)
        if not count:
            shutil.rmtree(self.folder)
        self._lock.close()
        if count:
            raise UndeliveredError(f"{count} entries are not sent, they are kept in {self.folder}: {self._failure}")

    def _deliver_all(self) -> None:
        while True:
            self._new_entry.wait(RETRY_S)
            self._new_entry.clear()
            last = self._closing
            try:
                deliver_entries(self.folder, self.deliver)
                if self._failure and not isinstance(self._failure, RefusedError):
                    log.info("the server answers again, all is sent")
                    self._failure = None
            except RefusedError as error:
                self._failure = error
                self._new_entry.set()  # the entries after it are still to be sent
            except Exception as error:  # whatever it is, the entries are kept
                if not self._failure:
                    log.warning("not sent yet, kept in %s: %s", self.folder, error)
                self._failure = error
            if last and not self._new_entry.is_set():
                return


def deliver_entries(folder: Path, deliver: Deliver) -> None:
    """Deliver the entries in a folder in their order, and delete each; an error ends it.

    A refused entry stays, marked as such, and raises RefusedError.
    """
    while entries := _entries(folder):
        first = entries[0]
        replaced = first.suffix and any(entry.suffix == first.suffix for entry in entries[1:])
        if not replaced:
            try:
                deliver(json.loads((first / ENTRY_FILE).read_text()), first)
            except FileNotFoundError:
                if first.exists():  # else it was dropped meanwhile
                    raise
            except RefusedError as error:
                first.rename(first.with_suffix(REFUSED))
                log.error("refused, left in %s: %s", first.with_suffix(REFUSED), error)
                raise
        shutil.rmtree(first, ignore_errors=True)


def unsent(root: Path) -> list[Path]:
    """The folders below `root` in which runs left entries."""
    return sorted(folder for folder in root.glob("*") if _count(folder))


def deliver_unsent(folder: Path, deliver: Deliver) -> None:
    """Deliver what a run left in its folder, entries that were refused too; UndeliveredError if one is left."""
    with _lock(folder):
        for entry in _all_entries(folder):
            if entry.suffix == REFUSED:
                entry.rename(entry.with_suffix(""))
        try:
            deliver_entries(folder, deliver)
        except Exception as error:
            count = _count(folder)
            raise UndeliveredError(f"{count} entries are not sent, they are kept in {folder}: {error}") from error
        shutil.rmtree(folder)


def _lock(folder: Path) -> TextIO:
    """A lock file in the folder of a run, which keeps other processes out of it until it is closed."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w")
    try:
        portalocker.lock(lock, portalocker.LOCK_EX | portalocker.LOCK_NB)
    except portalocker.AlreadyLocked:
        lock.close()
        raise UndeliveredError(f"the run of {folder} is still at work, and sends its entries itself") from None
    except portalocker.LockException as error:
        lock.close()
        raise InputError(
            f"no file can be locked in {folder} ({error}): set XDG_STATE_HOME to a folder on another disk"
        ) from error
    return lock


def _all_entries(folder: Path) -> list[Path]:
    """All entries in their order, refused and unfinished ones too."""
    return sorted(folder.glob("[0-9][0-9][0-9][0-9][0-9][0-9]*"))


def _entries(folder: Path) -> list[Path]:
    """The entries to be delivered, in their order."""
    return [entry for entry in _all_entries(folder) if entry.suffix not in (".part", REFUSED)]


def _count(folder: Path) -> int:
    """How many entries are not delivered, refused ones too."""
    return len([entry for entry in _all_entries(folder) if entry.suffix != ".part"])
