"""predict on small scenes, with a network of one layer that needs no training."""

import json
import os
import sys
from argparse import Namespace
from pathlib import Path

import geopandas as gpd
import mlflow
import pytest
import rasterio
import shapely
from conftest import CRS, building, noise, one_layer, own_store, parsed, write_image, write_json
from containers import process

from ocmlflow.errors import InputError
from ocmlflow.pipeline import predict
from ocmlflow.prediction import vector_files
from ocmlflow.prediction.engine import Ensemble
from ocmlflow.storage import hrefs
from ocmlflow.tracking import registry, runs
from ocmlflow.tracking.model_facts import ModelFacts

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's libraries warn of one another
NAME = "bright"


@pytest.fixture(scope="module")
def _model(tmp_path_factory):
    """A store with a version that takes what is bright for building."""
    with own_store(tmp_path_factory.mktemp("mlflow"), NAME):
        registry.register(NAME)
        with runs.run("train", {}) as trained:
            facts = ModelFacts(gsd=0.1, multiple=32, run=trained.info.run_id, chips="none", trained_on=())
            runs.log_model(one_layer(10, -5), facts, name=NAME)
        yield


@pytest.fixture
def files(_model, tmp_path, monkeypatch) -> Namespace:
    """A working folder, with the output and the folder of results in the making that `run` takes."""
    monkeypatch.chdir(tmp_path)
    return Namespace(output=tmp_path / "out", work=tmp_path / "work", scenes=tmp_path / "scenes")


def run(files, images, **parameters):
    """The table of a run, in this process."""
    how = {"model": f"models:/{NAME}/1", "output": files.output, "work": files.work, "size": 64, "margin": 16}
    words = [w for key, value in {"images": images, **how, **parameters}.items() for w in (f"--{key}", str(value))]
    return predict.run(parsed("predict", words))


def scene(path, height: int = 100, width: int = 120, **more) -> str:
    """A dark image with one roof, from side to side."""
    image = noise(height, width)
    image[30:60] = 230
    return write_image(path, image, **more)


def test_another_area_of_interest_is_another_piece_of_work(files, monkeypatch):
    """Nothing of the one is taken for the other, even where they differ by some metres."""
    image = scene(files.scenes / "a.tif", 100, 300)
    with rasterio.open(image, "r+") as file:
        file.update_tags(TIFFTAG_DATETIME="2019:03:04 05:06:07")
    for name, right in (("narrow", 40), ("wide", 250)):
        area = gpd.GeoSeries([building(0, 0, 100, right)], crs=CRS).to_crs("EPSG:4326")
        write_json(files.scenes / f"{name}.geojson", shapely.geometry.mapping(area[0]))
    with monkeypatch.context() as patch:
        patch.setattr(vector_files, "write", lambda frames, path: [*frames, 1 / 0])  # when all is predicted
        with pytest.raises(ZeroDivisionError):
            run(files, image, aoi=files.scenes / "narrow.geojson")
    run(files, image, aoi=files.scenes / "wide.geojson")
    with rasterio.open(files.output / "masks" / "a.tif") as mask:
        found = mask.read(1)
    assert (found[32:58, 2:248] == 1).all()
    assert (found[:, 252:] == 255).all()
    item = json.loads((files.output / "items" / "a.json").read_text())
    assert item["properties"]["start_datetime"] == "2019-03-04T05:06:07Z"


def test_a_collection_of_others_is_refused_before_work(files):
    own = write_json(files.output / "collection.json", {"id": "precious"})
    for how in ({}, {"share": "0/2"}):
        with pytest.raises(InputError, match=r"collection\.json is not of `predict`"):
            run(files, scene(files.scenes / "a.tif"), **how)
    assert json.loads(Path(own).read_text()) == {"id": "precious"}
    assert not files.work.exists()


def test_a_scene_that_ends_too_early_ends_the_workers_too(files):
    """While the windows of another wait for them; in a process of its own, which cannot hang the tests."""
    scene(files.scenes / "good.tif", 600, 1200)
    short = Path(scene(files.scenes / "short.tif", 100, 300))
    short.write_bytes(short.read_bytes()[:60_000])
    words = {"images": files.scenes, "output": files.output, "work": files.work, "model": f"models:/{NAME}/1"}
    words |= {"size": 64, "margin": 16, "workers": 2, "engine": "keras"}
    command = [sys.executable, "-m", "entrypoints.predict", *(w for n, v in words.items() for w in (f"--{n}", str(v)))]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "MLFLOW_EXPERIMENT_NAME": NAME}
    log = files.scenes / "log"
    with process(command, log, cwd=Path(__file__).parents[2], env=environment) as verb:
        assert verb.wait(120) == 1
    assert f"error: cannot read image {short}" in log.read_text().splitlines()[-1]


def test_what_the_network_said_is_kept_till_its_files_lie_in_the_output(files, monkeypatch):
    """And the pictures of what was whole before an interruption are in the run that goes on."""
    for name in ("a", "b"):
        scene(files.scenes / f"{name}.tif")
    put = hrefs.put

    def full(source, href):
        if href.endswith("masks/b.tif"):
            raise OSError(28, "No space left on device")
        put(source, href)

    with monkeypatch.context() as patch:
        patch.setattr(hrefs, "put", full)
        with pytest.raises(OSError, match="No space left"):
            run(files, files.scenes)
    monkeypatch.setattr(Ensemble, "__call__", None)
    assert [one.status for one in run(files, files.scenes)] == ["predicted"] * 2
    (newest,) = mlflow.search_runs(experiment_names=[NAME], max_results=1, output_format="list")
    found = mlflow.artifacts.list_artifacts(run_id=newest.info.run_id, artifact_path="pictures")
    assert {file.path for file in found} == {"pictures/a.jpg", "pictures/b.jpg"}
    assert {path.suffix for path in (files.work / "predict").iterdir()} == {".lock"}
