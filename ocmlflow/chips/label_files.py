"""Reads label files of any format: GeoJSON, GeoParquet, and what GDAL reads (GeoPackage, Shapefile, FlatGeobuf, KML)."""

import gzip
import io
import json
import posixpath
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import geopandas as gpd
import numpy as np
import pyogrio
import pyproj
import shapely
from pyarrow import parquet

from ocmlflow.chips import geojson, label_filter, wkb
from ocmlflow.errors import InputError
from ocmlflow.storage import hrefs

SIDECARS = {".shp": (".shx", ".dbf", ".prj", ".cpg")}
"""Files beside a label file that are part of it, by its suffix."""
BATCH = 2000
"""Features of GeoJSON that are made into geometries at a time."""
Box: TypeAlias = tuple[float, float, float, float]
"""Left, bottom, right and top, in the CRS of a file."""
_BEFORE_JSON = b"\xef\xbb\xbf\x1e \t\r\n"
"""Bytes that may stand before the first bracket: a byte order mark, a record separator, spaces."""


class State(IntEnum):
    """What became of a feature of a label file."""

    USED = 0
    REPAIRED = 1
    """Used, but not as it was drawn: a ring was open or crossed itself, or parts overlapped."""
    EMPTY = 2
    """It has no area: no geometry, a point, a line, or a polygon of which nothing is left once it is repaired."""
    OUTSIDE = 3
    """It is on no imagery, or it lies nowhere on earth."""
    REFUSED = 4
    """It cannot be read as a geometry."""
    LEFT_OUT = 5
    """The condition `where` is not true of it."""


@dataclass(frozen=True)
class Features:
    """Some of the features of a label file, in its order."""

    geometries: np.ndarray
    """(count,) shapely geometries without heights, in the CRS of the file; None where there is none."""
    numbers: np.ndarray
    """(count,) int: number of each in its file, from 1."""
    states: np.ndarray
    """(count,) of `State`: USED and REPAIRED, or why a feature cannot be used."""
    reasons: dict[int, str]
    """Why a feature is refused, by its number."""
    doubts: Counter[str]
    """Numbers of features that seem to be no buildings, by what they seem to be, such as `building=no`."""
    crs: pyproj.CRS | None
    """CRS of the file, as far as it was read; None where it names none."""


@dataclass(frozen=True)
class _Batch:
    """Features as a format's reader gives them."""

    geometries: np.ndarray
    numbers: np.ndarray
    closed: np.ndarray
    """(count,) bool: whether a ring was not closed in the file, and was closed here."""
    refused: dict[int, str]
    """Why a geometry cannot be used, by its position in the arrays."""
    properties: dict[str, list[Any]]
    """Values of those properties that were asked for and that some feature has, by their names in small letters."""
    known: frozenset[str]
    """Names of all properties so far, in small letters."""
    crs: pyproj.CRS | None


def read(href: str, *, layer: str | None, where: str | None, box: Box | None = None) -> Iterator[Features]:
    """The features of a label file, batch by batch; the CRS of the last batch is that of the file.

    `layer` is the layer of a file that has several, `where` an SQL condition of properties. With a `box`, features that
    do not meet it may be missing. Raises InputError where the file cannot be read.
    """
    try:
        with _opened(href) as (file, start):
            if start.startswith(b"PAR1"):
                batches = _parquet(file, _wanted(where))
            elif start.lstrip(_BEFORE_JSON)[:1] in (b"{", b"["):
                batches = _geojson(file, _wanted(where))
            else:
                batches = _gdal(file, layer, _wanted(where), box)
            count = 0
            for batch in batches:
                count += len(batch.geometries)
                yield _chosen(batch, where)
            if where and count:
                label_filter.check(where, batch.known)
    except InputError as error:
        raise InputError(f"labels {href}: {error}") from error
    except Exception as error:  # pyogrio, GDAL, pyarrow and the network each raise their own
        raise InputError(f"cannot read labels {href}: {error or type(error).__name__}") from error


def read_all(href: str, *, layer: str | None, where: str | None, box: Box | None = None) -> Features:
    """All features of a label file, as of `read`."""
    parts = list(read(href, layer=layer, where=where, box=box))
    return Features(
        np.concatenate([part.geometries for part in parts]),
        np.concatenate([part.numbers for part in parts]),
        np.concatenate([part.states for part in parts]),
        {number: reason for part in parts for number, reason in part.reasons.items()},
        sum((part.doubts for part in parts), Counter()),
        parts[-1].crs,
    )


def read_crs(href: str, *, layer: str | None) -> pyproj.CRS | None:
    """CRS of a local file that GDAL reads; None where it names none."""
    try:
        file = hrefs.local_path(href)
        crs = pyogrio.read_info(file, layer=_layer(file, layer))["crs"]
        return pyproj.CRS(crs) if crs else None
    except InputError as error:
        raise InputError(f"labels {href}: {error}") from error
    except Exception as error:
        raise InputError(f"cannot read labels {href}: {error}") from error


def file_parts(href: str) -> list[str]:
    """The hrefs of a label file and of the files beside it that may be part of it."""
    stem, suffix = posixpath.splitext(href)
    return [href, *(stem + other for other in SIDECARS.get(suffix.lower(), ()))]


def _wanted(where: str | None) -> set[str]:
    """Names of the properties to read, in small letters."""
    return set(label_filter.WATCHED) | label_filter.names(where or "")


def _chosen(batch: _Batch, where: str | None) -> Features:
    """The features of a batch with their states."""
    count = len(batch.geometries)
    states = np.where(batch.closed, State.REPAIRED, State.USED).astype(np.uint8)
    states[shapely.is_missing(batch.geometries) | shapely.is_empty(batch.geometries)] = State.EMPTY
    states[list(batch.refused)] = State.REFUSED
    if where and count:
        names = label_filter.names(where) - {"true", "false"}  # a column of that name would be taken for the word
        table = {name: batch.properties.get(name, [None] * count) for name in names}
        states[~label_filter.matches(where, table, count)] = State.LEFT_OUT
    doubts = label_filter.doubts(batch.properties, count)
    return Features(
        batch.geometries,
        batch.numbers,
        states,
        {int(batch.numbers[place]): reason for place, reason in batch.refused.items() if states[place] == State.REFUSED},
        Counter(doubt for doubt, state in zip(doubts, states, strict=True) if doubt and state <= State.REPAIRED),
        batch.crs,
    )


@contextmanager
def _opened(href: str) -> Iterator[tuple[Any, bytes]]:
    """A label file as GDAL and pyarrow take it (a local path or a stream), and its first bytes; JSON is a stream."""
    with tempfile.TemporaryDirectory() as folder:
        file: Any = hrefs.local_path(href)
        if hrefs.is_remote(href):
            has_more = len(file_parts(href)) > 1
            file = _copied(href, Path(folder)) if has_more else io.BytesIO(hrefs.read(href))
        with file.open("rb") if isinstance(file, Path) else file as stream:
            start = stream.read(512)
            if not start:
                raise InputError("the file is empty")
            stream.seek(0)
            if start.startswith(b"\x1f\x8b"):
                with gzip.open(stream) as unpacked:
                    start = unpacked.read(512)
                    unpacked.seek(0)
                    yield unpacked, start
            else:
                is_json = start.lstrip(_BEFORE_JSON)[:1] in (b"{", b"[")
                yield (stream if is_json else file), start


def _copied(href: str, folder: Path) -> Path:
    """Copy a remote file and those beside it to a folder; returns the path of the first."""
    for part in file_parts(href):
        path = folder / f"labels{posixpath.splitext(part)[1].lower()}"
        try:
            path.write_bytes(hrefs.read(part))
        except OSError:
            if part == href:  # of the others, not every one has to be there
                raise
    return folder / f"labels{posixpath.splitext(href)[1].lower()}"


def _geojson(stream: BinaryIO, wanted: set[str]) -> Iterator[_Batch]:
    members: dict[str, Any] = {}
    known: set[str] = set()
    elements_left = geojson.features(stream, members)
    count = 0
    try:
        while elements := list(islice(elements_left, BATCH)):
            geometries, closed, refused = geojson.geometries(elements)
            properties = [geojson.properties(element) for element in elements]
            known.update(name.lower() for held in properties for name in held)
            table = label_filter.columns(wanted, properties)
            yield _batch(geometries, closed, refused, table, frozenset(known), None, count)
            count += len(elements)
    except ValueError as error:
        raise InputError(f"cannot be read after feature {count}: no whole GeoJSON, {error}") from error
    nothing = np.empty(0, dtype=object)
    yield _batch(nothing, np.empty(0, bool), {}, {}, frozenset(known), _geojson_crs(members.get("crs")), count)


def _batch(
    geometries: np.ndarray,
    closed: np.ndarray,
    refused: dict[int, str],
    properties: dict[str, list[Any]],
    known: frozenset[str],
    crs: pyproj.CRS | None,
    before: int,
) -> _Batch:
    """A batch whose features are numbered on from the `before` features before it."""
    numbers = np.arange(before + 1, before + 1 + len(geometries))
    return _Batch(geometries, numbers, closed, refused, properties, known, crs)


def _geojson_crs(member: Any) -> pyproj.CRS:
    """CRS of a member `crs` of GeoJSON of 2008; degrees (longitude, latitude) where there is none, as in RFC 7946."""
    properties = member.get("properties") if isinstance(member, dict) else None
    properties = properties if isinstance(properties, dict) else {}
    name = str(properties.get("name") or properties.get("code") or "EPSG:4326")
    if "CRS84" in name:
        return pyproj.CRS("EPSG:4326")
    try:
        return pyproj.CRS(f"EPSG:{name}" if name.isdigit() else name)
    except pyproj.exceptions.CRSError as error:
        raise InputError(f"its CRS, {name}, is not known") from error


def _parquet(file: Any, wanted: set[str]) -> Iterator[_Batch]:
    source = parquet.ParquetFile(file)
    names = source.schema_arrow.names
    about = json.loads((source.schema_arrow.metadata or {}).get(b"geo", b"{}"))
    name = about.get("primary_column") or next((n for n in ("geometry", "geom", "wkb") if n in names), None)
    if name is None:
        raise InputError("it has no column of geometries, as GeoParquet has")
    column = about.get("columns", {}).get(name, {})
    crs = pyproj.CRS(column.get("crs", "EPSG:4326")) if column.get("crs", "") is not None else None
    known = frozenset(n.lower() for n in names if n != name)
    columns = [n for n in names if n.lower() in wanted and n != name]
    count = 0
    for batch in source.iter_batches(batch_size=1 << 16, columns=[name, *columns]):
        shapes, closed, refused = _parquet_shapes(batch, name, column.get("encoding", "WKB"))
        table = {n.lower(): batch.column(n).to_pylist() for n in columns}
        yield _batch(shapes, closed, refused, table, known, crs, count)
        count += len(shapes)
    if not count:
        yield _batch(np.empty(0, dtype=object), np.empty(0, bool), {}, {}, known, crs, count)


def _parquet_shapes(batch: Any, name: str, encoding: str) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    if encoding == "WKB":
        return wkb.geometries(batch.column(name).to_numpy(zero_copy_only=False))
    from geopandas.io._geoarrow import construct_shapely_array  # type: ignore[import-untyped]

    shapes = shapely.force_2d(construct_shapely_array(batch.column(name), f"geoarrow.{encoding}"))
    return shapes, np.zeros(len(shapes), bool), {}


def _gdal(file: Any, layer: str | None, wanted: set[str], box: Box | None) -> Iterator[_Batch]:
    name = _layer(file, layer)
    fields = pyogrio.read_info(file, layer=name)["fields"]
    meta, ids, content, values = pyogrio.raw.read(
        file,
        layer=name,
        columns=[field for field in fields if field.lower() in wanted],
        force_2d=True,
        bbox=box,
        return_fids=True,
    )
    shapes, closed, refused = wkb.geometries(content)
    table = {field.lower(): list(column) for field, column in zip(meta["fields"], values, strict=True)}
    crs = pyproj.CRS(meta["crs"]) if meta["crs"] else None
    known = frozenset(field.lower() for field in fields)
    numbers = np.arange(1, len(shapes) + 1) if box is None else np.asarray(ids)
    yield _Batch(shapes, numbers, closed, refused, table, known, crs)


def _layer(file: Any, layer: str | None) -> str:
    """The one layer with geometries, or the one that is asked for."""
    layers = [name for name, kind in pyogrio.list_layers(file) if kind is not None]  # tables, such as styles, have none
    if layer is None and len(layers) == 1:
        return str(layers[0])
    if layer is not None and layer in layers:
        return layer
    found = f"it has {len(layers)} layers with geometries ({', '.join(layers)})"
    if layer is not None:
        raise InputError(f"{found}, and none is called {layer}")
    raise InputError(
        f"{found}; choose that of the buildings with layer=NAME, or save the buildings as a file with one layer"
    )
