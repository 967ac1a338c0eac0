"""Label files for all scenes, folders with one for each, and files that nobody uses."""

import pytest

from ocmlflow.errors import InputError
from ocmlflow.scenes import catalog, label_pairing


@pytest.fixture
def scenes(tmp_path):
    """Three images, of which one has labels beside it, and a label file that belongs to none."""
    for name in ("a.tif", "b.tif", "C.tif", "b.geojson", "buildings.geojson", "._b.gpkg", "notes.txt"):
        (tmp_path / name).touch()
    return catalog.read_scenes(str(tmp_path))


def labels(scenes) -> dict[str, list[str]]:
    return {scene.id: [href.rpartition("/")[2] for href in scene.labels] for scene in scenes}


def test_a_file_is_for_all_scenes(scenes, tmp_path):
    found = label_pairing.with_labels(scenes, f"{tmp_path}/buildings.geojson, s3://data/more.parquet")
    assert labels(found) == {scene: ["buildings.geojson", "more.parquet"] for scene in ("C", "a", "b")}


def test_files_of_a_folder_are_for_the_scenes_of_their_names(scenes, tmp_path, caplog):
    folder = tmp_path / "labels"
    folder.mkdir()
    for name in ("a.gpkg", "B_labels.fgb", "c-buildings.shp", "other.kml", "._a.gpkg", "a.cpg"):
        (folder / name).touch()
    found = label_pairing.with_labels(scenes, str(folder))
    assert labels(found) == {"a": ["a.gpkg"], "b": ["B_labels.fgb"], "C": ["c-buildings.shp"]}
    assert "belong to no image are not used: other.kml" in caplog.text


def test_files_of_a_folder_without_such_names_are_for_all_scenes(scenes, tmp_path):
    folder = tmp_path / "city"
    folder.mkdir()
    for name in ("north.parquet", "south.parquet"):
        (folder / name).touch()
    found = label_pairing.with_labels(scenes, str(folder))
    assert labels(found) == {scene: ["north.parquet", "south.parquet"] for scene in ("C", "a", "b")}


def test_a_folder_without_label_files_is_refused(scenes, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"labels=.*empty holds no label file \(.geojson, .*parquet.*\)"):
        label_pairing.with_labels(scenes, str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"cannot be listed: .*give the addresses of the files"):
        label_pairing.with_labels(scenes, "https://example.org/labels/")


def test_label_files_that_no_scene_uses_are_found(scenes, tmp_path):
    assert label_pairing.unused_files(scenes) == [f"{tmp_path}/buildings.geojson"]
    assert label_pairing.some_names(f"dir/{n}.gpkg" for n in range(12)).endswith("9.gpkg and 2 more")


@pytest.mark.parametrize(
    "suffix", ["geojson", "geojsonl", "gpkg", "fgb", "parquet", "geoparquet", "shp", "kml", "GPKG"]
)
def test_label_files_of_every_format_are_found_beside_their_image(tmp_path, suffix):
    for name in ("a.tif", f"a.{suffix}"):
        (tmp_path / name).touch()
    assert labels(catalog.read_scenes(str(tmp_path))) == {"a": [f"a.{suffix}"]}
