"""Renders the evaluation report: figures of scores, and a self-contained HTML page."""

import base64
import io
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ocmlflow import pictures
from ocmlflow.chips import figures
from ocmlflow.evaluation.scorecard import Scorecard

matplotlib.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
IOU = "#2a6f4e"
"""Colour of the curves of the main score."""
PRECISION = "#c0392b"
RECALL = "#2d6cdf"


def sweep_figure(card: Scorecard) -> Figure:
    """Scores of pixels and of buildings over the threshold, with the chosen threshold."""
    figure = Figure(figsize=(8.6, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _curves(left, card.pixels.sweep(), "iou", card.threshold)
    _curves(right, card.buildings.sweep, "f1", card.threshold)
    left.set_title("pixels", fontsize=9)
    right.set_title("connected components of masks, matched at IoU 0.5", fontsize=9)
    return figure


def reliability_figure(card: Scorecard) -> Figure:
    """Reliability curves before and after calibration, with the diagonal of perfect calibration."""
    figure = Figure(figsize=(3.8, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#aaa", linewidth=0.8)
    for name, temperature, colour in (("as it is", 1.0, PRECISION), ("calibrated", card.pixels.temperature, IOU)):
        curve = card.reliability(temperature)
        axes.plot(curve.probability, curve.building_share, marker="o", markersize=3, color=colour, label=name)
    axes.set(xlabel="probability", ylabel="share that is building", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(frameon=False, loc="upper left")
    return figure


def error_map(card: Scorecard) -> Figure:
    """Map of the IoU of each spatial block; grey where there is no labelled or predicted building."""
    counts = card.pixels.block_counts(card.threshold).astype(float)
    with np.errstate(invalid="ignore"):
        ious = counts[:, 0] / counts.sum(axis=1)
    return figures.block_map(card.pixels.rows, ious[card.pixels.rows.block], low=0, high=1, colours="RdYlGn")


def page(template: str, **content: Any) -> str:
    """Render a template of the folder `templates` to HTML; `content` holds its variables."""
    environment = Environment(loader=PackageLoader("ocmlflow.evaluation"), undefined=StrictUndefined, autoescape=True)
    environment.filters |= {"inline": _inline, "score": _score, "number": _number, "metres": _metres, "signed": _signed}
    colours = {"hit": pictures.HIT_COLOUR, "false": pictures.FALSE_COLOUR, "missed": pictures.MISSED_COLOUR}
    return environment.get_template(template).render(colours=colours, **content)


def _curves(axes: Axes, sweep: Any, main: str, threshold: int) -> None:
    for name, colour in ((main, IOU), ("precision", PRECISION), ("recall", RECALL)):
        axes.plot(sweep.threshold / 100, sweep[name], label={"iou": "IoU", "f1": "F1"}.get(name, name), color=colour)
    axes.axvline(threshold / 100, color="#555", linestyle=":", label=f"chosen: {threshold / 100:.2f}")
    axes.set(xlabel="threshold", ylim=(0, 1), xlim=(0, 1))
    axes.legend(frameon=False, loc="lower center", ncols=2)


def _is_none(value: float | None) -> bool:
    return value is None or value != value


def _score(value: float | None) -> str:
    return "–" if _is_none(value) else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "–" if _is_none(value) else f"{value:+.3f}"


def _number(value: float | None) -> str:
    return "–" if _is_none(value) else f"{value:,.0f}"


def _metres(value: float | None) -> str:
    return "–" if _is_none(value) else f"{value:.2f} m"


def _inline(picture: np.ndarray | Figure) -> str:
    """A picture as a `data:` URL, so that the page needs no other file."""
    stream = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(stream, format="png", dpi=130)
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    Image.fromarray(picture).save(stream, format="jpeg", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
