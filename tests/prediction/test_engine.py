import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest

from ocmlflow.errors import InputError
from ocmlflow.prediction import engine
from ocmlflow.prediction.engine import Ensemble, Member
from ocmlflow.training import networks

pytest.importorskip("openvino", reason="the extra `openvino` is not installed")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A model's file."""
    keras.utils.set_random_seed(0)
    network = networks.build(architecture="unet", encoder="efficientnet-lite0", pretrained=False)
    path = tmp_path_factory.mktemp("model") / "model.keras"
    with warnings.catch_warnings():  # of Keras, on numpy
        warnings.simplefilter("ignore", DeprecationWarning)
        networks.for_any_size(networks.with_probability(network)).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the exported model lies, exported once for all tests."""
    return tmp_path_factory.mktemp("work")


def member(file, folder, name, **changed) -> Member:
    how = {"engine": name, "multiple": 32, "temperature": 1.0, "folder": folder, **changed}
    return engine.prepare_member(lambda: file, "m-1", **how)


def network(*members, tta="none") -> Ensemble:
    return Ensemble(members, tta)


def nothing():
    raise AssertionError("the model is fetched again")


@pytest.mark.parametrize("name", ["auto", "openvino"])
def test_openvino_gives_what_keras_gives_exported_once(file, folder, name):
    images = np.random.default_rng(1).integers(0, 256, (2, 70, 40, 3), np.uint8)
    plain = member(file, folder, "keras")
    assert plain.engine == "keras"
    fast = member(file, folder, name)
    assert fast.engine == "openvino"
    how = {"engine": name, "multiple": 32, "temperature": 1.0, "folder": folder}
    assert engine.prepare_member(nothing, "m-1", **how) == fast  # the second time it is there already
    predict = network(fast)()
    assert network(fast)() is predict
    found = predict(images)
    before = found.copy()
    predict(255 - images)
    np.testing.assert_array_equal(found, before)  # its own memory
    np.testing.assert_allclose(found, network(plain)()(images), atol=1e-4)


@pytest.mark.parametrize("name", ["model.bin", "model.xml", engine.DIGESTS])
@pytest.mark.parametrize("change", ["a byte", "half", "lost"])
def test_a_damaged_export_is_made_again(file, folder, monkeypatch, caplog, name, change):
    fast = member(file, folder, "openvino")
    whole = {path.name: path.read_bytes() for path in fast.file.parent.iterdir()}
    path, content = fast.file.with_name(name), whole[name]
    if change == "lost":
        path.unlink()
    else:
        middle = len(content) // 2
        path.write_bytes(
            content[:middle] + (bytes([content[middle] ^ 1]) + content[middle + 1 :]) * (change == "a byte")
        )
    exports = []

    def export(_, part, __) -> str:  # the exporter takes half a minute
        exports.append(part)
        for other in ("model.bin", "model.xml"):
            (part / other).write_bytes(whole[other])
        return ""

    monkeypatch.setattr(engine, "_export_in_subprocess", export)
    assert member(file, folder, "openvino") == fast
    assert f"{fast.file.parent} is damaged" in caplog.text
    assert {path.name: path.read_bytes() for path in fast.file.parent.iterdir()} == whole
    assert member(file, folder, "openvino") == fast
    assert len(exports) == 1


def test_a_damaged_copy_of_the_keras_file_is_made_again(file, folder):
    plain = member(file, folder, "keras")
    plain.file.write_bytes(file.read_bytes()[:-100])
    assert member(file, folder, "keras") == plain
    assert plain.file.read_bytes() == file.read_bytes()


def test_the_number_of_threads_changes_nothing(file, folder, tmp_path):
    """So that workers, which have some of the cores, give what one process gives."""
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from ocmlflow import executors\n"
        "from ocmlflow.prediction import engine\n"
        "executors._initialize_worker(int(sys.argv[1]))\n"
        "member = engine.Member('openvino', Path(sys.argv[2]), 32, 1.0)\n"
        "images = np.random.default_rng(1).integers(0, 256, (1, 320, 288, 3), np.uint8)\n"
        "np.save(sys.argv[3], engine.Ensemble((member,), 'none')()(images))\n"
    )
    found = []
    for threads in (1, 2):
        out = tmp_path / f"{threads}.npy"
        words = [str(threads), str(member(file, folder, "openvino").file), str(out)]
        subprocess.run([sys.executable, "-c", code, *words], check=True)
        found.append(np.load(out))
    np.testing.assert_array_equal(*found)


def test_members_are_calibrated_and_averaged(file, folder):
    images = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), np.uint8)
    cold, hot = member(file, folder, "openvino"), member(file, folder, "openvino", temperature=2.0)
    one, other = network(cold)()(images), network(hot)()(images)
    odds = (one[..., 0] / (1 - one[..., 0])) ** 0.5
    np.testing.assert_allclose(other[..., 0], odds / (1 + odds), atol=1e-4)
    np.testing.assert_allclose(other[..., 1], one[..., 1], atol=1e-6)
    np.testing.assert_allclose(network(cold, hot)()(images), (one + other) / 2, atol=1e-6)


def test_what_differs_is_refused_or_left(file, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "MAX_DIFFERENCE", -1.0)  # nothing is near enough
    with pytest.raises(InputError, match=r"OpenVINO differs from Keras by \d\.\de-\d+ .* use engine=keras"):
        member(file, tmp_path, "openvino")
    assert not list((tmp_path / "openvino").iterdir())


def test_what_cannot_be_exported_is_refused_or_left(tmp_path, caplog):
    (tmp_path / "model.keras").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"the model cannot be exported to OpenVINO \(.+\): use engine=keras"):
        member(tmp_path / "model.keras", tmp_path, "openvino")
    assert member(tmp_path / "model.keras", tmp_path, "auto").engine == "keras"
    assert "Keras is used" in caplog.text
    assert not list((tmp_path / "openvino").iterdir())


def test_without_openvino(file, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    assert member(file, tmp_path, "auto").engine == "keras"
    with pytest.raises(InputError, match=r"pip install -e \"\.\[openvino\]\""):
        member(file, tmp_path, "openvino")
