"""Buildings of any scenes, by a registered model: rasters, footprints, and the challenge's submission."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrypoints import MODEL_NAME, check_writable, in_the_making, number, parser, progress, start, switch, whole

if TYPE_CHECKING:
    import pandas as pd

    from ocmlflow.catalog import Scene
    from ocmlflow.inference import Predict
    from ocmlflow.maps import Look, Map, Settings
    from ocmlflow.tracking import Model

log = logging.getLogger(__name__)

PICTURES = 20
"""Scenes that get a picture in the run."""
FORMATS = {
    "footprints": "application/vnd.apache.parquet",
    "flatgeobuf": "application/vnd.flatgeobuf",
    "geojson": "application/geo+json",
}


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The verb's parameters and their defaults."""
    p = parser("predict", "Map the buildings of scenes with a registered model.")
    p.add_argument("--images", required=True, help="STAC file, GeoTIFF, folder or glob of GeoTIFFs; several, by commas")
    p.add_argument("--output", required=True, help="folder or s3:// address for the results")
    p.add_argument(
        "--model",
        default=f"models:/{MODEL_NAME}@champion",
        help="models:/NAME@ALIAS or models:/NAME/1; if several, by commas, then the mean of their predictions",
    )
    p.add_argument("--threshold", type=number(0.01, 0.99), default=None, help="the model's own if not given")
    p.add_argument("--aoi", default=None, help="GeoJSON file: what lies outside its polygons is left out")
    p.add_argument("--grid", choices=("own", "model"), default="own", help="of the results: the scene's or the model's")
    p.add_argument(
        "--chip_gsd",
        type=number(0.01, 10),
        default=None,
        help="metres per pixel of images without a georeference; the model's own if not given",
    )
    p.add_argument("--tta", choices=("none", "flips", "d4"), default="none", help="mean of 1, 4 or 8 views")
    p.add_argument("--engine", choices=("auto", "keras", "openvino"), default="auto", help=_ENGINE)
    p.add_argument("--size", type=whole(64, 8192), default=2048, help="pixels along a side of a window")
    p.add_argument("--margin", type=whole(0), default=160, help="pixels of context seen beyond what is kept")
    p.add_argument("--batch_size", type=whole(1), default=1, help="windows at once")
    p.add_argument("--min_area_m2", type=number(0), default=2.0, help="least area of a footprint")
    p.add_argument(
        "--skip_unreadable", type=switch, default=False, help="what cannot be read counts as no imagery, and is listed"
    )
    p.add_argument("--work", default=".ocmlflow", help="folder for results in the making; kept if interrupted")
    args = p.parse_args(words)
    if args.size % 32:
        p.error(f"argument --size: must be a multiple of 32, got {args.size}")
    if 2 * args.margin > args.size - 32:
        p.error(f"argument --margin: must be at most {args.size // 2 - 16} at a size of {args.size}, got {args.margin}")
    return args


_ENGINE = "what runs the network; auto is openvino where it is installed and there is no GPU"


@dataclass(frozen=True)
class _Task:
    """What a run has to do."""

    scenes: list[Scene]
    looks: dict[str, Look]  # of those that can be read
    predict: Predict
    settings: Settings
    models: list[Model]
    output: str
    folder: Path


def main(args: argparse.Namespace) -> pd.DataFrame:
    """Does it all; returns a row of figures for each scene."""
    import mlflow
    import pandas as pd

    from ocmlflow import catalog, tracking

    with tracking.run("predict", vars(args)):
        scenes = catalog.images(args.images)
        check_writable(args.output)
        models = [tracking.load_model(uri.strip()) for uri in args.model.split(",")]
        settings = _settings(args, models)
        looks, rows = _look(scenes, settings)
        mlflow.set_tags({"ocmlflow.model": _names(models), "ocmlflow.model.run": models[0].facts["run"]})
        mlflow.log_metric("threshold_used", settings.threshold / 100)
        predict = _network(models, args)
        with in_the_making(Path(args.work) / "predict" / _key(scenes, models, settings, args)) as folder:
            task = _Task(scenes, looks, predict, settings, models, args.output, folder)
            rows |= _draw(task)
            _submit(task)
            _file(task)
        table = pd.DataFrame([rows[scene.id] for scene in scenes])
        _log(table, f"{len(table)} scenes of `{args.images}` by **{_names(models)}**, in `{args.output}`")
    return table


def _settings(args: argparse.Namespace, models: list[Model]) -> Settings:
    """How scenes are predicted; InputError where the models of an ensemble do not go together."""
    from ocmlflow import catalog, maps
    from ocmlflow.errors import InputError

    if len({model.facts["gsd"] for model in models}) > 1:
        found = ", ".join(f"{model} at {model.facts['gsd']} m" for model in models)
        raise InputError(f"the models of an ensemble must work at one resolution: {found} per pixel")
    gsd = models[0].facts["gsd"]
    own = round(sum(model.threshold for model in models) / len(models))
    return maps.Settings(
        gsd=gsd,
        multiple=max(model.facts["multiple"] for model in models),
        size=args.size,
        margin=args.margin,
        batch_size=args.batch_size,
        threshold=round(100 * args.threshold) if args.threshold else own,
        min_area_m2=args.min_area_m2,
        chip_gsd=args.chip_gsd or gsd,
        on_own_grid=args.grid == "own",
        aoi=catalog.area(args.aoi) if args.aoi else None,
        skip_unreadable=args.skip_unreadable,
    )


def _look(scenes: list[Scene], settings: Settings) -> tuple[dict[str, Look], dict[str, dict[str, Any]]]:
    """What is known of each scene that can be predicted, and a row of the table for each that is left out."""
    from ocmlflow import maps, storage
    from ocmlflow.errors import InputError

    looks: dict[str, Look] = {}
    rows: dict[str, dict[str, Any]] = {}
    for scene in progress(scenes, len(scenes), "checking"):
        try:
            look = maps.check(scene, settings=settings)
        except InputError as error:
            if not settings.skip_unreadable:
                raise
            rows[scene.id] = {"scene": scene.id, "status": storage.public(f"unreadable: {error}")}
            log.warning("scene %s left out: %s", scene.id, rows[scene.id]["status"])
            continue
        if look.inside:
            looks[scene.id] = look
        else:
            rows[scene.id] = {"scene": scene.id, "status": "outside aoi"}
    if not looks:
        reasons = "; ".join(f"{row['scene']} is {row['status']}" for row in list(rows.values())[:3])
        raise InputError(f"no scene can be predicted: {reasons}")
    return looks, rows


def _network(models: list[Model], args: argparse.Namespace) -> Predict:
    """The mean of the models, each calibrated, seeing what `tta` says."""
    from ocmlflow import engine, inference

    found = []
    for model in models:
        predict, name = engine.predict(
            model.keras, engine=args.engine, multiple=model.facts["multiple"], folder=Path(args.work)
        )
        log.info("%s runs on %s", model, name)
        found.append(inference.calibrated(predict, model.temperature))
    return inference.averaged(found, args.tta)


def _key(scenes: list[Scene], models: list[Model], settings: Settings, args: argparse.Namespace) -> str:
    """Names inputs, models, parameters and code: equal keys make equal files in one place."""
    from ocmlflow import storage, tracking

    made_by = [f"{model} {model.facts['run']} {model.temperature}" for model in models]
    seen = [f"{scene.id} {scene.image} {_fingerprint(scene.image)}" for scene in scenes]
    where = [args.tta, args.engine, storage.absolute(args.output)]
    return storage.digest(tracking.code_digest(), repr(settings), *where, *made_by, *seen)


def _fingerprint(href: str) -> str:
    from ocmlflow import storage

    try:
        return storage.fingerprint(href)
    except OSError:  # one of those left out
        return "missing"


def _draw(task: _Task) -> dict[str, dict[str, Any]]:
    """A row of figures for each scene, whose files lie in the output afterwards.

    A scene that is whole from a call that was interrupted is not made again.
    """
    rows = {}
    todo = [scene for scene in task.scenes if scene.id in task.looks]
    for done, scene in enumerate(progress(todo, len(todo), "predicting")):
        mark = task.folder / f"{scene.id}.json"
        if mark.exists():
            log.info("scene %s: whole already", scene.id)
        else:
            row, item = _draw_scene(task, scene, with_picture=done < PICTURES)
            new = mark.with_suffix(".new")
            new.write_text(json.dumps({"row": row, "item": item}))
            new.replace(mark)
        rows[scene.id] = json.loads(mark.read_text())["row"]
    return rows


def _draw_scene(task: _Task, scene: Scene, *, with_picture: bool) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A scene's row of figures and, if it says where it lies, its STAC item."""
    import mlflow

    from ocmlflow import maps

    started = time.perf_counter()
    made = maps.draw(scene, task.predict, task.folder, settings=task.settings, progress=progress)
    if with_picture and not made.unreadable:
        mlflow.log_image(maps.overview(scene, made), f"pictures/{scene.id}.jpg")
    row = {
        "scene": scene.id,
        "status": "predicted",
        "megapixels": made.pixels / 1e6,
        "building_megapixels": made.building_pixels / 1e6,
        "buildings": made.buildings,
        "building_area_m2": round(made.area_m2, 1),
        "unreadable": [part.wkt for part in made.unreadable],
    }
    if made.unreadable:
        log.warning("scene %s: %d windows cannot be read and are left out", scene.id, len(made.unreadable))
    item = None if made.footprints is None else _item(task, scene, made)
    if made.footprints is None:  # kept beside the output, for the archive
        (task.folder / "chips").mkdir(exist_ok=True)
        shutil.copyfile(made.mask, task.folder / "chips" / f"{scene.id}.tif")
    _put(scene, made, task)
    row["seconds"] = time.perf_counter() - started
    log.info("scene %s: %.2f Mpx, %d buildings, %.1f s", scene.id, row["megapixels"], row["buildings"], row["seconds"])
    return row, item


def _put(scene: Scene, made: Map, task: _Task) -> None:
    """Move a scene's files to the output."""
    from ocmlflow import storage, vector

    if made.footprints is not None:
        for suffix in vector.DRIVERS:
            path = made.footprints.with_suffix(suffix)
            path.unlink(missing_ok=True)
            vector.convert(made.footprints, path)
            storage.put(path, storage.join(task.output, "footprints", path.name))
        storage.put(made.footprints, storage.join(task.output, "footprints", made.footprints.name))
    storage.put(made.probability, storage.join(task.output, "probabilities", f"{scene.id}.tif"))
    storage.put(made.mask, storage.join(task.output, "masks", f"{scene.id}.tif"))


def _item(task: _Task, scene: Scene, made: Map) -> dict[str, Any]:
    """The results of a scene as a STAC item."""
    from ocmlflow import catalog

    cog = "image/tiff; application=geotiff; profile=cloud-optimized"
    assets = {name: (f"../{folder}/{scene.id}.tif", cog) for name, folder in _RASTERS.items()}
    endings = (".parquet", ".fgb", ".geojson")
    for (name, media), ending in zip(FORMATS.items(), endings, strict=True):
        assets[name] = (f"../footprints/{scene.id}{ending}", media)
    facts = {
        "ocmlflow:model": _names(task.models),
        "ocmlflow:threshold": task.settings.threshold / 100,
        "ocmlflow:buildings": made.buildings,
        "ocmlflow:building_area_m2": round(made.area_m2, 1),
        "ocmlflow:unreadable": [part.wkt for part in made.unreadable],
    }
    return catalog.dataset(scene.id, [scene], outline=made.outline, assets=assets, **facts)


_RASTERS = {"probability": "probabilities", "mask": "masks"}


def _submit(task: _Task) -> None:
    """Pack the masks of the images that do not say where they lie, checked, into the challenge's submission."""
    from ocmlflow import storage, submission

    chips = {name: (look.height, look.width) for name, look in task.looks.items() if not look.placed}
    if not chips:
        return
    masks = {path.stem: path for path in (task.folder / "chips").glob("*.tif")}
    submission.check(masks, chips)
    submission.pack(masks, task.folder / "submission.tgz")
    storage.put(task.folder / "submission.tgz", storage.join(task.output, "submission.tgz"))
    log.info("submission of %d chips checked and packed", len(chips))


def _file(task: _Task) -> None:
    """Write the STAC items of the scenes, and the collection of them and of those that lay there before."""
    from ocmlflow import catalog, storage

    marks = [task.folder / f"{name}.json" for name, look in task.looks.items() if look.placed]
    items = {item["id"]: item for item in (json.loads(mark.read_text())["item"] for mark in marks)}
    if not items:
        return
    items = _filed(task.output) | items
    description = f"Buildings of {len(items)} scenes, mapped by ocmlflow"
    made = catalog.collection("buildings", list(items.values()), description=description)
    files = {f"items/{name}.json": item for name, item in items.items()} | {"collection.json": made}
    for name, content in files.items():
        path = task.folder / "stac.new"
        path.write_text(json.dumps(content, indent=1))
        storage.put(path, storage.join(task.output, name))


def _filed(output: str) -> dict[str, dict[str, Any]]:
    """The items of the collection that lies in the output already, by their ids."""
    from ocmlflow import storage

    try:
        links = json.loads(storage.read(storage.join(output, "collection.json")))["links"]
    except FileNotFoundError:
        return {}
    hrefs = [link["href"] for link in links if link["rel"] == "item"]
    found = [json.loads(storage.read(storage.join(output, href.removeprefix("./")))) for href in hrefs]
    return {item["id"]: item for item in found}


def _log(table: pd.DataFrame, what: str) -> None:
    import mlflow

    from ocmlflow import tracking

    figures = ("megapixels", "building_megapixels", "buildings", "building_area_m2", "seconds")
    mlflow.log_table(table.astype(object).where(table.notna(), None), "scenes.json")
    mlflow.log_metrics({name: float(table[name].sum()) for name in figures} | {"scenes": len(table)})
    unreadable = int(table.status.str.startswith("unreadable").sum())
    mlflow.log_metrics({"unreadable_scenes": unreadable, "unreadable_windows": float(table.unreadable.str.len().sum())})
    tracking.describe(what)


def _names(models: list[Model]) -> str:
    return ", ".join(map(str, models))


if __name__ == "__main__":
    start(main, parse())
