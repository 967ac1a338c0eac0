import logging
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from conftest import own_store

from ocmlflow.tracking import database_wait, runs

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's libraries warn of one another
ROOT = Path(__file__).parents[2]


def test_two_first_runs_on_a_new_database_both_succeed(tmp_path):
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/new.db", "PYTHONPATH": str(ROOT)}
    code = "from ocmlflow.tracking import runs\nwith runs.run('prepare', {}): pass"
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=300)[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], errors


def test_a_run_waits_for_a_locked_database(tmp_path):
    with own_store(tmp_path, "locked") as store:
        other = sqlite3.connect(store.folder / "mlflow.db", isolation_level=None, check_same_thread=False)
        other.execute("BEGIN EXCLUSIVE")

        class Release(logging.Handler):
            def emit(self, record):
                if "another process has the database" in record.getMessage():
                    other.execute("COMMIT")

        handler = Release()
        database_wait.log.addHandler(handler)
        try:
            with runs.run("prepare", {"gsd": 0.1}) as active:
                pass
        finally:
            database_wait.log.removeHandler(handler)
        assert not other.in_transaction  # it was waited for
        other.close()
        assert mlflow.get_run(active.info.run_id).info.status == "FINISHED"


def test_other_errors_are_raised_at_once(tmp_path):
    calls = []

    def fail():
        calls.append(1)
        raise OSError("no route")

    with own_store(tmp_path, "away"), pytest.raises(OSError, match="no route"):
        database_wait.when_free(fail)
    assert len(calls) == 1
