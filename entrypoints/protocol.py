"""A named protocol: models trained and scored on stated parts of a catalogue, step by step, in one table."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from entrypoints import evaluate, href, hrefs, parser, seed, start, train, whole
from entrypoints import main as line

if TYPE_CHECKING:
    import pandas as pd

    from ocmlflow.scenes.catalog import Scene

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


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The verb's parameters and their defaults."""
    p = parser("protocol", "Train and score models by a named protocol; steps that are done already are reused.")
    p.add_argument("--name", required=True, choices=tuple(PROTOCOLS), help=_NAMES)
    p.add_argument("--catalog", type=hrefs, required=True, help="labelled scenes, as in prepare")
    p.add_argument("--places", default=None, help="the places that are left out in turn, by commas; all if not given")
    p.add_argument("--epochs", type=whole(1), default=None, help="as in train, and its default if not given")
    p.add_argument("--seed", type=seed, default=0, help="of every step")
    p.add_argument("--train", default=None, help="more parameters of train, name=value, by commas")
    p.add_argument("--work", type=href, default=".ocmlflow", help="as in prepare")
    args = p.parse_args(words)
    if args.places and args.name != "leave-one-place-out":
        p.error(f"argument --places: of leave-one-place-out alone, got it for {args.name}")
    more = [word.partition("=") for word in (args.train or "").split(",") if word]
    if wrong := [
        name for name, sign, _ in more if not sign or name in ("chips", "fold", "name", "resume", *vars(args))
    ]:
        p.error(f"argument --train: must be name=value of what the protocol does not give itself, got {wrong[0]}")
    train.parse(line.words(_learning(args, "x")))  # fails now, not after the first step
    return args


_NAMES = (
    "blocks: 500 m blocks of ground, 70 %% to train on, 10 %% for validation, 20 %% for the score; "
    "leave-one-place-out: as many models as places, each scored on the place that it never saw; "
    "first-benchmark: four scenes to train on and four to score, of the first published benchmark"
)


def main(args: argparse.Namespace) -> None:
    import mlflow

    from ocmlflow.scenes import catalog
    from ocmlflow.tracking import runs

    with runs.run("protocol", vars(args)):
        parts = PROTOCOLS[args.name]([scene for scene in catalog.read_scenes(args.catalog) if scene.labels], args)
        reports: list[dict[str, Any]] = []
        minutes: list[float] = []
        for part in parts:
            log.info("%s: part %s, %d of %d", args.name, part.name, len(reports) + 1, len(parts))
            trained, scored = _run(part, args)
            reports.append(mlflow.artifacts.load_dict(f"runs:/{scored}/report.json"))
            info = mlflow.get_run(trained).info
            minutes.append((info.end_time - info.start_time) / 60_000)
            table = tabulated(parts, reports, minutes)
            runs.describe(f"Protocol **{args.name}** on `{args.catalog}`. {_fairness(parts)}\n\n{_markdown(table)}")
        for row in table.to_dict("records"):
            evaluate.log_figures({f"{row['part']}/{name}": row[name] for name in COLUMNS})
        mlflow.log_table(table.astype(object).where(table.notna(), None), "protocol.json")
        print(_markdown(table))


def tabulated(parts: list[Part], reports: list[dict[str, Any]], minutes: list[float]) -> pd.DataFrame:
    """A row a part that has a report, then their mean, and all of them pooled: pixels and buildings added up."""
    import pandas as pd

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
    from ocmlflow.evaluation.metrics import Counts
    from ocmlflow.evaluation.object_matching import ObjectCounts
    from ocmlflow.evaluation.scores import scores

    counts, half = (sum((Counts(**r[kind]) for r in reports), Counts()) for kind in ("counts", "counts_at_half"))
    sizes = [size for report in reports for size in report["sizes"] if size["size"] == "all"]
    buildings = sum(
        (ObjectCounts(**{name: size[name] for name in ("tp", "fp", "fn")}) for size in sizes), ObjectCounts()
    )
    found = scores(counts)
    return {
        "chips": sum(report["chips"] for report in reports),
        **{name: found[name] for name in ("building_share", "iou", "precision", "recall")},
        "iou_at_half": half.iou,
        "object_f1": buildings.f1,
        "minutes": minutes,
    }


def _blocks(scenes: list[Scene], args: argparse.Namespace) -> list[Part]:
    return [Part(args.name, {"validation": "0.1", "test": "0.2", "block_m": "500"})]


def _places(scenes: list[Scene], args: argparse.Namespace) -> list[Part]:
    from ocmlflow.errors import InputError
    from ocmlflow.scenes import catalog

    known = {scene.place for scene in scenes}
    if len(known) < 2:
        raise InputError(f"leave-one-place-out: needs two places with labels; {args.catalog} has {len(known)}")
    chosen = {scene.place for scene in catalog.select(scenes, scenes=None, places=args.places)}
    return [Part(place, {"validation": place}) for place in sorted(chosen - {""})]


def _first_benchmark(scenes: list[Scene], args: argparse.Namespace) -> list[Part]:
    from ocmlflow.errors import InputError

    wanted = {name.partition("/")[2]: name for name in (*BENCHMARK_TRAIN, *BENCHMARK_VALIDATION)}
    missing = [name for scene, name in wanted.items() if scene not in {found.id for found in scenes}]
    if missing:
        raise InputError(
            f"first-benchmark: {args.catalog} lacks, with labels, {', '.join(missing)}; "
            "all eight are in tier 1 of the challenge's training data"
        )
    held_out = [name.partition("/")[2] for name in BENCHMARK_VALIDATION]
    return [Part(args.name, {"scenes": ",".join(wanted), "validation": ",".join(held_out)})]


PROTOCOLS = {"blocks": _blocks, "leave-one-place-out": _places, "first-benchmark": _first_benchmark}


def _run(part: Part, args: argparse.Namespace) -> tuple[str, str]:
    """Run ids of the training of a part and of the evaluation that gives its score."""
    name = args.name if part.name == args.name else f"{args.name}-{part.name}"  # no part is a candidate for champion
    cutting = {"catalog": args.catalog, **part.cut, "seed": args.seed, "work": args.work}
    chips, trained, model = line.learn(cutting, _learning(args, name), title=part.name)
    scored = ""
    for split in ("validation", "test") if "test" in part.cut else ("validation",):
        scoring = {"model": model, "chips": chips, "split": split, "promote": "false"}
        key = evaluate.key(evaluate.parse(line.words(scoring)))
        scored = line.step("evaluate", scoring, key=key, title=f"{part.name}, {split}")
    return trained, scored


def _learning(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Parameters of `train`, but for the chips."""
    more = dict(word.split("=", 1) for word in (args.train or "").split(",") if word)
    return {**more, "seed": args.seed, "name": name} | ({"epochs": args.epochs} if args.epochs else {})


def _fairness(parts: list[Part]) -> str:
    """A sentence on what was chosen where."""
    if all("test" in part.cut for part in parts):
        return "Scored on test ground; epoch and threshold were chosen on validation ground."
    return (
        "Scored on validation ground, where epoch and threshold were chosen too, which flatters a little; "
        "IoU at 0.50 is free of the threshold's share."
    )


def _markdown(table: pd.DataFrame) -> str:
    if len(table) == 3:  # a single part, which is its own mean
        table = table[:1]
    lines = [["part", "held out", *COLUMNS.values()], ["---"] * (2 + len(COLUMNS))]
    for row in table.to_dict("records"):
        figures = [f"{row[name]:.0f}" if name in ("chips", "minutes") else f"{row[name]:.3f}" for name in COLUMNS]
        lines.append([row["part"], row["held_out"], *figures])
    return "\n".join(f"| {' | '.join(words)} |" for words in lines)


if __name__ == "__main__":
    start(main, parse())
