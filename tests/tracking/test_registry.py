"""Damaged files of registered models are named as damaged, not called unsafe."""

import re
import zipfile
from argparse import Namespace
from pathlib import Path

import mlflow
import pytest
from conftest import one_layer, own_store

from ocmlflow.errors import InputError
from ocmlflow.pipeline import option_values
from ocmlflow.storage import hrefs
from ocmlflow.tracking import registry, runs
from ocmlflow.tracking.model_facts import ChipSplit, ModelFacts

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's libraries warn of one another
URI = "models:/towns/1"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with one version of the model `towns`, and the local folder of its files."""
    with own_store(tmp_path_factory.mktemp("mlflow"), "towns"):
        registry.register("towns")
        with runs.run("train", {}) as trained:
            run_id = trained.info.run_id
            facts = ModelFacts(gsd=0.1, multiple=1, run=run_id, chips="c", trained_on=(ChipSplit("c", None),))
            runs.log_model(one_layer(4, -2), facts, name="towns")
        folder = hrefs.local_path(mlflow.MlflowClient().get_model_version_download_uri("towns", "1"))
        if not folder.exists():  # an address of MLflow's, of the logged model
            model_id = mlflow.models.get_model_info(URI).model_id
            folder = hrefs.local_path(mlflow.get_logged_model(model_id).artifact_location)
        yield Namespace(folder=folder)


@pytest.fixture
def altered(store):
    """A function that changes a file of the model, until the end of the test; None deletes it."""
    before: dict[Path, bytes] = {}

    def alter(name: str, change) -> None:
        path = store.folder / name
        before[path] = path.read_bytes()
        path.unlink()
        if change:
            path.write_bytes(change(before[path]))

    yield alter
    for path, content in before.items():
        path.write_bytes(content)


def flip_weights(content: bytes) -> bytes:
    position = content.index(b"\x89HDF") + 200
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "cannot fetch model models:/towns/1|model models:/towns/1 is damaged: .* does not exist"),
        (lambda content: content[: len(content) // 2], "model models:/towns/1 is damaged: .* is cut short or altered"),
        (lambda content: b"", "model models:/towns/1 is damaged: .* is cut short or altered"),
        (flip_weights, r"model models:/towns/1 is damaged: model\.weights\.h5 in .* does not match its checksum"),
    ],
)
def test_a_damaged_file_of_the_network_is_named(altered, tmp_path, change, message):
    model = registry.load_model(URI)
    altered("data/model.keras", change)
    with pytest.raises(InputError, match=message):
        _ = model.keras
    with pytest.raises(InputError, match=message):
        registry.download_keras_file(model, tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"flavors: 3", b"- flavors", b"flavors: {keras: 3}\nmodel_uuid: m", b"\xff\xfe\x00", b"a: b: c"],
)
def test_a_damaged_mlmodel_is_named(altered, content):
    altered("MLmodel", lambda _: content)
    with pytest.raises(InputError, match=r"the file MLmodel of model models:/towns/1 is damaged \(.*restore it from a"):
        registry.load_model(URI)


def test_a_damaged_evaluation_is_named(store):
    path = store.folder / "evaluation.json"
    path.write_text("{")
    with pytest.raises(
        InputError, match=r"evaluation\.json of model models:/towns/1 is damaged \(.*evaluate the model"
    ):
        registry.load_model(URI)
    path.unlink()


def test_a_registered_model_holds_no_initializers(store):
    with zipfile.ZipFile(store.folder / "data" / "model.keras") as archive:
        assert not re.search("input_axes|GlorotUniform", archive.read("config.json").decode())


@pytest.mark.parametrize("name", ["Gebäude & Dächer (2)", "a.b-c_d", "two words", "x" * 250, "[a]*;=!<>|~$"])
def test_names_that_options_take_are_found_again(store, name):
    assert option_values.model_name(name) == name
    registry.register(name)
    run_id = mlflow.MlflowClient().get_model_version("towns", "1").run_id
    version = mlflow.MlflowClient().create_model_version(name, store.folder.as_uri(), run_id)
    assert registry.find_version(run_id, name) == str(version.version)
    mlflow.MlflowClient().set_registered_model_alias(name, "candidate", version.version)
    assert registry.load_model(f"models:/{name}@candidate").name == name
