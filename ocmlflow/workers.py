"""How many processes, or which Dask cluster, to an executor; nothing else here knows of either."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

from ocmlflow.errors import InputError

TIMEOUT_S = 30

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@contextmanager
def executor(workers: int, scheduler: str | None) -> Iterator[Executor]:
    """An executor of so many processes of this machine, or of the Dask cluster at `scheduler` (`tcp://host:8786`).

    With one worker the work is done in a thread of this process. On an error what has not begun is dropped, what has
    begun is waited for. Raises InputError where there is no cluster.
    """
    made = _dask(scheduler) if scheduler else _processes(workers)
    with made as found:
        try:
            yield found
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process was ended from outside, most often because memory ran out: fewer workers would do"
            ) from error
        except BaseException:
            found.shutdown(wait=True, cancel_futures=True)
            raise


def unordered(
    executor: Executor, function: Callable[[_In], _Out], items: Iterable[_In], *, ahead: int
) -> Iterator[_Out]:
    """The function's results as they come; at most `ahead` items are handed out at a time, however many there are."""
    waiting: set[Future[_Out]] = set()
    try:
        for item in items:
            waiting.add(executor.submit(function, item))
            if len(waiting) >= ahead:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        for future in waiting:
            future.cancel()


def _processes(workers: int) -> Executor:
    if workers == 1:
        return ThreadPoolExecutor(1)
    # Spawned, not forked: zarr and GDAL have threads, whose locks a fork would copy.
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


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
    with client, client.get_executor(pure=False) as found:
        yield found
