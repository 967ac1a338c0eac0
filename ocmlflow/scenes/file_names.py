"""Pairs images with label files by their names, and tells scenes of equal names apart."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import unquote, urlparse

from ocmlflow.scenes.asset_roles import IMAGE_FILES, LABEL_FILES

IMAGE_FOLDERS = ("images", "image", "imagery", "imgs", "img", "orthophotos", "ortho", "rgb", "scenes", "sat", "tiles")
LABEL_FOLDERS = ("labels", "label", "masks", "mask", "gt", "annotations", "footprints", "buildings", "vectors")
"""Names of folders in which data sets keep images and their labels, side by side."""

_WORDS = "labels?|masks?|gt|annotations?|(building_)?footprints?|buildings?|polygons?"
_LABEL_NAME = re.compile(rf"(?:(?:{_WORDS})[-_. ])?(?P<scene>.+?)(?:[-_. ](?:{_WORDS}))?", re.IGNORECASE)
_IMAGE_NAME = re.compile(r"(?:(?:images?|img)[-_. ])?(?P<scene>.+?)(?:[-_. ](?:images?|img|ortho|rgb))?", re.IGNORECASE)


def images_among(files: Iterable[str]) -> list[str]:
    """The GeoTIFFs, without the label rasters: files named as another one with a word such as `_labels` or `_mask`."""
    images = [file for file in files if suffix(file) in IMAGE_FILES]
    stems = {stem(file).lower() for file in images}
    return [file for file in images if not _is_label_raster(stem(file).lower(), stems)]


def labels_among(files: Iterable[str], *, in_label_folder: bool = False) -> list[str]:
    """The vector files and the label rasters: in a folder of labels every GeoTIFF, else those of `images_among` not."""
    files = list(files)
    images = [] if in_label_folder else images_among(files)
    return [file for file in files if suffix(file) in IMAGE_FILES | LABEL_FILES and file not in images]


def pair(images: Iterable[str], labels: Iterable[str]) -> dict[str, list[str]]:
    """The label files of each image.

    Names are equal, or equal but for capitals, or for a word at either end such as `_labels`, `_mask` or `_buildings`.
    An equal name decides over a similar one. A raster is taken only where an image has no vector file.
    """
    paired: dict[str, list[str]] = {image: [] for image in images}
    same, similar, bare = (_index(paired, rule) for rule in (stem, _lower_stem, _scene_of_image))
    for label in labels:
        without_words = _scene_of_label(label)
        tries = [(same, stem(label)), (similar, _lower_stem(label)), (similar, without_words), (bare, without_words)]
        for image in next((index[name] for index, name in tries if name in index), []):
            paired[image].append(label)
    return {image: _vectors_first(files) for image, files in paired.items()}


def tell_apart(names: list[str], groups: list[str], files: list[str]) -> list[str]:
    """The names, where equal ones get something in front that differs: their group, else a folder of their file.

    Groups are collections or places. The folder is the nearest one that differs among files of the same name. Names
    that are equal all the same stay so.
    """
    positions = defaultdict(list)
    for position, name in enumerate(names):
        positions[name].append(position)
    unique = list(names)
    for name, equal in positions.items():
        if len(equal) > 1:
            fronts = _fronts([groups[p] for p in equal], [files[p] for p in equal])
            for position, front in zip(equal, fronts, strict=True):
                unique[position] = f"{front}-{name}" if front else name
    return unique


def stem(href: str) -> str:
    """The name of a file, without folder, suffix and the query of a signed address."""
    return posixpath.splitext(_base(href))[0]


def suffix(href: str) -> str:
    """The suffix of a file in lower case, such as `.tif`."""
    return posixpath.splitext(_base(href))[1].lower()


def folder_name(href: str) -> str:
    """The name of the folder that a file lies in."""
    return posixpath.basename(posixpath.dirname(href.partition("?")[0]))


def place_name(href: str) -> str:
    """The name of the nearest folder of an image that is no mere `images`; empty at the top of a server."""
    path = unquote(urlparse(href).path) if "://" in href else href
    parents = posixpath.dirname(path).split("/")[::-1]
    return next((name for name in parents if name.lower() not in IMAGE_FOLDERS), "")


def _base(href: str) -> str:
    if href.startswith(("http://", "https://")):
        return posixpath.basename(unquote(urlparse(href).path))
    return posixpath.basename(href)


def _is_label_raster(name: str, stems: set[str]) -> bool:
    scene = _scene_name(_LABEL_NAME, name)
    return scene != name and scene in stems


def _index(images: Iterable[str], rule: Callable[[str], str]) -> Mapping[str, list[str]]:
    by_name = defaultdict(list)
    for image in images:
        by_name[rule(image)].append(image)
    return by_name


def _lower_stem(file: str) -> str:
    return stem(file).lower()


def _scene_of_image(file: str) -> str:
    return _scene_name(_IMAGE_NAME, stem(file))


def _scene_of_label(file: str) -> str:
    return _scene_name(_LABEL_NAME, stem(file))


def _scene_name(pattern: re.Pattern[str], name: str) -> str:
    """The name in lower case, without the words that say what the file is."""
    match = pattern.fullmatch(name)
    return match["scene"].lower() if match else name.lower()


def _vectors_first(files: list[str]) -> list[str]:
    return [file for file in files if suffix(file) in LABEL_FILES] or files


def _fronts(groups: list[str], files: list[str]) -> list[str]:
    """What to put before the equal names of files, so that they differ; empty texts where nothing differs."""
    if all(groups) and len(set(groups)) == len(groups):
        return [_as_file_name(group) for group in groups]
    folders = [posixpath.dirname(file).split("/")[::-1] for file in files]
    depth = min(map(len, folders))
    levels = [names for names in zip(*(parents[:depth] for parents in folders), strict=True) if len(set(names)) > 1]
    for names in levels:
        if len(set(names)) == len(names):
            return [_as_file_name(name) for name in names]
    # No folder alone tells all of them apart.
    return ["-".join(map(_as_file_name, parents)) for parents in zip(*levels[::-1], strict=True)] or [""] * len(files)


def _as_file_name(text: str) -> str:
    return re.sub(r"[/\\?#;,\s]+", "_", text).strip("._")
