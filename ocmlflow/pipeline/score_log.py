"""Logs a scorecard to the active run: metrics, tables, pictures and the report."""

import logging
from typing import Any

from ocmlflow import pictures
from ocmlflow.chips import chip_set
from ocmlflow.chips.chip_set import ChipSet
from ocmlflow.evaluation import examples, report, scorecard, scores
from ocmlflow.evaluation.scorecard import Scorecard
from ocmlflow.pipeline.scoring import ScoreRules
from ocmlflow.tracking import chip_artifacts, run_artifacts, run_pages, runs
from ocmlflow.tracking.registry import Model
from ocmlflow.tracking.run_artifacts import Dataset

log = logging.getLogger(__name__)

EXAMPLES = 6
"""Chips shown of the best, the worst and the median ones each."""


def headline(card: Scorecard) -> str:
    """One sentence for a run's or a version's page."""
    places = ", ".join(f"{row.place or 'none'} {row.iou:.3f}" for row in card.table("place").itertuples())
    return f"Pooled IoU {card.counts.iou:.3f} at threshold {card.threshold / 100:.2f} ({places})."


def origin(model: Model) -> str:
    """Where a model comes from, in words."""
    facts = model.facts
    return f"trained by run {facts.run} on chips of run {facts.chips}, {facts.gsd} m per pixel"


def log_chips(chips_run: str, chips: ChipSet, split: str, model: Model | None = None) -> Dataset:
    """Log the chips that the active run scores on, and the model that it scores."""
    runs.set_tags({"ocmlflow.chips.run": chips_run, chip_artifacts.DIGEST: chip_set.digest(chips.index)})
    return chip_artifacts.log_dataset(chips, split, model)


def log_card(
    card: Scorecard, rules: ScoreRules, *, verdict: str, origin: str, dataset: Dataset, model: Model | None = None
) -> None:
    """Log the score and the verdict; metrics, tables, pictures and the report go to the active run.

    The metrics are those of the model on the dataset too. `origin` says where the model comes from; it is empty for
    masks of another tool.
    """
    log.info("%s: %s %s", card.name, headline(card), verdict)
    summary = scorecard.summary(card)
    run_artifacts.log_scores(summary["scores"], model_id=model.key if model else None, dataset=dataset)
    shown = _log_examples(card)
    run_artifacts.log_json({**summary, "verdict": verdict, "facts": origin}, "report.json")
    for by in scores.GROUPS:
        run_artifacts.log_table(card.table(by), f"scores_by_{by}.json")
    run_artifacts.log_table(card.pixels.sweep(), "threshold_sweep.json")
    page = report.page(
        "report.html",
        card=summary,
        facts=origin,
        verdict=verdict,
        masks=not origin,
        block_m=rules.bootstrap_block_m,
        boundary_m=scores.BOUNDARY_M,
        min_area_m2=rules.min_area_m2,
        sweep=report.sweep_figure(card),
        reliability=report.reliability_figure(card),
        map=report.error_map(card),
        shown=shown,
    )
    run_artifacts.log_page(page, "report.html")
    example = [run_pages.picture_markdown(f"pictures/median-{chip['id']}.jpg") for chip in shown["Median chips"][:1]]
    runs.describe("\n\n".join([f"**{card.name}**. {headline(card)} {verdict}", *example]))
    places = " ".join(sorted(set(card.pixels.rows.place)))
    test = "test of " if rules.split == "test" else ""
    run_pages.name_run("evaluate", f"{test}{places} {card.name}", score=run_pages.score(card.counts.iou))


def _log_examples(card: Scorecard) -> dict[str, list[dict[str, Any]]]:
    """Log the best, worst and median chips as pictures; returns them for the report, by heading."""
    ious = card.pixels.chip_ious(card.threshold)
    best, worst, median = examples.pick(card.pixels, card.threshold, count=EXAMPLES)
    shown = {}
    for kind, numbers in {"best": best, "worst": worst, "median": median}.items():
        chips = []
        for number in numbers:
            row = card.pixels.rows.iloc[number]
            panels = examples.panels(card.predictions, number, card.pixels.temperature, card.threshold)
            picture = pictures.contact_sheet([panels])
            chips.append({"id": row.id, "place": row.place, "iou": ious[number], "picture": picture})
            run_artifacts.log_picture(picture, f"pictures/{kind}-{row.id}.jpg")
        shown[f"{kind.capitalize()} chips"] = chips
    return shown
