"""Scores and pictures, to one HTML page that needs nothing else."""

import base64
import io
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

matplotlib.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def sweep_figure(sweep: Any, threshold: int) -> Figure:
    """Curves of IoU, precision and recall over the threshold, and the one chosen."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, colour in (("iou", "#2a6f4e"), ("precision", "#c0392b"), ("recall", "#2d6cdf")):
        axes.plot(sweep.threshold / 100, sweep[name], label=name, color=colour)
    axes.axvline(threshold / 100, color="#555", linestyle=":", label=f"chosen: {threshold / 100:.2f}")
    axes.set(xlabel="threshold", ylim=(0, 1), xlim=(0, 1))
    axes.legend(frameon=False, ncols=4, loc="lower center")
    return figure


def page(**content: Any) -> str:
    """The evaluation report as HTML; `content` holds what the template `report.html` names."""
    environment = Environment(loader=PackageLoader("ocmlflow"), undefined=StrictUndefined, autoescape=True)
    environment.filters["inline"] = _inline
    environment.filters["score"] = lambda value: "–" if value != value else f"{value:.3f}"
    return environment.get_template("report.html").render(**content)


def _inline(picture: np.ndarray | Figure) -> str:
    """A picture as a `data:` address, so that the page opens anywhere."""
    stream = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(stream, format="png", dpi=130)
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    Image.fromarray(picture).save(stream, format="jpeg", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
