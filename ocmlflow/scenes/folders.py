"""Lists the images of folders, globs and single files, joins tiles to mosaics, and finds label files by their names."""

import fnmatch
import glob
import logging
import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ocmlflow.errors import InputError
from ocmlflow.scenes import file_names, headers, vrt
from ocmlflow.scenes.headers import Header
from ocmlflow.storage import hrefs

log = logging.getLogger(__name__)

OTHER_FORMATS = (".jp2", ".j2k", ".png", ".jpg", ".jpeg", ".ecw", ".sid", ".img", ".bmp", ".gif", ".webp")
"""Suffixes of files that GDAL may read as images, which have to be converted first."""


@dataclass(frozen=True)
class ImageFile:
    """An image that was found by its name."""

    name: str
    href: str
    tiles: tuple[str, ...] = ()
    """Hrefs of the files that it is made of, where it is a VRT."""


def is_folder(href: str) -> bool:
    """Whether an href is a local folder, or an address that ends with a slash."""
    return href.endswith("/") if hrefs.is_remote(href) else hrefs.local_path(href).is_dir()


def list_files(folder: str) -> list[str]:
    """Hrefs of the files in a local folder or at an s3 address, without hidden ones; InputError where it cannot be."""
    try:
        return _without_hidden(hrefs.list_files(folder))
    except OSError as error:
        raise InputError(f"folder {folder} cannot be read: {error}") from error


def images_in(folder: str, *, mosaics: Path | None) -> list[ImageFile]:
    """The GeoTIFFs of a folder, else its VRTs, else the GeoTIFFs of its folder `images`.

    With a folder for `mosaics`, images that touch are one, by a VRT that is written there.
    """
    files = list_files(folder)
    images = file_names.images_among(files) or [file for file in files if file_names.suffix(file) == ".vrt"]
    _warn_of_other_formats(files, images, folder)
    if images:
        return _described(images, folder, mosaics=mosaics)
    for subfolder in _named(_list(hrefs.list_folders, folder), file_names.IMAGE_FOLDERS):
        if file_names.images_among(list_files(subfolder)):
            return images_in(subfolder, mosaics=mosaics)
    return []


def images_at(href: str, *, mosaics: Path | None) -> list[ImageFile]:
    """The image at an href, or those that a glob matches, as of a folder; in s3, a glob matches files of one folder."""
    files = _matching_files(href)
    images = file_names.images_among(files) if len(files) > 1 else files
    return _described(images, href, mosaics=mosaics)


def missing_images(folder: str) -> InputError:
    """The error to raise for a folder without images: what was found, and how files have to lie."""
    files = list_files(folder)
    other = next((file for file in files if file_names.suffix(file) in OTHER_FORMATS), None)
    if other:
        name = posixpath.basename(other)
        return InputError(
            f"{folder} holds no GeoTIFF but {name}: make one of it, say with gdal_translate -of COG {name} "
            f"{file_names.stem(other)}.tif"
        )
    below = [posixpath.basename(path.rstrip("/")) for path in _list(hrefs.list_folders, folder)]
    listed = f"; its folders are {', '.join(below[:5])}{', ...' if len(below) > 5 else ''}" if below else ""
    return InputError(
        f"{folder} holds no catalog.json or collection.json and no GeoTIFF{listed}. Images lie in the folder itself or "
        "in its folder images/; label files have the same name as their image, in the same folder or in labels/. Other "
        f"layouts are named by a glob, such as {hrefs.join(folder, '*', '*.tif')}"
    )


def label_files(images: Iterable[str]) -> dict[str, list[str]]:
    """The label files of each image, by their names.

    They lie beside their images, else in a folder such as `labels` below that or, of `images`, beside it. Over https,
    where folders cannot be listed, there are none.
    """
    by_folder = defaultdict(list)
    for image in images:
        by_folder[posixpath.dirname(image)].append(image)
    paired: dict[str, list[str]] = {}
    for folder, members in by_folder.items():
        paired |= _labels_near(members, folder or ".")
    return paired


def _described(images: Sequence[str], source: str, *, mosaics: Path | None) -> list[ImageFile]:
    """The images without files that are no pictures, and as mosaics where that is asked for."""
    if len(images) < 2:
        return [_image(image) for image in images]
    known = {header.href: header for header in headers.read([i for i in images if file_names.suffix(i) != ".vrt"])}
    pictures = _pictures(images, known, source)
    groups = headers.touching([known[image] for image in pictures if image in known])
    if mosaics is None:
        _warn_of_touching(groups, source)
        return [_image(image) for image in pictures]
    if not groups:
        log.warning("mosaic=true: no GeoTIFFs of %s touch or overlap, so each is a scene of its own", source)
    tiles = {tile.href for group in groups for tile in group}
    found = [_mosaic(group, mosaics, is_only=len(groups) == 1) for group in groups]
    return found + [_image(image) for image in pictures if image not in tiles]


def _image(href: str) -> ImageFile:
    tiles = vrt.sources(href) if file_names.suffix(href) == ".vrt" else []
    return ImageFile(file_names.stem(href), href, tuple(tiles))


def _mosaic(group: Sequence[Header], folder: Path, *, is_only: bool) -> ImageFile:
    """Tiles as one image; named after their folder, and after the first one where the folder holds several groups."""
    tiles = tuple(tile.href for tile in group)
    name = file_names.folder_name(tiles[0]) or "mosaic"
    log.info("%d GeoTIFFs are read as one picture: %s", len(group), headers.names(group))
    return ImageFile(name if is_only else f"{name}-{file_names.stem(tiles[0])}", vrt.write(group, folder), tiles)


def _pictures(images: Sequence[str], known: dict[str, Header], source: str) -> list[str]:
    """The images without elevation models and the like, where there are pictures beside them; each is warned of."""
    others = [image for image in images if image in known and not known[image].is_picture]
    if not any(header.is_picture for header in known.values()):
        return list(images)
    for image in others:
        log.warning(
            "%s of %s is left out: %d band(s) of %s are no picture in red, green and blue",
            posixpath.basename(image),
            source,
            len(known[image].dtypes),
            ", ".join(sorted(set(known[image].dtypes))),
        )
    return [image for image in images if image not in others]


def _warn_of_touching(groups: Sequence[Sequence[Header]], source: str) -> None:
    if groups:
        log.warning(
            "%d GeoTIFFs of %s touch or overlap others (%s). Each is a scene of its own: buildings across their edges "
            "are cut, and those on common ground count twice. If they are tiles of one picture: mosaic=true",
            sum(map(len, groups)),
            source,
            headers.names(groups[0]),
        )


def _warn_of_other_formats(files: Iterable[str], images: Iterable[str], folder: str) -> None:
    """Warn of images in other formats which are not just another form of a GeoTIFF."""
    stems = {file_names.stem(image) for image in images}
    others = [file for file in files if file_names.suffix(file) in OTHER_FORMATS and file_names.stem(file) not in stems]
    if stems and others:
        log.warning(
            "%d files of %s are left out, such as %s: only GeoTIFFs are read; gdal_translate -of COG makes them",
            len(others),
            folder,
            posixpath.basename(others[0]),
        )


def _labels_near(images: Sequence[str], folder: str) -> dict[str, list[str]]:
    files = _list(hrefs.list_files, folder)
    paired = file_names.pair(images, file_names.labels_among(files))
    for near in _label_folders(folder):
        labels = file_names.labels_among(_list(hrefs.list_files, near), in_label_folder=True)
        paired |= file_names.pair([image for image, drawn in paired.items() if not drawn], labels)
    return paired


def _label_folders(folder: str) -> list[str]:
    """Folders of labels below a folder, and beside it where it is one of images."""
    below = _named(_list(hrefs.list_folders, folder), file_names.LABEL_FOLDERS)
    parent, name = posixpath.split(folder.rstrip("/"))
    is_of_images = name.lower() in file_names.IMAGE_FOLDERS
    return below + (_named(_list(hrefs.list_folders, parent or "."), file_names.LABEL_FOLDERS) if is_of_images else [])


def _list(listing: Callable[[str], list[str]], folder: str) -> list[str]:
    """What can be listed in a folder, without hidden files: who may read a file may not always list its folder."""
    try:
        return _without_hidden(listing(folder))
    except OSError:
        return []


def _named(folders: Iterable[str], names: Sequence[str]) -> list[str]:
    """The folders of these names, whatever their case, in the order of the names."""
    by_name = {posixpath.basename(folder.rstrip("/")).lower(): folder for folder in folders}
    return [by_name[name] for name in names if name in by_name]


def _matching_files(href: str) -> list[str]:
    """The file at an href, or those that a glob matches; in s3, a glob matches files of one folder."""
    path = hrefs.local_path(href)
    if href.startswith("s3://") and glob.has_magic(href):
        files = list_files(posixpath.dirname(href))
        if href in files:
            return [href]
        return [file for file in files if fnmatch.fnmatchcase(file, href)]
    if hrefs.is_remote(href):
        return [href]
    if glob.has_magic(href) and not path.exists():
        return sorted(_without_hidden(glob.glob(str(path), recursive=True)))
    return [str(path)] if path.is_file() else []


def _without_hidden(files: Iterable[str]) -> list[str]:
    """Files whose names do not begin with a dot: macOS puts `._scene.tif`, which is no image, beside `scene.tif`."""
    return [file for file in files if not posixpath.basename(file).startswith(".")]
