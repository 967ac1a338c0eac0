"""Writes and reads the chips of one scene as a Zarr v3 store of few files.

The store is a group with the arrays `image` (chip, row, col, band) uint8, `label` (chip, row, col) uint8, coded as in
`labels`, and `targets` (chip, row, col) uint8, coded as in `targets`. A chunk is one chip. A shard is a block of 8 x 8
chips and one file. Stores of earlier versions have no `targets`.

zarr-python creates the arrays. Shards are encoded and decoded here, because zarr-python takes three times as long to
write them and five times to read a chip. That relies on the layout which `_check_layout` compares with the declared
one.
"""

import errno
import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import google_crc32c
import numpy as np
import zarr
from numcodecs import zstd
from zarr.codecs import ZstdCodec

from ocmlflow.chips import labels
from ocmlflow.errors import InputError
from ocmlflow.storage.range_cache import Fetch


@dataclass(frozen=True)
class RemoteFolder:
    """A folder that is not on this machine."""

    address: str
    """Where it is, for messages."""
    fetch: Fetch
    """Reads parts of its files."""
    cache: Path
    """Folder on this machine that keeps copies of what was read."""


Folder: TypeAlias = Path | RemoteFolder

BLOCK = 8
"""Chips along each side of a block, which is the ground of one shard."""
CHIPS_PER_SHARD = BLOCK * BLOCK
INDEX_BYTES = 16 * CHIPS_PER_SHARD + 4
"""Size of the index at the end of a shard: offset and length of each chip, and a checksum."""
MISSING = np.iinfo(np.uint64).max
"""Offset and length, in that index, of a chip that is not stored."""
ZSTD_LEVEL = -3
"""Drone imagery shrinks by a fifth at best (level 1); this level saves an eighth in half of the time."""


class Chip(NamedTuple):
    """A square of ground: what a network sees, and what it should find there."""

    image: np.ndarray
    """(height, width, 3) uint8 RGB."""
    label: np.ndarray
    """(height, width) uint8, coded as in `labels`."""
    targets: np.ndarray | None = None
    """(height, width) uint8, coded as in `targets`; None in chips of an earlier version."""


def create(store: Path, *, blocks: int, size: int) -> None:
    """Create an empty store for a number of blocks of chips of size x size pixels."""
    group = zarr.open_group(store, mode="w")
    _create_array(group, "image", blocks, (size, size, 3), fill_value=0)
    _create_array(group, "label", blocks, (size, size), fill_value=labels.INVALID)
    _create_array(group, "targets", blocks, (size, size), fill_value=0)


def encode(chip: np.ndarray) -> bytes:
    """One chip of an array, uint8, compressed as it is stored."""
    return bytes(zstd.compress(np.ascontiguousarray(chip), ZSTD_LEVEL))


def write(store: Path, name: str, block: int, chips: dict[int, bytes]) -> None:
    """Write the shard of one block of the array `name`, from encoded chips by their number in the block (0 to 63).

    Follows the sharding codec of Zarr v3 (https://zarr-specs.readthedocs.io, version 1.0). A reader finds the whole
    shard or none. Raises InputError where the array declares another layout.
    """
    chip_shape = _check_layout((store / name / "zarr.json").read_bytes(), f"{store.name}/{name}")
    index = np.full((CHIPS_PER_SHARD, 2), MISSING, "<u8")
    offset = 0
    for number in sorted(chips):
        index[number] = offset, len(chips[number])
        offset += len(chips[number])
    index_bytes = index.tobytes()
    shard = store / name / _shard_name(block, chip_shape)
    part = shard.with_name(f"{shard.name}.part")
    with part.open("wb") as file:
        file.writelines(chips[number] for number in sorted(chips))
        file.write(index_bytes + google_crc32c.value(index_bytes).to_bytes(4, "little"))
    part.replace(shard)


def read(folder: Folder, name: str, position: int) -> Chip:
    """The chip at a position of the store `name`, as read-only arrays; InputError where the store is damaged."""
    image = _read_chunk(folder, f"{name}/image", position)
    label = _read_chunk(folder, f"{name}/label", position)
    try:
        read_bytes(folder, f"{name}/targets/zarr.json")
    except FileNotFoundError:
        return Chip(image, label)
    return Chip(image, label, _read_chunk(folder, f"{name}/targets", position))


def shard_path(name: str, array: str, position: int) -> str:
    """Path of the file with a chip of the array `image`, `label` or `targets` of the store `name`."""
    dimensions = 3 if array == "image" else 2
    return f"{name}/{array}/{_shard_name(position // CHIPS_PER_SHARD, (1,) * dimensions)}"


def damaged(folder: Folder, file: str, reason: str) -> InputError:
    """The error to raise for a file of a chip set that cannot be what was written."""
    if isinstance(folder, Path):
        return InputError(f"{folder / file} is damaged: {reason}; prepare the chips again")
    # `prepare` compares the hashes of local files, but only the sizes of remote ones: it would take these for whole.
    return InputError(
        f"{folder.address}/{file} is damaged: {reason}; delete its copy in {folder.cache} and try again, or, if that "
        "does not help, delete the `prepare` run it belongs to and prepare the chips again"
    )


def read_bytes(folder: Folder, name: str, first: int = 0, count: int | None = None) -> bytes:
    """Bytes of a file of the folder, from `first` (from the end if negative): `count` of them, or all the rest."""
    if isinstance(folder, RemoteFolder):
        return folder.fetch(name, first, count)
    with (folder / name).open("rb") as file:
        file.seek(first, os.SEEK_END if first < 0 else os.SEEK_SET)
        return file.read(-1 if count is None else count)


def _create_array(group: zarr.Group, name: str, blocks: int, chip_shape: tuple[int, ...], *, fill_value: int) -> None:
    group.create_array(
        name,
        shape=(blocks * CHIPS_PER_SHARD, *chip_shape),
        chunks=(1, *chip_shape),
        shards=(CHIPS_PER_SHARD, *chip_shape),
        dtype="uint8",
        fill_value=fill_value,
        compressors=ZstdCodec(level=ZSTD_LEVEL),
        chunk_key_encoding={"name": "default", "separator": "."},  # one folder per array, not four
    )


@functools.lru_cache(maxsize=1024)
def _check_layout(metadata: bytes, array: str) -> tuple[int, ...]:
    """Shape of a chip of an array, from its zarr.json; InputError where its layout is not what this module relies on.

    The declared zstd level and checksum may differ, for they do not change how a chunk is read.
    """
    declared = json.loads(metadata)
    chip_shape = tuple(declared["shape"][1:])
    layout = _declared_layout(declared)
    for fact, expected in _expected_layout(chip_shape).items():
        if layout[fact] != expected:
            raise InputError(
                f"array {array} declares {fact} {json.dumps(layout[fact])}, but chips are read and written with "
                f"{json.dumps(expected)} alone: prepare the chips again"
            )
    return chip_shape


def _expected_layout(chip_shape: tuple[int, ...]) -> dict[str, Any]:
    """The layout that this module reads and writes; keys are words for a message."""
    return {
        "Zarr format": 3,
        "data type": "uint8",
        "chunk grid": {"name": "regular", "configuration": {"chunk_shape": [CHIPS_PER_SHARD, *chip_shape]}},
        "chunk key encoding": {"name": "default", "configuration": {"separator": "."}},
        "storage transformers": [],
        "codecs": ["sharding_indexed"],
        "chunk shape in a shard": [1, *chip_shape],
        "codecs of a chunk": ["bytes", "zstd"],
        "codecs of the shard index": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "location of the shard index": "end",
    }


def _declared_layout(metadata: dict[str, Any]) -> dict[str, Any]:
    """The same facts as `_expected_layout`, as a zarr.json declares them."""
    codecs = metadata["codecs"]
    sharding = codecs[0].get("configuration", {})
    return {
        "Zarr format": metadata["zarr_format"],
        "data type": metadata["data_type"],
        "chunk grid": metadata["chunk_grid"],
        "chunk key encoding": metadata["chunk_key_encoding"],
        "storage transformers": metadata.get("storage_transformers", []),
        "codecs": [codec["name"] for codec in codecs],
        "chunk shape in a shard": sharding.get("chunk_shape"),
        "codecs of a chunk": [codec["name"] for codec in sharding.get("codecs", [])],
        "codecs of the shard index": sharding.get("index_codecs"),
        "location of the shard index": sharding.get("index_location", "end"),
    }


def _read_chunk(folder: Folder, array: str, position: int) -> np.ndarray:
    """One chip of an array, from its zarr.json and two parts of its shard."""
    chip_shape = _chip_shape(folder, array)
    block, number = divmod(position, CHIPS_PER_SHARD)
    shard = f"{array}/{_shard_name(block, chip_shape)}"
    offset, length = _chunk_place(folder, shard, number)
    chip = np.empty(chip_shape, np.uint8)
    if length > 2 * chip.nbytes + INDEX_BYTES:
        raise damaged(folder, shard, f"chip {number} has {length} bytes, more than twice its pixels")
    content = read_bytes(folder, shard, offset, length)
    try:
        zstd.decompress(content, chip)
    except (RuntimeError, ValueError) as error:  # what numcodecs raises for a damaged frame
        raise damaged(folder, shard, f"chip {number} cannot be decompressed ({error})") from error
    chip.flags.writeable = False
    return chip


def _chip_shape(folder: Folder, array: str) -> tuple[int, ...]:
    """Shape of a chip of the array, after checks of its zarr.json."""
    metadata = f"{array}/zarr.json"
    try:
        return _check_layout(read_bytes(folder, metadata), array)
    except FileNotFoundError as error:
        raise damaged(folder, metadata, "there is no such file") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise damaged(folder, metadata, "it is not the metadata of a Zarr array") from error


def _chunk_place(folder: Folder, shard: str, number: int) -> tuple[int, int]:
    """Offset and length, in bytes, of a chip in its shard."""
    try:
        index = read_bytes(folder, shard, -INDEX_BYTES, INDEX_BYTES)
    except FileNotFoundError as error:
        raise damaged(folder, shard, "there is no such file") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # where the file is shorter than the index
            raise
        index = b""
    if len(index) < INDEX_BYTES:
        raise damaged(folder, shard, "it is cut short")
    if google_crc32c.value(index[:-4]) != int.from_bytes(index[-4:], "little"):
        raise damaged(folder, shard, "its index does not match its checksum")
    offset, length = (int(value) for value in np.frombuffer(index, "<u8", 2, 16 * number))
    if length == MISSING:
        raise damaged(folder, shard, f"it holds no chip {number}, which the chip index names")
    return offset, length


def _shard_name(block: int, chip_shape: tuple[int, ...]) -> str:
    """File name of the shard of a block, such as `c.7.0.0.0`: the chunk key of the block along all dimensions."""
    return ".".join(["c", str(block), *("0" for _ in chip_shape)])
