"""A model's scores on chips held out, its threshold, its temperature, a report, and whether it becomes champion."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrypoints import MODEL_NAME, number, parser, progress, start, switch

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

    from ocmlflow.chips.chip_set import ChipSet
    from ocmlflow.evaluation.scorecard import Scorecard
    from ocmlflow.tracking.registry import Model

log = logging.getLogger(__name__)

UNTOUCHED = "Test chips, at the version's own threshold and temperature: nothing was chosen or promoted on them."


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The verb's parameters and their defaults."""
    p = parser("evaluate", "Score a model on chips held out, choose its threshold and promote it if it is the best.")
    p.add_argument("--model", default=f"models:/{MODEL_NAME}@candidate", help="models:/NAME@ALIAS or models:/NAME/1")
    p.add_argument("--chips", default=None, help="run id of a `prepare` run; the model's own if not given")
    p.add_argument(
        "--predictions",
        default=None,
        help="folder of masks, SCENE.tif or CHIP_ID.tif, to score in place of a model, on the newest chips or `chips`",
    )
    p.add_argument(
        "--split",
        choices=("validation", "test"),
        default="validation",
        help="test: score at the version's own threshold and temperature, choose and promote nothing",
    )
    p.add_argument("--promote", type=switch, default=True, help="move @champion when the model beats it")
    p.add_argument("--margin", type=number(0, 1), default=0.0, help="pooled IoU by which a model must beat @champion")
    p.add_argument(
        "--block_m", type=number(1), default=100.0, help="metres along a block of ground, which intervals draw whole"
    )
    p.add_argument(
        "--min_area_m2", type=number(0), default=2.0, help="least area of a predicted building, as in predict"
    )
    return p.parse_args(words)


def key(args: argparse.Namespace) -> str:
    """Names model, chips, parameters and code; model and chips by version and run id, or it names nothing for long."""
    from ocmlflow.storage import hrefs
    from ocmlflow.tracking import provenance

    return hrefs.digest(provenance.code_digest(), repr(sorted(vars(args).items())))


def main(args: argparse.Namespace) -> None:
    import mlflow

    from ocmlflow.chips import chip_set
    from ocmlflow.tracking import chip_artifacts, registry, runs

    with runs.run("evaluate", vars(args)), tempfile.TemporaryDirectory() as work:
        mlflow.set_tag(runs.KEY, key(args))
        if args.predictions:
            chips_run = chip_artifacts.resolve_run(args.chips)
            made = chip_set.load(chip_artifacts.folder(chips_run))
            log_ground(chips_run, made)
            card = score_masks(args.predictions, made, Path(work), args, split=args.split)
            log_card(card, verdict="Masks of another tool: there is nothing to promote.", facts="", args=args)
            return
        model = registry.load_model(args.model)
        chips_run = chip_artifacts.resolve_run(args.chips or model.facts.chips)
        made = chip_set.load(chip_artifacts.folder(chips_run), fold=fold_of(model, chips_run))
        check_fair(model, made, args.split)
        log_ground(chips_run, made)
        card = score_model(model, made, Path(work), args, split=args.split)
        if args.split == "test":
            log_card(card, verdict=UNTOUCHED, facts=facts_of(model), args=args)
            return
        promoted, verdict = _promotion(model, card, made, args)
        log_card(card, verdict=verdict, facts=facts_of(model), args=args)
        if model.name:
            tags = {"threshold": f"{card.threshold / 100:.2f}", registry.TEMPERATURE: f"{card.pixels.temperature:.4f}"}
            tags |= {"iou": f"{card.counts.iou:.4f}", registry.EVALUATED_ON: chips_run}
            tags["report"] = f"runs:/{runs.active().info.run_id}/report.html"
            registry.describe_version(model, tags, f"{headline(card)} {verdict}")
        if promoted:
            mlflow.set_tag("ocmlflow.promoted", "true")
            registry.promote(model)


def score_model(model: Model, made: ChipSet, work: Path, args: argparse.Namespace, *, split: str) -> Scorecard:
    """The scorecard of a model on the chips of a split; `work` keeps its predictions.

    On test chips it is that of the threshold and temperature that the model has, InputError if they were never chosen.
    """
    from ocmlflow.errors import InputError
    from ocmlflow.evaluation import predictions
    from ocmlflow.prediction import inference

    if split == "test" and not model.evaluated_on:
        raise InputError(f"{model} has no threshold yet: evaluate it on its validation chips first, then on test chips")
    predict = inference.padded(model.keras.predict_on_batch, model.facts.multiple)
    at = (model.threshold, model.temperature) if split == "test" else None
    return _score(str(model), predictions.of_model(predict), made, _rows(made, split), work, args, at=at)


def score_masks(folder: str, made: ChipSet, work: Path, args: argparse.Namespace, *, split: str) -> Scorecard:
    """The scorecard of a folder of masks on the chips of a split; they are neither calibrated nor thresholded."""
    from ocmlflow.evaluation import external_masks

    rows = _rows(made, split)
    return _score(folder, external_masks.reader(Path(folder), rows), made, rows, work, args, at=(50, 1.0))


def fold_of(model: Model, chips_run: str) -> int | None:
    """The fold of those chips that a model's training held out; None where it was trained on others."""
    return model.facts.fold if chips_run == model.facts.chips else None


def check_fair(model: Model, made: ChipSet, split: str) -> None:
    """Raise InputError when the chips have another resolution than the model's, or ground that it was trained on.

    Test chips must not lie either on ground that epoch, threshold or temperature were chosen on.
    """
    from ocmlflow.chips import splits
    from ocmlflow.errors import InputError
    from ocmlflow.tracking import chip_artifacts

    if model.facts.gsd != made.rules["gsd"]:
        raise InputError(f"{model} works at {model.facts.gsd} m per pixel, the chips have {made.rules['gsd']} m")
    rows = _rows(made, split)
    known = [("was trained", chip_artifacts.trained_on(model))]
    if split == "test":
        known.append(("was validated", chip_artifacts.chosen_on(model)))
    for done, chips in known:
        if seen := int(splits.shares_ground(rows, chips).sum()):
            raise InputError(
                f"{seen} of the {len(rows)} {split} chips lie on ground that {model} {done} "
                f"on (chips of run {model.facts.chips}): its scores there would be flattered"
            )


def _rows(made: ChipSet, split: str) -> GeoDataFrame:
    from ocmlflow.errors import InputError

    rows = made.select(split)
    if not len(rows):
        raise InputError(f"split={split}: these chips have none; `prepare` holds ground out for it with {split}=")
    return rows


def headline(card: Scorecard) -> str:
    """One sentence for a run's or a version's page."""
    places = ", ".join(f"{row.place or 'none'} {row.iou:.3f}" for row in card.table("place").itertuples())
    return f"Pooled IoU {card.counts.iou:.3f} at threshold {card.threshold / 100:.2f} ({places})."


def facts_of(model: Model) -> str:
    """Where a model comes from."""
    return f"trained by run {model.facts.run} on chips of run {model.facts.chips}, {model.facts.gsd} m per pixel"


def log_ground(chips_run: str, made: ChipSet) -> None:
    """Tag the active run with the chips that it scores on."""
    import mlflow

    from ocmlflow.chips import chip_set
    from ocmlflow.tracking import chip_artifacts

    mlflow.set_tags({"ocmlflow.chips.run": chips_run, chip_artifacts.DIGEST: chip_set.digest(made.index)})


def log_figures(figures: Mapping[str, float | None]) -> None:
    """Log metrics to the active run, but for what is no number."""
    import mlflow

    from ocmlflow.tracking import runs

    numbers = {name: value for name, value in figures.items() if value is not None and value == value}
    mlflow.log_metrics({runs.metric_name(name): float(value) for name, value in numbers.items()})


def log_card(card: Scorecard, *, verdict: str, facts: str, args: argparse.Namespace) -> None:
    """Say the score; log metrics, tables, pictures and the report to the active run, the same content as JSON."""
    import mlflow

    from ocmlflow.evaluation import report, scorecard, scores
    from ocmlflow.tracking import runs

    log.info("%s: %s %s", card.name, headline(card), verdict)
    summary = scorecard.summary(card)
    log_figures(summary["scores"])
    shown = _pictures(card)
    mlflow.log_dict({**summary, "verdict": verdict, "facts": facts}, "report.json")
    for by in scores.GROUPS:
        mlflow.log_table(card.table(by), f"scores_by_{by}.json")
    mlflow.log_table(card.pixels.sweep(), "threshold_sweep.json")
    mlflow.log_text(
        report.page(
            "report.html",
            card=summary,
            facts=facts,
            verdict=verdict,
            masks=bool(args.predictions) and not facts,
            block_m=args.block_m,
            boundary_m=scores.BOUNDARY_M,
            min_area_m2=args.min_area_m2,
            sweep=report.sweep_figure(card),
            reliability=report.reliability_figure(card),
            map=report.error_map(card),
            shown=shown,
        ),
        "report.html",
    )
    pictured = [f"pictures/median-{chip['id']}.jpg" for chip in shown["Median chips"][:1]]
    runs.describe("\n\n".join([f"**{card.name}**. {headline(card)} {verdict}", *map(runs.picture, pictured)]))
    places = " ".join(sorted(set(card.pixels.rows.place)))
    runs.name_run("evaluate", f"{places} IoU {card.counts.iou:.3f}")


def _pictures(card: Scorecard) -> dict[str, list[dict[str, Any]]]:
    """Best, worst and median chips, which are logged as pictures too."""
    import mlflow

    from ocmlflow import pictures
    from ocmlflow.evaluation import examples

    ious = card.pixels.chip_ious(card.threshold)
    shown: dict[str, list[dict[str, Any]]] = {}
    picked = examples.pick(card.pixels, card.threshold, count=6)
    for title, numbers in zip(("Best chips", "Worst chips", "Median chips"), picked, strict=True):
        shown[title] = []
        for at in numbers:
            row = card.pixels.rows.iloc[at]
            picture = pictures.contact_sheet(
                [examples.panels(card.predictions, at, card.pixels.temperature, card.threshold)]
            )
            shown[title].append({"id": row.id, "place": row.place, "iou": ious[at], "picture": picture})
            mlflow.log_image(picture, f"pictures/{title.split()[0].lower()}-{row.id}.jpg")
    return shown


def _score(
    name: str,
    probabilities: Any,
    made: ChipSet,
    rows: GeoDataFrame,
    work: Path,
    args: argparse.Namespace,
    *,
    at: tuple[int, float] | None,
) -> Scorecard:
    from ocmlflow.evaluation import predictions, scorecard

    def bar(items: Any, total: int) -> Any:
        return progress(items, total, name)

    kept = predictions.collect(probabilities, made.folder, rows, work=work, block_m=args.block_m, progress=bar)
    return scorecard.score(name, kept, at=at, min_area_m2=args.min_area_m2)


def _promotion(model: Model, card: Scorecard, made: ChipSet, args: argparse.Namespace) -> tuple[bool, str]:
    """Whether the model is to become champion, and why or why not; the rule is logged as a tag, the figures as metrics.

    It is when its pooled IoU on these chips is more than `margin` above the champion's on the same, each at its best
    threshold, and neither has trained on their ground.
    """
    import mlflow

    from ocmlflow.errors import InputError
    from ocmlflow.tracking import registry

    rule = (
        f"pooled IoU on {len(card.pixels.rows)} validation chips that neither model trained on, each at its best "
        f"threshold, higher than the champion's by more than {args.margin:g}"
    )
    mlflow.set_tag("ocmlflow.promotion.rule", rule)
    if not model.name:
        return False, "Not promoted: the model is not registered."
    if not args.promote:
        return False, "Not promoted: promote=false."
    try:
        champion = registry.champion(model.name)
        if champion is None:
            return True, f"{model} becomes champion: there was none."
        if champion.version == model.version:
            return False, f"{model} is the champion already."
        check_fair(champion, made, "validation")
    except InputError as error:
        return False, f"Not promoted: the champion cannot be compared on these chips. {error}"
    return _against(champion, model, card, made, args)


def _against(
    champion: Model, model: Model, card: Scorecard, made: ChipSet, args: argparse.Namespace
) -> tuple[bool, str]:
    """Whether a model beats the champion by the margin, and both scores in words; logs the paired differences."""
    import mlflow

    from ocmlflow.evaluation import scorecard

    with tempfile.TemporaryDirectory() as work:
        table = scorecard.differences(card, score_model(champion, made, Path(work), args, split="validation"))
    mlflow.log_table(table, "against_champion.json")
    iou = table[(table.place == "all") & (table.score == "iou")].iloc[0]
    found = {"champion/iou": iou.base, "champion/difference": iou.difference}
    found |= {"champion/difference_low": iou.low, "champion/difference_high": iou.high}
    log_figures(found)
    within = "" if iou.low != iou.low else f", difference {iou.low:+.4f} to {iou.high:+.4f} in 95 % of paired draws"
    compared = f"IoU {iou.model:.4f} against {iou.base:.4f} of {champion} on the same chips{within}"
    if args.margin:
        compared += f", margin {args.margin:g}"
    if iou.difference > args.margin:
        return True, f"{model} becomes champion: {compared}."
    return False, f"Not promoted: {compared}."


if __name__ == "__main__":
    start(main, parse())
