"""Runs: begun, told about, and ended. MLflow is the only memory; what is told to it goes through an outbox."""

from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from ocmlflow.errors import InputError
from ocmlflow.tracking import outbox_sender, runs
from ocmlflow.tracking.outbox_sender import AWAY


def interrupted(verb: str, run_id: str) -> Run:
    """The run of that id, which did not come to its end; InputError for any other.

    What it left to be sent is sent first.
    """
    if (outbox_sender.unsent_folder() / run_id).exists():
        outbox_sender.send(outbox_sender.unsent_folder() / run_id)
    try:
        found = mlflow.get_run(run_id)
    except AWAY as error:
        raise InputError(
            f"resume={run_id} names no run of {mlflow.get_tracking_uri()}, or that is away: "
            f"{outbox_sender.error_text(error)}"
        ) from error
    if found.data.tags.get(runs.VERB) != verb or found.info.status == "FINISHED":
        raise InputError(
            f"resume={run_id}: a `{verb}` run that was interrupted is needed, that one is a {found.info.status} "
            f"`{found.data.tags.get(runs.VERB, 'foreign')}` run"
        )
    return found


def state_of(run: Run, folder: Path) -> Path:
    """A copy in `folder` of the state that an interrupted training left; InputError where it left none."""
    address = f"runs:/{run.info.run_id}/{runs.STATE}"
    try:
        copy = mlflow.artifacts.download_artifacts(address, dst_path=str(folder))
    except (MlflowException, OSError) as error:
        raise no_state(run) from error
    (found,) = Path(copy).iterdir()
    return found


def no_state(run: Run) -> InputError:
    """What to raise where an interrupted training cannot go on."""
    return InputError(f"run {run.info.run_id} left no state: it ended before its first epoch was whole; start it anew")


def newest(verb: str, *, key: str | None = None) -> Run | None:
    """The run of a verb in the active run's experiment that finished last, with this key if one is given."""
    wanted = f"attributes.status = 'FINISHED' and tags.`{runs.VERB}` = '{verb}'"
    if key:
        wanted += f" and tags.`{runs.KEY}` = '{key}'"
    experiment = runs.active().info.experiment_id
    found = mlflow.MlflowClient().search_runs([experiment], wanted, order_by=["attributes.end_time DESC"])
    return found[0] if found else None


def earlier(verb: str, *, key: str, place: str) -> Run | None:
    """The run of a verb and key in the current experiment that ended last, whichever way.

    One that still seems to run counts if it was at work in the same place: this process has that place to itself.
    InputError where the server does not answer.
    """
    wanted = f"tags.`{runs.VERB}` = '{verb}' and tags.`{runs.KEY}` = '{key}'"
    try:
        found: list[Run] = mlflow.search_runs(  # of the current experiment, as none is named
            filter_string=wanted, order_by=["attributes.end_time DESC"], output_format="list"
        )
    except AWAY as error:
        raise runs.no_answer(error) from error
    ended = ("FINISHED", "FAILED", "KILLED")
    return next((run for run in found if run.info.status in ended or run.data.tags.get(runs.PLACE) == place), None)


def finish_again(run: Run) -> None:
    """Make a finished run the one that finished last."""
    mlflow.MlflowClient().set_terminated(run.info.run_id, "FINISHED", runs.now())


def minutes(run_id: str) -> float:
    """How long a finished run took."""
    info = mlflow.get_run(run_id).info
    return float(info.end_time - info.start_time) / 60_000
