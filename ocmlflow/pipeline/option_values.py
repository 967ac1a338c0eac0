"""Reads option values that are more than one number or word: lists, boxes, shares, pairs, paths.

Each function takes what Python or the command line gives, returns the value that a record keeps, and takes that value
again unchanged. It raises ValueError, saying what would do and what was found.
"""

import math
import os
from collections.abc import Iterable, Mapping
from numbers import Real


def href(value: object) -> str:
    """One path or address, as text."""
    if isinstance(value, str | os.PathLike):
        return str(value)
    raise ValueError(f"must be a path or an address, got {value!r}")


def several(value: object) -> str:
    """Paths, addresses or names, separated by commas, from such a text or from a list."""
    if not isinstance(value, list | tuple):
        return href(value)
    parts = [href(part) for part in value]
    for part in parts:
        if "," in part:
            raise ValueError(f"must be names without a comma, got {part!r}")
    return ",".join(parts)


def names(text: str | None) -> list[str]:
    """The names in a text that separates them by commas; empty parts are left out."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def model_name(value: object) -> str:
    """Name of a registered model that every server takes, and that addresses and lists of models can hold."""
    if not isinstance(value, str):
        raise ValueError(f"must be text, got {value!r}")
    if wrong := sorted({sign for sign in value if sign in _NOT_IN_MODEL_NAMES or not sign.isprintable()}):
        raise ValueError(f"must be a name without {' '.join(map(repr, wrong))}, got {value}")
    if not 0 < len(value.strip(" .")) <= len(value) <= MODEL_NAME_LENGTH or value != value.strip():
        raise ValueError(f"must be a name of 1 to {MODEL_NAME_LENGTH} characters, got {value!r}")
    return value


MODEL_NAME_LENGTH = 250
"""Longest name of a registered model: SQLite takes more, PostgreSQL and MySQL do not."""
_NOT_IN_MODEL_NAMES = "/:@,'\"`?#%\\"
"""MLflow refuses / and : itself. @ is for aliases, a comma parts names, quotes end MLflow's queries; the rest are signs
of addresses."""


def absolute_href(value: object) -> str:
    """One path or address that means the same in every working folder: MLflow runs steps in the folder of the code."""
    from ocmlflow.storage import hrefs  # the import takes longer than --help may

    return hrefs.absolute(href(value))


def absolute_hrefs(value: object) -> str:
    """The same for several, separated by commas; an empty part stays empty."""
    parts = (part.strip() for part in several(value).split(","))
    return ",".join(absolute_href(part) if part else "" for part in parts)


def share_or_names(value: object) -> str:
    """A share of the chips, as 0.2, or names of places or scenes, separated by commas."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return str(value)
    return several(value)


def assignments(value: object) -> str:
    """NAME=VALUE, separated by commas, from such a text or from a dict."""
    if isinstance(value, Mapping):
        return several([f"{name}={part}" for name, part in value.items()])
    if isinstance(value, str):
        return value
    raise ValueError(f"must be NAME=VALUE, separated by commas, or a dict, got {value!r}")


def bounding_box(value: object) -> tuple[float, float, float, float]:
    """(west, south, east, north) in degrees, from four numbers or from text."""
    try:
        west, south, east, north = (float(str(part)) for part in _parts(value))
    except ValueError:
        raise ValueError(f"must be four numbers, west,south,east,north in degrees, got {value}") from None
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise ValueError(f"must have west < east and south < north, in degrees, got {value}")
    return west, south, east, north


def work_share(value: object) -> tuple[int, int]:
    """(I, N) for the part I of N equal parts of the work, I from 0; as text I/N."""
    parts = value.split("/") if isinstance(value, str) and "/" in value else _parts(value)
    texts = [str(part).strip() for part in parts]
    if not (len(texts) == 2 and all(text.isdecimal() for text in texts) and int(texts[0]) < int(texts[1])):
        raise ValueError(f"must be I/N with I from 0 to N - 1, such as 0/4, got {value}")
    return int(texts[0]), int(texts[1])


def stretch(value: object) -> str:
    """LOW,HIGH: two values or two percentiles, as text, from such a text or two numbers."""
    texts = [str(part).strip() for part in _parts(value)]
    signs = {text.endswith("%") for text in texts}
    try:
        low, high = (float(text.removesuffix("%")) for text in texts)
    except ValueError:
        raise ValueError(f"must be LOW,HIGH, such as 0,4095 or 2%,98%, got {value}") from None
    if not low < high or not math.isfinite(high - low) or len(signs) > 1:
        raise ValueError(f"must have LOW below HIGH, both values or both percentiles, got {value}")
    if signs == {True} and not 0 <= low < high <= 100:
        raise ValueError(f"percentiles lie between 0% and 100%, got {value}")
    return ",".join(texts)


def pairs(value: object) -> tuple[tuple[str, str], ...]:
    """Pairs of name and value, from NAME=VALUE texts, from pairs or from a dict."""
    if isinstance(value, Mapping):
        return pairs(tuple(value.items()))
    if not isinstance(value, list | tuple):
        return pairs((value,))
    return tuple(_pair(one) for one in value)


def _pair(value: object) -> tuple[str, str]:
    if isinstance(value, tuple) and len(value) == 2:
        name, text = map(str, value)
    elif isinstance(value, str) and "=" in value:
        name, _, text = value.partition("=")
    else:
        raise ValueError(f"must be NAME=VALUE, got {value}")
    if not name.isidentifier():
        raise ValueError(f"must be NAME=VALUE, got {value}")
    return name, text


def _parts(value: object) -> Iterable[object]:
    """The parts of a tuple, a list or their text: MLflow logs a tuple as `(0, 4)`."""
    if isinstance(value, str):
        return value.removeprefix("(").removesuffix(")").split(",")
    return value if isinstance(value, list | tuple) else ()
