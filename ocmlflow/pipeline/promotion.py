"""The champion rule: whether a model replaces the present champion, and why or why not."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from ocmlflow.chips.chip_set import ChipSet
from ocmlflow.errors import InputError
from ocmlflow.evaluation import scorecard
from ocmlflow.evaluation.scorecard import Scorecard
from ocmlflow.pipeline import scoring
from ocmlflow.pipeline.scoring import ScoreRules
from ocmlflow.tracking import registry, run_artifacts, runs
from ocmlflow.tracking.registry import Model


@dataclass(frozen=True)
class Decision:
    """Whether a model becomes champion."""

    promoted: bool
    verdict: str
    """The decision and its reason, in a sentence."""


def decide(
    model: Model, card: Scorecard, chips: ChipSet, rules: ScoreRules, *, promote: bool, margin: float
) -> Decision:
    """The decision for a model with that scorecard on those chips; the rule is logged as a tag.

    A model becomes champion when its pooled IoU on these chips is more than `margin` above the champion's on the same
    chips, each at its best threshold, and neither has trained on their ground.
    """
    rule = (
        f"pooled IoU on {len(card.pixels.rows)} validation chips that neither model trained on, each at its best "
        f"threshold, higher than the champion's by more than {margin:g}"
    )
    runs.set_tags({"ocmlflow.promotion.rule": rule})
    if not model.name:
        return Decision(False, "Not promoted: the model is not registered.")
    if not promote:
        return Decision(False, "Not promoted: promote=false.")
    try:
        champion = registry.load_champion(model.name)
        if champion is None:
            return Decision(True, f"{model} becomes champion: there was none.")
        if champion.version == model.version:
            return Decision(False, f"{model} is the champion already.")
        scoring.check_fair(champion, chips, "validation")
    except InputError as error:
        return Decision(False, f"Not promoted: the champion cannot be compared on these chips. {error}")
    return _against(champion, model, card, chips, rules, margin)


def _against(
    champion: Model, model: Model, card: Scorecard, chips: ChipSet, rules: ScoreRules, margin: float
) -> Decision:
    """The decision between a model and the champion; the paired differences are logged."""
    with tempfile.TemporaryDirectory() as work:
        table = scorecard.differences(card, scoring.score_model(champion, chips, rules, Path(work)))
    run_artifacts.log_table(table, "against_champion.json")
    iou = table[(table.place == "all") & (table.score == "iou")].iloc[0]
    run_artifacts.log_scores(
        {
            "champion/iou": iou.base,
            "champion/difference": iou.difference,
            "champion/difference_low": iou.low,
            "champion/difference_high": iou.high,
        }
    )
    interval = "" if iou.low != iou.low else f", difference {iou.low:+.4f} to {iou.high:+.4f} in 95 % of paired draws"
    comparison = f"IoU {iou.model:.4f} against {iou.base:.4f} of {champion} on the same chips{interval}"
    if margin:
        comparison += f", margin {margin:g}"
    if iou.difference > margin:
        return Decision(True, f"{model} becomes champion: {comparison}.")
    return Decision(False, f"Not promoted: {comparison}.")
