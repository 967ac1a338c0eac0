import json
from urllib.parse import parse_qs, urlsplit

import pytest
from json_server import JsonHandler, serve

from ocmlflow.errors import InputError
from ocmlflow.scenes import catalog, stac_api

CONFORMS = {"conformsTo": ["https://api.stacspec.org/v1.0.0/core"]}
EXTENT = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}


class Api:
    """A STAC API over five items of two collections, in pages of two."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []
        self.search_by = ["GET"]
        """Methods of /search, as the landing page names them."""
        self.merge = False
        """Whether links to next pages give a part of the body only."""
        self.has_search = True
        self.circle = False
        api = self

        class Handler(JsonHandler):
            def do_GET(self):  # noqa: N802
                parts = urlsplit(self.path)
                api.asked.append(("GET", self.path))
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                content = api.get(parts.path, query, f"http://{self.headers['Host']}")
                if isinstance(content, dict):
                    self.answer(200, content)
                else:
                    self.answer(content, {})

            def do_POST(self):  # noqa: N802
                body = json.loads(self.content())
                api.asked.append(("POST", self.path, body))
                self.answer(200, api.page(f"http://{self.headers['Host']}", "/search", body, "POST"))

        self.server = serve(Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def get(self, path: str, query: dict, here: str) -> dict | int:
        if path in ("", "/"):
            links = [{"rel": "self", "href": here}, {"rel": "data", "href": f"{here}/collections"}]
            links += [{"rel": "child", "href": f"{here}/collections/c{number}"} for number in (0, 1)]
            searches = [{"rel": "search", "href": f"{here}/search", "method": method} for method in self.search_by]
            content = {"type": "Catalog", "stac_version": "1.0.0", "id": "api", "description": ""} | CONFORMS
            return content | {"links": links + (searches if self.has_search else [])}
        if path == "/collections":
            return {"collections": [self.collection(number, here) for number in (0, 1)], "links": []}
        if path in ("/collections/c0", "/collections/c1"):
            return self.collection(int(path[-1]), here)
        if path == "/search" and self.search_by == ["POST"]:
            return 405
        return self.page(here, path, query, "GET") if path.endswith(("/items", "/search")) else 404

    def collection(self, number: int, here: str) -> dict:
        links = [{"rel": "items", "href": f"{here}/collections/c{number}/items", "type": "application/geo+json"}]
        links.append({"rel": "root", "href": "http://127.0.0.1:9/"})
        content = {"type": "Collection", "stac_version": "1.0.0", "id": f"c{number}", "description": "", "license": "x"}
        return content | {"extent": EXTENT, "links": links}

    def page(self, here: str, path: str, asked: dict, method: str) -> dict:
        number, rest = int(asked.get("page", 1)), {name: value for name, value in asked.items() if name != "page"}
        names = [f"s{n}" for n in range(5) if path == "/search" or n % 2 == int(path.split("/")[2][1])]
        links = [{"rel": "self", "href": f"{here}{path}"}]
        if 2 * number < len(names) or self.circle:
            following = 1 if self.circle else number + 1
            body = {"page": following} if self.merge else rest | {"page": following}
            query = "&".join(f"{name}={value}" for name, value in (rest | {"page": following}).items())
            posted = {"href": f"{here}{path}", "method": "POST", "body": body, "merge": self.merge}
            links.append({"rel": "next"} | (posted if method == "POST" else {"href": f"{here}{path}?{query}"}))
        features = [self.item(name, here) for name in names[2 * number - 2 : 2 * number]]
        return {"type": "FeatureCollection", "features": features, "links": links, "numberMatched": len(names)}

    def item(self, name: str, here: str) -> dict:
        collection = f"c{int(name[1]) % 2}"
        own = {"rel": "self", "href": f"{here}/collections/{collection}/items/{name}"}
        assets = {"image": {"href": f"./{name}.tif", "type": "image/tiff"}}
        content = {"type": "Feature", "stac_version": "1.0.0", "id": name, "geometry": None, "collection": collection}
        return content | {"properties": {"datetime": "2024-01-01T00:00:00Z"}, "assets": assets, "links": [own]}


@pytest.fixture
def api():
    served = Api()
    yield served
    served.server.shutdown()
    served.server.server_close()


@pytest.mark.parametrize("path", ["", "/", "/collections", "/search", "/search?limit=2", "/search?bbox=-3.5,5,-2,6.1"])
@pytest.mark.parametrize("find", [catalog.read_scenes, catalog.find_images])
def test_all_pages_are_read(api, path, find):
    scenes = find(api.address + path)
    assert sorted(scene.id for scene in scenes) == ["s0", "s1", "s2", "s3", "s4"]
    assert {(scene.id, scene.place) for scene in scenes} == {(f"s{n}", f"c{n % 2}") for n in range(5)}
    first = min(scenes, key=lambda scene: scene.id)
    assert first.item == f"{api.address}/collections/c0/items/s0"
    assert first.image == f"{api.address}/collections/c0/items/s0.tif"
    if "bbox" in path:  # its commas are no end of the address
        assert all("bbox" in asked[1] for asked in api.asked if asked[1].startswith("/search"))


@pytest.mark.parametrize("path", ["/collections/c0", "/collections/c0/items"])
def test_a_collection_has_its_own_items(api, path):
    assert [scene.id for scene in catalog.read_scenes(api.address + path)] == ["s0", "s2", "s4"]


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("path", ["", "/search"])
def test_a_search_by_post_is_read_to_its_end(api, merge, path):
    api.search_by, api.merge = ["POST"], merge
    assert len(catalog.read_scenes(api.address + path)) == 5
    bodies = [asked[2] for asked in api.asked if asked[0] == "POST"]
    assert bodies == [{"limit": 100}, *({"limit": 100, "page": page} for page in (2, 3))]


def test_a_search_by_get_is_preferred(api):
    api.search_by = ["POST", "GET"]
    assert len(catalog.read_scenes(api.address)) == 5
    assert {asked[0] for asked in api.asked} == {"GET"}


def test_an_api_without_search_is_read_by_its_collections(api):
    api.has_search = False
    scenes = catalog.read_scenes(api.address)
    assert [scene.place for scene in scenes] == ["c0"] * 3 + ["c1"] * 2


def test_pages_in_circles_end(api):
    api.circle = True
    with pytest.raises(InputError, match="leads in circles"):
        catalog.read_scenes(f"{api.address}/search")


def test_an_api_of_too_many_items_is_refused_with_what_would_do(api, monkeypatch):
    monkeypatch.setattr(stac_api, "MAX_ITEMS", 4)
    with pytest.raises(InputError, match=r"names 5 items, more than 4: name a collection, or a search of less ground"):
        catalog.read_scenes(api.address)


def test_a_page_names_no_local_file(api, monkeypatch):
    monkeypatch.setattr(Api, "item", lambda self, name, here: _local(name))
    with pytest.raises(InputError, match=r"names /etc/passwd, a local file"):
        catalog.read_scenes(f"{api.address}/search")


def _local(name: str) -> dict:
    content = {"type": "Feature", "stac_version": "1.0.0", "id": name, "geometry": None, "links": []}
    return content | {"properties": {"datetime": "2024-01-01T00:00:00Z"}, "assets": {"image": {"href": "/etc/passwd"}}}
