"""Sets up a prediction: models, settings, checked scenes, and the name of its work folder."""

import logging
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import shapely

from ocmlflow.errors import InputError
from ocmlflow.pipeline.options import PredictOptions
from ocmlflow.prediction import engine, output, preflight
from ocmlflow.prediction.engine import Ensemble
from ocmlflow.prediction.preflight import SceneCheck
from ocmlflow.prediction.scene_tiles import MapSettings
from ocmlflow.progress import progress_bar
from ocmlflow.redaction import redact
from ocmlflow.scenes import catalog, sidecars, stretching
from ocmlflow.scenes.catalog import Scene
from ocmlflow.storage import hrefs
from ocmlflow.tracking import provenance, registry
from ocmlflow.tracking.registry import Model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictionSetup:
    """What is predicted, how, and where its files go."""

    scenes: list[Scene]
    """All that were asked for, in their order."""
    checks: dict[str, SceneCheck]
    """What is known of the scenes that can be predicted, by their id."""
    left_out: dict[str, str]
    """Why the other scenes are left out, by their id."""
    models: list[Model]
    """Their predictions are averaged."""
    network: Ensemble
    settings: MapSettings
    output: str
    """Folder or s3:// address."""
    folder: Path
    """For unfinished work."""

    @property
    def model_names(self) -> str:
        """The models in words."""
        return ", ".join(map(str, self.models))

    @property
    def todo(self) -> list[Scene]:
        """The scenes that can be predicted, in their order."""
        return [scene for scene in self.scenes if scene.id in self.checks]


def set_up(options: PredictOptions) -> PredictionSetup:
    """The set-up for some options; InputError, before anything is predicted, where it cannot work."""
    mosaics = Path(options.work) / "mosaics" if options.mosaic else None
    scenes = catalog.find_images(options.images, mosaics=mosaics, skip_unreadable=options.skip_unreadable)
    output.check_output(options.output)
    models = [registry.load_model(uri.strip()) for uri in options.model.split(",")]
    for model in models:
        if not model.evaluated_on:
            found = (model, model.threshold / 100, model.temperature)
            log.warning("%s was never evaluated: its threshold is %.2f, its temperature %g", *found)
    settings = _settings(options, models)
    checks, left_out = _check(scenes, settings)
    return PredictionSetup(
        scenes=scenes,
        checks=checks,
        left_out=left_out,
        models=models,
        network=_network(models, options),
        settings=settings,
        output=options.output,
        folder=Path(options.work) / "predict" / _key(scenes, models, settings, options),
    )


def _settings(options: PredictOptions, models: list[Model]) -> MapSettings:
    """How scenes are predicted; InputError where the models of an ensemble do not go together."""
    if len({model.facts.gsd for model in models}) > 1:
        resolutions = ", ".join(f"{model} at {model.facts.gsd} m" for model in models)
        raise InputError(f"the models of an ensemble must work at one resolution: {resolutions} per pixel")
    gsd = models[0].facts.gsd
    own_threshold = round(sum(model.threshold for model in models) / len(models))
    return MapSettings(
        gsd=gsd,
        multiple=max(model.facts.multiple for model in models),
        size=options.size,
        margin=options.margin,
        batch_size=options.batch_size,
        threshold=round(100 * options.threshold) if options.threshold else own_threshold,
        min_area_m2=options.min_area_m2,
        min_hole_m2=options.min_hole_m2,
        chip_gsd=options.chip_gsd or gsd,
        on_own_grid=options.grid == "own",
        aoi=catalog.read_area(options.aoi) if options.aoi else None,
        collar_m2=options.collar_m2,
        stretch=stretching.parse(options.stretch),
        separate=options.separate,
        instances=options.instances,
        outline=options.outline,
        skip_unreadable=options.skip_unreadable,
    )


def _check(scenes: list[Scene], settings: MapSettings) -> tuple[dict[str, SceneCheck], dict[str, str]]:
    """What is known of each scene that can be predicted, and why the others are left out."""
    checks: dict[str, SceneCheck] = {}
    left_out: dict[str, str] = {}
    for scene in progress_bar(scenes, len(scenes), "checking"):
        try:
            if scene.unreadable:
                raise InputError(scene.unreadable)
            check = preflight.check(scene, settings=settings)
        except InputError as error:
            if not settings.skip_unreadable:
                raise
            left_out[scene.id] = redact(f"unreadable: {error}")
            log.warning("scene %s left out: %s", scene.id, left_out[scene.id])
            continue
        if check.inside:
            checks[scene.id] = check
        else:
            left_out[scene.id] = "outside aoi"
    if not checks:
        reasons = "; ".join(f"{scene} is {reason}" for scene, reason in list(left_out.items())[:3])
        raise InputError(f"no scene can be predicted: {reasons}")
    return checks, left_out


def _network(models: list[Model], options: PredictOptions) -> Ensemble:
    """The mean of the calibrated models, with the test-time augmentation that was asked for."""
    folder = Path(options.work).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        members = tuple(
            engine.prepare_member(
                partial(registry.download_keras_file, model, Path(scratch)),
                model.key,
                engine=options.engine,
                multiple=model.facts.multiple,
                temperature=model.temperature,
                folder=folder,
            )
            for model in models
        )
    for model, member in zip(models, members, strict=True):
        log.info("%s runs on %s", model, member.engine)
    return Ensemble(members, options.tta)


def _key(scenes: list[Scene], models: list[Model], settings: MapSettings, options: PredictOptions) -> str:
    """Digest of inputs, models, options and code: equal keys make equal files in one place."""
    area = str(shapely.to_wkb(settings.aoi, hex=True))  # its repr is rounded and cut
    versions = [f"{model} {model.facts.run} {model.temperature}" for model in models]
    images = [f"{scene.id} {scene.bands} {file} {_fingerprint(file)}" for scene in scenes for file in scene.files]
    others = [options.tta, options.engine, hrefs.absolute(options.output)]
    return hrefs.digest(provenance.code_digest(), repr(replace(settings, aoi=None)), area, *others, *versions, *images)


def _fingerprint(href: str) -> str:
    try:
        return sidecars.fingerprint(href)
    except OSError:  # one of those left out
        return "missing"
