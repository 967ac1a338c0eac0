"""A segmentation network, trained on the chips of a `prepare` run and registered."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrypoints import MODEL_NAME, evaluate, number, parser, seed, start, whole

if TYPE_CHECKING:
    from mlflow.entities import Run

    from ocmlflow.chips.chip_set import ChipSet
    from ocmlflow.tracking.registry import Model
    from ocmlflow.training.dataset import Crops
    from ocmlflow.training.train_step import Recipe

log = logging.getLogger(__name__)

CHIPS_RUN = "ocmlflow.chips.run"
"""Tag of a run with the run id of its chips."""
INIT = "ocmlflow.init"
"""Tag of a run with the address of the version that it goes on from: an alias may have moved when it is resumed."""
NETWORK = ("architecture", "encoder", "weights")
"""Parameters that say which network a training starts with, where no version does."""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The verb's parameters and their defaults."""
    p = parser("train", "Train a network on chips, log every epoch, and register the best one as @candidate.")
    p.add_argument("--chips", default=None, help="run id of a `prepare` run; the experiment's newest if not given")
    p.add_argument("--fold", type=whole(0), default=None, help="of chips made with folds=, the one to hold out")
    p.add_argument("--epochs", type=whole(1), default=30, help="times that as many crops are drawn as there are chips")
    p.add_argument("--init", default=None, help="models:/NAME@ALIAS to go on from, in place of the next three")
    p.add_argument("--architecture", default="fpn", help="decoder of the network: fpn, a feature pyramid, or unet")
    p.add_argument(
        "--encoder",
        default="efficientnet-lite0",
        help="encoder of the network: efficientnet-lite0, -lite1, -lite2 (these two need the extra `encoders`), "
        "efficientnetv2-b0 to -b3, -s, resnet50, convnext-tiny (whose ImageNet weights are fetched from the internet)",
    )
    p.add_argument("--weights", choices=("imagenet", "none"), default="imagenet", help="start of the encoder")
    p.add_argument("--freeze", type=whole(0), default=0, help="first epochs, in which only the decoder's weights learn")
    p.add_argument("--loss", default="bce+dice", help="bce, dice, focal, jaccard (Lovász), or a sum")
    p.add_argument(
        "--catalog_weights",
        default=None,
        help="such as tier_2=0.2: how often crops come from catalogues whose address contains that, of 1",
    )
    p.add_argument("--batch_size", type=whole(1), default=8, help="crops a step")
    p.add_argument("--crop", type=whole(32), default=256, help="pixels along a side of a crop, a multiple of 32")
    p.add_argument("--building_crops", type=number(0, 1), default=0.5, help="share of the crops around a building")
    p.add_argument(
        "--augment", type=number(0, 3), default=1.0, help="strength of turns, light, colour, noise; 0 for none"
    )
    p.add_argument("--zoom", type=number(1, 2), default=1.18, help="largest zoom of crops, in and out")
    p.add_argument("--learning_rate", type=number(1e-8, 1), default=1e-3, help="highest, after the warm-up")
    p.add_argument("--weight_decay", type=number(0, 1), default=1e-2, help="of AdamW")
    p.add_argument(
        "--warmup",
        type=number(0, 1),
        default=0.05,
        help="share of the steps of rising learning rate; 0.3 is about one cycle",
    )
    p.add_argument("--ema", type=number(0, 1), default=0.05, help="share of the steps that weights are averaged over")
    p.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the arithmetic; half floats are for GPUs that are made for them",
    )
    p.add_argument("--devices", type=whole(1), default=1, help="GPUs of this machine to share each batch out over")
    p.add_argument("--patience", type=whole(1), default=None, help="epochs without a better IoU before it ends early")
    p.add_argument("--seed", type=seed, default=0, help="draws weights, crops and augmentation")
    p.add_argument("--picture_epochs", type=whole(1), default=5, help="epochs from one picture to the next")
    p.add_argument("--workers", type=whole(1), default=2, help="threads that read chips")
    p.add_argument("--name", default=MODEL_NAME, help="registered model that gets a new version")
    p.add_argument("--resume", default=None, help="run id of an interrupted training to go on with, as it was told")
    args = p.parse_args(words)
    given = [name for name, value in vars(args).items() if name != "resume" and value != p.get_default(name)]
    if args.resume and given:
        p.error(f"argument --resume: the run goes on as it was told, leave out {', '.join(given)}")
    given = [name for name in NETWORK if getattr(args, name) != p.get_default(name)]
    if args.init and given:
        p.error(f"argument --init: the network of that version is trained, leave out {', '.join(given)}")
    if args.freeze and args.weights == "none":
        p.error("argument --freeze: an encoder of random weights is to learn, leave it out or take --weights imagenet")
    if args.freeze >= args.epochs:
        p.error(f"argument --freeze: in all {args.epochs} epochs the encoder would not learn, got {args.freeze}")
    if args.crop % 32:
        p.error(f"argument --crop: must be a multiple of 32, got {args.crop}")
    return args


def key(args: argparse.Namespace, digest: str) -> str:
    """Names chips, parameters, code and Keras: equal keys make equal models, but for the order of sums."""
    from ocmlflow.storage import hrefs
    from ocmlflow.tracking import provenance, registry

    engine = (version("keras"), os.environ.get("KERAS_BACKEND", ""))
    recipe = {name: value for name, value in vars(args).items() if name not in ("chips", "workers", "resume")}
    if args.init:
        recipe["init"] = registry.load_model(args.init).pinned
    return hrefs.digest(provenance.code_digest(), repr(sorted(recipe.items())), repr(engine), digest)


def main(args: argparse.Namespace) -> None:
    import mlflow

    from ocmlflow.chips import chip_set
    from ocmlflow.tracking import chip_artifacts, registry, run_search, runs
    from ocmlflow.tracking.model_facts import ChipSplit, ModelFacts
    from ocmlflow.training import dataset, losses, networks, previews

    before = run_search.interrupted("train", args.resume) if args.resume else None
    if before:
        args = _as_told(before)
    not_told = {"resume", *(NETWORK if args.init else ())}
    told = {name: value for name, value in vars(args).items() if name not in not_told}
    with runs.run("train", told, resume=before) as run, tempfile.TemporaryDirectory() as scratch:
        networks.check(architecture=args.architecture, encoder=args.encoder)
        start_from = registry.load_model(args.init) if args.init else None
        if start_from:
            args.init = start_from.pinned  # an alias may move on while this works
        losses.named(args.loss)
        chips_run = chip_artifacts.resolve_run(args.chips)
        made = chip_set.load(chip_artifacts.folder(chips_run), fold=args.fold)
        weights = dataset.catalog_weights(made.select("train").catalog.unique(), args.catalog_weights)
        _check(made, args, weights)
        if start_from:
            evaluate.check_fair(start_from, made, "validation")
        registry.register(args.name)  # a name that MLflow refuses is to fail now, not after the training
        digest = chip_set.digest(made.index)
        tags = {runs.KEY: key(args, digest), CHIPS_RUN: chips_run} | ({INIT: args.init} if args.init else {})
        mlflow.set_tags(tags)
        chip_artifacts.log_dataset(made.index, source=made.rules["catalog"], digest=digest)
        state = run_search.state_of(before, Path(scratch)) if before else None
        model, best_epoch, best = _fit(made, args, weights, start_from, state)
        # As a file too: that of the model logged, where the steps above end with the last epoch's.
        shown = previews.validation_sheet(model, made.folder, made.select("validation"), args.devices)
        runs.log_image(shown, "validation.jpg")
        facts = ModelFacts(
            gsd=made.rules["gsd"],
            multiple=networks.STRIDE,
            run=run.info.run_id,
            chips=chips_run,
            trained_on=(ChipSplit(chips_run, args.fold),),
            fold=args.fold,
            data=digest,
            validation=made.rules["validation"] if args.fold is None else f"fold {args.fold}",
            architecture=args.architecture,
            encoder=args.encoder,
        )
        if start_from:
            facts = replace(
                facts,
                multiple=start_from.facts.multiple,
                architecture=start_from.facts.architecture,
                encoder=start_from.facts.encoder,
                init=str(start_from),
                trained_on=facts.trained_on + start_from.facts.trained_on,
            )
        runs.log_model(networks.for_any_size(model), facts, name=args.name)
        runs.drop_state()
        runs.log_metrics({"best_epoch": best_epoch, "validation/best_iou": best})
        runs.describe(
            f"`{facts.architecture}` on `{facts.encoder}`, registered as **{args.name}**: "
            f"pooled validation IoU {best:.3f} after epoch {best_epoch} of {args.epochs}, on `{facts.validation}`"
            f"\n\n{runs.picture('validation.jpg')}"
        )
        runs.name_run("train", f"{facts.validation} {facts.encoder} IoU {best:.3f}")
        names = ("validation", "architecture", "encoder")
        runs.set_tags({f"ocmlflow.{name}": getattr(facts, name) for name in names})
        log.info("%s: validation IoU %.3f (epoch %d)", args.name, best, best_epoch)


def _check(made: ChipSet, args: argparse.Namespace, weights: dict[str, float]) -> None:
    """Raise InputError for what cannot be trained, before anything is built."""
    from ocmlflow.chips import splits
    from ocmlflow.errors import InputError
    from ocmlflow.training import dataset

    splits.check_disjoint(made.index)
    validation = made.select("validation")
    twice = validation[splits.shares_ground(validation, made.select("train"))]
    if len(twice):
        raise InputError(
            f"{len(twice)} validation chips of {', '.join(sorted(set(twice.scene)))} show the pixels of training chips "
            "under another georeference: scores would be flattered. Hold out both scenes, or neither"
        )
    for split in ("train", "validation"):
        if not made.select(split).building_share.any():
            raise InputError(f"no {split} chip shows a building: there is nothing to learn or to score")
    if not dataset.has_building_to_learn(made, weights):
        ring = made.rules["buffer_m"]
        why = (
            f"buffer_m={ring:g} leaves out all of their buildings; a smaller one in `prepare` would do"
            if ring
            else f"catalog_weights={args.catalog_weights} leaves none with a building"
        )
        raise InputError(f"the training chips hold nothing to learn from: {why}")
    count = len(made.select("train"))
    if args.batch_size > count:
        raise InputError(f"batch_size={args.batch_size} is more than the {count} training chips")
    if args.crop > made.rules["size"]:
        raise InputError(f"crop={args.crop} is more than the chips' {made.rules['size']} pixels along a side")


def _as_told(before: Run) -> argparse.Namespace:
    """The parameters that an interrupted run was given, with the very chips and version that it took."""
    import keras

    from ocmlflow.errors import InputError
    from ocmlflow.tracking import run_search

    told, tags, run_id = before.data.params, before.data.tags, before.info.run_id
    if CHIPS_RUN not in tags:
        raise run_search.no_state(before)
    backend = told.get("keras_backend", keras.backend.backend())
    if backend != keras.backend.backend():
        raise InputError(
            f"resume={run_id}: that training was begun on {backend}, this is {keras.backend.backend()}: "
            f"set KERAS_BACKEND={backend}"
        )
    names = set(vars(parse([]))) & set(told) - set(NETWORK if told.get("init") else ())
    args = parse([word for name in sorted(names) for word in (f"--{name}", told[name])])
    args.chips, args.init, args.resume = tags[CHIPS_RUN], tags.get(INIT, args.init), run_id
    return args


def recipe_and_crops(made: ChipSet, args: argparse.Namespace, weights: dict[str, float]) -> tuple[Recipe, Crops]:
    """What a training is told, and what it is shown; `weights` are those of catalogues."""
    from ocmlflow.training import augment
    from ocmlflow.training.dataset import Crops
    from ocmlflow.training.train_step import Recipe

    crops = Crops(
        made,
        side=augment.context_side(args.crop, strength=args.augment, zoom=args.zoom),
        inner=args.crop,
        batch_size=args.batch_size,
        seed=args.seed,
        workers=args.workers,
        building_crops=args.building_crops,
        weights=weights,
    )
    return Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)}), crops


def _fit(
    made: ChipSet,
    args: argparse.Namespace,
    weights: dict[str, float],
    start_from: Model | None,
    state: Path | None,
) -> tuple[Any, int, float]:
    """The trained network with probabilities, its best epoch and that epoch's validation IoU."""
    import keras
    import mlflow

    from ocmlflow.tracking import runs
    from ocmlflow.training import fit, losses, networks, previews
    from ocmlflow.training.dataset import WholeChips

    fit.distribute(args.devices, batch_size=args.batch_size, precision=args.precision)
    keras.utils.set_random_seed(args.seed)
    network = (
        networks.with_logits(start_from.keras)
        if start_from
        else networks.build(architecture=args.architecture, encoder=args.encoder, pretrained=args.weights == "imagenet")
    )
    model = networks.with_probability(network)
    recipe, crops = recipe_and_crops(made, args, weights)
    # Whole chips are larger than crops: as many pixels a batch as in training, or memory would be set by validation.
    at_once = max(1, args.batch_size * args.crop**2 // made.rules["size"] ** 2 // args.devices) * args.devices
    rows = made.select("validation")
    whole_chips = WholeChips(made.folder, rows, batch_size=at_once, devices=args.devices, workers=args.workers)
    mlflow.log_params({"train_chips": len(crops.rows), "validation_chips": len(rows)})
    mlflow.log_params({"network_parameters": network.count_params(), "keras_backend": keras.backend.backend()})

    def show(epoch: int) -> None:
        runs.log_image(
            previews.validation_sheet(model, made.folder, rows, args.devices), "validation chips", step=epoch
        )

    def report(epoch: int, figures: dict[str, float]) -> None:
        runs.log_metrics({_metric(name): value for name, value in figures.items()}, step=epoch)
        if epoch == args.epochs or epoch % args.picture_epochs == 0:
            show(epoch)

    if not state:
        show(0)  # MLflow's page shows this step first
        runs.log_image(previews.augmentation_sheet(crops, recipe), "augmented.jpg")
    best_epoch, best = fit.fit(
        network,
        crops,
        whole_chips,
        recipe=recipe,
        loss=losses.named(args.loss),
        report=report,
        save=runs.keep_state,
        resume=state,
        progress=sys.stdout.isatty(),
    )
    return model, best_epoch, best


def _metric(name: str) -> str:
    """Name of a figure in MLflow, whose page puts what stands before a slash under one heading."""
    if name in ("learning_rate", "chips_per_second", "seconds"):
        return name
    return f"validation/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}"


if __name__ == "__main__":
    start(main, parse())
