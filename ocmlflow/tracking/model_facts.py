"""Facts that `train` stores in the metadata of a model, and that later steps read from there."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from types import NoneType
from typing import Any

from ocmlflow.errors import InputError


@dataclass(frozen=True)
class ChipSplit:
    """Chips of a `prepare` run, and how they are split into training and validation."""

    chips: str
    """Run id of the `prepare` run."""
    fold: int | None
    """Fold that is held out for validation; None for the split that `prepare` made."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What training recorded with a model."""

    gsd: float
    """Ground sample distance of the model's input, in metres per pixel."""
    multiple: int
    """Height and width of the model's input must be multiples of this number of pixels."""
    run: str
    """Run id of the training."""
    chips: str
    """Run id of the `prepare` run whose chips it was trained on."""
    trained_on: tuple[ChipSplit, ...]
    """Chips of this training, and of the trainings of the models that it started from."""
    fold: int | None = None
    """Fold of the chips that was held out; None for the split that `prepare` made."""
    data: str = ""
    """Digest of the chips."""
    validation: str = ""
    """What was held out for validation, as given to `prepare`, or the fold."""
    architecture: str = ""
    """Name of the network's architecture."""
    encoder: str = ""
    """Name of the network's encoder."""
    init: str = ""
    """Model that the training started from; empty if it started from pretrained or random weights."""


def to_metadata(facts: ModelFacts) -> dict[str, Any]:
    """The facts as JSON types, without those that are unknown or do not apply."""
    return {
        **{name: value for name, value in asdict(facts).items() if value not in (None, "")},
        "trained_on": [asdict(split) for split in facts.trained_on],
    }


def from_metadata(metadata: Mapping[str, Any], *, model: str) -> ModelFacts:
    """The facts in the metadata of a model; InputError, naming `model` and the fact, if one is missing or wrong.

    Keys that are not facts are ignored.
    """
    missing = [field.name for field in fields(ModelFacts) if field.default is MISSING and field.name not in metadata]
    if missing:
        raise InputError(
            f"the metadata of model {model} lacks {', '.join(missing)}: the model was not logged by `train`, or by an "
            "early version of it; train it again"
        )
    known = {field.name: metadata[field.name] for field in fields(ModelFacts) if field.name in metadata}
    for name, value in known.items():
        if not _is_valid(name, value):
            raise InputError(f"the metadata of model {model} has {name}={value!r}: {_EXPECTED[name]} is needed")
    splits = tuple(ChipSplit(split["chips"], split["fold"]) for split in known["trained_on"])
    return ModelFacts(**{**known, "gsd": float(known["gsd"]), "trained_on": splits})


_EXPECTED = {
    "gsd": "a positive number of metres per pixel",
    "multiple": "a positive whole number of pixels",
    "run": "a run id",
    "chips": "a run id",
    "trained_on": "a list of chips (run id) and fold (whole number or null)",
    "fold": "a whole number or null",
    "data": "text",
    "validation": "text",
    "architecture": "text",
    "encoder": "text",
    "init": "text",
}


def _is_valid(name: str, value: Any) -> bool:
    # By `type`, not isinstance: True would pass as a whole number.
    match name:
        case "gsd":
            return type(value) in (int, float) and 0 < value < math.inf
        case "multiple":
            return type(value) is int and value > 0
        case "fold":
            return type(value) in (int, NoneType)
        case "trained_on":
            return isinstance(value, list) and all(_is_split(split) for split in value)
        case _:
            return isinstance(value, str)


def _is_split(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("chips"), str)
        and type(value.get("fold")) in (int, NoneType)
    )
