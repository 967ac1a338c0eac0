"""How many processes, or which Dask cluster, to an executor; nothing else here knows of either."""

import os
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from queue import SimpleQueue
from typing import TypeVar

from ocmlflow.errors import InputError

TIMEOUT_S = 30
MAX_PENDING = 256
"""Items that wait at the workers: enough that none of hundreds is ever idle."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@contextmanager
def executor(workers: int, scheduler: str | None) -> Iterator[Executor]:
    """An executor of so many processes of this machine, or of the Dask cluster at `scheduler` (`tcp://host:8786`).

    With one worker the work is done in a thread of this process. On an error what has not begun is dropped. Raises
    InputError where there is no cluster, and where a process is ended from outside.
    """
    with _dask(scheduler) if scheduler else _processes(workers) as found:
        yield found


def map_unordered(
    executor: Executor, function: Callable[[_In], _Out], items: Iterable[_In]
) -> Generator[_Out, None, None]:
    """The function's results as they come; at most MAX_PENDING items are handed out at a time."""
    waiting: set[Future[_Out]] = set()
    # Not `wait`, which never comes back for what another thread's failure has cancelled.
    done: SimpleQueue[Future[_Out]] = SimpleQueue()

    def first() -> _Out:
        future = done.get()
        waiting.remove(future)
        return future.result()

    try:
        for item in items:
            future = executor.submit(function, item)
            waiting.add(future)
            future.add_done_callback(done.put)
            if len(waiting) >= MAX_PENDING:
                yield first()
        while waiting:
            yield first()
    finally:
        for future in waiting:
            future.cancel()


def threads_per_task() -> int:
    """How many threads a task may use here, so that all workers together use each core once."""
    if "distributed" in sys.modules:
        import distributed

        try:
            return int(distributed.get_worker().state.nthreads)
        except ValueError:  # not in a worker of Dask's
            pass
    return int(os.environ.get(_THREADS) or _cores())


_THREADS = "OCMLFLOW_THREADS"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _initialize_worker(threads: int) -> None:
    """Have this worker process use so many threads, TensorFlow included, which it has not loaded yet.

    Ctrl-C, which a terminal tells all processes, is its parent's to heed: what it is at is made whole, as on SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in (_THREADS, "TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = str(threads)


@contextmanager
def _processes(workers: int) -> Iterator[Executor]:
    pool: Executor = ThreadPoolExecutor(1)
    if workers > 1:  # spawned, not forked: GDAL has threads, whose locks a fork would copy
        each = max(1, _cores() // workers)
        pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_initialize_worker, initargs=(each,))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process was ended from outside, most often because memory ran out: fewer workers would do"
        ) from error
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
        found = client.get_executor(pure=False)
        try:
            yield found
        except BaseException:
            found.shutdown(wait=False)  # what has not begun is dropped
            raise
        found.shutdown()
