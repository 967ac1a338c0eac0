"""The wheel holds the package alone, and works where it is installed, away from any checkout."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path

import geopandas as gpd
import pytest
import rasterio
from conftest import ELSEWHERE, TRANSFORM, noise, one_layer, own_store, town, write_catalog, write_image

import ocmlflow
from ocmlflow.tracking import provenance, registry, runs
from ocmlflow.tracking.model_facts import ModelFacts

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.slow]  # MLflow's libraries warn of one another
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the checkout: the build leaves files behind, and takes up what an earlier one left."""
    folder = tmp_path_factory.mktemp("build")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "source" / name)
    pip("wheel", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(folder / "source"))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Namespace:
    """An installed wheel, `folder`, and `run`, which calls its command in a working folder with a registered model."""
    target, folder = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("work")
    pip("install", "--no-index", "--target", str(target), str(wheel))
    with own_store(folder, "bright"):
        registry.register("bright")
        with runs.run("train", {}) as trained:
            facts = ModelFacts(gsd=0.1, multiple=32, run=trained.info.run_id, chips="none", trained_on=())
            runs.log_model(one_layer(10, -5), facts, name="bright")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment = {**inherited, "PYTHONPATH": str(target), "XDG_STATE_HOME": str(folder / "state")}
    commands = {"script": [str(target / "bin" / "ocmlflow")], "module": [sys.executable, "-P", "-m", "ocmlflow"]}

    def start(*words: object, way: str = "script") -> subprocess.Popen:
        command = [*commands[way], *map(str, words)]
        return subprocess.Popen(
            command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(*words: object, way: str = "script") -> Namespace:
        process = start(*words, way=way)
        out, err = process.communicate(timeout=600)
        return Namespace(status=process.returncode, out=out, err=err)

    return Namespace(target=target, folder=folder, environment=environment, start=start, run=run)


def pip(action: str, *words: str) -> None:
    command = [sys.executable, "-m", "pip", action, "--no-deps", "--disable-pip-version-check", "-q", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_the_package_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = f"ocmlflow-{ocmlflow.__version__}.dist-info"
        commands = archive.read(f"{metadata}/entry_points.txt").decode()
    assert {name.partition("/")[0] for name in names} == {"ocmlflow", metadata}
    files = [file for file in (ROOT / "ocmlflow").rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert {name for name in names if name.startswith("ocmlflow/")} == {str(f.relative_to(ROOT)) for f in files}
    assert {"ocmlflow/py.typed", "ocmlflow/evaluation/templates/report.html"} <= names
    assert commands.split() == ["[console_scripts]", "ocmlflow", "=", "ocmlflow.__main__:main"]


def test_the_installed_package_is_the_one_that_runs(installed):
    """Its code is that of the checkout; the state of a checkout that it happens to lie in says nothing of it."""
    subprocess.run(["git", "init", "-q", installed.target], check=True)
    code = (
        "import ocmlflow; from ocmlflow.tracking import provenance; "
        "print(ocmlflow.__file__, provenance.code_digest(), *sorted(provenance.code_tags()))"
    )
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=installed.folder, env=installed.environment, capture_output=True, text=True)
    file = installed.target / "ocmlflow" / "__init__.py"
    assert done.stdout.split() == [str(file), provenance.code_digest(), "ocmlflow.code", "ocmlflow.python"]


@pytest.mark.parametrize("way", ["script", "module"])
def test_predict_maps_a_scene(installed, way):
    image = noise(100, 120)
    image[30:60] = 230
    scene = write_image(installed.folder / "scene.tif", image)
    words = ["--images", scene, "--output", way, "--model", "models:/bright/1", "--size", 64, "--margin", 16]
    done = installed.run("predict", *words, way=way)
    assert done.status == 0, done.err
    assert len(gpd.read_parquet(installed.folder / way / "footprints" / "scene.parquet")) == 1
    with rasterio.open(installed.folder / way / "masks" / "scene.tif") as mask:
        assert (mask.read(1)[32:58] == 1).all()


def test_main_runs_steps_without_a_checkout(installed):
    """As `python -m ocmlflow VERB`: `prepare` cuts two chips, and `train` refuses to learn from the one of them."""
    roofs = {
        "acc/aaa": town(installed.folder, "acc/aaa", transform=TRANSFORM, width=320),
        "kam/kkk": town(installed.folder, "kam/kkk", transform=ELSEWHERE, width=320, seed=1),
    }
    catalog = write_catalog(installed.folder, roofs)
    words = ["--catalog", catalog, "--validation", "kam", "--images", installed.folder / "acc", "--output", "mapped"]
    done = installed.run("main", *words)
    assert done.status == 1
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: batch_size=8 is more than the 1 training chips",
        "error: step train failed; its own message stands above",
    ]
    assert "Traceback" not in done.err


def test_exit_statuses_are_those_of_shells(installed):
    assert installed.run("--version").out.strip() == ocmlflow.__version__
    helped = installed.run("predict", "--help")
    assert (helped.status, helped.err) == (0, "")
    mistaken = installed.run("predict", "--images", "nowhere.tif", "--output", "o", "--model", "models:/bright/1")
    assert mistaken.status == 1
    assert mistaken.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in mistaken.err
    for backend in ("kubernetes", "databricks"):
        launched = installed.run("launch", "--step", "train", "--backend", backend)
        assert launched.status == 1
        assert launched.err.startswith("error: launch sends a copy of the project's code")
    for words in (["predict"], ["predict", "--images", "a", "--output", "b", "--tta", "all"], ["conquer"]):
        misused = installed.run(*words)
        assert misused.status == 2, misused.err
        assert misused.err.startswith("usage: ocmlflow")


def test_ctrl_c_ends_a_command_with_one_line(installed):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/catalog.json"
        process = installed.start("predict", "--images", address, "--output", "o", "--model", "models:/bright/1")
        with silent.accept()[0]:  # the command waits for an answer
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].endswith("interrupted")
    assert "Traceback" not in err
