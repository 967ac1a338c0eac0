"""STAC files of any version, to the items in them, and what those say."""

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
from ocmlflow.storage import hrefs

LABEL_SUFFIX = "-labels"  # how the challenge names label items, whose `source` link it leaves out
LABEL_FILES = {".geojson": "application/geo+json", ".gpkg": "application/geopackage+sqlite3"}
IMAGE_FILES = {".tif": "image/tiff", ".tiff": "image/tiff"}
NOT_STAC = (ValueError, TypeError, LookupError, AttributeError, pystac.STACError, pystac.STACTypeError)
"""What pystac raises at what is no JSON, or not STAC."""


def read_items(href: str) -> list[pystac.Item]:
    """The item at an href, or all below the catalogue or collection there; InputError where one cannot be read."""
    # Of a link to a file, as it lies there: its own links are relative to that.
    target = href if hrefs.is_remote(href) else str(hrefs.local_path(href).resolve())
    try:
        root = pystac.read_file(target, stac_io=_Reader())
    except OSError as error:
        raise InputError(f"no STAC catalogue at {href}: {error}") from error
    except NOT_STAC as error:
        raise InputError(f"{href} is not a STAC file: {error}") from error
    if not isinstance(root, pystac.Item | pystac.Catalog):
        raise InputError(f"{href} is a STAC {type(root).__name__}; a catalogue, collection or item would do")
    try:
        found = [root] if isinstance(root, pystac.Item) else list(_below(root))
    except (OSError, *NOT_STAC) as error:
        raise InputError(f"catalogue {href} links to what cannot be read: {error.__cause__ or error}") from error
    for item in found:
        if not (isinstance(item, pystac.Item) and item.id and isinstance(item.id, str)):
            raise InputError(f"{item.get_self_href()} of {href} is not an item with an id, a text that names its scene")
    return found


def image_href(item: pystac.Item) -> str | None:
    """Href of its GeoTIFF: the asset `image`, else the first that is said to be one, else that has the name of one."""
    tiffs = [asset for key, asset in item.assets.items() if _is_tiff(asset) and not _is_label(key, asset)]
    chosen = item.assets.get("image") or min(tiffs, key=lambda asset: not asset.media_type, default=None)
    return chosen.get_absolute_href() if chosen else None


def label_hrefs(item: pystac.Item) -> list[str]:
    """Hrefs of its footprints; of rasters of them where it has nothing else, so that nobody takes it for unlabelled."""
    drawn = [asset for key, asset in item.assets.items() if _is_label(key, asset)]
    vectors = [asset for asset in drawn if not _is_tiff(asset)]
    return [href for asset in vectors or drawn if (href := asset.get_absolute_href())]


def index_by_name(items: list[pystac.Item]) -> dict[str, list[pystac.Item]]:
    """The items by each of their names, href and id."""
    found: dict[str, list[pystac.Item]] = defaultdict(list)
    for item in items:
        for name in (item.get_self_href() or "", item.id):
            found[name].append(item)
    return found


def source_images(item: pystac.Item, images: dict[str, list[pystac.Item]]) -> list[pystac.Item]:
    """What an item's labels are of, among `named` images: by its `source` links, else by id, else by equal outline."""
    links = {link.get_absolute_href() or "" for link in item.links if link.rel == "source"}
    for names in (links, {item.id.removesuffix(LABEL_SUFFIX)}, {item.id}):
        if found := [image for name in names for image in images.get(name, [])]:
            return found
    every = itertools.chain.from_iterable(images.values())
    return [other for other in every if item.geometry and other.geometry == item.geometry][:1]


def place_name(item: pystac.Item) -> str:
    """Id of its collection, as `items` found it; else the area of the challenge's items."""
    return str(item.collection_id or item.properties.get("area", ""))


def _below(catalog: pystac.Catalog, *above: pystac.Catalog) -> Iterator[pystac.Item]:
    """The items of a catalogue below others, and of all below it; they belong to the nearest collection of these."""
    href = catalog.get_self_href()
    if href in [other.get_self_href() for other in above]:
        raise InputError(f"catalogue {href} is among its own children, or theirs")
    collections = [one for one in (*above, catalog) if isinstance(one, pystac.Collection)]
    for item in catalog.get_items():
        item.collection_id = collections[-1].id if collections else item.collection_id
        yield item
    for child in catalog.get_children():
        yield from _below(child, *above, catalog)


def _is_label(key: str, asset: pystac.Asset) -> bool:
    said = any(name.endswith("labels") or name.startswith("labels-") for name in (key, *map(str, asset.roles or ())))
    return said or _media(asset).endswith(("geo+json", "geopackage+sqlite3"))


def _is_tiff(asset: pystac.Asset) -> bool:
    return _media(asset).endswith("tiff")  # image/tiff; before STAC 1.0, image/vnd.stac.geotiff and image/x.geotiff


def _media(asset: pystac.Asset) -> str:
    """Media type without its parameters; by the file's name where none is given."""
    said = str(asset.media_type or "").partition(";")[0].strip().lower()
    suffix = posixpath.splitext(urlparse(asset.href).path)[1].lower()
    return said or (IMAGE_FILES | LABEL_FILES).get(suffix, "")


class _Reader(DefaultStacIO):
    """STAC files from wherever `storage` reads, as long as a remote one stays remote."""

    def read_text_from_href(self, href: str) -> str:
        text = hrefs.read(href).decode("utf-8")
        if hrefs.is_remote(href):
            _check_stays_remote(href, json.loads(text))
        return text


def _check_stays_remote(href: str, content: Any) -> None:
    """Raise InputError where a remote STAC file names a file of this machine, or climbs above its host or bucket.

    Else whoever writes a catalogue decides which local files are read.
    """
    if not isinstance(content, dict):
        return
    links = [link.get("href", "") for link in content.get("links", []) if link.get("rel") in ("child", "item")]
    for target in [*links, *(asset.get("href", "") for asset in content.get("assets", {}).values())]:
        depth = posixpath.dirname(urlparse(href).path).strip("/").count("/") + 1
        climbs = posixpath.normpath(target).split("/").count("..") > depth
        if not hrefs.is_remote(target) and (urlparse(target).scheme or target.startswith("/") or climbs):
            raise InputError(
                f"{href} points to {target}, outside of where it lies: a remote catalogue may name https and s3 "
                "addresses, and what is relative to itself"
            )
