"""Logs tables, pages, pictures and files to the active run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ocmlflow.tracking import runs


def log_table(table: pd.DataFrame, name: str) -> None:
    """Log a table as the JSON file `name`, which MLflow shows as a table; missing values are null there."""
    mlflow.log_table(table.astype(object).where(table.notna(), None), name)


def log_json(content: Mapping[str, Any], name: str) -> None:
    """Log a JSON object as the file `name`."""
    mlflow.log_dict(dict(content), name)


def log_page(html: str, name: str) -> None:
    """Log an HTML page as the file `name`."""
    mlflow.log_text(html, name)


def log_figure(figure: Figure, name: str) -> None:
    """Log a figure of matplotlib as the picture `name`."""
    mlflow.log_figure(figure, name)


def log_picture(image: np.ndarray, name: str) -> None:
    """Log an image, (height, width, 3) uint8, as the picture `name`."""
    mlflow.log_image(image, name)


def log_file(file: Path, folder: str) -> None:
    """Log a local file to a folder of the run's artifacts."""
    mlflow.log_artifact(str(file), folder)


def log_folder(source: Path, folder: str) -> None:
    """Log the files of a local folder to a folder of the run's artifacts."""
    mlflow.log_artifacts(str(source), folder)


def log_scores(scores: Mapping[str, float | None]) -> None:
    """Log metrics, without those that are no number; their names become such as MLflow accepts."""
    numbers = {name: value for name, value in scores.items() if value is not None and value == value}
    mlflow.log_metrics({runs.metric_name(name): float(value) for name, value in numbers.items()})


def read_json(run_id: str, name: str) -> dict[str, Any]:
    """The content of a JSON artifact of a run."""
    return dict(mlflow.artifacts.load_dict(f"runs:/{run_id}/{name}"))
