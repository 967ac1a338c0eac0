"""A chip set on disk: its index, the rules it was cut by, and the windows of a scene that may become chips.

A chip set is a folder with `index.parquet` (GeoParquet, a row per chip), `footprints.parquet` (see `drawn_buildings`),
`chips.json` (the rules), `scenes.json` (facts about each scene), `item.json` (the set as a STAC item) and a Zarr store
`<scene>.zarr` per scene (see `zarr_store`). Among the artifacts of a run there is also `files.json`, with the SHA-256
of each file. What is read is compared: index, footprints and rules with that list, each chip with its hash in the
index.
"""

import functools
import hashlib
import io
import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np

from ocmlflow import redaction
from ocmlflow.chips import splits, zarr_store
from ocmlflow.chips.scene_survey import Overview, SceneSurvey
from ocmlflow.chips.zarr_store import Chip, Folder
from ocmlflow.errors import InputError
from ocmlflow.scenes import geobox, windows
from ocmlflow.scenes.geobox import GeoBox
from ocmlflow.storage import hrefs

FILE_LIST = "files.json"
"""List of the files of a chip set, with `bytes` and `sha256` of each; missing in a set that no run keeps."""
FETCH_THREADS = 8
"""Remote chips that a process fetches at the same time."""
PREFETCH = 16
"""Remote chips that are fetched ahead of the one that is asked for."""


@dataclass(frozen=True)
class Rules:
    """How scenes are cut into chips."""

    gsd: float
    """Metres per pixel."""
    size: int
    """Pixels along a side."""
    stride: int
    """Pixels from one chip to the next; a divisor of `size`."""
    min_valid: float
    """Least share of a chip, 0 to 1, that must show imagery."""
    buffer_m: float
    """Training ignores pixels that are nearer to an outline, in metres; 0 ignores none."""


@dataclass(frozen=True)
class ChipSet:
    """A chip set, open for reading."""

    folder: Folder
    """Where it is."""
    index: gpd.GeoDataFrame
    """A row per chip: id, scene, place, catalog (href), split, fold (with folds only), position (in its scene's store),
    row and col (of its first pixel on the scene's grid), gsd and native_gsd (of chip and image, metres per pixel), utm
    (CRS of the grid), x and y (of its middle, in that CRS), valid_share, building_share (of the valid pixels), red,
    green and blue (means, 0 to 255, of every 16th valid pixel), hash (of its arrays), geometry (outline, lon, lat)."""
    rules: dict[str, Any]
    """The rules of cut and split, and `catalog`, the href of the scenes."""
    run: str | None = None
    """Run id of the `prepare` run that keeps the chips; None for a folder that no run keeps."""

    def select(self, split: str) -> gpd.GeoDataFrame:
        """Rows of the split `train`, `validation` or `test`, numbered from 0."""
        return self.index[self.index.split == split].reset_index(drop=True)


def candidates(survey: SceneSurvey, *, rules: Rules) -> gpd.GeoDataFrame:
    """Windows of a scene that may become chips: rows of an index, id to y and geometry, with a column `imagery`.

    `imagery` is the share of the window, 0 to 1, that shows imagery by the scene's overview: an estimate, for only
    cutting tells. It is 0 for a window of which too little lies on the scene's grid. Such a window stays in the table,
    because the chips of other windows must not change with it: all windows of a block are read together.
    """
    grid = survey.grid
    row, col = _window_corners(grid, rules)
    imagery, near_imagery = _imagery(survey.overview, row, col, rules.size)
    height = (grid.height - row).clip(max=rules.size)
    width = (grid.width - col).clip(max=rules.size)
    imagery[height * width < rules.min_valid * rules.size**2] = 0
    if rules.min_valid > 0:  # else a chip may show one pixel of imagery, too small for an overview
        row, col, imagery = row[near_imagery], col[near_imagery], imagery[near_imagery]
    middle: tuple[Any, Any] = col + rules.size / 2, row + rules.size / 2  # arrays, which Affine takes but does not type
    x, y = grid.transform @ middle
    frame = {
        "id": [f"{survey.scene.id}-{r:06d}-{c:06d}" for r, c in zip(row, col, strict=True)],
        "scene": survey.scene.id,
        "place": survey.scene.place,
        "catalog": redaction.redact(survey.scene.catalog),
        "row": row,
        "col": col,
        "gsd": rules.gsd,
        "native_gsd": survey.native_gsd,
        "utm": grid.crs,
        "x": x,
        "y": y,
        "imagery": imagery,
    }
    outlines = geobox.outlines(grid, row, col, size=rules.size)
    return gpd.GeoDataFrame(frame, geometry=outlines, crs="EPSG:4326")


def save(
    folder: Path, index: gpd.GeoDataFrame, rules: dict[str, Any], scenes: list[dict[str, Any]], item: dict[str, Any]
) -> None:
    """Write index, facts of the scenes, STAC item and rules beside the stores in `folder`, the rules last.

    A folder with rules is a complete chip set.
    """
    index.to_parquet(folder / "index.parquet")
    (folder / "scenes.json").write_text(json.dumps(scenes, indent=2))
    (folder / "item.json").write_text(json.dumps(item, indent=2))
    (folder / "chips.json").write_text(json.dumps(rules, indent=2))


def load(folder: Folder, *, fold: int | None = None) -> ChipSet:
    """The chip set in `folder`, with fold number `fold` held out for validation if it is given.

    Raises InputError where there is no complete chip set, where its index or rules are damaged, or no such fold.
    """
    hashes = listed_hashes(folder)
    try:
        rules = _parse_rules(folder, read_checked(folder, "chips.json", hashes))
    except FileNotFoundError as error:
        raise InputError(f"no chips: chips.json, which is written last, is not there ({error})") from error
    chips = ChipSet(folder, _read_index(folder, hashes), rules)
    return chips if fold is None else hold_out_fold(chips, fold)


def hold_out_fold(chips: ChipSet, fold: int) -> ChipSet:
    """The chip set with another fold held out for validation; InputError where there is no such fold."""
    index, rules = chips.index, chips.rules
    if "fold" not in index:
        raise InputError(f"fold={fold}: these chips have no folds; `prepare` makes them with folds=5")
    if rules["size"] % rules["stride"]:
        raise InputError(
            f"fold={fold}: these chips come from an earlier version, in which most chips of a fold overlap; "
            "prepare them again"
        )
    settings = {name: rules[name] for name in ("size", "empty_share", "seed")}
    return replace(chips, index=splits.hold_out_fold(index, fold, **settings))


def read(folder: Folder, row: Any) -> Chip:
    """The chip of a row of the index; InputError where it is not the chip that was written."""
    store = f"{row.scene}.zarr"
    chip = zarr_store.read(folder, store, row.position)
    if content_hash(*(array for array in chip if array is not None)) != row.hash:
        image, label = (zarr_store.shard_path(store, array, row.position) for array in ("image", "label"))
        reason = f"by its hash in index.parquet, chip {row.id} is not the one that was written"
        raise zarr_store.damaged(folder, image, f"{reason} (or {label} is damaged)")
    return chip


def content_hash(*arrays: np.ndarray) -> str:
    """Hash, 16 hex digits, of the pixels of a chip's arrays: image, label and, if it has them, targets."""
    content = hashlib.sha256()
    for values in arrays:
        content.update(values.data)
    return content.hexdigest()[:16]


def read_all(folder: Folder, rows: Iterable[Any]) -> Iterator[Chip]:
    """The chips of some rows, in their order; remote chips are fetched ahead by several threads."""
    if isinstance(folder, Path):
        yield from (read(folder, row) for row in rows)
        return
    pending: deque[Future[Chip]] = deque()
    try:
        for row in rows:
            pending.append(_fetch_threads().submit(read, folder, row))
            if len(pending) > PREFETCH:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


@functools.cache
def _fetch_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(FETCH_THREADS, "chips")


def digest(index: gpd.GeoDataFrame) -> str:
    """Hash, 32 hex digits, of what the chips hold and how they are split."""
    return hrefs.digest(index[["id", "split", "hash"]].sort_values("id").to_csv(index=False, lineterminator="\n"))


def rules_record(rules: Rules, **more: Any) -> dict[str, Any]:
    """The rules of the cut and `more` of the split, as `save` takes them."""
    return {**asdict(rules), **more}


def listed_hashes(folder: Folder) -> dict[str, str] | None:
    """SHA-256 of each file in the list of files; None where the folder has no such list."""
    try:
        content = zarr_store.read_bytes(folder, FILE_LIST)
    except FileNotFoundError:
        return None
    try:
        return {str(name): str(file["sha256"]) for name, file in json.loads(content).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise zarr_store.damaged(folder, FILE_LIST, "it is not a list of files with their SHA-256") from error


def read_checked(folder: Folder, name: str, hashes: dict[str, str] | None) -> bytes:
    """The content of a file, compared with its hash in the list of files if there is one."""
    content = zarr_store.read_bytes(folder, name)
    if hashes is not None and hashlib.sha256(content).hexdigest() != hashes.get(name):
        raise zarr_store.damaged(folder, name, f"its content does not match its SHA-256 in {FILE_LIST}")
    return content


def _parse_rules(folder: Folder, content: bytes) -> dict[str, Any]:
    """The rules in a chips.json; InputError where a rule is missing or of the wrong type."""
    try:
        rules = json.loads(content)
    except ValueError as error:
        raise zarr_store.damaged(folder, "chips.json", f"it is not JSON ({error})") from error
    if not isinstance(rules, dict):
        raise zarr_store.damaged(folder, "chips.json", f"it holds a {type(rules).__name__}, not rules by their names")
    for names, types, expected in (
        (("gsd", "buffer_m"), (int, float), "a number"),
        (("size", "stride"), int, "a whole number"),
        (("catalog",), str, "an address"),
    ):
        for name in names:
            value = rules.get(name)
            if not isinstance(value, types) or isinstance(value, bool):
                raise zarr_store.damaged(folder, "chips.json", f"{name} is {json.dumps(value)}, not {expected}")
    return rules


def _read_index(folder: Folder, hashes: dict[str, str] | None) -> gpd.GeoDataFrame:
    try:
        content = read_checked(folder, "index.parquet", hashes)
    except FileNotFoundError as error:
        raise zarr_store.damaged(folder, "index.parquet", "there is no such file") from error
    try:
        index = gpd.read_parquet(io.BytesIO(content))
    except Exception as error:  # pyarrow and geopandas raise of many types
        raise zarr_store.damaged(folder, "index.parquet", f"it cannot be read ({error})") from error
    columns = ("id", "scene", "place", "catalog", "split", "position", "building_share", "hash", "geometry")
    if missing := [name for name in columns if name not in index]:
        raise zarr_store.damaged(folder, "index.parquet", f"it has no column {', '.join(missing)}")
    return index


def _window_corners(grid: GeoBox, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the first pixel of every window of a grid, (windows,) int each, row by row."""
    rows = windows.start_offsets(grid.height, size=rules.size, stride=rules.stride)
    cols = windows.start_offsets(grid.width, size=rules.size, stride=rules.stride)
    row, col = np.meshgrid(rows, cols, indexing="ij")
    return row.ravel(), col.ravel()


def _imagery(overview: Overview, row: np.ndarray, col: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Share of imagery of each window, 0 to 1, and whether there is any in it or within two coarse pixels of it."""
    share = _imagery_pixels(overview, row, col, size, margin=0) / (size / overview.factor) ** 2
    return np.minimum(share, 1.0), _imagery_pixels(overview, row, col, size, margin=2) > 0


def _imagery_pixels(overview: Overview, row: np.ndarray, col: np.ndarray, size: int, *, margin: int) -> np.ndarray:
    """(windows,) int: coarse pixels of imagery in each window, widened by `margin` coarse pixels on each side."""
    # Sums over all pixels above and to the left, from which the sum of any rectangle follows.
    sums = np.pad(overview.imagery.cumsum(0, dtype=np.int64).cumsum(1), ((1, 0), (1, 0)))
    height, width = overview.imagery.shape
    top = (row // overview.factor - margin).clip(0, height)
    left = (col // overview.factor - margin).clip(0, width)
    bottom = (-(-(row + size) // overview.factor) + margin).clip(0, height)
    right = (-(-(col + size) // overview.factor) + margin).clip(0, width)
    return np.asarray(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left])
