"""Checks and packs the masks of the challenge's test chips into the archive to submit.

The format is known from published code of entrants: one flat `<chip>.tif` for each chip of the test catalogue, with one
band of the chip's size, 1 for building and 0 for none.
"""

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ocmlflow.errors import InputError
from ocmlflow.scenes import geotiff


def check(masks: Mapping[str, Path], shapes: Mapping[str, tuple[int, int]]) -> None:
    """Raise InputError, naming the chip, unless `masks` holds a valid mask for each chip of `shapes` and no other.

    `shapes` gives (height, width) of each chip's image.
    """
    missing = sorted(shapes.keys() - masks.keys())
    extra = sorted(masks.keys() - shapes.keys())
    if missing or extra:
        raise InputError(
            f"the submission lacks {len(missing)} chips{_some(missing)} and has {len(extra)} too many{_some(extra)}"
        )
    for chip, path in masks.items():
        _check_mask(chip, path, shapes[chip])


def pack(masks: Mapping[str, Path], archive: Path) -> None:
    """Write the masks as a flat `.tgz`; the same masks give the same bytes."""
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for chip in sorted(masks):
            content = masks[chip].read_bytes()
            entry = tarfile.TarInfo(f"{chip}.tif")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def _check_mask(chip: str, path: Path, shape: tuple[int, int]) -> None:
    with geotiff.open_written(path) as mask:
        actual = f"{mask.count} band(s) of {mask.dtypes[0]}, {mask.height} x {mask.width}"
        expected = f"1 band(s) of uint8, {shape[0]} x {shape[1]}"
        if actual != expected:
            raise InputError(f"mask of chip {chip} is {actual}; the submission wants {expected}")
        values = np.unique(mask.read(1))
    if not set(values.tolist()) <= {0, 1}:
        raise InputError(f"mask of chip {chip} holds {values[:5].tolist()}; the submission wants only 0 and 1")


def _some(names: list[str]) -> str:
    """The first few names in parentheses; nothing if there are none."""
    return f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else ""
