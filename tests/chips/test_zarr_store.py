import shutil

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec

from ocmlflow.chips import labels, zarr_store
from ocmlflow.chips.zarr_store import Chip
from ocmlflow.errors import InputError


def chip(seed: int, size: int = 32) -> Chip:
    draw = np.random.default_rng(seed)
    image, targets = draw.integers(0, 256, (size, size, 3), np.uint8), draw.integers(0, 256, (size, size), np.uint8)
    return Chip(image, draw.choice(np.array([0, 1, 255], np.uint8), (size, size)), targets)


def write(folder, block: int, numbers) -> dict[int, Chip]:
    chips = {number: chip(number) for number in numbers}
    for name in Chip._fields:
        zarr_store.write(folder, name, block, {n: zarr_store.encode(getattr(one, name)) for n, one in chips.items()})
    return chips


@given(st.sets(st.integers(0, zarr_store.CHIPS_PER_SHARD - 1), max_size=8), st.integers(0, 2))
def test_zarr_reads_what_was_written_and_nothing_elsewhere(tmp_path_factory, numbers, block):
    folder = tmp_path_factory.mktemp("store") / "a.zarr"
    zarr_store.create(folder, blocks=3, size=32)
    chips = write(folder, block, numbers)
    group = zarr.open_group(folder, mode="r")
    for position in range(3 * zarr_store.CHIPS_PER_SHARD):
        number = position - block * zarr_store.CHIPS_PER_SHARD
        nothing = Chip(np.zeros((32, 32, 3)), np.full((32, 32), labels.INVALID), np.zeros((32, 32)))
        expected = chips.get(number, nothing)
        for name, values in expected._asdict().items():
            np.testing.assert_array_equal(group[name][position], values)
        if number in chips:
            found = zarr_store.read(folder.parent, folder.name, position)
            for values, stored in zip(expected, found, strict=True):
                np.testing.assert_array_equal(stored, values)


def test_a_store_of_an_earlier_version_has_no_targets(tmp_path):
    zarr_store.create(tmp_path / "a.zarr", blocks=1, size=32)
    chips = write(tmp_path / "a.zarr", 0, [0])
    shutil.rmtree(tmp_path / "a.zarr" / "targets")
    found = zarr_store.read(tmp_path, "a.zarr", 0)
    np.testing.assert_array_equal(found.label, chips[0].label)
    assert found.targets is None


def test_a_shard_is_what_zarr_itself_would_write(tmp_path):
    ours, theirs = tmp_path / "ours.zarr", tmp_path / "theirs.zarr"
    for folder in (ours, theirs):
        zarr_store.create(folder, blocks=1, size=32)
    chips = write(ours, 0, range(zarr_store.CHIPS_PER_SHARD))
    zarr.open_group(theirs, mode="r+")["image"][:] = np.stack([one.image for one in chips.values()])
    shards = [next((folder / "image").glob("c.*")) for folder in (ours, theirs)]
    assert shards[0].name == shards[1].name
    one, other = (zarr.open_group(folder, mode="r")["image"][:] for folder in (ours, theirs))
    np.testing.assert_array_equal(one, other)
    assert abs(shards[0].stat().st_size - shards[1].stat().st_size) < 64 * zarr_store.CHIPS_PER_SHARD


def test_a_block_is_one_file_an_array(tmp_path):
    zarr_store.create(tmp_path / "a.zarr", blocks=2, size=32)
    write(tmp_path / "a.zarr", 0, range(64))
    write(tmp_path / "a.zarr", 1, range(3))
    files = [path for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()]
    assert len(files) == 3 * 2 + 4  # shards, and the metadata of the group and of its arrays


def test_a_broken_shard_is_an_error(tmp_path):
    zarr_store.create(tmp_path / "a.zarr", blocks=1, size=32)
    write(tmp_path / "a.zarr", 0, range(4))
    shard = next((tmp_path / "a.zarr" / "image").glob("c.*"))
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1  # in the table of offsets, which has a checksum
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(tmp_path / "a.zarr", mode="r")["image"][0]
    with pytest.raises(InputError, match=r"a\.zarr/image/c\.0\.0\.0\.0 is damaged"):
        zarr_store.read(tmp_path, "a.zarr", 0)


ARRAY = {
    "shape": (128, 32, 32, 3),
    "chunks": (1, 32, 32, 3),
    "shards": (64, 32, 32, 3),
    "dtype": "uint8",
    "compressors": ZstdCodec(level=-3),
    "chunk_key_encoding": {"name": "default", "separator": "."},
}
"""How zarr is told to make an array of images like those of a store."""


def sharding(**codecs) -> dict:
    """An array whose shards are the codec itself, by which zarr lets all of it be chosen."""
    codec = ShardingCodec(chunk_shape=(1, 32, 32, 3), codecs=[BytesCodec(), ZstdCodec()], **codecs)
    return {"chunks": (64, 32, 32, 3), "shards": None, "serializer": codec, "compressors": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "uint16"}, r'image declares data type "uint16", but .* with "uint8" alone'),
        ({"shards": (32, 32, 32, 3)}, r"chunk grid .*\[32, 32, 32, 3\].*\[64, 32, 32, 3\]"),
        ({"shards": None}, "chunk grid"),
        ({"shards": None, "chunks": (64, 32, 32, 3)}, r'codecs \["bytes", "zstd"\], .* \["sharding_indexed"\]'),
        ({"chunks": (1, 16, 16, 3)}, "chunk shape in a shard"),
        ({"chunk_key_encoding": {"name": "default", "separator": "/"}}, "chunk key encoding"),
        ({"compressors": None}, r'codecs of a chunk \["bytes"\]'),
        ({"compressors": GzipCodec()}, "codecs of a chunk"),
        (sharding(index_location="start"), 'location of the shard index "start"'),
        (sharding(index_codecs=[BytesCodec(endian="big"), Crc32cCodec()]), "codecs of the shard index .*big"),
        (sharding(index_codecs=[BytesCodec()]), "codecs of the shard index"),
    ],
)
def test_arrays_of_another_layout_are_neither_written_nor_read(tmp_path, change, message):
    store = tmp_path / "a.zarr"
    zarr.create_array(store / "image", **{**ARRAY, **change}, fill_value=0)
    with pytest.raises(InputError, match=message):
        zarr_store.write(store, "image", 0, {})
    with pytest.raises(InputError, match=message):
        zarr_store.read(tmp_path, "a.zarr", 0)


@pytest.mark.parametrize("change", [{}, sharding(), {"compressors": ZstdCodec(level=19, checksum=True)}])
def test_layouts_that_zarr_says_in_other_words_are_read(tmp_path, change):
    image, label, targets = chip(0)
    zarr_store.create(tmp_path / "a.zarr", blocks=2, size=32)
    array = zarr.create_array(tmp_path / "a.zarr" / "image", **{**ARRAY, **change}, fill_value=0, overwrite=True)
    array[70] = image
    zarr_store.write(tmp_path / "a.zarr", "label", 1, {6: zarr_store.encode(label)})
    zarr_store.write(tmp_path / "a.zarr", "targets", 1, {6: zarr_store.encode(targets)})
    found = zarr_store.read(tmp_path, "a.zarr", 70)
    np.testing.assert_array_equal(found.image, image)
    np.testing.assert_array_equal(found.label, label)


def test_a_chip_that_is_not_stored_is_an_error(tmp_path):
    zarr_store.create(tmp_path / "a.zarr", blocks=1, size=32)
    write(tmp_path / "a.zarr", 0, [3])
    with pytest.raises(InputError, match=r"a\.zarr/image/c\.0\.0\.0\.0 is damaged: it holds no chip 2"):
        zarr_store.read(tmp_path, "a.zarr", 2)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("image/c.0.0.0.0", lambda content: content[:500], r"image/c\.0\.0\.0\.0 is damaged: it is cut short"),
        ("image/c.0.0.0.0", None, r"image/c\.0\.0\.0\.0 is damaged: there is no such file"),
        (
            "image/c.0.0.0.0",
            lambda content: b"no zstd" + content[7:],
            r"image/c\.0\.0\.0\.0 is damaged: chip 0 cannot be decompressed",
        ),
        # A frame that says it holds 3.9 GB: no memory is taken for it.
        (
            "label/c.0.0.0",
            lambda content: content[:4] + b"\xa0" + b"\xe8" * 4 + content[9:],
            r"label/c\.0\.0\.0 is damaged",
        ),
        ("label/zarr.json", None, r"label/zarr\.json is damaged: there is no such file"),
        ("label/zarr.json", lambda content: content[:50], r"label/zarr\.json is damaged: it is not the metadata"),
        ("label/zarr.json", lambda _: b"[]", r"label/zarr\.json is damaged: it is not the metadata"),
        ("label/zarr.json", lambda _: b'{"shape": 3, "codecs": []}', r"label/zarr\.json is damaged"),
    ],
)
def test_a_damaged_file_of_a_store_is_named(tmp_path, file, change, message):
    zarr_store.create(tmp_path / "a.zarr", blocks=1, size=32)
    write(tmp_path / "a.zarr", 0, range(4))
    path = tmp_path / "a.zarr" / file
    if change:
        path.write_bytes(change(path.read_bytes()))
    else:
        path.unlink()
    with pytest.raises(InputError, match=rf"a\.zarr/{message}.*; prepare the chips again"):
        zarr_store.read(tmp_path, "a.zarr", 0)
