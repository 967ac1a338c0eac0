"""Maps of scenes, to the files of an output and a STAC collection of all that lie there."""

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

RASTERS = {"probability": "probabilities", "mask": "masks"}
FORMATS = {
    "footprints": (".parquet", "application/vnd.apache.parquet"),
    "flatgeobuf": (".fgb", "application/vnd.flatgeobuf"),
    "geojson": (".geojson", "application/geo+json"),
}
COLLECTION = "collection.json"
_NAME, _MAKER = "buildings", "mapped by ocmlflow"


def check_output(output: str) -> None:
    """Raise InputError where an output holds a collection that `write_items` did not write, and would write over."""
    href = hrefs.join(output, COLLECTION)
    is_new = not hrefs.is_remote(output) and not hrefs.local_path(output).exists()
    try:
        if is_new or href not in hrefs.list_files(output):
            return
    except OSError as error:
        raise InputError(f"output={output} cannot be looked into: {error}") from error
    found = _json(href)
    if found.get("id") != _NAME or not str(found.get("description")).endswith(_MAKER):
        raise InputError(
            f"{href} is not of `predict`, and would be replaced by the collection of the results: give output= another "
            "folder"
        )


def move_files(scene: Scene, made: MapFiles, output: str) -> None:
    """Move a scene's files to the output."""
    files = {"probabilities": [made.probability], "masks": [made.mask]}
    if made.overview:
        files["overviews"] = [made.overview]
    if made.footprints:
        files["footprints"] = [
            made.footprints,
            *(made.footprints.with_suffix(suffix) for suffix in vector_files.DRIVERS),
        ]
    for folder, paths in files.items():
        for path in paths:
            hrefs.put(path, hrefs.join(output, folder, f"{scene.id}{path.suffix}"))


def stac_item(scene: Scene, made: MapFiles, *, model: str, threshold: int) -> dict[str, Any]:
    """What `move_files` leaves of a scene as a STAC item; `threshold` in percent."""
    cog = "image/tiff; application=geotiff; profile=cloud-optimized"
    assets = {name: (f"../{folder}/{scene.id}.tif", cog) for name, folder in RASTERS.items()}
    assets |= {name: (f"../footprints/{scene.id}{ending}", media) for name, (ending, media) in FORMATS.items()}
    if made.overview:
        assets["overview"] = (f"../overviews/{scene.id}.jpg", "image/jpeg")
    facts = {
        "ocmlflow:model": model,
        "ocmlflow:threshold": threshold / 100,
        "ocmlflow:buildings": made.buildings,
        "ocmlflow:building_area_m2": round(made.area_m2, 1),
        "ocmlflow:unreadable": [part.wkt for part in made.unreadable],
    }
    return stac_writer.build_item(scene.id, [scene], outline=made.outline, assets=assets, **facts)


def write_items(items: Iterable[dict[str, Any]], output: str, folder: Path) -> None:
    """Write items into an output, and the collection of all that lie there; `folder` is for files in the making.

    Several processes may do so at once: each looks, once its collection is written, whether it holds all that lie there
    by then, so that the last of them all sees to it. That asks for no lock, which S3 would not have.
    """
    for new in items:
        _write(stac_writer.link_to_collection(_NAME, new), hrefs.join(output, "items", f"{new['id']}.json"), folder)
    known: dict[str, dict[str, Any]] = {}
    while (filed := _filed(output)) != list(known):
        known = {href: known.get(href) or _json(href) for href in filed}
        members = [found for found in known.values() if found.get("collection") == _NAME]
        description = f"Buildings of {len(members)} scenes, {_MAKER}"
        made = stac_writer.build_collection(_NAME, members, description=description)
        _write(made, hrefs.join(output, COLLECTION), folder)


def _filed(output: str) -> list[str]:
    return [href for href in hrefs.list_files(hrefs.join(output, "items")) if href.endswith(".json")]


def _json(href: str) -> dict[str, Any]:
    """The object of a JSON file; empty, with a warning, where it holds none."""
    try:
        return dict(json.loads(hrefs.read(href)))
    except (ValueError, TypeError):
        log.warning("%s is no JSON object and is passed over", href)
        return {}


def _write(content: dict[str, Any], href: str, folder: Path) -> None:
    path = folder / "stac.new"
    path.write_text(json.dumps(content, indent=1))
    hrefs.put(path, href)
