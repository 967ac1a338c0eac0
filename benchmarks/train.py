"""What a training step costs beside the network, what is learnt, and how that holds at other resolutions.

    python -m benchmarks.train overhead --chips FOLDER
    python -m benchmarks.train accuracy --chips FOLDER --held ban,znz --epochs 14 --seed 0
    python -m benchmarks.train resolutions --chips FOLDER --model models:/open-cities-buildings@candidate

FOLDER is the artifact `chips/` of a `prepare` run. `accuracy` takes the parameters of `train` and prints a row, to hold
against one of `benchmarks.smp`; it scores the validation chips or, with `--held`, those of some places. The others
print Markdown tables.
"""

import argparse
import tempfile
import time
from pathlib import Path

import keras
import mlflow
import numpy as np
from PIL import Image

from benchmarks import held
from ocmlflow.chips import chip_set, labels
from ocmlflow.chips.chip_set import ChipSet
from ocmlflow.cli import arguments
from ocmlflow.evaluation import metrics
from ocmlflow.pipeline import training_setup
from ocmlflow.pipeline.options import TrainOptions
from ocmlflow.probability import to_percent
from ocmlflow.tracking import registry
from ocmlflow.training import dataset, fit, losses, networks, optimizer
from ocmlflow.training.dataset import Batch, Crops, WholeChips
from ocmlflow.training.train_step import Recipe, Tensor, TrainStep

ROUNDS, STEPS = 5, 20


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("overhead", "accuracy", "resolutions"))
    p.add_argument("--chips", required=True, type=Path)
    p.add_argument("--model")
    p.add_argument("--held", help="places to score and not to train on, with commas between them")
    args, words = p.parse_known_args()
    made = held.holding_out(chip_set.load(args.chips), args.held)
    if args.what == "overhead":
        overhead(made)
    elif args.what == "accuracy":
        accuracy(made, arguments.parse(TrainOptions, words, prog="accuracy"), " ".join(words))
    else:
        resolutions(made, args.model)


class Cut(keras.utils.PyDataset):
    """The first batches of another, or its first one again and again."""

    def __init__(self, source: Crops, *, kept: Batch | None) -> None:
        super().__init__(workers=source.workers if kept is None else 1, max_queue_size=4)
        self.source, self.kept, self.batch_size, self.epoch = source, kept, source.batch_size, 0

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, number: int) -> tuple[Batch]:
        return self.source[number] if self.kept is None else (self.kept,)


def overhead(made: ChipSet) -> None:
    """What a step takes of the default recipe, and of the same network on a batch in memory that nothing is done to.

    Turn about, in one process each; epochs of STEPS steps, of which the first is not counted.
    """
    recipe, crops = training_setup.recipe_and_crops(made, TrainOptions(), {})
    side = crops.side
    (batch,) = crops[0]
    margin = (side - recipe.crop) // 2
    inner = slice(margin, margin + recipe.crop)
    image, label = (np.ascontiguousarray(part[:, inner, inner]) for part in batch)
    whole, bare = learner(TrainStep, recipe), learner(Bare, recipe)
    seconds: dict[str, list[tuple[float, float]]] = {"the network on one batch in memory": [], "all of it": []}
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        with mlflow.start_run():
            for number in range(ROUNDS + 1):
                for taken, model, given in zip(seconds.values(), (bare, whole), ((image, label), None), strict=True):
                    start, cpu = time.perf_counter(), time.process_time()
                    history = model.fit(Cut(crops, kept=given), verbose=0, shuffle=False).history
                    if given is None:
                        mlflow.log_metrics({key: values[0] for key, values in history.items()}, step=number)
                    if number:
                        taken.append(((time.perf_counter() - start) / STEPS, (time.process_time() - cpu) / STEPS))
    print("| a step | seconds, median of five rounds | CPU seconds |\n| --- | --- | --- |")
    middle = [np.median(taken, axis=0) for taken in seconds.values()]
    for name, (wall, used) in zip(seconds, middle, strict=True):
        print(f"| {name} | {wall:.3f} | {used:.3f} |")
    print("| loader, augmentation and logging | {:+.0%} | {:+.0%} |".format(*(middle[1] / middle[0] - 1)))


def accuracy(made: ChipSet, told: TrainOptions, name: str) -> None:
    """Pooled IoU of the validation chips by the last epoch's weights, by place and all: no epoch is chosen on them."""
    for unused in ("chips", "fold", "init", "resume", "devices", "patience"):
        if getattr(told, unused) != getattr(TrainOptions(), unused):
            raise SystemExit(f"accuracy takes no --{unused}")
    weights = dataset.catalog_weights(made.select("train").catalog.unique(), told.catalog_weights)
    recipe, crops = training_setup.recipe_and_crops(made, told, weights)
    keras.utils.set_random_seed(told.seed)
    network = networks.build(
        architecture=told.architecture, encoder=told.encoder, pretrained=told.weights == "imagenet"
    )
    last: list[np.ndarray] = []

    def report(epoch: int, figures: dict[str, float]) -> None:
        last[:] = network.get_weights()

    rows = made.select("validation")
    few = WholeChips(made.folder, rows[:2], batch_size=2)
    quietly = {"resume": None, "progress": False, "save": lambda path: None}
    started = time.perf_counter()
    fit.fit(network, crops, few, recipe=recipe, loss=losses.named(told.loss), report=report, **quietly)
    steps = len(crops) * recipe.epochs
    seconds = (time.perf_counter() - started) / steps
    network.set_weights(last)
    model = networks.with_probability(network)
    cells = held.scored(made, lambda image: model.predict_on_batch(image[np.newaxis])[0, ..., 0])
    print(f"| {name} | {steps} | {seconds:.2f} | {cells} |", flush=True)


class Bare(TrainStep):
    """Learns from batches as they are."""

    def augmented(self, image: Tensor, label: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        return super().augmented(image, label, False)


def learner(kind: type[TrainStep], recipe: Recipe) -> TrainStep:
    told = TrainOptions()
    network = networks.build(architecture=told.architecture, encoder=told.encoder, pretrained=True)
    network = fit.training_copy(network, recipe.precision)
    made = kind(network, losses.named("bce+dice"), recipe)
    made.compile(optimizer=optimizer.build(network, recipe, 1000), jit_compile="auto")
    return made


def resolutions(made: ChipSet, address: str) -> None:
    """Pooled IoU of the validation chips when they are shown at other resolutions than the model's."""
    model = registry.load_model(address)
    rows = made.select("validation")
    print("| metres per pixel, of the model's own | pooled IoU at 0.5 | best |\n| --- | --- | --- |")
    for times in (0.6, 0.7, 0.85, 1.0, 1.18, 1.4, 1.7):
        total = np.zeros(0)
        for row in rows.itertuples():
            image, coded = chip_set.read(made.folder, row)
            label, valid = labels.decode(coded)
            percents = to_percent(seen_at(model.keras, image, times))
            total = metrics.histogram(percents, label, valid) + (total if total.size else 0)
        half, best = (metrics.counts(total, threshold=at).iou for at in (50, metrics.best_threshold(total)))
        print(f"| {times} | {half:.3f} | {best:.3f} |", flush=True)


def seen_at(model: keras.Model, image: np.ndarray, times: float) -> np.ndarray:
    """(height, width) float32 probabilities of an image that is shown at a resolution coarser by that factor."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((round(width / times), round(height / times)), Image.Resampling.BILINEAR)
    missing = [-length % networks.STRIDE for length in (small.height, small.width)]
    padded = np.pad(np.asarray(small), ((0, missing[0]), (0, missing[1]), (0, 0)), mode="reflect")
    probability = model.predict_on_batch(padded[np.newaxis])[0, : small.height, : small.width, 0]
    return np.asarray(Image.fromarray(probability).resize((width, height), Image.Resampling.BILINEAR))


if __name__ == "__main__":
    main()
