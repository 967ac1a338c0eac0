"""Opens an executor of threads, local processes or a Dask cluster; no other module knows which one it is."""

import os
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.context import SpawnContext, SpawnProcess
from queue import SimpleQueue
from threading import Lock
from types import ModuleType
from typing import TypeVar

from ocmlflow.errors import InputError

TIMEOUT_S = 30
"""Seconds to wait for the Dask scheduler."""
MAX_PENDING = 256
"""Calls that are submitted at a time: enough to keep hundreds of workers busy."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@contextmanager
def executor(workers: int, scheduler: str | None) -> Iterator[Executor]:
    """An executor of `workers` local processes, or of the Dask cluster at `scheduler` (`tcp://host:8786`).

    One worker is a thread of this process. On an error, calls that have not begun are cancelled. Raises InputError
    where no scheduler answers, and where a worker process is killed.
    """
    with _dask(scheduler) if scheduler else _local(workers) as opened:
        yield opened


def map_unordered(
    executor: Executor, function: Callable[[_In], _Out], items: Iterable[_In]
) -> Generator[_Out, None, None]:
    """Results of the function in the order in which they finish, with at most MAX_PENDING calls submitted at a time.

    A closed generator, or one that failed, cancels the calls that have not begun.
    """
    pending: set[Future[_Out]] = set()
    # Not `concurrent.futures.wait`, which never returns for a future that another thread's failure has cancelled.
    finished: SimpleQueue[Future[_Out]] = SimpleQueue()
    remaining = iter(items)
    try:
        while True:
            for item in islice(remaining, MAX_PENDING - len(pending)):
                submitted = executor.submit(function, item)
                pending.add(submitted)
                submitted.add_done_callback(finished.put)
            if not pending:
                return
            future = finished.get()
            pending.remove(future)
            yield future.result()
    finally:
        for future in pending:
            future.cancel()


def threads_per_task() -> int:
    """Number of threads that a task may use here, so that all workers together use each core once."""
    if "distributed" in sys.modules:
        import distributed

        try:
            return int(distributed.get_worker().state.nthreads)
        except ValueError:  # not in a Dask worker
            pass
    return int(os.environ.get(_THREADS_VARIABLE) or _core_count())


_THREADS_VARIABLE = "OCMLFLOW_THREADS"


def _core_count() -> int:
    """Number of cores that this process may use; of all cores on systems that do not say (macOS, Windows)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _initialize_worker(threads: int) -> None:
    """Limit the threads of a new worker process, also of TensorFlow, which it loads later; and ignore Ctrl-C.

    A terminal sends Ctrl-C to all processes. The parent ends the work; workers finish what they are writing.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in (_THREADS_VARIABLE, "TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = str(threads)


class _Process(SpawnProcess):
    """A worker process that does not run the caller's script again.

    multiprocessing imports the script of the parent into each child, where it would do all its work again unless that
    stands under `if __name__ == "__main__"`. Functions that are sent to workers stand in modules, never in the script.
    """

    _starting = Lock()

    def start(self) -> None:
        """Start the process, while an empty module stands in for the script."""
        with self._starting:
            script = sys.modules["__main__"]
            sys.modules["__main__"] = ModuleType("__main__")
            try:
                super().start()
            finally:
                sys.modules["__main__"] = script


class _Context(SpawnContext):
    """Starts new processes. A fork would copy the locks of GDAL's threads."""

    Process = _Process


@contextmanager
def _local(workers: int) -> Iterator[Executor]:
    pool: Executor = ThreadPoolExecutor(1)
    if workers > 1:
        threads = max(1, _core_count() // workers)
        pool = ProcessPoolExecutor(workers, _Context(), initializer=_initialize_worker, initargs=(threads,))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise InputError("a worker process was killed, most often because memory ran out: use fewer workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _dask(scheduler: str) -> Iterator[Executor]:
    try:
        import distributed
    except ImportError as error:
        raise InputError('scheduler= needs Dask: pip install -e ".[dask]"') from error
    try:
        client = distributed.Client(scheduler, timeout=TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {scheduler}: {error}") from error
    with client:
        pool = client.get_executor(pure=False)
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False)  # calls that have not begun are dropped
            raise
        pool.shutdown()
