"""Footprints on the ground, to files that a GIS opens and a map editor accepts."""

import io
import json
from collections.abc import Iterable
from pathlib import Path

import geopandas as gpd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio

DRIVERS = {".fgb": "FlatGeobuf", ".geojson": "GeoJSON"}
BATCH = 10_000
"""Rows that are held at a time."""


def write(frames: Iterable[gpd.GeoDataFrame], path: Path) -> None:
    """Write GeoParquet of some frames, at least one, of the same columns and CRS; one after the other."""
    writer = None
    try:
        for frame in frames:
            table = _table(frame)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
    finally:
        if writer:
            writer.close()


def convert(source: Path, target: Path) -> None:
    """Write the polygons of a GeoParquet file as one of DRIVERS, by the target's suffix.

    GeoJSON is that of RFC 7946: in degrees of seven decimals, a centimetre.
    """
    with pq.ParquetFile(source) as file:
        crs = json.loads(file.schema_arrow.metadata[b"geo"])["columns"]["geometry"]["crs"]
        plain = file.schema_arrow.remove_metadata()
        batches = (pa.RecordBatch.from_arrays(b.columns, schema=plain) for b in file.iter_batches(BATCH))
        pyogrio.write_arrow(
            pa.RecordBatchReader.from_batches(plain, batches),
            target,
            driver=DRIVERS[target.suffix],
            geometry_name="geometry",
            geometry_type="Polygon",
            crs=json.dumps(crs),
            layer_options={"RFC7946": "YES"} if target.suffix == ".geojson" else {},
        )


def _table(frame: gpd.GeoDataFrame) -> pa.Table:
    """The frame as Arrow, with the metadata that makes a file of it GeoParquet."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    table = pq.read_table(buffer)
    geo = json.loads(table.schema.metadata[b"geo"])
    column = geo["columns"]["geometry"]
    column.pop("bbox", None)  # of this frame alone
    column["geometry_types"] = ["Polygon"]
    return table.replace_schema_metadata({"geo": json.dumps(geo)})
