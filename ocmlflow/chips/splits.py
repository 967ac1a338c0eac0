"""Splits chips into training, validation and test by ground, so that no two splits share any; and into folds."""

import hashlib
import logging
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import pandas as pd

from ocmlflow.chips import ground_blocks
from ocmlflow.chips.ground_blocks import touches
from ocmlflow.errors import InputError

log = logging.getLogger(__name__)

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
    index: gpd.GeoDataFrame,
    *,
    validation: str | None,
    test: str | None,
    folds: int | None,
    block_m: float | np.ndarray,
    seed: int,
) -> gpd.GeoDataFrame:
    """The index with column `split` (train, validation, test) and, with `folds`, column `fold` (0 to folds - 1).

    `validation` and `test` each name places or scenes, separated by commas, or are the share (0 to 1) of all chips to
    hold out. Shares are drawn by `seed` from square blocks of ground of `block_m` metres (one side for all, or one for
    each chip), the share of test first, among blocks whose chips no name holds out: about that share of each place that
    has enough blocks for it, others are logged. With `folds`, every block belongs to one of that many equal parts, the
    first of which is for validation; `validation` and `test` are None then. A split depends on where chips lie, never
    on what they show. Raises InputError for unknown names and for splits that would be empty.
    """
    if folds:
        index = index.assign(fold=ground_blocks.deal(index, folds, block_m, seed))
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
            held_out = free & ground_blocks.draw(index, free, request.share, block_m, seed)
            _log_places_left_out(index, free, held_out, request, block_m)
        if (held_out & ~free).any():
            raise InputError(f"{(held_out & ~free).sum()} chips of validation={validation} are in test={test} as well")
        if not held_out.any() or not (free & ~held_out).any():
            raise InputError(
                f"{request.split}={request.text} puts {held_out.sum()} of {free.sum()} chips into {request.split}; "
                f"every split needs some. {_advice(index, free, request, requests, block_m)}"
            )
        split[held_out] = request.split
    return index.assign(split=split.astype(str))


def fitting_block_m(
    index: gpd.GeoDataFrame,
    *,
    validation: str | None,
    test: str | None,
    folds: int | None,
    size: int,
    gsd: float,
    seed: int,
) -> np.ndarray:
    """(rows,) float: side in metres of the blocks to split each chip's place by, where the user names none.

    See `ground_blocks.fitting_side`. Chips have `size` pixels of `gsd` metres along a side; the other arguments are
    those of `assign`. Raises InputError where no place has ground enough to hold out a part of it.
    """
    known = set(index.place) | set(index.scene)
    texts = {TEST: test, VALIDATION: validation}
    requests = [_read_request(name, text, known) for name, text in texts.items() if text is not None]
    share = 1 / folds if folds else sum(request.share or 0 for request in requests)
    sides = np.full(len(index), ground_blocks.LARGEST_M)
    if not 0 < share < 1:
        return sides
    fitting = {
        str(place): ground_blocks.fitting_side(rows, share=share, blocks=folds or 2, smallest_m=size * gsd, seed=seed)
        for place, rows in index.groupby("place")
    }
    if not any(fitting.values()):
        raise InputError(_too_small_text(index, size, gsd))
    for place, side in fitting.items():
        sides[(index.place == place).to_numpy()] = side or ground_blocks.LARGEST_M
    if small := [f"{place} {side:g} m" for place, side in fitting.items() if side and side < ground_blocks.LARGEST_M]:
        log.info("blocks of ground are smaller where a place is small (block_m sets them): %s", ", ".join(small))
    return sides


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
    index: gpd.GeoDataFrame,
    free: np.ndarray,
    request: _Request,
    requests: list[_Request],
    block_m: float | np.ndarray,
) -> str:
    """What would help where a request leaves a split empty."""
    if sum(each.share or 0 for each in requests) >= 1:
        return "Use shares of less than 1 in all"
    if request.share is None:
        return f"Places: {', '.join(sorted(set(index.place)))}"
    return (
        f"They lie on {ground_blocks.count_text(index, free, block_m)}: use smaller blocks (block_m) and, where chips "
        "are few, smaller chips (size)"
    )


def _too_small_text(index: gpd.GeoDataFrame, size: int, gsd: float) -> str:
    """Why the largest place cannot be split, and at which size of chips it could."""
    largest = index[index.place == index.place.mode()[0]]
    width, height = (np.ptp(largest[axis]) + size * gsd for axis in ("x", "y"))
    third = max(64, int(min(max(width, height) / 3 / gsd, size / 2) // 32 * 32))
    return (
        f"{len(index)} chips of {size * gsd:g} m are too few to hold out some that touch no training chip: the ground "
        f"of {largest.place.iloc[0]} is {width:.0f} x {height:.0f} m. Use smaller chips, such as size={third}, or more "
        "ground"
    )


def _log_places_left_out(
    index: gpd.GeoDataFrame, free: np.ndarray, held_out: np.ndarray, request: _Request, block_m: float | np.ndarray
) -> None:
    """Log the places of which no chip is held out for a share."""
    places = index.place.to_numpy()
    left_out = sorted(set(places[free]) - set(places[held_out]))
    if left_out and held_out.any():
        counts = (
            f"{place} ({ground_blocks.count_text(index, free & (places == place), block_m)})" for place in left_out
        )
        log.warning(
            "%s=%s holds out no chip of %s: too little ground for that share; smaller blocks (block_m) would do",
            request.split,
            request.text,
            ", ".join(counts),
        )


def _in_places(index: gpd.GeoDataFrame, names: str) -> np.ndarray:
    """(rows,) bool: chips of places or scenes of these names."""
    return np.asarray(index.place.isin(_names(names)) | index.scene.isin(_names(names)))


def _names(text: str) -> set[str]:
    return {name.strip() for name in text.split(",")}


def _side_by_side(index: gpd.GeoDataFrame, size: int) -> np.ndarray:
    return np.asarray((index.row % size == 0) & (index.col % size == 0))
