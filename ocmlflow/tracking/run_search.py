"""Finds earlier runs, to reuse their results or to go on with them."""

from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from ocmlflow.errors import InputError
from ocmlflow.tracking import database_wait, outbox_sender, runs
from ocmlflow.tracking.outbox_sender import SERVER_ERRORS


def get_interrupted(verb: str, run_id: str) -> Run:
    """The run of that id, if it was interrupted; InputError for any other.

    Entries that it left unsent are sent first.
    """
    if (outbox_sender.unsent_folder() / run_id).exists():
        outbox_sender.send_folder(outbox_sender.unsent_folder() / run_id)
    try:
        database_wait.open_stores()
        run = mlflow.get_run(run_id)
    except SERVER_ERRORS as error:
        raise InputError(
            f"resume={run_id} names no run of {mlflow.get_tracking_uri()}, or that does not answer: "
            f"{outbox_sender.error_text(error)}"
        ) from error
    if run.data.tags.get(runs.VERB) != verb or run.info.status == "FINISHED":
        raise InputError(
            f"resume={run_id}: a `{verb}` run that was interrupted is needed, that one is a {run.info.status} "
            f"`{run.data.tags.get(runs.VERB, 'foreign')}` run"
        )
    return run


def download_state(run: Run, folder: Path) -> Path:
    """Download the state of an interrupted training to `folder`; InputError if it left none."""
    address = f"runs:/{run.info.run_id}/{runs.STATE}"
    try:
        copy = mlflow.artifacts.download_artifacts(address, dst_path=str(folder))
    except (MlflowException, OSError) as error:
        raise missing_state_error(run) from error
    (file,) = Path(copy).iterdir()
    return file


def missing_state_error(run: Run) -> InputError:
    """The error to raise where an interrupted training cannot be resumed."""
    return InputError(f"run {run.info.run_id} left no state: it ended within its first epoch; start a new one")


def newest_finished(verb: str, *, key: str | None = None) -> Run | None:
    """The finished run of a verb that ended last in the experiment of the active run; with that key, if given."""
    query = f"attributes.status = 'FINISHED' and tags.`{runs.VERB}` = '{verb}'"
    if key:
        query += f" and tags.`{runs.KEY}` = '{key}'"
    experiment = runs.active().info.experiment_id
    finished = mlflow.MlflowClient().search_runs([experiment], query, order_by=["attributes.end_time DESC"])
    return finished[0] if finished else None


def last_attempt(verb: str, *, key: str, place: str) -> Run | None:
    """The run of a verb and key that ended last, successful or not.

    It is searched in the experiment of the open run, if there is one, else in the current one. A run that was killed
    may still be listed as running. It counts if it worked in `place`, which this process has locked. InputError where
    the server does not answer.
    """
    query = f"tags.`{runs.VERB}` = '{verb}' and tags.`{runs.KEY}` = '{key}'"
    outer = mlflow.active_run()
    try:
        database_wait.open_stores()
        attempts: list[Run] = mlflow.search_runs(
            experiment_ids=[outer.info.experiment_id] if outer else None,  # None stands for the current one
            filter_string=query,
            order_by=["attributes.end_time DESC"],
            output_format="list",
        )
    except SERVER_ERRORS as error:
        raise runs.unreachable_error(error) from error
    ended = ("FINISHED", "FAILED", "KILLED")
    return next((run for run in attempts if run.info.status in ended or run.data.tags.get(runs.PLACE) == place), None)


def renew_end_time(run: Run) -> None:
    """Set the end of a finished run to now: searches for the newest run then find it."""
    mlflow.MlflowClient().set_terminated(run.info.run_id, "FINISHED", runs.now())


def duration_minutes(run_id: str) -> float:
    """Duration of a finished run, in minutes."""
    info = mlflow.get_run(run_id).info
    return float(info.end_time - info.start_time) / 60_000
