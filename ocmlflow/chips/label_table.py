"""Label files that many scenes share: each is read once, and each scene reads only what is near it.

GeoPackage, Shapefile and FlatGeobuf have an index of their own. Any other file is written once to a table of bounds and
geometries (Arrow IPC), which is mapped into memory: the bounds of a million footprints are looked through in
milliseconds.
"""

import posixpath
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyproj
import shapely

from ocmlflow.chips import label_files
from ocmlflow.chips.label_files import Features, State
from ocmlflow.chips.label_formats import Box
from ocmlflow.storage import hrefs

INDEXED = (".gpkg", ".fgb", ".shp")
"""Files of which GDAL reads the features of a box without reading all of them."""
_EDGES = ("left", "bottom", "right", "top")
_SCHEMA = pa.schema(
    [("number", pa.int64()), ("state", pa.uint8()), *((edge, pa.float64()) for edge in _EDGES), ("wkb", pa.binary())]
)


@dataclass(frozen=True)
class LabelTable:
    """A label file from which the features near a place can be read."""

    href: str
    """Href of the file."""
    path: str | None
    """Path of its table; None for a file with an index of its own."""
    crs: pyproj.CRS | None
    """None where the file names none."""
    layer: str | None
    where: str | None
    """Which features are chosen, as of `label_files.read`."""
    about: Features
    """What was found in the file as a whole, without geometries; nothing for a file with an index of its own."""


def open_file(href: str, path: Path, *, layer: str | None, where: str | None) -> LabelTable:
    """A label file, ready to be read place by place; `path` is the table to write where it has no index of its own.

    Raises InputError where the file cannot be read.
    """
    nothing = np.empty(0, dtype=object), np.empty(0, int)
    if posixpath.splitext(href)[1].lower() in INDEXED and not hrefs.is_remote(href):
        about = Features(*nothing, np.empty(0, np.uint8), {}, Counter(), label_files.read_crs(href, layer=layer))
        return LabelTable(href, None, about.crs, layer, where, about)
    states: list[np.ndarray] = []
    reasons: dict[int, str] = {}
    doubts: Counter[str] = Counter()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        for features in label_files.read(href, layer=layer, where=where):
            writer.write_batch(_rows(features))
            states.append(features.states)
            reasons.update(features.reasons)
            doubts += features.doubts
    about = Features(*nothing, np.concatenate(states), reasons, doubts, features.crs)
    return LabelTable(href, str(path), features.crs, layer, where, about)


def near(table: LabelTable, box: Box) -> Features:
    """The features of a file whose bounds meet a box in its CRS."""
    if table.path is None:
        return label_files.read_all(table.href, layer=table.layer, where=table.where, box=box)
    with pa.memory_map(table.path) as source:
        rows = pa.ipc.open_file(source).read_all()
        left, bottom, right, top = (rows.column(edge).to_numpy() for edge in _EDGES)
        meets = (left <= box[2]) & (right >= box[0]) & (bottom <= box[3]) & (top >= box[1])
        chosen = rows.take(np.flatnonzero(meets))
        return Features(
            shapely.from_wkb(chosen.column("wkb").to_numpy()),
            chosen.column("number").to_numpy(),
            chosen.column("state").to_numpy(),
            {},
            Counter(),
            table.crs,
        )


def _rows(features: Features) -> pa.RecordBatch:
    """The features that can be used, as rows of a table."""
    usable = features.states <= State.REPAIRED
    shapes = features.geometries[usable]
    columns = [features.numbers[usable], features.states[usable], *shapely.bounds(shapes).T, shapely.to_wkb(shapes)]
    return pa.record_batch(
        [pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA
    )
