"""Readers of the formats of label files: GeoJSON, GeoParquet, and what GDAL reads, such as GeoPackage and KML."""

import gc
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import quote
from xml.sax.saxutils import escape

import numpy as np
import pyogrio
import pyproj
import shapely
from pyarrow import parquet

from ocmlflow.chips import geojson, label_filter, wkb
from ocmlflow.errors import InputError

BATCH = 2000
"""Features of GeoJSON that are made into geometries at a time."""
Box: TypeAlias = tuple[float, float, float, float]
"""Left, bottom, right and top, in the CRS of a file."""


@dataclass(frozen=True)
class Batch:
    """Features as the reader of a format gives them."""

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


def geojson_batches(stream: BinaryIO, wanted: set[str]) -> Iterator[Batch]:
    """Features of GeoJSON, with the properties `wanted` (names in small letters); the last batch has the CRS.

    Raises InputError for what is no whole GeoJSON.
    """
    members: dict[str, Any] = {}
    known: set[str] = set()
    elements_left = geojson.features(stream, members)
    count = 0
    try:
        while True:
            with _no_garbage_collection():
                elements = list(islice(elements_left, BATCH))
                geometries, closed, refused = geojson.geometries(elements)
            if not elements:
                break
            properties = [geojson.properties(element) for element in elements]
            known.update(name.lower() for name in set().union(*properties))
            table = label_filter.columns(wanted, properties)
            yield _batch(geometries, closed, refused, table, frozenset(known), None, count)
            count += len(elements)
    except ValueError as error:
        raise InputError(f"it cannot be read after feature {count}: it is no whole GeoJSON, {error}") from error
    nothing = np.empty(0, dtype=object)
    yield _batch(nothing, np.empty(0, bool), {}, {}, frozenset(known), _geojson_crs(members.get("crs")), count)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python from looking for cycles of references, which took two fifths of the time; JSON has none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _batch(
    geometries: np.ndarray,
    closed: np.ndarray,
    refused: dict[int, str],
    properties: dict[str, list[Any]],
    known: frozenset[str],
    crs: pyproj.CRS | None,
    before: int,
) -> Batch:
    """A batch whose features are numbered on from the `before` features before it."""
    numbers = np.arange(before + 1, before + 1 + len(geometries))
    return Batch(geometries, numbers, closed, refused, properties, known, crs)


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


def parquet_batches(file: Any, wanted: set[str]) -> Iterator[Batch]:
    """Features of GeoParquet (geoparquet.org, version 1.1), with the properties `wanted` (names in small letters).

    A file without the metadata of GeoParquet may have geometries in a column `geometry`, `geom` or `wkb`.
    """
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
    from geopandas.io._geoarrow import construct_shapely_array

    shapes = shapely.force_2d(construct_shapely_array(batch.column(name), f"geoarrow.{encoding}"))
    return shapes, np.zeros(len(shapes), bool), {}


def gdal_batches(file: Any, layer: str | None, wanted: set[str], box: Box | None) -> Iterator[Batch]:
    """The features of a layer that GDAL reads, with the properties `wanted` (names in small letters)."""
    source, name = find_layer(file, layer)
    info = pyogrio.read_info(source, layer=name)
    meta, ids, content, values = pyogrio.raw.read(
        source,
        layer=name,
        columns=[field for field in info["fields"] if field.lower() in wanted],
        force_2d=True,
        bbox=box,
        return_fids=True,
    )
    shapes, closed, refused = wkb.geometries(content)
    table = {field.lower(): list(column) for field, column in zip(meta["fields"], values, strict=True)}
    crs = pyproj.CRS(meta["crs"]) if meta["crs"] else None
    known = frozenset(field.lower() for field in info["fields"])
    numbers = np.arange(1, len(shapes) + 1) if box is None else np.asarray(ids)
    yield Batch(shapes, numbers, closed, refused, table, known, crs)


def find_layer(file: Any, layer: str | None) -> tuple[Any, str]:
    """The source to give to GDAL, and the one layer with geometries, or the one that is asked for."""
    try:
        layers = [name for name, kind in pyogrio.list_layers(file) if kind is not None]  # tables have none, as styles
        source = file
    except pyogrio.errors.GeometryError:  # of a type that pyogrio does not know, such as surfaces
        layers = _layer_names(file)
        source = None
    if len(layers) != 1 and layer is None:
        raise InputError(
            f"it has {len(layers)} layers with geometries ({', '.join(layers)}); choose that of the buildings with "
            "layer=NAME, or save the buildings as a file with one layer"
        )
    if layer is not None and layer not in layers:
        raise InputError(f"it has no layer {layer} with geometries; it has {', '.join(layers)}")
    name = str(layer or layers[0])
    return source or _untyped(file, name), name


def _layer_names(file: Path) -> list[str]:
    """Layers of a file that has a layer of a geometry type that pyogrio refuses."""
    if file.suffix.lower() != ".gpkg":
        return [file.stem]
    with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as database:
        return [name for (name,) in database.execute("SELECT table_name FROM gpkg_geometry_columns")]


def _untyped(file: Path, layer: str) -> str:
    """A layer as a virtual one of GDAL's, which says nothing of the type of its geometries."""
    path, name = escape(str(file.absolute())), escape(layer, {'"': "&quot;"})
    return (
        f'<OGRVRTDataSource><OGRVRTLayer name="{name}"><SrcDataSource>{path}</SrcDataSource>'
        f"<SrcLayer>{escape(layer)}</SrcLayer><GeometryType>wkbUnknown</GeometryType></OGRVRTLayer></OGRVRTDataSource>"
    )
