"""Scores a model, or masks or polygons of another tool, on the chips of a split."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from geopandas import GeoDataFrame

from ocmlflow.chips import drawn_buildings, splits
from ocmlflow.chips.chip_set import ChipSet
from ocmlflow.errors import InputError
from ocmlflow.evaluation import external_masks, external_polygons, predictions, scorecard
from ocmlflow.evaluation.scorecard import Scorecard
from ocmlflow.prediction import inference
from ocmlflow.progress import progress_bar
from ocmlflow.tracking import chip_artifacts
from ocmlflow.tracking.registry import Model


@dataclass(frozen=True)
class ScoreRules:
    """How chips are scored."""

    split: str
    """`validation` or `test`."""
    bootstrap_block_m: float
    """Side in metres of the blocks of ground that intervals draw as a whole."""
    min_area_m2: float
    """Smallest area of a building."""
    min_hole_m2: float
    """Smallest area of a hole in a predicted building."""


def score_model(model: Model, chips: ChipSet, rules: ScoreRules, work: Path) -> Scorecard:
    """The scorecard of a model on the chips of a split; the folder `work` keeps its predictions.

    On validation chips threshold and temperature are chosen. On test chips they are the ones that the model has;
    InputError if they were never chosen.
    """
    if rules.split == "test" and not model.evaluated_on:
        raise InputError(f"{model} has no threshold yet: evaluate it on its validation chips first, then on test chips")
    predict = predictions.of_model(inference.padded(model.keras.predict_on_batch, model.facts.multiple))
    at = (model.threshold, model.temperature) if rules.split == "test" else None
    return _score(str(model), predict, chips, rows_of(chips, rules.split), rules, work, at=at)


def score_others(path: str, chips: ChipSet, rules: ScoreRules, work: Path) -> Scorecard:
    """The scorecard of another tool's masks or polygons on the chips of a split; there is no threshold to choose.

    `path` is a folder of masks, as `external_masks.reader` takes it, or of polygons, as `external_polygons.read` does.
    In a mask, a building is what is connected.
    """
    rows = rows_of(chips, rules.split)
    source = Path(path)
    at = (50, 1.0)
    if external_polygons.files(source) and not any(source.glob("*.tif")):
        outlines = external_polygons.read(source, rows)
        read = external_polygons.reader(outlines, rows)
        return _score(path, read, chips, rows, rules, work, at=at, outlines=outlines)
    return _score(path, external_masks.reader(source, rows), chips, rows, rules, work, at=at, separate=False)


def fold_of(model: Model, chips_run: str) -> int | None:
    """The fold of those chips that a model's training held out; None where it was trained on others."""
    return model.facts.fold if chips_run == model.facts.chips else None


def check_fair(model: Model, chips: ChipSet, split: str) -> None:
    """Raise InputError when the chips have another resolution than the model's, or ground that it was trained on.

    Test chips must not lie either on ground that epoch, threshold or temperature were chosen on.
    """
    if model.facts.gsd != chips.rules["gsd"]:
        raise InputError(f"{model} works at {model.facts.gsd} m per pixel, the chips have {chips.rules['gsd']} m")
    rows = rows_of(chips, split)
    known_ground = [("was trained", chip_artifacts.training_rows(model))]
    if split == "test":
        known_ground.append(("was validated", chip_artifacts.validation_rows(model)))
    for use, known in known_ground:
        if shared := int(splits.shares_ground(rows, known).sum()):
            raise InputError(
                f"{shared} of the {len(rows)} {split} chips lie on ground that {model} {use} on (chips of run "
                f"{model.facts.chips}): its scores there would be flattered"
            )


def rows_of(chips: ChipSet, split: str) -> GeoDataFrame:
    """The chips of a split; InputError where there are none."""
    rows = chips.select(split)
    if not len(rows):
        raise InputError(f"split={split}: these chips have none; `prepare` holds ground out for it with {split}=")
    return rows


def _score(
    name: str,
    probabilities: Callable[[Any, np.ndarray], np.ndarray],
    chips: ChipSet,
    rows: GeoDataFrame,
    rules: ScoreRules,
    work: Path,
    *,
    at: tuple[int, float] | None,
    outlines: GeoDataFrame | None = None,
    separate: bool = True,
) -> Scorecard:
    def bar(items: Iterable[Any], total: int) -> Iterable[Any]:
        return progress_bar(items, total, name)

    kept = predictions.collect(
        probabilities,
        chips.folder,
        rows,
        work=work,
        block_m=rules.bootstrap_block_m,
        progress=bar,
        drawn=drawn_buildings.read(chips, rows.scene),
        outlines=outlines,
        separate=separate,
    )
    return scorecard.score(
        name,
        kept,
        at=at,
        block_m=rules.bootstrap_block_m,
        min_area_m2=rules.min_area_m2,
        min_hole_m2=rules.min_hole_m2,
    )
