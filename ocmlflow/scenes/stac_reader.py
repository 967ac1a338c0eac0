"""Reads the items of STAC files of any version, of saved searches and of STAC APIs."""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlparse

import pystac

from ocmlflow.errors import InputError
from ocmlflow.redaction import redact
from ocmlflow.scenes import asset_roles, stac_api
from ocmlflow.scenes.stac_api import Request
from ocmlflow.storage import hrefs, https, json_files
from ocmlflow.storage.hrefs import is_https

NOT_STAC = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    pystac.STACError,
    pystac.STACTypeError,
)
"""What parsing raises for files that are not JSON, or not STAC."""


@dataclass
class Found:
    """The items below an href, and the links below it that lead to nothing that can be read."""

    items: list[pystac.Item] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    """Why each cannot be read, by its href."""


@dataclass(frozen=True)
class _Node:
    """A STAC file that is still to be read."""

    href: str
    above: tuple[str, ...] = ()
    """Hrefs of the catalogues on the way to it."""
    collection: str | None = None
    """Id of the nearest collection above it."""
    is_item: bool = False
    """Whether a link says that it is an item."""
    content: Any = None
    """What it holds, where that is read already."""
    request: Request | None = None
    """The request that gave the content, where it is that of an API."""


def read_items(href: str) -> Found:
    """The item at an href, or all items below what is there.

    That is a catalogue, a collection, a search that was saved (a FeatureCollection or list of items), or an address of
    a STAC API: its landing page, a collection, its items or a search, of which all pages are read. Links named root,
    self, parent and collection are not followed: they may lead away from a copy.

    Raises InputError where the href itself cannot be read.
    """
    # A symbolic link is resolved: the links in the file are relative to its real place.
    target = href if hrefs.is_remote(href) else str(hrefs.local_path(href).resolve())
    try:
        root = _read_root(target)
    except OSError as error:
        raise InputError(f"no STAC catalogue at {href}: {error}") from error
    except NOT_STAC as error:
        raise InputError(f"{href} is not a STAC file: {error}") from error
    if _kind(root.content) == "unknown":
        raise InputError(f"{href} is not a STAC file: it is no catalogue, collection, item or list of items")
    return _walk(root)


def is_stac(href: str) -> bool:
    """Whether a file is STAC by its suffix, or an address without the suffix of an image by how its content begins.

    Also where the content of the address cannot be read: reading it as STAC says why.
    """
    suffix = posixpath.splitext(urlparse(href).path if hrefs.is_remote(href) else href)[1].lower()
    if suffix in (".json", ".geojson") or not is_https(href) or suffix in (*asset_roles.IMAGE_FILES, ".vrt"):
        return suffix in (".json", ".geojson")
    return is_json(href, unreadable=True)


def is_json(href: str, *, unreadable: bool) -> bool:
    """Whether the content at an address begins as JSON does; `unreadable` where it cannot be read."""
    try:
        start = hrefs.read_start(href, 64)
    except OSError:
        return unreadable
    return start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"["))


def _read_root(href: str) -> _Node:
    try:
        return _Node(href, content=json_files.read(href))
    except https.StatusError as error:
        if error.status != 405:
            raise
        request = Request(href, "POST", {"limit": stac_api.PAGE})  # a search that takes no GET
        return _Node(href, content=stac_api.fetch(request), request=request)


def _walk(root: _Node) -> Found:
    """The items of a catalogue before those of its children, each file once."""
    found, waiting, seen = Found(), [root], set()
    while waiting:
        node = waiting.pop()
        if node.href in node.above:
            role = "item" if node.is_item else "child"
            found.unreadable[node.href] = f"it is linked from a catalogue below it, as its own {role}"
            continue
        if node.content is None and node.href in seen:
            continue
        seen.add(node.href)
        try:
            waiting += reversed(_open(node, found))
        except (OSError, InputError, *NOT_STAC) as error:
            found.unreadable[node.href] = _reason(error)
    return found


def _open(node: _Node, found: Found) -> list[_Node]:
    """Add the items of a STAC file to those found; returns what is to be read next."""
    content = json_files.read(node.href) if node.content is None else node.content
    kind = _kind(content)
    if kind == "item":
        found.items.append(_to_item(content, node.href, node.collection, base=node.href))
        return []
    if node.is_item or kind == "unknown":
        raise ValueError("it is not a STAC item with an id, which names its scene" if node.is_item else "no STAC file")
    if kind == "items":
        _add_pages(content, node, found)
        return []
    if kind == "collections":
        return [_Node(_own_href(one, node.href), node.above, content=one) for one in _collections(content, node)]
    collection = str(content.get("id")) if _is_collection(content) else node.collection
    above = (*node.above, node.href)
    if request := stac_api.start(content, node.href):
        page = stac_api.fetch(request)
        return [_Node(request.href, above, collection, content=page, request=request)]
    following = []
    for link in sorted(stac_api.links(content), key=lambda link: link.get("rel") == "child"):
        if link.get("rel") in ("item", "child"):
            try:
                href = _located(link["href"], node.href)
                following.append(_Node(href, above, collection, is_item=link["rel"] == "item"))
            except (InputError, ValueError) as error:
                found.unreadable[link["href"]] = _reason(error)
    return following


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return str(error) or type(error).__name__


def _kind(content: Any) -> str:
    """`catalog`, `item`, `items`, `collections` or `unknown`."""
    if isinstance(content, list):
        return "items"
    if not isinstance(content, dict):
        return "unknown"
    if isinstance(content.get("features"), list):
        return "items"
    if isinstance(content.get("collections"), list) and "id" not in content:
        return "collections"
    if content.get("type") == "Feature" or {"assets", "properties"} <= content.keys():
        return "item"
    return "catalog" if {"id", "links"} <= content.keys() or "stac_version" in content else "unknown"


def _is_collection(content: dict[str, Any]) -> bool:
    return content.get("type") == "Collection" or "extent" in content  # before STAC 1.0, nothing has a type


def _collections(content: dict[str, Any], node: _Node) -> Iterator[dict[str, Any]]:
    for _, page in _pages(content, node):
        yield from page["collections"]


def _pages(content: Any, node: _Node) -> Iterator[tuple[str, Any]]:
    """Address and content of each page, of which `content` is the first; a file is the only one."""
    if isinstance(content, dict) and is_https(node.href):
        return stac_api.pages(content, node.request or Request(node.href))
    return iter([(node.href, content)])


def _add_pages(content: Any, node: _Node, found: Found) -> None:
    """Add the items of a FeatureCollection or list, and of the pages that follow it in an API."""
    for href, page in _pages(content, node):
        features = page if isinstance(page, list) else page["features"]
        if features and not any(isinstance(feature, dict) and "assets" in feature for feature in features):
            raise ValueError("its features have no assets: it is no list of STAC items")
        for number, feature in enumerate(features, 1):
            name = _own_href(feature, href)
            try:
                if _kind(feature) != "item" or not isinstance(feature.get("assets"), dict):
                    raise ValueError("it has no assets: it is no STAC item")
                base = name if is_https(href) else href
                found.items.append(_to_item(feature, name, node.collection, base=base))
            except (InputError, *NOT_STAC) as error:
                found.unreadable[f"{href}, feature {number}"] = _reason(error)
    if isinstance(content, dict) and not is_https(node.href):
        _check_whole(content, node.href)


def _check_whole(content: dict[str, Any], href: str) -> None:
    """Raise InputError where a file holds one page of a search that has more."""
    following = [link["href"] for link in stac_api.links(content) if link.get("rel") == "next"]
    if following:
        raise InputError(
            f"{href} is one page of a search, and the next one is at {redact(following[0])}: give the address of the "
            "search itself, or remove that link to read this page alone"
        )


def _own_href(content: Any, page: str) -> str:
    """The href of an item or collection inside of a page: its link `self` if that is an address, else of the page."""
    links = stac_api.links(content) if isinstance(content, dict) else []
    own = next((link["href"] for link in links if link.get("rel") == "self" and is_https(link["href"])), None)
    return own or f"{page}#{content.get('id') if isinstance(content, dict) else ''}"


def _to_item(content: dict[str, Any], href: str, collection: str | None, *, base: str) -> pystac.Item:
    """A STAC item of any version, with absolute hrefs of its assets and of its links to a `source`.

    Relative hrefs are those of the file at `base`. Raises InputError or one of NOT_STAC where it is none.
    """
    if not (content.get("id") and isinstance(content["id"], str)):
        raise ValueError("it is not a STAC item with an id, which names its scene")
    sources = [
        {"rel": "source", "href": _located(link["href"], base)}
        for link in stac_api.links(content)
        if link.get("rel") == "source"
    ]
    assets = {
        key: asset | {"href": _located(asset["href"], base)} for key, asset in (content.get("assets") or {}).items()
    }
    item = pystac.Item.from_dict(
        content | {"links": sources, "assets": assets}, href=href, migrate=True, preserve_dict=False
    )
    item.set_self_href(href)
    item.collection_id = collection or item.collection_id
    return item


def _located(target: str, base: str) -> str:
    """Absolute href of what the STAC file at `base` names.

    Raises InputError where a remote STAC file names a local file, or climbs above its host or bucket: otherwise the
    author of a catalogue could have any local file read.
    """
    if hrefs.is_remote(base) and not hrefs.is_remote(target):
        depth = posixpath.dirname(urlparse(base).path).strip("/").count("/") + 1
        climbs = posixpath.normpath(unquote(target)).split("/").count("..") > depth
        if urlparse(target).scheme in ("file", "") and (urlparse(target).scheme or target.startswith("/") or climbs):
            raise InputError(
                f"{base} names {target}, a local file or one above its host or bucket: a remote catalogue may name "
                "https and s3 addresses, and files relative to itself"
            )
    return hrefs.resolve(target, base)
