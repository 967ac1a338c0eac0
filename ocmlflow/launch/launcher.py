"""Runs a step on a Kubernetes cluster or in a Databricks workspace, and waits for it as if it ran here."""

import json
import logging
import os
import shlex
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ocmlflow.errors import InputError

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
"""The checkout, of which a copy is sent."""
CONFIGURATIONS = {
    "kubernetes": ROOT / "backends/kubernetes/backend.json",
    "databricks": ROOT / "backends/databricks/cluster.json",
}
"""Configuration of each backend where none is given."""
Show = Callable[[str], None]
"""Takes a line of the step's log."""


@dataclass(frozen=True)
class _Launch:
    step: str
    parameters: Sequence[tuple[str, str]]
    config: Path
    experiment: str | None
    pending_s: float
    show: Show

    @property
    def words(self) -> list[str]:
        """The parameters as a command line."""
        return [word for name, value in self.parameters for word in (f"--{name}", value)]


def run(
    step: str,
    *,
    backend: str,
    parameters: Sequence[tuple[str, str]],
    config: Path | None,
    experiment: str | None,
    pending_minutes: float,
    show: Show,
) -> None:
    """Run a step with these parameters (name and value) on a backend, `kubernetes` or `databricks`, to its end.

    `config` is the JSON file of the backend, the one in backends/ if None. The run is logged in that experiment of
    MLflow, the current one if None. `show` gets each line of the step's log. InputError where the step cannot be
    launched, has not started after `pending_minutes`, or fails. Ctrl-C and SIGTERM end the step too, and raise
    KeyboardInterrupt.
    """
    if not (ROOT / "MLproject").exists():
        raise InputError(
            "launch sends a copy of the project's code, and this package is installed without its checkout: "
            "run `python -m ocmlflow launch` in a checkout"
        )
    launch = _Launch(step, parameters, config or CONFIGURATIONS[backend], experiment, 60 * pending_minutes, show)
    with _sigterm_as_interrupt(), tempfile.TemporaryDirectory(prefix="ocmlflow-") as folder:
        if backend == "kubernetes":
            _run_on_kubernetes(launch, Path(folder))
        else:
            _run_on_databricks(launch, Path(folder))


def _run_on_kubernetes(launch: _Launch, folder: Path) -> None:
    """Check everything, build and push an image of the checkout, and run it as a Job."""
    from ocmlflow.launch import docker_image, remote_runs

    try:
        from ocmlflow.launch import kubernetes_job, kubernetes_template
    except ImportError as error:
        raise InputError('backend=kubernetes needs its client: pip install -e ".[kubernetes]"') from error
    config = read_config(launch.config, required=("repository-uri", "kube-job-template-path"))
    repository = config["repository-uri"]
    docker_image.check_repository(repository)
    template = kubernetes_template.read(ROOT / config["kube-job-template-path"])
    server = remote_runs.check_server(os.environ.get("KUBE_MLFLOW_TRACKING_URI"))
    kubernetes_template.check_address(template, server)
    docker_image.check_engine()
    client = kubernetes_job.connect(config.get("kube-context"))
    tag = docker_image.stage(ROOT, folder)
    name = f"ocmlflow-{launch.step}-{uuid.uuid4().hex[:8]}"
    command = ["python", "-m", f"entrypoints.{launch.step}", *launch.words]
    make_job = partial(kubernetes_template.fill, template, name=name, command=command)
    kubernetes_job.check(client, make_job(image=f"{repository}:{tag}", environment={}))

    run = remote_runs.create_run(launch.step, "kubernetes", launch.experiment)
    log.info("run %s: building and pushing %s:%s", run.info.run_id, repository, tag)
    with remote_runs.ended_with_block(run.info.run_id):
        image = docker_image.build_and_push(folder, repository, tag, config.get("build", []))
        variables = {
            "MLFLOW_RUN_ID": run.info.run_id,
            "MLFLOW_EXPERIMENT_ID": run.info.experiment_id,
            "MLFLOW_TRACKING_URI": server,
        }
        job = make_job(image=image, environment=variables)
        failure = kubernetes_job.run(client, job, pending_s=launch.pending_s, show=launch.show)
        if failure:
            raise InputError(f"{launch.step} failed on Kubernetes: {failure}")
    log.info("run %s: done", run.info.run_id)


def _run_on_databricks(launch: _Launch, folder: Path) -> None:
    """Check everything, and have MLflow submit a copy of the checkout as a job on a new cluster."""
    from ocmlflow.launch import databricks_job, docker_image, remote_runs

    config = read_config(launch.config, required=("new_cluster",))
    databricks_job.check(config, launch.config)
    server = remote_runs.check_server()
    client = databricks_job.connect()
    if databricks_job.needs_spark_job(config):
        docker_image.stage(ROOT, folder / "project")
        _write_spark_project(folder, launch, server, config)
    else:
        docker_image.stage(ROOT, folder)

    with remote_runs.ended_on_failure(lambda: remote_runs.find_project_run(folder)):
        run_id = _submit_to_databricks(launch, folder, config)
        with remote_runs.ended_with_block(run_id):
            remote_runs.tag_source(run_id, launch.step)
            job_run = remote_runs.databricks_job_run(run_id)
            failure = databricks_job.run(client, job_run, pending_s=launch.pending_s, show=launch.show)
            if failure:
                raise InputError(f"{launch.step} failed on Databricks: {failure}")
    log.info("run %s: done", run_id)


def _submit_to_databricks(launch: _Launch, folder: Path, config: dict[str, Any]) -> str:
    """Submit the MLflow project in the folder; the id of its run."""
    from mlflow import projects
    from mlflow.exceptions import MlflowException

    from ocmlflow.launch import databricks_job

    # The project of a Spark job has its parameters written into it.
    parameters = {} if databricks_job.needs_spark_job(config) else dict(launch.parameters)
    try:
        submitted = projects.run(
            str(folder),
            launch.step,
            parameters=parameters,
            experiment_name=launch.experiment,
            backend="databricks",
            backend_config=databricks_job.backend_config(config),
            env_manager="local",
            synchronous=False,
        )
    except MlflowException as error:
        raise InputError(f"the workspace did not take the job: {error}") from error
    return str(submitted.run_id)


def _write_spark_project(folder: Path, launch: _Launch, server: str, config: dict[str, Any]) -> None:
    """Write, around the copy of the checkout, an MLflow project of the kind that newer Databricks runtimes run."""
    import yaml

    from ocmlflow.launch import databricks_job

    script = (ROOT / "backends/databricks/step.py").read_text()
    if server.startswith("http"):  # else MLflow would log to the workspace's own server
        script = f"import os\n\nos.environ['MLFLOW_TRACKING_URI'] = {server!r}\n{script}"
    (folder / "step.py").write_text(script)
    arguments = ["project", launch.step, *map(shlex.quote, launch.words)]
    project = {"name": "ocmlflow", "databricks_spark_job": databricks_job.spark_job(config, "step.py", arguments)}
    (folder / "MLproject").write_text(yaml.safe_dump(project))


def read_config(path: Path, *, required: tuple[str, ...]) -> dict[str, Any]:
    """The configuration of a backend; InputError where it cannot be read or lacks a key."""
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the configuration {path}: {error}") from error
    if missing := [key for key in required if not (isinstance(config, dict) and config.get(key))]:
        raise InputError(f"configuration {path} lacks {', '.join(missing)}")
    return dict(config)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Within the block, SIGTERM raises KeyboardInterrupt, so that what was launched ends with the launcher."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
