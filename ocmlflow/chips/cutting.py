"""Surveyed scenes, to the stores of their chips, block by block, on as many workers as there are."""

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from affine import Affine
from rasterio.windows import Window, union

from ocmlflow import executors
from ocmlflow.chips import labels, scene_survey, zarr_store
from ocmlflow.chips.chip_set import Rules
from ocmlflow.chips.scene_survey import Overview, SceneSurvey
from ocmlflow.chips.zarr_store import BLOCK
from ocmlflow.errors import InputError
from ocmlflow.scenes import raster, resample, windows
from ocmlflow.scenes.geobox import GeoBox
from ocmlflow.scenes.resample import ReadWindow

log = logging.getLogger(__name__)

Progress = Callable[[Iterable[Any], int], Iterable[Any]]

RUN = 8
"""Blocks side by side that one worker cuts at a time: what two of them share of the image is decoded once."""
ROWS, MARKS = "rows.parquet", "blocks"
"""In a scene's store: its rows of the index; and, while it is made, a file of records for each block that is whole."""


@dataclass(frozen=True)
class _ChipPlace:
    """One chip to be cut."""

    number: int  # in its block
    window: Window
    keep_empty: bool  # whether it is kept without a building


@dataclass(frozen=True)
class _ShardBlock:
    number: int
    places: list[_ChipPlace]
    footprints: np.ndarray


@dataclass(frozen=True)
class _BlockRun:
    scene: str
    image: str
    grid: GeoBox
    overview: Overview | None  # where some of the scene's black is no imagery
    blocks: list[_ShardBlock]
    part: Path
    rules: Rules


def cut(
    surveys: Iterable[SceneSurvey],
    chosen: gpd.GeoDataFrame,
    folder: Path,
    *,
    rules: Rules,
    executor: Executor,
    progress: Progress,
) -> Iterator[tuple[SceneSurvey, gpd.GeoDataFrame | InputError]]:
    """Each scene, as it becomes whole, with the rows of its chips, or with what kept it from being read.

    `chosen` are candidates (see `chips`) with a column `keep_empty`: whether a window is kept that shows no building.
    Writes `<scene>.zarr`, with the rows inside. What is whole already, scene or block, from a call that was
    interrupted, is not made again.
    """
    for left in folder.glob("*.new"):  # of a process that was killed
        shutil.rmtree(left)
    runs: list[_BlockRun] = []
    waiting: dict[str, tuple[SceneSurvey, gpd.GeoDataFrame]] = {}
    for found in surveys:
        name = found.scene.id
        candidates = chosen[chosen.scene == name]
        if (folder / f"{name}.zarr").exists():
            log.info("scene %s: chips are there already", name)
            yield found, gpd.read_parquet(folder / f"{name}.zarr" / ROWS)
        elif made := _runs(found, candidates, _part(found, folder, rules), rules):
            runs += made
            waiting[name] = found, candidates
        else:
            yield found, _finish(folder / f"{name}.zarr.part", candidates)
    left = pd.Series([run.scene for run in runs], dtype=object).value_counts().to_dict()
    failed: dict[str, InputError] = {}
    for scene, error in progress(executors.map_unordered(executor, _cut_run, runs), len(runs)):
        left[scene] -= 1
        if error:
            failed.setdefault(scene, error)
        if not left[scene]:
            found, candidates = waiting[scene]
            yield found, failed.get(scene) or _finish(folder / f"{scene}.zarr.part", candidates)


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
    """Cut the blocks of share I of N, (I, N), and no more; how many those were, and the scenes that cannot be read.

    Shares can be cut at the same time, by processes that see one folder; `cut` with the same arguments then finds
    their blocks done, and cuts what is missing.
    """
    runs: list[_BlockRun] = []
    strips = 0
    for found in surveys:
        name = found.scene.id
        down, across = _blocks(found, rules)
        per_row, before = -(-across // RUN), strips
        strips += down * per_row

        def mine(number: int, across: int = across, per_row: int = per_row, before: int = before) -> bool:
            row, col = divmod(number, across)
            return (before + row * per_row + col // RUN) % share[1] == share[0]

        if not (folder / f"{name}.zarr").exists():
            runs += _runs(found, chosen[chosen.scene == name], _part(found, folder, rules), rules, mine)
    failed: dict[str, InputError] = {}
    for scene, error in progress(executors.map_unordered(executor, _cut_run, runs), len(runs)):
        if error:
            failed.setdefault(scene, error)
    return sum(len(run.blocks) for run in runs), failed


def _part(found: SceneSurvey, folder: Path, rules: Rules) -> Path:
    """The store in the making of a scene: that of a call that was interrupted, or a new one."""
    part = folder / f"{found.scene.id}.zarr.part"
    if not part.exists():
        new = folder / f"{found.scene.id}.{uuid.uuid4().hex}.new"
        down, across = _blocks(found, rules)
        zarr_store.create(new, blocks=down * across, size=rules.size, with_parts=rules.parts)
        (new / MARKS).mkdir()
        try:
            new.rename(part)
        except OSError:
            if not part.exists():  # else another share was faster
                raise
            shutil.rmtree(new)
    return part


def _blocks(found: SceneSurvey, rules: Rules) -> tuple[int, int]:
    """How many blocks lie below and beside one another in a scene."""
    down, across = (
        -(-len(windows.start_offsets(side, size=rules.size, stride=rules.stride)) // BLOCK)
        for side in (found.grid.height, found.grid.width)
    )
    return down, across


def _runs(
    found: SceneSurvey,
    candidates: gpd.GeoDataFrame,
    part: Path,
    rules: Rules,
    mine: Callable[[int], bool] = lambda _: True,
) -> list[_BlockRun]:
    """The work that is left on one scene, on the blocks whose numbers are `mine`."""
    if (part / ROWS).exists():
        return []
    done = {int(mark.stem) for mark in (part / MARKS).glob("*.json")}
    side = BLOCK * rules.stride
    _, across = _blocks(found, rules)
    tree = shapely.STRtree(found.footprints.polygons)
    # What is drawn around a footprint reaches into blocks beside it; the pixel more is for what rounding takes.
    reach = max(rules.buffer_m, labels.TOUCHING_M if rules.parts else 0) + rules.gsd
    overview = found.overview if found.overview.black.any() else None
    blocks: dict[int, list[_ShardBlock]] = {}
    for (down, right), rows in candidates.groupby([candidates.row // side, candidates.col // side]):
        number = int(down * across + right)
        if number not in done and mine(number):
            near = tree.query(shapely.box(*_bounds(found.grid, rows, rules.size)), "dwithin", reach)
            drawn = found.footprints.polygons[np.sort(near)]
            blocks.setdefault(down, []).append(_ShardBlock(number, _chip_places(rows, rules), drawn))
    return [
        _BlockRun(found.scene.id, found.scene.image, found.grid, overview, row[first : first + RUN], part, rules)
        for row in blocks.values()
        for first in range(0, len(row), RUN)
    ]


def _chip_places(rows: gpd.GeoDataFrame, rules: Rules) -> list[_ChipPlace]:
    side = BLOCK * rules.stride
    return [
        _ChipPlace(
            int(row % side // rules.stride * BLOCK + col % side // rules.stride),
            Window(int(col), int(row), rules.size, rules.size),
            bool(keep),
        )
        for row, col, keep in zip(rows.row, rows.col, rows.keep_empty, strict=True)
    ]


def _bounds(target: GeoBox, rows: gpd.GeoDataFrame, size: int) -> tuple[float, float, float, float]:
    left, top = target.transform @ (int(rows.col.min()), int(rows.row.min()))
    right, bottom = target.transform @ (int(rows.col.max()) + size, int(rows.row.max()) + size)
    return left, bottom, right, top


def _cut_run(run: _BlockRun) -> tuple[str, InputError | None]:
    """Cut some blocks of a scene; returns its id, and what kept it from being read."""
    try:
        with raster.open_scene(run.image) as (dataset, own), resample.window_reader(dataset, own, run.grid) as read:
            for block in run.blocks:
                records = _cut_block(read, block, run)
                mark = run.part / MARKS / f"{block.number}.json"
                new = mark.with_suffix(".new")
                new.write_text(json.dumps(records))
                new.replace(mark)
    except InputError as error:
        return run.scene, error
    return run.scene, None


def _cut_block(read: ReadWindow, block: _ShardBlock, run: _BlockRun) -> list[dict[str, Any]]:
    """Cut the chips of one block, write its shards, and return a record for every chip kept."""
    whole = union(*(place.window for place in block.places))
    arrays = _arrays(read, whole, block, run)
    size = run.rules.size
    encoded: dict[str, dict[int, bytes]] = {name: {} for name in arrays}
    records = []
    for place in block.places:
        top, left = int(place.window.row_off - whole.row_off), int(place.window.col_off - whole.col_off)
        at = np.s_[top : top + size, left : left + size]
        chip = {name: np.ascontiguousarray(values[at]) for name, values in arrays.items()}
        valid, building = labels.count_pixels(chip["label"])
        if not valid or valid < run.rules.min_valid * size**2 or not (building or place.keep_empty):
            continue
        for name, values in chip.items():
            encoded[name][place.number] = zarr_store.encode(values)
        position = block.number * zarr_store.CHIPS_PER_SHARD + place.number
        records.append(_record(chip, place.window, position, valid, building))
    if records:
        for name, chips in encoded.items():
            zarr_store.write(run.part, name, block.number, chips)
    return records


def _arrays(read: ReadWindow, whole: Window, block: _ShardBlock, run: _BlockRun) -> dict[str, np.ndarray]:
    """Image, coded label and, where they are wanted, parts of all that a block covers."""
    pixels = read(whole)
    image, valid = pixels.image, pixels.valid
    black = scene_survey.black_fill(run.overview, image, whole) if run.overview else None
    if black is not None:
        valid = valid & ~black
        image[black] = 0
    place: dict[str, Any] = {"height": int(whole.height), "width": int(whole.width)}
    place["transform"] = run.grid.transform @ Affine.translation(whole.col_off, whole.row_off)
    ring = labels.near_outline(block.footprints, buffer_m=run.rules.buffer_m, **place) if run.rules.buffer_m else None
    arrays = {"image": image, "label": labels.encode(labels.rasterize(block.footprints, **place), valid, ring)}
    if run.rules.parts:
        arrays["parts"] = labels.boundary_classes(block.footprints, **place)
    return arrays


def _record(chip: dict[str, np.ndarray], window: Window, position: int, valid: int, building: int) -> dict[str, Any]:
    seen = np.count_nonzero(chip["label"][::4, ::4] != labels.INVALID)
    means = np.einsum("rcb->b", chip["image"][::4, ::4], dtype=np.float64) / max(seen, 1)
    content = hashlib.sha256()
    for values in chip.values():
        content.update(values.data)
    return {
        "row": int(window.row_off),
        "col": int(window.col_off),
        "position": position,
        "valid_share": valid / chip["label"].size,
        "building_share": building / valid,
        **dict(zip(("red", "green", "blue"), (round(float(mean), 2) for mean in means), strict=True)),
        "hash": content.hexdigest()[:16],
    }


def _finish(part: Path, candidates: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """The rows of a scene whose blocks are all cut; its store has its final name from then on."""
    rows = part / ROWS
    if not rows.exists():
        marks = sorted((part / MARKS).glob("*.json"), key=lambda mark: int(mark.stem))
        records = [record for mark in marks for record in json.loads(mark.read_text())]
        columns = {"position": "int64", "valid_share": float, "building_share": float}
        columns |= {"red": float, "green": float, "blue": float, "hash": "str"}
        cut = pd.DataFrame(records, columns=["row", "col", *columns]).astype(
            {"row": "int64", "col": "int64", **columns}
        )
        index = candidates.drop(columns=["imagery", "keep_empty"]).merge(cut, on=["row", "col"])
        new = rows.with_suffix(".new")
        index.to_parquet(new)
        new.replace(rows)
    shutil.rmtree(part / MARKS, ignore_errors=True)
    part.rename(part.with_suffix(""))
    return gpd.read_parquet(part.with_suffix("") / ROWS)
