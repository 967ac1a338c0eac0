"""What a field of an option record may hold, and records from Python's values, from texts and back.

A record checks itself when it is made, so that Python, the command line and a resumed run refuse the same in the same
words, such as `size: must be a multiple of 32, got 100`.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

from ocmlflow.errors import InputError

GROUPS = ("input", "output", "split", "model", "training", "quality", "machine")
"""Headings of options in `--help`, in this order."""
INFINITE = math.inf
MODEL_NAME = "open-cities-buildings"
"""Registered model of all commands that are not told another."""
WORK = ".ocmlflow"
"""Folder of unfinished work, in the working folder."""
SEED_MAX = 2**32 - 1
"""Numpy takes no larger seed."""


COLLAR_M2 = 100.0
COLLAR_HELP = (
    "Black or white areas at the edge of the imagery of at least this many square metres count as no imagery; so do "
    "areas of any one colour along a fifth of the edge, from a tenth of that on, and black ones anywhere, from ten "
    "times that on. 0 keeps them all."
)
STRETCH_HELP = (
    "Values that become 0 and 255 where images have other than 8 bits, or percentiles of each scene, such as 2%,98%. "
    "Without it, such images are refused."
)
"""Prepare and predict read scenes alike."""


class OptionError(InputError):
    """An option that is wrong: `name` says which, `reason` what was found and what would do."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """What is known of an option beside its name, type and default."""

    help: str
    group: str
    """One of GROUPS."""
    low: float = -INFINITE
    high: float = INFINITE
    multiple_of: int = 1
    """Of whole numbers."""
    metavar: str = ""
    """Stands for the value in `--help`."""
    read: Callable[[object], object] | None = None
    """Takes what is given and returns the value that the record keeps, or raises ValueError: see `option_values`."""
    short: str = ""
    """A second flag, such as -P."""
    positional: bool = False
    """Given on the command line without its name."""
    repeated: bool = False
    """Given on the command line as often as needed."""


def option(default: Any, help: str, *, group: str, **more: Any) -> Any:
    """A field of an option record, with its default; `more` are fields of About."""
    return dataclasses.field(default=default, metadata=about(help, group=group, **more))


def about(help: str, *, group: str, **more: Any) -> dict[str, About]:
    """Metadata of a field. With `dataclasses.field(metadata=about(...))` the option cannot be left out."""
    return {"about": About(help=help, group=group, **more)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Base of the option records: checks each value when a record is made, then the record's own rules."""

    def __post_init__(self) -> None:
        for field in option_fields(type(self)):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        self.check()

    def check(self) -> None:
        """Raise OptionError for options that do not go together."""


Record = TypeVar("Record", bound=Options)


@dataclasses.dataclass(frozen=True)
class OptionField:
    """One option of a record."""

    name: str
    kind: Any
    """int, float, bool, str; anything else is read by `about.read`."""
    optional: bool
    """Whether None is a value."""
    choices: tuple[str, ...]
    """The only values, if any are named."""
    default: Any
    required: bool
    about: About

    @property
    def limits(self) -> str:
        """The range in words, such as `0.01 to 10` or `at least 1`; empty where there is none."""
        low, high = self.about.low, self.about.high
        if low == -INFINITE:
            return "" if high == INFINITE else f"at most {_shown(high)}"
        return f"at least {_shown(low)}" if high == INFINITE else f"{_shown(low)} to {_shown(high)}"


def option_fields(record: type[Options]) -> tuple[OptionField, ...]:
    """The options of a record, in its order."""
    return tuple(map(_option_field, dataclasses.fields(record)))


def make(record: type[Record], /, **given: Any) -> Record:
    """A record from Python's values; OptionError for unknown, missing and wrong ones, by name."""
    known = [field.name for field in option_fields(record)]
    for name in given:
        if name not in known:
            raise OptionError(name, f"{verb(record)} has no such option{did_you_mean(name, known)}")
    for field in option_fields(record):
        if field.required and field.name not in given:
            raise OptionError(field.name, f"is needed. {field.about.help}")
    return record(**given)


def from_text(record: type[Record], given: Mapping[str, Any]) -> Record:
    """A record from texts, as the command line gives them and MLflow logs them; what is no text is taken as it is."""
    fields = {field.name: field for field in option_fields(record)}
    return make(record, **{name: _read(fields.get(name), value) for name, value in given.items()})


def parameters(options: Options) -> dict[str, Any]:
    """What is logged to MLflow: each option, with what takes effect where None stands for something else.

    A record says what takes effect with a property, such as `effective_stride`.
    """
    names = [field.name for field in option_fields(type(options))]
    return {name: getattr(options, f"effective_{name}", getattr(options, name)) for name in names}


def changed(options: Options) -> dict[str, Any]:
    """The options that differ from their default, and the required ones."""
    found = {}
    for field in option_fields(type(options)):
        value = getattr(options, field.name)
        if field.required or value != _checked(field, field.default):
            found[field.name] = value
    return found


def words(given: Options | Mapping[str, Any]) -> list[str]:
    """The command line of a record (what differs from the defaults) or of a mapping, None left out."""
    if not isinstance(given, Options):
        return [word for name, value in given.items() if value is not None for word in (f"--{name}", text(value))]
    about = {field.name: field.about for field in option_fields(type(given))}
    found: list[str] = []
    for name, value in changed(given).items():
        if about[name].positional:
            found.insert(0, value)
        elif about[name].repeated:
            found += [word for pair in value for word in (f"--{name}", "=".join(pair))]
        elif value is not None:
            found += [f"--{name}", text(value)]
    return found


def text(value: object) -> str:
    """A value as a word of the command line, which `from_text` reads back."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def verb(record: type[Options]) -> str:
    """The command that a record belongs to."""
    return record.__name__.removesuffix("Options").lower()


def did_you_mean(name: str, known: list[str]) -> str:
    """A question with the name that is nearest, or nothing."""
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _option_field(field: dataclasses.Field) -> OptionField:
    # Types, not their names: modules of records must not import annotations from __future__.
    types = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
    (kind,) = (one for one in types if one is not NoneType)
    required = field.default is dataclasses.MISSING
    return OptionField(
        name=field.name,
        kind=str if get_origin(kind) is Literal else kind,
        optional=NoneType in types,
        choices=get_args(kind) if get_origin(kind) is Literal else (),
        default=None if required else field.default,
        required=required,
        about=field.metadata["about"],
    )


def _read(field: OptionField | None, value: Any) -> Any:
    """The number, switch or None that a text stands for; any other text stays, and the record judges it."""
    if field is None or not isinstance(value, str):
        return value
    if field.optional and value == "None":
        return None
    if field.kind is bool:
        if value.lower() not in ("true", "false"):
            raise OptionError(field.name, f"must be true or false, got {value}")
        return value.lower() == "true"
    if field.kind in (int, float):
        try:
            return field.kind(value)
        except ValueError:
            raise OptionError(field.name, f"must be {_KINDS[field.kind]}, got {value}") from None
    return value


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _checked(field: OptionField, value: Any) -> Any:
    """The value as the record keeps it; OptionError where it has the wrong type or is out of range."""
    if value is None and field.optional:
        return None
    if field.about.read:
        try:
            return field.about.read(value)
        except ValueError as error:
            raise OptionError(field.name, str(error)) from None
    value = _typed(field, value)
    if wanted := _wanted(field, value):
        raise OptionError(field.name, f"must be {wanted}, got {_shown(value)}")
    return value


def _typed(field: OptionField, value: Any) -> Any:
    """The value in the type of the field: a whole number does for a float, numpy's numbers do for Python's."""
    accepted = {int: Integral, float: Real}.get(field.kind, field.kind)
    if not isinstance(value, accepted) or (isinstance(value, bool) and field.kind is not bool):
        raise OptionError(field.name, f"must be {_KINDS[field.kind]}, got {value!r}")
    try:
        return field.kind(value)
    except OverflowError:
        raise OptionError(field.name, f"must be {field.limits or 'a finite number'}, got {value!r}") from None


def _wanted(field: OptionField, value: Any) -> str:
    """What a value of the right type must be and is not; empty where it will do."""
    if field.choices:
        return "" if value in field.choices else f"{', '.join(field.choices[:-1])} or {field.choices[-1]}"
    if field.kind not in (int, float):
        return ""
    if not field.about.low <= value <= field.about.high or (field.kind is float and not math.isfinite(value)):
        return field.limits or "a finite number"
    if field.kind is int and value % field.about.multiple_of:
        return f"a multiple of {field.about.multiple_of}"
    return ""


def _shown(value: object) -> str:
    """A number without `.0`, and anything else as text."""
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
