"""Brings the values of images that are not of 8 bits to 0 to 255."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader
from rasterio.windows import Window

from ocmlflow import redaction
from ocmlflow.errors import InputError
from ocmlflow.scenes import gdal_messages
from ocmlflow.scenes.gdal_messages import GDAL_ERRORS

SAMPLES = 5
"""Windows along each side of a scene that are looked at for its values."""
SAMPLE_PX = 256
"""Side of these windows, in pixels."""
USUAL_PERCENTILES = 2, 98
"""Percentiles that a refusal suggests."""


@dataclass(frozen=True)
class Stretch:
    """Which values become 0 and 255: values as they are, or percentiles of each scene."""

    low: float
    high: float
    is_percent: bool

    def __str__(self) -> str:
        sign = "%" if self.is_percent else ""
        return f"{self.low:g}{sign},{self.high:g}{sign}"


def parse(text: str | None) -> Stretch | None:
    """The stretch that a text such as `0,4095` or `2%,98%` names."""
    if text is None:
        return None
    low, high = (float(part.strip().removesuffix("%")) for part in text.split(","))
    return Stretch(low, high, "%" in text)


def to_bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The values as uint8, linearly: `low` and what is below is 0, `high` and what is above is 255."""
    if values.dtype == np.uint8:
        return values
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    return np.nan_to_num(scaled, nan=0).clip(0, 255).round().astype(np.uint8)


def find(dataset: DatasetReader, colours: tuple[int, int, int], stretch: Stretch | None) -> tuple[float, float] | None:
    """The values that become 0 and 255, the same for all three colours; None for an image of 8 bits.

    Raises InputError where there is no stretch for an image of other values.
    """
    types = {dataset.dtypes[number - 1] for number in colours}
    if types == {"uint8"}:
        return None
    if any(name.startswith("complex") for name in types):
        raise InputError(f"image {redaction.redact(dataset.name)} has complex numbers, not colours")
    if stretch and not stretch.is_percent:
        return stretch.low, stretch.high
    values = _sample(dataset, list(colours))
    percentiles = (stretch.low, stretch.high) if stretch else USUAL_PERCENTILES
    low, high = (float(value) for value in np.percentile(values, percentiles)) if len(values) else (0.0, 0.0)
    if stretch and high > low:
        return low, high
    raise _refusal(dataset, types, low, high, stretch)


def refuse_few_bands(dataset: DatasetReader) -> InputError:
    """The error to raise for an image of fewer than three bands."""
    image = redaction.redact(dataset.name)
    palette = " and a palette" if ColorInterp.palette in dataset.colorinterp else ""
    said = f"image {image} has {dataset.count} band(s) of {', '.join(sorted(set(dataset.dtypes)))}{palette}"
    if palette:
        advice = "its colours are those of a palette: expand it, say with gdal_translate -expand rgb IN OUT"
    elif dataset.dtypes[0] == "uint8":
        alpha = " -b 2 -colorinterp_4 alpha" if dataset.count == 2 else ""
        advice = f"if it is a grey image: gdal_translate -b 1 -b 1 -b 1{alpha} IN OUT"
    else:
        advice = "it may be an elevation model; give the orthophoto"
    return InputError(f"{said}; red, green and blue of 8 bits (uint8) are needed. {advice[0].upper()}{advice[1:]}")


def _refusal(
    dataset: DatasetReader, types: Iterable[str], low: float, high: float, stretch: Stretch | None
) -> InputError:
    image = redaction.redact(dataset.name)
    said = f"image {image} has {dataset.count} band(s) of {', '.join(sorted(types))}; "
    said += "red, green and blue of 8 bits (uint8) are needed"
    if not high > low:
        return InputError(f"{said}, and all values looked at are {low:g}, so they cannot be stretched: give LOW,HIGH")
    first, last = USUAL_PERCENTILES
    return InputError(
        f"{said}. Give stretch={low:.5g},{high:.5g} (percentiles {first} and {last} of this scene) or "
        f"stretch={first}%,{last}%, or convert it with "
        f"gdal_translate -ot Byte -scale {low:.5g} {high:.5g} 0 255 IN OUT; -ot Byte alone would cut off all above 255"
    )


def _sample(dataset: DatasetReader, colours: list[int]) -> np.ndarray:
    """Values of the colours in windows spread over the scene, where they are imagery: (count,) float64."""
    values = []
    for window in sample_windows(dataset.height, dataset.width, count=SAMPLES, side=SAMPLE_PX):
        try:
            pixels = dataset.read(colours, window=window).astype(np.float64)
            valid = (dataset.dataset_mask(window=window) > 0) & np.isfinite(pixels).all(axis=0)
        except GDAL_ERRORS:  # reported when the window is read for use
            gdal_messages.forget_error(dataset)
            continue
        values.append(pixels[:, valid].ravel())
    return np.concatenate(values) if values else np.empty(0)


def sample_windows(height: int, width: int, *, count: int, side: int) -> list[Window]:
    """Windows of at most `side` pixels, `count` down and across, in the middle of equal parts of an image."""
    tall, wide = min(side, height), min(side, width)
    rows = sorted({int((height - tall) * (number + 0.5) / count) for number in range(count)})
    cols = sorted({int((width - wide) * (number + 0.5) / count) for number in range(count)})
    return [Window(col, row, wide, tall) for row in rows for col in cols]
