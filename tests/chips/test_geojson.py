"""GeoJSON in the shapes that people and programs save it in: every feature is counted, and what can be used is."""

import gzip
import io
import json
import tracemalloc

import numpy as np
import pytest
import shapely
from conftest import CRS, building
from hypothesis import given
from hypothesis import strategies as st

from ocmlflow.chips import geojson, label_files
from ocmlflow.chips.label_files import State
from ocmlflow.errors import InputError

SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]}
RING = SQUARE["coordinates"][0]
MORE = {"type": "Polygon", "coordinates": [[[2, 0], [3, 0], [3, 1], [2, 1], [2, 0]]]}


def feature(geometry, **properties):
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def together(*geometries):
    return {"type": "GeometryCollection", "geometries": list(geometries)}


def polygon(*rings):
    return feature({"type": "Polygon", "coordinates": list(rings)})


def collection(*features, **members):
    return {"type": "FeatureCollection", "features": list(features)} | members


def read(folder, content, **how) -> label_files.Features:
    path = folder / "a.geojson"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return label_files.read_all(str(path), **{"layer": None, "where": None} | how)


def states(features: label_files.Features) -> list[str]:
    return [State(state).name for state in features.states]


WHOLE = {
    "collection": json.dumps(collection(feature(SQUARE), feature(MORE))),
    "indented": json.dumps(collection(feature(SQUARE), feature(MORE)), indent=2),
    "features first": json.dumps(dict(reversed(collection(feature(SQUARE), feature(MORE)).items()))),
    "byte order mark": "\ufeff" + json.dumps(collection(feature(SQUARE), feature(MORE))),
    "nested": json.dumps(collection(collection(feature(SQUARE)), collection(collection(feature(MORE))))),
    "a Feature over a list": json.dumps(collection(feature(SQUARE), feature(MORE)) | {"type": "Feature"}),
    "a list": json.dumps([feature(SQUARE), feature(MORE)]),
    "bare geometries": json.dumps(collection(SQUARE, MORE)),
    "untyped features": json.dumps(collection({"geometry": SQUARE}, {"geometry": MORE})),
    "lines": "\n".join(map(json.dumps, (feature(SQUARE), feature(MORE)))),
    "lines of geometries": "\r\n".join(map(json.dumps, (SQUARE, MORE))) + "\r\n",
    "text sequence": "".join(f"\x1e{json.dumps(each)}\n" for each in (feature(SQUARE), feature(MORE))),
    "one collection": json.dumps(together(SQUARE, MORE)),
    "collections in collections": json.dumps(feature(together(together(SQUARE), together(together(MORE))))),
    "parts": json.dumps(feature({"type": "MultiPolygon", "coordinates": [SQUARE["coordinates"], MORE["coordinates"]]})),
}


@pytest.mark.parametrize("form", WHOLE)
def test_every_form_of_geojson_gives_the_same_ground(tmp_path, form, monkeypatch):
    for chunk in (geojson.CHUNK, 7):  # of every feature, some part is read later than the rest
        monkeypatch.setattr(geojson, "CHUNK", chunk)
        found = read(tmp_path, WHOLE[form].encode())
        assert set(states(found)) == {"USED"}
        ground = shapely.union_all(found.geometries)
        assert ground.equals(shapely.union_all([shapely.box(0, 0, 1, 1), shapely.box(2, 0, 3, 1)]))


def test_packed_files_are_read(tmp_path):
    assert states(read(tmp_path, gzip.compress(WHOLE["lines"].encode()))) == ["USED", "USED"]


ODD = {
    "null": (None, "EMPTY"),
    "no geometry": ({"type": "Feature", "properties": {}}, "EMPTY"),
    "null geometry": (feature(None), "EMPTY"),
    "empty": (polygon(), "EMPTY"),
    "no parts": (feature({"type": "MultiPolygon", "coordinates": []}), "EMPTY"),
    "open ring": (polygon(RING[:-1]), "REPAIRED"),
    "open hole": (
        polygon(RING, [[0.2, 0.2], [0.4, 0.2], [0.4, 0.4]]),
        "REPAIRED",
    ),
    "open part": (feature({"type": "MultiPolygon", "coordinates": [[RING[:-1]]]}), "REPAIRED"),
    "heights": (
        feature({"type": "Polygon", "coordinates": [[[*point, 5, 9] for point in RING]]}),
        "USED",
    ),
    "text": ("a roof", "REFUSED"),
    "number": (5, "REFUSED"),
    "list": ([1, 2], "REFUSED"),
    "neither": ({"roof": 1}, "REFUSED"),
    "geometry of text": (feature("POLYGON ((0 0, 1 0, 1 1, 0 0))"), "REFUSED"),
    "geometry of a list": (feature([SQUARE]), "REFUSED"),
    "unknown type": (feature({"type": "Circle", "coordinates": [0, 0]}), "REFUSED"),
    "untyped": (feature({"coordinates": SQUARE["coordinates"]}), "REFUSED"),
    "no coordinates": (feature({"type": "Polygon"}), "REFUSED"),
    "null coordinates": (feature({"type": "Polygon", "coordinates": None}), "REFUSED"),
    "ring of text": (polygon(["12", "34", "56", "12"]), "REFUSED"),
    "points of text": (polygon([["0", "0"], ["1", "0"], ["1", "1"]]), "REFUSED"),
    "points of nothing": (polygon([[None, 0], [1, 0], [1, 1]]), "REFUSED"),
    "no numbers": (polygon([[float("nan"), 0], [1, 0], [1, 1]]), "REFUSED"),
    "two points": (polygon([[0, 0], [1, 0]]), "REFUSED"),
    "too flat": (polygon([0, 0], [1, 0], [1, 1]), "REFUSED"),
    "too deep": (polygon(SQUARE["coordinates"]), "REFUSED"),
    "bad collection": (feature({"type": "GeometryCollection", "geometries": [5]}), "REFUSED"),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_feature_is_counted_and_the_others_are_used(tmp_path, kind):
    odd, state = ODD[kind]
    found = read(tmp_path, collection(feature(SQUARE), odd, feature(MORE)))
    assert states(found) == ["USED", state, "USED"]
    assert list(found.reasons) == ([2] if state == "REFUSED" else [])
    if state in ("REPAIRED", "USED"):
        assert found.geometries[1].area == pytest.approx(1, abs=0.03)


BROKEN = {
    "nothing": b"",
    "text": b"hello",
    "half": json.dumps(collection(feature(SQUARE), feature(MORE))).encode()[:-30],
    "unclosed": json.dumps(collection(feature(SQUARE), feature(MORE))).encode()[:-1],
    "no comma": b'{"features": [{} {}]}',
    "deep": b'{"features": [' + b"[" * 100_000,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_geojson_is_refused(tmp_path, kind):
    with pytest.raises(InputError, match=r"cannot be read|is empty"):
        read(tmp_path, BROKEN[kind])


@given(st.data())
def test_a_file_cut_anywhere_is_refused_or_a_whole_sequence(data):
    content = (WHOLE["indented"] if data.draw(st.booleans()) else WHOLE["collection"]).encode()
    part = content[: data.draw(st.integers(1, len(content) - 1))]
    with pytest.raises(ValueError, match=r"."):
        list(geojson.features(io.BytesIO(part), {}))


def test_a_crs_after_the_features_counts(tmp_path):
    named = {"type": "name", "properties": {"name": CRS}}
    found = read(tmp_path, collection(feature(shapely.geometry.mapping(building(1, 1, 9, 9))), crs=named))
    assert found.crs == CRS
    with pytest.raises(InputError, match="its CRS, EPSG:1, is not known"):
        read(tmp_path, collection(feature(SQUARE), crs={"type": "name", "properties": {"name": "EPSG:1"}}))


def test_large_files_take_little_memory(tmp_path):
    line = json.dumps(feature(SQUARE, name="x" * 200)) + "\n"
    with (tmp_path / "a.geojson").open("w") as file:
        file.writelines(line for _ in range(50_000))  # 17 MB
    tracemalloc.start()
    count = 0
    for features in label_files.read(str(tmp_path / "a.geojson"), layer=None, where=None):
        count += len(features.states)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 50_000
    assert peak < 12e6


def test_a_ring_is_closed_where_it_was_open():
    made, closed, refused = geojson.geometries(
        [feature({"type": "Polygon", "coordinates": [[[0, 0], [4, 0], [0, 4]]]})]
    )
    assert made[0].area == 8
    assert closed.tolist() == [True]
    assert not refused
    assert np.asarray(made[0].exterior.coords).shape == (4, 2)
