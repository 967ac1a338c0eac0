"""STAC catalogues of any version, to the scenes in them."""

import glob
import json
import logging
import posixpath
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pystac
import shapely
from pystac.stac_io import DefaultStacIO
from shapely.geometry.base import BaseGeometry

from ocmlflow import storage
from ocmlflow.errors import InputError

log = logging.getLogger(__name__)

LABEL_SUFFIX = "-labels"  # how the challenge names label items, whose `source` link it leaves out
LABEL_FILES = (".geojson", ".gpkg")
IMAGE_FILES = (".tif", ".tiff")


@dataclass(frozen=True)
class Scene:
    """One image and, where people drew them, its footprints."""

    id: str
    place: str
    """The region it belongs to: its collection's id, or its folder's name; empty where it has none."""
    image: str
    """Href of the GeoTIFF."""
    labels: tuple[str, ...] = ()
    """Hrefs of vector files of footprints."""
    catalog: str = ""
    """Href of the catalogue or file that named it."""
    item: str = ""
    """Href of its STAC item; empty where it has none."""
    taken: datetime | None = None
    """When, as its item says."""


def scenes(hrefs: str) -> list[Scene]:
    """Scenes at one or more hrefs, separated by commas, in their order, each with its labels.

    An href is a STAC catalogue, collection or item, or a folder of GeoTIFFs and GeoJSON or GeoPackage files of the
    same name. Label items are paired by their `source` link, else by the id `<scene>-labels` of the challenge, else
    by an equal outline. Raises InputError where there is no catalogue, no image, or one id twice.
    """
    return _unique([scene for href in hrefs.split(",") for scene in _labelled(href.strip())])


def choose(found: list[Scene], *, scenes: str | None, places: str | None) -> list[Scene]:
    """The scenes of these ids and of these places, each separated by commas; all where None is given.

    Raises InputError for a name that there is not.
    """
    for kind, names, known in (
        ("scenes", scenes, {scene.id for scene in found}),
        ("places", places, {scene.place for scene in found}),
    ):
        if unknown := _names(names) - known:
            raise InputError(f"{kind}={names}: there is no {', '.join(sorted(unknown))}; {_listed(known)}")
    return [
        scene
        for scene in found
        if (scenes is None or scene.id in _names(scenes)) and (places is None or scene.place in _names(places))
    ]


def dataset(
    name: str, scenes: list[Scene], *, outline: BaseGeometry, assets: dict[str, tuple[str, str]], **facts: Any
) -> dict[str, Any]:
    """A STAC item, as JSON, of what was made of some scenes: derived from each of them, with its outline in degrees.

    `assets` gives href and media type by name, `facts` more properties. The times are those of the scenes.
    """
    times = sorted(scene.taken for scene in scenes if scene.taken)
    item = pystac.Item(
        id=name,
        geometry=shapely.geometry.mapping(outline),
        bbox=list(outline.bounds),
        datetime=None if times else datetime(1970, 1, 1, tzinfo=UTC),  # STAC asks for one, and nobody knows it
        start_datetime=times[0] if times else None,
        end_datetime=times[-1] if times else None,
        properties=facts,
    )
    for scene in scenes:
        target = storage.public(storage.absolute(scene.item or scene.image))
        media = str(pystac.MediaType.GEOJSON if scene.item else pystac.MediaType.GEOTIFF)
        item.add_link(pystac.Link(pystac.RelType.DERIVED_FROM, target, media_type=media, title=scene.id))
    for key, (href, media) in assets.items():
        item.add_asset(key, pystac.Asset(href, media_type=media))
    return item.to_dict(include_self_link=False, transform_hrefs=False)


def collection(name: str, items: list[dict[str, Any]], *, description: str) -> dict[str, Any]:
    """A STAC collection, as JSON, of items as `dataset` makes them, which lie beside it in `items/`.

    The items get their links to it, the collection's extent is theirs.
    """
    boxes = [item["bbox"] for item in items]
    whole = [min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)]
    times = sorted(pystac.utils.str_to_datetime(t) for item in items for t in _times(item["properties"]))
    extent = pystac.Extent(
        pystac.SpatialExtent([whole, *boxes] if len(boxes) > 1 else [whole]),
        pystac.TemporalExtent([[times[0], times[-1]]]),
    )
    made = pystac.Collection(name, description, extent, license="other")
    media = {"link": str(pystac.MediaType.JSON), "item": str(pystac.MediaType.GEOJSON)}
    for item in items:
        made.add_link(pystac.Link(pystac.RelType.ITEM, f"./items/{item['id']}.json", media_type=media["item"]))
        upwards = ("collection", "parent", "root")
        kept = [link for link in item["links"] if link["rel"] not in upwards]
        item["links"] = [{"rel": rel, "href": "../collection.json", "type": media["link"]} for rel in upwards] + kept
        item["collection"] = name
    return made.to_dict(include_self_link=False, transform_hrefs=False)


def area(href: str) -> BaseGeometry:
    """The area, in degrees, that the polygons of a GeoJSON file cover; InputError where it holds none."""
    try:
        content = json.loads(storage.read(href))
        features = content["features"] if content["type"] == "FeatureCollection" else [content]
        given = [shapely.geometry.shape(feature.get("geometry") or feature) for feature in features]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, shapely.errors.ShapelyError) as error:
        raise InputError(f"aoi={href} is no GeoJSON file that can be read: {error}") from error
    found = shapely.union_all(shapely.make_valid(given, method="structure"))
    west, south, east, north = found.bounds if found.area > 0 else (0, 0, 0, 0)
    if not (found.area > 0 and -180 <= west <= east <= 180 and -90 <= south <= north <= 90):
        raise InputError(f"aoi={href} holds no polygon in degrees (longitude, latitude), as GeoJSON has them")
    return found


def images(hrefs: str) -> list[Scene]:
    """Scenes at one or more hrefs, separated by commas, labels or not.

    Each is a STAC file, a GeoTIFF, a folder of GeoTIFFs or a glob of them. Raises InputError for one without images.
    """
    return _unique([scene for href in hrefs.split(",") for scene in _images(href.strip())])


class _Reader(DefaultStacIO):
    """STAC files from wherever `storage` reads, as long as a remote one stays remote."""

    def read_text_from_href(self, href: str) -> str:
        text = storage.read(href).decode("utf-8")
        if storage.is_remote(href):
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
        if not storage.is_remote(target) and (urlparse(target).scheme or target.startswith("/") or climbs):
            raise InputError(
                f"{href} points to {target}, outside of where it lies: a remote catalogue may name https and s3 "
                "addresses, and what is relative to itself"
            )


def _labelled(href: str) -> list[Scene]:
    path = storage.path(href)
    if storage.is_remote(href) and not href.endswith("/"):
        return _catalogued(href)
    if not storage.is_remote(href) and not path.is_dir():
        return _catalogued(href)
    files = storage.listing(href)
    if storage.join(href, "catalog.json") in files:
        return _catalogued(storage.join(href, "catalog.json"))
    found = []
    for image in files:
        stem, suffix = posixpath.splitext(image)
        if suffix.lower() in IMAGE_FILES:
            labels = tuple(stem + ending for ending in LABEL_FILES if stem + ending in files)
            place = posixpath.basename(href.rstrip("/")) or path.resolve().name
            found.append(Scene(posixpath.basename(stem), place, image, labels, href))
    if not found:
        raise InputError(f"{href} holds no catalog.json and no GeoTIFF")
    return found


def _catalogued(href: str) -> list[Scene]:
    items = _items(href)
    pictured = [item for item in items if _image(item)]
    labels = {id(item): _labels(item) for item in pictured}
    for item in items:
        if _labels(item) and not _image(item):
            source = _source(item, pictured)
            if source is None:
                log.warning("labels %s belong to no scene of %s", item.id, href)
            else:
                labels[id(source)] += _labels(item)
    if not pictured:
        raise InputError(f"{href} has {len(items)} items but none with a GeoTIFF asset")
    return [
        Scene(
            item.id,
            _place(item),
            str(_image(item)),
            tuple(labels[id(item)]),
            href,
            item.get_self_href() or "",
            item.datetime,
        )
        for item in pictured
    ]


def _images(href: str) -> list[Scene]:
    name = Path(urlparse(href).path if storage.is_remote(href) else href)  # a signature is no part of it
    if name.suffix.lower() in (".json", ".geojson"):
        return _catalogued(href)
    if storage.is_remote(href):
        return [Scene(name.stem, "", href, catalog=href)]
    path = storage.path(href)
    if path.is_dir() and (path / "catalog.json").exists():
        return _catalogued(str(path / "catalog.json"))
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_FILES)
    elif glob.has_magic(href) and not path.exists():
        found = [Path(file) for file in sorted(glob.glob(str(path), recursive=True))]
    else:
        found = [path] if path.is_file() else []
    if not found:
        raise InputError(f"no image at {href}: give a GeoTIFF, a folder or glob of them, or a STAC file")
    return [Scene(file.stem, "", str(file), catalog=href) for file in found]


def _items(href: str) -> list[pystac.Item]:
    try:
        root = pystac.read_file(storage.absolute(href), stac_io=_Reader())
    except OSError as error:
        raise InputError(f"no STAC catalogue at {href}: {error}") from error
    except (ValueError, AttributeError, pystac.STACError, pystac.STACTypeError) as error:  # no JSON, or not STAC
        raise InputError(f"{href} is not a STAC file: {error}") from error
    if isinstance(root, pystac.Item):
        return [root]
    if not isinstance(root, pystac.Catalog):
        raise InputError(f"{href} is a STAC {type(root).__name__}; a catalogue, collection or item would do")
    try:
        return list(root.get_items(recursive=True))
    except (OSError, ValueError, AttributeError, pystac.STACError, pystac.STACTypeError) as error:
        raise InputError(f"catalogue {href} links to what cannot be read: {error.__cause__ or error}") from error


def _image(item: pystac.Item) -> str | None:
    named = item.assets.get("image")
    tiffs = [named] if named else [a for a in item.assets.values() if (a.media_type or "").startswith("image/tiff")]
    return tiffs[0].get_absolute_href() if tiffs else None


def _labels(item: pystac.Item) -> list[str]:
    vectors = ("application/geo+json", "application/geopackage+sqlite3")
    assets = [asset for key, asset in item.assets.items() if key == "labels" or asset.media_type in vectors]
    return [href for asset in assets if (href := asset.get_absolute_href())]


def _source(item: pystac.Item, images: list[pystac.Item]) -> pystac.Item | None:
    targets = {link.get_absolute_href() for link in item.links if link.rel == "source"}
    by_link = (other for other in images if other.get_self_href() in targets)
    by_name = (other for other in images if other.id == item.id.removesuffix(LABEL_SUFFIX))
    by_outline = (other for other in images if item.geometry and other.geometry == item.geometry)
    return next(by_link, None) or next(by_name, None) or next(by_outline, None)


def _place(item: pystac.Item) -> str:
    parent: Any = item.get_parent()
    return parent.id if isinstance(parent, pystac.Collection) else str(item.properties.get("area", ""))


def _times(properties: dict[str, Any]) -> list[str]:
    named = (properties.get(key) for key in ("datetime", "start_datetime", "end_datetime"))
    return [time for time in named if time]


def _names(text: str | None) -> set[str]:
    return {name.strip() for name in text.split(",")} if text else set()


def _listed(known: Iterable[str]) -> str:
    return f"there are: {', '.join(sorted(known))}"


def _unique(found: list[Scene]) -> list[Scene]:
    for scene in found:
        if scene.id.startswith(".") or "/" in scene.id or "\\" in scene.id:
            raise InputError(
                f"{scene.catalog} names a scene {scene.id}, which cannot be the name of its results' files"
            )
    twice = [name for name, count in Counter(scene.id for scene in found).items() if count > 1]
    if twice:
        raise InputError(f"{found[0].catalog} names scene {twice[0]} more than once; results are filed by that name")
    return found
