"""Logs tables, pages, pictures and files to the active run."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mlflow.data.dataset import Dataset as Dataset  # for pipeline, which does not import mlflow
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import LoggedModelInput
from mlflow.exceptions import MlflowException

from ocmlflow.tracking import limits, runs


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


def log_scores(
    scores: Mapping[str, float | None], *, model_id: str | None = None, dataset: Dataset | None = None
) -> None:
    """Log metrics, without those that are no number; their names become such as MLflow accepts.

    With `model_id`, they are scores of that logged model too, on that dataset, if this server has the model.
    """
    numbers = {name: value for name, value in scores.items() if value is not None and value == value}
    named = {limits.metric_name(name): float(value) for name, value in numbers.items()}
    mlflow.log_metrics(named, model_id=model_id if model_id and _is_logged(model_id) else None, dataset=dataset)


def log_input(
    table: pd.DataFrame, name: str, *, source: str, digest: str, context: str, models: Sequence[str] = ()
) -> Dataset:
    """Log a table as input data of the active run, and the logged models of these ids that this server has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # integer columns, which have no gaps; the kind of source
        dataset = from_pandas(
            table,
            source=limits.clip(source, limits.DATASET_SOURCE, "the source of a dataset"),
            name=limits.clip(name, limits.DATASET_NAME, "the name of a dataset"),
            digest=digest,
        )
        mlflow.log_input(dataset, context=context)
    if known := [LoggedModelInput(model_id) for model_id in models if _is_logged(model_id)]:
        mlflow.MlflowClient().log_inputs(runs.active().info.run_id, models=known)
    return dataset


def _is_logged(model_id: str) -> bool:
    """Whether this server has that logged model: its files may come from another one."""
    try:
        mlflow.MlflowClient().get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def read_json(run_id: str, name: str) -> dict[str, Any]:
    """The content of a JSON artifact of a run."""
    return dict(mlflow.artifacts.load_dict(f"runs:/{run_id}/{name}"))
