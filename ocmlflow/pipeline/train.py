"""Trains a segmentation network on the chips of a `prepare` run and registers it."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from geopandas import GeoDataFrame

from ocmlflow.chips import chip_set, splits
from ocmlflow.chips.chip_set import ChipSet
from ocmlflow.errors import InputError
from ocmlflow.pipeline import model_card, scoring
from ocmlflow.pipeline.options import NETWORK, TrainOptions, from_text, option_fields, parameters
from ocmlflow.storage import hrefs
from ocmlflow.tracking import chip_artifacts, provenance, registry, run_pages, run_search, runs
from ocmlflow.tracking.model_facts import ChipSplit, ModelFacts
from ocmlflow.tracking.registry import Model
from ocmlflow.tracking.runs import Run

log = logging.getLogger(__name__)

CHIPS_RUN = "ocmlflow.chips.run"
"""Tag of a run with the run id of its chips."""
INIT = "ocmlflow.init"
"""Tag of a run with the address of the version that it started from: an alias may move before it is resumed."""


@dataclass(frozen=True)
class _Trained:
    """A trained network."""

    model: Any
    """keras.Model that gives probabilities."""
    best_epoch: int
    best_iou: float
    """Validation IoU of that epoch."""


def run(options: TrainOptions) -> Model:
    """The new version, registered with the alias `candidate`; every epoch is logged to a run."""
    resumed = run_search.get_interrupted("train", options.resume) if options.resume else None
    if resumed:
        options = _options_of(resumed)
    with runs.run("train", _logged(options), resume=resumed) as active, tempfile.TemporaryDirectory() as scratch:
        _train(options, active, resumed, Path(scratch))
    return registry.load_model(f"models:/{options.name}/{registry.find_version(active.info.run_id, options.name)}")


def key(options: TrainOptions, digest: str) -> str:
    """Digest of chips, options, code and Keras: equal keys make equal models, but for the order of sums."""
    engine = (version("keras"), os.environ.get("KERAS_BACKEND", ""))
    recipe = {name: value for name, value in parameters(options).items() if name not in ("chips", "workers", "resume")}
    if options.init:
        recipe["init"] = registry.load_model(options.init).pinned
    return hrefs.digest(provenance.code_digest(), repr(sorted(recipe.items())), repr(engine), digest)


def _logged(options: TrainOptions) -> dict[str, Any]:
    """The parameters of the run."""
    unused = {"resume", *(NETWORK if options.init else ())}
    return {name: value for name, value in parameters(options).items() if name not in unused}


def _options_of(interrupted: Run) -> TrainOptions:
    """The options that an interrupted run was given, with the very chips and version that it took."""
    import keras

    params, tags, run_id = interrupted.data.params, interrupted.data.tags, interrupted.info.run_id
    if CHIPS_RUN not in tags:
        raise run_search.missing_state_error(interrupted)
    backend = params.get("keras_backend", keras.backend.backend())
    if backend != keras.backend.backend():
        raise InputError(
            f"resume={run_id}: that training was begun on {backend}, this is {keras.backend.backend()}: "
            f"set KERAS_BACKEND={backend}"
        )
    names = {field.name for field in option_fields(TrainOptions)} - {"resume"}
    given = {name: value for name, value in params.items() if name in names}
    if INIT in tags:
        given["init"] = tags[INIT]
    if given.get("init"):
        given = {name: value for name, value in given.items() if name not in NETWORK}
    return from_text(TrainOptions, {**given, "chips": tags[CHIPS_RUN]})


def _train(options: TrainOptions, active: Run, resumed: Run | None, scratch: Path) -> None:
    """Train in the open run, and log the model."""
    from ocmlflow.training import dataset, losses, networks, previews

    networks.check(architecture=options.architecture, encoder=options.encoder)
    losses.named(options.loss)
    start_from = registry.load_model(options.init) if options.init else None
    if start_from:
        options = replace(options, init=start_from.pinned)  # an alias may move meanwhile
    chips_run = chip_artifacts.resolve_run(options.chips)
    chips = chip_artifacts.open_chips(chips_run, fold=options.fold)
    weights = dataset.catalog_weights(chips.select("train").catalog.unique(), options.catalog_weights)
    _check(chips, options, weights)
    if start_from:
        scoring.check_fair(start_from, chips, "validation")
    registry.register(options.name)
    champion = registry.find_champion(options.name)
    comparison = run_pages.comparison(champion.facts.run) if champion else ""  # now, as the server may go away
    digest = chip_set.digest(chips.index)
    init = {INIT: options.init} if options.init else {}
    runs.identify({runs.KEY: key(options, digest), CHIPS_RUN: chips_run, **init})
    chip_artifacts.log_dataset(chips, "train")
    seen = chip_artifacts.log_dataset(chips, "validation")
    state = run_search.download_state(resumed, scratch) if resumed else None
    trained = _fit(chips, options, weights, start_from, state)
    # As a file too: it shows the model that is logged, where the series above ends with the last epoch's.
    picture = previews.validation_sheet(trained.model, chips.folder, chips.select("validation"), options.devices)
    runs.log_image(picture, "validation.jpg")
    facts = _facts(chips, chips_run, digest, options, start_from, active.info.run_id)
    trained_on = _training_rows(chips, start_from)
    runs.log_model(
        networks.for_any_size(trained.model),
        facts,
        name=options.name,
        scores=_scores(trained),
        dataset=(seen.name, seen.digest),
        item=model_card.item(facts, trained.model, trained_on, f"{options.name}-{facts.run}"),
        description=model_card.card(
            facts,
            trained_on,
            f"models:/{options.name}@candidate",
            [f"{_description(trained, facts, options)}. Not evaluated yet: `ocmlflow evaluate` chooses its threshold."],
        ),
    )
    runs.delete_state()
    _log_result(trained, facts, options)
    if comparison:
        log.info("compared with %s, the champion: %s", champion, comparison)


def _training_rows(chips: ChipSet, start_from: Model | None) -> GeoDataFrame:
    """Index rows of all chips that the model was trained on, in earlier trainings too."""
    rows = chips.select("train")
    return pd.concat([rows, chip_artifacts.training_rows(start_from)], ignore_index=True) if start_from else rows


def _facts(
    chips: ChipSet, chips_run: str, digest: str, options: TrainOptions, start_from: Model | None, run_id: str
) -> ModelFacts:
    """What is recorded with the model."""
    from ocmlflow.training import networks

    facts = ModelFacts(
        gsd=chips.rules["gsd"],
        multiple=networks.STRIDE,
        run=run_id,
        chips=chips_run,
        trained_on=(ChipSplit(chips_run, options.fold),),
        fold=options.fold,
        data=digest,
        validation=chips.rules["validation"] if options.fold is None else f"fold {options.fold}",
        architecture=options.architecture,
        encoder=options.encoder,
    )
    if start_from is None:
        return facts
    return replace(
        facts,
        multiple=start_from.facts.multiple,
        architecture=start_from.facts.architecture,
        encoder=start_from.facts.encoder,
        init=str(start_from),
        trained_on=facts.trained_on + start_from.facts.trained_on,
    )


def _scores(trained: _Trained) -> dict[str, float]:
    """The final figures of a training."""
    return {"best_epoch": trained.best_epoch, "validation/best_iou": trained.best_iou}


def _description(trained: _Trained, facts: ModelFacts, options: TrainOptions) -> str:
    """What the network is and how good, in a sentence."""
    return (
        f"`{facts.architecture}` on `{facts.encoder}`: pooled validation IoU {trained.best_iou:.3f} after epoch "
        f"{trained.best_epoch} of {options.epochs}, on `{facts.validation}`"
    )


def _log_result(trained: _Trained, facts: ModelFacts, options: TrainOptions) -> None:
    """Log the best epoch, and give the run its description, name and tags."""
    runs.log_metrics(_scores(trained))
    runs.describe(
        f"Registered as **{options.name}**: {_description(trained, facts, options)}"
        f"\n\n{run_pages.picture_markdown('validation.jpg')}"
    )
    run_pages.name_run("train", f"{facts.validation} {facts.encoder}", score=run_pages.score(trained.best_iou))
    names = ("validation", "architecture", "encoder")
    runs.set_tags({f"ocmlflow.{name}": getattr(facts, name) for name in names})
    log.info("%s: validation IoU %.3f (epoch %d)", options.name, trained.best_iou, trained.best_epoch)


def _check(chips: ChipSet, options: TrainOptions, weights: dict[str, float]) -> None:
    """Raise InputError for what cannot be trained, before anything is built."""
    from ocmlflow.training import dataset

    splits.check_disjoint(chips.index)
    validation = chips.select("validation")
    shown_twice = validation[splits.shares_ground(validation, chips.select("train"))]
    if len(shown_twice):
        raise InputError(
            f"{len(shown_twice)} validation chips of {', '.join(sorted(set(shown_twice.scene)))} show the pixels of "
            "training chips under another georeference: scores would be flattered. Hold out both scenes, or neither"
        )
    for split in ("train", "validation"):
        if not chips.select(split).building_share.any():
            raise InputError(f"no {split} chip shows a building: there is nothing to learn or to score")
    if not dataset.has_building_to_learn(chips, weights):
        buffer_m = chips.rules["buffer_m"]
        reason = (
            f"buffer_m={buffer_m:g} leaves out all of their buildings; a smaller one in `prepare` would do"
            if buffer_m
            else f"catalog_weights={options.catalog_weights} leaves none with a building"
        )
        raise InputError(f"the training chips hold nothing to learn from: {reason}")
    count = len(chips.select("train"))
    if options.batch_size > count:
        raise InputError(f"batch_size={options.batch_size} is more than the {count} training chips")
    if options.crop > chips.rules["size"]:
        raise InputError(f"crop={options.crop} is more than the chips' {chips.rules['size']} pixels along a side")


def _fit(
    chips: ChipSet, options: TrainOptions, weights: dict[str, float], start_from: Model | None, state: Path | None
) -> _Trained:
    """Build the network, or take that of `start_from`, and train it; `state` is where an interrupted training was."""
    import keras

    from ocmlflow.pipeline import training_setup
    from ocmlflow.training import fit, losses, networks, previews

    fit.distribute(options.devices, batch_size=options.batch_size, precision=options.precision)
    keras.utils.set_random_seed(options.seed)
    network = training_setup.build_network(options, start_from)
    model = networks.with_probability(network)
    recipe, crops = training_setup.recipe_and_crops(chips, options, weights)
    validation = training_setup.validation_chips(chips, options)
    runs.log_params(
        {
            "train_chips": len(crops.rows),
            "validation_chips": len(validation.rows),
            "network_parameters": network.count_params(),
            "keras_backend": keras.backend.backend(),
        }
    )
    if not state:
        _log_preview(model, chips, options, epoch=0)  # MLflow's page shows this step first
        runs.log_image(previews.augmentation_sheet(crops, recipe), "augmented.jpg")
    best_epoch, best_iou = fit.fit(
        network,
        crops,
        validation,
        recipe=recipe,
        loss=losses.named(options.loss),
        report=partial(_log_epoch, model=model, chips=chips, options=options),
        save=runs.save_state,
        resume=state,
        progress=sys.stdout.isatty(),
    )
    return _Trained(model, best_epoch, best_iou)


def _log_epoch(epoch: int, figures: dict[str, float], *, model: Any, chips: ChipSet, options: TrainOptions) -> None:
    """Log the figures of an epoch, and a picture every so many epochs and at the end."""
    runs.log_metrics({_metric(name): value for name, value in figures.items()}, step=epoch)
    if epoch == options.epochs or epoch % options.picture_epochs == 0:
        _log_preview(model, chips, options, epoch=epoch)


def _log_preview(model: Any, chips: ChipSet, options: TrainOptions, *, epoch: int) -> None:
    from ocmlflow.training import previews

    picture = previews.validation_sheet(model, chips.folder, chips.select("validation"), options.devices)
    runs.log_image(picture, "validation chips", step=epoch)


def _metric(name: str) -> str:
    """Name of a figure in MLflow, whose page groups metrics by what stands before a slash."""
    if name in ("learning_rate", "chips_per_second", "seconds"):
        return name
    return f"validation/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}"
