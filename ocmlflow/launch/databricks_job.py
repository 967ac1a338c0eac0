"""Checks the configuration of a Databricks cluster, and follows the job run of a step to its end."""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from databricks.sdk import WorkspaceClient
from databricks.sdk.errors.base import DatabricksError
from databricks.sdk.service.jobs import RunLifeCycleState, RunResultState

from ocmlflow.errors import InputError

log = logging.getLogger(__name__)

POLL_S = 2.0
# Names of variables and Spark properties. A provider is the name of a class, and TOKENS are counted.
SECRET = re.compile(
    r"SECRET|PASSWORD|TOKEN(?!S\b|\.?PROVIDER)|(ACCESS|ACCOUNT|PRIVATE)[_.]KEY(?!PROVIDER)|CREDENTIALS?(?!S?\.PROVIDER)",
    re.IGNORECASE,
)
LAST_WITH_PROJECTS = 12
"""Last version of the Databricks runtime whose job clusters run ordinary MLflow projects."""
ENDED = (RunLifeCycleState.TERMINATED, RunLifeCycleState.SKIPPED, RunLifeCycleState.INTERNAL_ERROR)


def connect() -> WorkspaceClient:
    """A client of the workspace that environment or profile name; InputError where it refuses the user."""
    try:
        client = WorkspaceClient()
        client.current_user.me()
    except (DatabricksError, ValueError, OSError) as error:
        raise InputError(
            f"no Databricks workspace: set DATABRICKS_HOST and DATABRICKS_TOKEN, or a profile. It says: {error}"
        ) from error
    return client


def check(config: Mapping[str, Any], path: Path) -> None:
    """Raise InputError where Databricks would refuse a job with that configuration, or where it holds secrets."""
    if "existing_cluster_id" in config or "existing_cluster_id" in config["new_cluster"]:
        raise InputError(f"{path}: MLflow runs projects on new clusters only, leave out existing_cluster_id")
    cluster = config["new_cluster"]
    missing = [key for key in ("spark_version", "node_type_id") if not cluster.get(key)]
    if "num_workers" not in cluster and "autoscale" not in cluster:
        missing.append("num_workers")
    if missing:
        raise InputError(f"{path}: new_cluster lacks {', '.join(missing)}")
    for name, value in _values(cluster):
        if SECRET.search(name) and not re.fullmatch(r"\{\{secrets/[^/]+/[^/]+\}\}", str(value)):
            raise InputError(
                f"{path} holds the value of {name} in plain text: keep it in a secret scope, and write "
                "{{secrets/SCOPE/KEY}}"
            )
    for library in config.get("libraries", []):
        if "pypi" not in library:
            raise InputError(f"{path}: libraries come from PyPI, got {library}")


def _values(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of a configuration, those of nested objects too."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _values(value)
        else:
            yield name, value


def needs_spark_job(config: Mapping[str, Any]) -> bool:
    """Whether the runtime of the cluster runs MLflow projects only as a `databricks_spark_job`."""
    version = str(config["new_cluster"]["spark_version"])
    major = re.match(r"\d+", version)
    return major is None or int(major[0]) > LAST_WITH_PROJECTS


def spark_job(config: Mapping[str, Any], script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The entry `databricks_spark_job` of an MLproject, which runs a script with these arguments."""
    libraries = [library["pypi"]["package"] for library in config.get("libraries", [])]
    return {"python_file": script, "parameters": list(arguments), "python_libraries": libraries}


def backend_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration in MLflow's form: the cluster alone for a Spark job, else the cluster and its libraries."""
    if needs_spark_job(config):
        return dict(config["new_cluster"])
    return {"new_cluster": dict(config["new_cluster"]), "libraries": list(config.get("libraries", []))}


def run(client: WorkspaceClient, job_run: int, *, pending_s: float, show: Callable[[str], None]) -> str | None:
    """Follow a job run to its end; None when it succeeded, else why not. It is cancelled if this is interrupted."""
    try:
        return follow(client, job_run, pending_s=pending_s, show=show)
    except BaseException:
        log.info("cancelling run %s of the workspace", job_run)
        cancel(client, job_run)
        raise


def follow(client: WorkspaceClient, job_run: int, *, pending_s: float, show: Callable[[str], None]) -> str | None:
    """Wait for the end of a job run, then show its output; None when it succeeded, else why not.

    It is cancelled if its cluster has not started after `pending_s` seconds.
    """
    deadline = time.monotonic() + pending_s
    last_message = ""
    while True:
        try:
            info = client.jobs.get_run(job_run)
        except DatabricksError as error:
            return f"the workspace gives no state of run {job_run}: {error}"
        state = info.state
        if state is None or state.life_cycle_state is None:
            return f"run {job_run} of the workspace has no state"
        message = f"{state.life_cycle_state.value} {state.state_message or ''}".strip()
        if message != last_message:
            log.info("run %s of the workspace: %s %s", job_run, message, info.run_page_url or "")
            last_message = message
        if state.life_cycle_state in ENDED:
            error_text = _show_output(client, info.tasks[0].run_id if info.tasks else job_run, show)
            if state.result_state == RunResultState.SUCCESS:
                return None
            result = state.result_state.value if state.result_state else state.life_cycle_state.value
            return "; ".join(filter(None, [f"it ended as {result}", state.state_message, error_text]))
        pending = state.life_cycle_state in (RunLifeCycleState.PENDING, RunLifeCycleState.QUEUED)
        if pending and time.monotonic() > deadline:
            cancel(client, job_run)
            return f"no cluster has come up in {pending_s / 60:g} minutes: {message}"
        time.sleep(POLL_S)


def cancel(client: WorkspaceClient, job_run: int) -> None:
    """Cancel a job run; an error is logged."""
    try:
        client.jobs.cancel_run(job_run)
    except (DatabricksError, OSError) as error:
        log.error("run %s of the workspace goes on: %s. Cancel it on its page", job_run, error)


def _show_output(client: WorkspaceClient, task_run: int | None, show: Callable[[str], None]) -> str | None:
    """Show the output of a run, as far as the workspace kept it; returns the error message in it."""
    try:
        output = client.jobs.get_run_output(int(task_run or 0))
    except DatabricksError as error:
        log.warning("the workspace gives no output of run %s: %s", task_run, error)
        return None
    for line in (output.logs or "").splitlines():
        show(line)
    return output.error
