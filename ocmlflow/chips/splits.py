"""Splits chips into training, validation and test by ground, so that no two splits share any; and into folds."""

import hashlib
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from ocmlflow.errors import InputError

TOUCH_TOLERANCE_DEG = 1e-7
"""Outlines nearer than this touch: about a centimetre, more than they move when they are reprojected."""
TRAIN, VALIDATION, TEST, UNUSED = "train", "validation", "test", "unused"
SPLITS = (TRAIN, VALIDATION, TEST)


@dataclass(frozen=True)
class _Request:
    """What a user wants held out for one split."""

    split: str
    text: str
    """As the user gave it."""
    share: float | None
    """Share of all chips, 0 to 1; None where the text names places or scenes."""


def assign(
    index: gpd.GeoDataFrame, *, validation: str | None, test: str | None, folds: int | None, block_m: float, seed: int
) -> gpd.GeoDataFrame:
    """The index with column `split` (train, validation, test) and, with `folds`, column `fold` (0 to folds - 1).

    `validation` and `test` each name places or scenes, separated by commas, or are the share (0 to 1) of all chips to
    hold out. Shares are drawn by `seed` from square blocks of ground of `block_m` metres, the share of test first,
    among blocks whose chips no name holds out. With `folds`, every block belongs to one of that many equal parts, the
    first of which is for validation; `validation` and `test` are None then. A split depends on where chips lie, never
    on what they show. Raises InputError for unknown names and for splits that would be empty.
    """
    if folds:
        index = index.assign(fold=_deal_folds(index, folds, block_m, seed))
        return index.assign(split=np.where(index.fold == 0, VALIDATION, TRAIN))
    known = set(index.place) | set(index.scene)
    texts = {TEST: test, VALIDATION: validation}
    requests = [_read_request(name, text, known) for name, text in texts.items() if text is not None]
    split = np.full(len(index), TRAIN, dtype=object)
    for request in sorted(requests, key=lambda request: request.share is not None):  # names before shares
        free = split == TRAIN
        if request.share is None:
            held_out = _in_places(index, request.text)
        else:
            held_out = free & _draw_blocks(index, free, request.share, block_m, seed)
        if (held_out & ~free).any():
            raise InputError(f"{(held_out & ~free).sum()} chips of validation={validation} are in test={test} as well")
        if not held_out.any() or not (free & ~held_out).any():
            raise InputError(
                f"{request.split}={request.text} puts {held_out.sum()} of {free.sum()} chips into {request.split}; "
                f"every split needs some. {_advice(index, free, request, requests, block_m)}"
            )
        split[held_out] = request.split
    return index.assign(split=split.astype(str))


def drop_touching(index: gpd.GeoDataFrame) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """The index without chips that touch another split, and the rows that were dropped.

    A validation chip that touches test ground is dropped, and a training chip that touches either. Chips of different
    scenes on the same ground touch too. Raises InputError as `check_disjoint` does.
    """
    dropped = (index.split == VALIDATION).to_numpy() & touches(index, index[index.split == TEST])
    held_out = index[index.split.isin([VALIDATION, TEST]) & ~dropped]
    dropped |= (index.split == TRAIN).to_numpy() & touches(index, held_out)
    kept = index[~dropped].reset_index(drop=True)
    check_disjoint(kept)
    return kept, index[dropped].reset_index(drop=True)


def hold_out_fold(index: gpd.GeoDataFrame, fold: int, *, size: int, empty_share: float, seed: int) -> gpd.GeoDataFrame:
    """The index with another fold as validation; all other chips are for training or `unused`.

    Unused are chips of other folds that touch the fold, empty ones beyond `empty_share`, and validation chips that
    overlap others (see `without_overlap`). Raises InputError for a fold that the chips do not have.
    """
    folds = int(index.fold.max()) + 1
    if not 0 <= fold < folds:
        raise InputError(f"fold={fold}: these chips have folds 0 to {folds - 1}")
    held_out = np.asarray(index.fold == fold)
    scored = held_out & _side_by_side(index, size)
    unused = held_out | touches(index, index[scored])
    unused |= np.asarray(index.building_share == 0) & ~sample_ids(index.id, empty_share, seed)
    split = np.select([scored, unused], [VALIDATION, UNUSED], TRAIN)
    index = index.assign(split=split)
    check_disjoint(index)
    return index


def without_overlap(index: gpd.GeoDataFrame, *, size: int) -> gpd.GeoDataFrame:
    """The index with only those held-out chips that lie side by side, so that a score counts each pixel once.

    Training chips may overlap and stay.
    """
    return index[(index.split == TRAIN) | _side_by_side(index, size)].reset_index(drop=True)


def sample_ids(ids: pd.Series, share: float, seed: int) -> np.ndarray:
    """(rows,) bool: about this share of the ids, each drawn by its own hash, so that more ids change no other draw."""
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
    """(rows,) bool: which chips of `index` touch a chip of `other`, or show buildings in the very same pixels."""
    # Equal pixels are the same ground under another georeference; empty chips can be equal by chance.
    equal = index.hash.isin(other.hash) & (index.building_share > 0)
    return touches(index, other) | equal.to_numpy()


def check_disjoint(index: gpd.GeoDataFrame) -> None:
    """Raise InputError unless training and validation hold chips, and no two splits share ground."""
    train, validation, test = (index[index.split == split] for split in (TRAIN, VALIDATION, TEST))
    if not len(train) or not len(validation):
        raise InputError(
            f"{len(train)} training chips and {len(validation)} validation chips that do not touch: both are needed. "
            "Hold out less ground, or use smaller blocks (block_m) or chips (size)"
        )
    for chips, kind, held_out in (
        (train, "training", validation),
        (train, "training", test),
        (validation, "validation", test),
    ):
        if count := int(touches(chips, held_out).sum()):
            raise InputError(
                f"{count} {kind} chips lie on the ground of {held_out.split.iloc[0]} chips: scores would be too good"
            )


def spatial_blocks(index: gpd.GeoDataFrame, block_m: float) -> np.ndarray:
    """(rows,) int: number, from 0, of the square of ground of `block_m` metres that the middle of each chip lies in."""
    cells = [index.utm, index.x // block_m, index.y // block_m]
    return np.asarray(pd.MultiIndex.from_arrays(cells).factorize(sort=True)[0])


def _read_request(split: str, text: str, known: set[str]) -> _Request:
    """What `text` wants held out: names, which may be digits alone, or a share; InputError where it is neither."""
    if _names(text) <= known:
        return _Request(split, text, None)
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise InputError(
            f"{split}={text} is neither a share between 0 and 1 nor names of places or scenes with labels; "
            f"there are: {', '.join(sorted(known))}"
        )
    return _Request(split, text, share)


def _advice(
    index: gpd.GeoDataFrame, free: np.ndarray, request: _Request, requests: list[_Request], block_m: float
) -> str:
    """What would help where a request leaves a split empty."""
    if sum(each.share or 0 for each in requests) >= 1:
        return "Use shares of less than 1 in all"
    if request.share is None:
        return f"Places: {', '.join(sorted(set(index.place)))}"
    return (
        f"They lie on {_block_count(index[free], block_m)}: use smaller blocks (block_m) and, where chips are few, "
        "smaller chips (size)"
    )


def _in_places(index: gpd.GeoDataFrame, names: str) -> np.ndarray:
    """(rows,) bool: chips of places or scenes of these names."""
    return np.asarray(index.place.isin(_names(names)) | index.scene.isin(_names(names)))


def _names(text: str) -> set[str]:
    return {name.strip() for name in text.split(",")}


def _side_by_side(index: gpd.GeoDataFrame, size: int) -> np.ndarray:
    return np.asarray((index.row % size == 0) & (index.col % size == 0))


def _draw_blocks(index: gpd.GeoDataFrame, free: np.ndarray, share: float, block_m: float, seed: int) -> np.ndarray:
    """(rows,) bool: chips of random blocks, at least one, whose free chips are about this share of all chips."""
    blocks = _shuffled_blocks(index, block_m, seed)
    free_sizes = np.bincount(blocks.of_chip[free], minlength=len(blocks.order))
    order = blocks.order[free_sizes[blocks.order] > 0]
    # A block is taken while its middle lies within the share: on average neither too many chips nor too few.
    taken = np.cumsum(free_sizes[order]) - free_sizes[order] / 2 <= share * len(index)
    taken[0] = True
    return np.isin(blocks.of_chip, order[taken])


def _block_count(index: gpd.GeoDataFrame, block_m: float) -> str:
    """Number of blocks that the chips lie on, in words."""
    count = int(spatial_blocks(index, block_m).max()) + 1
    return f"{count} block{'s' * (count > 1)} of {block_m:g} m"


def _deal_folds(index: gpd.GeoDataFrame, folds: int, block_m: float, seed: int) -> np.ndarray:
    """(rows,) int: fold of each chip's block; the largest blocks are dealt first, each to the smallest fold so far."""
    blocks = _shuffled_blocks(index, block_m, seed)
    if len(blocks.sizes) < folds:
        raise InputError(
            f"folds={folds}: the scenes lie on {_block_count(index, block_m)}: use smaller blocks (block_m) or fewer "
            "folds"
        )
    fold_sizes = np.zeros(folds)
    fold_of_block = np.zeros(len(blocks.sizes), int)
    for block in sorted(blocks.order, key=lambda block: -blocks.sizes[block]):
        smallest = fold_sizes.argmin()
        fold_of_block[block] = smallest
        fold_sizes[smallest] += blocks.sizes[block]
    return fold_of_block[blocks.of_chip]


@dataclass(frozen=True)
class _Blocks:
    """Blocks of ground, numbered from 0."""

    of_chip: np.ndarray
    """(rows,) int: block of each chip."""
    sizes: np.ndarray
    """(blocks,) int: chips of each block."""
    order: np.ndarray
    """(blocks,) int: the blocks in random order."""


def _shuffled_blocks(index: gpd.GeoDataFrame, block_m: float, seed: int) -> _Blocks:
    of_chip = spatial_blocks(index, block_m)
    sizes = np.bincount(of_chip)
    return _Blocks(of_chip, sizes, np.random.default_rng(seed).permutation(len(sizes)))
