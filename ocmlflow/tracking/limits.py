"""Cuts texts to what a tracking server takes: a name that is too long must not fail a run."""

import logging
import re
from collections.abc import Mapping

log = logging.getLogger(__name__)

RUN_NAME = 250
"""Longest name of a run: SQLite takes more, PostgreSQL and MySQL do not."""
TAG = 8000
"""Longest tag of a run, its description among them."""
DATASET_NAME = 500
"""Longest name of a dataset."""
DATASET_SOURCE = 20_000
"""Longest source of a dataset: MLflow takes 65,535 bytes of it as JSON."""
MODEL_TITLE = 200
"""Longest name of a logged model: MLflow takes 500, its page shows fewer."""
VERSION_DESCRIPTION = 5000
"""Longest description of a registered version."""
METRIC_NAME = 250
"""Longest name of a metric."""


def clip(text: str, length: int, what: str) -> str:
    """The text, or, where it is longer, its beginning and `…`; that is logged, with `what` the text is."""
    if len(text) <= length:
        return text
    log.warning("%s is cut to the %d characters that a server takes: %s", what, length, text)
    return f"{text[: length - 1]}…"


def tags(values: Mapping[str, str]) -> dict[str, str]:
    """Tags of a run, cut."""
    return {
        name: clip(value, RUN_NAME if name == "mlflow.runName" else TAG, f"the tag {name}")
        for name, value in values.items()
    }


def metric_name(name: str) -> str:
    """The name, cut, with an underscore for each character that MLflow does not allow in names of metrics.

    A part between slashes that is empty or has dots alone is left out: MLflow reads names as paths.
    """
    parts = [part for part in re.sub(r"[^\w\-./ ]", "_", name).split("/") if part.strip(".")]
    return "/".join(parts)[:METRIC_NAME]


def model_title(*parts: str) -> str:
    """Name of a logged model from its parts, of characters that MLflow allows there; `model` if there is none."""
    title = re.sub(r"[^\w\-]+", "_", "-".join(filter(None, parts)))
    return title[:MODEL_TITLE] or "model"
