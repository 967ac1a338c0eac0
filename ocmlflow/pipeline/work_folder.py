"""Work folders: unfinished work that an interrupted run continues from, held by one process or by shares of one."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path

import portalocker
from portalocker import LockFlags

from ocmlflow.errors import InputError
from ocmlflow.storage import hrefs
from ocmlflow.tracking import project_runs


@contextmanager
def hold(folder: Path, *, shared: bool = False) -> Iterator[Path]:
    """A folder for unfinished work, held by this process alone or, `shared`, by several that each do a part.

    It is removed at the end, but kept if the block fails, and where it is shared. Raises InputError where another
    process holds it, and where the disk cannot lock files.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # Open for reading and writing: NFS gives no shared lock without the one, and no exclusive one without the other.
    with folder.with_suffix(".lock").open("a+") as lock_file:
        try:
            portalocker.lock(lock_file, (LockFlags.SHARED if shared else LockFlags.EXCLUSIVE) | LockFlags.NON_BLOCKING)
        except portalocker.AlreadyLocked:
            raise InputError(
                f"another process is doing the same work, in {folder}: wait for it, or give another folder with work="
            ) from None
        except portalocker.LockException as error:
            raise InputError(
                f"the disk of {folder} cannot lock files ({error.__cause__}): give a folder on another one with work="
            ) from error
        yield folder
        if not shared:
            shutil.rmtree(folder)


def check_writable(output: str) -> None:
    """Raise InputError, naming the output, unless results can be written there."""
    try:
        hrefs.check_writable(output)
    except OSError as error:
        raise InputError(str(error)) from error


def check_kept(output: str) -> None:
    """Raise InputError where the output of the active run would lie in a temporary copy of the code."""
    checkout = project_runs.temporary_checkout()
    if checkout and Path(hrefs.absolute(output)).is_relative_to(checkout):
        raise InputError(
            f"output={output} would lie in {checkout}, where `mlflow run` put a copy of the code for this run alone: "
            f"give a whole path or an address, such as output=$PWD/{Path(output).name}"
        )


def check_visible(folder: Path, scheduler: str | None, executor: Executor) -> None:
    """Raise InputError unless the workers of a Dask cluster, if there is one, see the folder."""
    if scheduler and not executor.submit(os.path.isdir, folder).result():
        raise InputError(f"the workers of {scheduler} do not see the folder {folder}: give work= on a shared disk")
