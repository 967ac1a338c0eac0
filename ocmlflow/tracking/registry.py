"""Loads models from MLflow, and registers, tags and promotes their versions."""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.utils.models import get_model_name_and_version

from ocmlflow.errors import InputError
from ocmlflow.storage import hrefs
from ocmlflow.tracking import limits, model_evaluation, model_facts
from ocmlflow.tracking.model_evaluation import Evaluation
from ocmlflow.tracking.model_facts import ModelFacts
from ocmlflow.training import keras_file

log = logging.getLogger(__name__)

CHAMPION = "champion"
TASK = "segmentation of buildings"
"""Tag `task` of a registered model."""
DESCRIPTION = (
    "Maps buildings in RGB images from drones or aircraft. The alias `champion` is the best version, `candidate` the "
    "newest one; each version has a card."
)
"""Of a registered model, until it has a champion."""


@dataclass(frozen=True)
class Model:
    """A registered version, or any other model that `train` logged."""

    uri: str
    """Address that it was loaded by."""
    pinned: str
    """Address of this very version, which does not change when an alias moves."""
    key: str
    """MLflow's id of the logged model. Equal ids mean equal networks, on whatever server."""
    facts: ModelFacts
    """What training recorded with it."""
    name: str
    """Registered name; empty for a model that is not registered."""
    version: str
    """Number of the registered version; empty for a model that is not registered."""
    threshold: int
    """Probability from which a pixel is building, in percent. Chosen by the last evaluation; 50 before one."""
    temperature: float
    """Temperature that calibrates its probabilities. Measured by the last evaluation; 1 before one."""
    evaluated_on: str
    """Run id of the chips that the last evaluation used; empty before one."""

    @cached_property
    def keras(self) -> Any:
        """keras.Model from RGB (batch, height, width, 3) uint8 to (batch, height, width, channels) float32, 0..1.

        The channels are `decoders.CHANNELS`, in models of earlier versions the first alone. Height and width must be
        multiples of `facts.multiple`. InputError where it cannot be loaded, or could run code.
        """
        from ocmlflow.training import keras_file, networks  # late: TensorFlow takes seconds and half a gigabyte

        try:
            loaded = mlflow.keras.load_model(self.pinned, load_model_kwargs={"safe_mode": True, "compile": False})
            return networks.inner_network(loaded)
        except (MlflowException, OSError) as error:
            raise InputError(f"cannot load model {self.uri}. MLflow says: {error}") from error
        except MemoryError:
            raise
        except Exception as error:  # Keras raises of many types for a damaged file
            with tempfile.TemporaryDirectory() as folder:
                file = download_keras_file(self, Path(folder))
                raise keras_file.load_error(file, f"model {self.uri}", error) from error

    def __str__(self) -> str:
        return f"{self.name} version {self.version}" if self.name else self.uri


def load_model(uri: str) -> Model:
    """The model at an address of MLflow: `models:/name@alias`, `models:/name/version`, `runs:/…` and others.

    Its network is not loaded yet. InputError where there is none, and where it is not one that `train` logged.
    """
    try:
        name, version = _registered(uri)
        pinned = f"models:/{name}/{version}" if name else _as_path(uri)
        # Not get_model_info: it needs the logged model, which stays behind when files move to another server.
        info = _read_mlmodel(pinned, uri)
        if info.flavors.get("keras", {}).get("save_exported_model", True):
            raise InputError(
                f"model {uri} is no Keras file but {', '.join(sorted(info.flavors))}: that could run any code"
            )
        facts = model_facts.from_metadata(info.metadata or {}, model=uri)
        tags = mlflow.MlflowClient().get_model_version(name, version).tags if name else {}
        found = model_evaluation.load(pinned, tags)
        return Model(
            uri,
            pinned,
            str(info.model_uuid),
            facts,
            name,
            version,
            threshold=found.threshold,
            temperature=found.temperature,
            evaluated_on=found.evaluated_on,
        )
    except (MlflowException, OSError) as error:
        raise InputError(f"no model {uri}{_hint()}. MLflow says: {error}") from error


def download_keras_file(model: Model, folder: Path) -> Path:
    """Download the Keras file of a model to `folder`; InputError where that fails, and where the file is damaged."""
    try:
        # Not by an address of the file: MLflow takes models:/ID/data for a stage of a registered model.
        file = Path(get_artifact_repository(model.pinned).download_artifacts("data/model.keras", str(folder)))
    except (MlflowException, OSError) as error:
        raise InputError(f"cannot fetch model {model.uri}. MLflow says: {error}") from error
    keras_file.check(file, f"model {model.uri}")
    return file


def load_champion(name: str) -> Model | None:
    """The version of a registered model with the alias champion, if there is one."""
    if CHAMPION not in mlflow.MlflowClient().get_registered_model(name).aliases:
        return None
    return load_model(f"models:/{name}@{CHAMPION}")


def find_champion(name: str) -> Model | None:
    """The champion of a registered model; None where there is none, or the server does not say."""
    try:
        return load_champion(name)
    except (InputError, MlflowException, OSError) as error:
        log.warning("the champion of %s cannot be read: %s", name, error)
        return None


def promote(model: Model, description: str) -> None:
    """Give a registered version the alias champion, and the registered model that description."""
    client = mlflow.MlflowClient()
    client.set_registered_model_alias(model.name, CHAMPION, model.version)
    short = limits.clip(f"Champion: version {model.version}. {description}", limits.VERSION_DESCRIPTION, "the card")
    with _errors_as_warnings(f"the description of {model.name}"):
        client.update_registered_model(model.name, short)


@contextmanager
def _errors_as_warnings(what: str) -> Iterator[None]:
    """Go on without a text for people that the server does not take."""
    try:
        yield
    except (MlflowException, OSError) as error:
        log.warning("%s was not set: %s", what, error)


def record_evaluation(
    model: Model,
    evaluation: Evaluation,
    tags: Mapping[str, Any],
    description: str,
    item: Mapping[str, Any] | None = None,
) -> None:
    """Store an evaluation with a model: in its files, and as tags and description where it is a registered version.

    Its STAC `item` replaces the one among its files.

    InputError where a version cannot be changed. Where only the files cannot, that is logged.
    """
    try:
        model_evaluation.write(evaluation, item, model.key, model.pinned)
    except (MlflowException, OSError) as error:
        log.warning(
            "threshold %.2f and temperature %.4f could not be stored in the files of %s, copies will lack them: %s",
            evaluation.threshold / 100,
            evaluation.temperature,
            model,
            error,
        )
    with suppress(MlflowException):  # this server has no logged model of that id
        mlflow.MlflowClient().set_logged_model_tags(model.key, {"mlflow.note.content": description})
    if model.name:
        try:
            _describe_version(model, {**model_evaluation.to_tags(evaluation), **tags}, description)
        except (MlflowException, OSError) as error:
            raise InputError(f"threshold and score could not be stored with {model}. MLflow says: {error}") from error


def _describe_version(model: Model, tags: Mapping[str, Any], description: str) -> None:
    client = mlflow.MlflowClient()
    for tag, value in tags.items():
        client.set_model_version_tag(model.name, model.version, tag, str(value))
    short = limits.clip(description, limits.VERSION_DESCRIPTION, "the version's description")
    with _errors_as_warnings(f"the description of {model}"):
        client.update_model_version(model.name, model.version, short)


def register(name: str) -> None:
    """Create the registered model `name` unless it exists, and check that this user may add versions to it.

    Called before a training, as a refusal after it would come too late. InputError where the server refuses the name or
    the user.
    """
    client = mlflow.MlflowClient()
    try:
        client.create_registered_model(name, description=DESCRIPTION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise InputError(f"cannot register a model as {name}: {error}") from error
    try:
        client.set_registered_model_tag(name, "task", TASK)  # needs the same right as a new version
    except MlflowException as error:
        if error.error_code == "PERMISSION_DENIED":
            raise InputError(
                f"cannot register a version of {name}: {mlflow.get_tracking_uri()} does not let this user change that "
                f"model ({error}). Ask its owner for the right to edit it, or give another name with name="
            ) from error
        log.warning("the tag of %s was not set: %s", name, error)


def find_version(run_id: str, name: str) -> str:
    """The version of a registered model that a training run made; InputError if there is none."""
    versions = mlflow.MlflowClient().search_model_versions(f"name = '{name}'")  # Unity Catalog filters by name alone
    for version in versions:
        if version.run_id == run_id:
            return str(version.version)
    raise InputError(f"run {run_id} has registered no version of {name}; `ocmlflow send` sends what is unsent")


def _read_mlmodel(pinned: str, uri: str) -> mlflow.models.Model:
    """What the file MLmodel of a model says; InputError where it is damaged."""
    try:
        info = mlflow.models.Model.load(pinned)
        if all(isinstance(value, dict) for value in (info.metadata or {}, *info.flavors.values())):
            return info
        reason = "its flavors or its metadata are no mapping"
    except (MlflowException, OSError, MemoryError):
        raise
    except Exception as error:  # of YAML, or of MLflow where the content is of another type
        raise InputError(_damaged_mlmodel(uri, " ".join(str(error).split()))) from error
    raise InputError(_damaged_mlmodel(uri, reason))


def _damaged_mlmodel(uri: str, reason: str) -> str:
    return f"the file MLmodel of model {uri} is damaged ({reason}): restore it from a copy, or train the model again"


def _registered(uri: str) -> tuple[str, str]:
    """Name and version of a `models:/` address of a registered version; empty for another address."""
    if not uri.startswith("models:/"):
        return "", ""
    name, *version = get_model_name_and_version(mlflow.MlflowClient(), uri)
    return (name, str(version[0])) if version else ("", "")


def _as_path(uri: str) -> str:
    """The address, or the path of a file:// address, which MLflow reads as a path in some of its functions only."""
    return str(hrefs.local_path(uri)) if uri.startswith("file:") else uri


def _hint() -> str:
    """What the registry holds instead, to end an error message with."""
    try:
        known = {model.name: sorted(model.aliases) for model in mlflow.MlflowClient().search_registered_models()}
    except (MlflowException, OSError):
        return f": {mlflow.get_tracking_uri()} does not answer"
    if not known:
        return f": no model is registered at {mlflow.get_tracking_uri()}; `mlflow run . -e train` registers one"
    listed = "; ".join(
        f"{name} with {', '.join('@' + alias for alias in aliases) or 'no alias'}" for name, aliases in known.items()
    )
    return f". Registered are {listed}, and their versions by number, as models:/NAME/1"
