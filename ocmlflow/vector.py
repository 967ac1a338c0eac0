"""Footprints on the ground, to files that a GIS opens and a map editor accepts."""

import io
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio

from ocmlflow import polygons
from ocmlflow.polygons import Footprint
from ocmlflow.raster import Grid

DRIVERS = {".fgb": "FlatGeobuf", ".geojson": "GeoJSON"}
BATCH = 10_000
"""Rows that are held at a time."""


EQUAL_AREA = "EPSG:6933"
"""Areas are true square metres in it, wherever on earth and whatever the scene's CRS."""


def frames(
    found: Iterable[Footprint], place: Grid, *, scene: str, tolerance: float, min_area_m2: float
) -> Iterator[gpd.GeoDataFrame]:
    """Footprints in (col, row) on the ground, BATCH at a time and at least one frame, without those too small.

    Columns scene, probability, area_m2, geometry, in the CRS of `place`; staircases are straightened by about
    `tolerance` pixels.
    """
    rest, last = iter(found), False
    while not last:
        units = tolerance * abs(place.transform.determinant) ** 0.5
        some = polygons.to_ground(islice(rest, BATCH), place.transform, tolerance=units)
        last = len(some) < BATCH
        frame = gpd.GeoDataFrame(
            {
                "scene": pd.Series([scene] * len(some), dtype="str"),
                "probability": np.array([round(f.probability, 4) for f in some], np.float64),
            },
            geometry=gpd.GeoSeries([f.outline for f in some], crs=place.crs),
        )
        frame["area_m2"] = frame.to_crs(EQUAL_AREA).area.round(2)
        yield frame[frame.area_m2 >= min_area_m2][["scene", "probability", "area_m2", "geometry"]]


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
