"""STAC catalogues of any version, to the scenes in them."""

import glob
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pystac
from pystac.stac_io import DefaultStacIO

from ocmlflow import storage
from ocmlflow.errors import InputError

log = logging.getLogger(__name__)

LABEL_SUFFIX = "-labels"  # how the challenge names label items, whose `source` link it leaves out


@dataclass(frozen=True)
class Scene:
    """One image and, where people drew them, its footprints."""

    id: str
    place: str
    """The region it belongs to: its collection's id; empty where it has none."""
    image: str
    """Href of the GeoTIFF."""
    labels: tuple[str, ...] = ()
    """Hrefs of vector files of footprints."""
    catalog: str = ""
    """Href of the catalogue or file that named it."""


def scenes(href: str) -> list[Scene]:
    """Scenes of the STAC catalogue, collection or item at `href`, in its order, each with its labels.

    Label items are paired by their `source` link, else by the id `<scene>-labels` of the challenge, else by an equal
    outline. Raises InputError where there is no catalogue, no image, or one id twice.
    """
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
    return _unique(
        [Scene(item.id, _place(item), str(_image(item)), tuple(labels[id(item)]), href) for item in pictured]
    )


def images(hrefs: str) -> list[Scene]:
    """Scenes at one or more hrefs, separated by commas, labels or not.

    Each is a STAC file, a GeoTIFF, a folder of GeoTIFFs or a glob of them. Raises InputError for one without images.
    """
    return _unique([scene for href in hrefs.split(",") for scene in _images(href.strip())])


class _Reader(DefaultStacIO):
    """STAC files from wherever `storage` reads."""

    def read_text_from_href(self, href: str) -> str:
        return storage.read(href).decode("utf-8")


def _images(href: str) -> list[Scene]:
    name = Path(urlparse(href).path if storage.is_remote(href) else href)  # a signature is no part of it
    if name.suffix.lower() in (".json", ".geojson"):
        return scenes(href)
    if storage.is_remote(href):
        return [Scene(name.stem, "", href, catalog=href)]
    path = storage.path(href)
    if path.is_dir() and (path / "catalog.json").exists():
        return scenes(str(path / "catalog.json"))
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in (".tif", ".tiff"))
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
        raise InputError(f"catalogue {href} links to what cannot be read: {error}") from error


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
