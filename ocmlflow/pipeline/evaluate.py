"""Scores a model on held-out chips, chooses its threshold and promotes it if it is the best."""

import tempfile
from pathlib import Path

from ocmlflow.chips.chip_set import ChipSet
from ocmlflow.evaluation.scorecard import Scorecard
from ocmlflow.pipeline import model_card, promotion, score_log, scoring
from ocmlflow.pipeline.model_options import MIN_HOLE_M2
from ocmlflow.pipeline.options import EvaluateOptions, parameters
from ocmlflow.pipeline.scoring import ScoreRules
from ocmlflow.storage import hrefs
from ocmlflow.tracking import chip_artifacts, provenance, registry, runs
from ocmlflow.tracking.model_evaluation import Evaluation
from ocmlflow.tracking.registry import Model
from ocmlflow.tracking.run_artifacts import Dataset

TEST_VERDICT = "Test chips, at the version's own threshold and temperature: nothing was chosen or promoted on them."
OTHERS_VERDICT = "Predictions of another tool: there is nothing to promote."


def run(options: EvaluateOptions) -> Scorecard:
    """The scorecard of a model, or of what another tool predicts; score, report and decision are logged to a run.

    On validation chips the version gets the threshold and temperature that were chosen, and becomes champion if it
    beats the present one.
    """
    with runs.run("evaluate", parameters(options)), tempfile.TemporaryDirectory() as scratch:
        runs.identify({runs.KEY: key(options)})
        if options.predictions:
            return _score_others(options, options.predictions, Path(scratch))
        return _score_model(options, Path(scratch))


def key(options: EvaluateOptions) -> str:
    """Digest of model, chips, options and code; name model and chips by version and run id, for aliases move on."""
    return hrefs.digest(provenance.code_digest(), repr(sorted(parameters(options).items())))


def _score_others(options: EvaluateOptions, masks: str, work: Path) -> Scorecard:
    chips_run = chip_artifacts.resolve_run(options.chips)
    chips = chip_artifacts.open_chips(chips_run)
    dataset = score_log.log_chips(chips_run, chips, options.split)
    card = scoring.score_others(masks, chips, score_rules(options), work)
    score_log.log_card(card, score_rules(options), verdict=OTHERS_VERDICT, origin="", dataset=dataset)
    return card


def _score_model(options: EvaluateOptions, work: Path) -> Scorecard:
    model = registry.load_model(options.model)
    chips_run = chip_artifacts.resolve_run(options.chips or model.facts.chips)
    chips = chip_artifacts.open_chips(chips_run, fold=scoring.fold_of(model, chips_run))
    scoring.check_fair(model, chips, options.split)
    dataset = score_log.log_chips(chips_run, chips, options.split, model)
    rules = score_rules(options)
    card = scoring.score_model(model, chips, rules, work)
    if options.split == "test":
        score_log.log_card(
            card, rules, verdict=TEST_VERDICT, origin=score_log.origin(model), dataset=dataset, model=model
        )
    else:
        _decide(options, model, card, chips, chips_run, dataset)
    return card


def _decide(
    options: EvaluateOptions, model: Model, card: Scorecard, chips: ChipSet, chips_run: str, dataset: Dataset
) -> None:
    """Log the card with the decision, and give the model its threshold, temperature, score and alias."""
    rules = score_rules(options)
    decision = promotion.decide(
        model,
        card,
        chips,
        chips_run,
        rules,
        promote=options.promote,
        promotion=options.promotion,
        margin=options.margin,
        max_loss=options.max_loss,
    )
    origin = score_log.origin(model)
    score_log.log_card(card, rules, verdict=decision.verdict, origin=origin, dataset=dataset, model=model)
    tags = {"iou": f"{card.counts.iou:.4f}", "report": f"runs:/{runs.active().info.run_id}/report.html"}
    evaluation = Evaluation(card.threshold, card.pixels.temperature, chips_run)
    trained_on = chip_artifacts.training_rows(model)
    description = model_card.card(model.facts, trained_on, model.pinned, model_card.scores(card, decision.verdict))
    figures = {"iou": card.counts.iou, "threshold": card.threshold / 100, "temperature": card.pixels.temperature}
    known = {f"ocmlflow:{name}": float(value) for name, value in figures.items() if value == value}
    item = model_card.item(model.facts, model.keras, trained_on, f"{model.name or 'model'}-{model.facts.run}", **known)
    registry.record_evaluation(model, evaluation, tags, description, item)
    if decision.promoted:
        runs.set_tags({"ocmlflow.promoted": "true"})
        registry.promote(model, description)


def score_rules(options: EvaluateOptions) -> ScoreRules:
    """How the chips are scored."""
    return ScoreRules(options.split, options.bootstrap_block_m, options.min_area_m2, MIN_HOLE_M2)
