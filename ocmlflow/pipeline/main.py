"""The whole line: prepare, train, evaluate and predict, as child runs of one parent."""

import logging
from pathlib import Path

import ocmlflow
from ocmlflow.pipeline import scene_log, steps, work_folder
from ocmlflow.pipeline.options import MainOptions, parameters
from ocmlflow.prediction import output
from ocmlflow.sample import catalog as sample
from ocmlflow.scenes import catalog
from ocmlflow.tracking import registry, run_artifacts, run_pages, runs

log = logging.getLogger(__name__)

SAMPLE_PLACE = "hil"
"""The place of the built-in sample that is held out."""


def run(options: MainOptions) -> None:
    """Chips, a model, its scores and the maps of `images`, in `output`; without a catalogue, of the built-in sample."""
    with runs.run("main", parameters(options), system_metrics=False):
        source, images, validation = options.catalog, options.images, options.validation
        if source is None:
            folder = _sample(Path(options.work), options.seed)
            source = str(folder / "train_tier_1" / "catalog.json")
            images = images or f"{folder}/test/catalog.json,{folder}/train_tier_1/{SAMPLE_PLACE}/collection.json"
            validation = validation or SAMPLE_PLACE
        work_folder.check_writable(options.output)  # what fails, fails now, not after the training
        output.check_output(options.output)
        scene_log.log_scenes(catalog.find_images(source), source, context="preparation")
        scene_log.log_scenes(catalog.find_images(images or ""), images or "", context="inference")
        registry.register(options.name)
        cutting = {"catalog": source, "validation": validation, "seed": options.seed, "work": options.work}
        learning = {"seed": options.seed, "name": options.name, "epochs": options.epochs}
        learned = steps.learn(cutting, {name: value for name, value in learning.items() if value is not None})
        evaluation = steps.step("evaluate", {"model": learned.model})
        champion = f"models:/{options.name}@champion"
        steps.step("predict", {"model": champion, "images": images, "output": options.output, "work": options.work})
        runs.describe(
            f"`{source}`: chips of run {learned.chips}, model `{learned.model}`, buildings in `{options.output}`"
        )
        iou = run_artifacts.read_json(evaluation, "report.json")["scores"]["iou"]
        run_pages.name_run("main", str(validation), score=run_pages.score(iou))
        log.info("done: buildings are in %s; see the runs with `mlflow ui`", options.output)


def _sample(work: Path, seed: int) -> Path:
    """Folder of the built-in sample of a seed, made unless it is there."""
    folder = work.resolve() / f"sample-{ocmlflow.__version__}-{seed}"
    if not folder.exists():
        log.info("drawing the built-in sample, in %s", folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        sample.write(folder, seed=seed)
    return folder
