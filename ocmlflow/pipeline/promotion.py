"""The champion rule: whether a model replaces the present champion, and why or why not."""

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ocmlflow.chips import splits
from ocmlflow.chips.chip_set import ChipSet
from ocmlflow.errors import InputError
from ocmlflow.evaluation import scorecard
from ocmlflow.evaluation.scorecard import Scorecard
from ocmlflow.pipeline import scoring
from ocmlflow.pipeline.scoring import ScoreRules
from ocmlflow.tracking import chip_artifacts, registry, run_artifacts, runs
from ocmlflow.tracking.outbox_sender import SERVER_ERRORS
from ocmlflow.tracking.registry import Model

SCORES = {"iou": ("iou", "IoU"), "buildings": ("object_f1", "F1 of buildings")}
"""Scores that a champion can be chosen by: their names in `scorecard.differences`, and in words."""


@dataclass(frozen=True)
class Decision:
    """Whether a model becomes champion."""

    promoted: bool
    verdict: str
    """The decision and its reason, in a sentence."""


def decide(
    model: Model,
    card: Scorecard,
    chips: ChipSet,
    chips_run: str,
    rules: ScoreRules,
    *,
    promote: bool,
    promotion: str,
    margin: float,
    max_loss: float,
) -> Decision:
    """The decision for a model with that scorecard on those chips; the rule is logged as a tag.

    A model becomes champion when its score on these chips is more than `margin` above the champion's on the same chips,
    each at its best threshold, and neither has trained on their ground. `promotion` names the score, a key of SCORES.
    On the champion's own validation ground no place may lose more than `max_loss` of IoU.
    """
    score = SCORES[promotion][1] if promotion == "buildings" else "pooled IoU"
    rule = (
        f"{score} on {len(card.pixels.rows)} validation chips that neither model trained on, each at its best "
        f"threshold, higher than the champion's by more than {margin:g}; and on the champion's own validation ground "
        f"no place that loses more than {max_loss:g}{' of IoU' if promotion == 'buildings' else ''}"
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
    table = _differences(champion, card, chips, rules)
    better = _compare(champion, model, table, promotion, margin)
    if not better.promoted:
        return better
    loss = _loss(champion, model, table, chips_run, rules)
    if loss.worst > max_loss:
        return Decision(False, f"Not promoted, as {loss.verdict}, more than max_loss={max_loss:g}. {better.verdict}")
    return Decision(True, f"{better.verdict} It becomes champion; {loss.verdict}.")


def _compare(champion: Model, model: Model, table: pd.DataFrame, promotion: str, margin: float) -> Decision:
    """The decision between a model and the champion by their differences on the same chips, which are logged."""
    run_artifacts.log_table(table, "against_champion.json")
    rows = {key: table[(table.place == "all") & (table.score == name)].iloc[0] for key, (name, _) in SCORES.items()}
    for key, metric in (("iou", "champion/"), ("buildings", "champion/object_f1_")):
        values = {
            "difference": rows[key].difference,
            "difference_low": rows[key].low,
            "difference_high": rows[key].high,
        }
        run_artifacts.log_scores({f"{metric}{name}": value for name, value in values.items()})
    run_artifacts.log_scores({"champion/iou": rows["iou"].base, "champion/object_f1": rows["buildings"].base})
    (other,) = rows.keys() - {promotion}
    comparison = _in_words(rows[promotion], SCORES[promotion][1], champion)
    if margin:
        comparison += f", margin {margin:g}"
    shown = rows[other]
    comparison += f"; {SCORES[other][1]} {shown.model:.4f} against {shown.base:.4f}"
    if rows[promotion].difference > margin:
        return Decision(True, f"{model} is better on these chips: {comparison}.")
    return Decision(False, f"Not promoted: {comparison}.")


def _in_words(row: Any, score: str, champion: Model) -> str:
    """A row of differences, as part of a sentence."""
    interval = "" if row.low != row.low else f", difference {row.low:+.4f} to {row.high:+.4f} in 95 % of paired draws"
    return f"{score} {row.model:.4f} against {row.base:.4f} of {champion} on the same chips{interval}"


@dataclass(frozen=True)
class _Loss:
    """What a model loses against the champion on the champion's own validation ground."""

    worst: float
    """IoU that the worst place loses; NaN where that cannot be told."""
    verdict: str
    """Part of a sentence."""


def _loss(champion: Model, model: Model, table: pd.DataFrame, chips_run: str, rules: ScoreRules) -> _Loss:
    """The loss, which is logged; `table` has the differences on the chips of `chips_run`, which may be the same."""
    own_run = champion.evaluated_on or champion.facts.chips
    fold = scoring.fold_of(champion, own_run)
    try:
        if own_run != chips_run or fold != scoring.fold_of(model, chips_run):
            own = _without_ground(chip_artifacts.open_chips(own_run, fold=fold), model)
            scoring.check_fair(model, own, rules.split)
            scoring.check_fair(champion, own, rules.split)
            table = _differences(champion, _card(model, own, rules), own, rules)
            run_artifacts.log_table(table, "on_champions_ground.json")
    except (InputError, *SERVER_ERRORS) as error:
        return _Loss(math.nan, f"what is lost on the champion's own validation ground is not known: {error}")
    places = table[(table.place != "all") & (table.score == "iou") & table.difference.notna()]
    run_artifacts.log_scores({f"champion/loss/{row.place}": -row.difference for row in places.itertuples()})
    if not len(places):
        return _Loss(math.nan, "the champion's own validation ground shows no building")
    lost = places[places.difference < 0].sort_values("difference")
    if not len(lost):
        return _Loss(0.0, "no place of the champion's own validation ground loses")
    losses = ", ".join(f"{row.place} {-row.difference:.4f}" for row in lost.itertuples())
    return _Loss(-float(lost.difference.iloc[0]), f"on the champion's own validation ground IoU is lost: {losses}")


def _without_ground(chips: ChipSet, model: Model) -> ChipSet:
    """The chips without validation ground that the model was trained on; InputError where nothing is left."""
    known = splits.shares_ground(chips.index, chip_artifacts.training_rows(model))
    if not (chips.index[~known].split == "validation").any():
        raise InputError(f"{model} was trained on all of it")
    return replace(chips, index=chips.index[~known].reset_index(drop=True))


def _differences(champion: Model, card: Scorecard, chips: ChipSet, rules: ScoreRules) -> pd.DataFrame:
    return scorecard.differences(card, _card(champion, chips, rules))


def _card(model: Model, chips: ChipSet, rules: ScoreRules) -> Scorecard:
    with tempfile.TemporaryDirectory() as work:
        return scoring.score_model(model, chips, rules, Path(work))
