"""Cuts labelled scenes into chips, splits them by ground, and logs them to a run."""

import functools
import logging
import shutil
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pandas as pd
from geopandas import GeoDataFrame

from ocmlflow import executors
from ocmlflow.chips import chip_set, cutting, drawn_buildings, figures, label_files, splits, summary
from ocmlflow.chips.chip_set import ChipSet
from ocmlflow.errors import InputError
from ocmlflow.pipeline import chip_plan, scene_log, work_folder
from ocmlflow.pipeline.chip_plan import ChipPlan
from ocmlflow.pipeline.options import PrepareOptions, parameters
from ocmlflow.progress import progress_bar
from ocmlflow.redaction import redact
from ocmlflow.scenes import sidecars
from ocmlflow.scenes.catalog import Scene
from ocmlflow.storage import hrefs
from ocmlflow.tracking import chip_artifacts, provenance, run_artifacts, run_pages, run_search, runs
from ocmlflow.tracking.runs import Run

log = logging.getLogger(__name__)

UNREADABLE = "unreadable_scenes"
"""Metric of a run: scenes that were left out because they could not be read."""


def run(options: PrepareOptions) -> ChipSet | None:
    """Chips and their index, logged as artifact `chips` of a run; None after a dry run or a share of the work.

    Where a finished run has made the same chips, and they are all there, nothing is cut: its chips are returned. A run
    that was interrupted is continued.
    """
    if options.dry_run:
        with executors.executor(options.workers, options.scheduler) as executor:
            chip_plan.print_plan(chip_plan.make(chip_plan.labelled_scenes(options), options, executor), options.size)
        return None
    if options.share:
        _cut_share(options, *options.share)
        return None
    try:
        scenes = chip_plan.labelled_scenes(options)
        cut_key = _cut_key(options, scenes)
    except Exception:
        with runs.run("prepare", parameters(options)):  # shows the error on its page
            raise
    with work_folder.hold(Path(options.work) / "prepare" / cut_key) as folder:
        tags = {runs.KEY: _key(options, cut_key), runs.PLACE: f"{socket.gethostname()}:{folder}"}
        earlier = _earlier_run(tags)
        if earlier and earlier.info.status == "FINISHED" and chip_artifacts.is_complete(earlier.info.run_id):
            log.info("run %s made these chips, and they are all there: nothing is cut or sent", earlier.info.run_id)
            runs.refer_to(earlier)
            run_search.renew_end_time(earlier)
            return chip_artifacts.open_chips(earlier.info.run_id)
        with (
            runs.run("prepare", parameters(options), resume=earlier) as active,
            executors.executor(options.workers, options.scheduler) as executor,
        ):
            runs.identify(tags)
            scene_log.log_scenes(scenes, options.catalog, context="preparation")
            runs.set_tags({chip_artifacts.LICENCES: ", ".join(sorted({scene.licence for scene in scenes} - {""}))})
            work_folder.check_visible(folder, options.scheduler, executor)
            plan = chip_plan.make(scenes, options, executor)
            index = _cut(plan, folder, options, executor)
            chips, dropped = _split_and_save(index, plan, folder, options)
            _log(chips, folder, pd.DataFrame(plan.table.values()), dropped)
        return chip_artifacts.open_chips(active.info.run_id)


def key(options: PrepareOptions) -> str:
    """Digest of inputs, options and code: equal keys make equal chips, split alike."""
    return _key(options, _cut_key(options, chip_plan.labelled_scenes(options)))


def _key(options: PrepareOptions, cut_key: str) -> str:
    return hrefs.digest(cut_key, repr(_split_rules(options)))


def _cut_key(options: PrepareOptions, scenes: list[Scene]) -> str:
    """Digest of what the chips hold, however they are split."""
    fingerprint = functools.cache(_fingerprint)  # many scenes may share a label file
    inputs = [
        [
            *(scene.id, scene.place, scene.catalog, scene.bands),
            *(_fingerprint(file, sidecars.fingerprint) for file in scene.files),
            *map(fingerprint, _label_parts(scene)),
        ]
        for scene in scenes
    ]
    names = ("bbox", "gsd", "size", "stride", "min_valid", "empty_share", "buffer_m", "collar_m2", "stretch")
    given = parameters(options)
    rules = [given[name] for name in (*names, "layer", "where", "skip_unreadable")]
    rules.append(options.aoi and _fingerprint(options.aoi))
    if options.empty_share < 1:  # which empty chips are written depends on the ground held out
        rules += _split_rules(options)
    return hrefs.digest(provenance.code_digest(), repr(rules), repr(inputs))


def _split_rules(options: PrepareOptions) -> list[Any]:
    return [options.effective_validation, options.test, options.folds, options.block_m, options.seed]


def _label_parts(scene: Scene) -> list[str]:
    """Hrefs of a scene's label files and of the files beside them that are part of them."""
    return [part for href in scene.labels for part in label_files.file_parts(href)]


def _fingerprint(href: str, fingerprint: Callable[[str], str] = hrefs.fingerprint) -> str:
    try:
        return f"{href} {fingerprint(href)}"
    except OSError:  # the survey says so, with the scene's name
        return f"{href} missing"


def _earlier_run(tags: dict[str, str]) -> Run | None:
    """The last run with the same key, to be continued; None where it left out a scene that may be readable now."""
    earlier = run_search.last_attempt("prepare", key=tags[runs.KEY], place=tags[runs.PLACE])
    if earlier and earlier.info.status == "FINISHED" and earlier.data.metrics.get(UNREADABLE):
        return None
    return earlier


def _cut_share(options: PrepareOptions, number: int, of: int) -> None:
    """Cut one share of the blocks; everything else is left to the run without `share`."""
    scenes = chip_plan.labelled_scenes(options)
    with executors.executor(options.workers, options.scheduler) as executor:
        plan = chip_plan.make(scenes, options, executor)
        with work_folder.hold(Path(options.work) / "prepare" / _cut_key(options, scenes), shared=True) as folder:
            work_folder.check_visible(folder, options.scheduler, executor)
            blocks, failed = cutting.cut_share(
                plan.surveys,
                _without_split(plan.chips),
                folder,
                share=(number, of),
                rules=chip_plan.chip_rules(options),
                executor=executor,
                progress=_bar,
            )
    for scene, error in failed.items():
        if not options.skip_unreadable:
            raise error
        log.warning("scene %s cannot be read: %s", scene, redact(str(error)))
    log.info("share %d/%d: %d blocks cut", number, of, blocks)


def _cut(plan: ChipPlan, folder: Path, options: PrepareOptions, executor: Executor) -> GeoDataFrame:
    """Index of all chips, with the split that was planned for them; their stores are in the folder afterwards.

    Sets the status of each scene in the table of the plan.
    """
    indexes = []
    rules = chip_plan.chip_rules(options)
    for survey, result in cutting.cut(
        plan.surveys, _without_split(plan.chips), folder, rules=rules, executor=executor, progress=_bar
    ):
        scene = survey.scene
        if isinstance(result, InputError):
            if not options.skip_unreadable:
                raise result
            chip_plan.leave_out(plan.table[scene.id], result)
            shutil.rmtree(folder / f"{scene.id}.zarr.part")
            continue
        plan.table[scene.id]["status"] = "cut"
        log.info("scene %s (%s): %d chips", scene.id, scene.place, len(result))
        if not len(result):
            log.warning("scene %s: no chip of it shows at least %.0f%% of imagery", scene.id, 100 * options.min_valid)
        indexes.append(result)
    if not sum(map(len, indexes)):
        raise chip_plan.no_imagery(options)
    index = pd.concat([rows for rows in indexes if len(rows)], ignore_index=True)
    split = [name for name in ("split", "fold") if name in plan.chips]
    return index.merge(plan.chips[["id", *split]], on="id").sort_values(["scene", "position"], ignore_index=True)


def _without_split(chips: GeoDataFrame) -> GeoDataFrame:
    return chips.drop(columns=["split", "fold"], errors="ignore")


def _bar(items: Iterable[Any], total: int) -> Iterable[Any]:
    return progress_bar(items, total, "cutting")


def _split_and_save(index: GeoDataFrame, plan: ChipPlan, folder: Path, options: PrepareOptions) -> tuple[ChipSet, int]:
    """The chips, saved, and how many are in no split because they touch held-out ground."""
    if options.folds:
        index = splits.hold_out_fold(index, 0, size=options.size, empty_share=options.empty_share, seed=options.seed)
        dropped = int((index.split == splits.UNUSED).sum())
    else:
        index, touching = splits.drop_touching(splits.without_overlap(index, size=options.size))
        dropped = len(touching)
        if options.test and not (index.split == splits.TEST).any():
            raise InputError(f"test={options.test}: no chip of that ground shows imagery")
    for scene, rows in index.groupby("scene"):
        plan.table[str(scene)] |= summary.scene(rows, folder, gsd=options.gsd)
    rules = chip_set.rules_record(
        chip_plan.chip_rules(options),
        catalog=redact(options.catalog),
        validation="fold 0" if options.folds else options.effective_validation,
        test=options.test,
        folds=options.folds,
        block_m=options.block_m,
        seed=options.seed,
        empty_share=options.empty_share,
        collar_m2=options.collar_m2,
        stretch=options.stretch,
    )
    surveys = [survey for survey in plan.surveys if plan.table[survey.scene.id]["status"] == "cut"]
    item = summary.stac_item(index, [survey.scene for survey in surveys], gsd=options.gsd)
    drawn_buildings.write(folder, surveys)
    chip_set.save(folder, index, rules, list(plan.table.values()), item)
    return chip_set.load(folder), dropped


def _log(chips: ChipSet, folder: Path, table: pd.DataFrame, dropped: int) -> None:
    """Log counts, pictures and the chips themselves to the active run."""
    for split in splits.SPLITS:
        rows = chips.select(split)
        if split == splits.TEST and not len(rows):
            continue
        log.info("%s: %d chips of %s", split, len(rows), ", ".join(sorted(set(rows.place))))
        building_share = (rows.building_share * rows.valid_share).sum() / rows.valid_share.sum()
        runs.log_metrics({f"{split}/chips": len(rows), f"{split}/building_share": float(building_share)})
    log.info("%d chips left out, because they touch chips held out", dropped)
    unreadable = int(table.status.str.startswith("unreadable").sum())
    runs.log_metrics({"dropped_chips": dropped, UNREADABLE: unreadable})
    run_artifacts.log_table(table, "scenes.json")
    run_artifacts.log_figure(figures.split_map(chips.index), "split.png")
    for scene, rows in chips.index.groupby("scene"):
        run_artifacts.log_picture(figures.preview(folder, rows, count=4), f"previews/{scene}.jpg")
    runs.identify({chip_artifacts.DIGEST: chip_set.digest(chips.index)})
    runs.describe(
        f"{len(chips.index)} chips of {chips.index.scene.nunique()} scenes of `{chips.rules['catalog']}`"
        f"\n\n{run_pages.picture_markdown('split.png')}"
    )
    run_pages.name_run("prepare", " ".join(sorted(set(chips.index.place))))
    count, size = chip_artifacts.upload(folder, runs.active().info.run_id)
    log.info("%d files of chips sent, %.1f MB", count, size / 1e6)
