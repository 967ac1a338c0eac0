import zipfile

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
