"""Reads label files: GeoJSON, GeoParquet, and what GDAL reads, such as GeoPackage, Shapefile, FlatGeobuf and KML."""

import gzip
import posixpath
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pyogrio
import pyproj
import shapely

from ocmlflow.chips import label_filter, label_formats
from ocmlflow.chips.label_formats import Batch, Box
from ocmlflow.errors import InputError
from ocmlflow.storage import hrefs

SIDECARS = {".shp": (".shx", ".dbf", ".prj", ".cpg")}
"""Files beside a label file that are part of it, by its suffix."""


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


def read(href: str, *, layer: str | None, where: str | None, box: Box | None = None) -> Iterator[Features]:
    """The features of a label file, batch by batch; the CRS of the last batch is that of the file.

    `layer` is the layer of a file that has several, `where` an SQL condition of properties. With a `box`, features that
    do not meet it may be missing. Raises InputError, which does not name the file, where it cannot be read.
    """
    try:
        with _opened(href) as (file, start):
            if start.startswith(b"PAR1"):
                batches = label_formats.parquet_batches(file, _wanted(where))
            elif _is_json(start):
                batches = label_formats.geojson_batches(file, _wanted(where))
            else:
                batches = label_formats.gdal_batches(file, layer, _wanted(where), box)
            count = 0
            for batch in batches:
                count += len(batch.geometries)
                yield _chosen(batch, where)
            if where and count:
                label_filter.check(where, batch.known)
    except InputError:
        raise
    except Exception as error:  # pyogrio, GDAL, pyarrow and the network each raise their own
        raise InputError(f"it cannot be read: {error or type(error).__name__}") from error


def read_all(href: str, *, layer: str | None, where: str | None, box: Box | None = None) -> Features:
    """All features of a label file, as of `read`."""
    return join(list(read(href, layer=layer, where=where, box=box)))


def join(parts: list[Features]) -> Features:
    """The batches of one file as one."""
    return Features(
        np.concatenate([part.geometries for part in parts]),
        np.concatenate([part.numbers for part in parts]),
        np.concatenate([part.states for part in parts]),
        {number: reason for part in parts for number, reason in part.reasons.items()},
        sum((part.doubts for part in parts), Counter()),
        parts[-1].crs,
    )


def read_place(href: str, *, layer: str | None) -> tuple[pyproj.CRS | None, Box]:
    """CRS and bounds of a local file that GDAL reads; the CRS is None where it names none."""
    try:
        source, name = label_formats.find_layer(hrefs.local_path(href), layer)
        info = pyogrio.read_info(source, layer=name, force_total_bounds=True)
        return pyproj.CRS(info["crs"]) if info["crs"] else None, info["total_bounds"]
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"it cannot be read: {error}") from error


def file_parts(href: str) -> list[str]:
    """The hrefs of a label file and of the files beside it that may be part of it."""
    stem, suffix = posixpath.splitext(href)
    others = SIDECARS.get(suffix.lower(), ())
    return [href, *(stem + (other.upper() if suffix.isupper() else other) for other in others)]


def _wanted(where: str | None) -> set[str]:
    """Names of the properties to read, in small letters."""
    return set(label_filter.WATCHED) | label_filter.names(where or "")


def _chosen(batch: Batch, where: str | None) -> Features:
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
        {
            int(batch.numbers[place]): reason
            for place, reason in batch.refused.items()
            if states[place] == State.REFUSED
        },
        Counter(doubt for doubt, state in zip(doubts, states, strict=True) if doubt and state <= State.REPAIRED),
        batch.crs,
    )


@contextmanager
def _opened(href: str) -> Iterator[tuple[Any, bytes]]:
    """A label file and its first bytes: the path of a local file, or a stream of JSON or of what was packed by gzip."""
    with tempfile.TemporaryDirectory() as folder:
        file = _copied(href, Path(folder)) if hrefs.is_remote(href) else hrefs.local_path(href)
        with file.open("rb") as stream, gzip.open(stream) as unpacked:
            is_packed = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            content: Any = unpacked if is_packed else stream
            start = content.read(512)
            content.seek(0)
            if not start:
                raise InputError("the file is empty")
            yield (content if is_packed or _is_json(start) else file), start


def _is_json(start: bytes) -> bool:
    return start.lstrip(b"\xef\xbb\xbf\x1e \t\r\n")[:1] in (b"{", b"[")  # after a mark of UTF-8 or a text sequence


def _copied(href: str, folder: Path) -> Path:
    """Copy a remote file and those beside it to a folder; returns the path of the first."""
    for part in reversed(file_parts(href)):
        path = folder / f"labels{posixpath.splitext(urlparse(part).path)[1].lower()}"
        try:
            path.write_bytes(hrefs.read(part))
        except OSError:
            if part == href:  # of the others, not every one has to be there
                raise
    return path
