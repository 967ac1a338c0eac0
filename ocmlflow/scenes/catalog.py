"""STAC catalogues of any version, to the scenes in them."""

import fnmatch
import glob
import json
import logging
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlparse

import shapely
from shapely.geometry.base import BaseGeometry

from ocmlflow.errors import InputError
from ocmlflow.scenes import stac_reader
from ocmlflow.storage import hrefs

log = logging.getLogger(__name__)

STAC_FILES = ("catalog.json", "collection.json")


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
    acquired: datetime | None = None
    """When, as its item says."""


def read_scenes(hrefs: str) -> list[Scene]:
    """Scenes at one or more hrefs, separated by commas, in their order, each with its labels.

    An href is a STAC catalogue, collection or item, or a folder that holds one of the first two, or GeoTIFFs and
    GeoJSON or GeoPackage files of the same name. Label items are paired by their `source` links, else by the id
    `<scene>-labels` of the challenge, else by an equal outline. Raises InputError where there is no catalogue, no
    image, or one id twice.
    """
    return _unique([scene for href in _parts(hrefs) for scene in _labelled(href)])


def select(found: list[Scene], *, scenes: str | None, places: str | None) -> list[Scene]:
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


def read_area(href: str) -> BaseGeometry:
    """The area, in degrees, that the polygons of a GeoJSON file cover; InputError where it holds none."""
    try:
        content = json.loads(hrefs.read(href))
        features = content["features"] if content["type"] == "FeatureCollection" else [content]
        shapes = [feature.get("geometry", feature) for feature in features]
        given = [shapely.geometry.shape(shape) for shape in shapes if shape]  # a feature may be without
    except (OSError, ValueError, KeyError, TypeError, AttributeError, shapely.errors.ShapelyError) as error:
        raise InputError(f"aoi={href} is no GeoJSON file that can be read: {error}") from error
    found = shapely.union_all(shapely.make_valid(given, method="structure"))
    west, south, east, north = found.bounds if found.area > 0 else (0, 0, 0, 0)
    if not (found.area > 0 and -180 <= west <= east <= 180 and -90 <= south <= north <= 90):
        raise InputError(f"aoi={href} holds no polygon in degrees (longitude, latitude), as GeoJSON has them")
    return found


def find_images(hrefs: str) -> list[Scene]:
    """Scenes at one or more hrefs, separated by commas, labels or not.

    Each is a STAC file, a GeoTIFF, a folder of GeoTIFFs or a glob of them. Raises InputError for one without images.
    """
    return _unique([scene for href in _parts(hrefs) for scene in _images(href)])


def _parts(hrefs: str) -> list[str]:
    """What stands between commas: an empty href would be the working folder."""
    found = [part.strip() for part in hrefs.split(",") if part.strip()]
    if not found:
        raise InputError(f"no catalogue or image is named by {hrefs!r}")
    return found


def _labelled(href: str) -> list[Scene]:
    found = _foldered(href) if _is_folder(href) else _catalogued(href)
    if not found:
        raise InputError(f"{href} holds no {' or '.join(STAC_FILES)} and no GeoTIFF")
    return found


def _is_folder(href: str) -> bool:
    return href.endswith("/") if hrefs.is_remote(href) else hrefs.local_path(href).is_dir()


def _foldered(href: str) -> list[Scene]:
    """Scenes of a folder's catalogue, else of its GeoTIFFs and the label files beside them, else of its collection."""
    if hrefs.is_remote(href) and not href.startswith("s3://"):
        return _catalogued(hrefs.join(href, STAC_FILES[0]))  # over https, files can be read but not listed
    try:
        files = _shown(hrefs.list_files(href))
    except OSError as error:
        raise InputError(f"folder {href} cannot be read: {error}") from error
    catalog, collection = (hrefs.join(href, name) for name in STAC_FILES)
    if catalog in files:
        return _catalogued(catalog)
    place = posixpath.basename(href.rstrip("/")) or hrefs.local_path(href).resolve().name
    parts = [(file, *posixpath.splitext(file)) for file in files]
    labels = defaultdict(list)
    for file, stem, suffix in parts:
        if suffix.lower() in stac_reader.LABEL_FILES:
            labels[stem].append(file)
    found = [
        Scene(posixpath.basename(stem), place, file, tuple(labels[stem]), href)
        for file, stem, suffix in parts
        if suffix.lower() in stac_reader.IMAGE_FILES
    ]
    # Last, for beside images it may be that of results, which `predict` was told to leave there.
    return _catalogued(collection) if not found and collection in files else found


def _catalogued(href: str) -> list[Scene]:
    items = stac_reader.read_items(href)
    images = [item for item in items if stac_reader.image_href(item)]
    known = stac_reader.index_by_name(images)
    images = [
        item for item in images if not stac_reader.label_hrefs(item) or item in stac_reader.source_images(item, known)
    ]
    known = stac_reader.index_by_name(images)  # without label items that hold their labels as a raster too
    labels: dict[int, list[str]] = {id(item): [] for item in images}
    for item in items:
        sources = stac_reader.source_images(item, known) if stac_reader.label_hrefs(item) else []
        for source in sources:
            labels[id(source)] += stac_reader.label_hrefs(item)
        if stac_reader.label_hrefs(item) and not sources:
            log.warning("labels %s belong to no scene of %s", item.id, href)
    if not images:
        raise InputError(f"{href} has {len(items)} items but none with a GeoTIFF asset")
    return [
        Scene(
            item.id,
            stac_reader.place_name(item),
            str(stac_reader.image_href(item)),
            tuple(labels[id(item)]),
            href,
            item.get_self_href() or "",
            item.datetime,
        )
        for item in images
    ]


def _images(href: str) -> list[Scene]:
    if _name(href).suffix.lower() in (".json", ".geojson"):
        return _catalogued(href)
    if _is_folder(href):
        found = _foldered(href)
    else:
        found = [Scene(_name(file).stem, "", file, catalog=href) for file in _files(href)]
    if not found:
        raise InputError(f"no image at {href}: give a GeoTIFF, a folder or glob of them, or a STAC file")
    return found


def _name(href: str) -> Path:
    return Path(urlparse(href).path if hrefs.is_remote(href) else href)  # a signature is no part of it


def _files(href: str) -> list[str]:
    """The file at an href, or those that a glob matches; in s3, of one folder."""
    path = hrefs.local_path(href)
    if href.startswith("s3://") and glob.has_magic(href):
        try:
            there = hrefs.list_files(posixpath.dirname(href))
        except OSError as error:
            raise InputError(f"images={href} cannot be looked up: {error}") from error
        return [file for file in there if file == href] or _shown(f for f in there if fnmatch.fnmatchcase(f, href))
    if hrefs.is_remote(href):
        return [href]
    if glob.has_magic(href) and not path.exists():
        return sorted(_shown(glob.glob(str(path), recursive=True)))
    return [str(path)] if path.is_file() else []


def _shown(files: Iterable[str]) -> list[str]:
    """Without those whose names begin with a dot: macOS leaves a `._scene.tif`, which is none, beside `scene.tif`."""
    return [file for file in files if not posixpath.basename(file).startswith(".")]


def _names(text: str | None) -> set[str]:
    return {name.strip() for name in text.split(",")} if text else set()


def _listed(known: Iterable[str]) -> str:
    return f"there are: {', '.join(sorted(known))}"


def _unique(found: list[Scene]) -> list[Scene]:
    for scene in found:
        if re.search(r"^\.|[/\\?#;]", scene.id):  # the last three end a name in links, and pystac decodes none
            raise InputError(
                f"{scene.catalog} names a scene {scene.id}, which cannot be the name of its results' files: it begins "
                "with a dot or holds one of / \\ ? # ;"
            )
    twice = [name for name, count in Counter(scene.id for scene in found).items() if count > 1]
    if twice:
        raise InputError(f"{found[0].catalog} names scene {twice[0]} more than once; results are filed by that name")
    return found
