import json
import os
import resource
import time

import pytest
from conftest import building, noise, pixels, upload, write_image, write_json, write_labels

from ocmlflow.errors import InputError
from ocmlflow.scenes import catalog
from ocmlflow.storage import json_files

AWAY = "http://127.0.0.1:9/catalog.json"


def item(name: str = "s1", image: str = "./v.tif", *, links=(), **fields) -> dict:
    assets = {"image": {"href": image, "type": "image/tiff"}, "labels": {"href": "./b.geojson"}}
    content = {"type": "Feature", "stac_version": "1.0.0", "id": name, "geometry": None, "links": list(links)}
    return content | {"properties": {"datetime": "2024-01-01T00:00:00Z"}, "assets": assets} | fields


def linking(*links: tuple[str, str], name: str = "c", **fields) -> dict:
    """A catalogue with links, each a relation and a target."""
    said = [{"rel": rel, "href": href} for rel, href in links]
    return {"type": "Catalog", "stac_version": "1.0.0", "id": name, "description": "", "links": said} | fields


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path / "v.tif", noise(8, 8))
    write_labels(tmp_path / "b.geojson", [building(1, 1, 5, 5)])
    write_json(tmp_path / "s1.json", item())
    return tmp_path


def scene_of(folder, source: str):
    """The one scene of a source, whose files are there."""
    (scene,) = catalog.read_scenes(source)
    assert (scene.id, scene.image, scene.labels) == ("s1", str(folder / "v.tif"), (str(folder / "b.geojson"),))
    return scene


@pytest.mark.parametrize("content", [{"type": "FeatureCollection", "features": [item()]}, [item()]])
def test_a_search_that_was_saved_is_read_like_a_catalogue(folder, content):
    (folder / "s1.json").unlink()
    scene = scene_of(folder, write_json(folder / "search.json", content))
    assert scene.item == f"{folder}/search.json#s1"
    child = write_json(folder / "catalog.json", linking(("child", "./search.json")))
    scene_of(folder, child)


def test_a_page_of_a_search_is_not_taken_for_the_whole(folder):
    page = {"type": "FeatureCollection", "features": [item()], "links": [{"rel": "next", "href": f"{AWAY}?page=2"}]}
    with pytest.raises(InputError, match=r"search\.json is one page of a search, and the next one is at http://127"):
        catalog.read_scenes(write_json(folder / "search.json", page))


def test_footprints_given_for_a_catalogue_are_refused_by_name(folder):
    with pytest.raises(InputError, match=r"b\.geojson .*: its features have no assets"):
        catalog.read_scenes(str(folder / "b.geojson"))


@pytest.mark.parametrize("source", ["catalog.json", "s1.json", ""])
def test_links_that_lead_away_are_not_followed(folder, source):
    away = [{"rel": rel, "href": AWAY} for rel in ("root", "self", "parent", "collection", "derived_from")]
    write_json(folder / "s1.json", item(links=away, collection="c"))
    links = [(rel, AWAY) for rel in ("root", "self", "parent")]
    write_json(folder / "catalog.json", linking(*links, ("item", "./s1.json")))
    started = time.monotonic()
    scene_of(folder, str(folder / source))
    assert time.monotonic() - started < 4  # an answer from there is waited for longer


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", "utf-16", "utf-16-le-mark"])
def test_a_byte_order_mark_is_no_part_of_json(folder, mark):
    """PowerShell writes UTF-8 or UTF-16 with one."""
    write_json(folder / "catalog.json", linking(("item", "./s1.json")))
    square = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}
    write_json(folder / "aoi.geojson", square)
    for name in ("catalog.json", "s1.json", "aoi.geojson"):
        text = (folder / name).read_text()
        content = mark + text.encode() if isinstance(mark, bytes) else text.encode("utf-16")
        (folder / name).write_bytes(content)
    scene_of(folder, str(folder / "catalog.json"))
    assert catalog.read_area(str(folder / "aoi.geojson")).area == pytest.approx(0.5)


NAME = "my scene é 100%"
ENCODED = "my%20scene%20%C3%A9%20100%25"
DECOMPOSED = "my scene e\u0301 100%"  # as macOS writes é


@pytest.mark.parametrize(
    ("where", "spelling"),
    [(where, spelling) for where in ("path", "web", "s3") for spelling in (NAME, ENCODED)] + [("path", DECOMPOSED)],
)
def test_hrefs_may_be_encoded_or_not_as_paths_and_as_addresses(folder, spelling, where, web, s3):
    write_image(folder / f"{NAME}.tif", noise(8, 8, seed=1))
    os.replace(folder / "b.geojson", folder / f"{NAME}.geojson")
    content = item(NAME, f"./{spelling}.tif")
    content["assets"]["labels"]["href"] = f"./{spelling}.geojson"
    write_json(folder / f"{NAME}.json", content)
    write_json(folder / "catalog.json", linking(("item", f"./{spelling}.json")))
    if where == "s3":
        upload(folder, s3)
    base = {"path": str(folder), "web": web[1], "s3": s3}[where]
    for source in (f"{base}/catalog.json", f"{base}/{spelling}.json"):
        (scene,) = catalog.read_scenes(source)
        assert scene.id == NAME
        assert (pixels(scene.image).image == noise(8, 8, seed=1)).all()
        assert json_files.read(scene.labels[0])["features"]
    (scene,) = catalog.find_images(f"{base}/{spelling}.tif")
    assert scene.id == NAME
    assert (pixels(scene.image).image == noise(8, 8, seed=1)).all()


def test_a_file_whose_name_looks_encoded_is_that_file(folder):
    write_image(folder / "a%20b.tif", noise(8, 8, seed=1))
    write_image(folder / "a b.tif", noise(8, 8, seed=2))
    (scene,) = catalog.find_images(write_json(folder / "x.json", item("x", "a%20b.tif")))
    assert scene.image == str(folder / "a%20b.tif")


def damage(folder, kind: str) -> str:
    """Make a STAC file that cannot be read; returns its name."""
    path = folder / "bad.json"
    if kind == "device":
        return "/dev/zero"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "deep":
        path.write_text("[" * 100_000 + "]" * 100_000)
    elif kind == "deep item":
        path.write_text(json.dumps(item("bad"))[:-1] + ', "x": ' + "[" * 950 + "]" * 950 + "}")
    elif kind == "large":
        path.write_text('{"x": "' + "a" * json_files.LIMIT + '"}')
    elif kind == "no JSON":
        path.write_bytes(b"\xff\x00 no JSON")
    elif kind == "other JSON":
        write_json(path, {"hello": 1})
    elif kind == "links":
        write_json(path, linking() | {"links": [1, 2]})
    elif kind == "asset":
        write_json(path, item("bad") | {"assets": {"image": {"type": "image/tiff"}}})
    elif kind == "address":
        return "http://[bad/x.json"
    elif kind == "image":
        return "v.tif"
    return path.name


REASONS = {
    "device": "is a device or a pipe",
    "pipe": "is a device or a pipe",
    "deep": "nested too deep",
    "deep item": "nested too deep",
    "large": "is larger than 32 MB, the limit",
    "no JSON": "it is not JSON",
    "other JSON": "STAC",
    "links": "",
    "asset": "href",
    "address": "Invalid",
    "image": "it is not JSON",
    "missing": "No such file",
}


@pytest.mark.parametrize("kind", REASONS)
@pytest.mark.parametrize("rel", ["item", "child"])
def test_a_broken_file_below_the_root_is_named_itself_or_left_out_and_listed(folder, kind, rel):
    bad = damage(folder, kind)
    root = write_json(folder / "catalog.json", linking((rel, bad), ("item", "s1.json")))
    started, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as raised:
        catalog.read_scenes(root)
    assert bad in str(raised.value)
    assert REASONS[kind] in str(raised.value)
    good, listed = catalog.read_scenes(root, skip_unreadable=True)
    assert (good.id, good.unreadable) == ("s1", "")
    assert bad in listed.id
    assert REASONS[kind] in listed.unreadable
    assert catalog.select([good, listed], scenes="s1", places=None) == [good, listed]
    assert time.monotonic() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1 << 20  # KiB


def test_a_broken_item_of_a_saved_search_is_named_by_its_number(folder):
    content = {"type": "FeatureCollection", "features": [item(), {"type": "Feature", "id": "x"}]}
    source = write_json(folder / "search.json", content)
    with pytest.raises(InputError, match=r"search\.json, feature 2 of .* cannot be read: it has no assets"):
        catalog.read_scenes(source)
    assert [scene.id for scene in catalog.read_scenes(source, skip_unreadable=True)] == ["s1", f"{source}, feature 2"]


def test_links_in_circles_end(folder):
    names = [f"c{number}" for number in range(6)]
    for name in names:  # each links to all: 720 ways through them
        write_json(
            folder / f"{name}.json", linking(*[("child", f"{other}.json") for other in names], ("item", "s1.json"))
        )
    started = time.monotonic()
    with pytest.raises(InputError, match="linked from a catalogue below it, as its own child"):
        catalog.read_scenes(str(folder / "c0.json"))
    assert [s.id for s in catalog.read_scenes(str(folder / "c0.json"), skip_unreadable=True) if not s.unreadable] == [
        "s1"
    ]
    assert time.monotonic() - started < 10


def test_a_thousand_catalogues_below_each_other_are_read(folder):
    for number in range(1100):
        following = ("child", f"c{number + 1}.json") if number < 1099 else ("item", "s1.json")
        write_json(folder / f"c{number}.json", linking(following, name=str(number)))
    scene_of(folder, str(folder / "c0.json"))
