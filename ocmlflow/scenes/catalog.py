"""Lists the scenes of STAC catalogues, folders and globs of GeoTIFFs, each with its label files."""

import logging
import re
from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pystac
import shapely
from shapely.geometry.base import BaseGeometry

from ocmlflow.errors import InputError
from ocmlflow.redaction import redact
from ocmlflow.scenes import asset_roles, file_names, folders, item_pairing, stac_reader
from ocmlflow.scenes.folders import ImageFile
from ocmlflow.storage import hrefs, json_files

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
    tiles: tuple[str, ...] = ()
    """Hrefs of the GeoTIFFs that the image is made of, where it is a VRT."""
    bands: tuple[str, ...] = ()
    """Common names of the image's bands in their order, by its STAC item; empty where it names none."""
    licence: str = ""
    """Licence of the imagery, by its STAC item; empty where it states none."""
    unreadable: str = ""
    """Why its STAC item cannot be read, whose href is its id; empty where it can."""

    @property
    def files(self) -> tuple[str, ...]:
        """Hrefs of all files that hold its pixels."""
        return self.image, *self.tiles


def read_scenes(sources: str, *, mosaics: Path | None = None, skip_unreadable: bool = False) -> list[Scene]:
    """Scenes at one or more hrefs, separated by commas, in this order, each with its labels.

    An href is a STAC catalogue, collection or item, a GeoTIFF, a VRT of GeoTIFFs, a glob of them, or a folder. A
    folder holds a catalogue or a collection, or GeoTIFFs and label files of the same name, or such files in `images`
    and `labels`. Label items are paired with images by their `source` links, else by the id `<scene>-labels` of the
    challenge, else by an equal outline.

    With a folder for `mosaics`, GeoTIFFs of one folder or glob that touch or overlap are one scene, by a VRT that is
    written there.

    Raises InputError where there is no catalogue or image, and where two scenes cannot be told apart by name. STAC
    files below a catalogue that cannot be read raise it too, or with `skip_unreadable` become scenes that say so.
    """
    scenes = find_images(sources, mosaics=mosaics, skip_unreadable=skip_unreadable)
    files = [file for scene in scenes if not scene.item for file in scene.files]
    labels = folders.label_files(files)
    return [scene if scene.item else replace(scene, labels=_labels_of_files(scene, labels)) for scene in scenes]


def find_images(sources: str, *, mosaics: Path | None = None, skip_unreadable: bool = False) -> list[Scene]:
    """Scenes as of `read_scenes`, without looking for label files of images that were found in folders."""
    scenes = [scene for href in _split(sources) for scene in _scenes_at(href, mosaics)]
    unreadable = [scene for scene in scenes if scene.unreadable]
    if unreadable and not skip_unreadable:
        raise InputError(f"{unreadable[0].id} of {unreadable[0].catalog} cannot be read: {unreadable[0].unreadable}")
    return _check_ids(_tell_apart([scene for scene in scenes if not scene.unreadable])) + unreadable


def _labels_of_files(scene: Scene, labels: dict[str, list[str]]) -> tuple[str, ...]:
    """The label files of the image's own name, else those of its tiles."""
    return tuple(labels[scene.image] or dict.fromkeys(label for tile in scene.tiles for label in labels[tile]))


def select(found: list[Scene], *, scenes: str | None, places: str | None) -> list[Scene]:
    """The scenes of these ids and of these places, each separated by commas; None selects all.

    Raises InputError for an id or place that does not exist.
    """
    _check_known("scenes", scenes, {scene.id for scene in found})
    _check_known("places", places, {scene.place for scene in found})
    return [
        scene
        for scene in found
        if scene.unreadable  # nobody knows its id and place
        or ((scenes is None or scene.id in _names(scenes)) and (places is None or scene.place in _names(places)))
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
        content = json_files.read(href)
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


def _split(sources: str) -> list[str]:
    """The hrefs between commas; empty ones, which would name the working folder, are dropped.

    Numbers after the query of an address, as in ?bbox=1,2,3,4, belong to it.
    """
    parts: list[str] = []
    for part in (part.strip() for part in sources.split(",") if part.strip()):
        if parts and "?" in parts[-1] and re.match(r"-?\d+(\.\d*)?(&|$)", part):
            parts[-1] += f",{part}"
        else:
            parts.append(hrefs.resolve(part))
    if not parts:
        raise InputError(f"no catalogue or image is named by {sources!r}")
    return parts


def _scenes_at(href: str, mosaics: Path | None) -> list[Scene]:
    if folders.is_folder(href):
        return _in_folder(href, mosaics)
    if stac_reader.is_stac(href):
        return _in_stac(href)
    scenes = [_of_file(image, href) for image in folders.images_at(href, mosaics=mosaics)]
    if not scenes:
        raise InputError(f"no image at {href}: give a GeoTIFF, a folder or glob of them, or a STAC file")
    return scenes


def _in_folder(href: str, mosaics: Path | None) -> list[Scene]:
    """Scenes of a folder's catalogue, else of its GeoTIFFs and their label files, else of its collection."""
    if hrefs.is_remote(href) and not href.startswith("s3://"):
        try:
            return _in_stac(hrefs.join(href, STAC_FILES[0]))  # over https, files can be read but not listed
        except InputError:
            if not stac_reader.is_json(href, unreadable=False):
                raise
            return _in_stac(href)  # the landing page of an API
    files = folders.list_files(href)
    catalog, collection = (hrefs.join(href, name) for name in STAC_FILES)
    if catalog in files:
        return _in_stac(catalog)
    place = file_names.folder_name(f"{hrefs.absolute(href).rstrip('/')}/")
    scenes = [replace(_of_file(image, href), place=place) for image in folders.images_in(href, mosaics=mosaics)]
    # A collection beside images may be that of results which `predict` wrote there.
    if not scenes and collection in files:
        return _in_stac(collection)
    if not scenes:
        raise folders.missing_images(href)
    return scenes


def _of_file(image: ImageFile, source: str) -> Scene:
    place = file_names.place_name(hrefs.absolute((image.tiles or (image.href,))[0]))
    return Scene(image.name, place, image.href, catalog=source, tiles=image.tiles)


def _in_stac(href: str) -> list[Scene]:
    """Scenes of a STAC catalogue, collection or item, each with its labels."""
    found = stac_reader.read_items(href)
    items = found.items
    unreadable = [
        Scene(redact(link), "", "", catalog=href, item=link, unreadable=redact(reason))
        for link, reason in found.unreadable.items()
    ]
    assets = {id(item): asset for item in items if (asset := asset_roles.image_asset(item))}
    files = {key: asset.get_absolute_href() for key, asset in assets.items()}
    if unreadable and not files:
        return unreadable
    images = [item for item in items if id(item) in files]
    by_name = item_pairing.index_by_name(images)
    # A label item may hold its labels as a raster too, which looks like an image.
    images = [
        item
        for item in images
        if not asset_roles.label_assets(item) or item in item_pairing.source_images(item, by_name)
    ]
    labels = item_pairing.labels_of(images, items, href)
    _check_images(items, files, href)
    return [
        Scene(
            item.id,
            item_pairing.place_name(item),
            str(files[id(item)]),
            tuple(labels[id(item)]),
            href,
            item.get_self_href() or "",
            item.datetime,
            bands=asset_roles.band_names(item, assets[id(item)]),
            licence=str(item.properties.get("license") or ""),
        )
        for item in images
    ] + unreadable


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


def _names(text: str | None) -> set[str]:
    return {name.strip() for name in text.split(",")} if text else set()


def _tell_apart(scenes: list[Scene]) -> list[Scene]:
    """The scenes, where equal ids get their collection or a folder in front."""
    names = file_names.tell_apart(
        [scene.id for scene in scenes],
        [scene.place for scene in scenes],
        [scene.item or (scene.tiles or (scene.image,))[0] for scene in scenes],
    )
    return [replace(scene, id=name) for scene, name in zip(scenes, names, strict=True)]


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
            f"{scenes[0].catalog} names scene {repeated[0]} more than once, and neither collections nor folders tell "
            "them apart; results are filed by that name"
        )
    return scenes
