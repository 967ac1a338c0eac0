"""Steps whose code `mlflow run` fetches from an address into a folder for temporary files."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from containers import free_port, process, wait_until

ROOT = Path(__file__).parents[2]
AS_TESTER = ["-c", "user.name=tester", "-c", "user.email=tester@example.org"]


def git(*words: object, cwd: Path = ROOT) -> str:
    return subprocess.run(["git", *map(str, words)], cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Address of a git server with this code, committed or not."""
    folder = tmp_path_factory.mktemp("git")
    for name in git("ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / name).is_file():
            (folder / "project" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "project" / name)
    git("init", "--quiet", "--initial-branch", "main", folder / "project")
    git("add", "--all", cwd=folder / "project")
    git(*AS_TESTER, "commit", "--quiet", "--message", "all", cwd=folder / "project")
    port = free_port()
    command = ["git", "daemon", "--export-all", f"--base-path={folder}", "--listen=127.0.0.1", f"--port={port}"]
    with process(command, folder / "log") as running:

        def answers() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(answers, alive=lambda: running.poll() is None, what=f"git, see {folder}/log,")
        yield f"git://127.0.0.1:{port}/project"


def run(address: str, folder: Path, **parameters: object) -> subprocess.CompletedProcess:
    """`predict` as a user starts it who stands in that folder."""
    words = [word for name, value in parameters.items() for word in ("-P", f"{name}={value}")]
    command = [sys.executable, "-m", "mlflow", "run", address, "-e", "predict", "--env-manager", "local", *words]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment = {**inherited, "PATH": path, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_an_output_that_would_lie_in_the_temporary_copy_is_refused(address, tmp_path):
    done = run(address, tmp_path, images="scenes", output="maps")
    assert done.returncode == 1
    assert "error: output=maps would lie in /" in done.stderr
    assert "give a whole path or an address, such as output=$PWD/maps" in done.stderr


def test_a_whole_path_is_taken(address, tmp_path):
    done = run(address, tmp_path, images=tmp_path / "scenes", output=tmp_path / "maps")
    assert "would lie in" not in done.stderr
    assert f"{tmp_path}/scenes" in done.stderr  # there are none
