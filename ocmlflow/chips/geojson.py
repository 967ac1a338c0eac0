"""Reads features of GeoJSON in any shape that people save: as a collection, line by line, nested or bare.

Files are read piece by piece: a file of a million buildings takes a few megabytes of memory. Read here and not by GDAL,
which leaves out what it does not understand without a word.
"""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

CHUNK = 1 << 20
"""Bytes that are read at a time; more for a feature that is longer."""
_SEPARATORS = re.compile(r"[\s\x1e]*")  # the record separator stands before each text of RFC 8142
_DECODER = json.JSONDecoder()
_TAIL = 16
"""Characters from the end of a text within which an error of JSON may mean that the text goes on."""
_WRONG = (ValueError, TypeError, LookupError, AttributeError, RecursionError, shapely.errors.ShapelyError)
"""What wrong coordinates raise."""


def features(stream: BinaryIO, members: dict[str, Any]) -> Iterator[Any]:
    """The features of a file, whatever stands in their place; collections inside collections are taken apart.

    `members` gets what else the file's collection holds, such as `crs`. Raises ValueError for what is no JSON.
    """
    scanner = _Scanner(stream)
    while first := scanner.peek():
        if first not in "[{":
            raise ValueError(f"{first} begins neither a feature nor a collection of features")
        elements = _in_list(scanner) if first == "[" else _in_object(scanner, members)
        for element in elements:
            yield from _unpacked(element)


def geometries(elements: list[Any]) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Geometries of features: (count,) objects, None where there is none, flat (without heights).

    Also (count,) bool, whether a ring was closed, and the reason of each that is refused, by its position.
    """
    shapes: list[Any] = []
    refused = {}
    for number, element in enumerate(elements):
        try:
            shapes.append(_geometry(element))
        except ValueError as error:
            shapes.append(None)
            refused[number] = str(error)
    try:
        made, closed = _polygons(shapes)
    except _WRONG:  # one of them is wrong: each is made by itself
        made, closed = np.full(len(shapes), None, dtype=object), np.zeros(len(shapes), bool)
        for number, shape in enumerate(shapes):
            try:
                one, was_open = _polygons([shape])
                made[number], closed[number] = one[0], was_open[0]
            except _WRONG as error:
                refused[number] = f"its coordinates make no {shape.get('type')} ({error or type(error).__name__})"
    return made, closed, refused


def properties(element: Any) -> dict[str, Any]:
    """The properties of a feature; empty where it has none."""
    found = element.get("properties") if isinstance(element, dict) else None
    return found if isinstance(found, dict) else {}


def _unpacked(element: Any) -> Iterator[Any]:
    nested = element.get("features") if isinstance(element, dict) else None
    if not isinstance(nested, list):
        yield element
        return
    for inner in nested:
        yield from _unpacked(inner)


def _geometry(element: Any) -> dict[str, Any] | None:
    """The geometry of a feature, or a geometry that stands in place of one; ValueError where it is neither."""
    if element is None:
        return None
    if not isinstance(element, dict):
        raise ValueError(f"{_kind(element)} stands where a feature belongs")
    if "geometry" in element:
        shape = element["geometry"]
    elif "coordinates" in element or "geometries" in element:
        shape = element
    elif element.get("type") == "Feature":
        return None
    else:
        raise ValueError("it is neither a feature nor a geometry")
    if shape is None:
        return None
    if not isinstance(shape, dict):
        raise ValueError(f"its geometry is {_kind(shape)}")
    if shape.get("type") not in _TYPES:
        raise ValueError(f"its geometry has the type {shape.get('type')}")
    return shape


_TYPES = ("Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon", "GeometryCollection")


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _polygons(shapes: list[dict[str, Any] | None]) -> tuple[np.ndarray, np.ndarray]:
    """Geometries and whether a ring was closed, as of `geometries`; polygons are made all at once, for speed."""
    made, closed = np.full(len(shapes), None, dtype=object), np.zeros(len(shapes), bool)
    owners: list[int] = []
    parts: list[list[Any]] = []
    multiple = []
    for number, shape in enumerate(shapes):
        if shape is None:
            continue
        if shape["type"] == "Polygon":
            owners.append(number)
            parts.append(shape["coordinates"])
        elif shape["type"] == "MultiPolygon":
            multiple.append(number)
            owners += [number] * len(shape["coordinates"])
            parts += shape["coordinates"]
        else:
            made[number], closed[number] = _other(shape)
    polygons, unclosed = _from_rings(parts)
    closed[np.asarray(owners, int)[unclosed]] = True
    made[owners] = polygons
    if multiple:
        owner = np.asarray(owners, int)
        for number in multiple:
            made[number] = shapely.multipolygons(polygons[owner == number])
    return made, closed


def _from_rings(parts: list[list[Any]]) -> tuple[np.ndarray, np.ndarray]:
    """(count,) polygons of lists of rings, and whether a ring of each was not closed."""
    made, unclosed = np.full(len(parts), shapely.Polygon(), dtype=object), np.zeros(len(parts), bool)
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    if not len(owners):
        return made, unclosed
    rings = [ring for part in parts for ring in part]
    lengths = np.array([len(ring) for ring in rings])
    if lengths.min() < 3:
        raise ValueError(f"a ring of {lengths.min()} points")
    points = _points(list(chain.from_iterable(rings)))
    if points.dtype.kind not in "fi" or not np.isfinite(points).all():
        raise ValueError("not all of them are numbers")
    last = lengths.cumsum()
    unclosed[owners[(points[last - lengths] != points[last - 1]).any(axis=1)]] = True
    linear: Any = shapely.linearrings(points, indices=np.repeat(np.arange(len(rings)), lengths))
    whole = np.unique(owners)
    made[whole] = shapely.polygons(linear, indices=np.searchsorted(whole, owners))
    return made, unclosed


def _points(positions: list[Any]) -> np.ndarray:
    """(count, 2) x and y of positions, which may have heights and measures too."""
    try:
        points = np.array(positions)
    except ValueError:  # some have heights
        points = np.array([(position[0], position[1]) for position in positions])
    if points.ndim != 2 or points.shape[1] < 2:
        raise ValueError("a position is not a pair of numbers")
    return points[:, :2]


def _other(shape: dict[str, Any]) -> tuple[BaseGeometry, bool]:
    """A point, a line, or a collection, whose parts are made one by one; and whether a ring was closed."""
    if shape["type"] != "GeometryCollection":
        return shapely.force_2d(shapely.geometry.shape(shape)), False
    parts, closed = _polygons([_geometry(part) for part in shape["geometries"]])
    return shapely.GeometryCollection([part for part in parts if part is not None]), bool(closed.any())


class _Scanner:
    """Reads JSON values from a stream, holding only the text of the one that is being read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._text, self._at = stream, "", 0
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")

    def peek(self) -> str:
        """The next character that is no space, which is not taken; empty at the end."""
        while True:
            match = _SEPARATORS.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(CHUNK):
                return ""

    def take(self, *wanted: str) -> str:
        """The next character, which must be one of those wanted."""
        found = self.peek()
        if found not in wanted or not found:
            raise ValueError(f"{' or '.join(wanted)} is missing" + (f" before {found}" if found else " at its end"))
        self._at += 1
        return found

    def value(self) -> Any:
        """The next value, taken."""
        size = CHUNK
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                may_go_on = error.pos > len(self._text) - _TAIL or error.msg.startswith("Unterminated")
                if not (may_go_on and self._more(size)):
                    raise
                size *= 2
                continue
            except RecursionError as error:
                raise ValueError("it is nested too deeply") from error
            if end == len(self._text) and self._more(size):  # a number may go on
                continue
            self._at = end
            return value

    def feature_in_reach(self) -> dict[str, Any] | None:
        """The next value, taken, if it is an object without `features` that was read whole already; else None."""
        try:
            value, end = _DECODER.raw_decode(self._text, self._at)
        except (json.JSONDecodeError, RecursionError):
            return None
        if not isinstance(value, dict) or isinstance(value.get("features"), list):
            return None
        self._at = end
        return value

    def _more(self, size: int) -> bool:
        if not (content := self._stream.read(size)):
            return False
        self._text = self._text[self._at :] + self._decoder.decode(content)
        self._at = 0
        return True


def _in_list(scanner: _Scanner) -> Iterator[Any]:
    scanner.take("[")
    if scanner.peek() == "]":
        scanner.take("]")
        return
    while True:
        yield scanner.value()
        if scanner.take(",", "]") == "]":
            return


def _in_object(scanner: _Scanner, members: dict[str, Any]) -> Iterator[Any]:
    """The elements of an object's `features`, its other members put into `members`; or the object where it has none."""
    if whole := scanner.feature_in_reach():
        yield whole
        return
    scanner.take("{")
    others, is_collection = {}, False
    while scanner.peek() != "}":
        name = scanner.value()
        scanner.take(":")
        if name == "features" and scanner.peek() == "[":
            is_collection = True
            yield from _in_list(scanner)
        else:
            others[str(name)] = scanner.value()
        if scanner.peek() != "}":
            scanner.take(",")
    scanner.take("}")
    if is_collection:
        members.update(others)
    else:
        yield others
