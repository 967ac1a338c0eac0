import keras
import numpy as np
import pytest

from ocmlflow import engine, models
from ocmlflow.errors import InputError

pytest.importorskip("openvino", reason="the extra `openvino` is not installed")


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return models.with_probability(models.build(architecture="unet", encoder="efficientnet-lite0", pretrained=False))


@pytest.mark.parametrize("name", ["auto", "openvino"])
def test_openvino_gives_what_keras_gives_exported_once(model, tmp_path, name, monkeypatch):
    images = np.random.default_rng(1).integers(0, 256, (2, 70, 40, 3), np.uint8)
    expected, plain = engine.predict(model, engine="keras", multiple=32, folder=tmp_path)
    assert plain == "keras"
    for _ in range(2):
        predict, used = engine.predict(model, engine=name, multiple=32, folder=tmp_path)
        assert used == "openvino"
        found = predict(images)
        before = found.copy()
        predict(255 - images)
        np.testing.assert_array_equal(found, before)  # its own memory
        np.testing.assert_allclose(found, expected(images), atol=1e-4)
        monkeypatch.setattr(keras.Model, "export", None)  # the second time it is there already


def test_what_differs_is_refused_or_left(model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(engine, "LIMIT", -1.0)
    with pytest.raises(InputError, match="OpenVINO differs from Keras by"):
        engine.predict(model, engine="openvino", multiple=32, folder=tmp_path)
    assert engine.predict(model, engine="auto", multiple=32, folder=tmp_path)[1] == "keras"
    assert "Keras is used" in caplog.text
    assert not list((tmp_path / "openvino").iterdir())


def test_without_openvino(model, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    assert engine.predict(model, engine="auto", multiple=32, folder=tmp_path)[1] == "keras"
    with pytest.raises(InputError, match=r"pip install -e \"\.\[openvino\]\""):
        engine.predict(model, engine="openvino", multiple=32, folder=tmp_path)
