"""Predictions against labels, to scores of pixels and of buildings, by scene, by place, by ground and in all."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd

from ocmlflow import chips, ground, labels, metrics, objects, pictures
from ocmlflow.errors import InputError
from ocmlflow.inference import Predict, Progress
from ocmlflow.metrics import Counts
from ocmlflow.objects import Objects
from ocmlflow.store import Files

BOUNDARY_M = 0.5
"""Width of the boundary of boundary IoU, inside of a building."""
OBJECT_THRESHOLDS = range(10, 100, 10)
"""Percent of the threshold sweep of buildings as objects."""
RESOLUTIONS = {0.05: "below 0.05 m", 0.1: "0.05 to 0.1 m", 0.2: "0.1 to 0.2 m", np.inf: "from 0.2 m"}
DENSITIES = {1e-9: "empty", 0.1: "below 0.1", 0.3: "0.1 to 0.3", np.inf: "from 0.3"}
"""Upper limits of the share of a chip that is building."""
GROUPS = ("place", "scene", "resolution", "density")


@dataclass(frozen=True)
class Predictions:
    """What a model makes of some chips, kept in files beside the chips' labels: memory holds a chip at a time."""

    folder: Files
    """Of the chips."""
    rows: gpd.GeoDataFrame
    """The chips' rows of the index; `resolution` and `density` are added, and `block`, the number of its ground."""
    levels: np.ndarray
    """(chips, size, size) uint16: `metrics.fine` of the probability."""
    coded: np.ndarray
    """(chips, size, size) uint8: coded labels."""


@dataclass(frozen=True)
class Evaluation:
    """A model's pixels on some chips, counted for every threshold."""

    rows: gpd.GeoDataFrame
    """As those of the predictions."""
    pixels: np.ndarray
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
            drawn = metrics.draws(metrics.block_counts(some, blocks, threshold=threshold), seed=0)["iou"]
            low, high = metrics.interval(drawn, blocks=int(blocks.max()) + 1)
            found.append({by: name, "chips": len(numbers), **scores(counted), "iou_low": low, "iou_high": high})
            found[-1] |= areas(counted, float(self.rows.gsd.iloc[0]))
        order = {name: at for at, name in enumerate((*RESOLUTIONS.values(), *DENSITIES.values()))}
        return pd.DataFrame(sorted(found, key=lambda row: (order.get(row[by], 0), row[by])))

    def chip_ious(self, threshold: int) -> np.ndarray:
        """(chips,) float: IoU of each chip; NaN where there is no building and none was predicted."""
        return np.array([metrics.counts(h, threshold=threshold).iou for h in self.histograms])


@dataclass(frozen=True)
class Buildings:
    """A model's buildings at one threshold, as objects."""

    by_scene: dict[str, dict[str, Objects]]
    """Scene to size class to counts; class `all` is all of them."""
    sweep: pd.DataFrame
    """Precision, recall and F1 of all, for OBJECT_THRESHOLDS in percent."""
    boundary_iou: float
    false_per_km2: float
    """Buildings found on chips without any, over their valid ground; NaN where every chip has some."""

    def of(self, rows: pd.DataFrame) -> dict[str, Objects]:
        """The counts, by size class, of the scenes of some rows."""
        return objects.add(self.by_scene[scene] for scene in sorted(set(rows.scene)))


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


def predictions(
    probabilities: Callable[[Any, np.ndarray], np.ndarray],
    folder: Files,
    rows: gpd.GeoDataFrame,
    *,
    work: Path,
    block_m: float,
    progress: Progress,
) -> Predictions:
    """Predictions for the chips of some rows of an index, kept in files in the folder `work`.

    `probabilities` takes a row and its image (height, width, 3) uint8, and gives (height, width) float, 0..1.
    Ground is drawn together, for intervals, in blocks of `block_m` metres.
    """
    levels = coded = np.zeros(0)
    read = zip(rows.itertuples(), chips.read_all(folder, rows.itertuples()), strict=True)
    for number, (row, chip) in progress(enumerate(read), len(rows)):
        if not len(levels):
            shape = (len(rows), *chip.label.shape)
            _check_room(work, 3 * math.prod(shape))
            levels = np.lib.format.open_memmap(work / "levels.npy", "w+", np.uint16, shape)
            coded = np.lib.format.open_memmap(work / "coded.npy", "w+", np.uint8, shape)
        levels[number] = metrics.fine(probabilities(row, chip.image))
        coded[number] = chip.label
    groups = {
        "resolution": _classes(rows.native_gsd, RESOLUTIONS),
        "density": _classes(rows.building_share, DENSITIES),
        "block": ground.blocks(rows, block_m),
    }
    return Predictions(folder, rows.reset_index(drop=True).assign(**groups), levels, coded)


def of_model(predict: Predict) -> Callable[[Any, np.ndarray], np.ndarray]:
    """The function that `predictions` asks for, of a network's."""
    return lambda row, image: predict(image[np.newaxis])[0, ..., 0]


def evaluate(made: Predictions, *, temperature: float | None) -> Evaluation:
    """The valid pixels, counted at a temperature; at one that is fitted to these chips if None is given."""
    pixels = np.zeros((2, metrics.LEVELS), np.int64)
    for number in range(len(made.rows)):
        pixels += metrics.fine_histogram(made.levels[number], *labels.decode(made.coded[number]))
    if temperature is None:
        temperature = metrics.fit_temperature(pixels)
    histograms = np.zeros((len(made.rows), 2, 101), np.int64)
    table = metrics.fine_percents(temperature)
    for number in range(len(made.rows)):
        histograms[number] = metrics.histogram(table[made.levels[number]], *labels.decode(made.coded[number]))
    return Evaluation(made.rows, pixels, temperature, histograms)


def buildings(made: Predictions, temperature: float, threshold: int, *, min_area_m2: float) -> Buildings:
    """Buildings as objects, whole across the edges of chips; calibrated, at a threshold in percent.

    An object is what hangs together in label or prediction: labelled buildings that touch are one. Predicted ones of
    less than `min_area_m2` are left out.
    """
    table = metrics.fine_percents(temperature)
    pixel_m2 = float(made.rows.gsd.iloc[0]) ** 2
    speck = min_area_m2 / pixel_m2 * (1 - 1e-9)  # in pixels, less the error of floats
    by_scene, swept = {}, {t: Objects() for t in OBJECT_THRESHOLDS}
    for scene, numbers in made.rows.groupby("scene").indices.items():
        mosaics = {t: objects.Mosaic() for t in {threshold, *OBJECT_THRESHOLDS}}
        for number in numbers:
            row, percents = made.rows.iloc[number], table[made.levels[number]]
            label, valid = labels.decode(made.coded[number])
            labelled = objects.numbered(label > 0)
            for t, mosaic in mosaics.items():
                predicted = objects.numbered((percents >= t) & valid)
                mosaic.add(objects.Block(int(row.row), int(row.col), predicted, labelled))
        counted = {
            t: objects.count(objects.without_specks(mosaic.overlaps(), least=speck), pixel_m2=pixel_m2)
            for t, mosaic in mosaics.items()
        }
        by_scene[str(scene)] = counted[threshold]
        swept = {t: total + counted[t]["all"] for t, total in swept.items()}
    sweep = [{"threshold": t, "precision": o.precision, "recall": o.recall, "f1": o.f1} for t, o in swept.items()]
    shared, either, false, empty_pixels = _edges_and_false(made, table >= threshold, speck)
    return Buildings(
        by_scene,
        pd.DataFrame(sweep),
        boundary_iou=shared / either if either else float("nan"),
        false_per_km2=false / (empty_pixels * pixel_m2 / 1e6) if empty_pixels else float("nan"),
    )


def picture(predict: Predict, folder: Files, rows: gpd.GeoDataFrame, *, threshold: int) -> np.ndarray:
    """One picture of some chips, a row each: image with the label's outlines, probability, errors at the threshold."""
    shown = []
    for image, coded in chips.read_all(folder, rows.itertuples()):
        label, valid = labels.decode(coded)
        probability = predict(image[np.newaxis])[0, ..., 0]
        building = metrics.percent(probability) >= threshold
        outlined = pictures.outlined(image, label, valid)
        shown.append([outlined, pictures.grey(probability), pictures.errors(image, building, label, valid)])
    return pictures.sheet(shown)


def panels(made: Predictions, number: int, temperature: float, threshold: int) -> list[np.ndarray]:
    """Pictures of one chip: image, the same with the label's outlines, calibrated probability, errors."""
    row = next(made.rows.iloc[[number]].itertuples())
    image, (label, valid) = chips.read(made.folder, row).image, labels.decode(made.coded[number])
    percents = metrics.fine_percents(temperature)[made.levels[number]]
    errors = pictures.errors(image, percents >= threshold, label, valid)
    return [image, pictures.outlined(image, label, valid), pictures.grey(percents / 100), errors]


def pick(evaluation: Evaluation, threshold: int, *, count: int) -> tuple[list[int], list[int], list[int]]:
    """Row numbers of the best, the worst and the median chips by IoU, of those with building, labelled or predicted."""
    ious = evaluation.chip_ious(threshold)
    order = [int(i) for i in np.argsort(ious, kind="stable") if not np.isnan(ious[i])]
    half = min(count, len(order) // 2 or len(order))
    first = (len(order) - half) // 2
    return order[::-1][:half], order[:half], order[first : first + half]


def _check_room(folder: Path, needed: int) -> None:
    """Raise InputError unless so many bytes fit in: a process is killed that writes to a map of a full disk."""
    if needed > shutil.disk_usage(folder).free:
        raise InputError(
            f"predictions take {needed / 1e6:.0f} MB, and {folder} has {shutil.disk_usage(folder).free / 1e6:.0f} MB "
            "left: set TMPDIR to a folder on a larger disk"
        )


def _classes(values: pd.Series, limits: dict[float, str]) -> list[str]:
    names = list(limits.values())
    return [names[i] for i in np.digitize(values, list(limits)[:-1])]


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
            sizes = np.bincount(objects.numbered(predicted).ravel())[1:]
            false += int((sizes >= speck).sum())
            empty_pixels += int(valid.sum())
    return shared, either, false, empty_pixels
