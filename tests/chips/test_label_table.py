"""Files that many scenes share: each scene reads what is near it, and finds what it would find in a file of its own."""

import geopandas as gpd
import numpy as np
import pytest
import shapely
from conftest import CRS, ELSEWHERE, TRANSFORM, building, noise, rules_with, write_image, write_labels
from conftest import cut as cut_scene

from ocmlflow.chips import footprints, label_files, label_table, scene_survey
from ocmlflow.chips.label_files import State
from ocmlflow.errors import InputError
from ocmlflow.scenes.catalog import Scene

NEAR = [building(row, col, row + 12, col + 17) for row in (5, 40, 70) for col in (3, 44, 100)]
FAR = [building(row, col, row + 12, col + 17, ELSEWHERE) for row in (5, 40) for col in (3, 44)]
WRITERS = {
    "geojson": lambda frame, path: frame.to_crs(4326).to_file(path, COORDINATE_PRECISION=15),
    "lines.geojson": lambda frame, path: frame.to_crs(4326).to_file(path, driver="GeoJSONSeq", COORDINATE_PRECISION=15),
    "gpkg": lambda frame, path: frame.to_file(path),
    "fgb": lambda frame, path: frame.to_file(path),
    "shp": lambda frame, path: frame.to_file(path),
    "kml": lambda frame, path: frame.to_crs(4326).to_file(path, driver="KML"),
    "parquet": lambda frame, path: frame.to_parquet(path),
    "geoarrow.parquet": lambda frame, path: frame.to_parquet(path, geometry_encoding="geoarrow"),
    "web.parquet": lambda frame, path: frame.to_crs(3857).to_parquet(path, write_covering_bbox=True),
    "degrees.gpkg": lambda frame, path: frame.to_crs(4326).to_file(path),
}


def write(folder, kind: str, shapes=(*NEAR, *FAR)) -> str:
    path = folder / f"labels.{kind}"
    frame = gpd.GeoDataFrame({"building": "yes"}, index=range(len(shapes)), geometry=list(shapes), crs=CRS)
    WRITERS[kind](frame, path)
    return str(path)


def scene(folder, href: str, transform=TRANSFORM) -> Scene:
    return Scene("one", "acc", write_image(folder / "one.tif", noise(96, 140), transform=transform), (href,))


def table(href: str, folder, where: str | None = None) -> dict[str, label_table.LabelTable]:
    return {href: label_table.open_file(href, folder / "table.arrow", layer=None, where=where)}


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_footprints_give_the_same_chips_in_every_format(tmp_path, kind):
    expected = cut_scene(scene(tmp_path, write(tmp_path, "gpkg", NEAR)), tmp_path / "a", rules=rules_with())
    href = write(tmp_path, kind)
    own = cut_scene(scene(tmp_path, href), tmp_path / "b", rules=rules_with())
    shared = cut_scene(scene(tmp_path, href), tmp_path / "c", rules=rules_with(), tables=table(href, tmp_path))
    assert expected.hash.tolist() == own.hash.tolist() == shared.hash.tolist()
    assert expected.building_share.max() > 0


@pytest.mark.parametrize("kind", WRITERS)
def test_a_scene_reads_what_is_near_it(tmp_path, kind):
    href = write(tmp_path, kind)
    found = scene_survey.survey(scene(tmp_path, href), gsd=0.1, collar_m2=0, tables=table(href, tmp_path))
    assert found.footprints.drawn == len(NEAR)
    assert not found.remarks


def test_what_is_drawn_around_footprints_beyond_the_edge_counts(tmp_path):
    outside = shapely.box(499_994, 619_990, 499_999, 619_999)  # a metre from the image
    href = write_labels(tmp_path / "a.geojson", [outside, *NEAR])
    rules = rules_with(buffer_m=2.0)
    own = cut_scene(scene(tmp_path, href), tmp_path / "b", rules=rules)
    shared = cut_scene(scene(tmp_path, href), tmp_path / "c", rules=rules, tables=table(href, tmp_path))
    assert own.hash.tolist() == shared.hash.tolist()


def test_the_file_as_a_whole_is_counted_once(tmp_path):
    href = write_labels(tmp_path / "a.geojson", [None, *NEAR, *FAR, shapely.Point(500_000, 619_999)])
    about = table(href, tmp_path)[href].about
    assert np.bincount(about.states).tolist() == [len(NEAR) + len(FAR) + 1, 0, 1]
    assert footprints.remarks(about, about.states) == ["1 features without an area left out"]


@pytest.mark.parametrize("kind", ["geojson", "gpkg"])
def test_a_scene_without_footprints_is_told_of_and_one_off_the_file_refused(tmp_path, kind):
    href = write(tmp_path, kind)
    between = TRANSFORM @ TRANSFORM.translation(5000, 0)
    found = scene_survey.survey(scene(tmp_path, href, between), gsd=0.1, collar_m2=0, tables=table(href, tmp_path))
    assert not len(found.footprints.polygons)
    assert "is cut as ground without buildings" in found.remarks[0]
    away = TRANSFORM @ TRANSFORM.translation(0, 50_000)
    with pytest.raises(InputError, match=r"none of the footprints of labels .* lies on or around scene one"):
        scene_survey.survey(scene(tmp_path, href, away), gsd=0.1, collar_m2=0, tables=table(href, tmp_path))


def test_an_empty_file_has_a_table(tmp_path):
    href = write_labels(tmp_path / "a.geojson", [])
    found = label_table.near(table(href, tmp_path)[href], (-180, -90, 180, 90))
    assert len(found.states) == 0


def test_where_holds_for_shared_files(tmp_path):
    frame = gpd.GeoDataFrame({"building": ["yes", "no"] * 4 + ["yes"]}, geometry=NEAR, crs=CRS)
    for name in ("a.parquet", "a.gpkg"):
        (frame.to_parquet if name == "a.parquet" else frame.to_file)(tmp_path / name)
        href = str(tmp_path / name)
        found = label_table.near(table(href, tmp_path, "building!='no'")[href], (4e5, 6e5, 6e5, 7e5))
        assert (found.states == State.USED).sum() == 5


def test_a_table_is_read_as_the_file_is(tmp_path):
    open_ring = {"type": "Polygon", "coordinates": [[[-3, 5.6], [-2.99, 5.6], [-2.99, 5.61]]]}
    (tmp_path / "a.geojson").write_text(
        shapely.to_geojson(shapely.Point(0, 0)) + "\n" + str(open_ring).replace("'", '"')
    )
    href = str(tmp_path / "a.geojson")
    whole = label_files.read_all(href, layer=None, where=None)
    near = label_table.near(table(href, tmp_path)[href], (-4, 5, -2, 6))
    assert whole.states.tolist() == [State.USED, State.REPAIRED]
    assert (near.states.tolist(), near.numbers.tolist()) == ([State.REPAIRED], [2])
    assert near.geometries[0].equals(whole.geometries[1])
