import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from ocmlflow.chips import labels, zarr_store


def chip(seed: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (size, size, 3), np.uint8), draw.choice(np.array([0, 1, 255], np.uint8), (size, size))


def write(folder, block: int, numbers) -> dict[int, tuple]:
    chips = {number: chip(number) for number in numbers}
    zarr_store.write(folder, "image", block, {n: zarr_store.encode(image) for n, (image, _) in chips.items()})
    zarr_store.write(folder, "label", block, {n: zarr_store.encode(label) for n, (_, label) in chips.items()})
    return chips


@given(st.sets(st.integers(0, zarr_store.CHIPS_PER_SHARD - 1), max_size=8), st.integers(0, 2))
def test_zarr_reads_what_was_written_and_nothing_elsewhere(tmp_path_factory, numbers, block):
    folder = tmp_path_factory.mktemp("store") / "a.zarr"
    zarr_store.create(folder, blocks=3, size=32, with_parts=False)
    chips = write(folder, block, numbers)
    group = zarr.open_group(folder, mode="r")
    for position in range(3 * zarr_store.CHIPS_PER_SHARD):
        number = position - block * zarr_store.CHIPS_PER_SHARD
        image, label = chips.get(number, (np.zeros((32, 32, 3)), np.full((32, 32), labels.INVALID)))
        np.testing.assert_array_equal(group["image"][position], image)
        np.testing.assert_array_equal(group["label"][position], label)
        if number in chips:
            found = zarr_store.read(folder.parent, folder.name, position)
            np.testing.assert_array_equal(found.image, image)
            np.testing.assert_array_equal(found.label, label)


def test_a_shard_is_what_zarr_itself_would_write(tmp_path):
    ours, theirs = tmp_path / "ours.zarr", tmp_path / "theirs.zarr"
    for folder in (ours, theirs):
        zarr_store.create(folder, blocks=1, size=32, with_parts=True)
    chips = write(ours, 0, range(zarr_store.CHIPS_PER_SHARD))
    zarr.open_group(theirs, mode="r+")["image"][:] = np.stack([image for image, _ in chips.values()])
    shards = [next((folder / "image").glob("c.*")) for folder in (ours, theirs)]
    assert shards[0].name == shards[1].name
    one, other = (zarr.open_group(folder, mode="r")["image"][:] for folder in (ours, theirs))
    np.testing.assert_array_equal(one, other)
    assert abs(shards[0].stat().st_size - shards[1].stat().st_size) < 64 * zarr_store.CHIPS_PER_SHARD


def test_a_block_is_one_file_an_array(tmp_path):
    zarr_store.create(tmp_path / "a.zarr", blocks=2, size=32, with_parts=False)
    write(tmp_path / "a.zarr", 0, range(64))
    write(tmp_path / "a.zarr", 1, range(3))
    files = [path for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()]
    assert len(files) == 2 * 2 + 3  # shards, and the metadata of the group and of both arrays


def test_a_broken_shard_is_an_error(tmp_path):
    zarr_store.create(tmp_path / "a.zarr", blocks=1, size=32, with_parts=False)
    write(tmp_path / "a.zarr", 0, range(4))
    shard = next((tmp_path / "a.zarr" / "image").glob("c.*"))
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1  # in the table of offsets, which has a checksum
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(tmp_path / "a.zarr", mode="r")["image"][0]
