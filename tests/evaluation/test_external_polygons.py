import geopandas as gpd
import numpy as np
import pytest
import shapely
from shapely.affinity import translate

from ocmlflow.chips import chip_set, labels
from ocmlflow.errors import InputError
from ocmlflow.evaluation import external_polygons


@pytest.fixture
def rows(made) -> gpd.GeoDataFrame:
    """The chips of both towns."""
    return made.index


def drawn(rows: gpd.GeoDataFrame, scene: str) -> gpd.GeoDataFrame:
    """A roof in the middle of each of the first two chips of a scene, in metres."""
    chips = rows[rows.scene == scene].head(2).reset_index(drop=True)
    roofs = shapely.box(chips.x - 1, chips.y - 1, chips.x + 1, chips.y + 1)
    return gpd.GeoDataFrame({"height": [3.0] * len(roofs)}, geometry=roofs, crs=chips.utm.iloc[0])


def write(frame: gpd.GeoDataFrame, file) -> None:
    file.parent.mkdir(exist_ok=True)
    if file.suffix == ".parquet":
        frame.to_parquet(file)
    else:
        frame.to_crs("EPSG:4326").to_file(file)


@pytest.mark.parametrize("suffix", [".parquet", ".geojson", ".gpkg", ".fgb"])
def test_polygons_of_each_scene_become_masks_of_its_chips(rows, made, tmp_path, suffix):
    for scene in ("aaa", "kkk"):
        write(drawn(rows, scene), tmp_path / "tool" / f"{scene}{suffix}")
    found = external_polygons.read(tmp_path / "tool", rows)
    assert found.scene.value_counts().to_dict() == {"aaa": 2, "kkk": 2}
    read = external_polygons.reader(found, rows)
    masks = {row.id: read(row, chip_set.read(made.folder, row).image) for row in rows.itertuples()}
    covered = {name: int(mask.sum()) for name, mask in masks.items() if mask.any()}
    assert list(covered.values()) == [400] * 4  # 2 m squares in pixels of 0.1 m
    assert {mask.shape for mask in masks.values()} == {(32, 32, 1)}


@pytest.mark.parametrize("as_folder", [True, False])
def test_one_file_serves_all_scenes(rows, tmp_path, as_folder):
    both = [drawn(rows, scene).to_crs("EPSG:4326").geometry for scene in ("aaa", "kkk")]
    file = tmp_path / "tool" / "everything.fgb"
    write(gpd.GeoDataFrame(geometry=np.concatenate(both), crs="EPSG:4326"), file)
    found = external_polygons.read(file.parent if as_folder else file, rows)
    assert found.scene.value_counts().to_dict() == {"aaa": 2, "kkk": 2}


def test_geoparquet_is_preferred_and_multipolygons_are_taken_apart(rows, tmp_path):
    for scene in ("aaa", "kkk"):
        roofs = drawn(rows, scene)
        write(roofs.head(1), tmp_path / f"{scene}.geojson")
        write(
            gpd.GeoDataFrame(geometry=[shapely.multipolygons(roofs.geometry.to_list())], crs=roofs.crs),
            tmp_path / f"{scene}.parquet",
        )
    assert len(external_polygons.read(tmp_path, rows)) == 4


def test_what_cannot_be_scored_is_refused(rows, tmp_path, caplog):
    roofs = drawn(rows, "aaa")
    write(roofs, tmp_path / "aaa.parquet")
    with pytest.raises(InputError, match=r"no polygons for 1 of 2 scenes, such as kkk: .* say kkk.parquet"):
        external_polygons.read(tmp_path, rows)
    moved = roofs.set_geometry([translate(roof, 100_000, 0) for roof in roofs.geometry])
    write(moved, tmp_path / "kkk.parquet")
    with pytest.raises(InputError, match=r"kkk.parquet lies elsewhere than the \d+ chips of its scene: is its CRS"):
        external_polygons.read(tmp_path, rows)
    roofs.set_crs(None, allow_override=True).to_parquet(tmp_path / "kkk.parquet")
    with pytest.raises(InputError, match=r"kkk.parquet names no CRS"):
        external_polygons.read(tmp_path, rows)
    (tmp_path / "kkk.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"cannot read polygons .*kkk.parquet"):
        external_polygons.read(tmp_path, rows)
    write(roofs.head(0), tmp_path / "kkk.parquet")
    assert set(external_polygons.read(tmp_path, rows).scene) == {"aaa"}
    assert "kkk.parquet holds no polygon: nothing is found in scene kkk" in caplog.text
    write(roofs.head(0), tmp_path / "aaa.parquet")
    with pytest.raises(InputError, match="holds no polygon: there is nothing to score"):
        external_polygons.read(tmp_path, rows)


def test_one_file_that_lies_elsewhere_or_several_of_other_names_are_refused(rows, tmp_path):
    roofs = drawn(rows, "aaa")
    write(roofs.set_geometry([translate(roof, 100_000, 0) for roof in roofs.geometry]), tmp_path / "all.parquet")
    with pytest.raises(InputError, match=r"none of the 2 polygons of .*all.parquet lies on the \d+ chips"):
        external_polygons.read(tmp_path, rows)
    write(roofs, tmp_path / "more.parquet")
    with pytest.raises(InputError, match=r"has 2 polygon files \(all.parquet, more.parquet\), none by the name"):
        external_polygons.read(tmp_path, rows)


def test_masks_are_no_polygon_files(tmp_path):
    (tmp_path / "aaa.tif").touch()
    assert external_polygons.files(tmp_path) == []
    assert external_polygons.files(tmp_path / "aaa.tif") == []


def test_degrees_keep_polygons_valid(rows, tmp_path):
    bow = shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])
    at = rows[rows.scene == "aaa"].iloc[0]
    frame = gpd.GeoDataFrame(geometry=[translate(bow, at.x, at.y)], crs=at.utm)
    write(frame, tmp_path / "aaa.parquet")
    found = external_polygons.read(tmp_path, rows[rows.scene == "aaa"])
    assert found.is_valid.all()
    assert len(found) == len(labels.polygons(frame.geometry))
