"""Sets up a training: the network, the recipe, and the batches of crops and validation chips."""

from dataclasses import fields

import keras

from ocmlflow.chips.chip_set import ChipSet
from ocmlflow.pipeline.options import TrainOptions
from ocmlflow.tracking.registry import Model
from ocmlflow.training import augment, networks
from ocmlflow.training.dataset import Crops, WholeChips
from ocmlflow.training.train_step import Recipe


def build_network(options: TrainOptions, start_from: Model | None) -> keras.Model:
    """keras.Model that gives logits: that of a version, or a new one."""
    if start_from:
        return networks.with_logits(start_from.keras)
    imagenet = options.weights == "imagenet"
    return networks.build(architecture=options.architecture, encoder=options.encoder, pretrained=imagenet)


def recipe_and_crops(chips: ChipSet, options: TrainOptions, weights: dict[str, float]) -> tuple[Recipe, Crops]:
    """How a network is trained, and what it is shown; `weights` are those of catalogues."""
    crops = Crops(
        chips,
        side=augment.context_side(options.crop, strength=options.augment, zoom=options.zoom),
        inner=options.crop,
        batch_size=options.batch_size,
        seed=options.seed,
        workers=options.workers,
        building_crops=options.building_crops,
        weights=weights,
    )
    return Recipe(**{field.name: getattr(options, field.name) for field in fields(Recipe)}), crops


def validation_chips(chips: ChipSet, options: TrainOptions) -> WholeChips:
    """Batches of whole validation chips, of as many pixels as a batch of crops, or validation would set the memory."""
    per_device = options.batch_size * options.crop**2 // chips.rules["size"] ** 2 // options.devices
    return WholeChips(
        chips.folder,
        chips.select("validation"),
        batch_size=max(1, per_device) * options.devices,
        devices=options.devices,
        workers=options.workers,
    )
