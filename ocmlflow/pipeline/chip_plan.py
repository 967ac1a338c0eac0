"""Plans a cut before any pixel is written: which scenes, what is known of them, which chips, in which split."""

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from geopandas import GeoDataFrame

from ocmlflow.chips import chip_set, footprints, label_table, scene_survey, splits
from ocmlflow.chips.chip_set import Rules
from ocmlflow.chips.label_files import State
from ocmlflow.chips.label_table import LabelTable
from ocmlflow.chips.scene_survey import SceneSurvey
from ocmlflow.errors import InputError
from ocmlflow.pipeline.options import PrepareOptions
from ocmlflow.progress import progress_bar
from ocmlflow.redaction import redact
from ocmlflow.scenes import asset_roles, catalog, label_pairing, stretching
from ocmlflow.scenes.catalog import Scene
from ocmlflow.storage import hrefs

log = logging.getLogger(__name__)

LARGE_BYTES = 50_000_000
"""Local label files of more bytes are read place by place even if only one scene uses them."""


@dataclass(frozen=True)
class ChipPlan:
    """What a cut would write."""

    surveys: list[SceneSurvey]
    """Of the scenes that are cut, in their order."""
    table: dict[str, dict[str, Any]]
    """A row of what is known of each scene, by its id; those that are left out have a row too."""
    chips: GeoDataFrame
    """Candidate chips, with `split` or `fold`, and `keep_empty`: whether a chip without buildings is written."""


def labelled_scenes(options: PrepareOptions) -> list[Scene]:
    """The scenes that are asked for; InputError where none of them has labels."""
    mosaics = Path(options.work) / "mosaics" if options.mosaic else None
    everything = catalog.read_scenes(options.catalog, mosaics=mosaics, skip_unreadable=options.skip_unreadable)
    scenes = catalog.select(everything, scenes=options.scenes, places=options.places)
    if options.labels:
        scenes, unused = label_pairing.with_labels(scenes, options.labels), []
    else:
        unused = label_pairing.unused_files(everything)
    unused_names = label_pairing.some_names(unused)
    suffixes = ", ".join(f"NAME{suffix}" for suffix in asset_roles.LABEL_FILES)
    unlabelled = [scene.id for scene in scenes if not (scene.labels or scene.unreadable)]
    if not any(scene.labels for scene in scenes):
        raise InputError(
            f"none of the {len(scenes)} scenes of {options.catalog} has labels: an asset is labels by a key or role "
            f"such as `labels`; a label item is found by its `source` link, by the id SCENE{asset_roles.LABEL_SUFFIX} "
            f"or by its scene's geometry; a label file by its image's name ({suffixes}), "
            "beside it or in labels/; labels=FILE gives one file to all scenes"
            + (f", such as {unused_names}" if unused else "")
        )
    if unlabelled:
        names = label_pairing.some_names(unlabelled)
        log.warning("%d of %d scenes have no labels and are left out: %s", len(unlabelled), len(scenes), names)
    if unused:
        log.warning("label files that no image of their name uses: %s; labels=FILE gives one to all", unused_names)
    return scenes


def make(scenes: list[Scene], options: PrepareOptions, executor: Executor) -> ChipPlan:
    """The plan for some scenes; InputError where nothing can be cut, or cannot be split as asked."""
    surveys, table = _survey(scenes, options, executor)
    rules = chip_rules(options)
    candidates = [chip_set.candidates(survey, rules=rules) for survey in surveys]
    if not sum(map(len, candidates)):
        raise no_imagery(options)
    chips = pd.concat([chips for chips in candidates if len(chips)], ignore_index=True)
    held_out: dict[str, Any] = {
        "validation": options.effective_validation,
        "test": options.test,
        "folds": options.folds,
        "seed": options.seed,
    }
    block_m = options.block_m or splits.fitting_block_m(chips, **held_out, size=options.size, gsd=options.gsd)
    chips = splits.assign(chips, **held_out, block_m=block_m)
    if not options.folds:
        splits.drop_touching(splits.without_overlap(chips, size=options.size))  # fails now, not after the cutting
    sampled = splits.sample_ids(chips.id, options.empty_share, options.seed)
    not_training = np.asarray(chips.split != splits.TRAIN) | bool(options.folds)
    return ChipPlan(surveys, table, chips.assign(keep_empty=not_training | sampled))


def no_imagery(options: PrepareOptions) -> InputError:
    """The error to raise where no chip shows enough imagery."""
    return InputError(f"no chip of {options.catalog} shows at least {options.min_valid:.0%} of imagery")


def chip_rules(options: PrepareOptions) -> Rules:
    """How chips are cut."""
    return Rules(
        gsd=options.gsd,
        size=options.size,
        stride=options.effective_stride,
        min_valid=options.min_valid,
        buffer_m=options.buffer_m,
    )


def print_plan(plan: ChipPlan, size: int) -> None:
    """Print what would be read, cut and written.

    Chips are counted as the overviews of the images show them, files are counted whole.
    """
    likely = plan.chips[plan.chips.imagery > 0]
    megabytes = {survey.scene.id: sum(map(hrefs.size, survey.scene.files)) / 1e6 for survey in plan.surveys}
    heads = " ".join(f"{split:>10}" for split in splits.SPLITS)
    print(f"{'scene':<12} {'place':<8} {'footprints':>10} {'MB to read':>10} {'chips':>8} {heads}")
    for scene, row in plan.table.items():
        start = f"{scene:<12} {row['place']:<8}"
        if scene not in megabytes:
            print(f"{start} {row['status']}")
            continue
        rows = likely[likely.scene == scene]
        counts = " ".join(f"{(rows.split == split).sum():>10}" for split in splits.SPLITS)
        print(f"{start} {row['footprints']:>10} {megabytes[scene]:>10.1f} {len(rows):>8} {counts}")
    raw = len(likely) * size**2 * 4 / 1e6
    print(
        f"about {len(likely)} chips of {len(megabytes)} scenes; at most {sum(megabytes.values()):.0f} MB to read and "
        f"{raw:.0f} MB to write; training chips that touch chips held out are left out"
    )


def _survey(
    scenes: list[Scene], options: PrepareOptions, executor: Executor
) -> tuple[list[SceneSurvey], dict[str, dict[str, Any]]]:
    """The surveys of the scenes that can be cut, in their order, and the row of each scene with its status."""
    table = {scene.id: _first_row(scene) for scene in scenes}
    for scene in scenes:
        if scene.unreadable:
            leave_out(table[scene.id], InputError(scene.unreadable))
    labelled = [scene for scene in scenes if scene.labels and not scene.unreadable]
    aoi = catalog.read_area(options.aoi) if options.aoi else None
    with _label_tables(labelled, options) as tables:
        futures = [
            executor.submit(
                scene_survey.survey,
                scene,
                gsd=options.gsd,
                collar_m2=options.collar_m2,
                stretch=stretching.parse(options.stretch),
                bbox=options.bbox,
                aoi=aoi,
                layer=options.layer,
                where=options.where,
                tables={href: tables[href] for href in scene.labels if href in tables},
            )
            for scene in labelled
        ]
        surveys = _collect(labelled, futures, table, options)
    if not surveys:
        raise InputError(
            f"no scene of {options.catalog} with labels can be cut; bbox={options.bbox}, aoi={options.aoi}"
        )
    return surveys, table


def _collect(
    labelled: list[Scene], futures: list[Future[SceneSurvey | None]], table: dict[str, Any], options: PrepareOptions
) -> list[SceneSurvey]:
    """The surveys of the scenes that can be cut; sets the rows of all scenes in the table."""
    surveys = []
    for scene, future in progress_bar(zip(labelled, futures, strict=True), len(labelled), "surveying"):
        try:
            survey = future.result()
        except InputError as error:
            if not options.skip_unreadable:
                raise
            leave_out(table[scene.id], error)
            continue
        if survey:
            if survey.remarks:
                log.warning("scene %s: %s", scene.id, redact("; ".join(survey.remarks)))
            surveys.append(survey)
            table[scene.id] |= _survey_row(survey, options)
        else:
            table[scene.id]["status"] = "outside bbox" if options.aoi is None else "outside aoi or bbox"
    return surveys


@contextmanager
def _label_tables(scenes: list[Scene], options: PrepareOptions) -> Iterator[dict[str, LabelTable]]:
    """The label files that several scenes share, and large ones, ready to be read place by place."""
    uses = Counter(href for scene in scenes for href in set(scene.labels))
    shared = [href for href, count in uses.items() if count > 1 or _is_large(href)]
    if not shared:
        yield {}
        return
    Path(options.work).mkdir(parents=True, exist_ok=True)  # all workers see this folder
    with tempfile.TemporaryDirectory(prefix="labels-", dir=options.work) as folder:
        yield {
            href: _open_shared(href, Path(folder) / f"{number}.arrow", options) for number, href in enumerate(shared)
        }


def _is_large(href: str) -> bool:
    path = hrefs.local_path(href)
    return not hrefs.is_remote(href) and path.is_file() and path.stat().st_size > LARGE_BYTES


def _open_shared(href: str, path: Path, options: PrepareOptions) -> LabelTable:
    try:
        table = label_table.open_file(href, path.absolute(), layer=options.layer, where=options.where)
        if table.about:
            footprints.check_usable(table.about, table.about.states)
            if odd := footprints.remarks(table.about, table.about.states):
                log.warning("labels %s: %s", redact(href), "; ".join(odd))
    except InputError as error:
        raise InputError(f"labels {href}: {error}") from error
    return table


def leave_out(row: dict[str, Any], error: InputError) -> None:
    """Give a scene's row the status of one that cannot be read, and log it."""
    row["status"] = redact(f"unreadable: {error}")
    log.warning("scene %s left out: %s", row["scene"], row["status"])


def _first_row(scene: Scene) -> dict[str, Any]:
    return {"scene": scene.id, "place": scene.place, "image": redact(scene.image), "status": "no labels"}


def _survey_row(survey: SceneSurvey, options: PrepareOptions) -> dict[str, Any]:
    drawn = survey.footprints
    return {
        "status": "found",
        "native_gsd": round(survey.native_gsd, 4),
        "gsd": options.gsd,
        "footprints": drawn.drawn,
        **{state.name.lower(): drawn.count(state) for state in State},  # add up to `footprints`
        "duplicates": drawn.duplicates,
    }
