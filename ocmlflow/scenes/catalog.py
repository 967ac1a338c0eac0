"""Lists the scenes of STAC catalogues, folders and globs of GeoTIFFs, each with its label files."""

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

import pystac
import shapely
from shapely.geometry.base import BaseGeometry

from ocmlflow.errors import InputError
from ocmlflow.scenes import asset_roles, stac_reader
from ocmlflow.storage import hrefs

log = logging.getLogger(__name__)

STAC_FILES = ("catalog.json", "collection.json")


@dataclass(frozen=True)
class Scene:
    """One georeferenced image and, where people drew them, the files of its building footprints."""

    id: str
    place: str
    """The region it belongs to: the id of its collection or the name of its folder; empty where it has none."""
    image: str
    """Href of the GeoTIFF."""
    labels: tuple[str, ...] = ()
    """Hrefs of the vector files of its footprints."""
    catalog: str = ""
    """Href of the catalogue, folder or file where it was found."""
    item: str = ""
    """Href of its STAC item; empty where it has none."""
    acquired: datetime | None = None
    """Time of the imagery, by its STAC item."""


def read_scenes(sources: str) -> list[Scene]:
    """Scenes at one or more hrefs, separated by commas, in this order, each with its labels.

    An href is a STAC catalogue, collection or item, or a folder. A folder holds a catalogue or a collection, or
    GeoTIFFs and GeoJSON or GeoPackage files of the same name. Label items are paired with images by their `source`
    links, else by the id `<scene>-labels` of the challenge, else by an equal outline.

    Raises InputError where there is no catalogue or image, and where an id occurs twice.
    """
    return _check_ids([scene for href in _split(sources) for scene in _scenes_at(href)])


def select(found: list[Scene], *, scenes: str | None, places: str | None) -> list[Scene]:
    """The scenes of these ids and of these places, each separated by commas; None selects all.

    Raises InputError for an id or place that does not exist.
    """
    _check_known("scenes", scenes, {scene.id for scene in found})
    _check_known("places", places, {scene.place for scene in found})
    return [
        scene
        for scene in found
        if (scenes is None or scene.id in _names(scenes)) and (places is None or scene.place in _names(places))
    ]


def _check_known(option: str, names: str | None, known: set[str]) -> None:
    if unknown := _names(names) - known:
        raise InputError(
            f"{option}={names}: there is no {', '.join(sorted(unknown))}; there are: {', '.join(sorted(known))}"
        )


def read_area(href: str) -> BaseGeometry:
    """The area of interest in a GeoJSON file: the union of its polygons, in degrees (lon, lat).

    Raises InputError where the file cannot be read or holds no polygon in degrees.
    """
    try:
        content = json.loads(hrefs.read(href))
        features = content["features"] if content["type"] == "FeatureCollection" else [content]
        shapes = [feature.get("geometry", feature) for feature in features]
        polygons = [shapely.geometry.shape(shape) for shape in shapes if shape]  # a feature may have no geometry
    except (OSError, ValueError, KeyError, TypeError, AttributeError, shapely.errors.ShapelyError) as error:
        raise InputError(f"aoi={href} cannot be read as GeoJSON: {error}") from error
    area = shapely.union_all(shapely.make_valid(polygons, method="structure"))
    west, south, east, north = area.bounds if area.area > 0 else (0, 0, 0, 0)
    if not (area.area > 0 and -180 <= west <= east <= 180 and -90 <= south <= north <= 90):
        raise InputError(f"aoi={href} holds no polygon in degrees (longitude, latitude), as GeoJSON has them")
    return area


def find_images(sources: str) -> list[Scene]:
    """Scenes at one or more hrefs, separated by commas, with or without labels.

    Each is a STAC file, a GeoTIFF, a folder of GeoTIFFs or a glob of them. Raises InputError for one without images.
    """
    return _check_ids([scene for href in _split(sources) for scene in _images_at(href)])


def _split(sources: str) -> list[str]:
    """The hrefs between commas; empty ones, which would name the working folder, are dropped."""
    parts = [part.strip() for part in sources.split(",") if part.strip()]
    if not parts:
        raise InputError(f"no catalogue or image is named by {sources!r}")
    return parts


def _scenes_at(href: str) -> list[Scene]:
    scenes = _in_folder(href) if _is_folder(href) else _in_stac(href)
    if not scenes:
        raise InputError(f"{href} holds no {' or '.join(STAC_FILES)} and no GeoTIFF")
    return scenes


def _is_folder(href: str) -> bool:
    return href.endswith("/") if hrefs.is_remote(href) else hrefs.local_path(href).is_dir()


def _in_folder(href: str) -> list[Scene]:
    """Scenes of a folder's catalogue, else of its GeoTIFFs and the label files beside them, else of its collection."""
    if hrefs.is_remote(href) and not href.startswith("s3://"):
        return _in_stac(hrefs.join(href, STAC_FILES[0]))  # over https, files can be read but not listed
    try:
        files = _without_hidden(hrefs.list_files(href))
    except OSError as error:
        raise InputError(f"folder {href} cannot be read: {error}") from error
    catalog, collection = (hrefs.join(href, name) for name in STAC_FILES)
    if catalog in files:
        return _in_stac(catalog)
    scenes = _of_files(files, href)
    # A collection beside images may be that of results which `predict` wrote there.
    return _in_stac(collection) if not scenes and collection in files else scenes


def _of_files(files: list[str], folder: str) -> list[Scene]:
    """Scenes of the GeoTIFFs among the files of a folder, each with the label files of the same name."""
    place = posixpath.basename(folder.rstrip("/")) or hrefs.local_path(folder).resolve().name
    parts = [(file, *posixpath.splitext(file)) for file in files]
    labels = defaultdict(list)
    for file, stem, suffix in parts:
        if suffix.lower() in asset_roles.LABEL_FILES:
            labels[stem].append(file)
    return [
        Scene(posixpath.basename(stem), place, file, tuple(labels[stem]), folder)
        for file, stem, suffix in parts
        if suffix.lower() in asset_roles.IMAGE_FILES
    ]


def _in_stac(href: str) -> list[Scene]:
    """Scenes of a STAC catalogue, collection or item, each with its labels."""
    items = stac_reader.read_items(href)
    files = {id(item): asset.get_absolute_href() for item in items if (asset := asset_roles.image_asset(item))}
    images = [item for item in items if id(item) in files]
    by_name = stac_reader.index_by_name(images)
    # A label item may hold its labels as a raster too, which looks like an image.
    images = [
        item
        for item in images
        if not asset_roles.label_assets(item) or item in stac_reader.source_images(item, by_name)
    ]
    labels = _labels_of(images, items, href)
    _check_images(items, files, href)
    return [
        Scene(
            item.id,
            stac_reader.place_name(item),
            str(files[id(item)]),
            tuple(labels[id(item)]),
            href,
            item.get_self_href() or "",
            item.datetime,
        )
        for item in images
    ]


def _check_images(items: list[pystac.Item], files: dict[int, str | None], href: str) -> None:
    """Warn of items with neither image nor labels; InputError where no item has an image."""
    empty = [item for item in items if id(item) not in files and not asset_roles.label_assets(item)]
    if not files:
        example = f": the assets of {empty[0].id} are {asset_roles.describe_assets(empty[0])}" if empty else ""
        raise InputError(
            f"{href} has {len(items)} items but none with a GeoTIFF asset that shows the scene{example}. It is found "
            "by the role visual or data, or the key image; the roles thumbnail, overview and metadata, and those of "
            "masks, are never taken"
        )
    for item in empty:
        log.warning(
            "item %s of %s is left out: none of its assets is a GeoTIFF that shows the scene: %s",
            item.id,
            href,
            asset_roles.describe_assets(item),
        )


def _labels_of(images: list[pystac.Item], items: list[pystac.Item], href: str) -> dict[int, list[str]]:
    """Hrefs of the labels of each image item, by the `id()` of the item: STAC ids may occur twice."""
    by_name = stac_reader.index_by_name(images)
    labels: dict[int, list[str]] = {id(item): [] for item in images}
    for item in items:
        drawn = [label_href for asset in asset_roles.label_assets(item) if (label_href := asset.get_absolute_href())]
        sources = stac_reader.source_images(item, by_name) if drawn else []
        for source in sources:
            labels[id(source)] += drawn
        if drawn and not sources:
            log.warning("labels %s belong to no scene of %s", item.id, href)
    return labels


def _images_at(href: str) -> list[Scene]:
    if _file_path(href).suffix.lower() in (".json", ".geojson"):
        return _in_stac(href)
    if _is_folder(href):
        scenes = _in_folder(href)
    else:
        scenes = [Scene(_file_path(file).stem, "", file, catalog=href) for file in _matching_files(href)]
    if not scenes:
        raise InputError(f"no image at {href}: give a GeoTIFF, a folder or glob of them, or a STAC file")
    return scenes


def _file_path(href: str) -> Path:
    """The path of an href, without the query of a signed address."""
    return Path(urlparse(href).path if hrefs.is_remote(href) else href)


def _matching_files(href: str) -> list[str]:
    """The file at an href, or those that a glob matches; in s3, a glob matches files of one folder."""
    path = hrefs.local_path(href)
    if href.startswith("s3://") and glob.has_magic(href):
        try:
            files = hrefs.list_files(posixpath.dirname(href))
        except OSError as error:
            raise InputError(f"images={href} cannot be looked up: {error}") from error
        if href in files:
            return [href]
        return _without_hidden(file for file in files if fnmatch.fnmatchcase(file, href))
    if hrefs.is_remote(href):
        return [href]
    if glob.has_magic(href) and not path.exists():
        return sorted(_without_hidden(glob.glob(str(path), recursive=True)))
    return [str(path)] if path.is_file() else []


def _without_hidden(files: Iterable[str]) -> list[str]:
    """Files whose names do not begin with a dot: macOS puts `._scene.tif`, which is no image, beside `scene.tif`."""
    return [file for file in files if not posixpath.basename(file).startswith(".")]


def _names(text: str | None) -> set[str]:
    return {name.strip() for name in text.split(",")} if text else set()


def _check_ids(scenes: list[Scene]) -> list[Scene]:
    """The same scenes; InputError where an id cannot be a file name, or occurs twice."""
    for scene in scenes:
        if re.search(r"^\.|[/\\?#;]", scene.id):  # the last three end a name in links, and pystac decodes none
            raise InputError(
                f"{scene.catalog} names a scene {scene.id}, which cannot be the name of its results' files: it begins "
                "with a dot or holds one of / \\ ? # ;"
            )
    repeated = [name for name, count in Counter(scene.id for scene in scenes).items() if count > 1]
    if repeated:
        raise InputError(
            f"{scenes[0].catalog} names scene {repeated[0]} more than once; ids must be unique, since results are "
            "filed by them"
        )
    return scenes
