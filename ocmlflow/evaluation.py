"""Predictions against labels, to scores by scene, by place and in all."""

from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd

from ocmlflow import chips, labels, metrics, pictures
from ocmlflow.inference import Predict, Progress
from ocmlflow.metrics import Counts


@dataclass(frozen=True)
class Evaluation:
    """A model's pixels on some chips, counted for every threshold."""

    rows: gpd.GeoDataFrame
    """The chips' rows of the index."""
    histograms: np.ndarray
    """(chips, 2, 101) int64: valid pixels of each chip by label and percent of probability."""

    @property
    def best_threshold(self) -> int:
        """Percent of the highest pooled IoU on these chips."""
        return metrics.best_threshold(self.histograms.sum(axis=0))

    def counts(self, threshold: int) -> Counts:
        """Of all chips together."""
        return metrics.counts(self.histograms.sum(axis=0), threshold=threshold)

    def sweep(self) -> pd.DataFrame:
        """Pooled scores for every threshold, in percent."""
        return pd.DataFrame([{"threshold": t, **scores(self.counts(t))} for t in metrics.THRESHOLDS])

    def table(self, by: str, threshold: int) -> pd.DataFrame:
        """Pooled scores of each value of a column of the index, such as `place` or `scene`."""
        found = []
        for name, numbers in self.rows.groupby(by).indices.items():
            counted = metrics.counts(self.histograms[numbers].sum(axis=0), threshold=threshold)
            found.append({by: name, "chips": len(numbers), **scores(counted)})
        return pd.DataFrame(found)

    def chip_ious(self, threshold: int) -> np.ndarray:
        """(chips,) float: IoU of each chip; NaN where there is no building and none was predicted."""
        return np.array([metrics.counts(h, threshold=threshold).iou for h in self.histograms])


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


def evaluate(predict: Predict, folder: Path, rows: gpd.GeoDataFrame, *, progress: Progress) -> Evaluation:
    """Predict the chips of some rows of an index, one by one, and count their valid pixels."""
    histograms = np.zeros((len(rows), 2, 101), np.int64)
    for number, row in progress(enumerate(rows.itertuples()), len(rows)):
        chip = chips.read(folder, row)
        label, valid = labels.decode(chip[..., 3])
        percents = metrics.percent(predict(chip[np.newaxis, ..., :3])[0, ..., 0])
        histograms[number] = metrics.histogram(percents, label, valid)
    return Evaluation(rows, histograms)


def picture(predict: Predict, folder: Path, rows: gpd.GeoDataFrame, *, threshold: int) -> np.ndarray:
    """One picture of some chips, a row each: image with the label's outlines, probability, errors at the threshold."""
    shown = []
    for row in rows.itertuples():
        chip = chips.read(folder, row)
        image, (label, valid) = chip[..., :3], labels.decode(chip[..., 3])
        probability = predict(image[np.newaxis])[0, ..., 0]
        building = metrics.percent(probability) >= threshold
        outlined = pictures.outlined(image, label, valid)
        shown.append([outlined, pictures.grey(probability), pictures.errors(image, building, label, valid)])
    return pictures.sheet(shown)


def pick(evaluation: Evaluation, threshold: int, *, count: int) -> tuple[list[int], list[int]]:
    """Row numbers of the best and of the worst chips by IoU, of those that hold some building or had some predicted."""
    ious = evaluation.chip_ious(threshold)
    order = [int(i) for i in np.argsort(ious, kind="stable") if not np.isnan(ious[i])]
    half = min(count, len(order) // 2 or len(order))
    return order[::-1][:half], order[:half]
