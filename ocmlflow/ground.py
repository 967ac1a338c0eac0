"""The index of chips, to one split by ground: training and validation share none of it."""

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from ocmlflow.chips import Rules
from ocmlflow.errors import InputError

APART_DEG = 1e-7
"""Outlines nearer than this touch: a centimetre, more than reprojecting them loses."""


def split(
    index: gpd.GeoDataFrame, *, validation: str, block_m: float, seed: int
) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """The index with column `split`, and the rows taken out so that no training chip touches a validation chip.

    `validation` names places or scenes, separated by commas, or is the share (0 to 1) of the chips to hold out in
    blocks of ground of `block_m` metres, drawn by `seed`. Chips of other scenes on the same ground count as touching.
    """
    check_validation(validation, set(index.place) | set(index.scene))
    share = _number(validation)
    held_out = _named(index, validation) if share is None else _blocks(index, share, block_m, seed)
    if held_out.all() or not held_out.any():
        raise InputError(
            f"validation={validation} puts {held_out.sum()} of {len(index)} chips into validation; both splits need "
            f"some. Places: {', '.join(sorted(set(index.place)))}"
        )
    index = index.assign(split=np.where(held_out, "validation", "train"))
    touching = ~held_out & meets(index, index[held_out])
    kept, dropped = index[~touching].reset_index(drop=True), index[touching].reset_index(drop=True)
    check_apart(kept)
    return kept, dropped


def check_validation(validation: str, known: set[str]) -> None:
    """Raise InputError unless `validation` is a share of 0 to 1 or names some of the known places and scenes."""
    share = _number(validation)
    unknown = set() if share is not None else _names(validation) - known
    if unknown or (share is not None and not 0 < share < 1):
        raise InputError(
            f"validation={validation} is neither a share between 0 and 1 nor names of places or scenes with labels; "
            f"there are: {', '.join(sorted(known))}"
        )


def thin(index: gpd.GeoDataFrame, rules: Rules) -> gpd.GeoDataFrame:
    """The index with validation chips that do not overlap: a pixel counts once in a score. Training keeps all."""
    step = rules.stride * -(-rules.size // rules.stride)
    apart = (index.row % step == 0) & (index.col % step == 0)
    return index[(index.split != "validation") | apart].reset_index(drop=True)


def meets(index: gpd.GeoDataFrame, other: gpd.GeoDataFrame) -> np.ndarray:
    """(rows,) bool: which chips of `index` touch or overlap a chip of `other` on the ground."""
    tree = shapely.STRtree(other.geometry.to_numpy())
    pairs = tree.query(index.geometry.to_numpy(), predicate="dwithin", distance=APART_DEG)
    return np.isin(np.arange(len(index)), pairs[0])


def check_apart(index: gpd.GeoDataFrame) -> None:
    """Raise InputError unless both splits hold chips and share no ground."""
    train, validation = index[index.split == "train"], index[index.split == "validation"]
    if not len(train) or not len(validation):
        raise InputError(
            f"{len(train)} chips for training and {len(validation)} for validation: both are needed. "
            "Hold out less ground, or use smaller blocks or chips"
        )
    met = int(meets(train, validation).sum())
    if met:
        raise InputError(f"{met} training chips lie on the ground of validation chips: scores would be flattered")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _named(index: gpd.GeoDataFrame, names: str) -> np.ndarray:
    return np.asarray(index.place.isin(_names(names)) | index.scene.isin(_names(names)))


def _names(text: str) -> set[str]:
    return {name.strip() for name in text.split(",")}


def _blocks(index: gpd.GeoDataFrame, share: float, block_m: float, seed: int) -> np.ndarray:
    """(rows,) bool: chips in blocks of ground drawn until they hold about `share` of the chips, at least one block."""
    cells = pd.MultiIndex.from_arrays([index.utm, index.x // block_m, index.y // block_m]).factorize(sort=True)[0]
    sizes = np.bincount(cells)
    order = np.random.default_rng(seed).permutation(len(sizes))
    drawn = np.cumsum(sizes[order]) - sizes[order] / 2 <= share * len(index)
    drawn[0] = True
    return np.isin(cells, order[drawn])
