"""Versions that were registered again, copied, downloaded or taken to another server predict as before."""

import hashlib
import json
import shutil
from argparse import Namespace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import noise, one_layer, own_store, parsed, write_image
from mlflow import MlflowClient

from ocmlflow.errors import InputError
from ocmlflow.pipeline import predict
from ocmlflow.tracking import model_evaluation, registry, runs
from ocmlflow.tracking.model_evaluation import Evaluation
from ocmlflow.tracking.model_facts import ModelFacts

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's libraries warn of one another
NAME = "original"
CHOSEN = Evaluation(threshold=37, temperature=2.5, evaluated_on="chips")


def log_version(name: str) -> str:
    """Register a network that takes what is bright for building; the id of its run."""
    registry.register(name)
    with runs.run("train", {}) as trained:
        facts = ModelFacts(gsd=0.1, multiple=32, run=trained.info.run_id, chips="chips", trained_on=())
        runs.log_model(one_layer(10, -5), facts, name=name)
    return str(trained.info.run_id)


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A store with an evaluated version, its files in the folder `copy`, and the mask that it gives of a scene."""
    folder = tmp_path_factory.mktemp("origin")
    image = noise(64, 96)
    image[:, 30:60] = np.arange(100, 160, 2, np.uint8)[:, np.newaxis]  # every threshold cuts it elsewhere
    scene = write_image(folder / "scene.tif", image)
    with own_store(folder, "origin"):
        run = log_version(NAME)
        registry.record_evaluation(registry.load_model(f"models:/{NAME}/1"), CHOSEN, {"iou": "0.9"}, "evaluated")
        mlflow.artifacts.download_artifacts(f"models:/{NAME}/1", dst_path=str(folder / "copy"))
        yield Namespace(folder=folder, scene=scene, run=run, copy=folder / "copy", uri=mlflow.get_tracking_uri())


@pytest.fixture
def elsewhere(origin, tmp_path):
    """Another store, which is the current one."""
    with own_store(tmp_path, "elsewhere"):
        yield


def mask(origin, model: str, folder: Path) -> str:
    """Digest of the mask that a model gives of the scene."""
    words = ["--images", origin.scene, "--model", model, "--output", folder / "out", "--work", folder / "work"]
    predict.run(parsed("predict", [*words, "--engine", "keras", "--size", "64", "--margin", "16"]))
    return hashlib.sha256((folder / "out" / "masks" / "scene.tif").read_bytes()).hexdigest()


def test_every_address_of_one_server_has_what_the_evaluation_chose(origin, tmp_path, caplog):
    model_id = registry.load_model(f"models:/{NAME}/1").key
    mlflow.register_model(f"models:/{NAME}/1", "second")
    MlflowClient().copy_model_version(f"models:/{NAME}/1", "third")
    mlflow.register_model(f"models:/{model_id}", "fourth")
    MlflowClient().set_registered_model_alias("second", "best", "1")
    assert not MlflowClient().get_model_version("second", "1").tags
    addresses = ["models:/second/1", "models:/second@best", "models:/second/latest", "models:/third/1"]
    addresses += ["models:/fourth/1", f"models:/{model_id}", f"runs:/{origin.run}/model"]
    expected = mask(origin, f"models:/{NAME}/1", tmp_path / "original")
    for number, address in enumerate([*addresses, str(origin.copy), origin.copy.as_uri()]):
        model = registry.load_model(address)
        found = Evaluation(model.threshold, model.temperature, model.evaluated_on)
        assert found == CHOSEN, address
        if address in ("models:/second/1", "models:/third/1", f"models:/{model_id}", origin.copy.as_uri()):
            assert mask(origin, address, tmp_path / str(number)) == expected, address
    assert "never evaluated" not in caplog.text


@pytest.mark.usefixtures("elsewhere")
def test_files_registered_in_another_store_predict_the_same(origin, tmp_path):
    mlflow.register_model(origin.copy.as_uri(), "from-files")
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(origin.copy), "model")
    mlflow.register_model(f"runs:/{run.info.run_id}/model", "from-run")
    found = {name: mask(origin, f"models:/{name}/1", tmp_path / name) for name in ("from-files", "from-run")}
    mlflow.set_tracking_uri(origin.uri)
    assert set(found.values()) == {mask(origin, f"models:/{NAME}/1", tmp_path / "original")}


@pytest.mark.usefixtures("elsewhere")
def test_a_moved_version_is_evaluated_anew_and_moves_on(origin, tmp_path):
    files = shutil.copytree(origin.copy, tmp_path / "files")
    mlflow.register_model(files.as_uri(), "moved")
    registry.record_evaluation(registry.load_model("models:/moved/1"), Evaluation(80, 1.5, "new"), {}, "")
    mlflow.register_model("models:/moved/1", "moved-on")
    for address in ("models:/moved/1", "models:/moved-on/1", str(files)):
        assert registry.load_model(address).threshold == 80


def test_one_that_was_never_evaluated_says_so(origin, tmp_path, caplog):
    log_version("raw")
    mask(origin, "models:/raw/latest", tmp_path)
    assert "raw version 1 was never evaluated: its threshold is 0.50, its temperature 1" in caplog.text


def test_a_threshold_set_by_hand_comes_before_the_one_in_the_files(origin):
    mlflow.register_model(f"models:/{NAME}/1", "by-hand", tags={"threshold": "0.61"})
    model = registry.load_model("models:/by-hand/1")
    assert (model.threshold, model.temperature) == (61, CHOSEN.temperature)


def test_a_wrong_evaluation_is_refused_with_what_was_found(origin, tmp_path):
    files = shutil.copytree(origin.copy, tmp_path / "files")
    for threshold, temperature in (("high", "1"), ("0.5", "0"), ("7", "1"), ("nan", "1")):
        content = {"threshold": threshold, "ocmlflow.temperature": temperature}
        (files / model_evaluation.EVALUATION_FILE).write_text(json.dumps(content))
        with pytest.raises(InputError, match=f"threshold={threshold} and temperature={temperature}.*evaluate it again"):
            registry.load_model(str(files))
