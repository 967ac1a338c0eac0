"""Chips and their index from a catalogue of scenes and footprints."""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrypoints import number, parser, progress, start, switch, whole

if TYPE_CHECKING:  # imported where used: --help must not wait for them
    from geopandas import GeoDataFrame

    from ocmlflow.catalog import Scene
    from ocmlflow.chips import Chips, Rules
    from ocmlflow.raster import Grid

log = logging.getLogger(__name__)

Table = dict[str, dict[str, Any]]


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The verb's parameters and their defaults."""
    p = parser("prepare", "Cut labelled scenes into chips for training and validation, logged as artifact `chips`.")
    p.add_argument("--catalog", required=True, help="STAC catalogue of scenes and labels: path, https or s3 address")
    p.add_argument("--gsd", type=number(0.01, 10), default=0.1, help="metres per pixel of the chips")
    p.add_argument("--size", type=whole(64, 1024), default=512, help="pixels along a side, a multiple of 32")
    p.add_argument("--stride", type=whole(1), default=None, help="pixels from one chip to the next; size if not given")
    p.add_argument("--min_valid", type=number(0, 1), default=0.1, help="least share of a chip that shows imagery")
    p.add_argument(
        "--validation",
        default="0.2",
        help="places or scenes to hold out, separated by commas, or the share of chips to hold out by blocks of ground",
    )
    p.add_argument("--block_m", type=number(10), default=500.0, help="metres along a side of those blocks")
    p.add_argument("--seed", type=whole(0), default=0, help="draws the blocks")
    p.add_argument("--skip_unreadable", type=switch, default=False, help="leave out scenes that cannot be read")
    p.add_argument("--workers", type=whole(1), default=os.cpu_count(), help="processes of this machine")
    p.add_argument("--scheduler", default=None, help="tcp://HOST:8786 of a Dask cluster to work in place of them")
    p.add_argument("--work", default=".ocmlflow", help="folder for chips in the making; kept if interrupted")
    args = p.parse_args(words)
    args.stride = args.stride or args.size
    if args.size % 32:
        p.error(f"argument --size: must be a multiple of 32, got {args.size}")
    if args.stride > args.size:
        p.error(f"argument --stride: must be at most the size of {args.size}, or ground is lost; got {args.stride}")
    return args


def key(args: argparse.Namespace) -> str:
    """Names inputs, parameters and code: equal keys make equal chips, split alike."""
    return _key(args, _cut_key(args))


def _key(args: argparse.Namespace, cut: str) -> str:
    from ocmlflow import storage

    return storage.digest(cut, args.validation, str(args.block_m), str(args.seed))


def _cut_key(args: argparse.Namespace) -> str:
    """Names what the chips hold, however they are split."""
    from ocmlflow import catalog, storage, tracking

    hrefs = [href for scene in catalog.scenes(args.catalog) for href in (scene.image, *scene.labels)]
    rules = [args.catalog, args.gsd, args.size, args.stride, args.min_valid, args.skip_unreadable]
    return storage.digest(tracking.code_digest(), repr(rules), *map(_fingerprint, hrefs))


def main(args: argparse.Namespace) -> None:
    import mlflow
    import pandas as pd

    from ocmlflow import catalog, chips, ground, storage, tracking
    from ocmlflow.errors import InputError

    rules = chips.Rules(args.gsd, args.size, args.stride, args.min_valid)
    with tracking.run("prepare", vars(args)):
        scenes = catalog.scenes(args.catalog)
        if not any(scene.labels for scene in scenes):
            raise InputError(
                f"none of the {len(scenes)} scenes of {args.catalog} has labels: a label item is found by its `source` "
                f"link, by the id SCENE{catalog.LABEL_SUFFIX} or by its scene's geometry"
            )
        table = {
            scene.id: {"scene": scene.id, "place": scene.place, "image": storage.public(scene.image)}
            for scene in scenes
        }
        grids = _check(scenes, table, args)
        known = {name for scene in scenes if scene.id in grids for name in (scene.id, scene.place)}
        ground.check_validation(args.validation, known)
        cut = _cut_key(args)
        mlflow.set_tag(tracking.KEY, _key(args, cut))
        with _folder(Path(args.work) / "prepare" / cut) as folder:
            frames = _cut([scene for scene in scenes if scene.id in grids], grids, table, folder, rules, args)
            if not sum(map(len, frames)):
                raise InputError(f"no chip of {args.catalog} shows at least {args.min_valid:.0%} of imagery")
            split = {"validation": args.validation, "block_m": args.block_m, "seed": args.seed}
            index, dropped = ground.split(pd.concat(frames, ignore_index=True), **split)
            index = ground.thin(index, rules)
            chips.save(folder, index, chips.rules_of(rules, catalog=storage.public(args.catalog), **split))
            _log(chips.load(folder), list(table.values()), len(dropped))


def _check(scenes: list[Scene], table: Table, args: argparse.Namespace) -> dict[str, Grid]:
    """The grids of the scenes that can be cut, by id; every scene's row gets its status."""
    from ocmlflow import chips, storage
    from ocmlflow.errors import InputError

    grids = {}
    for scene in progress(scenes, len(scenes), "checking"):
        row = table[scene.id]
        row["status"] = "no labels"
        if not scene.labels:
            continue
        try:
            grids[scene.id], row["native_gsd"] = chips.check(scene, gsd=args.gsd)
            row["status"] = "found"
        except InputError as error:
            if not args.skip_unreadable:
                raise
            row["status"] = storage.public(f"unreadable: {error}")
    return grids


def _cut(
    scenes: list[Scene],
    grids: dict[str, Grid],
    table: Table,
    folder: Path,
    rules: Rules,
    args: argparse.Namespace,
) -> list[GeoDataFrame]:
    """The rows of the chips of each scene, whose stores lie in the folder afterwards."""
    from ocmlflow import chips, storage, workers
    from ocmlflow.errors import InputError

    frames = []
    with workers.executor(args.workers, args.scheduler) as executor:
        for scene in progress(scenes, len(scenes), "cutting"):
            try:
                rows = chips.cut(scene, grids[scene.id], folder, rules=rules, executor=executor)
            except (OSError, InputError) as error:  # a block of the image that cannot be decoded, an image gone
                error.add_note(f"while cutting scene {scene.id}, {scene.image}")
                if not args.skip_unreadable:
                    raise
                table[scene.id]["status"] = storage.public(f"unreadable: {error}")
                log.warning("scene %s left out: %s", scene.id, table[scene.id]["status"])
                continue
            share = float(rows.building_share.mean())
            table[scene.id] |= {"status": "cut", "chips": len(rows), "building_share": share}
            log.info("scene %s (%s): %d chips, %.0f %% building", scene.id, scene.place, len(rows), 100 * share)
            frames.append(rows)
    for part in folder.glob("*.part"):  # of scenes left out, whose workers have ended by now
        shutil.rmtree(part)
    return frames


def _log(made: Chips, rows: list[dict[str, Any]], dropped: int) -> None:
    import mlflow
    import pandas as pd

    from ocmlflow import chips, pictures, tracking

    for split in ("train", "validation"):
        part = made.select(split)
        log.info("%s: %d chips of %s", split, len(part), ", ".join(sorted(set(part.place))))
        share = (part.building_share * part.valid_share).sum() / part.valid_share.sum()
        mlflow.log_metrics({f"{split}/chips": len(part), f"{split}/building_share": float(share)})
    log.info("%d training chips left out, because they touch validation chips", dropped)
    table = pd.DataFrame(rows)
    splits = made.index.groupby(["scene", "split"]).size().unstack(fill_value=0).reset_index()
    table = table.merge(splits, on="scene", how="left")
    unreadable = int(table.status.str.startswith("unreadable").sum())
    mlflow.log_metrics({"dropped_chips": dropped, "unreadable_scenes": unreadable})
    mlflow.log_table(table.astype(object).where(table.notna(), None), "scenes.json")
    for scene, chosen in made.index.groupby("scene"):
        mlflow.log_image(pictures.preview(made.folder, chosen, count=4), f"previews/{scene}.jpg")
    mlflow.set_tag(tracking.DIGEST, chips.digest(made.index))
    tracking.describe(f"{len(made.index)} chips of {made.index.scene.nunique()} scenes of `{made.rules['catalog']}`")
    mlflow.log_artifacts(str(made.folder), "chips")


@contextmanager
def _folder(folder: Path) -> Iterator[Path]:
    """The folder of chips in the making, for this process alone; what is in it is kept if the block fails."""
    from ocmlflow.errors import InputError

    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another prepare is making these chips, in {folder}: wait for it, or give work="
            ) from None
        yield folder
        shutil.rmtree(folder)


def _fingerprint(href: str) -> str:
    from ocmlflow import storage

    try:
        return f"{href} {storage.fingerprint(href)}"
    except OSError:  # the check says so, with the scene's name
        return f"{href} missing"


if __name__ == "__main__":
    start(main, parse())
