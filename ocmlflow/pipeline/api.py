"""The public functions of `ocmlflow`: what the commands do, from Python."""

import inspect
import textwrap
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from ocmlflow.chips.chip_set import ChipSet
from ocmlflow.errors import InputError
from ocmlflow.evaluation.scorecard import Scorecard
from ocmlflow.pipeline import compare as compare_step
from ocmlflow.pipeline import evaluate as evaluate_step
from ocmlflow.pipeline import predict as predict_step
from ocmlflow.pipeline import prepare as prepare_step
from ocmlflow.pipeline import train as train_step
from ocmlflow.pipeline.options import (
    CompareOptions,
    EvaluateOptions,
    OptionError,
    Options,
    PredictOptions,
    PrepareOptions,
    TrainOptions,
    make,
    option_fields,
)
from ocmlflow.pipeline.predict import SceneMap
from ocmlflow.prediction import array_prediction, inference
from ocmlflow.tracking import registry
from ocmlflow.tracking.registry import Model

Href = str | PathLike[str]
"""Path or address."""
_F = TypeVar("_F", bound=Callable[..., Any])


def _takes(record: type[Options]) -> Callable[[_F], _F]:
    """Give a function the options of a record in its signature and its docstring."""

    def document(function: _F) -> _F:
        signature = inspect.signature(function)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind != parameter.VAR_KEYWORD]
        fields = [field for field in option_fields(record) if field.name not in signature.parameters]
        keywords = [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default) for field in fields
        ]
        function.__signature__ = signature.replace(parameters=[*own, *keywords])  # type: ignore[attr-defined]
        lines = [
            textwrap.fill(f"{field.name}: {field.about.help}", 112, initial_indent="    ", subsequent_indent=" " * 8)
            for field in fields
        ]
        function.__doc__ = f"{inspect.getdoc(function)}\n\nOptions:\n" + "\n".join(lines)
        return function

    return document


@_takes(PrepareOptions)
def prepare(catalog: Href | Sequence[Href], **options: Any) -> ChipSet:
    """Cut labelled scenes into training chips.

    `catalog` is a STAC file, or a folder of GeoTIFFs with label files of the same name. The chips are kept by a run of
    MLflow; the same call again, on the same files, finds them there.

    Returns the chips: their `index` (GeoDataFrame, a row per chip), `rules`, `folder` and `run`.
    Raises `InputError` where nothing can be cut, naming the scene and what would do.

        chips = ocmlflow.prepare("catalog.json", validation="kam")
        chips.index.groupby("split").size()
    """
    given = make(PrepareOptions, catalog=catalog, **options)
    for name in ("dry_run", "share"):
        if getattr(given, name):
            raise OptionError(name, "makes no chips that could be returned: use it on the command line")
    chips = prepare_step.run(given)
    assert chips is not None
    return chips


@_takes(TrainOptions)
def train(chips: ChipSet | str | None = None, **options: Any) -> Model:
    """Train a segmentation network on chips and register it.

    `chips` are those of `prepare`, or the run id of a `prepare` run; without them, the newest of the experiment.

    Returns the new version: `keras` (the network), `facts`, `threshold`, `name` and `version`.
    Raises `InputError` before the training where it cannot work.

        model = ocmlflow.train(chips, epochs=30)
        found = model.keras.predict(images)  # uint8 RGB (batch, height, width, 3) to (batch, height, width, 4)
        probability = found[..., 0]
    """
    return train_step.run(make(TrainOptions, chips=_run_of(chips), **options))


@_takes(EvaluateOptions)
def evaluate(model: Model | str | None = None, chips: ChipSet | str | None = None, **options: Any) -> Scorecard:
    """Score a model on held-out chips, choose its threshold, and make it champion if it is the best.

    `model` is that of `train`, or an address such as `models:/NAME@candidate`. `chips` are those of `prepare` or their
    run id; without them, the ones that the model was trained on.

    Returns the scorecard: `counts` (pixels, with `iou`, `precision`, `recall`, `f1`), `threshold`, `table("place")`.
    Raises `InputError` where the scores would be flattered, such as on ground that the model was trained on.

        scores = ocmlflow.evaluate(model)
        print(scores.counts.iou, scores.threshold)
    """
    if model is not None:
        options["model"] = _address(model)
    return evaluate_step.run(make(EvaluateOptions, chips=_run_of(chips), **options))


@_takes(CompareOptions)
def compare(
    models: Model | str | Sequence[Model | str], chips: ChipSet | str | None = None, **options: Any
) -> pd.DataFrame:
    """Compare models on the same validation chips, with paired confidence intervals.

    `models` are those of `train`, or addresses; the others are compared with the first. `chips` are those of `prepare`
    or their run id; without them, the ones that the first model was trained on.

    Returns a row per model, place and score: the difference from the first model and its 95 % interval.
    Raises `InputError` where a model was trained on the ground of the chips.

        table = ocmlflow.compare(["models:/open-cities-buildings@champion", model])
        table.query("place == 'all' and score == 'iou'")
    """
    return compare_step.run(make(CompareOptions, models=_addresses(models), chips=_run_of(chips), **options))


@_takes(PredictOptions)
def predict(
    images: Href | Sequence[Href],
    output: Href,
    model: Model | str | Sequence[Model | str] | None = None,
    **options: Any,
) -> list[SceneMap]:
    """Map the buildings of scenes: rasters, footprints and STAC items.

    `images` is a STAC file, a GeoTIFF, or a folder or glob of GeoTIFFs. `output` is a folder or an s3:// address.
    `model` is that of `train` or an address; with several, their predictions are averaged; without one, the champion
    maps.

    Returns the map of each scene, in the order of the images: paths of its files, number and area of its buildings.
    Raises `InputError` before anything is predicted where a scene cannot be read.

        maps = ocmlflow.predict("scenes/", "out", tta="flips")
        for scene in maps:
            print(scene.scene, scene.buildings, scene.footprints)
    """
    if model is not None:
        options["model"] = _addresses(model)
    return predict_step.run(make(PredictOptions, images=images, output=output, **options))


def load_model(address: str) -> Model:
    """A registered model: its network, facts, threshold and temperature, as they are now.

    `address` is models:/NAME@ALIAS or models:/NAME/VERSION. A model that was loaded before an evaluation keeps the
    threshold and temperature from before.

    Raises `InputError` where there is none, listing those that are registered.

        champion = ocmlflow.load_model("models:/open-cities-buildings@champion")
        print(champion.facts.gsd, champion.threshold)
    """
    return registry.load_model(address)


def predict_array(model: Model | str, image: np.ndarray, *, tta: str = "none") -> tuple[np.ndarray, np.ndarray]:
    """Probability and validity of an image that is in memory, of any size, at the model's resolution.

    `image` is uint8, (height, width, 3) RGB or (height, width, 4) RGBA. `tta` is none, flips or d4, as in `predict`.

    Returns probability, (height, width) float32 of 0..1, calibrated, and valid, (height, width) bool: False where the
    image is transparent.
    Raises `InputError` for an image of another shape or type.

        probability, valid = ocmlflow.predict_array(champion, image)
        building = valid & (probability >= champion.threshold / 100)
    """
    if tta not in inference.SYMMETRIES:
        raise InputError(f"tta: must be {', '.join(inference.SYMMETRIES)}, got {tta}")
    loaded = registry.load_model(model) if isinstance(model, str) else model
    network = inference.padded(loaded.keras.predict_on_batch, loaded.facts.multiple)
    calibrated = inference.calibrated(network, loaded.temperature)
    return array_prediction.predict_image(inference.averaged([calibrated], tta), image)


def _run_of(chips: ChipSet | str | None) -> str | None:
    """Run id of some chips."""
    if not isinstance(chips, ChipSet):
        return chips
    if chips.run is None:
        raise InputError(f"the chips in {chips.folder} belong to no run: make them with `ocmlflow.prepare`")
    return chips.run


def _address(model: Model | str) -> str:
    return model.pinned if isinstance(model, Model) else model


def _addresses(models: Model | str | Sequence[Model | str]) -> str | list[str]:
    """Addresses of one or several models, as option records take them."""
    if isinstance(models, str) or not isinstance(models, Sequence):
        return _address(models)
    return list(map(_address, models))
