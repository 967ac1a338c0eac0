"""What is wrong with label files in the field, each defect by itself."""

import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely
from conftest import CRS, TRANSFORM, building, write_labels

from ocmlflow.chips import footprints
from ocmlflow.chips.footprints import LabelFootprints
from ocmlflow.errors import InputError
from ocmlflow.scenes.catalog import Scene

ROOF, OTHER = building(3, 4, 20, 25), building(40, 30, 60, 61)
BOW_TIE = shapely.Polygon([TRANSFORM @ corner for corner in ((0, 0), (10, 10), (10, 0), (0, 10))])


def read(*files: str) -> LabelFootprints:
    return footprints.read(Scene("one", "acc", "one.tif", tuple(map(str, files))), CRS)


def area(found: LabelFootprints) -> float:
    return float(shapely.area(found.polygons).sum())


def test_a_polygon_that_crosses_itself_is_repaired_and_counted(tmp_path):
    found = read(write_labels(tmp_path / "a.geojson", [BOW_TIE, ROOF]))
    assert (found.drawn, found.repaired, found.duplicates) == (2, 1, 0)
    assert area(found) == pytest.approx(0.5 + ROOF.area, rel=1e-3)  # both halves of the tie, 50 pixels
    assert shapely.is_valid(found.polygons).all()


def test_duplicates_count_once_and_overlaps_stay(tmp_path):
    turned = shapely.Polygon(list(ROOF.exterior.coords)[2:] + list(ROOF.exterior.coords)[1:3])  # from another corner
    found = read(write_labels(tmp_path / "a.geojson", [ROOF, OTHER, ROOF, turned, building(10, 4, 30, 25)]))
    assert (found.drawn, found.duplicates, len(found.polygons)) == (5, 2, 3)


def test_the_parts_of_multipolygons_are_footprints(tmp_path):
    found = read(write_labels(tmp_path / "a.geojson", [shapely.MultiPolygon([ROOF, OTHER])]))
    assert (found.drawn, len(found.polygons)) == (1, 2)


def test_parts_that_overlap_are_footprints_that_do(tmp_path):
    overlapping = shapely.MultiPolygon([ROOF, building(10, 4, 30, 25), ROOF])
    found = read(write_labels(tmp_path / "a.geojson", [overlapping]))
    assert (found.drawn, found.repaired, found.duplicates, len(found.polygons)) == (1, 1, 1, 2)
    assert area(found) == pytest.approx(ROOF.area + 4.2, rel=1e-3)


def test_nulls_empties_points_and_lines_are_counted(tmp_path):
    line = shapely.LineString([TRANSFORM @ (0, 0), TRANSFORM @ (9, 9)])
    found = read(write_labels(tmp_path / "a.geojson", [None, shapely.Polygon(), line, ROOF]))
    assert (found.drawn, found.empty, len(found.polygons)) == (4, 3, 1)


def test_what_lies_nowhere_on_earth_is_counted(tmp_path):
    path = tmp_path / "a.gpkg"
    gpd.GeoSeries([shapely.box(-3, 5, -2.9, 5.1), shapely.box(320, 95, 321, 96)], crs="EPSG:4326").to_file(path)
    found = read(path)
    assert (found.drawn, found.empty, found.repaired, len(found.polygons)) == (2, 1, 0, 1)


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
    with pytest.raises(InputError, match=r"labels .*a\.gpkg of scene one have 0 layers with geometries"):
        read(path)
    frame.to_file(path, layer="buildings")
    assert area(read(path)) == pytest.approx(ROOF.area)
    frame.to_file(path, layer="tiles")
    with pytest.raises(InputError, match=r"labels .*a\.gpkg of scene one have 2 layers .*\(buildings, tiles\)"):
        read(path)


def test_a_file_cut_in_half_is_refused_by_name(tmp_path):
    path = tmp_path / "half.geojson"
    write_labels(path, [ROOF, OTHER])
    content = path.read_bytes()
    for share in (0.3, 0.6, 0.95):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError, match=r"cannot read labels .*half\.geojson of scene one"):
            read(path)


def test_no_labels_are_no_footprints(tmp_path):
    found = read(write_labels(tmp_path / "a.geojson", []))
    assert (found.drawn, len(found.polygons)) == (0, 0)
    assert isinstance(found.polygons, np.ndarray)


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
@pytest.mark.parametrize("name", ["one.gpkg", "one.fgb", "one.shp"])
def test_labels_without_crs_are_refused(tmp_path, name):
    gpd.GeoDataFrame({"a": [1]}, geometry=[ROOF]).to_file(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} of scene one name no CRS; save them with one"):
        read(tmp_path / name)


@pytest.mark.parametrize("content", [None, "hello", "{}"])
def test_labels_that_cannot_be_read_are_refused(tmp_path, content):
    path = tmp_path / "one.geojson"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"cannot read labels .*one\.geojson of scene one"):
        read(path)


def test_labels_in_another_unit_than_they_say_are_refused(tmp_path):
    metres = [shapely.box(500_000, 619_990, 500_005, 619_999)]
    path = write_labels(tmp_path / "one.geojson", metres, crs="EPSG:4326")
    with pytest.raises(InputError, match=r"none of the 1 geometries of labels .*one\.geojson .* is a polygon on earth"):
        read(path)


def test_points_are_no_footprints(tmp_path):
    path = write_labels(tmp_path / "one.geojson", [shapely.Point(500_001, 619_999)])
    with pytest.raises(InputError, match="they are Point"):
        read(path)
