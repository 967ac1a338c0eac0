"""A cluster's configuration, to a Databricks job that runs a step: checked before, followed, cancelled if unwanted."""

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
# Of variables and of Spark's properties, whose providers are names of classes, and who count tokens.
SECRET = re.compile(
    r"SECRET|PASSWORD|TOKEN(?!S\b|\.?PROVIDER)|(ACCESS|ACCOUNT|PRIVATE)[_.]KEY(?!PROVIDER)|CREDENTIALS?(?!S?\.PROVIDER)",
    re.IGNORECASE,
)
LAST_WITH_PROJECTS = 12
"""The last Databricks runtime on whose job clusters ordinary MLflow projects run."""
OVER = (RunLifeCycleState.TERMINATED, RunLifeCycleState.SKIPPED, RunLifeCycleState.INTERNAL_ERROR)


def connect() -> WorkspaceClient:
    """A client of the workspace of the environment or profile; InputError unless it knows the user."""
    try:
        client = WorkspaceClient()
        client.current_user.me()
    except (DatabricksError, ValueError, OSError) as error:
        raise InputError(
            f"no Databricks workspace: set DATABRICKS_HOST and DATABRICKS_TOKEN, or a profile. It says: {error}"
        ) from error
    return client


def check(config: Mapping[str, Any], path: Path) -> None:
    """Raise InputError where a job with that configuration would be refused, or would show what is secret."""
    if "existing_cluster_id" in config or "existing_cluster_id" in config["new_cluster"]:
        raise InputError(f"{path}: MLflow runs projects on new clusters alone, leave out existing_cluster_id")
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


def _values(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The values of a configuration, with their names, of what lies in it too."""
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _values(value)
        else:
            yield name, value


def wants_spark_job(config: Mapping[str, Any]) -> bool:
    """Whether the cluster's runtime runs MLflow projects as a `databricks_spark_job` alone."""
    version = str(config["new_cluster"]["spark_version"])
    major = re.match(r"\d+", version)
    return major is None or int(major[0]) > LAST_WITH_PROJECTS


def spark_job(config: Mapping[str, Any], script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The `databricks_spark_job` of an MLproject that runs a script with these arguments."""
    libraries = [library["pypi"]["package"] for library in config.get("libraries", [])]
    return {"python_file": script, "parameters": list(arguments), "python_libraries": libraries}


def backend_config(config: Mapping[str, Any], *, spark: bool) -> dict[str, Any]:
    """The configuration as MLflow takes it: of a Spark job the cluster alone, else the cluster and its libraries."""
    if spark:
        return dict(config["new_cluster"])
    return {"new_cluster": dict(config["new_cluster"]), "libraries": list(config.get("libraries", []))}


def follow(client: WorkspaceClient, run: int, *, pending_s: float, show: Callable[[str], None]) -> str | None:
    """Wait for a job's run, then show what it wrote; None when it succeeded, else why not.

    A run whose cluster has not come up after `pending_s` seconds is cancelled.
    """
    begun, told = time.monotonic(), ""
    while True:
        try:
            found = client.jobs.get_run(run)
        except DatabricksError as error:
            return f"run {run} of the workspace cannot be asked for: {error}"
        state = found.state
        if state is None or state.life_cycle_state is None:
            return f"run {run} of the workspace has no state"
        now = f"{state.life_cycle_state.value} {state.state_message or ''}".strip()
        if now != told:
            told = now
            log.info("run %s of the workspace: %s %s", run, now, found.run_page_url or "")
        if state.life_cycle_state in OVER:
            why = _show_output(client, found.tasks[0].run_id if found.tasks else run, show)
            if state.result_state == RunResultState.SUCCESS:
                return None
            ended = state.result_state.value if state.result_state else state.life_cycle_state.value
            return "; ".join(filter(None, [f"it ended as {ended}", state.state_message, why]))
        pending = state.life_cycle_state in (RunLifeCycleState.PENDING, RunLifeCycleState.QUEUED)
        if pending and time.monotonic() - begun > pending_s:
            cancel(client, run)
            return f"no cluster has come up in {pending_s / 60:g} minutes: {now}"
        time.sleep(POLL_S)


def cancel(client: WorkspaceClient, run: int) -> None:
    """Cancel a job's run; where that fails, say so."""
    try:
        client.jobs.cancel_run(run)
    except (DatabricksError, OSError) as error:
        log.error("run %s of the workspace goes on: %s. Cancel it on its page", run, error)


def _show_output(client: WorkspaceClient, run: int | None, show: Callable[[str], None]) -> str | None:
    """Show what a run wrote, as far as the workspace kept it; returns the error that it names."""
    try:
        output = client.jobs.get_run_output(int(run or 0))
    except DatabricksError as error:
        log.warning("the workspace gives no output of run %s: %s", run, error)
        return None
    for line in (output.logs or "").splitlines():
        show(line)
    return output.error
