"""Masks of the challenge's test chips, to the archive that is handed in.

What the challenge took is known from the code of those who scored: one flat `<chip>.tif` for each chip of the test
catalogue, one band of the chip's size, 1 building and 0 not.
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
    """Raise InputError, naming the chip, unless `masks` holds a right mask for each chip of `shapes` and no other.

    `shapes` gives (height, width) of each chip's image.
    """
    missing, extra = sorted(shapes.keys() - masks.keys()), sorted(masks.keys() - shapes.keys())
    if missing or extra:
        raise InputError(
            f"the submission lacks {len(missing)} chips{_some(missing)} and has {len(extra)} too many{_some(extra)}"
        )
    for chip, path in masks.items():
        with geotiff.open_written(path) as mask:
            found = f"{mask.count} band(s) of {mask.dtypes[0]}, {mask.height} x {mask.width}"
            wanted = f"1 band(s) of uint8, {shapes[chip][0]} x {shapes[chip][1]}"
            if found != wanted:
                raise InputError(f"mask of chip {chip} is {found}; the submission wants {wanted}")
            values = np.unique(mask.read(1))
        if not set(values.tolist()) <= {0, 1}:
            raise InputError(f"mask of chip {chip} holds {values[:5].tolist()}; the submission wants 0 and 1 alone")


def pack(masks: Mapping[str, Path], archive: Path) -> None:
    """Write the masks as a flat `.tgz`, the same bytes for the same masks."""
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


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else ""
