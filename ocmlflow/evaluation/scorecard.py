"""A model's scores on some ground in one record, and how two of them differ on the same."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from ocmlflow.evaluation import calibration, metrics, scores
from ocmlflow.evaluation.metrics import Counts
from ocmlflow.evaluation.object_matching import ObjectCounts
from ocmlflow.evaluation.predictions import Predictions
from ocmlflow.evaluation.scores import BuildingScores, PixelScores

BINS = 20
"""Of the reliability curve."""
SCORES = ("iou", "precision", "recall", "f1")


@dataclass(frozen=True)
class Scorecard:
    """A model on some chips, at its threshold."""

    name: str
    predictions: Predictions
    pixels: PixelScores
    threshold: int
    """Percent of calibrated probability."""
    buildings: BuildingScores

    @property
    def counts(self) -> Counts:
        """Pixels of all chips."""
        return self.pixels.counts(self.threshold)

    @property
    def objects(self) -> dict[str, ObjectCounts]:
        """Buildings of all scenes by size class, and `all`."""
        return self.buildings.of(self.pixels.rows)

    def bootstrap(self) -> dict[str, np.ndarray]:
        """Bootstrap over blocks of ground; cards of the same chips draw the same blocks."""
        return metrics.bootstrap(self.pixels.block_counts(self.threshold), seed=0)

    @property
    def blocks(self) -> int:
        """Blocks of ground that the chips lie in."""
        return int(self.pixels.rows.block.max()) + 1

    def reliability(self, temperature: float) -> pd.DataFrame:
        """The reliability curve at a temperature: 1 as the model has it, the fitted one as calibrated."""
        return calibration.reliability(self.pixels.level_histogram, temperature=temperature, bins=BINS)

    def table(self, by: str) -> pd.DataFrame:
        """Pooled scores of pixels and of buildings of each place, scene, resolution or density (pixels only)."""
        table = self.pixels.table(by, self.threshold)
        if by != "density":  # whose chips are no whole scenes
            groups = [self.buildings.of(self.pixels.rows[self.pixels.rows[by] == name])["all"] for name in table[by]]
            for score in ("precision", "recall", "f1"):
                table[f"object_{score}"] = [getattr(group, score) for group in groups]
        return table


def score(name: str, made: Predictions, *, at: tuple[int, float] | None, min_area_m2: float) -> Scorecard:
    """The scorecard of predictions, at a threshold (percent) and temperature, or at those that fit these chips best."""
    found = scores.score_pixels(made, temperature=at[1] if at else None)
    threshold = at[0] if at else found.best_threshold
    buildings = scores.score_buildings(made, found.temperature, threshold, min_area_m2=min_area_m2)
    return Scorecard(name, made, found, threshold, buildings)


def metric_values(card: Scorecard) -> dict[str, float]:
    """Scores by the name of their metric; NaN for what cannot be told, as an interval of one block."""
    counts, drawn, objects = card.counts, card.bootstrap(), card.objects["all"]
    found: dict[str, float] = {}
    for name in SCORES:
        low, high = metrics.bootstrap_interval(drawn[name], blocks=card.blocks)
        found |= {name: getattr(counts, name), f"{name}_low": low, f"{name}_high": high}
    found |= {"threshold": card.threshold / 100, "temperature": card.pixels.temperature}
    found |= {"iou_at_half": card.pixels.counts(50).iou, "pixels": counts.pixels, "blocks": card.blocks}
    found |= {f"object/{name}": getattr(objects, name) for name in ("precision", "recall", "f1", "splits", "merges")}
    found |= {"boundary_iou": card.buildings.boundary_iou, "false_per_km2": card.buildings.false_per_km2}
    found["calibration_error"] = calibration.calibration_error(card.reliability(card.pixels.temperature))
    found["calibration_error_before"] = calibration.calibration_error(card.reliability(1.0))
    for by in scores.GROUPS:
        for row in card.table(by).to_dict("records"):
            found[f"{by}/{row[by] or 'none'}"] = row["iou"]
            if by in ("place", "scene"):
                found[f"object_f1_of_{by}/{row[by] or 'none'}"] = row["object_f1"]
            if by == "scene":
                found[f"area_error/{row[by]}"] = row["area_error"]
    return {name: float(value) for name, value in found.items()}


def summary(card: Scorecard) -> dict[str, Any]:
    """All that the report shows but its pictures, in lists and dicts; None for what is no number."""
    sizes = [
        {
            "size": size,
            **{n: getattr(o, n) for n in ("tp", "fp", "fn", "precision", "recall", "f1", "splits", "merges")},
        }
        for size, o in card.objects.items()
    ]
    temperature = card.pixels.temperature
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
            "sizes": sizes,
            "sweep": card.pixels.sweep().to_dict("records"),
            "object_sweep": card.buildings.sweep.to_dict("records"),
            "reliability": card.reliability(temperature).to_dict("records"),
            "reliability_before": card.reliability(1.0).to_dict("records"),
        }
    )


def differences(card: Scorecard, base: Scorecard) -> pd.DataFrame:
    """How much higher each score of a model is than that of another on the same chips, in all and by place.

    Intervals are paired: each draw takes the same blocks of ground for both.
    """
    found = []
    places = {"all": np.ones(len(card.pixels.rows), bool)}
    places |= {
        place or "none": (card.pixels.rows.place == place).to_numpy() for place in sorted(set(card.pixels.rows.place))
    }
    for place, here in places.items():
        blocks = np.unique(card.pixels.rows.block.to_numpy()[here], return_inverse=True)[1]
        ours, theirs = (
            metrics.block_counts(one.pixels.histograms[here], blocks, threshold=one.threshold) for one in (card, base)
        )
        drawn = [metrics.bootstrap(counted, seed=0) for counted in (ours, theirs)]
        mine, other = (Counts(*map(int, counted.sum(axis=0))) for counted in (ours, theirs))
        for name in SCORES:
            low, high = metrics.bootstrap_interval(drawn[0][name] - drawn[1][name], blocks=len(ours))
            values = {"model": getattr(mine, name), "base": getattr(other, name)}
            values["difference"] = values["model"] - values["base"]
            found.append({"place": place, "score": name, **values, "low": low, "high": high, "blocks": len(ours)})
    return pd.DataFrame(found)


def json_values(value: Any) -> Any:
    """The same for JSON: Python's own numbers, and None for what is no number."""
    if isinstance(value, dict):
        return {str(key): json_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
