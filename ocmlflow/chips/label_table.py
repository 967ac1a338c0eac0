"""Label files that many scenes share: each is read once, and each scene reads only what is near it.

GeoPackage, Shapefile and FlatGeobuf have an index of their own. Any other file is written once to a table of bounds and
geometries (Arrow IPC), which is mapped into memory: the bounds of a million footprints are looked through in
milliseconds.
"""

import posixpath
from collections import Counter
from dataclasses import dataclass, replace
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
    bounds: Box
    """Of all its features, in its CRS."""
    layer: str | None
    where: str | None
    """Which features are chosen, as of `label_files.read`."""
    about: Features | None
    """What was found in the file, without the geometries; None for a file with an index, which was not read."""


def open_file(href: str, path: Path, *, layer: str | None, where: str | None) -> LabelTable:
    """A label file, ready to be read place by place; `path` is the table to write where it has no index of its own.

    Raises InputError where the file cannot be read.
    """
    if posixpath.splitext(href)[1].lower() in INDEXED and not hrefs.is_remote(href):
        crs, box = label_files.read_place(href, layer=layer)
        return LabelTable(href, None, crs, box, layer, where, None)
    parts, bounds = [], []
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        for features in label_files.read(href, layer=layer, where=where):
            writer.write_batch(_rows(features))
            bounds.append(_bounds(features))
            parts.append(replace(features, geometries=np.empty(0, dtype=object)))
    about = label_files.join(parts)
    left, bottom = np.min(bounds, axis=0)[:2].tolist()
    right, top = np.max(bounds, axis=0)[2:].tolist()
    return LabelTable(href, str(path), about.crs, (left, bottom, right, top), layer, where, about)


def near(table: LabelTable, box: Box) -> Features:
    """The features of a file whose bounds meet a box in its CRS."""
    if table.path is None:
        return label_files.read_all(table.href, layer=table.layer, where=table.where, box=box)
    with pa.memory_map(table.path) as source, pa.ipc.open_file(source) as file:
        batches = [_meeting(file.get_batch(number), box) for number in range(file.num_record_batches)]
        rows = pa.Table.from_batches(batches, _SCHEMA)
    return Features(
        shapely.from_wkb(rows.column("wkb").to_numpy()),
        rows.column("number").to_numpy(),
        rows.column("state").to_numpy(),
        {},
        Counter(),
        table.crs,
    )


def _meeting(rows: pa.RecordBatch, box: Box) -> pa.RecordBatch:
    """The rows whose bounds meet a box."""
    left, bottom, right, top = (rows.column(edge).to_numpy() for edge in _EDGES)
    meets = (left <= box[2]) & (right >= box[0]) & (bottom <= box[3]) & (top >= box[1])
    return rows.filter(pa.array(meets)) if meets.any() else rows.slice(0, 0)


def _rows(features: Features) -> pa.RecordBatch:
    """The features that can be used, as rows of a table."""
    usable = features.states <= State.REPAIRED
    shapes = features.geometries[usable]
    columns = [features.numbers[usable], features.states[usable], *shapely.bounds(shapes).T, shapely.to_wkb(shapes)]
    return pa.record_batch(
        [pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA
    )


def _bounds(features: Features) -> np.ndarray:
    """Left, bottom, right and top of the features that can be used; infinitely small where there are none."""
    each = shapely.bounds(features.geometries[features.states <= State.REPAIRED])
    lowest, highest = each[:, :2].min(axis=0, initial=np.inf), each[:, 2:].max(axis=0, initial=-np.inf)
    return np.concatenate([lowest, highest])
