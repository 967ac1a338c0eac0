"""Parses the command line of a verb into its option record; the parser is made from the record."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import TypeVar

from ocmlflow.pipeline.option_fields import (
    GROUPS,
    OptionError,
    OptionField,
    Options,
    did_you_mean,
    from_text,
    option_fields,
    text,
)

Record = TypeVar("Record", bound=Options)


def parse(record: type[Record], words: Sequence[str] | None = None, *, prog: str) -> Record:
    """The record that the words give, those of the process if None; what is wrong ends with usage and exit status 2."""
    parser = make_parser(record, prog=prog)
    given, unknown = parser.parse_known_args(_joined(sys.argv[1:] if words is None else words))
    if unknown:
        flags = [f"--{field.name}" for field in option_fields(record)]
        near = did_you_mean(unknown[0].partition("=")[0], flags)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
    try:
        return from_text(record, vars(given))
    except OptionError as error:
        positional = any(field.name == error.name and field.about.positional for field in option_fields(record))
        parser.error(f"argument {'' if positional else '--'}{error.name}: {error.reason}")


def make_parser(record: type[Options], *, prog: str) -> argparse.ArgumentParser:
    """A parser of texts, which are left to the record to check; what is not given is not in its result."""
    required = [field for field in option_fields(record) if field.required]
    needed = [field.name.upper() if field.about.positional else f"--{field.name} {_short(field)}" for field in required]
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=" ".join(["%(prog)s", *needed, "[--OPTION VALUE ...]"]),
        description=record.__doc__,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for group in GROUPS:
        fields = [field for field in option_fields(record) if field.about.group == group]
        if fields:
            section = parser.add_argument_group(group)
            for field in fields:
                _add(section, field)
    return parser


def _add(section: argparse._ArgumentGroup, field: OptionField) -> None:
    shown = f" (default: {text(field.default)})" if _has_default(field) else ""
    help = f"{field.about.help}{shown}".replace("%", "%%")
    if field.about.positional:
        section.add_argument(field.name, help=help, metavar=field.name.upper())
        return
    flags = [word for word in (field.about.short, f"--{field.name}") if word]
    action = "append" if field.about.repeated else "store"
    section.add_argument(*flags, required=field.required, action=action, help=help, metavar=_metavar(field))


def _has_default(field: OptionField) -> bool:
    return not field.required and field.default not in (None, ())


def _short(field: OptionField) -> str:
    return field.name.upper() if field.choices else _metavar(field)


def _metavar(field: OptionField) -> str:
    if field.kind is bool:
        return "true|false"
    return "|".join(field.choices) or field.about.metavar or "TEXT"


def _joined(words: Sequence[str]) -> list[str]:
    """The words with values such as -10.8,6.2,-10.7,6.3 joined to their flag: argparse takes them for another flag."""
    joined: list[str] = []
    for word in words:
        flag = joined[-1] if joined else ""
        if flag.startswith("--") and "=" not in flag and re.match(r"-[\d.]", word):
            joined[-1] = f"{flag}={word}"
        else:
            joined.append(word)
    return joined
