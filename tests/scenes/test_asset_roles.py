import itertools

import numpy as np
import pystac
import pytest
from affine import Affine
from conftest import TRANSFORM, building, noise, write_catalog, write_image, write_json, write_labels

from ocmlflow.errors import InputError
from ocmlflow.scenes import asset_roles, catalog

TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"
GEOJSON = "application/geo+json"
GEOPACKAGE = "application/geopackage+sqlite3"


def asset(href: str, *roles: str, media: str | None = TIFF, **fields) -> dict:
    typed = {"type": media} if media else {}
    return {"href": href, **typed, **({"roles": list(roles)} if roles else {}), **fields}


def item(path, assets: dict, *, links=(), version="1.0.0", **properties) -> str:
    """Write a STAC item with the id of its file name."""
    content = {"type": "Feature", "stac_version": version, "id": path.stem, "geometry": None, "links": list(links)}
    return write_json(
        path, content | {"assets": assets, "properties": {"datetime": "2024-01-01T00:00:00Z"} | properties}
    )


def stac_catalog(path, *items: str) -> str:
    links = [{"rel": "item", "href": href} for href in items]
    content = {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "", "links": links}
    return write_json(path, content)


@pytest.fixture
def folder(tmp_path):
    """`full.tif`, a tenth of it as `small.tif`, heights as `heights.tif`, and 16 bits as `deep.tif`."""
    write_image(tmp_path / "full.tif", noise(40, 60))
    write_image(tmp_path / "small.tif", noise(4, 6), transform=TRANSFORM @ Affine.scale(10))
    write_image(tmp_path / "heights.tif", np.ones((40, 60, 1), np.float32), how="none")
    write_image(tmp_path / "deep.tif", noise(80, 90).astype(np.uint16), how="none")
    write_labels(tmp_path / "roofs.geojson", [building(1, 1, 5, 5)])
    return tmp_path


OTHERS = {
    "thumbnail": asset("small.tif", "thumbnail"),
    "overview": asset("small.tif", "overview"),
    "an overview by its role": asset("small.tif", "overview", "data"),
    "preview": asset("small.tif"),
    "rendered_preview": asset("small.tif"),
    "metadata": asset("small.tif", "metadata"),
    "data-mask": asset("small.tif", "data-mask"),
    "cloud": asset("small.tif", "cloud"),
    "snow": asset("small.tif", "snow-ice"),
    "any_mask": asset("heights.tif"),
    "dsm": asset("heights.tif", "data"),
    "height": asset("heights.tif", "data"),
    "analytic": asset("deep.tif", "data"),
    "pan": asset("deep.tif", "data", **{"eo:bands": [{"name": "pan"}]}),
    "deep": asset("deep.tif", "data", **{"raster:bands": [{"data_type": "uint16"}] * 3}),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(
    ("key", "roles"),
    [("visual", ["visual", "data"]), ("visual", []), ("anything", ["visual"]), ("image", ["data"]), ("ortho", []),
     ("anything", ["data"])],
)  # fmt: skip
def test_the_image_is_the_picture_in_any_order(folder, other, key, roles):
    for number, keys in enumerate(itertools.permutations((key, other))):
        assets = {name: asset("full.tif", *roles) if name == key else OTHERS[other] for name in keys}
        (scene,) = catalog.find_images(item(folder / f"s{number}.json", assets))
        assert scene.image == str(folder / "full.tif")


@pytest.mark.parametrize("order", [1, -1])
def test_of_assets_that_nothing_tells_apart_the_largest_of_three_bytes_is_the_image(folder, order):
    names = ["small.tif", "full.tif", "heights.tif", "deep.tif", "missing.tif"][::order]
    assets = {f"a{number}": asset(name) for number, name in enumerate(names)}
    (scene,) = catalog.find_images(item(folder / "s1.json", assets))
    assert scene.image == str(folder / "full.tif")


@pytest.mark.parametrize("other", ["thumbnail", "overview", "an overview by its role", "preview", "data-mask", "cloud"])
def test_an_item_without_a_picture_is_refused_with_its_assets(folder, other):
    path = item(folder / "s1.json", {other: OTHERS[other]})
    with pytest.raises(InputError, match=rf"s1\.json has 1 items but none .*: the assets of s1 are {other} \("):
        catalog.find_images(path)


def test_an_item_without_a_picture_among_others_is_warned_of(folder, caplog):
    item(folder / "s1.json", {"visual": asset("full.tif")})
    item(folder / "s2.json", {"thumbnail": asset("small.tif", "thumbnail")})
    (scene,) = catalog.read_scenes(stac_catalog(folder / "catalog.json", "s1.json", "s2.json"))
    assert scene.id == "s1"
    assert "item s2 of" in caplog.text
    assert "thumbnail (thumbnail, image/tiff" in caplog.text


@pytest.mark.parametrize(
    "vector",
    [
        {"data-mask": asset("outline.gpkg", "data-mask", media=GEOPACKAGE)},
        {"data-mask": asset("outline.gpkg", media=None)},
        {"outline": asset("outline.geojson", media=GEOJSON)},
        {"footprint": asset("outline.geojson", "metadata", media=GEOJSON)},
        {"clouds": asset("outline.geojson", "cloud", media=GEOJSON)},
        {"extent": asset("outline.geojson", "data", media="application/json")},
        {"seamlines": asset("outline.fgb", "data", media="application/vnd.flatgeobuf")},
        {"metadata": asset("outline.parquet", "metadata", media="application/vnd.apache.parquet")},
    ],
)
def test_a_vector_asset_that_nothing_calls_labels_is_none(folder, vector):
    item(folder / "s1.json", vector | {"visual": asset("full.tif", "visual")})
    item(folder / "s1-labels.json", {"labels": asset("roofs.geojson", media=GEOJSON)})
    (scene,) = catalog.read_scenes(stac_catalog(folder / "catalog.json", "s1.json", "s1-labels.json"))
    assert scene.labels == (str(folder / "roofs.geojson"),)
    (scene,) = catalog.read_scenes(stac_catalog(folder / "unlabelled.json", "s1.json"))
    assert scene.labels == ()


@pytest.mark.parametrize(
    ("key", "roles"), [("labels", []), ("label", []), ("Labels", []), ("roof_labels", []), ("x", ["labels"]),
                       ("x", ["data", "labels-vector"]), ("buildings", []), ("building_footprints", ["data"])]
)  # fmt: skip
@pytest.mark.parametrize("media", [GEOJSON, "application/json", None])
def test_a_key_or_a_role_says_that_an_asset_of_the_image_s_item_is_labels(folder, key, roles, media):
    assets = {"visual": asset("full.tif", "visual"), key: asset("roofs.geojson", *roles, media=media)}
    (scene,) = catalog.read_scenes(item(folder / "s1.json", assets))
    assert scene.labels == (str(folder / "roofs.geojson"),)


SOURCE = {"rel": "source", "href": "./s1.json"}


@pytest.mark.parametrize(
    ("name", "links", "properties"),
    [
        ("l1", [SOURCE], {"label:type": "vector", "label:description": "x", "label:properties": None}),
        ("l1", [SOURCE], {}),
        ("s1-labels", [], {}),
    ],
)
@pytest.mark.parametrize("media", ["application/json", GEOJSON, "application/octet-stream", None])
def test_in_an_item_of_labels_every_vector_asset_is_labels(folder, name, links, properties, media):
    item(folder / "s1.json", {"image": asset("full.tif")})
    assets = {"vector": asset("roofs.geojson", "data", media=media), "metadata": asset("m.json", "metadata")}
    assets |= {"thumbnail": asset("t.png", "thumbnail", media="image/png"), "preview": asset("small.tif", "overview")}
    item(folder / f"{name}.json", assets, links=links, **properties)
    (scene,) = catalog.read_scenes(stac_catalog(folder / "catalog.json", "s1.json", f"{name}.json"))
    assert scene.labels == (str(folder / "roofs.geojson"),)


def test_the_raster_of_an_item_of_labels_is_no_scene(folder):
    item(folder / "s1.json", {"image": asset("full.tif")})
    item(folder / "l1.json", {"raster": asset("heights.tif", "data")}, links=[SOURCE], **{"label:type": "raster"})
    (scene,) = catalog.read_scenes(stac_catalog(folder / "catalog.json", "s1.json", "l1.json"))
    assert (scene.image, scene.labels) == (str(folder / "full.tif"), (str(folder / "heights.tif"),))


def test_an_item_may_hold_image_and_labels_of_the_label_extension(folder):
    assets = {"image": asset("full.tif", "data"), "vector": asset("roofs.geojson", media=GEOJSON)}
    (scene,) = catalog.read_scenes(item(folder / "s1.json", assets, **{"label:type": "vector"}))
    assert (scene.image, scene.labels) == (str(folder / "full.tif"), (str(folder / "roofs.geojson"),))


def test_the_challenge_s_items_need_no_header(tmp_path):
    write_catalog(tmp_path, {"acc/a1": []})  # without its image
    found = pystac.Item.from_file(str(tmp_path / "acc/a1/a1.json"))
    assert asset_roles.image_asset(found) is found.assets["image"]
