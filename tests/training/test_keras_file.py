import json
import re
import zipfile

import keras
import numpy as np
import pytest

from ocmlflow.errors import InputError
from ocmlflow.training import keras_file


@pytest.fixture
def file(tmp_path):
    """A file with the parts of a Keras file."""
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        for part in keras_file.PARTS:
            archive.writestr(part, part * 100)
    return path


def test_a_whole_file_is_taken(file):
    keras_file.check(file, "model m")


def test_a_missing_file_is_named(file):
    file.unlink()
    with pytest.raises(InputError, match=r"^model m is damaged: .*model\.keras does not exist\. Restore its file"):
        keras_file.check(file, "model m")


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_file_that_is_cut_short_is_named(file, share):
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(InputError, match=r"^model m is damaged: .*model\.keras is cut short or altered"):
        keras_file.check(file, "model m")


def test_an_altered_byte_is_noticed(file):
    content = bytearray(file.read_bytes())
    content[content.index(b"model.weights.h5" * 5)] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"^model m is damaged: model\.weights\.h5 in .* does not match its checksum"):
        keras_file.check(file, "model m")


def test_a_missing_part_is_named(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(InputError, match=r"has no metadata\.json, model\.weights\.h5"):
        keras_file.check(file, "model m")


def rewrite(file, version, config):
    """A Keras file that another version saved, with this config."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": version}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", b"")


@pytest.mark.parametrize(("version", "age"), [("99.1.0", "newer"), ("3.2.0", "older"), ("3.9.9", "older")])
def test_a_file_of_another_keras_names_both_versions(tmp_path, version, age):
    rewrite(tmp_path / "model.keras", version, {"class_name": "Unheard", "module": "keras.layers", "config": {}})
    message = f"model m was saved by Keras {version}, {age} than Keras {re.escape(keras.__version__)} that is installed"
    with pytest.raises(InputError, match=message):
        raise load_error_of(tmp_path / "model.keras")


def test_unsafe_is_said_of_code_alone(tmp_path):
    image = keras.Input((4,))
    keras.Model(image, keras.layers.Lambda(lambda x: x / 2)(image)).save(tmp_path / "model.keras")
    assert "is refused because it is unsafe" in str(load_error_of(tmp_path / "model.keras"))
    rewrite(tmp_path / "own.keras", keras.__version__, {"class_name": "Own", "module": "own", "config": {}})
    assert "it needs more than Keras' own layers" in str(load_error_of(tmp_path / "own.keras"))


def load_error_of(file):
    try:
        keras.saving.load_model(file, compile=False, safe_mode=True)
    except (TypeError, ValueError) as error:
        return keras_file.load_error(file, "model m", error)
    pytest.fail("it loads")


@pytest.mark.filterwarnings("default")  # Keras and numpy on __array__
def test_a_portable_model_is_the_same_and_holds_nothing_that_older_versions_refuse(tmp_path):
    """Keras 3.14 refuses `input_axes` of initializers, 3.12 the options of batch renormalization."""
    image = keras.Input((None, None, 3))
    inner = keras.Sequential([keras.layers.Conv2D(4, 3, padding="same"), keras.layers.BatchNormalization()], name="in")
    model = keras.Model(image, keras.layers.DepthwiseConv2D(1)(inner(image)))
    model.save(tmp_path / "model.keras")
    keras_file.make_portable(tmp_path / "model.keras")
    keras_file.check(tmp_path / "model.keras", "model m")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        config = archive.read("config.json").decode()
    assert "kernel_initializer" in config
    assert not re.search("input_axes|GlorotUniform|renorm", config)
    pixels = np.random.default_rng(0).random((2, 8, 9, 3), np.float32)
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    assert np.array_equal(loaded.predict(pixels, verbose=0), model.predict(pixels, verbose=0))
