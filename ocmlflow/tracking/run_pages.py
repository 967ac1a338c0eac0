"""Names runs, and says where their pages and pictures are on MLflow's web page."""

import logging

import mlflow

from ocmlflow.tracking import page_addresses, runs
from ocmlflow.tracking.outbox_sender import SERVER_ERRORS

log = logging.getLogger(__name__)

TITLE = "ocmlflow.title"
"""Tag of a child run: what the step that made it called it."""


def name_run(verb: str, detail: str, *, score: str = "") -> None:
    """Name the active run after its score, its verb and a detail, unless the user gave it a name.

    The score comes first, because MLflow's table shows the beginning of a name. A child run keeps its title.
    """
    active = runs.active()
    name = active.info.run_name or ""
    if name == verb or runs.GENERATED_NAME.fullmatch(name):
        name = f"{verb} {detail}"
    elif TITLE not in active.data.tags:
        return
    runs.set_tags({"mlflow.runName": f"{score} {name}".strip()})


def score(iou: float | None) -> str:
    """A score as names of runs begin with it; None and NaN, of no building at all, are `no score`."""
    return "no score" if iou is None or iou != iou else f"{iou:.3f}"


def picture_markdown(file: str) -> str:
    """Markdown that shows a picture among the artifacts of the active run, for its description."""
    return f"![{file}](get-artifact?path={file}&run_uuid={runs.active().info.run_id})"


def comparison(other_id: str) -> str:
    """Address of the page that compares the active run with another one; empty where this server has none."""
    try:
        return page_addresses.comparison_page(mlflow.get_run(other_id), runs.active())
    except SERVER_ERRORS as error:
        log.warning("run %s cannot be compared: %s", other_id, error)
        return ""
