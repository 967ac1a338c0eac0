"""The whole line: prepare, train, evaluate and predict, as child runs of one parent."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from entrypoints import MODEL_NAME, check_writable, href, hrefs, parser, prepare, seed, start, train, whole

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
SAMPLE_PLACE = "hil"
"""The place of the built-in sample that is held out."""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The verb's parameters and their defaults."""
    p = parser("main", "Run prepare, train, evaluate and predict; without a catalogue, on the built-in sample.")
    p.add_argument(
        "--catalog", type=hrefs, default=None, help="catalogue to learn from; the built-in sample if not given"
    )
    p.add_argument(
        "--images",
        type=hrefs,
        default=None,
        help="what to predict; the sample's test chips and held-out scenes if not given",
    )
    p.add_argument("--validation", default=None, help="as in prepare; one place of the sample if not given")
    p.add_argument("--epochs", type=whole(1), default=None, help="as in train, and its default if not given")
    p.add_argument("--seed", type=seed, default=0, help="of every step")
    p.add_argument("--output", type=href, default="output", help="folder or s3:// address for the predictions")
    p.add_argument("--name", default=MODEL_NAME, help="registered model that gets a new version")
    p.add_argument("--work", type=href, default=".ocmlflow", help="folder for the sample and for files in the making")
    args = p.parse_args(words)
    if args.catalog and not (args.images and args.validation):
        p.error("argument --catalog: needs --validation and --images beside it")
    return args


def main(args: argparse.Namespace) -> None:
    from ocmlflow.prediction import output
    from ocmlflow.scenes import catalog as scene_catalog
    from ocmlflow.tracking import runs

    with runs.run("main", vars(args)):
        catalog, images, validation = args.catalog, args.images, args.validation
        if catalog is None:
            sample = _sample(Path(args.work), args.seed)
            catalog = str(sample / "train_tier_1" / "catalog.json")
            images = images or f"{sample}/test/catalog.json,{sample}/train_tier_1/{SAMPLE_PLACE}/collection.json"
            validation = validation or SAMPLE_PLACE
        check_writable(args.output)  # what fails, fails now, not after the training
        output.check_output(args.output)
        scene_catalog.find_images(images)
        cutting = {"catalog": catalog, "validation": validation, "seed": args.seed, "work": args.work}
        learning = {"seed": args.seed, "name": args.name} | ({"epochs": args.epochs} if args.epochs else {})
        chips, _, model = learn(cutting, learning)
        step("evaluate", {"model": model})
        step(
            "predict",
            {"model": f"models:/{args.name}@champion", "images": images, "output": args.output, "work": args.work},
        )
        runs.describe(f"`{catalog}`: chips of run {chips}, model `{model}`, buildings in `{args.output}`")
        log.info("done: buildings are in %s; see the runs with `mlflow ui`", args.output)


def learn(cutting: Mapping[str, object], learning: Mapping[str, object], *, title: str = "") -> tuple[str, str, str]:
    """Run ids of `prepare` and `train` with these parameters, and the address of the version that they made."""
    from ocmlflow.tracking import chip_artifacts, registry

    chips = step("prepare", cutting, key=prepare.key(prepare.parse(words(cutting))), title=title)
    learning = {"chips": chips, **learning}
    key = train.key(train.parse(words(learning)), chip_artifacts.digest(chips))
    trained, name = step("train", learning, key=key, title=title), str(learning["name"])
    return chips, trained, f"models:/{name}/{registry.version_of(trained, name)}"


def step(verb: str, parameters: Mapping[str, object], *, key: str | None = None, title: str = "") -> str:
    """Run id of a step: of a finished one with the same key, else of a new child run of its own process.

    The new run is named after the verb and the title.
    """
    import mlflow
    from mlflow.exceptions import ExecutionException

    from ocmlflow.errors import InputError
    from ocmlflow.tracking import run_search, runs

    finished = run_search.newest(verb, key=key) if key else None
    if finished:
        log.info("%s: run %s did the same already", verb, finished.info.run_id)
        return str(finished.info.run_id)
    # The environment of this process, whichever manager made it, is the steps' too.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    try:
        submitted = mlflow.projects.run(
            str(ROOT),
            verb,
            parameters=dict(parameters),
            env_manager="local",
            run_name=f"{verb} {title}".strip(),
            experiment_id=runs.active().info.experiment_id,
        )
    except ExecutionException as error:
        raise InputError(f"step {verb} failed; its own message stands above") from error
    made = run_search.newest(verb, key=key) if key else None  # a step may go on in a run that was broken off
    return str(made.info.run_id if made else submitted.run_id)


def _sample(work: Path, seed: int) -> Path:
    """Folder of the built-in sample of a seed, made unless it is there."""
    from ocmlflow import __version__
    from ocmlflow.sample import catalog

    folder = work.resolve() / f"sample-{__version__}-{seed}"
    if not folder.exists():
        log.info("drawing the built-in sample, in %s", folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        catalog.write(folder, seed=seed)
    return folder


def words(parameters: Mapping[str, object]) -> list[str]:
    """The parameters of a step as the words of its command line."""
    return [word for name, value in parameters.items() for word in (f"--{name}", str(value))]


if __name__ == "__main__":
    start(main, parse())
