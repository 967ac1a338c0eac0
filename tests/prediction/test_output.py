import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pystac
import pytest
import shapely
from conftest import write_json

from ocmlflow.errors import InputError
from ocmlflow.prediction import output as output_files
from ocmlflow.prediction.scene_map import MapFiles
from ocmlflow.scenes import stac_writer
from ocmlflow.scenes.catalog import Scene
from ocmlflow.storage import hrefs


@pytest.fixture(params=["local", "s3"])
def output(request, tmp_path) -> str:
    return str(tmp_path / "out") if request.param == "local" else request.getfixturevalue("s3")


def add(output: str, folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    items = [stac_writer.build_item(name, [], outline=shapely.box(0, 0, 1, 2), assets={}) for name in names]
    output_files.write_items(items, output, folder)


def filed(output: str) -> list[str]:
    """Ids of the items that a collection links to."""
    found = json.loads(hrefs.read(hrefs.join(output, "collection.json")))
    links = [link["href"] for link in found["links"] if link["rel"] == "item"]
    assert found["description"] == f"Buildings of {len(links)} scenes, mapped by ocmlflow"
    items = [json.loads(hrefs.read(hrefs.join(output, href.removeprefix("./")))) for href in links]
    assert {item["collection"] for item in items} <= {"buildings"}
    return [item["id"] for item in items]


def test_a_collection_holds_what_lies_there(output, tmp_path, caplog):
    add(output, tmp_path / "work", "a", "b")
    add(output, tmp_path / "work", "c", "b")
    assert filed(output) == ["a", "b", "c"]
    hrefs.delete(hrefs.join(output, "items", "a.json"))
    for name, content in (("broken", "{"), ("list", "[1]"), ("other", '{"id": "x", "collection": "other"}')):
        (tmp_path / "source").write_text(content)
        hrefs.put(tmp_path / "source", hrefs.join(output, "items", f"{name}.json"))
    add(output, tmp_path / "work", "d")
    assert filed(output) == ["b", "c", "d"]
    assert [Path(record.args[0]).name for record in caplog.records] == ["broken.json", "list.json"]


def test_who_files_between_the_look_and_the_collection_of_another_is_not_lost(output, tmp_path, monkeypatch):
    write, others = output_files._write, iter("bc")

    def interrupted(content, href, folder):
        if href.endswith("collection.json") and folder.name == "a" and (name := next(others, None)):
            add(output, tmp_path / name, name)
        write(content, href, folder)

    monkeypatch.setattr(output_files, "_write", interrupted)
    add(output, tmp_path / "a", "a")
    assert filed(output) == ["a", "b", "c"]


def test_many_file_at_once(tmp_path):
    def writer(number: int) -> None:
        for count in range(5):
            add(str(tmp_path / "out"), tmp_path / str(number), f"{number}-{count}")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(writer, range(4)))
    assert filed(str(tmp_path / "out")) == sorted(f"{number}-{count}" for number in range(4) for count in range(5))


def test_what_is_made_is_taken_for_ones_own_and_nothing_else_is(output, tmp_path):
    output_files.check_output(output)
    add(output, tmp_path / "work", "a")
    output_files.check_output(output)
    everywhere = pystac.Extent(pystac.SpatialExtent([[-180, -90, 180, 90]]), pystac.TemporalExtent([[None, None]]))
    for content in (pystac.Collection("buildings", "Drawn by hand", everywhere).to_dict(), {}, []):
        write_json(tmp_path / "collection.json", content)
        hrefs.put(tmp_path / "collection.json", hrefs.join(output, "collection.json"))
        with pytest.raises(InputError, match=r"collection\.json is not of `predict`"):
            output_files.check_output(output)
    with pytest.raises(InputError, match="output=s3://nosuchbucket/out cannot be listed"):
        output_files.check_output("s3://nosuchbucket/out")


@pytest.mark.parametrize("asked", [True, False])
def test_the_raster_of_footprints_is_an_asset_where_it_was_asked_for(tmp_path, asked):
    folder = tmp_path / "work"
    folder.mkdir()
    names = ("probability.tif", "mask.tif", "instances.tif", "a.parquet", "a.fgb", "a.geojson")
    for name in names:
        (folder / name).write_text(name)
    files = MapFiles(
        probability=folder / "probability.tif",
        mask=folder / "mask.tif",
        footprints=folder / "a.parquet",
        instances=folder / "instances.tif" if asked else None,
        overview=None,
        tiles=folder,
        pixels=1,
        building_pixels=1,
        buildings=1,
        area_m2=1.0,
        outline=shapely.box(0, 0, 1, 2),
        unreadable=[],
    )
    scene = Scene("a", "", str(tmp_path / "a.tif"))
    item = output_files.stac_item(scene, files, model="m", threshold=50)
    output_files.move_files(scene, files, str(tmp_path / "out"))
    assert ("instances" in item["assets"]) == asked == (tmp_path / "out/instances/a.tif").exists()
    for asset in item["assets"].values():
        assert (tmp_path / "out/items" / asset["href"]).resolve().exists()
