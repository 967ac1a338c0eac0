"""Trains and scores models by a named protocol, step by step, in one table."""

import logging
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ocmlflow.errors import InputError
from ocmlflow.evaluation.metrics import Counts
from ocmlflow.evaluation.object_matching import ObjectCounts
from ocmlflow.evaluation.scores import pooled_scores
from ocmlflow.pipeline import evaluate, scene_log, steps
from ocmlflow.pipeline.options import EvaluateOptions, ProtocolOptions, from_text, parameters
from ocmlflow.scenes import catalog
from ocmlflow.scenes.catalog import Scene
from ocmlflow.tracking import run_artifacts, run_pages, run_search, runs

log = logging.getLogger(__name__)


BENCHMARK_TRAIN = ("acc/d41d81", "mon/401175", "dar/a017f9", "znz/75cdfa")
BENCHMARK_VALIDATION = ("acc/a42435", "mon/f15272", "dar/353093", "znz/aee7fd")
"""Place and id of the scenes of the first benchmark that was published for the challenge's data."""


COLUMNS = {
    "chips": "chips",
    "building_share": "all building",
    "iou_at_half": "IoU at 0.50",
    "iou": "IoU, chosen threshold",
    "precision": "precision",
    "recall": "recall",
    "object_f1": "objects, F1",
    "minutes": "training, minutes",
}
"""Figures of the table, and their heads on MLflow's page."""


@dataclass(frozen=True)
class Part:
    """What one model of a protocol is trained and scored on."""

    name: str
    cut: dict[str, str]
    """Parameters of `prepare` that choose scenes and hold ground out. Where they name test ground, that is scored."""


def run(options: ProtocolOptions) -> pd.DataFrame:
    """A row per part of the protocol, their mean, and all pooled; logged to a run, with a child run for each step."""
    with runs.run("protocol", parameters(options), system_metrics=False):
        scenes = [scene for scene in catalog.read_scenes(options.catalog) if scene.labels]
        scene_log.log_scenes(scenes, options.catalog, context="preparation")
        parts = PROTOCOLS[options.name](scenes, options)
        reports: list[dict[str, Any]] = []
        minutes: list[float] = []
        for part in parts:
            log.info("%s: part %s, %d of %d", options.name, part.name, len(reports) + 1, len(parts))
            training, evaluation = _run_part(part, options)
            reports.append(run_artifacts.read_json(evaluation, "report.json"))
            minutes.append(run_search.duration_minutes(training))
            table = tabulate(parts, reports, minutes)
            runs.describe(
                f"Protocol **{options.name}** on `{options.catalog}`. {_fairness(parts)}\n\n{markdown(table)}"
            )
        for row in table.to_dict("records"):
            run_artifacts.log_scores({f"{row['part']}/{name}": row[name] for name in COLUMNS})
        run_artifacts.log_table(table, "protocol.json")
        pooled = table[table.part == "pooled"].iloc[0]
        run_pages.name_run("protocol", options.name, score=run_pages.score(pooled.iou))
        return table


def tabulate(parts: list[Part], reports: list[dict[str, Any]], minutes: list[float]) -> pd.DataFrame:
    """A row a part that has a report, then their mean, and all of them pooled: pixels and buildings added up."""
    rows: list[dict[str, Any]] = [
        {
            "part": part.name,
            "held_out": ", ".join(f"{k}={v}" for k, v in part.cut.items() if k in ("validation", "test")),
            **_figures([report], took),
        }
        for part, report, took in zip(parts, reports, minutes, strict=False)
    ]
    mean = pd.DataFrame(rows)[list(COLUMNS)].mean(skipna=False).to_dict()
    rows.append({"part": "mean", "held_out": "", **mean})
    rows.append({"part": "pooled", "held_out": "", **_figures(reports, sum(minutes))})
    return pd.DataFrame(rows)


def _figures(reports: list[dict[str, Any]], minutes: float) -> dict[str, float]:
    """The figures of some reports together."""
    counts, half = (sum((Counts(**r[kind]) for r in reports), Counts()) for kind in ("counts", "counts_at_half"))
    sizes = [size for report in reports for size in report["sizes"] if size["size"] == "all"]
    buildings = sum(
        (ObjectCounts(**{name: size[name] for name in ("tp", "fp", "fn")}) for size in sizes), ObjectCounts()
    )
    found = pooled_scores(counts)
    return {
        "chips": sum(report["chips"] for report in reports),
        **{name: found[name] for name in ("building_share", "iou", "precision", "recall")},
        "iou_at_half": half.iou,
        "object_f1": buildings.f1,
        "minutes": minutes,
    }


def _blocks(scenes: list[Scene], options: ProtocolOptions) -> list[Part]:
    return [Part(options.name, {"validation": "0.1", "test": "0.2", "block_m": "500"})]


def _places(scenes: list[Scene], options: ProtocolOptions) -> list[Part]:
    known = {scene.place for scene in scenes}
    if len(known) < 2:
        raise InputError(f"leave-one-place-out: needs two places with labels; {options.catalog} has {len(known)}")
    chosen = {scene.place for scene in catalog.select(scenes, scenes=None, places=options.places)}
    return [Part(place, {"validation": place}) for place in sorted(chosen - {""})]


def _first_benchmark(scenes: list[Scene], options: ProtocolOptions) -> list[Part]:
    wanted = {name.partition("/")[2]: name for name in (*BENCHMARK_TRAIN, *BENCHMARK_VALIDATION)}
    missing = [name for scene, name in wanted.items() if scene not in {found.id for found in scenes}]
    if missing:
        raise InputError(
            f"first-benchmark: {options.catalog} lacks, with labels, {', '.join(missing)}; "
            "all eight are in tier 1 of the challenge's training data"
        )
    held_out = [name.partition("/")[2] for name in BENCHMARK_VALIDATION]
    return [Part(options.name, {"scenes": ",".join(wanted), "validation": ",".join(held_out)})]


PROTOCOLS = {"blocks": _blocks, "leave-one-place-out": _places, "first-benchmark": _first_benchmark}


def _run_part(part: Part, options: ProtocolOptions) -> tuple[str, str]:
    """Run ids of the training of a part and of the evaluation that gives its score."""
    name = options.name if part.name == options.name else f"{options.name}-{part.name}"  # no part becomes champion
    cutting = {"catalog": options.catalog, **part.cut, "seed": options.seed, "work": options.work}
    learned = steps.learn(cutting, options.training(name), title=part.name)
    evaluation = ""
    for split in ("validation", "test") if "test" in part.cut else ("validation",):
        scoring = {"model": learned.model, "chips": learned.chips, "split": split, "promote": False}
        key = evaluate.key(from_text(EvaluateOptions, scoring))
        evaluation = steps.step("evaluate", scoring, key=key, title=f"{part.name}, {split}")
    return learned.training, evaluation


def _fairness(parts: list[Part]) -> str:
    """A sentence on what was chosen where."""
    if all("test" in part.cut for part in parts):
        return "Scored on test ground; epoch and threshold were chosen on validation ground."
    return (
        "Scored on validation ground, where epoch and threshold were chosen too, which flatters a little; "
        "IoU at 0.50 is free of the threshold's share."
    )


def markdown(table: pd.DataFrame) -> str:
    """The table of a protocol in Markdown."""
    if len(table) == 3:  # a single part, which is its own mean
        table = table[:1]
    lines = [["part", "held out", *COLUMNS.values()], ["---"] * (2 + len(COLUMNS))]
    for row in table.to_dict("records"):
        figures = [f"{row[name]:.0f}" if name in ("chips", "minutes") else f"{row[name]:.3f}" for name in COLUMNS]
        lines.append([row["part"], row["held_out"], *figures])
    return "\n".join(f"| {' | '.join(words)} |" for words in lines)
