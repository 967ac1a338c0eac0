"""Builds the STAC item of a trained model, by the extension for machine learning models (MLM)."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pystac
import shapely
from pystac.extensions.classification import Classification
from pystac.extensions.mlm import (
    AssetGeneralMLMExtension,
    InputStructure,
    MLMExtension,
    ModelInput,
    ModelOutput,
    ResultStructure,
    TaskType,
)
from pystac.extensions.raster import DataType
from shapely.geometry.base import BaseGeometry

from ocmlflow import redaction

MODEL_FILE = "data/model.keras"
"""Path of the Keras file from the folder that holds the item."""
BANDS = ("red", "green", "blue")
TASKS = [TaskType.SEMANTIC_SEGMENTATION]


def build_model_item(
    name: str,
    *,
    architecture: str,
    channels: Sequence[str],
    keras_version: str,
    outline: BaseGeometry | None,
    catalogs: Sequence[str],
    **facts: Any,
) -> dict[str, Any]:
    """A STAC item, as a JSON dict, of a model that maps buildings, to lie in the folder of its files.

    The first of the `channels` that it gives for each pixel is the probability of building.
    `outline`, in degrees (lon, lat), is the ground that it was trained on, if known, from the scenes of `catalogs`.
    `facts` are further properties. Specification: https://github.com/stac-extensions/mlm, version 1.4.
    """
    geometry = shapely.geometry.mapping(outline) if outline else None
    item = pystac.Item(name, geometry, list(outline.bounds) if outline else None, datetime.now(UTC), facts)
    asset = pystac.Asset(f"./{MODEL_FILE}", media_type="application/vnd.keras", roles=["mlm:model"])
    asset.extra_fields["bands"] = [{"name": band, "eo:common_name": band} for band in BANDS]
    item.add_asset("model", asset)
    MLMExtension.ext(item, add_if_missing=True).apply(
        name=name,
        architecture=architecture,
        tasks=TASKS,
        input=[_input()],
        output=[_output(channels)],
        framework="Keras",
        framework_version=keras_version,
    )
    AssetGeneralMLMExtension.ext(asset).artifact_type = "keras.Model.save"
    for catalog in catalogs:
        item.add_link(pystac.Link(pystac.RelType.DERIVED_FROM, redaction.redact(catalog)))
    return item.to_dict(include_self_link=False, transform_hrefs=False)


def _input() -> ModelInput:
    shape = InputStructure.create([-1, -1, -1, len(BANDS)], ["batch", "height", "width", "bands"], DataType.FLOAT32)
    about = "Bytes of 0 to 255, or fractions of 0 to 1, of images of any size."
    return ModelInput.create("image", list(BANDS), shape, description=about)


def _output(channels: Sequence[str]) -> ModelOutput:
    order = ["batch", "height", "width", "channel"]
    shape = ResultStructure.create([-1, -1, -1, len(channels)], order, DataType.FLOAT32)
    building = Classification.create(value=1, name="building", description="Roofs of buildings.")
    about = f"Channels {', '.join(channels)}: the first is the probability of building, before the temperature."
    return ModelOutput.create("-".join(channels), TASKS, shape, description=about, classes=[building])
