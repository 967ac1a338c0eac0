"""Gives scenes the label files that the option `labels` names, and tells of label files that no scene uses."""

import logging
import posixpath
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

from ocmlflow.errors import InputError
from ocmlflow.scenes import file_names, folders
from ocmlflow.scenes.asset_roles import LABEL_FILES
from ocmlflow.scenes.catalog import Scene
from ocmlflow.storage import hrefs

log = logging.getLogger(__name__)

MAX_NAMES = 10
"""Names that a message lists."""


def with_labels(scenes: list[Scene], sources: str) -> list[Scene]:
    """The scenes with the label files at `sources` (separated by commas) in place of those found with them.

    A file is for all scenes. In a folder, a file with the name of an image, or with a word such as `_labels` after it,
    is for that scene alone; where no file has such a name, all of them are for all scenes. Raises InputError where a
    folder cannot be read or holds no label file.
    """
    images = [file for scene in scenes for file in scene.files]
    for_all: list[str] = []
    by_image: dict[str, list[str]] = {image: [] for image in images}
    for source in filter(None, (part.strip() for part in sources.split(","))):
        files = _label_files(source) if folders.is_folder(source) else [source]
        named = file_names.pair(images, files) if folders.is_folder(source) else {}
        unused = [file for file in files if file not in chain(*named.values())]
        if len(unused) == len(files):
            for_all += files
        elif unused:
            log.warning("label files of %s that belong to no image are not used: %s", source, some_names(unused))
        for image, drawn in named.items():
            by_image[image] += drawn
    return [replace(scene, labels=(*for_all, *_labels_of(scene, by_image))) for scene in scenes]


def unused_files(scenes: list[Scene]) -> list[str]:
    """Label files that lie beside images or label files of scenes from folders, and that no scene uses."""
    used = {href for scene in scenes for href in scene.labels}
    ours = [href for scene in scenes if not scene.item for href in (*(scene.tiles or [scene.image]), *scene.labels)]
    found: list[str] = []
    for folder in sorted({posixpath.dirname(href) for href in ours}):
        try:
            found += [file for file in hrefs.list_files(folder or ".") if _is_label_file(file)]
        except OSError:  # over https, folders cannot be listed
            continue
    return [file for file in found if file not in used]


def some_names(files: Iterable[str]) -> str:
    """The names of some files, without their folders, for messages."""
    names = [posixpath.basename(file) for file in files]
    return ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")


def _labels_of(scene: Scene, by_image: dict[str, list[str]]) -> list[str]:
    """The label files of the image's own name, else those of its tiles."""
    return by_image[scene.image] or list(dict.fromkeys(file for tile in scene.tiles for file in by_image[tile]))


def _label_files(folder: str) -> list[str]:
    try:
        files = hrefs.list_files(folder)
    except OSError as error:
        raise InputError(f"labels={folder} cannot be listed: {error}; give the addresses of the files") from error
    found = [file for file in files if _is_label_file(file)]
    if not found:
        raise InputError(f"labels={folder} holds no label file ({', '.join(LABEL_FILES)})")
    return found


def _is_label_file(file: str) -> bool:
    name = posixpath.basename(file)
    return posixpath.splitext(name)[1].lower() in LABEL_FILES and not name.startswith(".")
