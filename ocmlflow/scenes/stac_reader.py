"""Reads STAC items of any version, and finds which images the labels belong to."""

import itertools
import json
import posixpath
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

import pystac
from pystac.stac_io import DefaultStacIO

from ocmlflow.errors import InputError
from ocmlflow.scenes import asset_roles
from ocmlflow.storage import hrefs

NOT_STAC = (ValueError, TypeError, LookupError, AttributeError, pystac.STACError, pystac.STACTypeError)
"""What pystac raises for files that are not JSON, or not STAC."""


def read_items(href: str) -> list[pystac.Item]:
    """The item at an href, or all items below the catalogue or collection there.

    Raises InputError where one cannot be read, or has no id.
    """
    # A symbolic link is resolved: the links in the file are relative to its real place.
    target = href if hrefs.is_remote(href) else str(hrefs.local_path(href).resolve())
    try:
        root = pystac.read_file(target, stac_io=_Reader())
    except OSError as error:
        raise InputError(f"no STAC catalogue at {href}: {error}") from error
    except NOT_STAC as error:
        raise InputError(f"{href} is not a STAC file: {error}") from error
    if not isinstance(root, pystac.Item | pystac.Catalog):
        raise InputError(f"{href} is a STAC {type(root).__name__}; a catalogue, collection or item is needed")
    try:
        items = [root] if isinstance(root, pystac.Item) else list(_below(root))
    except (OSError, *NOT_STAC) as error:
        raise InputError(f"catalogue {href} links to a file that cannot be read: {error.__cause__ or error}") from error
    for item in items:
        if not (isinstance(item, pystac.Item) and item.id and isinstance(item.id, str)):
            raise InputError(f"{item.get_self_href()} of {href} is not a STAC item with an id, which names its scene")
    return items


def index_by_name(items: list[pystac.Item]) -> dict[str, list[pystac.Item]]:
    """The items by their hrefs and by their ids."""
    by_name: dict[str, list[pystac.Item]] = defaultdict(list)
    for item in items:
        for name in (item.get_self_href() or "", item.id):
            by_name[name].append(item)
    return by_name


def source_images(item: pystac.Item, images: dict[str, list[pystac.Item]]) -> list[pystac.Item]:
    """The images that a label item belongs to: by its `source` links, else by id, else by an equal outline.

    `images` are indexed by `index_by_name`.
    """
    links = {link.get_absolute_href() or "" for link in item.links if link.rel == "source"}
    if sources := [image for link in links for image in images.get(link, [])]:
        return sources
    for name in (item.id.removesuffix(asset_roles.LABEL_SUFFIX), item.id):
        sources = images.get(name, [])
        # Ids are unique within a collection only.
        own = [image for image in sources if image.collection_id == item.collection_id]
        if own or len(sources) == 1:
            return own or sources
    candidates = itertools.chain.from_iterable(images.values())
    return [image for image in candidates if item.geometry and image.geometry == item.geometry][:1]


def place_name(item: pystac.Item) -> str:
    """Id of the item's collection, else its property `area`, which the challenge's items have."""
    return str(item.collection_id or item.properties.get("area", ""))


def _below(catalog: pystac.Catalog, *above: pystac.Catalog) -> Iterator[pystac.Item]:
    """The items of a catalogue and of all catalogues below it; each gets the id of the nearest collection above it.

    `above` are the catalogues on the way to this one.
    """
    href = catalog.get_self_href()
    if href in [other.get_self_href() for other in above]:
        raise InputError(f"catalogue {href} is linked from a catalogue below it, as its own child")
    collections = [each for each in (*above, catalog) if isinstance(each, pystac.Collection)]
    for item in catalog.get_items():
        item.collection_id = collections[-1].id if collections else item.collection_id
        yield item
    for child in catalog.get_children():
        yield from _below(child, *above, catalog)


class _Reader(DefaultStacIO):
    """Reads STAC files with `storage.hrefs`, and refuses remote ones that name local files."""

    def read_text_from_href(self, href: str) -> str:
        text = hrefs.read(href).decode("utf-8")
        if hrefs.is_remote(href):
            _check_stays_remote(href, json.loads(text))
        return text


def _check_stays_remote(href: str, content: Any) -> None:
    """Raise InputError where a remote STAC file names a local file, or climbs above its host or bucket.

    Otherwise the author of a catalogue could have any local file read.
    """
    if not isinstance(content, dict):
        return
    links = [link.get("href", "") for link in content.get("links", []) if link.get("rel") in ("child", "item")]
    for target in [*links, *(asset.get("href", "") for asset in content.get("assets", {}).values())]:
        depth = posixpath.dirname(urlparse(href).path).strip("/").count("/") + 1
        climbs = posixpath.normpath(target).split("/").count("..") > depth
        if not hrefs.is_remote(target) and (urlparse(target).scheme or target.startswith("/") or climbs):
            raise InputError(
                f"{href} names {target}, a local file or one above its host or bucket: a remote catalogue may name "
                "https and s3 addresses, and files relative to itself"
            )
