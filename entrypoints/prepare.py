"""Chips and their index from a catalogue of scenes and footprints."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import socket
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrypoints import check_seen, in_the_making, number, parser, progress, seed, share, start, switch, whole

if TYPE_CHECKING:  # imported where used: --help must not wait for them
    from geopandas import GeoDataFrame

    from ocmlflow.chips.chip_set import ChipSet, Rules
    from ocmlflow.chips.scene_survey import SceneSurvey
    from ocmlflow.scenes.catalog import Scene

log = logging.getLogger(__name__)

UNREADABLE = "unreadable_scenes"
"""Metric of a run: scenes that were left out because they could not be read."""
VALIDATION_SHARE = "0.2"
"""Held out for validation where neither it nor folds are given."""
Table = dict[str, dict[str, Any]]
"""What is known of each scene, by its id: a row of the table in the run."""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The verb's parameters and their defaults."""
    p = parser(
        "prepare", "Cut labelled scenes into chips for training, validation and test, logged as artifact `chips`."
    )
    p.add_argument(
        "--catalog",
        required=True,
        help="STAC file, or folder of GeoTIFFs and label files of the same name; path, https or s3; several, by commas",
    )
    p.add_argument("--scenes", default=None, help="ids of the scenes to take, by commas; all if not given")
    p.add_argument("--places", default=None, help="places to take, by commas; all if not given")
    p.add_argument("--bbox", type=_box, default=None, help="west,south,east,north in degrees: scenes that meet it")
    p.add_argument("--gsd", type=number(0.01, 10), default=0.1, help="metres per pixel of the chips")
    p.add_argument("--size", type=whole(64, 1024), default=512, help="pixels along a side, a multiple of 32")
    p.add_argument(
        "--stride",
        type=whole(1),
        default=None,
        help="pixels from chip to chip; divides size, is size if not given",
    )
    p.add_argument("--min_valid", type=number(0, 1), default=0.1, help="least share of a chip that shows imagery")
    p.add_argument(
        "--empty_share", type=number(0, 1), default=1.0, help="share of the training chips without a building to keep"
    )
    p.add_argument("--label", choices=("building", "boundary"), default="building", help=_LABEL)
    p.add_argument("--buffer_m", type=number(0, 10), default=0.0, help="metres around outlines that training ignores")
    p.add_argument(
        "--black_m2",
        type=number(0),
        default=1000.0,
        help="opaque black in one piece of at least so many square metres is no imagery; 0 to believe it all",
    )
    p.add_argument(
        "--validation",
        default=None,
        help="places or scenes to hold out, by commas, or the share of chips to hold out by blocks of ground, "
        f"{VALIDATION_SHARE} if not given, not with folds",
    )
    p.add_argument(
        "--test",
        default=None,
        help="the same for ground that is only scored, by evaluate's split=test; none if not given, not with folds",
    )
    p.add_argument(
        "--folds",
        type=whole(2, 100),
        default=None,
        help="equal parts of the blocks, for train's fold=, in place of both",
    )
    p.add_argument("--block_m", type=number(10), default=500.0, help="metres along a side of those blocks")
    p.add_argument("--seed", type=seed, default=0, help="draws the blocks and the empty chips")
    p.add_argument("--skip_unreadable", type=switch, default=False, help="leave out scenes that cannot be read")
    p.add_argument("--dry_run", type=switch, default=False, help="say what would be done, and do nothing")
    p.add_argument(
        "--share",
        type=share,
        default=None,
        help="I/N, I from 0: cut that part of the blocks alone, in a work folder that all parts see; a run without it, "
        "over the same folder, then makes the chips",
    )
    p.add_argument("--workers", type=whole(1), default=os.cpu_count(), help="processes of this machine")
    p.add_argument("--scheduler", default=None, help="tcp://HOST:8786 of a Dask cluster to work in place of them")
    p.add_argument("--work", default=".ocmlflow", help="folder for chips in the making; kept if interrupted")
    args = p.parse_args(words)
    args.stride = args.stride or args.size
    if args.size % 32:
        p.error(f"argument --size: must be a multiple of 32, got {args.size}")
    for name in ("validation", "test"):
        if args.folds and getattr(args, name) is not None:
            p.error(f"argument --folds: each fold is held out in turn, leave out {name}; got folds={args.folds}")
    if not args.folds and args.validation is None:
        args.validation = VALIDATION_SHARE
    if args.stride > args.size or args.size % args.stride:
        p.error(
            f"argument --stride: must divide the size of {args.size}, for held-out ground is scored by chips side by "
            f"side; got {args.stride}, and {args.size // 2} would do"
        )
    return args


_LABEL = "building, or boundary: the classes interior, boundary and touching as well, in the array `parts`"


def key(args: argparse.Namespace) -> str:
    """Names inputs, parameters and code: equal keys make equal chips, split alike."""
    return _key(args, _cut_key(args, _chosen(args)))


def _key(args: argparse.Namespace, cut: str) -> str:
    from ocmlflow.storage import hrefs

    return hrefs.digest(cut, repr(_split(args)))


def _cut_key(args: argparse.Namespace, scenes: list[Scene]) -> str:
    """Names what the chips hold, however they are split."""
    from ocmlflow.storage import hrefs
    from ocmlflow.tracking import provenance

    read = [
        [scene.id, scene.place, scene.catalog, *map(_fingerprint, (scene.image, *scene.labels))] for scene in scenes
    ]
    rules = [args.bbox, args.gsd, args.size, args.stride, args.min_valid, args.empty_share, args.label]
    rules += [args.buffer_m, args.black_m2, args.skip_unreadable]
    if args.empty_share < 1:  # which empty chips are written depends on the ground held out
        rules += _split(args)
    return hrefs.digest(provenance.code_digest(), repr(rules), repr(read))


def _split(args: argparse.Namespace) -> list[Any]:
    return [args.validation, args.test, args.folds, args.block_m, args.seed]


def main(args: argparse.Namespace) -> None:
    import mlflow

    from ocmlflow import executors
    from ocmlflow.tracking import chip_artifacts, run_search, runs

    if args.dry_run:
        with executors.executor(args.workers, args.scheduler) as executor:
            _print_plan(*_plan(_chosen(args), args, executor), args.size)
        return
    if args.share:
        _cut_share(args)
        return
    try:
        scenes = _chosen(args)
        cut = _cut_key(args, scenes)
    except Exception:
        with runs.run("prepare", vars(args)):  # which says why, on its page
            raise
    with in_the_making(Path(args.work) / "prepare" / cut) as folder:
        known = {runs.KEY: _key(args, cut), runs.PLACE: f"{socket.gethostname()}:{folder}"}
        before = run_search.earlier("prepare", key=known[runs.KEY], place=known[runs.PLACE])
        if before and before.info.status == "FINISHED":
            if before.data.metrics.get(UNREADABLE):  # it may be readable now
                before = None
            elif chip_artifacts.is_complete(before.info.run_id):
                log.info("run %s made these chips, and they are all there: nothing is cut or sent", before.info.run_id)
                runs.goes_on_in(before)
                run_search.finish_again(before)
                return
        with (
            runs.run("prepare", vars(args), resume=before),
            executors.executor(args.workers, args.scheduler) as executor,
        ):
            mlflow.set_tags(known)
            check_seen(folder, args.scheduler, executor)
            surveys, table, planned = _plan(scenes, args, executor)
            index = _cut(surveys, planned, table, folder, args, executor)
            made, dropped = _split_and_save(index, surveys, table, folder, args)
            _log(made, folder, list(table.values()), dropped)


def _cut_share(args: argparse.Namespace) -> None:
    """Cut one share of the blocks, and leave all else to the run without `share`."""
    from ocmlflow import executors, redaction
    from ocmlflow.chips import cutting

    scenes = _chosen(args)
    with executors.executor(args.workers, args.scheduler) as executor:
        surveys, _, planned = _plan(scenes, args, executor)
        with in_the_making(Path(args.work) / "prepare" / _cut_key(args, scenes), shared=True) as folder:
            check_seen(folder, args.scheduler, executor)
            chosen = planned.drop(columns=["split", "fold"], errors="ignore")
            how = {"share": args.share, "rules": _rules(args), "executor": executor, "progress": _bar}
            blocks, failed = cutting.cut_share(surveys, chosen, folder, **how)
    for scene, error in failed.items():
        if not args.skip_unreadable:
            raise error
        log.warning("scene %s cannot be read: %s", scene, redaction.redact(str(error)))
    log.info("share %d/%d: %d blocks cut", *args.share, blocks)


def _chosen(args: argparse.Namespace) -> list[Scene]:
    from ocmlflow.errors import InputError
    from ocmlflow.scenes import catalog, stac_reader

    found = catalog.select(catalog.read_scenes(args.catalog), scenes=args.scenes, places=args.places)
    if not any(scene.labels for scene in found):
        raise InputError(
            f"none of the {len(found)} scenes of {args.catalog} has labels: a label item is found by its `source` "
            f"link, by the id SCENE{stac_reader.LABEL_SUFFIX} or by its scene's geometry, a label file by its image's "
            f"name ({' or '.join(f'NAME{suffix}' for suffix in stac_reader.LABEL_FILES)})"
        )
    return found


def _plan(
    scenes: list[Scene], args: argparse.Namespace, executor: Executor
) -> tuple[list[SceneSurvey], Table, GeoDataFrame]:
    """What is known before a chip is cut: surveys of the scenes that can be, their table, and the split of windows."""
    import numpy as np
    import pandas as pd

    from ocmlflow.chips import chip_set, splits
    from ocmlflow.errors import InputError

    surveys, table = _survey(scenes, args, executor)
    rules = _rules(args)
    windows = [chip_set.candidates(found, rules=rules) for found in surveys]
    if not sum(map(len, windows)):
        raise InputError(f"no chip of {args.catalog} shows at least {args.min_valid:.0%} of imagery")
    planned = pd.concat([some for some in windows if len(some)], ignore_index=True)
    how = {name: getattr(args, name) for name in ("validation", "test", "folds", "block_m", "seed")}
    planned = splits.assign(planned, **how)
    if not args.folds:
        splits.drop_touching(splits.without_overlap(planned, size=args.size))  # fails now, not after the cutting
    drawn = splits.sample_ids(planned.id, args.empty_share, args.seed)
    held_out = np.asarray(planned.split != splits.TRAIN) | bool(args.folds)
    return surveys, table, planned.assign(keep_empty=held_out | drawn)


def _survey(scenes: list[Scene], args: argparse.Namespace, executor: Executor) -> tuple[list[SceneSurvey], Table]:
    """The surveys of the scenes that can be cut, in their order; every scene's row of the table gets its status."""
    from ocmlflow import redaction
    from ocmlflow.chips import scene_survey
    from ocmlflow.errors import InputError

    table: Table = {
        scene.id: {
            "scene": scene.id,
            "place": scene.place,
            "image": redaction.redact(scene.image),
            "status": "no labels",
        }
        for scene in scenes
    }
    labelled = [scene for scene in scenes if scene.labels]
    how = {"gsd": args.gsd, "black_m2": args.black_m2, "bbox": args.bbox}
    futures = [executor.submit(scene_survey.survey, scene, **how) for scene in labelled]
    surveys = []
    for scene, future in progress(zip(labelled, futures, strict=True), len(labelled), "surveying"):
        row = table[scene.id]
        try:
            found = future.result()
        except InputError as error:
            if not args.skip_unreadable:
                raise
            row["status"] = redaction.redact(f"unreadable: {error}")
            log.warning("scene %s left out: %s", scene.id, row["status"])
            continue
        row["status"] = "outside bbox"
        if found:
            surveys.append(found)
            drawn = found.footprints
            row |= {"status": "found", "native_gsd": round(found.native_gsd, 4), "gsd": args.gsd}
            row |= {"footprints": drawn.drawn, "without_area": drawn.empty, "repaired": drawn.repaired}
            row |= {"duplicates": drawn.duplicates, "outside": found.outside}
    if not surveys:
        raise InputError(f"no scene of {args.catalog} with labels can be cut; bbox={args.bbox}")
    return surveys, table


def _cut(
    surveys: list[SceneSurvey],
    planned: GeoDataFrame,
    table: Table,
    folder: Path,
    args: argparse.Namespace,
    executor: Executor,
) -> GeoDataFrame:
    """The rows of all chips, whose stores lie in the folder afterwards, with the split that was planned for them."""
    import pandas as pd

    from ocmlflow import redaction
    from ocmlflow.chips import cutting
    from ocmlflow.errors import InputError

    frames = []
    chosen = planned.drop(columns=["split", "fold"], errors="ignore")
    for found, rows in cutting.cut(surveys, chosen, folder, rules=_rules(args), executor=executor, progress=_bar):
        scene = found.scene
        if isinstance(rows, InputError):
            if not args.skip_unreadable:
                raise rows
            table[scene.id]["status"] = redaction.redact(f"unreadable: {rows}")
            log.warning("scene %s left out: %s", scene.id, table[scene.id]["status"])
            shutil.rmtree(folder / f"{scene.id}.zarr.part")
            continue
        table[scene.id]["status"] = "cut"
        log.info("scene %s (%s): %d chips", scene.id, scene.place, len(rows))
        frames.append(rows)
    if not sum(map(len, frames)):
        raise InputError(f"no chip of {args.catalog} shows at least {args.min_valid:.0%} of imagery")
    index = pd.concat([rows for rows in frames if len(rows)], ignore_index=True)
    split = [name for name in ("split", "fold") if name in planned]
    return index.merge(planned[["id", *split]], on="id").sort_values(["scene", "position"], ignore_index=True)


def _bar(items: Any, total: int) -> Any:
    return progress(items, total, "cutting")


def _split_and_save(
    index: GeoDataFrame, surveys: list[SceneSurvey], table: Table, folder: Path, args: argparse.Namespace
) -> tuple[ChipSet, int]:
    """The chips, saved, and how many were left out because they touch held-out ground."""
    from ocmlflow import redaction
    from ocmlflow.chips import chip_set, splits, summary
    from ocmlflow.errors import InputError

    if args.folds:
        index = splits.hold_out_fold(index, 0, size=args.size, empty_share=args.empty_share, seed=args.seed)
        dropped = int((index.split == splits.UNUSED).sum())
    else:
        index, left_out = splits.drop_touching(splits.without_overlap(index, size=args.size))
        dropped = len(left_out)
        if args.test and not (index.split == splits.TEST).any():
            raise InputError(f"test={args.test}: no chip of that ground shows imagery")
    for scene, rows in index.groupby("scene"):
        table[str(scene)] |= summary.scene(rows, folder, gsd=args.gsd)
    rules = chip_set.rules_record(
        _rules(args),
        catalog=redaction.redact(args.catalog),
        validation="fold 0" if args.folds else args.validation,
        **{name: getattr(args, name) for name in ("test", "folds", "block_m", "seed", "empty_share", "black_m2")},
    )
    scenes = [found.scene for found in surveys if table[found.scene.id]["status"] == "cut"]
    chip_set.save(folder, index, rules, list(table.values()), summary.stac_item(index, scenes, gsd=args.gsd))
    return chip_set.load(folder), dropped


def _log(made: ChipSet, folder: Path, rows: list[dict[str, Any]], dropped: int) -> None:
    import mlflow
    import pandas as pd

    from ocmlflow.chips import chip_set, figures, splits
    from ocmlflow.tracking import chip_artifacts, runs

    for split in splits.SPLITS:
        part = made.select(split)
        if split == splits.TEST and not len(part):
            continue
        log.info("%s: %d chips of %s", split, len(part), ", ".join(sorted(set(part.place))))
        share = (part.building_share * part.valid_share).sum() / part.valid_share.sum()
        mlflow.log_metrics({f"{split}/chips": len(part), f"{split}/building_share": float(share)})
    log.info("%d chips left out, because they touch chips held out", dropped)
    table = pd.DataFrame(rows)
    unreadable = int(table.status.str.startswith("unreadable").sum())
    mlflow.log_metrics({"dropped_chips": dropped, UNREADABLE: unreadable})
    mlflow.log_table(table.astype(object).where(table.notna(), None), "scenes.json")
    mlflow.log_figure(figures.split_map(made.index), "split.png")
    for scene, chosen in made.index.groupby("scene"):
        mlflow.log_image(figures.preview(folder, chosen, count=4), f"previews/{scene}.jpg")
    mlflow.set_tag(chip_artifacts.DIGEST, chip_set.digest(made.index))
    runs.describe(
        f"{len(made.index)} chips of {made.index.scene.nunique()} scenes of `{made.rules['catalog']}`"
        f"\n\n{runs.picture('split.png')}"
    )
    runs.name_run("prepare", " ".join(sorted(set(made.index.place))))
    count, size = chip_artifacts.send(folder, runs.active().info.run_id)
    log.info("%d files of chips sent, %.1f MB", count, size / 1e6)


def _print_plan(surveys: list[SceneSurvey], table: Table, planned: GeoDataFrame, size: int) -> None:
    """Say what would be read, cut and written: chips as the overviews of the images show them, whole files at most."""
    from ocmlflow.chips import splits
    from ocmlflow.storage import hrefs

    likely = planned[planned.imagery > 0]
    megabytes = {found.scene.id: hrefs.size(found.scene.image) / 1e6 for found in surveys}
    heads = " ".join(f"{split:>10}" for split in splits.SPLITS)
    print(f"{'scene':<12} {'place':<8} {'footprints':>10} {'MB to read':>10} {'chips':>8} {heads}")
    for scene, row in table.items():
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


def _rules(args: argparse.Namespace) -> Rules:
    from ocmlflow.chips.chip_set import Rules

    return Rules(args.gsd, args.size, args.stride, args.min_valid, args.buffer_m, args.label == "boundary")


def _fingerprint(href: str) -> str:
    from ocmlflow.storage import hrefs

    try:
        return f"{href} {hrefs.fingerprint(href)}"
    except OSError:  # the survey says so, with the scene's name
        return f"{href} missing"


def _box(text: str) -> tuple[float, float, float, float]:
    """A parser's type for west,south,east,north in degrees."""
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"four numbers, west,south,east,north, are needed, got {text}") from None
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise argparse.ArgumentTypeError(f"must be west < east and south < north, in degrees, got {text}")
    return west, south, east, north


if __name__ == "__main__":
    start(main, parse())
