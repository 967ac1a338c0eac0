"""Square blocks of ground, in which chips are held out together: chips side by side share roofs and light."""

from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from ocmlflow.errors import InputError

TOUCH_TOLERANCE_DEG = 1e-7
"""Outlines nearer than this touch: about a centimetre, more than they move when they are reprojected."""
LARGEST_M = 500.0
"""Side of blocks where there is ground enough for them."""


def touches(index: gpd.GeoDataFrame, other: gpd.GeoDataFrame) -> np.ndarray:
    """(rows,) bool: which chips of `index` touch or overlap a chip of `other` on the ground."""
    tree = shapely.STRtree(other.geometry.to_numpy())
    pairs = tree.query(index.geometry.to_numpy(), predicate="dwithin", distance=TOUCH_TOLERANCE_DEG)
    return np.isin(np.arange(len(index)), pairs[0])


def spatial_blocks(index: gpd.GeoDataFrame, block_m: float | np.ndarray) -> np.ndarray:
    """(rows,) int: number, from 0, of the square of ground that the middle of each chip lies in.

    Its side is `block_m` metres, one for all chips or one for each; squares of different sides are different blocks.
    """
    sides = np.broadcast_to(block_m, len(index))
    cells = [sides, index.utm, index.x // block_m, index.y // block_m]
    return np.asarray(pd.MultiIndex.from_arrays(cells).factorize(sort=True)[0])


def draw(index: gpd.GeoDataFrame, free: np.ndarray, share: float, block_m: float | np.ndarray, seed: int) -> np.ndarray:
    """(rows,) bool: chips of random blocks, at least one, whose free chips are about this share of all chips.

    The share is drawn in each place by itself; a block belongs to the place of most of its free chips.
    """
    blocks = _shuffle(index, block_m, seed)
    free_sizes = np.bincount(blocks.of_chip[free], minlength=len(blocks.order))
    order = blocks.order[free_sizes[blocks.order] > 0]
    place_of_block = _place_of_block(index, blocks.of_chip, free)
    taken = []
    places = np.unique(place_of_block[order])
    for place in places:
        blocks_of_place = order[place_of_block[order] == place]
        wanted = share * len(index) * (free_sizes[blocks_of_place].sum() / free.sum())
        taken.append(_take(blocks_of_place, free_sizes[blocks_of_place], wanted, choose=len(places) > 1))
    chosen = np.concatenate(taken) if taken else order[:0]
    return np.isin(blocks.of_chip, chosen if len(chosen) else order[:1])


def deal(index: gpd.GeoDataFrame, folds: int, block_m: float | np.ndarray, seed: int) -> np.ndarray:
    """(rows,) int: fold of each chip's block; the largest blocks are dealt first, each to the smallest fold so far."""
    blocks = _shuffle(index, block_m, seed)
    if len(blocks.sizes) < folds:
        raise InputError(
            f"folds={folds}: the scenes lie on {count_text(index, np.ones(len(index), bool), block_m)}: use smaller "
            "blocks (block_m) or fewer folds"
        )
    fold_sizes = np.zeros(folds)
    fold_of_block = np.zeros(len(blocks.sizes), int)
    for block in sorted(blocks.order, key=lambda block: -blocks.sizes[block]):
        smallest = fold_sizes.argmin()
        fold_of_block[block] = smallest
        fold_sizes[smallest] += blocks.sizes[block]
    return fold_of_block[blocks.of_chip]


def fitting_side(index: gpd.GeoDataFrame, *, share: float, blocks: int, smallest_m: float, seed: int) -> float | None:
    """Side in metres of the blocks that suit the ground of one place, of which a share is to be held out.

    It is LARGEST_M, halved until there are at least so many `blocks`, about the share is held out, and training keeps
    half of what it might have, as chips that touch held-out ground are lost to it. Large blocks are preferred: the
    nearer held-out ground lies to training, the more its score flatters. Where no side does, it is the one at which
    training keeps the most chips. Sides are at least `smallest_m`.
    """
    best_side, best_kept = None, 0.0
    side = LARGEST_M
    # Windows of a plan that show no imagery are drawn, but will not become chips.
    likely = np.asarray(index.imagery > 0) if "imagery" in index else np.ones(len(index), bool)
    while side >= min(smallest_m, LARGEST_M):
        held_out = draw(index, np.ones(len(index), bool), share, side, seed)
        kept = (likely & ~held_out & ~touches(index, index[held_out & likely])).sum() / max(likely.sum(), 1)
        held_share = (held_out & likely).sum() / max(likely.sum(), 1)
        enough_blocks = spatial_blocks(index, side).max() + 1 >= blocks
        if enough_blocks and kept >= (1 - share) / 2 and share / 2 <= held_share <= 2 * share:
            return side
        if kept > best_kept and enough_blocks and held_share:
            best_side, best_kept = side, kept
        side /= 2
    return best_side


def count_text(index: gpd.GeoDataFrame, chosen: np.ndarray, block_m: float | np.ndarray) -> str:
    """Number and side of the blocks that the chosen chips lie on, in words."""
    sides = np.broadcast_to(block_m, len(index))[chosen]
    count = int(spatial_blocks(index[chosen], sides).max()) + 1
    metres = f"{sides.min():g} m" if sides.min() == sides.max() else f"{sides.min():g} to {sides.max():g} m"
    return f"{count} block{'s' * (count > 1)} of {metres}"


@dataclass(frozen=True)
class _Blocks:
    """Blocks of ground, numbered from 0."""

    of_chip: np.ndarray
    """(rows,) int: block of each chip."""
    sizes: np.ndarray
    """(blocks,) int: chips of each block."""
    order: np.ndarray
    """(blocks,) int: the blocks in random order."""


def _shuffle(index: gpd.GeoDataFrame, block_m: float | np.ndarray, seed: int) -> _Blocks:
    of_chip = spatial_blocks(index, block_m)
    sizes = np.bincount(of_chip)
    return _Blocks(of_chip, sizes, np.random.default_rng(seed).permutation(len(sizes)))


def _place_of_block(index: gpd.GeoDataFrame, of_chip: np.ndarray, free: np.ndarray) -> np.ndarray:
    """(blocks,) int: number of the place that most free chips of a block are of."""
    places, place_of_chip = np.unique(index.place.to_numpy().astype(str), return_inverse=True)
    counts = np.zeros((of_chip.max() + 1, len(places)), int)
    np.add.at(counts, (of_chip[free], place_of_chip[free]), 1)
    return counts.argmax(axis=1)


def _take(order: np.ndarray, sizes: np.ndarray, wanted: float, *, choose: bool) -> np.ndarray:
    """The first blocks that make up about as many chips as wanted; none if the first is too large.

    With `choose`, the first block that is not too large is taken instead.
    """
    # A block is taken while its middle lies within the share: on average neither too many chips nor too few.
    taken = order[np.cumsum(sizes) - sizes / 2 <= wanted]
    return order[sizes / 2 <= wanted][:1] if choose and not len(taken) else taken
