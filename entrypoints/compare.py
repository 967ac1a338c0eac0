"""Several models on the same validation chips: how much they differ, how sure that is, and where it shows."""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrypoints import evaluate, number, parser, start

if TYPE_CHECKING:
    import pandas as pd

    from ocmlflow.chips.chip_set import ChipSet
    from ocmlflow.evaluation.scorecard import Scorecard

log = logging.getLogger(__name__)

PICTURES = 6
"""Chips shown of each model against the first."""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The verb's parameters and their defaults."""
    p = parser("compare", "Score models on the same validation chips, with paired intervals of their differences.")
    p.add_argument(
        "--models", required=True, help="addresses as models:/NAME/1, separated by commas; the first is the base"
    )
    p.add_argument(
        "--predictions", default=None, help="folders of masks, separated by commas, that enter the table as models do"
    )
    p.add_argument("--chips", default=None, help="run id of a `prepare` run; the first model's own if not given")
    p.add_argument(
        "--block_m", type=number(1), default=100.0, help="metres along a block of ground, which intervals draw whole"
    )
    p.add_argument(
        "--min_area_m2", type=number(0), default=2.0, help="least area of a predicted building, as in predict"
    )
    return p.parse_args(words)


def main(args: argparse.Namespace) -> None:

    from ocmlflow.chips import chip_set
    from ocmlflow.errors import InputError
    from ocmlflow.evaluation import scorecard
    from ocmlflow.tracking import chip_artifacts, registry, runs

    contestants = [(name, False) for name in _names(args.models)] + [(name, True) for name in _names(args.predictions)]
    if len(contestants) < 2:
        raise InputError(f"models={args.models}: two or more models, or folders of predictions, are needed to compare")
    with runs.run("compare", vars(args)), tempfile.TemporaryDirectory() as work:
        first = registry.load_model(_names(args.models)[0]) if _names(args.models) else None
        chips_run = chip_artifacts.resolve_run(args.chips or (first.facts.chips if first else None))
        fold = evaluate.fold_of(first, chips_run) if first else None
        made = chip_set.load(chip_artifacts.folder(chips_run), fold=fold)
        evaluate.log_ground(chips_run, made)
        cards = [
            _scored(name, made, chips_run, Path(work) / str(at), args, masks=masks)
            for at, (name, masks) in enumerate(contestants)
        ]
        base, *others = cards
        tables = {card.name: scorecard.differences(card, base) for card in others}
        _log(base, others, tables, args)


def _scored(
    name: str, made: ChipSet, chips_run: str, work: Path, args: argparse.Namespace, *, masks: bool
) -> Scorecard:
    """One contestant's scorecard, logged as a child run with the metrics of `evaluate`, which MLflow then compares."""
    import mlflow

    from ocmlflow.evaluation import scorecard
    from ocmlflow.tracking import registry, runs

    work.mkdir()
    model = None if masks else registry.load_model(name)
    if model is None:
        card = evaluate.score_masks(name, made, work, args, split="validation")
    else:
        evaluate.check_fair(model, made, "validation")
        card = evaluate.score_model(model, made, work, args, split="validation")
    with mlflow.start_run(nested=True, run_name=card.name):
        mlflow.log_params({"model": card.name})
        mlflow.set_tag(runs.VERB, "compared")
        evaluate.log_ground(chips_run, made)
        evaluate.log_figures(scorecard.metric_values(card))
        runs.describe(evaluate.headline(card))
    log.info("%s: %s", card.name, evaluate.headline(card))
    return card


def _log(base: Scorecard, others: list[Scorecard], tables: dict[str, pd.DataFrame], args: argparse.Namespace) -> None:
    """Log differences, pictures and the page to the run of the comparison."""
    import mlflow
    import pandas as pd

    from ocmlflow.evaluation import report, scorecard
    from ocmlflow.tracking import runs

    table = pd.concat([found.assign(name=name) for name, found in tables.items()], ignore_index=True)
    mlflow.log_table(table, "differences.json")
    summaries = [scorecard.summary(card) for card in (base, *others)]
    differences = {name: scorecard.json_values(found.to_dict("records")) for name, found in tables.items()}
    mlflow.log_dict({"models": summaries, "differences": differences}, "compare.json")
    for at, card in enumerate(others, start=1):
        iou = tables[card.name].query("place == 'all' and score == 'iou'").iloc[0]
        found = {"": iou.difference, "_low": iou.low, "_high": iou.high}
        evaluate.log_figures({f"difference{at}/iou{end}": value for end, value in found.items()})
    page = report.page(
        "compare.html",
        cards=summaries,
        differences=differences,
        shown={card.name: _pictures(base, card) for card in others},
        block_m=args.block_m,
    )
    mlflow.log_text(page, "compare.html")
    lines = [f"- **{card.name}**: {evaluate.headline(card)}" for card in (base, *others)]
    runs.describe("On the same chips:\n\n" + "\n".join(lines))


def _pictures(base: Scorecard, card: Scorecard) -> list[dict[str, Any]]:
    """The chips on which a model and the base differ most in right pixels, whichever is better, side by side."""
    import mlflow
    import numpy as np

    from ocmlflow import pictures
    from ocmlflow.evaluation import examples, metrics

    rights = [
        np.array([c.tp + c.tn for c in (metrics.counts(h, threshold=one.threshold) for h in one.pixels.histograms)])
        for one in (base, card)
    ]
    gained = rights[1] - rights[0]
    order = [int(at) for at in np.argsort(-abs(gained), kind="stable") if gained[at]][:PICTURES]
    ious = [one.pixels.chip_ious(one.threshold) for one in (base, card)]
    shown = []
    for at in order:
        row = card.pixels.rows.iloc[at]
        left, right = (
            examples.panels(one.predictions, at, one.pixels.temperature, one.threshold) for one in (base, card)
        )
        picture = pictures.contact_sheet([[left[0], left[1], left[3], right[3]]])
        shown.append({"id": row.id, "place": row.place, "ious": [one[at] for one in ious], "picture": picture})
        mlflow.log_image(picture, f"pictures/{len(shown)}-{row.id}.jpg")
    return shown


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


if __name__ == "__main__":
    start(main, parse())
