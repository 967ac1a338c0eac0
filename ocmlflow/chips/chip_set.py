"""Scenes, to chip stores and their index.

A set of chips is a folder: `index.parquet` (GeoParquet, a row a chip), `chips.json` (the rules they were cut by),
`scenes.json` (what was found of each scene) and for every scene a Zarr store `<scene>.zarr` (see `store`).
"""

import functools
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
from ocmlflow.storage import hrefs

FETCH_THREADS, PREFETCH = 8, 16
"""Chips that are fetched at the same time, of a process; and those fetched before they are asked for."""


@dataclass(frozen=True)
class Rules:
    """How chips are cut."""

    gsd: float
    """Metres per pixel."""
    size: int
    """Pixels along a side."""
    stride: int
    """Pixels from one chip to the next; divides `size`."""
    min_valid: float
    """Chips with a smaller share of imagery are left out."""
    buffer_m: float
    """Training leaves out what is nearer to an outline; 0 for nothing."""
    parts: bool
    """Whether the classes interior, boundary and touching are stored beside the label."""


@dataclass(frozen=True)
class ChipSet:
    """A set of chips, open for reading."""

    folder: Folder
    index: gpd.GeoDataFrame
    """Columns id, scene, place, catalog, split, fold (where there are folds), position (in the store), row, col (of
    the first pixel, on the scene's grid of `gsd`), gsd, native_gsd, utm (its CRS), x, y (of the middle, in metres),
    valid_share, building_share, red, green, blue (means, 0 to 255, of every sixteenth valid pixel), hash, geometry
    (lon, lat)."""
    rules: dict[str, Any]
    """Rules of the cut and the split, and `catalog`, the href it came from."""
    run: str | None = None
    """Run id of the `prepare` run that keeps the chips; None for a folder that no run keeps."""

    def select(self, split: str) -> gpd.GeoDataFrame:
        """The rows of one split, `train`, `validation` or `test`."""
        return self.index[self.index.split == split].reset_index(drop=True)


def candidates(found: SceneSurvey, *, rules: Rules) -> gpd.GeoDataFrame:
    """Rows (id to y and geometry, as in an index) of the windows of a scene that may show imagery.

    Which of them do, and how much, is known when they are cut; `imagery` is the share that the overview shows, 0 where
    so little of a window lies on the scene's grid that it is left out for sure. Those stay in the table, for pixels of
    the others are rounded by the ground that they are read with.
    """
    rows = windows.start_offsets(found.grid.height, size=rules.size, stride=rules.stride)
    cols = windows.start_offsets(found.grid.width, size=rules.size, stride=rules.stride)
    row, col = (axis.ravel() for axis in np.meshgrid(rows, cols, indexing="ij"))
    share, near = _imagery(found.overview, row, col, rules.size)
    some = near if rules.min_valid > 0 else np.ones_like(near)  # a pixel is too small for an overview
    height, width = (found.grid.height - row).clip(max=rules.size), (found.grid.width - col).clip(max=rules.size)
    share[height * width < rules.min_valid * rules.size**2] = 0
    row, col, share = row[some], col[some], share[some]
    x, y = found.grid.transform @ (col + rules.size / 2, row + rules.size / 2)
    frame = {
        "id": [f"{found.scene.id}-{r:06d}-{c:06d}" for r, c in zip(row, col, strict=True)],
        "scene": found.scene.id,
        "place": found.scene.place,
        "catalog": redaction.redact(found.scene.catalog),
        "row": row,
        "col": col,
        "gsd": rules.gsd,
        "native_gsd": found.native_gsd,
        "utm": found.grid.crs,
        "x": x,
        "y": y,
        "imagery": share,
    }
    outlines = geobox.outlines(found.grid, row, col, size=rules.size)
    return gpd.GeoDataFrame(frame, geometry=outlines, crs="EPSG:4326")


def save(
    folder: Path, index: gpd.GeoDataFrame, rules: dict[str, Any], scenes: list[dict[str, Any]], item: dict[str, Any]
) -> None:
    """Write index, table of scenes, STAC item and rules of the chips in `folder`; the set is whole from then on."""
    index.to_parquet(folder / "index.parquet")
    (folder / "scenes.json").write_text(json.dumps(scenes, indent=2))
    (folder / "item.json").write_text(json.dumps(item, indent=2))
    (folder / "chips.json").write_text(json.dumps(rules, indent=2))


def load(folder: Folder, *, fold: int | None = None) -> ChipSet:
    """The set of chips in `folder`, with another fold held out if one is given; InputError where there is none."""
    try:
        rules = json.loads(zarr_store.read_bytes(folder, "chips.json"))
    except FileNotFoundError as error:
        raise InputError(f"no chips: chips.json, which is written last, is not there ({error})") from error
    found = ChipSet(folder, gpd.read_parquet(io.BytesIO(zarr_store.read_bytes(folder, "index.parquet"))), rules)
    if fold is None:
        return found
    if "fold" not in found.index:
        raise InputError(f"fold={fold}: these chips have no folds; `prepare` makes them with folds=5")
    if rules["size"] % rules["stride"]:
        raise InputError(
            f"fold={fold}: of these chips, of an earlier version, most of a fold overlap: prepare them anew"
        )
    how = {name: rules[name] for name in ("size", "empty_share", "seed")}
    return replace(found, index=splits.hold_out_fold(found.index, fold, **how))


def read(folder: Folder, row: Any) -> Chip:
    """The chip of one row of the index."""
    return zarr_store.read(folder, f"{row.scene}.zarr", row.position)


def read_all(folder: Folder, rows: Iterable[Any]) -> Iterator[Chip]:
    """The chips of some rows in their order; what is far away is fetched some chips ahead, side by side."""
    if isinstance(folder, Path):
        yield from (read(folder, row) for row in rows)
        return
    coming: deque[Future[Chip]] = deque()
    try:
        for row in rows:
            coming.append(_fetchers().submit(read, folder, row))
            if len(coming) > PREFETCH:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        for future in coming:
            future.cancel()


@functools.cache
def _fetchers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(FETCH_THREADS, "chips")


def digest(index: gpd.GeoDataFrame) -> str:
    """32 hex digits that name what the chips hold and how they are split."""
    return hrefs.digest(index[["id", "split", "hash"]].sort_values("id").to_csv(index=False))


def rules_record(rules: Rules, **more: Any) -> dict[str, Any]:
    """The rules as they are saved beside the index."""
    return {**asdict(rules), **more}


def _imagery(overview: Overview, row: np.ndarray, col: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Share of imagery of each window, and whether there is any in it or a coarse pixel or two around."""
    sums = np.pad(overview.imagery.cumsum(0, dtype=np.int64).cumsum(1), ((1, 0), (1, 0)))
    height, width = overview.imagery.shape

    def inside(around: int) -> np.ndarray:
        top, left = row // overview.factor - around, col // overview.factor - around
        bottom, right = -(-(row + size) // overview.factor) + around, -(-(col + size) // overview.factor) + around
        top, bottom = top.clip(0, height), bottom.clip(0, height)
        left, right = left.clip(0, width), right.clip(0, width)
        return np.asarray(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left])

    return np.minimum(inside(0) / (size / overview.factor) ** 2, 1.0), inside(2) > 0
