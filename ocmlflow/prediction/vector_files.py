"""Writes footprints as GeoParquet, FlatGeobuf and GeoJSON, a batch at a time."""

import io
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import shapely

from ocmlflow.prediction import ground_outlines, outlines
from ocmlflow.prediction.polygonize import PredictedFootprint
from ocmlflow.scenes import geobox
from ocmlflow.scenes.geobox import GeoBox

log = logging.getLogger(__name__)

DRIVERS = {".fgb": "FlatGeobuf", ".geojson": "GeoJSON"}
"""GDAL drivers of the formats beside GeoParquet, by suffix."""
COLUMNS = ["id", "scene", "building", "probability", "area_m2", "geometry"]
"""`building` is the tag of OpenStreetMap, always `yes`."""
BATCH = 2_000
"""Traced footprints that are worked on at a time."""

SPECK = 0.5
"""A footprint of less than this share of the smallest area stays below it, whatever becomes of its outline."""


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
    outline: str,
    min_area_m2: float,
    min_hole_m2: float,
) -> Iterator[gpd.GeoDataFrame]:
    """Frames of about BATCH traced footprints, at least one frame, without those below `min_area_m2`.

    `footprints` are in (col, row) of `grid`, in the order of `polygonize.trace`; the frames are in the grid's CRS, with
    the columns COLUMNS. `id` is the scene, and row and column of the building's first pixel; the parts of an outline
    that is split are numbered. `outline` is one of `ground_outlines.OUTLINES`; holes below `min_hole_m2` are filled.
    Outlines are polygons of fewer than 2,000 corners that do not overlap, and stay valid and apart when `convert`
    rounds them. Areas are measured in an equal-area projection.
    """
    pixel = abs(grid.transform.determinant) ** 0.5
    equal_area = geobox.equal_area_crs(grid)
    written = outlines.WrittenOutlines()
    split = 0
    # Most footprints of an unsure network are specks: without their corners, the walls beside them are one line too.
    least_pixels = SPECK * min_area_m2 / pixel**2
    large = (footprint for footprint in footprints if footprint.outline.area >= least_pixels)
    for batch, around in ground_outlines.batches(large, size=BATCH):
        fill = partial(outlines.fill_holes, crs=grid.crs, equal_area=equal_area, min_hole_m2=min_hole_m2)
        filled = fill(ground_outlines.to_ground(batch, around, written, grid, outline=outline))
        frame = _frame(batch, outlines.shorten(filled, tolerance=pixel), scene, grid.crs)
        split += int((frame.geom_type == "MultiPolygon").sum())
        frame = _with_outlines(frame, frame.geometry.to_numpy())
        frame = _with_outlines(frame, outlines.rounding_safe(frame.geometry.to_numpy(), grid.crs))
        frame = _large(_with_outlines(frame, fill(frame.geometry.to_numpy())), equal_area, min_area_m2)
        for _ in range(outlines.ROUNDS):
            if (apart := outlines.cut_overlaps(frame.geometry.to_numpy(), written, grid.crs)) is None:
                break
            frame = _large(_with_outlines(frame, apart), equal_area, min_area_m2)
        written.add(frame.geometry.to_numpy())
        yield _number_parts(frame)[COLUMNS]
    if split:
        log.warning("scene %s: %d outlines with too many corners for map editors are split", scene, split)


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

    Both are in degrees (lon, lat) of seven decimals, a centimetre: RFC 7946 asks that of GeoJSON, and web maps and
    tippecanoe take no other FlatGeobuf. Raises OSError, naming the target, if the file is incomplete.
    """
    with pq.ParquetFile(source) as file:
        crs = json.loads(file.schema_arrow.metadata[b"geo"])["columns"]["geometry"]["crs"]
        plain = file.schema_arrow.remove_metadata()
        batches = (_in_degrees(batch, plain, json.dumps(crs)) for batch in file.iter_batches(BATCH))
        pyogrio.write_arrow(
            pa.RecordBatchReader.from_batches(plain, batches),
            target,
            driver=DRIVERS[target.suffix],
            geometry_name="geometry",
            geometry_type="Polygon",
            crs="EPSG:4326",
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


def _frame(footprints: list[PredictedFootprint], ground: np.ndarray, scene: str, crs: str) -> gpd.GeoDataFrame:
    """Footprints, of which these are the outlines on the ground, as a frame; probabilities have four decimals."""
    ids = [f"{scene}-{row}-{col}" for row, col in (footprint.first_pixel for footprint in footprints)]
    columns = {
        "id": pd.Series(ids, dtype="str"),
        "scene": pd.Series([scene] * len(ids), dtype="str"),
        "building": pd.Series(["yes"] * len(ids), dtype="str"),
        "probability": np.array([round(footprint.probability, 4) for footprint in footprints], np.float64),
    }
    return gpd.GeoDataFrame(columns, geometry=gpd.GeoSeries(ground, crs=crs))


def _with_outlines(frame: gpd.GeoDataFrame, new: np.ndarray) -> gpd.GeoDataFrame:
    """The frame with new outlines: a row for each polygon of a MultiPolygon, none for an empty outline."""
    parts = [outlines.polygons(outline) for outline in new]
    rows = np.repeat(np.arange(len(frame)), [len(polygons) for polygons in parts])
    geometry = gpd.GeoSeries([polygon for polygons in parts for polygon in polygons], crs=frame.crs)
    return gpd.GeoDataFrame(frame.drop(columns="geometry").iloc[rows].reset_index(drop=True), geometry=geometry)


def _large(frame: gpd.GeoDataFrame, equal_area: str, min_area_m2: float) -> gpd.GeoDataFrame:
    """The footprints of at least an area, with the column area_m2."""
    frame = frame.assign(area_m2=frame.to_crs(equal_area).area.round(2))
    return frame[frame.area_m2 >= min_area_m2]


def _number_parts(frame: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """The frame with -2, -3 and so on behind the ids of all parts of a footprint but the first."""
    number = frame.groupby("id").cumcount() + 1
    return frame.assign(id=frame.id.where(number == 1, frame.id + "-" + number.astype("str")))


def _in_degrees(batch: pa.RecordBatch, schema: pa.Schema, crs: str) -> pa.RecordBatch:
    """A batch of a GeoParquet file with its polygons in degrees."""
    column = schema.get_field_index("geometry")
    polygons = shapely.from_wkb(batch.column(column).to_numpy(zero_copy_only=False))
    # Rounding may still cut a sliver off, or leave nothing: files of one row a footprint take its largest polygon.
    unrounded = outlines.project(polygons, crs, "EPSG:4326")
    rounded = [outlines.polygons(outline) for outline in outlines.to_degrees(polygons, crs)]
    degrees = [parts[0] if parts else plain for parts, plain in zip(rounded, unrounded, strict=True)]
    wkb = pa.array(shapely.to_wkb(np.array(degrees, object)), schema.field(column).type)
    columns = [*batch.columns[:column], wkb, *batch.columns[column + 1 :]]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


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
