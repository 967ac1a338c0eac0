"""All scores of a model on some chips in one record, and the differences of two models on the same chips."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from ocmlflow.evaluation import building_matching, calibration, metrics, scores
from ocmlflow.evaluation.building_matching import MatchedBuildings
from ocmlflow.evaluation.metrics import Counts
from ocmlflow.evaluation.object_matching import ObjectCounts
from ocmlflow.evaluation.predictions import Predictions
from ocmlflow.evaluation.scores import BuildingScores, PixelScores

BINS = 20
"""Bins of the reliability curve."""
BUILDING_GROUPS = ("place", "scene", "size", "density")
"""Columns by which scores of buildings are grouped."""
OBJECT_METRICS = (
    *(f"{name}_{end}" for name in building_matching.SCORES for end in ("low", "high")),
    *("predicted", "drawn", "iou", "boundary_m", "corners_predicted", "corners_drawn"),
)
"""Scores of buildings that are metrics where the chips keep footprints."""
SCORES = ("iou", "precision", "recall", "f1")
"""Scores of pixels that have an interval and a difference."""


@dataclass(frozen=True)
class Scorecard:
    """Scores of a model on some chips, at one threshold."""

    name: str
    """Name of the model."""
    predictions: Predictions
    """What the model predicts on the chips."""
    pixels: PixelScores
    """Scores of pixels, at every threshold."""
    threshold: int
    """Percent of calibrated probability."""
    buildings: BuildingScores
    """Scores of buildings as objects, at the threshold."""

    @property
    def counts(self) -> Counts:
        """Pixel counts of all chips, at the threshold."""
        return self.pixels.counts(self.threshold)

    @property
    def objects(self) -> dict[str, ObjectCounts]:
        """Building counts of all scenes by size class, and of `all`."""
        return self.buildings.of(self.pixels.rows)

    def bootstrap(self) -> dict[str, np.ndarray]:
        """Draws of the bootstrap over spatial blocks; cards of the same chips draw the same blocks."""
        return metrics.bootstrap(self.pixels.block_counts(self.threshold), seed=0)

    @property
    def blocks(self) -> int:
        """Number of spatial blocks that the chips lie in."""
        return int(self.pixels.rows.block.max()) + 1

    def reliability(self, temperature: float) -> pd.DataFrame:
        """Reliability curve at a temperature; at 1 it is that of the model without calibration."""
        return calibration.reliability(self.pixels.level_histogram, temperature=temperature, bins=BINS)

    def table(self, by: str) -> pd.DataFrame:
        """Pooled scores of each group of chips by a column of `scores.GROUPS`, as `PixelScores.table` gives them.

        The scores of buildings are added in `object_precision`, `object_recall` and `object_f1`, but not by density,
        whose groups are no whole scenes.
        """
        table = self.pixels.table(by, self.threshold)
        if by != "density":
            groups = [self.buildings.of(self.pixels.rows[self.pixels.rows[by] == name])["all"] for name in table[by]]
            for score in ("precision", "recall", "f1"):
                table[f"object_{score}"] = [getattr(group, score) for group in groups]
        return table


def score(
    name: str,
    predicted: Predictions,
    *,
    at: tuple[int, float] | None,
    block_m: float,
    min_area_m2: float,
    min_hole_m2: float,
) -> Scorecard:
    """The scorecard of predictions at a threshold (percent) and temperature; if `at` is None, at those that fit best.

    Buildings are scored as `scores.score_buildings` says.
    """
    pixels = scores.score_pixels(predicted, temperature=at[1] if at else None)
    threshold = at[0] if at else pixels.best_threshold
    buildings = scores.score_buildings(
        predicted, pixels.temperature, threshold, block_m=block_m, min_area_m2=min_area_m2, min_hole_m2=min_hole_m2
    )
    return Scorecard(name, predicted, pixels, threshold, buildings)


def metric_values(card: Scorecard) -> dict[str, float]:
    """All scores by the name of their MLflow metric; NaN for what is undefined, as an interval from one block."""
    counts = card.counts
    objects = card.objects["all"]
    draws = card.bootstrap()
    values: dict[str, float] = {}
    for name in SCORES:
        low, high = metrics.bootstrap_interval(draws[name], blocks=card.blocks)
        values |= {name: getattr(counts, name), f"{name}_low": low, f"{name}_high": high}
    values |= {"threshold": card.threshold / 100, "temperature": card.pixels.temperature}
    values |= {"iou_at_half": card.pixels.counts(50).iou, "pixels": counts.pixels, "blocks": card.blocks}
    values |= {f"object/{name}": getattr(objects, name) for name in ("precision", "recall", "f1", "splits", "merges")}
    if card.buildings.matched:
        matched = building_matching.scores(card.buildings.matched)
        values |= {f"object/{name}": matched[name] for name in OBJECT_METRICS}
    values |= {"boundary_iou": card.buildings.boundary_iou, "false_per_km2": card.buildings.false_per_km2}
    values["calibration_error"] = calibration.calibration_error(card.reliability(card.pixels.temperature))
    values["calibration_error_before"] = calibration.calibration_error(card.reliability(1.0))
    for by in scores.GROUPS:
        values |= _group_values(card, by)
    return {name: float(value) for name, value in values.items()}


def summary(card: Scorecard) -> dict[str, Any]:
    """All that the report shows, except for pictures, ready for JSON."""
    fields = ("tp", "fp", "fn", "precision", "recall", "f1", "splits", "merges")
    return json_values(
        {
            "name": card.name,
            "threshold": card.threshold / 100,
            "scores": metric_values(card),
            "chips": len(card.pixels.rows),
            "split": card.pixels.rows.split.iloc[0],
            "counts": asdict(card.counts),
            "counts_at_half": asdict(card.pixels.counts(50)),
            "building_share": scores.pooled_scores(card.counts)["building_share"],
            "tables": {by: card.table(by).to_dict("records") for by in scores.GROUPS},
            "buildings": _building_summary(card.buildings.matched),
            "sizes": [
                {"size": size, **{field: getattr(objects, field) for field in fields}}
                for size, objects in card.objects.items()
            ],
            "sweep": card.pixels.sweep().to_dict("records"),
            "object_sweep": card.buildings.sweep.to_dict("records"),
            "reliability": card.reliability(card.pixels.temperature).to_dict("records"),
            "reliability_before": card.reliability(1.0).to_dict("records"),
        }
    )


def _building_summary(matched: MatchedBuildings | None) -> dict[str, Any] | None:
    """Scores of buildings, and their tables by group; None where the chips keep no footprints."""
    if matched is None:
        return None
    tables = {by: building_matching.table(matched, by).to_dict("records") for by in BUILDING_GROUPS}
    return {"scores": building_matching.scores(matched), "tables": tables}


def differences(card: Scorecard, base: Scorecard) -> pd.DataFrame:
    """Score of a model minus that of another on the same chips, for each of SCORES, in all and by place.

    Scores of buildings follow as object_precision, object_recall and object_f1; without footprints they have no
    interval. Columns place, score, model, base, difference, low, high, blocks. Intervals are paired: each draw takes
    the same spatial blocks for both models.
    """
    place_of_chips = card.pixels.rows.place
    table = _differences(card, base, np.ones(len(place_of_chips), bool), place="all")
    for place in sorted(set(place_of_chips)):
        table += _differences(card, base, (place_of_chips == place).to_numpy(), place=place or "none")
    for place in ("all", *sorted(set(place_of_chips))):
        table += _building_differences(card, base, place)
    return pd.DataFrame(table)


def json_values(value: Any) -> Any:
    """A value for JSON: NumPy numbers become Python's, NaN and infinity become None."""
    if isinstance(value, dict):
        return {str(key): json_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _group_values(card: Scorecard, by: str) -> dict[str, float]:
    """Metrics of each group of chips that share a value of a column."""
    values = {}
    for row in card.table(by).to_dict("records"):
        group = row[by] or "none"
        values[f"{by}/{group}"] = row["iou"]
        if by in ("place", "scene"):
            values[f"object_f1_of_{by}/{group}"] = row["object_f1"]
        if by == "scene":
            values[f"area_error/{row[by]}"] = row["area_error"]
            objects = card.buildings.by_scene[row[by]]["all"]
            values[f"buildings_predicted/{row[by]}"] = objects.tp + objects.fp
            values[f"buildings_drawn/{row[by]}"] = objects.tp + objects.fn
    return values


def _differences(card: Scorecard, base: Scorecard, is_chosen: np.ndarray, *, place: str) -> list[dict[str, Any]]:
    """Rows of `differences` on the chips where `is_chosen`, (chips,) bool."""
    names, blocks = np.unique(card.pixels.rows.block.to_numpy()[is_chosen], return_inverse=True)
    card_counts, base_counts = (
        metrics.block_counts(one.pixels.histograms[is_chosen], blocks, threshold=one.threshold) for one in (card, base)
    )
    card_draws = metrics.bootstrap(card_counts, seed=0)
    base_draws = metrics.bootstrap(base_counts, seed=0)
    card_total = Counts(*map(int, card_counts.sum(axis=0)))
    base_total = Counts(*map(int, base_counts.sum(axis=0)))
    rows = []
    for name in SCORES:
        low, high = metrics.bootstrap_interval(card_draws[name] - base_draws[name], blocks=len(names))
        model_score = getattr(card_total, name)
        base_score = getattr(base_total, name)
        rows.append(
            {
                "place": place,
                "score": name,
                "model": model_score,
                "base": base_score,
                "difference": model_score - base_score,
                "low": low,
                "high": high,
                "blocks": len(names),
            }
        )
    return rows


def _building_differences(card: Scorecard, base: Scorecard, place: str) -> list[dict[str, Any]]:
    """Rows of `differences` of the scores of buildings, of one place or of `all`."""
    pair = [card.buildings.matched, base.buildings.matched]
    if pair[0] and pair[1]:
        chosen = [one.where("place", place) if place != "all" else one for one in pair if one]
        rows = building_matching.differences(*chosen)
        return [{"place": place or "none", **row, "score": f"object_{row['score']}"} for row in rows]
    rows_of_place = [
        one.pixels.rows if place == "all" else one.pixels.rows[one.pixels.rows.place == place] for one in (card, base)
    ]
    model, other = (one.buildings.of(rows)["all"] for one, rows in zip((card, base), rows_of_place, strict=True))
    missing = {"low": math.nan, "high": math.nan, "blocks": card.blocks}
    return [
        {
            "place": place or "none",
            "score": f"object_{name}",
            "model": getattr(model, name),
            "base": getattr(other, name),
            "difference": getattr(model, name) - getattr(other, name),
            **missing,
        }
        for name in building_matching.SCORES
    ]
