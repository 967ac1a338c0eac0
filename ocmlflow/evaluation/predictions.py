"""Predicts chips, and keeps the predictions beside the chips' labels in files, to be scored."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd

from ocmlflow.chips import chip_set, ground_blocks
from ocmlflow.chips.zarr_store import Folder
from ocmlflow.errors import InputError
from ocmlflow.evaluation.building_matching import DENSITIES
from ocmlflow.prediction.separation import DISTANCE_STEPS
from ocmlflow.probability import Predict, to_levels
from ocmlflow.progress import Progress

RESOLUTIONS = {0.05: "below 0.05 m", 0.1: "0.05 to 0.1 m", 0.2: "0.1 to 0.2 m", np.inf: "from 0.2 m"}
"""Classes of native resolution by their upper limits, in metres per pixel."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model and labels of some chips, in memory-mapped files."""

    folder: Folder
    """Folder of the chips."""
    rows: gpd.GeoDataFrame
    """Rows of the index with `resolution` and `density` classes, and `block`, the number of the spatial block."""
    levels: np.ndarray
    """(chips, size, size) uint16: `probability.to_levels` of the probability."""
    coded: np.ndarray
    """(chips, size, size) uint8: labels as `chips.labels.encode` gives them."""
    distance: np.ndarray | None = None
    """(chips, size, size) uint8: learned distance to the building's own edge, as `separation` takes it; None if there
    is none."""
    drawn: gpd.GeoDataFrame | None = None
    """Footprints that people drew, columns scene and geometry; None in chips of earlier versions."""
    outlines: gpd.GeoDataFrame | None = None
    """The same columns for the buildings that another tool predicts as polygons; None where they are traced."""
    separate: bool = True
    """Whether buildings that touch are told apart before they are traced, as `predict` does."""


def collect(
    probabilities: Callable[[Any, np.ndarray], np.ndarray],
    folder: Folder,
    rows: gpd.GeoDataFrame,
    *,
    work: Path,
    block_m: float,
    progress: Progress,
    drawn: gpd.GeoDataFrame | None = None,
    outlines: gpd.GeoDataFrame | None = None,
    separate: bool = True,
) -> Predictions:
    """Predict the chips of some rows of an index; predictions are kept in files in the folder `work`.

    `probabilities` takes a row and its image (height, width, 3) uint8, and gives (height, width, channels) float, 0..1,
    as `Predict` does. Spatial blocks of `block_m` metres are the units of the bootstrap. The other arguments are fields
    of Predictions. Raises InputError if the disk lacks room.
    """
    levels = coded = np.zeros(0)
    distance = None
    chips = zip(rows.itertuples(), chip_set.read_all(folder, rows.itertuples()), strict=True)
    for number, (row, chip) in progress(enumerate(chips), len(rows)):
        if not len(levels):
            shape = (len(rows), *chip.label.shape)
            _check_room(work, 4 * math.prod(shape))
            levels = np.lib.format.open_memmap(work / "levels.npy", "w+", np.uint16, shape)
            coded = np.lib.format.open_memmap(work / "coded.npy", "w+", np.uint8, shape)
        predicted = probabilities(row, chip.image)
        levels[number] = to_levels(predicted[..., 0])
        if predicted.shape[-1] > 1:
            if distance is None:
                distance = np.lib.format.open_memmap(work / "distance.npy", "w+", np.uint8, levels.shape)
            distance[number] = np.rint(predicted[..., 1] * np.float32(DISTANCE_STEPS))
        coded[number] = chip.label
    columns = {
        "resolution": _classes(rows.native_gsd, RESOLUTIONS),
        "density": _classes(rows.building_share, DENSITIES),
        "block": ground_blocks.spatial_blocks(rows, block_m),
    }
    rows = rows.reset_index(drop=True).assign(**columns)
    return Predictions(folder, rows, levels, coded, distance, drawn, outlines, separate)


def of_model(predict: Predict) -> Callable[[Any, np.ndarray], np.ndarray]:
    """The function that `collect` needs, from a predict function."""
    return lambda row, image: predict(image[np.newaxis])[0, ..., :2]


def _check_room(folder: Path, needed: int) -> None:
    """Raise InputError unless so many bytes are free: writing to a memory map on a full disk kills the process."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"predictions take {needed / 1e6:.0f} MB, and {folder} has {free / 1e6:.0f} MB left: "
            "set TMPDIR to a folder on a larger disk"
        )


def _classes(values: pd.Series, limits: dict[float, str]) -> list[str]:
    """The class of each value, given names by upper limit."""
    names = list(limits.values())
    return [names[i] for i in np.digitize(values, list(limits)[:-1])]
