"""The logged model, as MLflow's users call it."""

import json

import mlflow
import numpy as np
import pytest
from conftest import one_layer, own_store
from mlflow.exceptions import MlflowException

from ocmlflow.tracking import registry, runs
from ocmlflow.tracking.model_facts import ModelFacts
from ocmlflow.training import networks

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's libraries warn of one another


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A pyfunc of a registered model that takes what is bright for building."""
    with own_store(tmp_path_factory.mktemp("mlflow"), "bright"):
        registry.register("bright")
        with runs.run("train", {}) as trained:
            facts = ModelFacts(gsd=0.1, multiple=32, run=trained.info.run_id, chips="none", trained_on=())
            runs.log_model(networks.for_any_size(one_layer(10, -5)), facts, name="bright")
        yield mlflow.pyfunc.load_model("models:/bright/1")


def test_bytes_and_fractions_are_served_alike(logged):
    """As JSON, which the scoring server reads by the signature, and as float32 arrays."""
    from mlflow.pyfunc.scoring_server import infer_and_parse_data  # warns when it is imported

    inputs = logged.metadata.signature.inputs
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 30, 3), np.uint8)
    expected = one_layer(10, -5).predict_on_batch(images)
    for numbers in (images, images / 255, (images / 255).round(4)):
        served = infer_and_parse_data({"inputs": json.loads(json.dumps(numbers.tolist()))}, inputs)
        np.testing.assert_allclose(logged.predict(served), expected, atol=1e-5)
        np.testing.assert_allclose(logged.predict(numbers.astype("float32")), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (np.zeros((1, 40, 30, 3), np.uint8), "dtype of input uint8 does not match expected dtype float32"),
        (np.zeros((1, 40, 30, 3), np.uint16), "dtype of input uint16 does not match"),
        (np.zeros((40, 30, 3), np.float32), r"Shape of input \(40, 30, 3\) does not match"),
    ],
)
def test_other_arrays_are_refused(logged, images, reason):
    with pytest.raises(MlflowException, match=reason):
        logged.predict(images)
