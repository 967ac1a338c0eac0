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

from ocmlflow.chips import chip_set, splits
from ocmlflow.chips.zarr_store import Folder
from ocmlflow.errors import InputError
from ocmlflow.probability import Predict, to_levels
from ocmlflow.progress import Progress

RESOLUTIONS = {0.05: "below 0.05 m", 0.1: "0.05 to 0.1 m", 0.2: "0.1 to 0.2 m", np.inf: "from 0.2 m"}
DENSITIES = {1e-9: "empty", 0.1: "below 0.1", 0.3: "0.1 to 0.3", np.inf: "from 0.3"}
"""Upper limits of the share of a chip that is building."""


@dataclass(frozen=True)
class Predictions:
    """What a model makes of some chips, kept in files beside the chips' labels: memory holds a chip at a time."""

    folder: Folder
    """Of the chips."""
    rows: gpd.GeoDataFrame
    """The chips' rows of the index; `resolution` and `density` are added, and `block`, the number of its ground."""
    levels: np.ndarray
    """(chips, size, size) uint16: `metrics.fine` of the probability."""
    coded: np.ndarray
    """(chips, size, size) uint8: coded labels."""


def collect(
    probabilities: Callable[[Any, np.ndarray], np.ndarray],
    folder: Folder,
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
    read = zip(rows.itertuples(), chip_set.read_all(folder, rows.itertuples()), strict=True)
    for number, (row, chip) in progress(enumerate(read), len(rows)):
        if not len(levels):
            shape = (len(rows), *chip.label.shape)
            _check_room(work, 3 * math.prod(shape))
            levels = np.lib.format.open_memmap(work / "levels.npy", "w+", np.uint16, shape)
            coded = np.lib.format.open_memmap(work / "coded.npy", "w+", np.uint8, shape)
        levels[number] = to_levels(probabilities(row, chip.image))
        coded[number] = chip.label
    groups = {
        "resolution": _classes(rows.native_gsd, RESOLUTIONS),
        "density": _classes(rows.building_share, DENSITIES),
        "block": splits.spatial_blocks(rows, block_m),
    }
    return Predictions(folder, rows.reset_index(drop=True).assign(**groups), levels, coded)


def of_model(predict: Predict) -> Callable[[Any, np.ndarray], np.ndarray]:
    """The function that `predictions` asks for, of a network's."""
    return lambda row, image: predict(image[np.newaxis])[0, ..., 0]


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
