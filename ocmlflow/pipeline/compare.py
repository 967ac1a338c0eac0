"""Compares models on the same validation chips: differences, how sure they are, and where they show."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ocmlflow import pictures
from ocmlflow.chips.chip_set import ChipSet
from ocmlflow.evaluation import examples, metrics, report, scorecard
from ocmlflow.evaluation.scorecard import Scorecard
from ocmlflow.pipeline import score_log, scoring
from ocmlflow.pipeline.model_options import MIN_HOLE_M2
from ocmlflow.pipeline.option_values import names
from ocmlflow.pipeline.options import CompareOptions, parameters
from ocmlflow.pipeline.scoring import ScoreRules
from ocmlflow.tracking import child_runs, chip_artifacts, registry, run_artifacts, run_pages, runs
from ocmlflow.tracking.registry import Model

log = logging.getLogger(__name__)

PICTURES = 6
"""Chips shown of each model beside the first."""


def run(options: CompareOptions) -> pd.DataFrame:
    """Paired differences of each model, or folder of masks, from the first: a row per model, place and score.

    Columns are those of `scorecard.differences`, and `name`, the model. Tables, pictures and a page are logged to a
    run, and each contestant to a child run that MLflow compares.
    """
    models, masks = names(options.models), names(options.predictions)
    rules = ScoreRules("validation", options.bootstrap_block_m, options.min_area_m2, MIN_HOLE_M2)
    with runs.run("compare", parameters(options)), tempfile.TemporaryDirectory() as scratch:
        first = registry.load_model(models[0]) if models else None
        chips_run = chip_artifacts.resolve_run(options.chips or (first.facts.chips if first else None))
        chips = chip_artifacts.open_chips(chips_run, fold=scoring.fold_of(first, chips_run) if first else None)
        score_log.log_chips(chips_run, chips, rules.split)
        cards: list[Scorecard] = []
        for name in (*models, *masks):
            work = Path(scratch) / str(len(cards))
            work.mkdir()
            model = registry.load_model(name) if len(cards) < len(models) else None
            cards.append(
                _score_model(model, chips, rules, work) if model else scoring.score_others(name, chips, rules, work)
            )
            _log_contestant(cards[-1], chips_run, chips, rules.split, model)
        return _log_differences(cards, rules)


def _score_model(model: Model, chips: ChipSet, rules: ScoreRules, work: Path) -> Scorecard:
    scoring.check_fair(model, chips, rules.split)
    return scoring.score_model(model, chips, rules, work)


def _log_contestant(card: Scorecard, chips_run: str, chips: ChipSet, split: str, model: Model | None) -> None:
    """Log a scorecard as a child run with the metrics of `evaluate`."""
    with child_runs.child("compared", f"{run_pages.score(card.counts.iou)} {card.name}", {"model": card.name}):
        dataset = score_log.log_chips(chips_run, chips, split, model)
        model_id = model.key if model else None
        run_artifacts.log_scores(scorecard.metric_values(card), model_id=model_id, dataset=dataset)
        runs.describe(score_log.headline(card))
    log.info("%s: %s", card.name, score_log.headline(card))


def _log_differences(cards: list[Scorecard], rules: ScoreRules) -> pd.DataFrame:
    """Log differences from the first card, pictures and the page; returns the differences."""
    base, *others = cards
    differences = {card.name: scorecard.differences(card, base) for card in others}
    table = pd.concat([rows.assign(name=name) for name, rows in differences.items()], ignore_index=True)
    run_artifacts.log_table(table, "differences.json")
    summaries = [scorecard.summary(card) for card in cards]
    plain = {name: scorecard.json_values(rows.to_dict("records")) for name, rows in differences.items()}
    run_artifacts.log_json({"models": summaries, "differences": plain}, "compare.json")
    for card in others:
        iou = differences[card.name].query("place == 'all' and score == 'iou'").iloc[0]
        key = f"difference/{card.name[-200:]}/iou"  # the last folders of masks tell them apart
        run_artifacts.log_scores({key: iou.difference, f"{key}_low": iou.low, f"{key}_high": iou.high})
    page = report.page(
        "compare.html",
        cards=summaries,
        differences=plain,
        shown={card.name: _log_pictures(base, card) for card in others},
        block_m=rules.bootstrap_block_m,
    )
    run_artifacts.log_page(page, "compare.html")
    lines = [f"- **{card.name}**: {score_log.headline(card)}" for card in cards]
    best = max(cards, key=lambda card: card.counts.iou)
    run_pages.name_run("compare", f"{len(cards)}, best {best.name}", score=run_pages.score(best.counts.iou))
    runs.describe("On the same chips:\n\n" + "\n".join(lines))
    return table


def _log_pictures(base: Scorecard, card: Scorecard) -> list[dict[str, Any]]:
    """Log the chips on which a model and the base differ most in right pixels, side by side; returns them."""
    gained = _right_pixels(card) - _right_pixels(base)
    order = [int(number) for number in np.argsort(-abs(gained), kind="stable") if gained[number]][:PICTURES]
    base_ious, card_ious = (one.pixels.chip_ious(one.threshold) for one in (base, card))
    shown = []
    for number in order:
        row = card.pixels.rows.iloc[number]
        left, right = (
            examples.panels(one.predictions, number, one.pixels.temperature, one.threshold) for one in (base, card)
        )
        picture = pictures.contact_sheet([[left[0], left[1], left[3], right[3]]])
        ious = [base_ious[number], card_ious[number]]
        shown.append({"id": row.id, "place": row.place, "ious": ious, "picture": picture})
        run_artifacts.log_picture(picture, f"pictures/{len(shown)}-{row.id}.jpg")
    return shown


def _right_pixels(card: Scorecard) -> np.ndarray:
    """(chips,) int: pixels of each chip that are called rightly."""
    counts = [metrics.counts(histogram, threshold=card.threshold) for histogram in card.pixels.histograms]
    return np.array([count.tp + count.tn for count in counts])
