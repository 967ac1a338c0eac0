import os
import tarfile
import warnings

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from ocmlflow.errors import InputError
from ocmlflow.prediction import submission

SHAPES = {"0a2b79": (8, 6), "20ce02": (8, 6)}


def write(path, values: np.ndarray):
    bands = values if values.ndim == 3 else values[np.newaxis]
    count, height, width = bands.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as file:
            file.write(bands)
    return path


@pytest.fixture
def masks(tmp_path):
    mask = np.eye(8, 6, dtype=np.uint8)
    return {chip: write(tmp_path / f"{chip}.tif", mask) for chip in SHAPES}


def test_right_masks_pass(masks, tmp_path):
    write(tmp_path / "20ce02.tif", np.zeros((8, 6), np.uint8))  # a chip without buildings
    submission.check(masks, SHAPES)


def test_missing_and_extra_chips_are_named(masks):
    extra = masks.pop("0a2b79")
    with pytest.raises(InputError, match=r"lacks 1 chips \(0a2b79\) and has 0 too many$"):
        submission.check(masks, SHAPES)
    with pytest.raises(InputError, match=r"lacks 0 chips and has 1 too many \(ffffff\)"):
        submission.check({**masks, "0a2b79": extra, "ffffff": extra}, SHAPES)
    with pytest.raises(InputError, match=r"lacks 5 chips \(0, 1, 2, …\)"):
        submission.check({}, {str(n): (1, 1) for n in range(5)})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((6, 8), np.uint8), "6 x 8.*wants 1 band.* of uint8, 8 x 6"),
        (np.zeros((8, 6), np.int16), r"1 band\(s\) of int16"),
        (np.zeros((3, 8, 6), np.uint8), r"3 band\(s\) of uint8"),
        (np.full((8, 6), 255, np.uint8), r"holds \[255\]"),
        (np.eye(8, 6, dtype=np.uint8) * 2, r"holds \[0, 2\]"),
    ],
)
def test_a_wrong_mask_is_refused_with_its_chip(masks, tmp_path, values, message):
    write(tmp_path / "20ce02.tif", values)
    with pytest.raises(InputError, match=f"mask of chip 20ce02 .*{message}"):
        submission.check(masks, SHAPES)


def test_the_archive_is_flat_and_the_same_for_the_same_masks(masks, tmp_path):
    first, second = tmp_path / "first.tgz", tmp_path / "second.tgz"
    submission.pack(masks, first)
    for path in masks.values():
        os.utime(path, (0, 0))
    submission.pack(dict(reversed(masks.items())), second)
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        assert archive.getnames() == ["0a2b79.tif", "20ce02.tif"]
        for chip, path in masks.items():
            assert archive.extractfile(f"{chip}.tif").read() == path.read_bytes()
