"""Writes footprints as GeoParquet, FlatGeobuf and GeoJSON, a batch at a time."""

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
"""GDAL drivers of the formats beside GeoParquet, by suffix."""
BATCH = 2_000
"""Footprints held in memory at a time."""
MIN_SQUARED_IOU = 0.7
"""Least IoU of a squared outline with the outline that it replaces."""


@dataclass(frozen=True)
class FootprintTotals:
    """Totals over the footprints of a file."""

    buildings: int
    """Number of footprints."""
    area_m2: float
    """Their area."""


def frames(
    footprints: Iterable[PredictedFootprint],
    grid: GeoBox,
    *,
    scene: str,
    tolerance: float,
    min_area_m2: float,
    squared_in: str | None = None,
) -> Iterator[gpd.GeoDataFrame]:
    """Frames of at most BATCH footprints, at least one frame, without footprints below `min_area_m2`.

    `footprints` are in (col, row) of `grid`, the frames in its CRS, with columns scene, probability, area_m2, geometry.
    Staircases are simplified by about `tolerance` pixels. With `squared_in`, a CRS in metres, outlines are made
    right-angled in it. Areas are measured in an equal-area projection.
    """
    units = tolerance * abs(grid.transform.determinant) ** 0.5
    equal_area = geobox.equal_area_crs(grid)
    rest = iter(footprints)
    is_last = False
    while not is_last:
        batch = polygonize.to_ground(islice(rest, BATCH), grid.transform, tolerance=units)
        is_last = len(batch) < BATCH
        frame = _frame(batch, scene, grid.crs)
        if squared_in and len(frame):
            frame = squared(frame, squared_in)
        frame["area_m2"] = frame.to_crs(equal_area).area.round(2)
        yield frame[frame.area_m2 >= min_area_m2][["scene", "probability", "area_m2", "geometry"]]


def squared(frame: gpd.GeoDataFrame, crs: str) -> gpd.GeoDataFrame:
    """The frame with right-angled outlines, by buildingregulariser, computed in a CRS in metres.

    An outline stays as it is if squaring would split it, or change it to an IoU below MIN_SQUARED_IOU.
    """
    from buildingregulariser import regularize_geodataframe  # an extra

    plain = frame.to_crs(crs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about outlines that it leaves as they are
        regular = regularize_geodataframe(plain.assign(row=range(len(plain))), num_cores=1, include_metadata=True)
    is_good = (regular.iou >= MIN_SQUARED_IOU) & regular.is_valid & (regular.geom_type == "Polygon")
    regular = regular[is_good & ~regular.row.duplicated(keep=False)]
    outlines = plain.geometry.to_numpy().copy()
    outlines[regular.row.to_numpy()] = regular.geometry.to_numpy()
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
    """Convert a GeoParquet file of polygons to the format of DRIVERS that the target's suffix names.

    GeoJSON follows RFC 7946: degrees of seven decimals, a centimetre. Raises OSError, naming the target, if the file is
    incomplete.
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
        _check_complete(target, file.metadata.num_rows)


def _check_complete(path: Path, rows: int) -> None:
    """Raise OSError unless so many rows can be read: GDAL does not report what a full disk cuts off at the end."""
    try:
        with pyogrio.open_arrow(path, columns=[], batch_size=BATCH) as (_, stream):
            readable = sum(len(batch) for batch in pa.RecordBatchReader.from_stream(stream))
    except (OSError, pyogrio.errors.DataSourceError) as error:
        raise OSError(f"{path} is incomplete; is the disk full? {error}") from error
    if readable != rows:
        raise OSError(f"{path} is incomplete: {readable} of {rows} footprints can be read; is the disk full?")


def _frame(footprints: list[PredictedFootprint], scene: str, crs: str) -> gpd.GeoDataFrame:
    """Footprints as a frame with the scene of each and its probability, rounded to four decimals."""
    probabilities = [round(footprint.probability, 4) for footprint in footprints]
    columns = {
        "scene": pd.Series([scene] * len(footprints), dtype="str"),
        "probability": np.array(probabilities, np.float64),
    }
    outlines = gpd.GeoSeries([footprint.outline for footprint in footprints], crs=crs)
    return gpd.GeoDataFrame(columns, geometry=outlines)


def _table(frame: gpd.GeoDataFrame) -> pa.Table:
    """The frame as an Arrow table with GeoParquet metadata that suits all frames of a file."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    table = pq.read_table(buffer)
    geo = json.loads(table.schema.metadata[b"geo"])
    column = geo["columns"]["geometry"]
    column.pop("bbox", None)  # bounds of this frame only
    column["geometry_types"] = ["Polygon"]
    return table.replace_schema_metadata({"geo": json.dumps(geo)})
