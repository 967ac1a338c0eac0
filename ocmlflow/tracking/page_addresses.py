"""Addresses of runs on MLflow's web page."""

import json
from urllib.parse import quote

import mlflow
from mlflow.entities import Run

from ocmlflow.redaction import redact

_VIEW = "workflowType=machine_learning"
"""MLflow's page shows nothing of these runs in its other view."""


def run_page(run: Run) -> str:
    """Address of the page of a run; empty where the tracking server has no pages."""
    server = _server()
    return server and f"{server}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?{_VIEW}"


def comparison_page(*runs: Run) -> str:
    """Address of the page that compares runs; empty where the tracking server has no pages."""
    server = _server()  # the page finds `runs` only where it comes first in the query
    ids, experiments = [run.info.run_id for run in runs], sorted({run.info.experiment_id for run in runs})
    return server and f"{server}/#/compare-runs?runs={_as_json(ids)}&experiments={_as_json(experiments)}&{_VIEW}"


def _as_json(ids: list[str]) -> str:
    return quote(json.dumps(ids, separators=(",", ":")))


def _server() -> str:
    """Address of the tracking server's web page; empty where there is none."""
    address = redact(mlflow.get_tracking_uri()).rstrip("/")
    return address if address.startswith(("http://", "https://")) else ""
