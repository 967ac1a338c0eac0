"""Writes the card of a model in Markdown: what it is for, how good it is, what it was trained on, how it is used."""

import math
from collections.abc import Sequence
from typing import Any

import shapely
from geopandas import GeoDataFrame

from ocmlflow.evaluation import metrics
from ocmlflow.evaluation.scorecard import Scorecard
from ocmlflow.scenes import model_item
from ocmlflow.tracking import chip_artifacts
from ocmlflow.tracking.model_facts import ModelFacts

TASK = "Probability of building for each pixel of RGB images from drones or aircraft."
MAX_PLACES = 20
"""Places that the table of scores shows; the report has all."""


def card(facts: ModelFacts, trained_on: GeoDataFrame, address: str, result: Sequence[str]) -> str:
    """The card of a model at an address of MLflow, trained on these chips; `result` says how good it is."""
    return "\n\n".join([result[0], TASK, *result[1:], _training(facts, trained_on), _use(facts, address)])


def item(facts: ModelFacts, network: Any, trained_on: GeoDataFrame, name: str, **more: Any) -> dict[str, Any]:
    """The STAC item of a model, of a keras.Model, trained on these chips; `more` are properties such as its scores."""
    import keras

    grounds = trained_on.geometry.groupby(trained_on.scene).agg(lambda outlines: outlines.union_all().convex_hull)
    licences = chip_artifacts.licences({split.chips for split in facts.trained_on})
    more |= {"gsd": facts.gsd, "license": licences[0] if len(licences) == 1 else "other"}
    return model_item.build_model_item(
        name,
        architecture=f"{facts.architecture} on {facts.encoder}",
        channels=network.output_names[0].split("-"),
        keras_version=keras.__version__,
        outline=shapely.unary_union(grounds.to_list()) if len(grounds) else None,
        catalogs=sorted(set(trained_on.catalog)),
        description=TASK,
        **more,
    )


def scores(scored: Scorecard, verdict: str) -> list[str]:
    """What an evaluation found, in paragraphs: score and verdict, threshold, and a table by place with intervals."""
    low, high = metrics.bootstrap_interval(scored.bootstrap()["iou"], blocks=scored.blocks)
    pooled = {"iou": scored.counts.iou, "iou_low": low, "iou_high": high, "object_f1": scored.objects["all"].f1}
    rows = [{"place": "all", "chips": len(scored.pixels.rows), **pooled}, *scored.table("place").to_dict("records")]
    lines = ["| place | IoU | 95 % interval | F1 of buildings | chips |", "| --- | --- | --- | --- | --- |"]
    return [
        f"IoU {scored.counts.iou:.3f}. {verdict}",
        f"**Scores** on validation ground, at threshold {scored.threshold / 100:.2f} of the probability with "
        f"temperature {scored.pixels.temperature:.3f}; both were chosen there.",
        "\n".join([*lines, *map(_score_line, rows[: MAX_PLACES + 1])]),
    ]


def _score_line(row: dict[str, Any]) -> str:
    interval = "of one block: none" if math.isnan(row["iou_low"]) else f"{row['iou_low']:.3f} to {row['iou_high']:.3f}"
    return f"| {row['place'] or 'none'} | {row['iou']:.3f} | {interval} | {row['object_f1']:.3f} | {row['chips']} |"


def _training(facts: ModelFacts, trained_on: GeoDataFrame) -> str:
    chips = trained_on.drop_duplicates(["catalog", "id"])  # earlier trainings may have had the same
    places = ", ".join(f"{place or 'none'} ({count})" for place, count in chips.groupby("place").size().items())
    catalogues = ", ".join(f"`{catalogue}`" for catalogue in sorted(set(trained_on.catalog)))
    licences = chip_artifacts.licences({split.chips for split in facts.trained_on}) or ["not stated"]
    network = f"`{facts.architecture}` on `{facts.encoder}`" + (f", going on from {facts.init}" if facts.init else "")
    return (
        f"**Training** by run `{facts.run}`: {network}, at {facts.gsd:g} m per pixel. Chips of {places} from "
        f"{catalogues}; licences: {', '.join(licences)}. Held out: `{facts.validation}`."
    )


def _use(facts: ModelFacts, address: str) -> str:
    return (
        f"**Use**: `ocmlflow predict --model {address} --images SCENES --output FOLDER` for scenes. "
        f'`mlflow.keras.load_model("{address}")` takes RGB (batch, height, width, 3), bytes of 0 to 255 or fractions, '
        f"at {facts.gsd:g} m per pixel, and gives, in its first channel, probabilities before the temperature.\n\n"
        "**Limits**: other ground, roofs, seasons, cameras and resolutions than those above may score lower. Nothing "
        "but RGB was tried."
    )
