"""Scores predictions on chips: pixels at every threshold, and buildings as objects, pooled and by group."""

from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import pandas as pd

from ocmlflow.chips import labels
from ocmlflow.evaluation import (
    building_matching,
    calibration,
    metrics,
    object_matching,
    predicted_buildings,
    predictions,
)
from ocmlflow.evaluation.building_matching import DENSITIES, MatchedBuildings
from ocmlflow.evaluation.metrics import Counts
from ocmlflow.evaluation.object_matching import ObjectBlock, ObjectCounts, ObjectMatcher
from ocmlflow.evaluation.predictions import Predictions
from ocmlflow.prediction import block_join
from ocmlflow.probability import LEVELS

BOUNDARY_M = 0.5
"""Width of the strip inside a building's outline that boundary IoU compares."""
OBJECT_THRESHOLDS = range(10, 100, 10)
"""Thresholds, in percent, of the sweep over buildings as objects."""
GROUPS = ("place", "scene", "resolution", "density")
"""Columns of the rows by which scores are grouped."""


@dataclass(frozen=True)
class PixelScores:
    """Valid pixels of a model's predictions, counted so that they can be scored at every threshold."""

    rows: gpd.GeoDataFrame
    """Rows of the predictions, one for each chip."""
    level_histogram: np.ndarray
    """(2, 65536) int64: pixels of all chips by label and level of probability, not calibrated."""
    temperature: float
    """Temperature of the calibration."""
    histograms: np.ndarray
    """(chips, 2, 101) int64: pixels of each chip by label and percent of calibrated probability."""

    @property
    def best_threshold(self) -> int:
        """Threshold, in percent, of the highest pooled IoU on these chips."""
        return metrics.best_threshold(self.histograms.sum(axis=0))

    def counts(self, threshold: int) -> Counts:
        """Counts of all chips together, at a threshold in percent."""
        return metrics.counts(self.histograms.sum(axis=0), threshold=threshold)

    def block_counts(self, threshold: int) -> np.ndarray:
        """(blocks, 3) int64: tp, fp, fn of each spatial block, at a threshold in percent."""
        return metrics.block_counts(self.histograms, self.rows.block.to_numpy(), threshold=threshold)

    def sweep(self) -> pd.DataFrame:
        """Pooled scores at every threshold, in percent."""
        return pd.DataFrame([{"threshold": t, **pooled_scores(self.counts(t))} for t in metrics.THRESHOLDS])

    def table(self, by: str, threshold: int) -> pd.DataFrame:
        """Pooled scores of each group of chips that share a value of the column `by`, at a threshold in percent.

        Columns: the group, `chips`, those of `pooled_scores` and `areas`, and the 95 percent interval of the IoU in
        `iou_low` and `iou_high`.
        """
        groups = self.rows.groupby(by).indices
        table = [{by: name, **self._group_scores(chips, threshold)} for name, chips in groups.items()]
        # Classes of resolution and density in the order of their limits, all else by name.
        classes = [*predictions.RESOLUTIONS.values(), *DENSITIES.values()]
        order = {name: position for position, name in enumerate(classes)}
        return pd.DataFrame(sorted(table, key=lambda row: (order.get(row[by], 0), row[by])))

    def chip_ious(self, threshold: int) -> np.ndarray:
        """(chips,) float: IoU of each chip; NaN where there is no building and none was predicted."""
        return np.array([metrics.counts(histogram, threshold=threshold).iou for histogram in self.histograms])

    def _group_scores(self, chips: np.ndarray, threshold: int) -> dict[str, float]:
        histograms = self.histograms[chips]
        counts = metrics.counts(histograms.sum(axis=0), threshold=threshold)
        names, blocks = np.unique(self.rows.block.to_numpy()[chips], return_inverse=True)
        drawn = metrics.bootstrap(metrics.block_counts(histograms, blocks, threshold=threshold), seed=0)
        low, high = metrics.bootstrap_interval(drawn["iou"], blocks=len(names))
        group = {"chips": len(chips), **pooled_scores(counts), "iou_low": low, "iou_high": high}
        return {**group, **areas(counts, float(self.rows.gsd.iloc[0]))}


@dataclass(frozen=True)
class BuildingScores:
    """Buildings of a model's predictions at one threshold, scored as objects."""

    matched: MatchedBuildings | None
    """Polygons of predicted and drawn buildings; None where the chips keep no footprints. Then objects are connected
    components of mask and label."""

    by_scene: dict[str, dict[str, ObjectCounts]]
    """Counts by scene and size class; class `all` is all of them."""
    sweep: pd.DataFrame
    """Precision, recall and F1 at OBJECT_THRESHOLDS, in percent, of connected components of mask and label."""
    boundary_iou: float
    """IoU of the strips inside the outlines of buildings (arXiv:2103.16562), 0..1."""
    false_per_km2: float
    """Predicted buildings on chips without any, per square kilometre of them; NaN where every chip has some."""

    def of(self, rows: pd.DataFrame) -> dict[str, ObjectCounts]:
        """Counts by size class of all scenes that have chips among these rows."""
        return object_matching.add_counts(self.by_scene[scene] for scene in sorted(set(rows.scene)))


def pooled_scores(counts: Counts) -> dict[str, float]:
    """IoU, precision, recall and F1 of the building class, and the share of the pixels that are building."""
    return {
        "iou": counts.iou,
        "precision": counts.precision,
        "recall": counts.recall,
        "f1": counts.f1,
        "building_share": (counts.tp + counts.fn) / max(counts.pixels, 1),
        "pixels": counts.pixels,
    }


def areas(counts: Counts, gsd: float) -> dict[str, float]:
    """Labelled and predicted area of buildings in square metres, and the relative error of the latter."""
    labelled = (counts.tp + counts.fn) * gsd**2
    predicted = (counts.tp + counts.fp) * gsd**2
    error = predicted / labelled - 1 if labelled else float("nan")
    return {"labelled_m2": labelled, "predicted_m2": predicted, "area_error": error}


def score_pixels(predicted: Predictions, *, temperature: float | None) -> PixelScores:
    """Count the valid pixels at a temperature; if it is None, at the one that fits these chips best."""
    level_histogram = np.zeros((2, LEVELS), np.int64)
    for number in range(len(predicted.rows)):
        label, valid = labels.decode(predicted.coded[number])
        level_histogram += calibration.level_histogram(predicted.levels[number], label, valid)
    if temperature is None:
        temperature = calibration.fit_temperature(level_histogram)
    percents_of_levels = calibration.level_percents(temperature)
    histograms = np.zeros((len(predicted.rows), 2, 101), np.int64)
    for number in range(len(predicted.rows)):
        label, valid = labels.decode(predicted.coded[number])
        histograms[number] = metrics.histogram(percents_of_levels[predicted.levels[number]], label, valid)
    return PixelScores(predicted.rows, level_histogram, temperature, histograms)


def score_buildings(
    predicted: Predictions,
    temperature: float,
    threshold: int,
    *,
    block_m: float,
    min_area_m2: float,
    min_hole_m2: float,
) -> BuildingScores:
    """Score buildings as objects, joined across the edges of chips, at a temperature and a threshold in percent.

    Where the chips keep footprints, the outlines that `predict` would write are matched with them. Elsewhere an object
    is a connected component of the label or of the predicted mask, so labelled buildings that touch are one. Buildings
    of less than `min_area_m2` are left out, holes below `min_hole_m2` filled.
    """
    percents_of_levels = calibration.level_percents(temperature)
    pixel_m2 = float(predicted.rows.gsd.iloc[0]) ** 2
    min_pixels = min_area_m2 / pixel_m2 * (1 - 1e-9)  # less the rounding of floats
    by_scene = {}
    sweep = {t: ObjectCounts() for t in OBJECT_THRESHOLDS}
    for scene, chips in predicted.rows.groupby("scene").indices.items():
        matchers = _match_scene(predicted, chips, percents_of_levels, thresholds={threshold, *OBJECT_THRESHOLDS})
        counts = {
            t: object_matching.count(
                object_matching.without_specks(matcher.overlaps(), min_area=min_pixels), pixel_m2=pixel_m2
            )
            for t, matcher in matchers.items()
        }
        by_scene[str(scene)] = counts[threshold]
        sweep = {t: total + counts[t]["all"] for t, total in sweep.items()}
    matched = predicted_buildings.match(
        predicted,
        percents_of_levels,
        threshold,
        block_m=block_m,
        min_area_m2=min_area_m2,
        min_hole_m2=min_hole_m2,
    )
    if matched:
        by_scene = {scene: building_matching.size_counts(matched.where("scene", scene)) for scene in by_scene}
    is_building = percents_of_levels >= threshold
    return BuildingScores(
        matched,
        by_scene,
        pd.DataFrame(
            [{"threshold": t, "precision": o.precision, "recall": o.recall, "f1": o.f1} for t, o in sweep.items()]
        ),
        boundary_iou=_boundary_iou(predicted, is_building),
        false_per_km2=_false_per_km2(predicted, is_building, min_pixels=min_pixels, pixel_m2=pixel_m2),
    )


def _match_scene(
    predicted: Predictions, chips: np.ndarray, percents_of_levels: np.ndarray, *, thresholds: set[int]
) -> dict[int, ObjectMatcher]:
    """Objects of a scene's chips at each threshold, ready to be matched."""
    matchers = {t: ObjectMatcher() for t in thresholds}
    for number in chips:
        row = predicted.rows.iloc[number]
        percents = percents_of_levels[predicted.levels[number]]
        label, valid = labels.decode(predicted.coded[number])
        labelled_objects = block_join.label_objects(label > 0)
        for t, matcher in matchers.items():
            predicted_objects = block_join.label_objects((percents >= t) & valid)
            matcher.add(ObjectBlock(int(row.row), int(row.col), predicted_objects, labelled_objects))
    return matchers


def _boundary_iou(predicted: Predictions, is_building: np.ndarray) -> float:
    """Boundary IoU over all chips; `is_building` (65536,) bool says for each level whether a pixel is building."""
    width = max(1, round(BOUNDARY_M / float(predicted.rows.gsd.iloc[0])))
    intersection = 0
    union = 0
    for number in range(len(predicted.rows)):
        label, valid = labels.decode(predicted.coded[number])
        predicted_boundary = metrics.boundary(is_building[predicted.levels[number]] & valid, width=width)
        labelled_boundary = metrics.boundary(label > 0, width=width)
        intersection += int((predicted_boundary & labelled_boundary).sum())
        union += int((predicted_boundary | labelled_boundary).sum())
    return intersection / union if union else float("nan")


def _false_per_km2(predicted: Predictions, is_building: np.ndarray, *, min_pixels: float, pixel_m2: float) -> float:
    """Predicted objects of at least `min_pixels` on chips without buildings, per square kilometre of their pixels."""
    false_objects = 0
    empty_pixels = 0
    for number in range(len(predicted.rows)):
        label, valid = labels.decode(predicted.coded[number])
        if label.any():
            continue
        objects = block_join.label_objects(is_building[predicted.levels[number]] & valid)
        sizes = np.bincount(objects.ravel())[1:]
        false_objects += int((sizes >= min_pixels).sum())
        empty_pixels += int(valid.sum())
    return false_objects / (empty_pixels * pixel_m2 / 1e6) if empty_pixels else float("nan")
