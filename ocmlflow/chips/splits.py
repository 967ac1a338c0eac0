"""The index of chips, to one split by ground: training, validation and test share none of it."""

import hashlib

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from ocmlflow.errors import InputError

TOUCH_TOLERANCE_DEG = 1e-7
"""Outlines nearer than this touch: a centimetre, more than reprojecting them loses."""
TRAIN, VALIDATION, TEST, UNUSED = "train", "validation", "test", "unused"
SPLITS = (TRAIN, VALIDATION, TEST)


def assign(
    index: gpd.GeoDataFrame, *, validation: str | None, test: str | None, folds: int | None, block_m: float, seed: int
) -> gpd.GeoDataFrame:
    """The index with column `split` (train, validation, test) and, with `folds`, column `fold` (0 to folds - 1).

    `validation` names places or scenes, separated by commas, or is the share (0 to 1) of all chips to hold out in
    blocks of ground of `block_m` metres, drawn by `seed`; `test` does the same. Blocks are drawn from what names left,
    those of test first. With `folds` every block belongs to one of so many equal parts, and the first is held out;
    `validation` and `test` are None then. A split depends on where chips lie, never on what they show.
    """
    if folds:
        index = index.assign(fold=_folds(index, folds, block_m, seed))
        return index.assign(split=np.where(index.fold == 0, VALIDATION, TRAIN))
    split, known = np.full(len(index), TRAIN, dtype=object), set(index.place) | set(index.scene)
    wanted = [(name, told) for name, told in ((TEST, test), (VALIDATION, validation)) if told is not None]
    shares = {name: _share(name, told, known) for name, told in wanted}
    for name, told in sorted(wanted, key=lambda one: shares[one[0]] is not None):  # names before shares
        share, free = shares[name], split == TRAIN
        held_out = _named(index, told) if share is None else free & _blocks(index, free, share, block_m, seed)
        if (held_out & ~free).any():
            raise InputError(f"{(held_out & ~free).sum()} chips of validation={told} are in test={test} as well")
        if not held_out.any() or not (free & ~held_out).any():
            would_do = f"Places: {', '.join(sorted(set(index.place)))}"
            if share is not None:
                would_do = (
                    f"They lie on {_counted(index[free], block_m)}; smaller blocks (block_m) would do, and where chips "
                    "are few smaller ones (size) as well"
                )
            if sum(filter(None, shares.values())) >= 1:
                would_do = "Shares of less than 1 in all would do"
            raise InputError(
                f"{name}={told} puts {held_out.sum()} of {free.sum()} chips into {name}; every split needs some. "
                f"{would_do}"
            )
        split[held_out] = name
    return index.assign(split=split.astype(str))


def drop_touching(index: gpd.GeoDataFrame) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """The rows of which no chip touches one of another split, and those that did.

    Training gives way to validation and test, validation to test. Chips of other scenes on the same ground count.
    """
    touching = (index.split == VALIDATION).to_numpy() & touches(index, index[index.split == TEST])
    held_out = index[index.split.isin([VALIDATION, TEST]) & ~touching]
    touching |= (index.split == TRAIN).to_numpy() & touches(index, held_out)
    kept, dropped = index[~touching].reset_index(drop=True), index[touching].reset_index(drop=True)
    check_disjoint(kept)
    return kept, dropped


def hold_out_fold(index: gpd.GeoDataFrame, fold: int, *, size: int, empty_share: float, seed: int) -> gpd.GeoDataFrame:
    """The same rows with that fold held out; training chips that touch it, or are too many empty ones, are `unused`.

    So are validation chips that overlap others, as in `thin`.
    """
    folds = int(index.fold.max()) + 1
    if not 0 <= fold < folds:
        raise InputError(f"fold={fold}: these chips have folds 0 to {folds - 1}")
    held_out = np.asarray(index.fold == fold)
    scored = held_out & _side_by_side(index, size)
    left_out = touches(index, index[scored])
    left_out |= np.asarray(index.building_share == 0) & ~sample_ids(index.id, empty_share, seed)
    split = np.select([scored, held_out | left_out], [VALIDATION, UNUSED], TRAIN)
    index = index.assign(split=split)
    check_disjoint(index)
    return index


def without_overlap(index: gpd.GeoDataFrame, *, size: int) -> gpd.GeoDataFrame:
    """The index with held-out chips that lie side by side: a pixel counts once in a score. Training keeps all."""
    return index[(index.split == TRAIN) | _side_by_side(index, size)].reset_index(drop=True)


def sample_ids(ids: pd.Series, share: float, seed: int) -> np.ndarray:
    """(rows,) bool: about this share of the ids, each drawn by itself, so that another id more changes no other."""
    if share >= 1:
        return np.ones(len(ids), bool)
    digests = (hashlib.sha256(f"{seed} {name}".encode()).digest() for name in ids)
    return np.array([int.from_bytes(digest[:8], "big") < share * 2**64 for digest in digests], bool)


def touches(index: gpd.GeoDataFrame, other: gpd.GeoDataFrame) -> np.ndarray:
    """(rows,) bool: which chips of `index` touch or overlap a chip of `other` on the ground."""
    tree = shapely.STRtree(other.geometry.to_numpy())
    pairs = tree.query(index.geometry.to_numpy(), predicate="dwithin", distance=TOUCH_TOLERANCE_DEG)
    return np.isin(np.arange(len(index)), pairs[0])


def shares_ground(index: gpd.GeoDataFrame, other: gpd.GeoDataFrame) -> np.ndarray:
    """(rows,) bool: which chips of `index` show what `other` does: the same ground, or buildings in the same pixels."""
    # The same pixels under another georeference; but one blank field may well be as another.
    same = index.hash.isin(other.hash) & (index.building_share > 0)
    return touches(index, other) | same.to_numpy()


def check_disjoint(index: gpd.GeoDataFrame) -> None:
    """Raise InputError unless training and validation hold chips, and no two splits share ground."""
    train, validation, test = (index[index.split == split] for split in (TRAIN, VALIDATION, TEST))
    if not len(train) or not len(validation):
        raise InputError(
            f"{len(train)} chips for training and {len(validation)} for validation that do not touch: both are needed. "
            "Hold out less ground, or use smaller blocks (block_m) or chips (size)"
        )
    for some, kind, others in (
        (train, "training", validation),
        (train, "training", test),
        (validation, "validation", test),
    ):
        if met := int(touches(some, others).sum()):
            raise InputError(
                f"{met} {kind} chips lie on the ground of {others.split.iloc[0]} chips: scores would be flattered"
            )


def spatial_blocks(index: gpd.GeoDataFrame, block_m: float) -> np.ndarray:
    """(rows,) int: the number, from 0, of the block of ground of `block_m` metres that each chip's middle lies in."""
    cells = [index.utm, index.x // block_m, index.y // block_m]
    return np.asarray(pd.MultiIndex.from_arrays(cells).factorize(sort=True)[0])


def _share(name: str, told: str, known: set[str]) -> float | None:
    """The share of 0 to 1 that was told of a split, or None where it was names of known places and scenes.

    Names may be of digits alone. InputError for anything else.
    """
    if _names(told) <= known:
        return None
    try:
        share = float(told)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise InputError(
            f"{name}={told} is neither a share between 0 and 1 nor names of places or scenes with labels; "
            f"there are: {', '.join(sorted(known))}"
        )
    return share


def _named(index: gpd.GeoDataFrame, names: str) -> np.ndarray:
    return np.asarray(index.place.isin(_names(names)) | index.scene.isin(_names(names)))


def _names(text: str) -> set[str]:
    return {name.strip() for name in text.split(",")}


def _side_by_side(index: gpd.GeoDataFrame, size: int) -> np.ndarray:
    return np.asarray((index.row % size == 0) & (index.col % size == 0))


def _blocks(index: gpd.GeoDataFrame, free: np.ndarray, share: float, block_m: float, seed: int) -> np.ndarray:
    """(rows,) bool: chips in blocks of ground drawn until their free chips are about `share` of all, at least one."""
    cells, _, order = _shuffled(index, block_m, seed)
    sizes = np.bincount(cells[free], minlength=len(order))
    order = order[sizes[order] > 0]
    taken = np.cumsum(sizes[order]) - sizes[order] / 2 <= share * len(index)
    taken[0] = True
    return np.isin(cells, order[taken])


def _counted(index: gpd.GeoDataFrame, block_m: float) -> str:
    """On how many blocks of ground the chips lie, in words."""
    count = int(spatial_blocks(index, block_m).max()) + 1
    return f"{count} block{'s' * (count > 1)} of {block_m:g} m"


def _folds(index: gpd.GeoDataFrame, folds: int, block_m: float, seed: int) -> np.ndarray:
    """(rows,) int: the part, 0 to folds - 1, of each chip's block; the largest blocks are dealt first, for balance."""
    cells, sizes, order = _shuffled(index, block_m, seed)
    if len(sizes) < folds:
        raise InputError(
            f"folds={folds}: the scenes lie on {_counted(index, block_m)}; smaller blocks (block_m) or fewer folds "
            "would do"
        )
    loads, part_of = np.zeros(folds), np.zeros(len(sizes), int)
    for block in sorted(order, key=lambda block: -sizes[block]):
        part_of[block] = loads.argmin()
        loads[part_of[block]] += sizes[block]
    return part_of[cells]


def _shuffled(index: gpd.GeoDataFrame, block_m: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The block of each chip, the chips of each block, and the blocks in an order that the seed draws."""
    cells = spatial_blocks(index, block_m)
    sizes = np.bincount(cells)
    return cells, sizes, np.random.default_rng(seed).permutation(len(sizes))
