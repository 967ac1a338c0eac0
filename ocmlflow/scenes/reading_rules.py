"""How the pixels of an image are read: which bands, values and areas, found once and the same for all who read it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader

from ocmlflow.errors import InputError
from ocmlflow.scenes import bands, stretching
from ocmlflow.scenes.bands import Bands
from ocmlflow.scenes.no_imagery import BlankArea
from ocmlflow.scenes.stretching import Stretch

MAX_PIXELS = 200_000_000_000
"""Pixels of the largest image that is read; the largest scene of the challenge has 12.7 billion."""


@dataclass(frozen=True)
class ReadingRules:
    """How the pixels of an image are read: found once for a scene, and the same for all who read it."""

    bands: Bands
    has_mask: bool
    """Whether it has a mask band, in the file or beside it, which is neither its alpha band nor a nodata value."""
    has_nodata: bool
    """Whether it names a value of pixels that are no imagery."""
    opaque: float = 255
    """Value of alpha, or of the mask band, that is fully imagery."""
    stretch: tuple[float, float] | None = None
    """Values that become 0 and 255; None for an image of 8 bits, whose values stay."""
    use_overviews: bool = True
    """Whether its overviews show what it shows; otherwise only its full resolution is read."""
    blank: tuple[BlankArea, ...] = ()
    """Areas that are no imagery though the file does not declare them."""
    has_sidecars: bool = False
    """Whether files that say how it is read lie beside a remote image."""
    notes: tuple[str, ...] = ()
    """What was odd about the image, for the log."""


def find(
    dataset: DatasetReader, href: str, names: Sequence[str], stretch: Stretch | None, *, has_sidecars: bool
) -> ReadingRules:
    """How an image is read, as far as its header says it; InputError where it cannot be read as RGB.

    `names` are those that its STAC item gives to its bands.
    """
    if dataset.count < 3:
        raise stretching.refuse_few_bands(dataset)
    if dataset.height * dataset.width > MAX_PIXELS:
        raise InputError(
            f"image {href} says that it has {dataset.width} x {dataset.height} pixels, more than the {MAX_PIXELS:,} "
            "that are read: cut it, say with gdal_translate -srcwin LEFT TOP WIDTH HEIGHT IN OUT"
        )
    found = bands.find(dataset, names)
    flags = dataset.mask_flag_enums[found.colours[0] - 1]
    values = stretching.find(dataset, found.colours, stretch)
    notes = [found.note] if found.note else []
    if values:
        notes.append(f"its values {values[0]:g} to {values[1]:g} become 0 to 255")
    return ReadingRules(
        found,
        has_mask=MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags,
        has_nodata=MaskFlags.nodata in flags,
        opaque=_largest_alpha(dataset, found),
        stretch=values,
        has_sidecars=has_sidecars,
        notes=tuple(notes),
    )


def _largest_alpha(dataset: DatasetReader, found: Bands) -> float:
    """The value of full alpha by the type of the band: 255, 65535, that of fewer bits, or 1 for floats."""
    if found.alpha is None:
        return 255
    kind = np.dtype(dataset.dtypes[found.alpha - 1])
    bits = dataset.tags(found.alpha, ns="IMAGE_STRUCTURE").get("NBITS", "")
    if kind.kind == "f":
        return 1
    return float(2 ** int(bits) - 1 if bits.isdigit() else np.iinfo(kind).max)
