import json
import re

import geopandas as gpd
import numpy as np
import pytest
import shapely
from conftest import (
    CRS,
    DATA,
    building,
    needs_data,
    noise,
    pixels,
    upload,
    write_catalog,
    write_image,
    write_json,
    write_labels,
)

from ocmlflow.errors import InputError
from ocmlflow.scenes import catalog
from ocmlflow.storage import hrefs

SCENES = {"acc/a1": [building(1, 1, 5, 5)], "acc/a2": None, "kam/k1": []}


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(SCENES):
        write_image(tmp_path / name / f"{name[-2:]}.tif", noise(8, 8, seed=number))
    write_catalog(tmp_path, SCENES)
    return tmp_path


def change(path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def names(scenes) -> list[tuple]:
    return [(scene.id, scene.place, len(scene.labels)) for scene in scenes]


def test_scenes_come_with_place_and_labels_in_the_order_of_the_catalogue(folder, caplog):
    found = catalog.read_scenes(str(folder / "catalog.json"))
    assert names(found) == [("a1", "acc", 1), ("a2", "acc", 0), ("k1", "kam", 1)]
    assert found[0].image == str(folder / "acc/a1/a1.tif")
    assert found[0].labels == (str(folder / "acc/a1-labels/a1.geojson"),)
    assert not caplog.records


def test_a_relative_path_gives_absolute_hrefs(folder, monkeypatch):
    monkeypatch.chdir(folder / "acc")
    (found, *_) = catalog.read_scenes("../catalog.json")
    assert found.image == str(folder / "acc/a1/a1.tif")


@pytest.mark.parametrize("way", ["link", "outline"])
def test_labels_of_another_name_are_paired_by(way, folder):
    item = folder / "acc/a1-labels/a1-labels.json"
    if way == "link":
        links = [{"rel": "source", "href": "../a2/a2.json", "type": "application/json"}]
        change(item, links=links, geometry=None, bbox=None)
        expected = [("a1", "acc", 0), ("a2", "acc", 1), ("k1", "kam", 1)]
    else:
        change(item, id="drawn-by-hand")
        expected = [("a1", "acc", 1), ("a2", "acc", 0), ("k1", "kam", 1)]
    assert names(catalog.read_scenes(str(folder / "catalog.json"))) == expected


def test_labels_of_several_images_are_those_of_each(folder, caplog):
    links = [{"rel": "source", "href": f"../{name}/{name}.json"} for name in ("a1", "a2")]
    change(folder / "acc/a1-labels/a1-labels.json", id="drawn-by-hand", links=links, geometry=None, bbox=None)
    assert names(catalog.read_scenes(str(folder / "catalog.json"))) == [
        ("a1", "acc", 1),
        ("a2", "acc", 1),
        ("k1", "kam", 1),
    ]
    assert not caplog.records


@pytest.mark.parametrize(
    "raster",
    [
        {"raster": {"href": "a1.tif", "type": "image/tiff", "roles": ["labels", "labels-raster"]}},
        {"raster_labels": {"href": "a1.tif", "type": "image/tiff"}},
        {"mask": {"href": "a1.tif"}},
    ],
)
@pytest.mark.parametrize("name", ["a1-labels", "drawn-by-hand"])
def test_a_label_item_with_a_raster_is_no_scene(folder, raster, name, caplog):
    vector = {"labels": {"href": "a1.geojson", "type": "application/geo+json"}}
    links = [{"rel": "source", "href": "../a1/a1.json"}] if name == "drawn-by-hand" else []
    change(folder / "acc/a1-labels/a1-labels.json", id=name, assets=raster | vector, links=links)
    (found, *others) = catalog.read_scenes(str(folder / "catalog.json"))
    assert found.image == str(folder / "acc/a1/a1.tif")
    assert found.labels == (str(folder / "acc/a1-labels/a1.geojson"),)
    assert [scene.id for scene in others] == ["a2", "k1"]
    assert not caplog.records


def test_label_rasters_without_vectors_are_reported(folder):
    raster = {"raster_labels": {"href": "a1.tif", "type": "image/tiff"}}
    change(folder / "acc/a1-labels/a1-labels.json", assets=raster)
    (found, *_) = catalog.read_scenes(str(folder / "catalog.json"))
    assert found.labels == (str(folder / "acc/a1-labels/a1.tif"),)  # which is then refused by its name


@pytest.mark.parametrize(
    "media",
    [
        "image/vnd.stac.geotiff",
        "image/vnd.stac.geotiff; cloud-optimized=true",
        "image/x.geotiff",
        "IMAGE/TIFF;application=geotiff",
        None,
    ],
)
def test_assets_are_known_by_media_types_of_every_version_or_else_by_their_names(folder, media, caplog):
    image = {"href": "a1.TIF"} | ({"type": media} if media else {})
    other = {"href": "heights.tif"} if media else {"href": "heights.png"}
    change(folder / "acc/a1/a1.json", assets={"heights": other, "visual": image})
    vector = {"href": "a1.GeoJSON"} | ({"type": "application/geo+json; charset=utf-8"} if media else {})
    change(folder / "acc/a1-labels/a1-labels.json", assets={"buildings": vector})
    (found, *_) = catalog.read_scenes(str(folder / "catalog.json"))
    assert found.image == str(folder / "acc/a1/a1.TIF")
    assert found.labels == (str(folder / "acc/a1-labels/a1.GeoJSON"),)
    assert not caplog.records


def test_the_place_is_the_nearest_collection_however_far_above(folder):
    years = {"id": "2020", "stac_version": "1.0.0", "type": "Catalog", "description": "", "links": []}
    years["links"] = [{"rel": "item", "href": "../a1/a1.json"}, {"rel": "parent", "href": "../collection.json"}]
    write_json(folder / "acc/2020/catalog.json", years)
    change(folder / "acc/collection.json", links=[{"rel": "child", "href": "2020/catalog.json"}])
    change(folder / "acc/a1/a1.json", properties={"datetime": "2017-09-19T00:00:00Z"})
    assert [scene.place for scene in catalog.read_scenes(str(folder / "catalog.json"))] == ["acc", "kam"]
    change(folder / "acc/a1/a1.json", collection="named")
    for href in ("acc/2020/catalog.json", "acc/a1/a1.json"):  # what lies above is not read
        assert [scene.place for scene in catalog.read_scenes(str(folder / href))] == ["named"]


@pytest.mark.parametrize("given", [None, "", 7])
def test_an_item_without_an_id_is_refused_by_its_address(folder, given):
    for name in ("a1", "a1-labels"):
        change(folder / f"acc/{name}/{name}.json", id=given)
        with pytest.raises(
            InputError,
            match=r"acc/a1\S*/a1\S*\.json of .*catalog\.json cannot be read: it is not a STAC item with an id",
        ):
            catalog.read_scenes(str(folder / "catalog.json"))


@pytest.mark.parametrize(
    ("rel", "told"), [("child", "is linked from a catalogue below it, as its own child"), ("item", "as its own item")]
)
def test_a_catalogue_that_links_to_itself_is_refused_by_its_address(folder, rel, told):
    change(folder / "acc/collection.json", links=[{"rel": rel, "href": "../catalog.json"}])
    with pytest.raises(InputError, match=rf"{folder}/catalog\.json .*{told}"):
        catalog.read_scenes(str(folder / "catalog.json"))


def test_labels_of_no_scene_are_warned_of(folder, caplog):
    change(folder / "acc/a1-labels/a1-labels.json", id="stray", geometry=None, bbox=None)
    assert names(catalog.read_scenes(str(folder / "catalog.json")))[0] == ("a1", "acc", 0)
    assert "labels stray belong to no scene" in caplog.text


def test_labels_beside_the_image_in_one_item(folder):
    assets = {
        "image": {"href": "a1.tif", "type": "image/tiff"},
        "labels": {"href": "../a1-labels/a1.geojson", "type": "application/geo+json"},
    }
    change(folder / "acc/a1/a1.json", assets=assets)
    (found,) = catalog.read_scenes(str(folder / "acc/a1/a1.json"))
    assert len(found.labels) == 1


def test_one_id_in_two_collections_is_told_apart_by_them(folder):
    """STAC asks for ids that are unique within a collection only."""
    change(folder / "kam/k1/k1.json", id="a1")
    found = catalog.read_scenes(str(folder / "catalog.json"))
    assert names(found) == [("acc-a1", "acc", 1), ("a2", "acc", 0), ("kam-a1", "kam", 1)]
    assert [scene.id for scene in catalog.select(found, scenes="kam-a1", places=None)] == ["kam-a1"]
    with pytest.raises(InputError, match="there is no a1; there are: a2, acc-a1, kam-a1"):
        catalog.select(found, scenes="a1", places=None)


def test_labels_of_one_id_in_two_collections_are_those_of_their_own(folder):
    """Without a link, `a1-labels` is of the `a1` of its collection, even if that of another has the same outline."""
    change(folder / "kam/k1/k1.json", id="a1")
    change(folder / "kam/k1-labels/k1-labels.json", id="a1-labels")
    acc, _, kam = catalog.read_scenes(str(folder / "catalog.json"))
    assert acc.labels == (str(folder / "acc/a1-labels/a1.geojson"),)
    assert kam.labels == (str(folder / "kam/k1-labels/k1.geojson"),)


def test_one_image_twice_is_refused(folder):
    with pytest.raises(InputError, match="names scene a1 more than once, and neither collections nor folders"):
        catalog.find_images(f"{folder}/acc/a1/a1.tif,{folder}/acc/a1/a1.tif")


@pytest.mark.parametrize("content", ["", "hello", "{}", "[]", '{"type": "FeatureCollection", "features": []}'])
def test_a_file_that_is_no_catalogue_is_refused_by_name(content, tmp_path):
    (tmp_path / "catalog.json").write_text(content)
    with pytest.raises(InputError, match=r"catalog\.json"):
        catalog.read_scenes(str(tmp_path / "catalog.json"))


@pytest.mark.parametrize("content", [None, "hello", "{}"])
def test_a_broken_link_of_a_catalogue_is_refused_by_name(content, folder):
    item = folder / "acc/a1/a1.json"
    item.unlink() if content is None else item.write_text(content)
    with pytest.raises(InputError, match=r"catalog\.json"):
        catalog.read_scenes(str(folder / "catalog.json"))


def test_a_missing_catalogue_and_one_without_images_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no STAC catalogue at .*none\.json"):
        catalog.read_scenes(str(tmp_path / "none.json"))
    empty = write_json(tmp_path / "catalog.json", {"id": "e", "stac_version": "0.8.1", "description": "", "links": []})
    with pytest.raises(InputError, match="0 items but none with a GeoTIFF"):
        catalog.read_scenes(empty)


@pytest.mark.parametrize(
    ("href", "found"),
    [
        ("catalog.json", ["a1", "a2", "k1"]),
        ("", ["a1", "a2", "k1"]),  # a folder with a catalogue in it
        ("acc/collection.json", ["a1", "a2"]),
        ("acc", ["a1", "a2"]),  # a folder with a collection in it
        ("kam/k1/k1.json", ["k1"]),
        ("kam/k1/k1.tif", ["k1"]),
        ("kam/k1", ["k1"]),
        ("acc/*/*.tif", ["a1", "a2"]),
        ("**/*.tif", ["a1", "a2", "k1"]),
    ],
)
def test_images_are_found_at(href, found, folder):
    scenes = catalog.find_images(str(folder / href))
    assert [scene.id for scene in scenes] == found
    assert all(hrefs.local_path(scene.image).is_file() for scene in scenes)


def test_a_remote_image_is_one_scene():
    (scene,) = catalog.find_images("s3://bucket/maps/one.tif")
    assert (scene.id, scene.image) == ("one", "s3://bucket/maps/one.tif")


@pytest.mark.parametrize("href", ["nowhere", "nowhere/*.tif", "acc/a1-labels"])
def test_a_source_without_images_is_refused_by_name(href, folder):
    with pytest.raises(InputError, match=r"no image at|holds no catalog\.json or collection\.json and no GeoTIFF"):
        catalog.find_images(str(folder / href))


@pytest.mark.parametrize("pattern", ["odm/*/odm_orthophoto/odm_orthophoto.tif", "odm/**/*.tif"])
def test_equal_names_are_told_apart_by_their_folders(tmp_path, pattern):
    """As OpenDroneMap names its results."""
    for project in ("p1", "p2"):
        write_image(tmp_path / "odm" / project / "odm_orthophoto/odm_orthophoto.tif", noise(8, 8))
    for read in (catalog.find_images, catalog.read_scenes):
        assert [scene.id for scene in read(f"{tmp_path}/{pattern}")] == ["p1-odm_orthophoto", "p2-odm_orthophoto"]
    both = ",".join(f"{tmp_path}/odm/{project}/odm_orthophoto" for project in ("p2", "p1"))
    assert [scene.id for scene in catalog.read_scenes(both)] == ["p2-odm_orthophoto", "p1-odm_orthophoto"]


def test_a_catalogue_in_s3_gives_the_scenes_and_pixels_of_the_local_one(folder, s3):
    upload(folder, s3)
    local, remote = catalog.read_scenes(str(folder / "catalog.json")), catalog.read_scenes(f"{s3}/catalog.json")
    assert names(local) == names(remote)
    for here, there in zip(local, remote, strict=True):
        assert there.image.startswith(s3)
        np.testing.assert_array_equal(pixels(there.image).image, pixels(here.image).image)
    assert hrefs.read(remote[0].labels[0]) == hrefs.read(local[0].labels[0])


@pytest.mark.parametrize("find", [catalog.read_scenes, catalog.find_images])
def test_a_folder_that_does_not_answer_is_refused_by_its_address(find, s3, web):
    _, address, _ = web
    with pytest.raises(InputError, match="folder s3://nowhere/maps/ cannot be read"):
        find("s3://nowhere/maps/")
    with pytest.raises(InputError, match=rf"no STAC catalogue at {address}/maps/catalog\.json: .* answers 404"):
        find(f"{address}/maps/")


def test_a_catalogue_on_the_web_gives_the_scenes_and_pixels_of_the_local_one(web):
    folder, address, _ = web
    write_image(folder / "acc/a1/a1.tif", noise(8, 8))
    write_catalog(folder, {"acc/a1": []})
    (scene,) = catalog.read_scenes(f"{address}/catalog.json")
    assert names(catalog.read_scenes(f"{address}/")) == names([scene])
    np.testing.assert_array_equal(pixels(scene.image).image, noise(8, 8))


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "/etc/passwd", "../../../../etc/passwd", "a/../../../../../x"]
)
@pytest.mark.parametrize("what", ["asset", "link"])
def test_a_remote_catalogue_names_no_local_file(web, target, what):
    folder, address, _ = web
    write_catalog(folder / "maps", {"acc/a1": []})
    path = folder / "maps/acc/a1/a1.json" if what == "asset" else folder / "maps/acc/collection.json"
    change(
        path,
        **(
            {"assets": {"image": {"href": target}}} if what == "asset" else {"links": [{"rel": "item", "href": target}]}
        ),
    )
    with pytest.raises(InputError, match=rf"{path.name} names .*, a local file or one above its host"):
        catalog.read_scenes(f"{address}/maps/catalog.json")


def test_a_remote_catalogue_may_name_other_servers_and_relative_files(web):
    folder, address, _ = web
    write_catalog(folder / "maps", {"acc/a1": [], "acc/a2": []})
    change(folder / "maps/acc/a1/a1.json", assets={"image": {"href": "s3://elsewhere/a1.tif"}})
    change(folder / "maps/acc/a2/a2.json", assets={"image": {"href": "../../../images/a2.tif"}})
    found = catalog.read_scenes(f"{address}/maps/catalog.json")
    assert [scene.image for scene in found] == ["s3://elsewhere/a1.tif", f"{address}/images/a2.tif"]


def plain_folder(folder):
    """Three images of which two have labels of the same name, of two kinds."""
    for name in ("one", "two", "three"):
        write_image(folder / f"{name}.tif", noise(8, 8))
    write_labels(folder / "one.geojson", [building(1, 1, 5, 5)])
    gpd.GeoDataFrame(geometry=[building(1, 1, 5, 5)], crs=CRS).to_file(folder / "two.gpkg")
    return folder


def test_a_plain_folder_pairs_images_and_labels_by_name(tmp_path):
    found = catalog.read_scenes(str(plain_folder(tmp_path / "town")))
    assert names(found) == [("one", "town", 1), ("three", "town", 0), ("two", "town", 1)]
    with pytest.raises(InputError, match=r"holds no catalog\.json or collection\.json and no GeoTIFF"):
        catalog.read_scenes(str(tmp_path))


def test_hidden_files_of_macos_are_ignored(tmp_path, s3):
    plain_folder(tmp_path)
    upload(tmp_path, s3)
    hrefs = [str(tmp_path), f"{tmp_path}/*.tif", f"{s3}/", f"{s3}/*.tif"]
    before = [catalog.find_images(href) for href in hrefs]
    for path in list(tmp_path.iterdir()):
        path.with_name(f"._{path.name}").write_bytes(b"Mac OS X")
    upload(tmp_path, s3)
    assert [catalog.find_images(href) for href in hrefs] == before
    assert [len(scene.labels) for scene in catalog.read_scenes(str(tmp_path))] == [1, 0, 1]
    with pytest.raises(InputError, match="begins with a dot"):  # what is named directly is not passed over
        catalog.find_images(f"{tmp_path}/._one.tif")


def test_a_collection_beside_images_is_ignored(tmp_path):
    write_image(tmp_path / "a.tif", noise(8, 9))
    (tmp_path / "collection.json").write_text("{}")
    for found in (catalog.find_images(str(tmp_path)), catalog.read_scenes(str(tmp_path))):
        assert [scene.id for scene in found] == ["a"]


def test_a_symbolic_link_to_a_catalogue_is_resolved(tmp_path):
    write_catalog(tmp_path / "there", {"acc/a1": []})
    (tmp_path / "here").mkdir()
    (tmp_path / "here/catalog.json").symlink_to(tmp_path / "there/catalog.json")
    assert [scene.id for scene in catalog.find_images(str(tmp_path / "here/catalog.json"))] == ["a1"]


@pytest.mark.parametrize(("image", "label"), [("a.tif", "a.GeoJSON"), ("a.TIFF", "a.GPKG"), ("a.Tif", "a.gpkg")])
def test_file_suffixes_may_be_of_any_case(tmp_path, image, label):
    for name in (image, label, "b.geojson", "a.txt"):
        (tmp_path / name).touch()
    (scene,) = catalog.read_scenes(str(tmp_path))
    assert (scene.image, scene.labels) == (str(tmp_path / image), (str(tmp_path / label),))


def test_a_plain_folder_in_s3_is_listed(tmp_path, s3):
    upload(plain_folder(tmp_path / "town"), f"{s3}/town")
    assert [scene.id for scene in catalog.find_images(f"{s3}/town/")] == ["one", "three", "two"]
    assert names(catalog.read_scenes(f"{s3}/town/")) == [("one", "town", 1), ("three", "town", 0), ("two", "town", 1)]


def test_images_in_s3_are_a_folder_or_a_glob(tmp_path, s3):
    upload(plain_folder(tmp_path / "town"), f"{s3}/town")
    for href, found in (("", ["one", "three", "two"]), ("t*.tif", ["three", "two"]), ("t[w]?.tif", ["two"])):
        scenes = catalog.find_images(f"{s3}/town/{href}")
        assert [scene.id for scene in scenes] == found
        assert [scene.image for scene in scenes] == [f"{s3}/town/{name}.tif" for name in found]
    with pytest.raises(InputError, match=r"no image at .*/x\*\.tif"):
        catalog.find_images(f"{s3}/town/x*.tif")
    with pytest.raises(InputError, match=r"folder s3://nosuchbucket cannot be read: "):
        catalog.find_images("s3://nosuchbucket/*.tif")


def test_empty_hrefs_between_commas_are_ignored(folder, monkeypatch):
    plain_folder(folder / "here")
    monkeypatch.chdir(folder / "here")
    for read in (catalog.find_images, catalog.read_scenes):
        assert [scene.id for scene in read(f"{folder}/acc/collection.json, ,")] == ["a1", "a2"]
        with pytest.raises(InputError, match="no catalogue or image is named by ', '"):
            read(", ")


@pytest.mark.parametrize("name", ["x#1", "q?y", "a;b", ".a"])
def test_ids_that_cannot_be_file_names_are_refused(tmp_path, name):
    image = write_image(tmp_path / f"{name}.tif", noise(8, 8))
    with pytest.raises(InputError, match=re.escape(f"names a scene {name}, which cannot be the name")):
        catalog.find_images(image)


def test_several_catalogues_are_one_and_scenes_are_chosen(folder, tmp_path):
    both = f"{folder}/catalog.json, {plain_folder(tmp_path / 'town')}"
    found = catalog.read_scenes(both)
    assert [scene.id for scene in found] == ["a1", "a2", "k1", "one", "three", "two"]
    assert {scene.catalog for scene in found} == set(both.split(", "))
    chosen = catalog.select(found, scenes="a1,one,k1", places="acc, town")
    assert [scene.id for scene in chosen] == ["a1", "one"]
    for words in ({"scenes": "a1,zzz", "places": None}, {"scenes": None, "places": "zzz"}):
        with pytest.raises(InputError, match="there is no zzz; there are: "):
            catalog.select(found, **words)


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0", "1.0.0", "1.1.0"])
def test_stac_of_every_version_gives_the_same_scenes(folder, version, caplog):
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text())
        content["stac_version"] = version
        if version >= "1" and content.get("type") != "Feature":
            content["type"] = "Collection" if "extent" in content else "Catalog"
        if content.get("type") == "Feature":
            content["properties"]["datetime"] = "2017-09-19T00:00:00Z"
        path.write_text(json.dumps(content))
    found = catalog.read_scenes(str(folder / "catalog.json"))
    assert names(found) == [("a1", "acc", 1), ("a2", "acc", 0), ("k1", "kam", 1)]
    assert found[0].acquired.year == 2017
    assert not caplog.records


@needs_data
@pytest.mark.parametrize(("tier", "count"), [("train_tier_1", 6), ("reference/train_tier_1", 1), ("test", 25)])
def test_the_challenge_s_own_layout_is_read(tier, count, caplog):
    found = catalog.read_scenes(str(DATA / tier / "catalog.json"))
    assert len(found) == count
    assert all(bool(scene.labels) == (tier != "test") for scene in found)
    assert not caplog.records


SQUARE = shapely.geometry.mapping(shapely.box(32, 0, 33, 1))


@pytest.mark.parametrize(
    "content",
    [
        SQUARE,
        {"type": "Feature", "properties": {}, "geometry": SQUARE},
        {"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": SQUARE}] * 2},
        {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": g} for g in (None, SQUARE)]},
    ],
)
def test_an_area_is_the_union_of_the_polygons_of_a_file(tmp_path, content):
    assert catalog.read_area(write_json(tmp_path / "aoi.geojson", content)).equals(shapely.box(32, 0, 33, 1))


def test_an_area_whose_parts_overlap_has_no_hole(tmp_path):
    crossed = shapely.MultiPolygon([shapely.box(32, 0, 34, 2), shapely.box(33, 1, 35, 3)])
    path = write_json(tmp_path / "aoi.geojson", shapely.geometry.mapping(crossed))
    assert catalog.read_area(path).area == pytest.approx(7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"type": "Point", "coordinates": [1, 2]}, "holds no polygon in degrees"),
        (shapely.geometry.mapping(shapely.box(5e5, 0, 6e5, 1)), "holds no polygon in degrees"),
        ({"type": "FeatureCollection", "features": []}, "holds no polygon in degrees"),
        ({"type": "Feature", "properties": {}, "geometry": None}, "holds no polygon in degrees"),
        (["no", "GeoJSON"], "cannot be read as GeoJSON"),
    ],
)
def test_an_area_without_polygons_in_degrees_is_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=rf"aoi=.*aoi\.geojson {message}"):
        catalog.read_area(write_json(tmp_path / "aoi.geojson", content))
    with pytest.raises(InputError, match=r"aoi=nowhere\.geojson cannot be read as GeoJSON"):
        catalog.read_area("nowhere.geojson")
