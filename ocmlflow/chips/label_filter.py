"""Chooses features of label files by their properties, and notices features that are no buildings."""

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ocmlflow.errors import InputError

GROUND = {
    *("aeroway", "amenity", "barrier", "boundary", "highway", "landcover", "landuse", "leisure", "natural", "place"),
    *("power", "railway", "waterway"),
}
"""Keys of OpenStreetMap that say what a polygon is where it has no key `building`."""
CLASSES = ("class", "category", "label", "type")
"""Properties in which other sources say what a polygon is."""
NO_BUILDINGS = {
    *("background", "car", "cars", "field", "forest", "grass", "highway", "land", "landuse", "parking", "pool", "road"),
    *("roads", "tree", "trees", "vegetation", "vehicle", "water"),
}
"""Values of those properties that are no buildings."""
NOT_BUILDING = ("no", "false", "0", "none", "demolished", "destroyed", "razed")
"""Values of `building`, or prefixes of keys, of what is no building (any more)."""
WATCHED = {"building", *GROUND, *CLASSES}
"""Properties that are read in any case."""
_WORD = re.compile(r"""'(?:[^']|'')*'|"((?:[^"]|"")+)"|\[([^\]]+)\]|`([^`]+)`|([A-Za-z_][\w$]*)""")
"""Texts of SQL, which are passed over, and names of columns, which may stand in quotes."""


def names(where: str) -> set[str]:
    """The words of an SQL condition that may name properties, in small letters."""
    found = (quoted or bracketed or ticked or word for quoted, bracketed, ticked, word in _WORD.findall(where))
    return {name.lower() for name in found if name}


def columns(wanted: set[str], features: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The values of some properties of features, by the property's name in small letters; None where one lacks it."""
    found: dict[str, list[Any]] = {}
    for name in sorted(set().union(*features)):
        if (key := name.lower()) in wanted:
            values = [feature.get(name) for feature in features]
            if key in found:  # in SQL, names that differ in capitals are the same
                values = [one if one is not None else other for one, other in zip(found[key], values, strict=True)]
            found[key] = values
    return found


def matches(where: str, table: Mapping[str, Iterable[Any]], count: int) -> np.ndarray:
    """(count,) bool: the features that an SQL condition is true of; `table` holds their properties by name.

    The SQL is that of SQLite. A text that is a number is compared as a number. Properties that the features lack are
    null. Raises InputError for a condition that is none, and for one that names properties of none.
    """
    wanted = names(where)
    held = {name: list(values) for name, values in table.items() if name in wanted}
    with sqlite3.connect(":memory:") as database:
        typed = "".join(f", {_quoted(name)} NUMERIC" for name in held)
        database.execute(f"CREATE TABLE features (_position INTEGER{typed})")
        places = ",".join("?" * (len(held) + 1))
        rows = zip(range(count), *(map(_plain, values) for values in held.values()), strict=True)
        database.executemany(f"INSERT INTO features VALUES ({places})", rows)
        try:
            # A name in double quotes that is no column would be taken for a text.
            chosen = database.execute(f"SELECT _position FROM features WHERE ({where}\n)").fetchall()
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise InputError(f"where={where} is no SQL condition of its properties: {error}") from error
    result = np.zeros(count, bool)
    result[[position for (position,) in chosen]] = True
    return result


def check(where: str, known: Iterable[str]) -> None:
    """Raise InputError unless `where` is a condition of the properties `known` (names in small letters)."""
    listed = sorted(known)
    held: dict[str, list[Any]] = {name: [] for name in listed}
    try:
        matches(where, held, 0)
    except InputError as error:
        raise InputError(f"{error}; its properties are {', '.join(listed[:40]) or 'none'}") from error
    quoted = {found[0].lower() for found in _WORD.findall(where) if found[0]}
    if unknown := sorted(quoted - set(listed)):
        raise InputError(
            f"where={where} names {', '.join(unknown)}, which no feature has; its properties are "
            f"{', '.join(listed[:40]) or 'none'}"
        )


def doubts(table: Mapping[str, list[Any]], count: int) -> list[str | None]:
    """What each feature seems to be where it is no building, such as `building=no` or `landuse`; None elsewhere."""
    building = table.get("building", [None] * count)
    found: list[str | None] = [
        f"building={value}" if value is not None and str(value).lower() in NOT_BUILDING else None for value in building
    ]
    for name in sorted(GROUND & table.keys()):
        for number, value in enumerate(table[name]):
            if value not in (None, "", "no") and building[number] in (None, "") and found[number] is None:
                found[number] = name
    for name in CLASSES:
        for number, value in enumerate(table.get(name, ())):
            if isinstance(value, str) and value.lower() in NO_BUILDINGS and found[number] is None:
                found[number] = f"{name}={value}"
    return found


def counted(found: Counter[str]) -> str:
    """Doubts and their numbers in words, most frequent first: `12 of landuse, 3 of building=no`."""
    return ", ".join(f"{number} of {name}" for name, number in found.most_common(8))


def _plain(value: Any) -> Any:
    """A value as SQLite takes it."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int) and abs(value) >= 1 << 63:  # more than SQLite's whole numbers hold
        return str(value)
    if isinstance(value, bool | int | float | str | bytes):
        return value
    return json.dumps(value, default=str)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
