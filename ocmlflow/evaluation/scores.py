"""Predictions against labels, to scores of pixels and of buildings, by scene, by place, by ground and in all."""

from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import pandas as pd

from ocmlflow.chips import labels
from ocmlflow.evaluation import calibration, metrics, object_matching, predictions
from ocmlflow.evaluation.metrics import Counts
from ocmlflow.evaluation.object_matching import ObjectBlock, ObjectCounts, ObjectMatcher
from ocmlflow.evaluation.predictions import Predictions
from ocmlflow.prediction import block_join
from ocmlflow.probability import LEVELS

BOUNDARY_M = 0.5
"""Width of the boundary of boundary IoU, inside of a building."""
OBJECT_THRESHOLDS = range(10, 100, 10)
"""Percent of the threshold sweep of buildings as objects."""
GROUPS = ("place", "scene", "resolution", "density")


@dataclass(frozen=True)
class PixelScores:
    """A model's pixels on some chips, counted for every threshold."""

    rows: gpd.GeoDataFrame
    """As those of the predictions."""
    level_histogram: np.ndarray
    """(2, 65536) int64: fine histogram of all, not calibrated."""
    temperature: float
    """That calibrates them."""
    histograms: np.ndarray
    """(chips, 2, 101) int64: valid pixels of each chip by label and percent of calibrated probability."""

    @property
    def best_threshold(self) -> int:
        """Percent of the highest pooled IoU on these chips."""
        return metrics.best_threshold(self.histograms.sum(axis=0))

    def counts(self, threshold: int) -> Counts:
        """Of all chips together."""
        return metrics.counts(self.histograms.sum(axis=0), threshold=threshold)

    def block_counts(self, threshold: int) -> np.ndarray:
        """(blocks, 3) int64: tp, fp, fn of each block of ground."""
        return metrics.block_counts(self.histograms, self.rows.block.to_numpy(), threshold=threshold)

    def sweep(self) -> pd.DataFrame:
        """Pooled scores for every threshold, in percent."""
        return pd.DataFrame([{"threshold": t, **scores(self.counts(t))} for t in metrics.THRESHOLDS])

    def table(self, by: str, threshold: int) -> pd.DataFrame:
        """Pooled scores of each value of a column of the rows, and areas in square metres; `iou_low` and `_high`."""
        found = []
        for name, numbers in self.rows.groupby(by).indices.items():
            some = self.histograms[numbers]
            counted = metrics.counts(some.sum(axis=0), threshold=threshold)
            blocks = np.unique(self.rows.block.to_numpy()[numbers], return_inverse=True)[1]
            drawn = metrics.bootstrap(metrics.block_counts(some, blocks, threshold=threshold), seed=0)["iou"]
            low, high = metrics.bootstrap_interval(drawn, blocks=int(blocks.max()) + 1)
            found.append({by: name, "chips": len(numbers), **scores(counted), "iou_low": low, "iou_high": high})
            found[-1] |= areas(counted, float(self.rows.gsd.iloc[0]))
        order = {
            name: at for at, name in enumerate((*predictions.RESOLUTIONS.values(), *predictions.DENSITIES.values()))
        }
        return pd.DataFrame(sorted(found, key=lambda row: (order.get(row[by], 0), row[by])))

    def chip_ious(self, threshold: int) -> np.ndarray:
        """(chips,) float: IoU of each chip; NaN where there is no building and none was predicted."""
        return np.array([metrics.counts(h, threshold=threshold).iou for h in self.histograms])


@dataclass(frozen=True)
class BuildingScores:
    """A model's buildings at one threshold, as objects."""

    by_scene: dict[str, dict[str, ObjectCounts]]
    """Scene to size class to counts; class `all` is all of them."""
    sweep: pd.DataFrame
    """Precision, recall and F1 of all, for OBJECT_THRESHOLDS in percent."""
    boundary_iou: float
    false_per_km2: float
    """Buildings found on chips without any, over their valid ground; NaN where every chip has some."""

    def of(self, rows: pd.DataFrame) -> dict[str, ObjectCounts]:
        """The counts, by size class, of the scenes of some rows."""
        return object_matching.add_counts(self.by_scene[scene] for scene in sorted(set(rows.scene)))


def scores(counted: Counts) -> dict[str, float]:
    """IoU, precision, recall and F1 of the building class, and the share of the pixels that are building."""
    return {
        "iou": counted.iou,
        "precision": counted.precision,
        "recall": counted.recall,
        "f1": counted.f1,
        "building_share": (counted.tp + counted.fn) / max(counted.pixels, 1),
        "pixels": counted.pixels,
    }


def areas(counted: Counts, gsd: float) -> dict[str, float]:
    """Labelled and predicted square metres of building, and by which share of the labelled the latter is too large."""
    labelled, predicted = (counted.tp + counted.fn) * gsd**2, (counted.tp + counted.fp) * gsd**2
    error = predicted / labelled - 1 if labelled else float("nan")
    return {"labelled_m2": labelled, "predicted_m2": predicted, "area_error": error}


def score_pixels(made: Predictions, *, temperature: float | None) -> PixelScores:
    """The valid pixels, counted at a temperature; at one that is fitted to these chips if None is given."""
    pixels = np.zeros((2, LEVELS), np.int64)
    for number in range(len(made.rows)):
        pixels += calibration.level_histogram(made.levels[number], *labels.decode(made.coded[number]))
    if temperature is None:
        temperature = calibration.fit_temperature(pixels)
    histograms = np.zeros((len(made.rows), 2, 101), np.int64)
    table = calibration.level_percents(temperature)
    for number in range(len(made.rows)):
        histograms[number] = metrics.histogram(table[made.levels[number]], *labels.decode(made.coded[number]))
    return PixelScores(made.rows, pixels, temperature, histograms)


def score_buildings(made: Predictions, temperature: float, threshold: int, *, min_area_m2: float) -> BuildingScores:
    """Buildings as objects, whole across the edges of chips; calibrated, at a threshold in percent.

    An object is what hangs together in label or prediction: labelled buildings that touch are one. Predicted ones of
    less than `min_area_m2` are left out.
    """
    table = calibration.level_percents(temperature)
    pixel_m2 = float(made.rows.gsd.iloc[0]) ** 2
    speck = min_area_m2 / pixel_m2 * (1 - 1e-9)  # in pixels, less the error of floats
    by_scene, swept = {}, {t: ObjectCounts() for t in OBJECT_THRESHOLDS}
    for scene, numbers in made.rows.groupby("scene").indices.items():
        mosaics = {t: ObjectMatcher() for t in {threshold, *OBJECT_THRESHOLDS}}
        for number in numbers:
            row, percents = made.rows.iloc[number], table[made.levels[number]]
            label, valid = labels.decode(made.coded[number])
            labelled = block_join.label_objects(label > 0)
            for t, mosaic in mosaics.items():
                predicted = block_join.label_objects((percents >= t) & valid)
                mosaic.add(ObjectBlock(int(row.row), int(row.col), predicted, labelled))
        counted = {
            t: object_matching.count(object_matching.without_specks(mosaic.overlaps(), least=speck), pixel_m2=pixel_m2)
            for t, mosaic in mosaics.items()
        }
        by_scene[str(scene)] = counted[threshold]
        swept = {t: total + counted[t]["all"] for t, total in swept.items()}
    sweep = [{"threshold": t, "precision": o.precision, "recall": o.recall, "f1": o.f1} for t, o in swept.items()]
    shared, either, false, empty_pixels = _edges_and_false(made, table >= threshold, speck)
    return BuildingScores(
        by_scene,
        pd.DataFrame(sweep),
        boundary_iou=shared / either if either else float("nan"),
        false_per_km2=false / (empty_pixels * pixel_m2 / 1e6) if empty_pixels else float("nan"),
    )


def _edges_and_false(made: Predictions, building: np.ndarray, speck: float) -> tuple[int, int, int, int]:
    """Boundary pixels of both label and prediction, and of either; false buildings and pixels of empty chips."""
    width = max(1, round(BOUNDARY_M / float(made.rows.gsd.iloc[0])))
    shared = either = false = empty_pixels = 0
    for number in range(len(made.rows)):
        label, valid = labels.decode(made.coded[number])
        predicted = building[made.levels[number]] & valid
        edges = [metrics.boundary(one, width=width) for one in (predicted, label > 0)]
        shared += int((edges[0] & edges[1]).sum())
        either += int((edges[0] | edges[1]).sum())
        if not label.any():
            sizes = np.bincount(block_join.label_objects(predicted).ravel())[1:]
            false += int((sizes >= speck).sum())
            empty_pixels += int(valid.sum())
    return shared, either, false, empty_pixels
