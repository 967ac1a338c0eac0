"""Which features are buildings, by an SQL condition of their properties; what seems to be none is told."""

import geopandas as gpd
import pytest
from conftest import CRS, building

from ocmlflow.chips import label_files, label_filter
from ocmlflow.chips.label_files import State
from ocmlflow.errors import InputError

ROOFS = [building(20 * n, 4, 20 * n + 9, 25) for n in range(6)]
PROPERTIES = {
    "building": ["yes", "no", "house", None, None, "yes"],
    "landuse": [None, None, None, "residential", None, None],
    "building:levels": ["2", "10", None, None, None, "1"],
    "confidence": [0.9, 0.65, 0.7, None, 0.1, 0.8],
    "is_roof": [True, False, True, False, False, True],
}
FORMATS = ("geojson", "geojsonl", "gpkg", "fgb", "parquet")


def write(folder, ending: str, properties=None) -> str:
    frame = gpd.GeoDataFrame(properties or PROPERTIES, geometry=ROOFS, crs=CRS)
    path = folder / f"one.{ending}"
    if ending == "parquet":
        frame.to_parquet(path)
    elif ending.startswith("geojson"):
        frame = frame.to_crs(4326)
        frame.to_file(path, driver="GeoJSON" if ending == "geojson" else "GeoJSONSeq")
    else:
        frame.to_file(path)
    return str(path)


def chosen(href: str, where: str) -> list[int]:
    features = label_files.read_all(href, layer=None, where=where)
    centres = [features.geometries[n] for n in range(len(ROOFS)) if features.states[n] == State.USED]
    assert set(features.states) <= {State.USED, State.LEFT_OUT}
    shapes = gpd.GeoSeries(centres, crs=features.crs).to_crs(CRS)
    return sorted(next(n for n, roof in enumerate(ROOFS) if roof.intersects(shape.centroid)) for shape in shapes)


CONDITIONS = {
    "building!='no'": [0, 2, 5],
    "building = 'yes'": [0, 5],
    "BUILDING IS NULL": [3, 4],
    '"building:levels" > 1': [0, 1],
    "\"building:levels\" >= 2 AND building <> 'no'": [0],
    "confidence>0.7": [0, 5],
    "confidence BETWEEN 0.65 AND 0.7": [1, 2],
    "landuse IS NULL AND building IS NOT NULL": [0, 1, 2, 5],
    "building IN ('house', 'hut') OR landuse = 'residential'": [2, 3],
    "building LIKE 'h%'": [2],
    "is_roof = 1": [0, 2, 5],
    "CAST(confidence * 10 AS INTEGER) = 6": [1],
}


@pytest.mark.parametrize("where", CONDITIONS)
@pytest.mark.parametrize("ending", FORMATS)
def test_the_same_features_are_chosen_in_every_format(tmp_path, ending, where):
    assert chosen(write(tmp_path, ending), where) == CONDITIONS[where]


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("where", ["buidling!='no'", "\"buidling\" != 'no'"])
def test_a_condition_of_what_is_not_there_is_refused_with_what_is(tmp_path, ending, where):
    with pytest.raises(InputError, match=r"where=.*buidling.*its properties are .*building.*landuse"):
        label_files.read_all(write(tmp_path, ending), layer=None, where=where)


@pytest.mark.parametrize("where", ["building = ", "building = 'no'; DROP TABLE features", "1 = 1) --", "f(building)"])
def test_what_is_no_condition_is_refused(tmp_path, where):
    with pytest.raises(InputError, match=r"where=.* is no SQL condition"):
        label_files.read_all(write(tmp_path, "gpkg"), layer=None, where=where)


def test_what_seems_to_be_no_building_is_told_unless_it_is_left_out(tmp_path):
    href = write(tmp_path, "geojson")
    assert label_files.read_all(href, layer=None, where=None).doubts == {"building=no": 1, "landuse": 1}
    assert not label_files.read_all(href, layer=None, where="building!='no'").doubts
    classes = {"class": ["building", "road", "Tree", "building", "residential", "hut"]}
    found = label_files.read_all(write(tmp_path, "gpkg", classes), layer=None, where=None)
    assert found.doubts == {"class=road": 1, "class=Tree": 1}


def test_buildings_of_openstreetmap_with_other_keys_are_no_doubt():
    table = {"building": ["school", "yes"], "amenity": ["school", None], "landuse": ["education", None]}
    assert label_filter.doubts(table, 2) == [None, None]


def test_an_empty_file_fits_every_condition(tmp_path):
    (tmp_path / "a.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    assert not len(label_files.read_all(str(tmp_path / "a.geojson"), layer=None, where="building!='no'").states)


def test_properties_that_come_late_count(tmp_path, monkeypatch):
    monkeypatch.setattr("ocmlflow.chips.label_formats.BATCH", 2)
    assert chosen(write(tmp_path, "geojson"), "landuse = 'residential'") == [3]


def test_values_of_any_kind_are_compared():
    table = {"kind": ["a;b", None, {"x": 1}], "n": [None, 10**400, 2]}
    assert label_filter.matches("kind = 'a;b' OR n > 1e300", table, 3).tolist() == [True, True, False]
