"""Footprints on the ground, to files that a GIS opens and a map editor accepts."""

import io
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio

from ocmlflow.prediction import polygonize
from ocmlflow.prediction.polygonize import PredictedFootprint
from ocmlflow.scenes import geobox
from ocmlflow.scenes.geobox import GeoBox

DRIVERS = {".fgb": "FlatGeobuf", ".geojson": "GeoJSON"}
BATCH = 2_000
"""Rows that are held at a time."""
LEAST_IOU = 0.7
"""Of a squared outline with the outline it was made from."""


@dataclass(frozen=True)
class FootprintTotals:
    """Totals over the footprints of a file."""

    buildings: int
    """Number of footprints."""
    area_m2: float
    """Their area."""


def frames(
    found: Iterable[PredictedFootprint],
    place: GeoBox,
    *,
    scene: str,
    tolerance: float,
    min_area_m2: float,
    squared_in: str | None = None,
) -> Iterator[gpd.GeoDataFrame]:
    """Footprints in (col, row) on the ground, BATCH at a time and at least one frame, without those too small.

    Columns scene, probability, area_m2, geometry, in the CRS of `place`; staircases are straightened by about
    `tolerance` pixels. With `squared_in`, a CRS in metres, outlines are made right-angled in it.
    """
    rest, last, equal_area = iter(found), False, geobox.equal_area_crs(place)
    while not last:
        units = tolerance * abs(place.transform.determinant) ** 0.5
        some = polygonize.to_ground(islice(rest, BATCH), place.transform, tolerance=units)
        last = len(some) < BATCH
        frame = gpd.GeoDataFrame(
            {
                "scene": pd.Series([scene] * len(some), dtype="str"),
                "probability": np.array([round(f.probability, 4) for f in some], np.float64),
            },
            geometry=gpd.GeoSeries([f.outline for f in some], crs=place.crs),
        )
        if squared_in and len(frame):
            frame = squared(frame, squared_in)
        frame["area_m2"] = frame.to_crs(equal_area).area.round(2)
        yield frame[frame.area_m2 >= min_area_m2][["scene", "probability", "area_m2", "geometry"]]


def squared(frame: gpd.GeoDataFrame, crs: str) -> gpd.GeoDataFrame:
    """The frame with right-angled outlines, by buildingregulariser, worked out in a CRS in metres.

    Outlines that would lose too much of what was found, by IoU below LEAST_IOU, or fall apart, stay as they are.
    """
    from buildingregulariser import regularize_geodataframe  # an extra

    plain = frame.to_crs(crs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of those that it leaves as they are
        made = regularize_geodataframe(plain.assign(row=range(len(plain))), num_cores=1, include_metadata=True)
    whole = (made.iou >= LEAST_IOU) & made.is_valid & (made.geom_type == "Polygon")
    made = made[whole & ~made.row.duplicated(keep=False)]
    outlines = plain.geometry.to_numpy().copy()
    outlines[made.row.to_numpy()] = made.geometry.to_numpy()
    return gpd.GeoDataFrame(frame.drop(columns="geometry"), geometry=outlines, crs=crs).to_crs(frame.crs)


def write(frames: Iterable[gpd.GeoDataFrame], path: Path) -> FootprintTotals:
    """Write frames of footprints, at least one, to a GeoParquet file, one after the other; returns the totals.

    All have the same columns, `area_m2` among them, and the same CRS.
    """
    writer = None
    buildings = 0
    area_m2 = 0.0
    try:
        for frame in frames:
            table = _table(frame)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            buildings += len(frame)
            area_m2 += float(frame.area_m2.sum())
    finally:
        if writer:
            writer.close()
    return FootprintTotals(buildings, area_m2)


def convert(source: Path, target: Path) -> None:
    """Write the polygons of a GeoParquet file as one of DRIVERS, by the target's suffix.

    GeoJSON is that of RFC 7946: in degrees of seven decimals, a centimetre. Raises OSError, naming the target, where it
    does not become whole.
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
        _check_whole(target, file.metadata.num_rows)


def _check_whole(path: Path, rows: int) -> None:
    """Raise OSError, naming it, unless so many rows can be read: GDAL does not tell what is lost at the very end."""
    try:
        with pyogrio.open_arrow(path, columns=[], batch_size=BATCH) as (_, stream):
            found = sum(len(batch) for batch in pa.RecordBatchReader.from_stream(stream))
    except (OSError, pyogrio.errors.DataSourceError) as error:
        raise OSError(f"{path} is not whole, as if the disk had been full: {error}") from error
    if found != rows:
        raise OSError(f"{path} is not whole, as if the disk had been full: {found} of {rows} footprints can be read")


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
