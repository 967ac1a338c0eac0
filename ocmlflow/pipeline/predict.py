"""Maps the buildings of scenes: rasters, footprints, STAC items, and the submission of the challenge."""

import json
import logging
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Semaphore
from typing import Any

import pandas as pd

from ocmlflow import executors
from ocmlflow.pipeline import prediction_setup, scene_log, work_folder
from ocmlflow.pipeline.options import PredictOptions, parameters
from ocmlflow.pipeline.prediction_setup import PredictionSetup
from ocmlflow.prediction import output, scene_map, scene_tiles, submission
from ocmlflow.prediction.scene_map import MapFiles
from ocmlflow.progress import progress_bar, silent
from ocmlflow.scenes.catalog import Scene
from ocmlflow.storage import hrefs
from ocmlflow.tracking import run_artifacts, run_pages, runs

log = logging.getLogger(__name__)

PICTURES = 20
"""Scenes that get a picture in the run."""
AT_ONCE = 8
"""Scenes of many windows that a Dask cluster predicts at a time; their maps are drawn here."""
TOTALS = ("megapixels", "building_megapixels", "buildings", "building_area_m2", "seconds")
"""Figures of scenes that are added up for the run."""


@dataclass(frozen=True)
class SceneMap:
    """The map of a scene in the output, or why there is none."""

    scene: str
    """Id of the scene."""
    status: str
    """`predicted`, `outside aoi`, or `unreadable: ` and the reason."""
    probability: str | None = None
    """Path or address of a GeoTIFF, uint8: percent, rounded down, 255 where there is no imagery."""
    mask: str | None = None
    """Path or address of a GeoTIFF, uint8: 1 building, 0 not, 255 where there is no imagery."""
    footprints: str | None = None
    """Path or address of GeoParquet; None for an image without georeference. Beside it lie the other formats."""
    instances: str | None = None
    """Path or address of a GeoTIFF, uint32: row of the footprint in the GeoParquet file, from 1; None if not asked."""
    megapixels: float | None = None
    """Pixels with imagery, in millions."""
    building_megapixels: float | None = None
    buildings: int | None = None
    """Number of footprints."""
    building_area_m2: float | None = None
    """Area of the footprints."""
    unreadable: tuple[str, ...] = ()
    """Outlines (WKT, longitude and latitude) of what could not be read, and counts as no imagery."""
    seconds: float | None = None
    """Time that it took."""


def run(options: PredictOptions) -> list[SceneMap]:
    """The maps of all scenes that were asked for, in their order; none after a share of the work.

    What an interrupted call has finished is not predicted again.
    """
    if options.share:
        _predict_share(options, *options.share)
        return []
    with runs.run("predict", parameters(options)):
        work_folder.check_kept(options.output)
        work_folder.check_writable(options.output)
        setup = prediction_setup.set_up(options)
        runs.set_tags({"ocmlflow.model": setup.model_names, "ocmlflow.model.run": setup.models[0].facts.run})
        runs.log_metrics({"threshold_used": setup.settings.threshold / 100})
        scene_log.log_scenes(setup.scenes, options.images, context="inference", models=setup.models)
        with work_folder.hold(setup.folder) as folder:
            _map_all(setup, folder, options)
            marks = {name: _read_mark(folder, name) for name in setup.checks}
            _pack_submission(setup, folder)
            items = [mark["item"] for mark in marks.values() if mark["item"]]
            if items:
                output.write_items(items, setup.output, folder)
        maps = {name: SceneMap(scene=name, status=reason) for name, reason in setup.left_out.items()}
        maps |= {name: _scene_map(mark["map"]) for name, mark in marks.items()}
        found = [maps[scene.id] for scene in setup.scenes]
        _log(found, f"{len(found)} scenes of `{options.images}` by **{setup.model_names}**, in `{options.output}`")
        log.info("done: maps are in %s", hrefs.absolute(options.output))
        return found


def _predict_share(options: PredictOptions, number: int, of: int) -> None:
    """Predict one share of the windows; everything else is left to the run without `share`."""
    setup = prediction_setup.set_up(options)
    with work_folder.hold(setup.folder, shared=True) as folder:
        todo = [scene for scene in setup.todo if not _mark(folder, scene.id).exists()]
        plans = [scene_tiles.plan(scene, folder, settings=setup.settings) for scene in todo]
        parts = [part for plan in plans for part in scene_tiles.split(plan)][number::of]
        with executors.executor(options.workers, options.scheduler) as executor:
            work_folder.check_visible(folder, options.scheduler, executor)
            finish = partial(scene_tiles.predict_all, network=setup.network)
            for _ in progress_bar(executors.map_unordered(executor, finish, parts), len(parts), "predicting"):
                pass
    log.info("share %d/%d: %d windows predicted", number, of, sum(len(part.tiles) for part in parts))


def _map_all(setup: PredictionSetup, folder: Path, options: PredictOptions) -> None:
    """Map each scene; its files are in the output afterwards, and its mark in the work folder."""
    unfinished = [scene for scene in setup.todo if not _mark(folder, scene.id).exists()]
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    (folder / "chips").mkdir(exist_ok=True)
    if len(unfinished) < len(setup.todo):
        log.info("%d scenes are whole already", len(setup.todo) - len(unfinished))
        run_artifacts.log_folder(pictures, "pictures")
    with_picture = {scene.id for scene in setup.todo[:PICTURES]}
    maps = _maps(unfinished, setup, folder, options)
    for scene, files, seconds in progress_bar(maps, len(unfinished), "predicting"):
        if files.overview and scene.id in with_picture:
            picture = shutil.copyfile(files.overview, pictures / files.overview.name)
            run_artifacts.log_file(picture, "pictures")
        _finish(scene, files, seconds, setup, folder)


def _finish(scene: Scene, files: MapFiles, seconds: float, setup: PredictionSetup, folder: Path) -> None:
    """Move the files of a scene to the output, and mark it as whole."""
    item = None
    if files.footprints is None:  # kept beside the output, for the archive
        shutil.copyfile(files.mask, folder / "chips" / f"{scene.id}.tif")
    else:
        dated = replace(scene, acquired=setup.checks[scene.id].acquired)
        item = output.stac_item(dated, files, model=setup.model_names, threshold=setup.settings.threshold)
    output.move_files(scene, files, setup.output)
    result = _result(scene, files, seconds, setup.output)
    mark = _mark(folder, scene.id)
    new = mark.with_suffix(".new")
    new.write_text(json.dumps({"map": asdict(result), "item": item}))
    new.replace(mark)
    shutil.rmtree(files.tiles)  # last: whatever fails before, the windows need not be predicted again
    if files.unreadable:
        log.warning("scene %s: %d windows cannot be read and are left out", scene.id, len(files.unreadable))
    count = f"{files.buildings} buildings" if files.footprints else f"{result.building_megapixels:.2f} Mpx building"
    log.info("scene %s: %.2f Mpx, %s, %.1f s", scene.id, result.megapixels, count, seconds)


def _mark(folder: Path, name: str) -> Path:
    """The file that says that a scene's files are in the output, with its map and its STAC item."""
    return folder / f"{name}.json"


def _read_mark(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads(_mark(folder, name).read_text()))


def _scene_map(content: dict[str, Any]) -> SceneMap:
    return SceneMap(**{**content, "unreadable": tuple(content["unreadable"])})


def _result(scene: Scene, files: MapFiles, seconds: float, target: str) -> SceneMap:
    return SceneMap(
        scene=scene.id,
        status="predicted",
        probability=hrefs.join(target, "probabilities", f"{scene.id}.tif"),
        mask=hrefs.join(target, "masks", f"{scene.id}.tif"),
        footprints=hrefs.join(target, "footprints", f"{scene.id}.parquet") if files.footprints else None,
        instances=hrefs.join(target, "instances", f"{scene.id}.tif") if files.instances else None,
        megapixels=files.pixels / 1e6,
        building_megapixels=files.building_pixels / 1e6,
        buildings=files.buildings,
        building_area_m2=round(files.area_m2, 1),
        unreadable=tuple(outline.wkt for outline in files.unreadable),
        seconds=seconds,
    )


def _maps(
    scenes: list[Scene], setup: PredictionSetup, folder: Path, options: PredictOptions
) -> Iterator[tuple[Scene, MapFiles, float]]:
    """Each scene with its files, and the seconds that it took, as they come."""
    if options.workers == 1 and not options.scheduler:
        yield from (_timed(scene, setup, folder) for scene in scenes)
        return
    drawing = Semaphore(AT_ONCE if options.scheduler else options.workers)
    # The threads end after the executor: when one scene fails, what the others wait for is given up first.
    with (
        ThreadPoolExecutor(executors.MAX_PENDING) as threads,
        executors.executor(options.workers, options.scheduler) as executor,
    ):
        work_folder.check_visible(folder, options.scheduler, executor)
        spread = partial(_timed, setup=setup, folder=folder, executor=executor, drawing=drawing)
        yield from executors.map_unordered(threads, spread, scenes)


def _timed(
    scene: Scene,
    setup: PredictionSetup,
    folder: Path,
    executor: Executor | None = None,
    drawing: Semaphore | None = None,
) -> tuple[Scene, MapFiles, float]:
    """Map a scene; on an executor, all of it on one worker if it is small, else window by window, drawn here."""
    started = time.perf_counter()
    bar = silent if executor else progress_bar
    plan = scene_tiles.plan(scene, folder, settings=setup.settings)
    draw = partial(scene_map.map_scene, scene, setup.network, folder, settings=setup.settings, progress=bar, plan=plan)
    if not (executor and drawing):
        files = draw()
    elif len(plan.tiles) <= scene_tiles.TILES_PER_TASK:
        files = executor.submit(draw).result()
    else:
        with drawing:
            files = draw(executor=executor)
    return scene, files, time.perf_counter() - started


def _pack_submission(setup: PredictionSetup, folder: Path) -> None:
    """Pack the masks of images without georeference, checked, into the submission of the challenge."""
    chips = {name: (check.height, check.width) for name, check in setup.checks.items() if not check.is_georeferenced}
    if not chips:
        return
    masks = {path.stem: path for path in (folder / "chips").glob("*.tif")}
    submission.check(masks, chips)
    submission.pack(masks, folder / "submission.tgz")
    hrefs.put(folder / "submission.tgz", hrefs.join(setup.output, "submission.tgz"))
    log.info("submission of %d chips checked and packed", len(chips))


def _log(maps: list[SceneMap], description: str) -> None:
    """Log the table of scenes and its totals to the active run."""
    columns = ("scene", "status", "megapixels", "building_megapixels", "buildings", "building_area_m2", "unreadable")
    table = pd.DataFrame([asdict(one) for one in maps])[[*columns, "seconds"]]
    unreadable = int(table.status.str.startswith("unreadable").sum())
    run_artifacts.log_table(table.assign(unreadable=table.unreadable.map(list)), "scenes.json")
    runs.log_metrics({name: float(table[name].sum()) for name in TOTALS})
    runs.log_metrics(
        {
            "scenes": len(table),
            "unreadable_scenes": unreadable,
            "unreadable_windows": float(table.unreadable.str.len().sum()),
        }
    )
    runs.describe(description)
    places = " ".join(sorted(table.scene))
    run_pages.name_run("predict", places, score=f"{int(table.buildings.sum())} buildings")
