"""An executor of processes and one of a real Dask cluster do the same."""

import os
import signal
import subprocess
import sys
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import distributed
import pytest

from ocmlflow import executors
from ocmlflow.errors import InputError

# Dask's own libraries warn of one another.
pytestmark = pytest.mark.filterwarnings("default")


def squared(number: int) -> tuple[int, int]:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number**2, os.getpid()


def killed_once(path: str) -> int:
    """End the process that runs this, without a goodbye, the first time."""
    if not os.path.exists(path):
        open(path, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as found:
        yield found.scheduler_address


@pytest.fixture(params=["thread", "processes", "dask"])
def executor(request):
    scheduler = request.getfixturevalue("cluster") if request.param == "dask" else None
    with executors.executor(1 if request.param == "thread" else 2, scheduler) as found:
        yield found


def test_every_item_is_processed_once(executor):
    found = executors.map_unordered(executor, squared, range(20))
    assert sorted(number for number, _ in found) == [n**2 for n in range(20)]


def test_workers_share_the_cores(executor, request):
    found = executor.submit(executors.threads_per_task).result()
    cores = len(os.sched_getaffinity(0))
    way = request.node.callspec.params["executor"]
    assert found == {"thread": cores, "processes": max(1, cores // 2), "dask": 1}[way]


def test_an_error_of_a_worker_is_raised(executor):
    with pytest.raises(ValueError, match="-1 is negative"):
        list(executors.map_unordered(executor, squared, [1, 2, -1, 3]))


def test_at_most_max_pending_calls_are_submitted(monkeypatch):
    """A scene of a million blocks does not become a million tasks."""
    monkeypatch.setattr(executors, "MAX_PENDING", 4)
    handed, most = [], []

    def items():
        for number in range(10):
            handed.append(number)
            yield number
            most.append(len(handed) - len(seen))

    seen: list[int] = []
    with executors.executor(1, None) as executor:
        for number in executors.map_unordered(executor, abs, items()):
            seen.append(number)
    assert sorted(seen) == list(range(10))
    assert max(most) <= 5


def test_cancelled_calls_end_the_wait_for_them():
    """When one scene fails, its executor is closed, and the threads of the other scenes end."""
    handed, go_on, ended = Event(), Event(), Event()

    def items():
        yield from [20] * 3
        handed.set()

    def scene():
        with pytest.raises(CancelledError):
            list(executors.map_unordered(executor, go_on.wait, items()))
        ended.set()

    executor = ThreadPoolExecutor(1)
    Thread(target=scene, daemon=True).start()
    assert handed.wait(20)
    executor.shutdown(wait=False, cancel_futures=True)
    go_on.set()
    assert ended.wait(20)


def interrupted(number: int) -> int:
    os.kill(os.getpid(), signal.SIGINT)
    return number


def test_worker_processes_ignore_ctrl_c():
    """A terminal tells them all."""
    with executors.executor(2, None) as executor:
        assert executor.submit(interrupted, 7).result() == 7


def test_processes_and_clusters_run_in_other_processes(cluster):
    for count, scheduler in ((2, None), (1, cluster)):
        with executors.executor(count, scheduler) as executor:
            assert os.getpid() not in {pid for _, pid in executor.map(squared, range(4))}
    with executors.executor(1, None) as executor:
        assert {pid for _, pid in executor.map(squared, range(4))} == {os.getpid()}


SCRIPT = """
from ocmlflow import executors
with executors.executor(2, None) as executor:
    print(*executors.map_unordered(executor, len, ["abc"]))
"""


@pytest.mark.parametrize("way", ["file", "input"])
def test_a_script_is_not_run_again_by_its_workers(way, tmp_path):
    """Though it does its work at the top level, without `if __name__ == "__main__"`."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py" if way == "file" else "-"]
    environment = {**os.environ, "PYTHONPATH": str(Path(executors.__file__).parents[1])}
    done = subprocess.run(command, input=SCRIPT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_a_killed_worker_of_a_cluster_is_replaced(cluster, tmp_path):
    with executors.executor(1, cluster) as executor:
        assert list(executors.map_unordered(executor, killed_once, [str(tmp_path / "killed")]))


def test_a_killed_worker_process_is_an_error(tmp_path):
    with pytest.raises(InputError, match="use fewer workers"), executors.executor(2, None) as executor:
        list(executor.map(killed_once, [str(tmp_path / "killed")]))


@pytest.mark.parametrize("scheduler", ["tcp://127.0.0.1:9", "nonsense"])
def test_an_address_without_a_cluster_is_an_error(scheduler, monkeypatch):
    monkeypatch.setattr(executors, "TIMEOUT_S", 1)
    with pytest.raises(InputError, match=f"no Dask scheduler answers at {scheduler}"), executors.executor(1, scheduler):
        pass
