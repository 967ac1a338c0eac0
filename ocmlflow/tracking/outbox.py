"""What a run has to tell a server, to a local folder, and from there to the server in order, now or later.

An entry is a folder `NNNNNN` or `NNNNNN.SLOT` with `entry.json` and files. A later entry of the same slot takes the
place of one that is not delivered yet.
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

AGAIN_S = 30
"""Between two tries while the server is away, beside those that each new entry makes."""
REFUSED = ".refused"
TOLD = "entry.json"
"""File of an entry, beside those that it was given."""

Deliver: TypeAlias = Callable[[dict[str, Any], Path], None]
"""Takes what an entry says, and its folder. Raises RefusedError for what never will do, else what may do later."""


class RefusedError(Exception):
    """The server answered, and will not take this entry whenever it is sent."""


class UndeliveredError(InputError):
    """Entries are left in the folder."""


class Outbox:
    """The entries of one run. A thread delivers them, so that who puts them never waits for a server."""

    def __init__(self, folder: Path, deliver: Deliver) -> None:
        self.folder, self.deliver = folder, deliver
        self._lock = _lock(folder)
        self._number = max([0, *(int(entry.name[:6]) for entry in _entries(folder, "*"))])
        self._news, self._closing = threading.Event(), False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._deliver_all, daemon=True, name="outbox")
        self._thread.start()

    def put(self, told: Mapping[str, Any], *files: Path, slot: str = "") -> None:
        """Keep an entry, with the files moved into it. Raises OSError, and leaves nothing, where the disk is full."""
        self._number += 1
        part = self.folder / f"{self._number:06d}.part"
        try:
            part.mkdir()
            (part / TOLD).write_text(json.dumps(told))  # first: if the disk is full, the files stay where they are
            for file in files:
                shutil.move(file, part / file.name)
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            raise
        part.rename(part.with_suffix(f".{slot}" if slot else ""))
        self._news.set()

    def drop(self, slot: str) -> None:
        """Forget what is not delivered of a slot: room on a full disk."""
        for entry in _entries(self.folder, f".{slot}"):
            shutil.rmtree(entry, ignore_errors=True)

    def close(self) -> None:
        """Deliver what is left; UndeliveredError, with the reason, after a last try that did not do."""
        self._closing = True
        self._news.set()
        self._thread.join()
        left = [*_entries(self.folder), *_entries(self.folder, REFUSED)]
        if not left:
            shutil.rmtree(self.folder)
        self._lock.close()
        if left:
            raise UndeliveredError(f"{len(left)} entries are not sent, they are kept in {self.folder}: {self._failure}")

    def _deliver_all(self) -> None:
        while True:
            self._news.wait(AGAIN_S)
            self._news.clear()
            last = self._closing
            try:
                deliver(self.folder, self.deliver)
                if self._failure and not isinstance(self._failure, RefusedError):
                    log.info("the server answers again, all is sent")
                    self._failure = None
            except RefusedError as error:
                self._failure = error
                self._news.set()  # the others go on
            except Exception as error:  # whatever it is, what was told is kept
                if not self._failure:
                    log.warning("not sent yet, kept in %s: %s", self.folder, error)
                self._failure = error
            if last and not self._news.is_set():
                return


def deliver(folder: Path, how: Deliver) -> None:
    """Deliver the entries in a folder, in their order, and take each away; raises what ends it early.

    What is refused for good is left, marked, and raises RefusedError.
    """
    while entries := _entries(folder):
        first = entries[0]
        slot = first.suffix
        if not (slot and any(entry.suffix == slot for entry in entries[1:])):
            try:
                how(json.loads((first / TOLD).read_text()), first)
            except FileNotFoundError:
                if first.exists():  # else it was dropped meanwhile
                    raise
            except RefusedError as error:
                first.rename(first.with_suffix(REFUSED))
                log.error("refused, left in %s: %s", first.with_suffix(REFUSED), error)
                raise
        shutil.rmtree(first, ignore_errors=True)


def left(root: Path) -> list[Path]:
    """The folders below `root` in which runs left entries."""
    return sorted(folder for folder in root.glob("*") if [*_entries(folder), *_entries(folder, REFUSED)])


def deliver_left(folder: Path, how: Deliver) -> None:
    """Deliver what a run left in its folder, what was once refused too; UndeliveredError where that does not do."""
    with _lock(folder):
        for entry in _entries(folder, REFUSED):
            entry.rename(entry.with_suffix(""))
        try:
            deliver(folder, how)
        except Exception as error:
            count = len([*_entries(folder), *_entries(folder, REFUSED)])
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


def _entries(folder: Path, suffix: str | None = None) -> list[Path]:
    """Entries in their order: those to be delivered, or those of one suffix; `*` for all."""
    found = sorted(folder.glob("[0-9][0-9][0-9][0-9][0-9][0-9]*"))
    if suffix == "*":
        return found
    if suffix:
        return [entry for entry in found if entry.suffix == suffix]
    return [entry for entry in found if entry.suffix not in (".part", REFUSED)]
