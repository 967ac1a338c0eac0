"""Cuts surveyed scenes into chip stores, block by block, on all workers; goes on where an earlier call stopped.

The store of a scene is `<scene>.zarr.part` while it is being cut, and `<scene>.zarr` once it is finished.
"""

import json
import logging
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from rasterio.windows import Window

from ocmlflow import executors
from ocmlflow.chips import block_cutting, labels, targets, zarr_store
from ocmlflow.chips.block_cutting import DONE_FOLDER, BlockJob, ChipWindow, ShardBlock
from ocmlflow.chips.chip_set import Rules
from ocmlflow.chips.scene_survey import SceneSurvey
from ocmlflow.chips.zarr_store import BLOCK
from ocmlflow.errors import InputError
from ocmlflow.scenes import windows

log = logging.getLogger(__name__)

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Shows progress over so many items while they are iterated."""

BLOCKS_PER_JOB = 8
"""Blocks side by side that a worker cuts in one job: parts of the image that two of them need are decoded once."""
ROWS_FILE = "rows.parquet"
"""File in a scene's store with its rows of the chip index."""


def cut(
    surveys: Iterable[SceneSurvey],
    chosen: gpd.GeoDataFrame,
    folder: Path,
    *,
    rules: Rules,
    executor: Executor,
    progress: Progress,
) -> Iterator[tuple[SceneSurvey, gpd.GeoDataFrame | InputError]]:
    """Cut scenes into stores in `folder`; gives each scene, when it is finished, with its rows of the chip index.

    A scene that cannot be read comes with the InputError in place of its rows. `chosen` has rows of
    `chip_set.candidates` and a column `keep_empty`: whether to keep the chip if it shows no building. Scenes and blocks
    that an interrupted call finished are not cut again.
    """
    for abandoned in folder.glob("*.new"):  # left by a process that was killed
        shutil.rmtree(abandoned)
    jobs: list[BlockJob] = []
    unfinished: dict[str, tuple[SceneSurvey, gpd.GeoDataFrame]] = {}
    for survey in surveys:
        scene = survey.scene.id
        if (folder / f"{scene}.zarr").exists():
            log.info("scene %s: its chips were cut before", scene)
            yield survey, _read_rows(folder / f"{scene}.zarr" / ROWS_FILE)
            continue
        candidates = chosen[chosen.scene == scene]
        scene_jobs = _jobs(survey, candidates, _unfinished_store(survey, folder, rules), rules)
        if scene_jobs:
            jobs += scene_jobs
            unfinished[scene] = survey, candidates
        else:
            yield survey, _finish(folder, scene, candidates)
    jobs_left = Counter(job.scene for job in jobs)
    errors: dict[str, InputError] = {}
    for scene, error in progress(executors.map_unordered(executor, block_cutting.cut_job, jobs), len(jobs)):
        jobs_left[scene] -= 1
        if error:
            errors.setdefault(scene, error)
        if not jobs_left[scene]:
            survey, candidates = unfinished[scene]
            yield survey, errors[scene] if scene in errors else _finish(folder, scene, candidates)


def cut_share(
    surveys: Iterable[SceneSurvey],
    chosen: gpd.GeoDataFrame,
    folder: Path,
    *,
    share: tuple[int, int],
    rules: Rules,
    executor: Executor,
    progress: Progress,
) -> tuple[int, dict[str, InputError]]:
    """Cut only the blocks of share I of N, given as (I, N); returns their number, and the error of each bad scene.

    Processes that see one folder can cut different shares at the same time. `cut` with the same arguments then cuts
    what is missing and finishes the scenes.
    """
    jobs: list[BlockJob] = []
    first_strip = 0
    for survey in surveys:
        scene = survey.scene.id
        if not (folder / f"{scene}.zarr").exists():
            store = _unfinished_store(survey, folder, rules)
            blocks = _blocks_of_share(survey, rules, first_strip, share)
            jobs += _jobs(survey, chosen[chosen.scene == scene], store, rules, only=blocks)
        first_strip += _strip_count(survey, rules)
    errors: dict[str, InputError] = {}
    for scene, error in progress(executors.map_unordered(executor, block_cutting.cut_job, jobs), len(jobs)):
        if error:
            errors.setdefault(scene, error)
    return sum(len(job.blocks) for job in jobs), errors


def _unfinished_store(survey: SceneSurvey, folder: Path, rules: Rules) -> Path:
    """The unfinished store of a scene: the one that an interrupted call left, or a new one."""
    store = folder / f"{survey.scene.id}.zarr.part"
    if not store.exists():
        new = folder / f"{survey.scene.id}.{uuid.uuid4().hex}.new"
        down, across = _block_grid(survey, rules)
        zarr_store.create(new, blocks=down * across, size=rules.size)
        (new / DONE_FOLDER).mkdir()
        try:
            new.rename(store)
        except OSError:
            if not store.exists():  # if it does, another share was faster
                raise
            shutil.rmtree(new)
    return store


def _block_grid(survey: SceneSurvey, rules: Rules) -> tuple[int, int]:
    """Rows and columns of blocks in a scene."""
    down = len(windows.start_offsets(survey.grid.height, size=rules.size, stride=rules.stride))
    across = len(windows.start_offsets(survey.grid.width, size=rules.size, stride=rules.stride))
    return -(-down // BLOCK), -(-across // BLOCK)


def _strip_count(survey: SceneSurvey, rules: Rules) -> int:
    """Strips of a scene: each is up to BLOCKS_PER_JOB blocks of one row."""
    down, across = _block_grid(survey, rules)
    return down * -(-across // BLOCKS_PER_JOB)


def _blocks_of_share(survey: SceneSurvey, rules: Rules, first_strip: int, share: tuple[int, int]) -> set[int]:
    """Numbers of a scene's blocks in share (I, N): of all strips, numbered on from scene to scene, every N-th from I.

    `first_strip` is the number of the scene's first strip.
    """
    down, across = _block_grid(survey, rules)
    strips_per_row = -(-across // BLOCKS_PER_JOB)
    number, count = share
    return {
        row * across + col
        for row in range(down)
        for col in range(across)
        if (first_strip + row * strips_per_row + col // BLOCKS_PER_JOB) % count == number
    }


def _jobs(
    survey: SceneSurvey, candidates: gpd.GeoDataFrame, store: Path, rules: Rules, *, only: set[int] | None = None
) -> list[BlockJob]:
    """Jobs for the blocks of a scene that are not cut yet, or only those of certain block numbers."""
    if (store / ROWS_FILE).exists():
        return []
    done = {int(file.stem) for file in (store / DONE_FOLDER).glob("*.json")}
    side = BLOCK * rules.stride
    _, across = _block_grid(survey, rules)
    tree = shapely.STRtree(survey.footprints.polygons)
    # What is drawn around a footprint reaches into neighbouring blocks; one pixel more allows for rounding.
    reach = max(rules.buffer_m, targets.CLIP_M) + rules.gsd
    block_rows: dict[int, list[ShardBlock]] = {}
    for (row, col), rows in candidates.groupby([candidates.row // side, candidates.col // side]):
        number = int(row * across + col)
        if number not in done and (only is None or number in only):
            area = _area(survey, rows, rules.size)
            footprints = survey.footprints.polygons[np.sort(tree.query(area, "dwithin", reach))]
            labelled = None
            if survey.labelled is not None:
                labelled = labels.polygons([survey.labelled.intersection(area.buffer(rules.gsd))])
            block_rows.setdefault(row, []).append(ShardBlock(number, _chip_windows(rows, rules), footprints, labelled))
    return [
        BlockJob(
            survey.scene.id,
            survey.scene.image,
            survey.grid,
            survey.rules,
            row[first : first + BLOCKS_PER_JOB],
            store,
            rules,
        )
        for row in block_rows.values()
        for first in range(0, len(row), BLOCKS_PER_JOB)
    ]


def _chip_windows(rows: gpd.GeoDataFrame, rules: Rules) -> list[ChipWindow]:
    """The windows of one block, with their numbers in it: row by row, also where some are left out."""
    row_in_block = rows.row // rules.stride % BLOCK
    col_in_block = rows.col // rules.stride % BLOCK
    return [
        ChipWindow(int(number), Window(int(col), int(row), rules.size, rules.size), bool(keep_empty))
        for number, row, col, keep_empty in zip(
            row_in_block * BLOCK + col_in_block, rows.row, rows.col, rows.keep_empty, strict=True
        )
    ]


def _area(survey: SceneSurvey, rows: gpd.GeoDataFrame, size: int) -> shapely.Polygon:
    """Rectangle around some windows, in the CRS of the scene's grid."""
    left, top = survey.grid.transform @ (int(rows.col.min()), int(rows.row.min()))
    right, bottom = survey.grid.transform @ (int(rows.col.max()) + size, int(rows.row.max()) + size)
    return shapely.box(left, bottom, right, top)


def _finish(folder: Path, scene: str, candidates: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Rows of the chip index of a scene whose blocks are all cut; gives its store its final name."""
    store = folder / f"{scene}.zarr.part"
    if not (store / ROWS_FILE).exists():
        index = candidates.drop(columns=["imagery", "keep_empty"]).merge(_cut_chips(store), on=["row", "col"])
        new = (store / ROWS_FILE).with_suffix(".new")
        index.to_parquet(new)
        new.replace(store / ROWS_FILE)
    shutil.rmtree(store / DONE_FOLDER, ignore_errors=True)
    finished = store.rename(folder / f"{scene}.zarr")
    return _read_rows(finished / ROWS_FILE)


def _read_rows(file: Path) -> gpd.GeoDataFrame:
    try:
        return gpd.read_parquet(file)
    except Exception as error:  # pyarrow and geopandas raise of many types
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> InputError:
    store = file.parent if file.name == ROWS_FILE else file.parent.parent
    return InputError(f"{file} is damaged ({error}): delete {store}, then its scene is cut again")


def _cut_chips(store: Path) -> pd.DataFrame:
    """The records of all blocks of a store, in their order."""
    types = {"row": "int64", "col": "int64", "position": "int64", "valid_share": float, "building_share": float}
    types |= {"red": float, "green": float, "blue": float, "hash": "str"}
    records: list[dict[str, Any]] = []
    for file in sorted((store / DONE_FOLDER).glob("*.json"), key=lambda file: int(file.stem)):
        try:
            records += [{name: record[name] for name in types} for record in json.loads(file.read_bytes())]
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(file, error) from error
    return pd.DataFrame(records, columns=list(types)).astype(types)
