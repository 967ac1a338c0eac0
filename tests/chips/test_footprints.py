"""What is wrong with label files in the field, each defect by itself."""

import contextlib
import json
import sqlite3
import struct

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyogrio
import pytest
import shapely
from conftest import CRS, TRANSFORM, building, write_labels
from pyarrow import parquet

from ocmlflow.chips import footprints
from ocmlflow.chips.footprints import LabelFootprints
from ocmlflow.chips.label_files import State
from ocmlflow.errors import InputError
from ocmlflow.scenes.catalog import Scene

ROOF, OTHER = building(3, 4, 20, 25), building(40, 30, 60, 61)
BOW_TIE = shapely.Polygon([TRANSFORM @ corner for corner in ((0, 0), (10, 10), (10, 0), (0, 10))])


EXTENT = shapely.box(500_000, 619_990, 500_010, 620_000)


def read(*files: str, layer: str | None = None, where: str | None = None) -> LabelFootprints:
    scene = Scene("one", "acc", "one.tif", tuple(map(str, files)))
    return footprints.read(scene, CRS, extent=EXTENT, layer=layer, where=where, tables={})


def counts(found: LabelFootprints) -> dict[str, int]:
    """The features of each state that occurs; they add up to all that were read."""
    counted = {state.name: found.count(state) for state in State if found.count(state)}
    assert sum(counted.values()) == found.drawn
    return counted


def area(found: LabelFootprints) -> float:
    return float(shapely.area(found.polygons).sum())


def test_a_polygon_that_crosses_itself_is_repaired_and_counted(tmp_path):
    found = read(write_labels(tmp_path / "a.geojson", [BOW_TIE, ROOF]))
    assert counts(found) == {"USED": 1, "REPAIRED": 1}
    assert found.duplicates == 0
    assert area(found) == pytest.approx(0.5 + ROOF.area, rel=1e-3)  # both halves of the tie, 50 pixels
    assert shapely.is_valid(found.polygons).all()


def test_duplicates_count_once_and_overlaps_stay(tmp_path):
    turned = shapely.Polygon(list(ROOF.exterior.coords)[2:] + list(ROOF.exterior.coords)[1:3])  # from another corner
    found = read(write_labels(tmp_path / "a.geojson", [ROOF, OTHER, ROOF, turned, building(10, 4, 30, 25)]))
    assert (found.drawn, found.duplicates, len(found.polygons)) == (5, 2, 3)


def test_a_building_drawn_twice_counts_once(tmp_path):
    again = shapely.affinity.translate(ROOF, 0.02 * np.sqrt(ROOF.area))
    part = shapely.affinity.scale(ROOF, 0.8, 1)
    found = read(write_labels(tmp_path / "a.geojson", [OTHER, ROOF, again, part]))
    assert (found.drawn, found.duplicates, len(found.polygons)) == (4, 1, 3)


def test_the_parts_of_multipolygons_are_footprints(tmp_path):
    found = read(write_labels(tmp_path / "a.geojson", [shapely.MultiPolygon([ROOF, OTHER])]))
    assert (found.drawn, len(found.polygons)) == (1, 2)


def test_parts_that_overlap_are_footprints_that_do(tmp_path):
    overlapping = shapely.MultiPolygon([ROOF, building(10, 4, 30, 25), ROOF])
    found = read(write_labels(tmp_path / "a.geojson", [overlapping]))
    assert counts(found) == {"REPAIRED": 1}
    assert (found.duplicates, len(found.polygons)) == (1, 2)
    assert area(found) == pytest.approx(ROOF.area + 4.2, rel=1e-3)


def test_nulls_empties_points_and_lines_are_counted(tmp_path):
    line = shapely.LineString([TRANSFORM @ (0, 0), TRANSFORM @ (9, 9)])
    found = read(write_labels(tmp_path / "a.geojson", [None, shapely.Polygon(), line, ROOF]))
    assert counts(found) == {"USED": 1, "EMPTY": 3}
    assert found.remarks == (
        f"labels {tmp_path}/a.geojson: 3 features without an area left out",
        f"labels {tmp_path}/a.geojson: left out, since footprints are polygons: 1 linestring",
    )


def test_what_lies_nowhere_on_earth_is_counted(tmp_path):
    path = tmp_path / "a.gpkg"
    gpd.GeoSeries([shapely.box(-3, 5, -2.9, 5.1), shapely.box(320, 95, 321, 96)], crs="EPSG:4326").to_file(path)
    found = read(path)
    assert counts(found) == {"USED": 1, "OUTSIDE": 1}


def test_heights_are_left_out(tmp_path):
    found = read(write_labels(tmp_path / "a.geojson", [shapely.force_3d(ROOF, 12.0)]))
    assert not shapely.has_z(found.polygons).any()


def test_two_files_are_one_set(tmp_path):
    files = write_labels(tmp_path / "a.geojson", [ROOF]), write_labels(tmp_path / "b.geojson", [ROOF, OTHER])
    found = read(*files)
    assert (found.drawn, found.duplicates, len(found.polygons)) == (3, 1, 2)


FORMS = {
    "none": (None, "EPSG:4326"),
    "crs84": ({"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}, "EPSG:4326"),
    "crs84 of another year": ({"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC::CRS84"}}, "EPSG:4326"),
    "epsg urn": ({"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32630"}}, CRS),
    "epsg short": ({"type": "name", "properties": {"name": "EPSG:32630"}}, CRS),
    "epsg old": ({"type": "EPSG", "properties": {"code": 32630}}, CRS),
    "null": ("null", "EPSG:4326"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_crs_of_geojson_is_understood_in_every_form(form, tmp_path):
    crs, drawn_in = FORMS[form]
    (shape,) = gpd.GeoSeries([ROOF], crs=CRS).to_crs(drawn_in)
    features = [{"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(shape)}]
    content = {"type": "FeatureCollection", "features": features}
    if crs:
        content["crs"] = None if crs == "null" else crs
    (tmp_path / "a.geojson").write_text(json.dumps(content))
    (found,) = read(tmp_path / "a.geojson").polygons
    assert found.hausdorff_distance(ROOF) < 0.01


@pytest.mark.parametrize("ending", ["gpkg", "fgb", "shp", "geojson"])
def test_vector_files_of_every_kind_are_read(ending, tmp_path):
    frame = gpd.GeoDataFrame({"building": ["yes", "yes"]}, geometry=[ROOF, OTHER], crs=CRS)
    frame.to_file(tmp_path / f"a.{ending}")
    found = read(tmp_path / f"a.{ending}")
    assert area(found) == pytest.approx(ROOF.area + OTHER.area, rel=1e-3)


def test_labels_on_the_web_are_those_of_the_file(web):
    folder, address, _ = web
    write_labels(folder / "a.geojson", [ROOF, OTHER])
    assert area(read(f"{address}/a.geojson")) == area(read(folder / "a.geojson"))


def test_of_several_layers_none_is_taken_for_the_buildings(tmp_path):
    path, frame = tmp_path / "a.gpkg", gpd.GeoDataFrame(geometry=[ROOF], crs=CRS)
    pyogrio.write_dataframe(pd.DataFrame({"style": ["red"]}), path, layer="layer_styles")
    with pytest.raises(InputError, match=r"labels .*a\.gpkg of scene one: it has 0 layers with geometries"):
        read(path)
    frame.to_file(path, layer="buildings")
    assert area(read(path)) == pytest.approx(ROOF.area)
    frame.to_file(path, layer="tiles")
    with pytest.raises(InputError, match=r"labels .*a\.gpkg of scene one: it has 2 layers .*\(buildings, tiles\)"):
        read(path)


def test_a_file_cut_in_half_is_refused_by_name(tmp_path):
    path = tmp_path / "half.geojson"
    write_labels(path, [ROOF, OTHER])
    content = path.read_bytes()
    for share in (0.3, 0.6, 0.95):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError, match=r"labels .*half\.geojson of scene one"):
            read(path)


def test_no_labels_are_no_footprints(tmp_path):
    found = read(write_labels(tmp_path / "a.geojson", []))
    assert (found.drawn, len(found.polygons)) == (0, 0)
    assert isinstance(found.polygons, np.ndarray)


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
@pytest.mark.parametrize("name", ["one.gpkg", "one.fgb", "one.shp"])
def test_labels_without_crs_are_refused(tmp_path, name):
    gpd.GeoDataFrame({"a": [1]}, geometry=[ROOF]).to_file(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} of scene one: the file names no CRS; save it with one"):
        read(tmp_path / name)


@pytest.mark.parametrize("content", [None, "hello", "{}"])
def test_labels_that_cannot_be_read_are_refused(tmp_path, content):
    path = tmp_path / "one.geojson"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"labels .*one\.geojson of scene one: (it cannot be read|none of its)"):
        read(path)


def test_labels_in_another_unit_than_they_say_are_refused(tmp_path):
    metres = [shapely.box(500_000, 619_990, 500_005, 619_999)]
    path = write_labels(tmp_path / "one.geojson", metres, crs="EPSG:4326")
    with pytest.raises(
        InputError,
        match=r"labels .*one\.geojson .*: none of its 1 features is a polygon on earth; they are Polygon in WGS 84",
    ):
        read(path)


def test_points_are_no_footprints(tmp_path):
    path = write_labels(tmp_path / "one.geojson", [shapely.Point(500_001, 619_999)])
    with pytest.raises(InputError, match="they are Point"):
        read(path)


def test_a_polygon_of_which_the_repair_leaves_nothing_is_counted(tmp_path):
    flat = shapely.Polygon([TRANSFORM @ corner for corner in ((0, 0), (10, 10), (20, 20))])
    assert counts(read(write_labels(tmp_path / "a.geojson", [flat, ROOF]))) == {"USED": 1, "EMPTY": 1}
    world = shapely.box(-1e6, -90, 1e6, 90)
    gpd.GeoSeries([world, *gpd.GeoSeries([ROOF], crs=CRS).to_crs(4326)], crs=4326).to_file(tmp_path / "b.gpkg")
    assert counts(read(tmp_path / "b.gpkg")) == {"USED": 1, "OUTSIDE": 1}


def test_a_ring_of_a_hundred_thousand_corners_is_asked_once_whether_it_is_valid(tmp_path, monkeypatch):
    """Asking takes most of the time that such a ring takes."""
    asked = []
    is_valid = shapely.is_valid
    monkeypatch.setattr(shapely, "is_valid", lambda shapes: asked.append(sum(map(bool, shapes))) or is_valid(shapes))
    angle = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    radius = 3 + np.random.default_rng(0).uniform(0, 0.1, len(angle))
    ring = np.column_stack([500_005 + radius * np.cos(angle), 619_995 + radius * np.sin(angle)])
    path = tmp_path / "a.gpkg"
    gpd.GeoSeries([shapely.Polygon(ring)], crs=CRS).to_file(path)
    assert counts(read(path)) == {"USED": 1}
    assert sum(asked) == 1


def surface(kind: int, faces: list[np.ndarray], *, measures: bool = False) -> bytes:
    """A polyhedral surface (15) or TIN (16) in well-known binary; faces are rings of (x, y, z)."""
    code = 3000 if measures else 1000
    size = 4 if measures else 3
    parts = [struct.pack("<BII", 1, code + kind, len(faces))]
    for face in faces:
        points = np.column_stack([face, np.ones(len(face))])[:, :size]
        parts.append(struct.pack("<BIII", 1, code + (17 if kind == 16 else 3), 1, len(face)) + points.tobytes())
    return b"".join(parts)


@pytest.mark.parametrize("measures", [False, True])
@pytest.mark.parametrize("kind", [15, 16])
def test_the_surfaces_of_city_models_become_the_ground_below_them(tmp_path, kind, measures):
    left, bottom, right, top = ROOF.bounds
    a, b, c, d = (left, bottom, 5.0), (right, bottom, 5.0), (right, top, 5.0), (left, top, 5.0)
    wall = [(*point[:2], 0.0) for point in (a, b)]
    faces = [[a, b, c, a], [a, c, d, a], [a, b, wall[1], wall[0], a][: 5 if kind == 15 else 3] + [a] * (kind == 16)]
    path = tmp_path / "one.parquet"
    frame = gpd.GeoDataFrame(geometry=[OTHER], crs=CRS)
    frame.to_parquet(path)
    about = parquet.read_schema(path).metadata
    content = pa.array([surface(kind, [np.array(face) for face in faces], measures=measures), shapely.to_wkb(OTHER)])
    parquet.write_table(pa.table({"geometry": content}).replace_schema_metadata(about), path)
    found = read(path)
    assert counts(found) == {"USED": 2}
    assert len(found.polygons) == 2
    assert found.polygons[0].equals(ROOF)


def curve(points: list[tuple[float, float]]) -> bytes:
    """A CurvePolygon of one CircularString, in well-known binary."""
    ring = struct.pack("<BII", 1, 8, len(points)) + np.array(points, float).tobytes()
    return struct.pack("<BII", 1, 10, 1) + ring


HIGH_ROOF = np.array([(*point, 5.0) for point in ROOF.exterior.coords])
CIRCLE = [(500_001, 619_995), (500_003, 619_997), (500_005, 619_995), (500_003, 619_993), (500_001, 619_995)]


@pytest.mark.filterwarnings("ignore:geometry column type")
@pytest.mark.parametrize(
    ("shape", "kind", "z", "area_m2"),
    [
        (surface(15, [HIGH_ROOF]), "GEOMETRY", 1, ROOF.area),
        (surface(15, [HIGH_ROOF]), "POLYHEDRALSURFACE", 1, ROOF.area),
        (surface(16, [HIGH_ROOF[[0, 1, 2, 0]], HIGH_ROOF[[0, 2, 3, 0]]]), "TIN", 1, ROOF.area),
        (curve(CIRCLE), "CURVEPOLYGON", 0, 4 * np.pi),
        (curve(CIRCLE), "GEOMETRY", 0, 4 * np.pi),
    ],
)
def test_surfaces_and_curves_of_a_geopackage_are_read(tmp_path, shape, kind, z, area_m2):
    path = tmp_path / "one.gpkg"
    gpd.GeoDataFrame(geometry=[OTHER], crs=CRS).to_file(path, layer="b")
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        for (name,) in file.execute("select name from sqlite_master where type = 'trigger'").fetchall():
            file.execute(f'drop trigger "{name}"')
        head = b"GP\0\1" + (32630).to_bytes(4, "little")
        file.execute("update b set geom = ?", (head + shape,))
        file.execute("update gpkg_geometry_columns set geometry_type_name = ?, z = ?", (kind, z))
    found = read(path)
    assert counts(found) == {"USED": 1}
    assert area(found) == pytest.approx(area_m2, rel=0.01)


def test_a_curve_in_geoparquet_is_refused_with_the_command_that_converts_it(tmp_path):
    path = tmp_path / "one.parquet"
    gpd.GeoDataFrame(geometry=[OTHER], crs=CRS).to_parquet(path)
    about = parquet.read_schema(path).metadata
    content = pa.array([curve(CIRCLE), shapely.to_wkb(OTHER)])
    parquet.write_table(pa.table({"geometry": content}).replace_schema_metadata(about), path)
    found = read(path)
    assert counts(found) == {"USED": 1, "REFUSED": 1}
    assert "1 of 2 features cannot be read; feature 1: its geometry is a curve" in found.remarks[0]


def test_labels_whose_crs_does_not_transform_are_refused_by_name(tmp_path):
    named = 'ENGCRS["Undefined Cartesian SRS with unknown unit",EDATUM["Unknown engineering datum"],CS[Cartesian,2],'
    axes = (
        'AXIS["X",unspecified,ORDER[1],LENGTHUNIT["unknown",0]]',
        'AXIS["Y",unspecified,ORDER[2],LENGTHUNIT["unknown",0]]',
    )
    gpd.GeoDataFrame(geometry=[ROOF]).set_crs(f"{named}{','.join(axes)}]").to_file(tmp_path / "one.gpkg")
    with pytest.raises(InputError, match=r"labels .*one\.gpkg of scene one: its CRS, Undefined Cartesian SRS"):
        read(tmp_path / "one.gpkg")


UNKNOWN_DATUM = "+proj=utm +zone=30 +ellps=bessel +units=m"


def test_a_datum_that_nobody_knows_is_warned_of_with_its_metres(tmp_path):
    gpd.GeoDataFrame(geometry=[ROOF], crs=UNKNOWN_DATUM).to_file(tmp_path / "one.gpkg")
    assert any("datum" in remark and "100 m" in remark for remark in read(tmp_path / "one.gpkg").remarks)
    for crs in (CRS, "+proj=utm +zone=30 +ellps=WGS84 +units=m", "EPSG:3857"):
        gpd.GeoDataFrame(geometry=[ROOF], crs=CRS).to_crs(crs).to_file(tmp_path / "known.gpkg")
        assert not read(tmp_path / "known.gpkg").remarks
