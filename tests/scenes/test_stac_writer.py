import json
from datetime import UTC, datetime

import pystac
import shapely
from conftest import write_catalog, write_json

from ocmlflow.scenes import catalog, stac_writer
from ocmlflow.scenes.catalog import Scene


def test_an_item_is_valid_stac_and_derived_from_its_scenes(tmp_path):
    write_catalog(tmp_path, {"acc/a1": [], "kam/k1": []})
    found = catalog.read_scenes(str(tmp_path / "catalog.json"))
    outline = shapely.union_all([shapely.box(0, 0, 1, 1), shapely.box(5, 5, 6, 6)])
    item = stac_writer.build_item(
        "made", found, outline=outline, assets={"index": ("./i.parquet", "application/x")}, gsd=0.1
    )
    (tmp_path / "item.json").write_text(json.dumps(item))
    read = pystac.Item.from_file(str(tmp_path / "item.json"))
    assert {link.get_absolute_href() for link in read.links if link.rel == "derived_from"} == {s.item for s in found}
    assert read.properties["gsd"] == 0.1
    assert read.bbox == [0, 0, 6, 6]
    assert pystac.serialization.identify_stac_object(item).object_type == pystac.STACObjectType.ITEM


def test_west_is_greater_than_east_in_boxes_across_180_degrees():
    across = shapely.union_all([shapely.box(179.9, -17, 180, -16), shapely.box(-180, -17, -179.8, -16)])
    beside, far = shapely.box(178, -18, 179, -17), shapely.box(-1, 5, 1, 6)
    items = [stac_writer.build_item("a", [], outline=outline, assets={}) for outline in (across, beside, far)]
    assert [item["bbox"] for item in items] == [[179.9, -17, -179.8, -16], [178, -18, 179, -17], [-1, 5, 1, 6]]
    for count, box in ((2, [178, -18, -179.8, -16]), (3, [178, -18, 1, 6])):
        made = stac_writer.build_collection("a", items[:count], description="Some")
        assert made["extent"]["spatial"]["bbox"][0] == box


def test_a_collection_of_results_is_valid_stac(tmp_path):
    scenes = [
        Scene(name, "", f"/scenes/{name}.tif", acquired=taken)
        for name, taken in (("a", datetime(2020, 2, 7, tzinfo=UTC)), ("b", None))
    ]
    outlines, assets = ([shapely.box(n, 0, n + 1, 2) for n in range(2)], [f"../masks/{s.id}.tif" for s in scenes])
    items = [
        stac_writer.link_to_collection(
            "buildings", stac_writer.build_item(s.id, [s], outline=outline, assets={"mask": (mask, "image/tiff")})
        )
        for s, outline, mask in zip(scenes, outlines, assets, strict=True)
    ]
    made = stac_writer.build_collection("buildings", items, description="Two scenes")
    write_json(tmp_path / "collection.json", made)
    for item in items:
        write_json(tmp_path / "items" / f"{item['id']}.json", item)
    assert made["extent"]["temporal"]["interval"] == [["2020-02-07T00:00:00Z"] * 2]  # of the one that is known
    assert stac_writer.build_collection("b", items[1:], description="")["extent"]["temporal"]["interval"] == [
        [None, None]
    ]
    found = pystac.Collection.from_file(str(tmp_path / "collection.json"))
    assert found.validate_all() == 2
    assert found.extent.spatial.bboxes[0] == [0, 0, 2, 2]
    for item, scene in zip(found.get_items(), scenes, strict=True):
        assert item.get_single_link("derived_from").href == scene.image
        assert item.get_collection().id == "buildings"
        assert item.assets["mask"].get_absolute_href() == str(tmp_path / "masks" / f"{scene.id}.tif")
