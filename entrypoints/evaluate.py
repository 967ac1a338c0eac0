"""A model's scores on validation chips, its threshold, a report, and whether it becomes the champion."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

from entrypoints import MODEL_NAME, parser, progress, start, switch

if TYPE_CHECKING:
    from ocmlflow.chips import Chips
    from ocmlflow.evaluation import Evaluation
    from ocmlflow.tracking import Model

log = logging.getLogger(__name__)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The verb's parameters and their defaults."""
    p = parser("evaluate", "Score a model on validation chips, choose its threshold and promote it if it is the best.")
    p.add_argument("--model", default=f"models:/{MODEL_NAME}@candidate", help="models:/NAME@ALIAS or models:/NAME/1")
    p.add_argument("--chips", default=None, help="run id of a `prepare` run; the model's own if not given")
    p.add_argument("--promote", type=switch, default=True, help="move @champion when the model beats it")
    return p.parse_args(words)


def main(args: argparse.Namespace) -> None:
    import mlflow

    from ocmlflow import chips, tracking

    with tracking.run("evaluate", vars(args)):
        model = tracking.load_model(args.model)
        chips_run = tracking.chips_run(args.chips or model.facts["chips"])
        made = chips.load(tracking.chips_folder(chips_run), fold=model.facts.get("fold"))
        _check_fair(model, made)
        mlflow.set_tags({"ocmlflow.chips.run": chips_run, tracking.DIGEST: chips.digest(made.index)})
        found = _evaluate(model, made)
        threshold = found.best_threshold
        mlflow.log_metrics(_figures(found, threshold))
        promoted, verdict = _promotion(model, found, made, args)
        log.info(verdict)
        _log(model, found, threshold, verdict, made)
        if model.name:
            counts = found.counts(threshold)
            tags = {"threshold": f"{threshold / 100:.2f}", "iou": f"{counts.iou:.4f}", "evaluated_on": chips_run}
            tracking.describe_version(model, tags, f"{_headline(found, threshold)} {verdict}")
        if promoted:
            tracking.promote(model)


def _evaluate(model: Model, made: Chips) -> Evaluation:
    from ocmlflow import evaluation, inference

    predict = inference.padded(model.keras.predict_on_batch, model.facts["multiple"])

    def bar(items: Any, total: int) -> Any:
        return progress(items, total, str(model))

    return evaluation.evaluate(predict, made.folder, made.select("validation"), progress=bar)


def _check_fair(model: Model, made: Chips) -> None:
    """Raise InputError when the chips have another resolution than the model's, or ground that it was trained on."""
    from ocmlflow import ground, tracking
    from ocmlflow.errors import InputError

    if model.facts["gsd"] != made.rules["gsd"]:
        raise InputError(f"{model} works at {model.facts['gsd']} m per pixel, the chips have {made.rules['gsd']} m")
    seen = int(ground.meets(made.select("validation"), tracking.trained_on(model)).sum())
    if seen:
        raise InputError(
            f"{seen} of the {len(made.select('validation'))} validation chips lie on ground that {model} was trained "
            f"on (chips of run {model.facts['chips']}): its scores there would be flattered"
        )


def _promotion(model: Model, found: Evaluation, made: Chips, args: argparse.Namespace) -> tuple[bool, str]:
    """Whether the model is to become champion, and why or why not.

    It is when its pooled IoU on these chips is higher than the champion's on the same, each at its best threshold.
    """
    from ocmlflow import tracking
    from ocmlflow.errors import InputError

    if not model.name:
        return False, "Not promoted: the model is not registered."
    if not args.promote:
        return False, "Not promoted: promote=false."
    try:
        champion = tracking.champion(model.name)
        if champion is None:
            return True, f"{model} becomes champion: there was none."
        if champion.version == model.version:
            return False, f"{model} is the champion already."
        _check_fair(champion, made)
    except InputError as error:
        return False, f"Not promoted: the champion cannot be compared on these chips. {error}"
    other = _evaluate(champion, made)
    mine, theirs = (e.counts(e.best_threshold).iou for e in (found, other))
    compared = f"IoU {mine:.4f} against {theirs:.4f} of {champion} on the same chips"
    if mine > theirs:
        return True, f"{model} becomes champion: {compared}."
    return False, f"Not promoted: {compared}."


def _figures(found: Evaluation, threshold: int) -> dict[str, float]:
    """The metrics of the run: pooled scores in all, and IoU by place and by scene."""
    from ocmlflow import tracking

    counts = found.counts(threshold)
    figures = {"iou": counts.iou, "precision": counts.precision, "recall": counts.recall, "f1": counts.f1}
    figures |= {"threshold": threshold / 100, "iou_at_half": found.counts(50).iou, "pixels": counts.pixels}
    for by in ("place", "scene"):
        for row in found.table(by, threshold).itertuples():
            figures[tracking.metric_name(f"{by}/{getattr(row, by) or 'none'}")] = row.iou
    return {name: float(value) for name, value in figures.items() if value == value}  # NaN is no score


def _headline(found: Evaluation, threshold: int) -> str:
    counts = found.counts(threshold)
    places = ", ".join(f"{row.place or 'none'} {row.iou:.3f}" for row in found.table("place", threshold).itertuples())
    return f"Pooled IoU {counts.iou:.3f} at threshold {threshold / 100:.2f} ({places})."


def _log(model: Model, found: Evaluation, threshold: int, verdict: str, made: Chips) -> None:
    import mlflow

    from ocmlflow import evaluation, inference, pictures, report, tracking

    predict = inference.padded(model.keras.predict_on_batch, model.facts["multiple"])
    ious = found.chip_ious(threshold)
    best, worst = evaluation.pick(found, threshold, count=6)
    shown: dict[str, list[dict[str, Any]]] = {}
    for title, numbers in (("Best chips", best), ("Worst chips", worst)):
        shown[title] = []
        for number in numbers:
            row = found.rows.iloc[[number]]
            picture = evaluation.picture(predict, made.folder, row, threshold=threshold)
            shown[title].append(
                {"id": row.id.item(), "place": row.place.item(), "iou": ious[number], "picture": picture}
            )
            mlflow.log_image(picture, f"pictures/{title.split()[0].lower()}-{row.id.item()}.jpg")
    tables = {by: found.table(by, threshold) for by in ("place", "scene")}
    sweep = found.sweep()
    mlflow.log_table(tables["scene"], "scores_by_scene.json")
    mlflow.log_table(tables["place"], "scores_by_place.json")
    mlflow.log_table(sweep, "threshold_sweep.json")
    facts = (
        f"trained by run {model.facts['run']} on chips of run {model.facts['chips']}, {model.facts['gsd']} m per pixel"
    )
    page = report.page(
        model=str(model),
        facts=facts,
        overall=evaluation.scores(found.counts(threshold)),
        half=evaluation.scores(found.counts(50)),
        threshold=threshold,
        chips=len(found.rows),
        verdict=verdict,
        tables={by: table.to_dict("records") for by, table in tables.items()},
        sweep=report.sweep_figure(sweep, threshold),
        colours={"hit": pictures.HIT, "false": pictures.FALSE, "missed": pictures.MISSED},
        pictures=shown,
    )
    mlflow.log_text(page, "report.html")
    tracking.describe(f"**{model}**. {_headline(found, threshold)} {verdict}")


if __name__ == "__main__":
    start(main, parse())
