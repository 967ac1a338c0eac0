"""Buildings of any scenes, by a registered model: rasters, footprints, and the challenge's submission."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Semaphore
from typing import TYPE_CHECKING, Any

from entrypoints import (
    MODEL_NAME,
    check_seen,
    check_writable,
    in_the_making,
    number,
    parser,
    progress,
    share,
    start,
    switch,
    whole,
)

if TYPE_CHECKING:
    import pandas as pd

    from ocmlflow.prediction.engine import Ensemble
    from ocmlflow.prediction.preflight import SceneCheck
    from ocmlflow.prediction.scene_map import SceneMap
    from ocmlflow.prediction.scene_tiles import MapSettings
    from ocmlflow.scenes.catalog import Scene
    from ocmlflow.tracking.registry import Model

log = logging.getLogger(__name__)

PICTURES = 20
"""Scenes that get a picture in the run."""
AT_ONCE = 8
"""Scenes of many windows that a Dask cluster predicts at a time; their maps are drawn here."""


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
    p.add_argument("--size", type=whole(64, 8192), default=1184, help="pixels along a side of a window")
    p.add_argument("--margin", type=whole(0), default=160, help="pixels of context seen beyond what is kept")
    p.add_argument("--batch_size", type=whole(1), default=1, help="windows at once")
    p.add_argument("--min_area_m2", type=number(0), default=2.0, help="least area of a footprint")
    p.add_argument("--squared", type=switch, default=False, help="right-angled footprints; the masks stay as they are")
    p.add_argument(
        "--skip_unreadable", type=switch, default=False, help="what cannot be read counts as no imagery, and is listed"
    )
    p.add_argument(
        "--share",
        type=share,
        default=None,
        help="I/N, I from 0: predict that part of the windows alone, into a work folder that all parts see; a run "
        "without it, over the same folder, then makes the maps",
    )
    p.add_argument("--workers", type=whole(1), default=1, help=_WORKERS)
    p.add_argument("--scheduler", default=None, help="tcp://HOST:8786 of a Dask cluster to work in place of them")
    p.add_argument("--work", default=".ocmlflow", help="folder for results in the making; kept if interrupted")
    args = p.parse_args(words)
    if args.size % 32:
        p.error(f"argument --size: must be a multiple of 32, got {args.size}")
    if 2 * args.margin > args.size - 32:
        p.error(f"argument --margin: must be at most {args.size // 2 - 16} at a size of {args.size}, got {args.margin}")
    return args


_WORKERS = "processes of this machine that share its cores; one alone uses them all"
_ENGINE = "what runs the network; auto is openvino where it is installed and there is no GPU"


@dataclass(frozen=True)
class _Task:
    """What a run has to do."""

    scenes: list[Scene]
    looks: dict[str, SceneCheck]  # of those that can be read
    network: Ensemble
    settings: MapSettings
    models: list[Model]
    output: str
    folder: Path


def main(args: argparse.Namespace) -> pd.DataFrame | None:
    """Does it all; returns a row of figures for each scene, or None after a share of it."""
    from ocmlflow.errors import InputError
    from ocmlflow.prediction import output
    from ocmlflow.scenes import catalog
    from ocmlflow.tracking import runs

    if args.share:
        _predict_share(args)
        return None
    with runs.run("predict", vars(args)):
        if args.squared and not importlib.util.find_spec("buildingregulariser"):
            raise InputError('squared=true needs the extra: pip install -e ".[squared]"')
        scenes = catalog.find_images(args.images)
        check_writable(args.output)
        output.check_output(args.output)
        models, settings = _models(args)
        return _map(scenes, models, settings, args)


def _predict_share(args: argparse.Namespace) -> None:
    """Predict one share of the windows, and leave all else to the run without `share`."""
    from ocmlflow import executors
    from ocmlflow.prediction import output, scene_tiles
    from ocmlflow.scenes import catalog

    scenes = catalog.find_images(args.images)
    output.check_output(args.output)  # the run that makes the maps would refuse
    models, settings = _models(args)
    looks, _ = _look(scenes, settings)
    network = _network(models, args)
    share, of = args.share
    with in_the_making(_folder(scenes, models, settings, args), shared=True) as folder:
        todo = [scene for scene in scenes if scene.id in looks and not _mark(folder, scene.id).exists()]
        plans = [scene_tiles.plan(scene, folder, settings=settings) for scene in todo]
        runs = [run for plan in plans for run in scene_tiles.split(plan)][share::of]
        with executors.executor(args.workers, args.scheduler) as executor:
            check_seen(folder, args.scheduler, executor)
            for _ in progress(
                executors.map_unordered(executor, partial(scene_tiles.predict_all, network=network), runs),
                len(runs),
                "predicting",
            ):
                pass
    log.info("share %d/%d: %d windows predicted", share, of, sum(len(run.tiles) for run in runs))


def _map(scenes: list[Scene], models: list[Model], settings: MapSettings, args: argparse.Namespace) -> pd.DataFrame:
    """Predict, draw and file all scenes, in the open run."""
    import mlflow
    import pandas as pd

    from ocmlflow.prediction import output

    looks, rows = _look(scenes, settings)
    mlflow.set_tags({"ocmlflow.model": _names(models), "ocmlflow.model.run": models[0].facts.run})
    mlflow.log_metric("threshold_used", settings.threshold / 100)
    network = _network(models, args)
    with in_the_making(_folder(scenes, models, settings, args)) as folder:
        task = _Task(scenes, looks, network, settings, models, args.output, folder)
        rows |= _draw(task, args)
        _submit(task)
        items = [item for item in (_marked(folder, name)["item"] for name in looks) if item]
        if items:
            output.write_items(items, args.output, folder)
    table = pd.DataFrame([rows[scene.id] for scene in scenes])
    _log(table, f"{len(table)} scenes of `{args.images}` by **{_names(models)}**, in `{args.output}`")
    return table


def _models(args: argparse.Namespace) -> tuple[list[Model], MapSettings]:
    from ocmlflow.tracking import registry

    models = [registry.load_model(uri.strip()) for uri in args.model.split(",")]
    return models, _settings(args, models)


def _folder(scenes: list[Scene], models: list[Model], settings: MapSettings, args: argparse.Namespace) -> Path:
    return Path(args.work) / "predict" / _key(scenes, models, settings, args)


def _settings(args: argparse.Namespace, models: list[Model]) -> MapSettings:
    """How scenes are predicted; InputError where the models of an ensemble do not go together."""
    from ocmlflow.errors import InputError
    from ocmlflow.prediction.scene_tiles import MapSettings
    from ocmlflow.scenes import catalog

    if len({model.facts.gsd for model in models}) > 1:
        found = ", ".join(f"{model} at {model.facts.gsd} m" for model in models)
        raise InputError(f"the models of an ensemble must work at one resolution: {found} per pixel")
    gsd = models[0].facts.gsd
    own = round(sum(model.threshold for model in models) / len(models))
    return MapSettings(
        gsd=gsd,
        multiple=max(model.facts.multiple for model in models),
        size=args.size,
        margin=args.margin,
        batch_size=args.batch_size,
        threshold=round(100 * args.threshold) if args.threshold else own,
        min_area_m2=args.min_area_m2,
        chip_gsd=args.chip_gsd or gsd,
        on_own_grid=args.grid == "own",
        aoi=catalog.read_area(args.aoi) if args.aoi else None,
        squared=args.squared,
        skip_unreadable=args.skip_unreadable,
    )


def _look(scenes: list[Scene], settings: MapSettings) -> tuple[dict[str, SceneCheck], dict[str, dict[str, Any]]]:
    """What is known of each scene that can be predicted, and a row of the table for each that is left out."""
    from ocmlflow import redaction
    from ocmlflow.errors import InputError
    from ocmlflow.prediction import preflight

    looks: dict[str, SceneCheck] = {}
    rows: dict[str, dict[str, Any]] = {}
    for scene in progress(scenes, len(scenes), "checking"):
        try:
            look = preflight.check(scene, settings=settings)
        except InputError as error:
            if not settings.skip_unreadable:
                raise
            rows[scene.id] = {"scene": scene.id, "status": redaction.redact(f"unreadable: {error}")}
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


def _network(models: list[Model], args: argparse.Namespace) -> Ensemble:
    """The mean of the models, each calibrated, seeing what `tta` says."""
    from ocmlflow.prediction import engine
    from ocmlflow.prediction.engine import Ensemble
    from ocmlflow.tracking import registry

    folder = Path(args.work).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        members = tuple(
            engine.prepare_member(
                partial(registry.keras_file, model, Path(scratch)),
                model.key,
                engine=args.engine,
                multiple=model.facts.multiple,
                temperature=model.temperature,
                folder=folder,
            )
            for model in models
        )
    for model, member in zip(models, members, strict=True):
        log.info("%s runs on %s", model, member.engine)
    return Ensemble(members, args.tta)


def _key(scenes: list[Scene], models: list[Model], settings: MapSettings, args: argparse.Namespace) -> str:
    """Names inputs, models, parameters and code: equal keys make equal files in one place."""
    import shapely

    from ocmlflow.storage import hrefs
    from ocmlflow.tracking import provenance

    # An area's repr is rounded and cut.
    how = repr(replace(settings, aoi=None)), str(shapely.to_wkb(settings.aoi, hex=True))
    made_by = [f"{model} {model.facts.run} {model.temperature}" for model in models]
    seen = [f"{scene.id} {scene.image} {_fingerprint(scene.image)}" for scene in scenes]
    where = [args.tta, args.engine, hrefs.absolute(args.output)]
    return hrefs.digest(provenance.code_digest(), *how, *where, *made_by, *seen)


def _fingerprint(href: str) -> str:
    from ocmlflow.storage import hrefs

    try:
        return hrefs.fingerprint(href)
    except OSError:  # one of those left out
        return "missing"


def _draw(task: _Task, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """A row of figures for each scene, whose files lie in the output afterwards.

    A scene that is whole from a call that was interrupted is not made again.
    """
    import mlflow

    from ocmlflow.prediction import output

    todo = [scene for scene in task.scenes if scene.id in task.looks]
    left = [scene for scene in todo if not _mark(task.folder, scene.id).exists()]
    with_picture = {scene.id for scene in todo[:PICTURES]}
    pictures, chips = (task.folder / name for name in ("pictures", "chips"))
    for kept in (pictures, chips):
        kept.mkdir(exist_ok=True)
    if len(left) < len(todo):
        log.info("%d scenes are whole already", len(todo) - len(left))
        mlflow.log_artifacts(str(pictures), "pictures")
    for scene, made, seconds in progress(_maps(left, task, args), len(left), "predicting"):
        if made.overview and scene.id in with_picture:
            picture = shutil.copyfile(made.overview, pictures / made.overview.name)
            mlflow.log_artifact(str(picture), "pictures")
        row: dict[str, Any] = _row(scene, made) | {"seconds": seconds}
        item = None
        if made.footprints is None:  # kept beside the output, for the archive
            shutil.copyfile(made.mask, chips / f"{scene.id}.tif")
        else:
            dated = replace(scene, acquired=task.looks[scene.id].acquired)
            item = output.stac_item(dated, made, model=_names(task.models), threshold=task.settings.threshold)
        output.move_files(scene, made, task.output)
        mark = _mark(task.folder, scene.id)
        new = mark.with_suffix(".new")
        new.write_text(json.dumps({"row": row, "item": item}))
        new.replace(mark)
        shutil.rmtree(made.tiles)  # not before: whatever fails till here, the network has done its part
        found = f"{row['building_megapixels']:.2f} Mpx building"
        if made.footprints is not None:
            found = f"{made.buildings} buildings"
        log.info("scene %s: %.2f Mpx, %s, %.1f s", scene.id, row["megapixels"], found, seconds)
    return {scene.id: _marked(task.folder, scene.id)["row"] for scene in todo}


def _mark(folder: Path, name: str) -> Path:
    """What says that a scene's files lie in the output, with its row of the table and its item."""
    return folder / f"{name}.json"


def _marked(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads(_mark(folder, name).read_text()))


def _maps(scenes: list[Scene], task: _Task, args: argparse.Namespace) -> Iterator[tuple[Scene, SceneMap, float]]:
    """Each scene with its map, and the seconds that it took, as they come."""
    from ocmlflow import executors

    if args.workers == 1 and not args.scheduler:
        yield from (_timed(scene, task, None) for scene in scenes)
        return
    drawing = Semaphore(AT_ONCE if args.scheduler else args.workers)
    # The threads end after the executor: when one scene fails, what the others wait for is given up first.
    with (
        ThreadPoolExecutor(executors.MAX_PENDING) as threads,
        executors.executor(args.workers, args.scheduler) as executor,
    ):
        check_seen(task.folder, args.scheduler, executor)
        spread = partial(_timed, task=task, executor=executor, drawing=drawing)
        yield from executors.map_unordered(threads, spread, scenes)


def _timed(
    scene: Scene, task: _Task, executor: Executor | None, drawing: Semaphore | None = None
) -> tuple[Scene, SceneMap, float]:
    """Map a scene; on an executor, all of it on one worker if it is small, else window by window, drawn here."""
    from ocmlflow.prediction import scene_map, scene_tiles
    from ocmlflow.progress import silent

    started = time.perf_counter()
    bar = silent if executor else progress
    draw = partial(scene_map.map_scene, scene, task.network, task.folder, settings=task.settings, progress=bar)
    if not (executor and drawing):
        made = draw()
    elif len(scene_tiles.plan(scene, task.folder, settings=task.settings).tiles) <= scene_tiles.TILES_PER_TASK:
        made = executor.submit(draw).result()
    else:
        with drawing:
            made = draw(executor=executor)
    return scene, made, time.perf_counter() - started


def _row(scene: Scene, made: SceneMap) -> dict[str, Any]:
    """A scene's row of the table, but for the time that it took."""
    if made.unreadable:
        log.warning("scene %s: %d windows cannot be read and are left out", scene.id, len(made.unreadable))
    return {
        "scene": scene.id,
        "status": "predicted",
        "megapixels": made.pixels / 1e6,
        "building_megapixels": made.building_pixels / 1e6,
        "buildings": made.buildings,
        "building_area_m2": round(made.area_m2, 1),
        "unreadable": [part.wkt for part in made.unreadable],
    }


def _submit(task: _Task) -> None:
    """Pack the masks of the images that do not say where they lie, checked, into the challenge's submission."""
    from ocmlflow.prediction import submission
    from ocmlflow.storage import hrefs

    chips = {name: (look.height, look.width) for name, look in task.looks.items() if not look.placed}
    if not chips:
        return
    masks = {path.stem: path for path in (task.folder / "chips").glob("*.tif")}
    submission.check(masks, chips)
    submission.pack(masks, task.folder / "submission.tgz")
    hrefs.put(task.folder / "submission.tgz", hrefs.join(task.output, "submission.tgz"))
    log.info("submission of %d chips checked and packed", len(chips))


def _log(table: pd.DataFrame, what: str) -> None:
    import mlflow

    from ocmlflow.tracking import runs

    figures = ("megapixels", "building_megapixels", "buildings", "building_area_m2", "seconds")
    mlflow.log_table(table.astype(object).where(table.notna(), None), "scenes.json")
    mlflow.log_metrics({name: float(table[name].sum()) for name in figures} | {"scenes": len(table)})
    unreadable = int(table.status.str.startswith("unreadable").sum())
    mlflow.log_metrics({"unreadable_scenes": unreadable, "unreadable_windows": float(table.unreadable.str.len().sum())})
    runs.describe(what)


def _names(models: list[Model]) -> str:
    return ", ".join(map(str, models))


if __name__ == "__main__":
    start(main, parse())
