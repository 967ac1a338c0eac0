"""Matches predicted outlines of buildings with drawn ones, polygon by polygon, and scores them.

A predicted and a drawn building match at an IoU of 0.5, one to one. A building counts where its inner point (a point on
its surface, near the middle) lies on the evaluated ground, whole, even if its outline reaches beyond the edge.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import shapely
from shapely.geometry.base import BaseGeometry

from ocmlflow.chips import labels
from ocmlflow.evaluation import metrics, object_matching
from ocmlflow.evaluation.object_matching import CLASSES, SIZES_M2, ObjectCounts

DENSITIES = {1e-9: "empty", 0.1: "below 0.1", 0.3: "0.1 to 0.3", np.inf: "from 0.3"}
"""Classes of building density by their upper limits, as a share of the ground."""
EMPTY = DENSITIES[1e-9]
STEP_M = 0.25
"""Largest distance, in metres, of the points of an outline at which its distance to another is measured."""
BATCH = 2_000_000
"""Pairs of a point and a side whose distance is computed at a time."""
SCORES = ("precision", "recall", "f1")
"""Scores of buildings that have an interval and a difference."""


@dataclass(frozen=True)
class MatchedBuildings:
    """The buildings of some ground, predicted and drawn, and which of them match."""

    predicted: pd.DataFrame
    """A row per predicted building: scene, place, size and density (classes), block (of ground), corners, is_matched,
    is_merge (contains at least half of each of two or more drawn ones). A match has the size of its drawn building."""
    drawn: pd.DataFrame
    """A row per drawn building: scene, place, size, density, block, corners, is_matched, is_split (contains at least
    half of each of two or more predicted ones); iou and boundary_m of its match, else NaN."""

    @property
    def counts(self) -> ObjectCounts:
        """Counts of all of them together."""
        return _counts(self.predicted, self.drawn)

    def where(self, column: str, value: str) -> "MatchedBuildings":
        """Those of one scene, place, size or density class."""
        return MatchedBuildings(
            self.predicted[self.predicted[column] == value], self.drawn[self.drawn[column] == value]
        )

    def block_counts(self, blocks: pd.Index) -> np.ndarray:
        """(blocks, 3) int64: tp, fp and fn in each of these blocks; a match counts in the block of its drawn one."""
        chosen = (
            self.drawn.block[self.drawn.is_matched],
            self.predicted.block[~self.predicted.is_matched],
            self.drawn.block[~self.drawn.is_matched],
        )
        counted = [np.bincount(blocks.get_indexer(names), minlength=len(blocks)) for names in chosen]
        return np.stack(counted, axis=1).astype(np.int64)

    @property
    def blocks(self) -> pd.Index:
        """Names of the blocks of ground that have buildings, drawn or predicted."""
        return pd.Index(sorted({*self.predicted.block, *self.drawn.block}))


def match(
    predicted: np.ndarray,
    drawn: np.ndarray,
    ground: BaseGeometry,
    *,
    scene: str,
    place: str,
    block_m: float,
    min_area_m2: float,
) -> MatchedBuildings:
    """Match the buildings of a scene whose inner points lie on its evaluated ground.

    `predicted` (n,) and `drawn` (m,) are valid polygons in the metric CRS of `ground`; those below `min_area_m2` are
    left out on both sides. Blocks are squares of `block_m` metres. The density of a building is that of its block: the
    share of the block's ground that is drawn.
    """
    predicted = _counted(predicted, ground, min_area_m2)
    drawn = _counted(drawn, ground, min_area_m2)
    overlaps = object_matching.polygon_overlaps(predicted, drawn)
    matches = object_matching.match(overlaps)
    is_matched = matches >= 0
    of_drawn = matches[is_matched]
    merges, splits = object_matching.merges_and_splits(overlaps)
    ious = np.full(len(drawn), np.nan)
    boundary_m = np.full(len(drawn), np.nan)
    ious[of_drawn] = _ious(predicted[is_matched], drawn[of_drawn])
    boundary_m[of_drawn] = boundary_distances(predicted[is_matched], drawn[of_drawn])
    drawn_m2 = shapely.area(drawn)
    drawn_cells = _cells(drawn, block_m)
    predicted_m2 = shapely.area(predicted)
    predicted_cells = _cells(predicted, block_m)
    predicted_m2[is_matched] = drawn_m2[of_drawn]
    predicted_cells[is_matched] = drawn_cells[of_drawn]
    density = _density(drawn_cells, drawn_m2, ground, block_m)

    def table(buildings: np.ndarray, cells: np.ndarray, areas_m2: np.ndarray, **columns: np.ndarray) -> pd.DataFrame:
        squares = list(map(tuple, cells.tolist()))
        names = {
            "scene": np.full(len(buildings), scene, object),
            "place": np.full(len(buildings), place, object),
            "size": np.array(CLASSES, object)[np.digitize(areas_m2, SIZES_M2)],
            "density": np.array([density.get(square, EMPTY) for square in squares], object),
            "block": np.array([f"{scene} {col} {row}" for col, row in squares], object),
        }
        return pd.DataFrame({**names, "corners": _corners(buildings), **columns})

    found = np.isin(np.arange(len(drawn)), of_drawn)
    return MatchedBuildings(
        table(predicted, predicted_cells, predicted_m2, is_matched=is_matched, is_merge=merges),
        table(drawn, drawn_cells, drawn_m2, is_matched=found, is_split=splits, iou=ious, boundary_m=boundary_m),
    )


def combine(parts: Iterable[MatchedBuildings]) -> MatchedBuildings:
    """The buildings of several scenes, at least one, together."""
    parts = list(parts)
    return MatchedBuildings(
        pd.concat([part.predicted for part in parts], ignore_index=True),
        pd.concat([part.drawn for part in parts], ignore_index=True),
    )


def scores(buildings: MatchedBuildings) -> dict[str, float]:
    """All scores of some buildings; NaN for what is undefined.

    precision, recall and f1, each with the `_low` and `_high` end of its 95 percent interval over blocks of ground;
    tp, fp, fn, merges, splits; drawn and predicted (counts); iou (mean of matches), boundary_m (mean distance of
    matched outlines), corners_drawn and corners_predicted (medians).
    """
    counts = buildings.counts
    blocks = buildings.blocks
    found: dict[str, float] = {}
    draws = metrics.bootstrap(buildings.block_counts(blocks), seed=0) if len(blocks) else {}
    for name in SCORES:
        low, high = metrics.bootstrap_interval(draws.get(name, np.zeros(0)), blocks=len(blocks))
        found |= {name: getattr(counts, name), f"{name}_low": low, f"{name}_high": high}
    found |= {name: getattr(counts, name) for name in ("tp", "fp", "fn", "merges", "splits")}
    found |= {"drawn": len(buildings.drawn), "predicted": len(buildings.predicted)}
    found |= {"iou": buildings.drawn.iou.mean(), "boundary_m": buildings.drawn.boundary_m.mean()}
    found["corners_drawn"] = buildings.drawn.corners.median()
    found["corners_predicted"] = buildings.predicted.corners.median()
    return {name: float(value) for name, value in found.items()}


def table(buildings: MatchedBuildings, by: str) -> pd.DataFrame:
    """The `scores` of each scene, place, size or density class: a row each, its name in the column `by`."""
    order = {"size": CLASSES, "density": tuple(DENSITIES.values())}.get(by)
    present = {*buildings.predicted[by], *buildings.drawn[by]}
    names = [name for name in order if name in present] if order else sorted(present)
    return pd.DataFrame([{by: name, **scores(buildings.where(by, name))} for name in names])


def size_counts(buildings: MatchedBuildings) -> dict[str, ObjectCounts]:
    """Counts by size class, and of all of them as `all`."""
    return {"all": buildings.counts, **{name: buildings.where("size", name).counts for name in CLASSES}}


def differences(buildings: MatchedBuildings, base: MatchedBuildings) -> list[dict[str, Any]]:
    """Score of some buildings minus that of others on the same ground, a row for each of SCORES.

    Columns score, model, base, difference, low, high, blocks. Each draw takes the same blocks of ground for both.
    """
    blocks = buildings.blocks.union(base.blocks)
    if not len(blocks):
        return []
    draws = [metrics.bootstrap(one.block_counts(blocks), seed=0) for one in (buildings, base)]
    rows = []
    for name in SCORES:
        low, high = metrics.bootstrap_interval(draws[0][name] - draws[1][name], blocks=len(blocks))
        values = [getattr(one.counts, name) for one in (buildings, base)]
        row = {"score": name, "model": values[0], "base": values[1], "difference": values[0] - values[1]}
        rows.append({**row, "low": low, "high": high, "blocks": len(blocks)})
    return rows


def clip(buildings: np.ndarray, ground: BaseGeometry) -> np.ndarray:
    """The polygons that the ground leaves of buildings: of those across its edge what lies inside."""
    shapely.prepare(ground)
    meets = shapely.intersects(ground, buildings)
    inside = shapely.contains_properly(ground, buildings)
    across = meets & ~inside
    return np.concatenate([buildings[inside], labels.polygons(shapely.intersection(buildings[across], ground))])


def boundary_distances(outlines: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) float: mean distance in metres of each polygon's outer ring to that of the other one of its pair.

    It is measured at the corners and at points between them, at most STEP_M apart, as the scores of the project have
    been from the beginning: from the first to the second.
    """
    points, pair_of_point = shapely.get_coordinates(
        shapely.segmentize(shapely.get_exterior_ring(outlines), STEP_M), return_index=True
    )
    corners, pair_of_corner = shapely.get_coordinates(shapely.get_exterior_ring(others), return_index=True)
    point_counts = np.bincount(pair_of_point, minlength=len(outlines))
    corner_counts = np.bincount(pair_of_corner, minlength=len(outlines))
    batch_of_pair = np.cumsum(point_counts * corner_counts) // BATCH
    means = np.zeros(len(outlines))
    first_point = np.cumsum([0, *point_counts])
    first_corner = np.cumsum([0, *corner_counts])
    for batch in np.unique(batch_of_pair):
        first, last = np.flatnonzero(batch_of_pair == batch)[[0, -1]]
        pairs = slice(first, last + 1)
        distances = _distances(
            points[first_point[first] : first_point[last + 1]],
            point_counts[pairs],
            corners[first_corner[first] : first_corner[last + 1]],
            corner_counts[pairs],
        )
        owners = np.repeat(np.arange(last + 1 - first), point_counts[pairs])
        means[pairs] = np.bincount(owners, weights=distances) / point_counts[pairs]
    return means


def _distances(
    points: np.ndarray, point_counts: np.ndarray, corners: np.ndarray, corner_counts: np.ndarray
) -> np.ndarray:
    """(points,) float: distance of each point to the ring of its pair; points and corners come pair by pair."""
    sides = np.repeat(corner_counts - 1, point_counts)
    ring_starts = np.repeat(np.cumsum(corner_counts) - corner_counts, point_counts)
    starts = np.cumsum(sides) - sides
    point = np.repeat(np.arange(len(points)), sides)
    side = np.arange(len(point)) + np.repeat(ring_starts - starts, sides)
    origin, vector = corners[side], corners[side + 1] - corners[side]
    offset = points[point] - origin
    length = (vector**2).sum(axis=1)
    along = np.clip((offset * vector).sum(axis=1) / np.where(length > 0, length, 1), 0, 1)
    return np.sqrt(np.minimum.reduceat(((offset - along[:, None] * vector) ** 2).sum(axis=1), starts))


def _counted(buildings: np.ndarray, ground: BaseGeometry, min_area_m2: float) -> np.ndarray:
    """The buildings of at least an area whose inner points lie on the ground."""
    buildings = np.asarray(buildings, object)
    buildings = buildings[shapely.area(buildings) >= min_area_m2]
    shapely.prepare(ground)
    return np.asarray(buildings[shapely.intersects_xy(ground, *_inner_points(buildings).T)])


def _inner_points(buildings: np.ndarray) -> np.ndarray:
    """(n, 2) float: x and y of a point on the surface of each building."""
    points = shapely.point_on_surface(buildings)
    return np.stack([shapely.get_x(points), shapely.get_y(points)], axis=1)


def _cells(buildings: np.ndarray, block_m: float) -> np.ndarray:
    """(n, 2) int: column and row of the square of ground that each building's inner point lies in."""
    return np.floor(_inner_points(buildings) / block_m).astype(np.int64)


def _density(cells: np.ndarray, areas_m2: np.ndarray, ground: BaseGeometry, block_m: float) -> dict[Any, str]:
    """The class of DENSITIES of each square that has drawn buildings, by its column and row."""
    squares, numbers = np.unique(cells.reshape(-1, 2), axis=0, return_inverse=True)
    left, bottom = squares.T * block_m
    ground_m2 = shapely.area(shapely.intersection(shapely.box(left, bottom, left + block_m, bottom + block_m), ground))
    drawn_m2 = np.bincount(numbers.ravel(), weights=areas_m2, minlength=len(squares))
    shares = drawn_m2 / np.maximum(ground_m2, 1e-9)
    names = np.array(list(DENSITIES.values()), object)[np.digitize(shares, list(DENSITIES)[:-1])]
    return dict(zip(map(tuple, squares.tolist()), names, strict=True))


def _ious(predicted: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    shared = shapely.area(shapely.intersection(predicted, drawn))
    return np.asarray(shared / (shapely.area(predicted) + shapely.area(drawn) - shared))


def _corners(buildings: np.ndarray) -> np.ndarray:
    """(n,) int: corners of each outline, with those of its holes."""
    return np.asarray(shapely.get_num_coordinates(buildings) - 1 - shapely.get_num_interior_rings(buildings))


def _counts(predicted: pd.DataFrame, drawn: pd.DataFrame) -> ObjectCounts:
    tp = int(drawn.is_matched.sum())
    return ObjectCounts(
        tp=tp,
        fp=int((~predicted.is_matched).sum()),
        fn=len(drawn) - tp,
        splits=int(drawn.is_split.sum()),
        merges=int(predicted.is_merge.sum()),
    )
