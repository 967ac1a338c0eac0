"""Finds the red, green, blue and alpha band of an image by their names, wherever they stand."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rasterio.io import DatasetReader

from ocmlflow import redaction
from ocmlflow.errors import InputError

COLOURS = ("red", "green", "blue")
_SHORT = {"r": "red", "g": "green", "b": "blue", "a": "alpha", "opacity": "alpha", "transparency": "alpha"}
_OTHER = re.compile(
    r"nir\d*|(near[ _-]?)?infra[ _-]?red|red[ _-]?edge\d*|rededge\d*|re\d?|coastal|yellow|pan(chromatic)?|cirrus"
    r"|[sl]wir\d*|thermal|ndvi|dsm|dem"
)
"""Names of bands that show neither colours of the eye nor opacity: common names of STAC's eo extension, and others."""


@dataclass(frozen=True)
class Bands:
    """Numbers of an image's bands, from 1."""

    colours: tuple[int, int, int]
    """Red, green and blue."""
    alpha: int | None
    """None where the image has no alpha band."""
    note: str = ""
    """What was odd about their names."""


def find(dataset: DatasetReader, item_names: Sequence[str]) -> Bands:
    """The bands of an image of at least three.

    Three sources name bands: the STAC item (`item_names`, common names in the order of the bands, empty where it names
    none), the band descriptions of the file, and its colour interpretation. Where none of them names all three colours,
    they are bands 1, 2 and 3. Raises InputError where two sources contradict each other, or one names bands among which
    a colour is missing.
    """
    image = redaction.redact(dataset.name)
    if len(item_names) > dataset.count:
        raise InputError(f"image {image} has {dataset.count} bands, its STAC item names {', '.join(item_names)}")
    sources = {
        "its STAC item": [_plain(name) for name in item_names],
        "its band descriptions": [_plain(name or "") for name in dataset.descriptions],
        "its colour interpretation": [_plain(colour.name) for colour in dataset.colorinterp],
    }
    placed = {source: _colours(names, source, image) for source, names in sources.items()}
    known = {source: colours for source, colours in placed.items() if colours}
    if len(set(known.values())) > 1:
        said = "; ".join(f"{source}: {', '.join(filter(None, sources[source]))}" for source in known)
        raise InputError(
            f"the bands of image {image} are named in two ways, {said}: correct the wrong one; the colour "
            "interpretation is set by gdal_edit.py -colorinterp_1 red -colorinterp_2 green -colorinterp_3 blue FILE"
        )
    colours = next(iter(known.values()), (1, 2, 3))
    return _with_alpha(list(sources.values()), colours)


def _plain(name: str) -> str:
    """A band's name as one of STAC's common names, as far as it is known; empty where it says nothing."""
    name = re.sub(r"\s+", " ", re.sub(r"^band[ _-]*(\d+[ :_-]*)?|[ _-]*band$|^b\d+[ :_-]+", "", name.strip().lower()))
    name = re.sub(r"[ (].*$", "", name) if re.match(r"(red|green|blue|alpha)[ (]", name) else name
    name = _SHORT.get(name, name)
    return name if name in (*COLOURS, "alpha") or _OTHER.fullmatch(name) else ""


def _colours(names: list[str], source: str, image: str) -> tuple[int, int, int] | None:
    """Numbers of the colours by one source of names; None where it does not name them."""
    missing = [colour for colour in COLOURS if colour not in names]
    if not missing:
        red, green, blue = (names.index(colour) + 1 for colour in COLOURS)
        return red, green, blue
    spectral = [name for name in names if name not in ("", "alpha")]
    if len(spectral) > 1 and source != "its colour interpretation":
        raise InputError(
            f"image {image} has no {' or '.join(missing)} band by {source}, which names {', '.join(spectral)}: "
            "red, green and blue are needed"
        )
    return None


def _with_alpha(sources: list[list[str]], colours: tuple[int, int, int]) -> Bands:
    """The colours and the alpha band: the first that is called so and nothing else."""
    note = ""
    for number in range(1, len(sources[-1]) + 1):
        names = {names[number - 1] for names in sources if len(names) >= number} - {""}
        if number in colours or "alpha" not in names:
            continue
        if names == {"alpha"}:
            return Bands(colours, number, note)
        note = f"band {number} is named {min(names - {'alpha'})}, and is not taken for alpha though the file says so"
    return Bands(colours, None, note)
