"""Moves the files of mapped scenes to an output, and keeps a STAC collection of all scenes there."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ocmlflow.errors import InputError
from ocmlflow.prediction import vector_files
from ocmlflow.prediction.scene_map import MapFiles
from ocmlflow.scenes import stac_writer
from ocmlflow.scenes.catalog import Scene
from ocmlflow.storage import hrefs

log = logging.getLogger(__name__)

RASTERS = {"probability": "probabilities", "mask": "masks", "instances": "instances"}
"""Folder of the output for each raster, by the name of its asset and of its path in `MapFiles`."""
FORMATS = {
    "footprints": (".parquet", "application/vnd.apache.parquet"),
    "flatgeobuf": (".fgb", "application/vnd.flatgeobuf"),
    "geojson": (".geojson", "application/geo+json"),
}
"""Suffix and media type of each format of footprints, by the name of its asset."""
COLLECTION = "collection.json"
_COLLECTION_ID = "buildings"
_SIGNATURE = "mapped by ocmlflow"
"""End of the description of collections that were written here."""


def check_output(output: str) -> None:
    """Raise InputError if an output holds a collection.json from another tool, which `write_items` would replace."""
    href = hrefs.join(output, COLLECTION)
    is_new = not hrefs.is_remote(output) and not hrefs.local_path(output).exists()
    try:
        if is_new or href not in hrefs.list_files(output):
            return
    except OSError as error:
        raise InputError(f"output={output} cannot be listed: {error}") from error
    collection = _read_json(href)
    is_own = str(collection.get("description")).endswith(_SIGNATURE)
    if collection.get("id") != _COLLECTION_ID or not is_own:
        raise InputError(
            f"{href} is not of `predict`, which would replace it by the collection of its results: "
            "set output= to another folder"
        )


def move_files(scene: Scene, files: MapFiles, output: str) -> None:
    """Move the files of a scene to the output, into a folder for each kind."""
    by_folder = {folder: [path] for name, folder in RASTERS.items() if (path := getattr(files, name))}
    if files.overview:
        by_folder["overviews"] = [files.overview]
    if files.footprints:
        copies = [files.footprints.with_suffix(suffix) for suffix in vector_files.DRIVERS]
        by_folder["footprints"] = [files.footprints, *copies]
    for folder, paths in by_folder.items():
        for path in paths:
            hrefs.put(path, hrefs.join(output, folder, f"{scene.id}{path.suffix}"))


def stac_item(scene: Scene, files: MapFiles, *, model: str, threshold: int) -> dict[str, Any]:
    """A STAC item of the files that `move_files` puts into an output; `threshold` in percent."""
    cog = "image/tiff; application=geotiff; profile=cloud-optimized"
    assets = {name: (f"../{folder}/{scene.id}.tif", cog) for name, folder in RASTERS.items() if getattr(files, name)}
    assets |= {name: (f"../footprints/{scene.id}{ending}", media) for name, (ending, media) in FORMATS.items()}
    if files.overview:
        assets["overview"] = (f"../overviews/{scene.id}.jpg", "image/jpeg")
    properties = {
        "ocmlflow:model": model,
        "ocmlflow:threshold": threshold / 100,
        "ocmlflow:buildings": files.buildings,
        "ocmlflow:building_area_m2": round(files.area_m2, 1),
        "ocmlflow:unreadable": [part.wkt for part in files.unreadable],
    }
    return stac_writer.build_item(scene.id, [scene], outline=files.outline, assets=assets, **properties)


def write_items(items: Iterable[dict[str, Any]], output: str, folder: Path) -> None:
    """Write STAC items into an output, and the collection of all items there; `folder` is for temporary files.

    Several processes may do so at once without a lock, which S3 does not have: each lists the items again after it has
    written the collection, and repeats until no item is new. So the last one to finish has them all.
    """
    for item in items:
        linked = stac_writer.link_to_collection(_COLLECTION_ID, item)
        _write(linked, hrefs.join(output, "items", f"{item['id']}.json"), folder)
    known: dict[str, dict[str, Any]] = {}
    while (listed := _list_items(output)) != list(known):
        known = {href: known.get(href) or _read_json(href) for href in listed}
        members = [item for item in known.values() if item.get("collection") == _COLLECTION_ID]
        description = f"Buildings of {len(members)} scenes, {_SIGNATURE}"
        collection = stac_writer.build_collection(_COLLECTION_ID, members, description=description)
        _write(collection, hrefs.join(output, COLLECTION), folder)


def _list_items(output: str) -> list[str]:
    return [href for href in hrefs.list_files(hrefs.join(output, "items")) if href.endswith(".json")]


def _read_json(href: str) -> dict[str, Any]:
    """The object in a JSON file; empty, with a warning, if it holds something else."""
    try:
        return dict(json.loads(hrefs.read(href)))
    except (ValueError, TypeError):
        log.warning("%s is not a JSON object and is ignored", href)
        return {}


def _write(content: dict[str, Any], href: str, folder: Path) -> None:
    path = folder / "stac.new"
    path.write_text(json.dumps(content, indent=1))
    hrefs.put(path, href)
