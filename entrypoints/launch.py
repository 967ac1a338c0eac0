"""A step on a Kubernetes cluster or in a Databricks workspace, waited for as if it ran here."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from entrypoints import number, parser, start
from ocmlflow.pipeline import options

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
STEPS = ("prepare", "train", "evaluate", "compare", "protocol", "predict", "main")
CONFIGURATIONS = {
    "kubernetes": ROOT / "backends/kubernetes/backend.json",
    "databricks": ROOT / "backends/databricks/cluster.json",
}
INTERRUPTED = 130
"""Exit status of a process that Ctrl-C ended, as shells have it."""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The launcher's parameters and their defaults."""
    p = parser("launch", "Run a step on another machine: send a copy of this code, show its log, end as it ends.")
    p.add_argument("--step", required=True, choices=STEPS, help="what to run")
    p.add_argument("--backend", required=True, choices=sorted(CONFIGURATIONS), help="where to run it")
    p.add_argument(
        "-P", "--parameter", action="append", type=_pair, default=[], help="NAME=VALUE of the step; as often as needed"
    )
    p.add_argument("--config", type=Path, default=None, help="backend's JSON file; that of backends/ if not given")
    p.add_argument("--experiment", default=None, help="name of the experiment; MLflow's current one if not given")
    p.add_argument(
        "--pending_minutes", type=number(0), default=30.0, help="give up if nothing has started after so many minutes"
    )
    args = p.parse_args(words)
    args.config = args.config or CONFIGURATIONS[args.backend]
    return args


def main(args: argparse.Namespace) -> None:
    words = [word for name, value in args.parameter for word in (f"--{name}", value)]
    options.from_text(options.STEPS[args.step], dict(args.parameter))  # wrong ones end it here
    run = {"kubernetes": _on_kubernetes, "databricks": _on_databricks}[args.backend]
    with _sigterm_is_ctrl_c(), tempfile.TemporaryDirectory(prefix="ocmlflow-") as staged:
        try:
            run(args, words, Path(staged))
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


def _on_kubernetes(args: argparse.Namespace, words: list[str], staged: Path) -> None:
    from ocmlflow.errors import InputError
    from ocmlflow.launch import docker_image, remote_runs

    try:
        from ocmlflow.launch import kubernetes_job, kubernetes_template
    except ImportError as error:
        raise InputError('backend=kubernetes needs its client: pip install -e ".[kubernetes]"') from error
    config = _config(args.config, required=("repository-uri", "kube-job-template-path"))
    docker_image.check_repository(config["repository-uri"])
    template = kubernetes_template.template(ROOT / config["kube-job-template-path"])
    address = remote_runs.check_server(os.environ.get("KUBE_MLFLOW_TRACKING_URI"))
    kubernetes_template.check_reaches(template, address)
    docker_image.check_engine()
    client = kubernetes_job.connect(config.get("kube-context"))
    digest = docker_image.stage(ROOT, staged)
    name = f"ocmlflow-{args.step}-{uuid.uuid4().hex[:8]}"
    command = ["python", "-m", f"entrypoints.{args.step}", *words]
    job = kubernetes_template.job(
        template, name=name, image=f"{config['repository-uri']}:{digest}", command=command, environment={}
    )
    kubernetes_job.check(client, job)
    run = remote_runs.new_run(args.step, args.backend, args.experiment)
    log.info("run %s: building and pushing %s:%s", run.info.run_id, config["repository-uri"], digest)
    with remote_runs.ending(lambda: run):
        image = docker_image.image(staged, config["repository-uri"], digest, config.get("build", []))
        variables = {"MLFLOW_RUN_ID": run.info.run_id, "MLFLOW_EXPERIMENT_ID": run.info.experiment_id}
        variables["MLFLOW_TRACKING_URI"] = address
        job = kubernetes_template.job(template, name=name, image=image, command=command, environment=variables)
        try:
            kubernetes_job.submit(client, job)
            log.info("Job %s in namespace %s", name, job["metadata"]["namespace"])
            failure = kubernetes_job.follow(client, job, pending_s=60 * args.pending_minutes, show=_show)
        except BaseException:
            log.info("deleting Job %s", name)
            kubernetes_job.delete(client, job)
            raise
        if failure:
            raise InputError(f"{args.step} failed on Kubernetes: {failure}")
    log.info("run %s: done", run.info.run_id)


def _on_databricks(args: argparse.Namespace, words: list[str], staged: Path) -> None:
    from mlflow import projects
    from mlflow.exceptions import MlflowException

    from ocmlflow.errors import InputError
    from ocmlflow.launch import databricks_job, docker_image, remote_runs

    config = _config(args.config, required=("new_cluster",))
    databricks_job.check(config, args.config)
    address = remote_runs.check_server()
    client = databricks_job.connect()
    spark = databricks_job.wants_spark_job(config)
    if spark:
        docker_image.stage(ROOT, staged / "project")
        _stage_spark_job(staged, ["project", args.step, *map(shlex.quote, words)], address, config)
    else:
        docker_image.stage(ROOT, staged)
    with remote_runs.ending(lambda: remote_runs.project_run(staged)):
        try:
            submitted = projects.run(
                str(staged),
                args.step,
                parameters={} if spark else dict(args.parameter),
                experiment_name=args.experiment,
                backend="databricks",
                backend_config=databricks_job.backend_config(config, spark=spark),
                env_manager="local",
                synchronous=False,
            )
        except MlflowException as error:
            raise InputError(f"the workspace did not take the job: {error}") from error
        with remote_runs.ending(lambda: remote_runs.run_of(submitted.run_id)):
            remote_runs.say_source(submitted.run_id, args.step)
            number = remote_runs.workspace_run(submitted.run_id)
            try:
                failure = databricks_job.follow(client, number, pending_s=60 * args.pending_minutes, show=_show)
            except BaseException:
                log.info("cancelling run %s of the workspace", number)
                databricks_job.cancel(client, number)
                raise
            if failure:
                raise InputError(f"{args.step} failed on Databricks: {failure}")
    log.info("run %s: done", submitted.run_id)


def _stage_spark_job(staged: Path, arguments: list[str], address: str, config: dict[str, Any]) -> None:
    """Write, around the copy, the kind of project that newer runtimes of Databricks run."""
    import yaml

    from ocmlflow.launch import databricks_job

    script = (ROOT / "backends/databricks/step.py").read_text()
    if address.startswith("http"):  # MLflow sets the workspace's own server, whatever is asked for
        script = f"import os\n\nos.environ['MLFLOW_TRACKING_URI'] = {address!r}\n{script}"
    (staged / "step.py").write_text(script)
    project = {"name": "ocmlflow", "databricks_spark_job": databricks_job.spark_job(config, "step.py", arguments)}
    (staged / "MLproject").write_text(yaml.safe_dump(project))


def _show(line: str) -> None:
    print(line, flush=True)


def _config(path: Path, *, required: tuple[str, ...]) -> dict[str, Any]:
    """The backend's configuration; InputError where it cannot be read or lacks a key."""
    from ocmlflow.errors import InputError

    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the configuration {path}: {error}") from error
    if missing := [key for key in required if not (isinstance(found, dict) and found.get(key))]:
        raise InputError(f"configuration {path} lacks {', '.join(missing)}")
    return dict(found)


@contextmanager
def _sigterm_is_ctrl_c() -> Iterator[None]:
    """Whoever ends the launcher ends what it has launched."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _pair(text: str) -> tuple[str, str]:
    """A parser's type for NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"NAME=VALUE is needed, got {text}")
    return name, value


if __name__ == "__main__":
    start(main, parse())
