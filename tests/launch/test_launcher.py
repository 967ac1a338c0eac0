"""What the launcher refuses before anything is sent, what it sends, and what the shipped files of the backends hold."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
import threading
import tomllib
import typing
from enum import Enum
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import kubernetes
import kubernetes_validate
import mlflow
import pytest
import yaml
from conftest import parsed
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config
from databricks.sdk.service import compute, jobs
from hypothesis import given
from hypothesis import strategies as st
from json_server import JsonHandler, serve
from kubernetes_stub import expanded
from mlflow import MlflowClient
from packaging.requirements import Requirement

from ocmlflow.cli import arguments, launch
from ocmlflow.errors import InputError
from ocmlflow.launch import databricks_job, docker_image, kubernetes_job, kubernetes_template, launcher, remote_runs
from ocmlflow.pipeline.options import STEPS, LaunchOptions

ROOT = Path(__file__).parents[2]
KUBERNETES, DATABRICKS = ROOT / "backends/kubernetes", ROOT / "backends/databricks"
# In this process MLflow's libraries warn of one another.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("_garbage")]

DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


@pytest.mark.parametrize("path", sorted(KUBERNETES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_manifest_holds_to_the_newest_schema(path):
    manifest = yaml.safe_load(path.read_text())
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    assert "namespace" in manifest["metadata"] or manifest["kind"] == "Namespace"


@pytest.mark.parametrize("name", ["job.yaml", "job-cpu.yaml", "prepare-shares.yaml", "predict-shares.yaml"])
def test_pods_have_no_rights_and_room_for_the_libraries(name):
    job = yaml.safe_load((KUBERNETES / name).read_text())["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert {"activeDeadlineSeconds", "ttlSecondsAfterFinished"} <= job.keys()
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"requests", "limits"} <= container["resources"].keys()
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"/tmp", "/work"} <= mounted  # all that can be written
    assert container["workingDir"] == "/work"


def test_only_one_template_asks_for_a_gpu():
    with_gpu, without = (kubernetes_template.read(KUBERNETES / name) for name in ("job.yaml", "job-cpu.yaml"))
    pod = with_gpu["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"].pop("nvidia.com/gpu") == "1"
    assert [taint["key"] for taint in pod.pop("tolerations")] == ["nvidia.com/gpu"]
    assert pod.pop("nodeSelector")
    for template in (with_gpu, without):
        del template["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert with_gpu == without
    assert "/dev/shm" in str(pod["containers"][0]["volumeMounts"])


@pytest.mark.parametrize("verb", ["prepare", "predict"])
def test_indexed_jobs_share_by_as_many_as_there_are_pods(verb):
    job = yaml.safe_load((KUBERNETES / f"{verb}-shares.yaml").read_text())["spec"]
    command = job["template"]["spec"]["containers"][0]["command"]
    assert command[:3] == ["python", "-m", f"entrypoints.{verb}"]
    words = [expanded(word, {"JOB_COMPLETION_INDEX": "0"}) for word in command[3:]]
    args = parsed(verb, words)
    assert (args.share, args.work) == ((0, job["completions"]), "/work")
    assert job["parallelism"] == job["completions"]
    assert job["completionMode"] == "Indexed"


def test_the_project_for_kubernetes_has_the_entry_points_of_the_project():
    ours, theirs = (yaml.safe_load((folder / "MLproject").read_text()) for folder in (ROOT, KUBERNETES))
    assert theirs["entry_points"] == ours["entry_points"]
    assert set(ours["entry_points"]) == set(STEPS)
    assert theirs["name"] == "ocmlflow"
    docker_image.check_repository(theirs["docker_env"]["image"])


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-gpu.txt"])
def test_pins_are_those_that_the_project_asks_for(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    for wanted in map(Requirement, DEPENDENCIES):
        pin = pins.get(wanted.name) or pins[f"{wanted.name}-cpu"]
        assert wanted.specifier.contains(pin), wanted
    assert any(line.startswith("nvidia-cudnn") for line in lines) == (name == "requirements-gpu.txt")


def test_the_cluster_file_asks_for_what_the_project_asks_for():
    config = launcher.read_config(DATABRICKS / "cluster.json", required=("new_cluster",))
    databricks_job.check(config, DATABRICKS / "cluster.json")
    assert [library["pypi"]["package"] for library in config["libraries"]] == DEPENDENCIES
    assert databricks_job.needs_spark_job(config)


def test_the_bundle_has_a_job_for_each_step_whose_arguments_the_step_takes():
    bundle = yaml.safe_load((ROOT / "databricks.yml").read_text())
    assert set(bundle["resources"]["jobs"]) == {"prepare", "train", "evaluate", "predict"}
    for step, job in bundle["resources"]["jobs"].items():
        (parameter,) = job["parameters"]
        parsed(step, shlex.split(parameter["default"]))
        (task,) = job["tasks"]
        folder, named, words = task["spark_python_task"]["parameters"]
        assert (folder, named, words) == ("${workspace.file_path}", step, "{{job.parameters.arguments}}")
        for key in (task["spark_python_task"]["python_file"], task["libraries"][0]["requirements"]):
            assert (ROOT / key.removeprefix("${workspace.file_path}/")).is_file()
        databricks_job.check({"new_cluster": task["new_cluster"]}, ROOT / "databricks.yml")


def check_kind(kind, value, where: str) -> None:
    """Fail unless a value is what Databricks' API takes for a type of its SDK.

    The SDK itself passes over fields that it does not know, and takes any value for one that it knows.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union:
        check_kind(next(one for one in inner if one is not type(None)), value, where)
    elif dataclasses.is_dataclass(kind):
        fields = {field.name: field for field in dataclasses.fields(kind)}
        needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
        assert needed <= value.keys() <= fields.keys(), where
        for name, kind_of_field in typing.get_type_hints(kind).items():
            if name in value:
                check_kind(kind_of_field, value[name], f"{where}.{name}")
    elif origin in (list, dict):
        assert type(value) is origin, where
        for number, one in enumerate(value.values() if origin is dict else value):
            check_kind(inner[-1], one, f"{where}[{number}]")
    elif issubclass(kind, Enum):
        assert value in {one.value for one in kind}, where
    else:
        assert type(value) is kind, where


def test_the_jobs_of_the_bundle_and_the_cluster_file_are_what_databricks_takes():
    bundle = yaml.safe_load((ROOT / "databricks.yml").read_text())
    for step, job in bundle["resources"]["jobs"].items():
        check_kind(jobs.JobSettings, job, step)
    config = json.loads((DATABRICKS / "cluster.json").read_text())
    check_kind(compute.ClusterSpec, config["new_cluster"], "new_cluster")
    check_kind(list[compute.Library], config["libraries"], "libraries")


@pytest.mark.parametrize(
    ("where", "field", "value"),
    [
        ("", "max_concurent_runs", 1),
        ("tasks.0.new_cluster", "num_worker", 0),
        ("tasks.0.new_cluster", "num_workers", "0"),
        ("tasks.0.new_cluster", "data_security_mode", "SINGLE"),
        ("tasks.0.libraries.0", "requirement", "requirements-gpu.txt"),
        ("tasks.0.spark_python_task", "parameters", "train"),
        ("tasks.0.spark_python_task", "python_file", None),
    ],
)
def test_a_job_that_databricks_would_refuse_is_told(where, field, value):
    job = yaml.safe_load((ROOT / "databricks.yml").read_text())["resources"]["jobs"]["train"]
    part = job
    for name in filter(None, where.split(".")):
        part = part[int(name) if name.isdecimal() else name]
    part[field] = value
    if value is None:
        del part[field]
    with pytest.raises(AssertionError):
        check_kind(jobs.JobSettings, job, "train")


def test_the_script_for_databricks_runs_a_step_of_a_folder_with_words_as_a_shell_reads_them(tmp_path):
    docker_image.stage(ROOT, tmp_path / "project")
    words = ["project", "train", "--epochs 0 --chips 'two words'"]
    done = subprocess.run(
        [sys.executable, DATABRICKS / "step.py", *words], cwd=tmp_path, capture_output=True, text=True, env={}
    )
    assert (done.returncode, "--epochs: must be at least 1, got 0" in done.stderr) == (2, True)


def launch_options(words: list[str]) -> LaunchOptions:
    return arguments.parse(LaunchOptions, words, prog="ocmlflow launch")


def checkout(folder: Path) -> Path:
    """A copy of the checkout with all that may lie in one."""
    docker_image.stage(ROOT, folder)
    for path in (
        ".git/config",
        "data/scene.tif",
        ".venv/bin/python",
        "mlruns/0/meta.yaml",
        "ocmlflow/__pycache__/a.pyc",
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("secret")
    (folder / ".env").write_text("AWS_SECRET_ACCESS_KEY=secret")
    (folder / "entrypoints/.env").write_text("AWS_SECRET_ACCESS_KEY=secret")
    return folder


def test_only_code_is_staged_and_other_code_has_another_name(tmp_path):
    folder = checkout(tmp_path / "checkout")
    first = docker_image.stage(folder, tmp_path / "one")
    assert {path.name for path in (tmp_path / "one").iterdir()} == set(docker_image.FILES)
    assert not [
        path for path in (tmp_path / "one").rglob("*") if path.is_file() and path.read_text().endswith("secret")
    ]
    assert docker_image.stage(folder, tmp_path / "two") == first  # neither data nor time count
    (folder / "ocmlflow/grid.py").write_text("# not committed")
    assert docker_image.stage(folder, tmp_path / "three") != first
    (folder / "Dockerfile").unlink()
    with pytest.raises(InputError, match="Dockerfile is missing"):
        docker_image.stage(folder, tmp_path / "four")


def test_the_servers_secrets_are_neither_committed_nor_sent():
    assert {".env", ".server/"} <= set((ROOT / ".gitignore").read_text().splitlines())
    assert "**/.env" in (ROOT / ".dockerignore").read_text().splitlines()
    assert {"**/.env", ".server/**"} <= set(yaml.safe_load((ROOT / "databricks.yml").read_text())["sync"]["exclude"])


def test_docker_is_sent_what_the_launcher_stages():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == set(docker_image.FILES) - {"Dockerfile", ".dockerignore"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ocmlflow", "names no registry: Docker would push it to docker.io"),
        ("team/ocmlflow", "names no registry"),
        ("registry.example.com/ocmlflow", "is the example that came with the file"),
        ("registry.your.org/ocmlflow:latest", "carries a tag"),
    ],
)
def test_an_image_goes_to_a_registry_that_is_named(name, message):
    with pytest.raises(InputError, match=message):
        docker_image.check_repository(name)


@pytest.mark.parametrize("name", ["registry.your.org/ocmlflow", "127.0.0.1:5000/a/b", "docker.io/team/ocmlflow"])
def test_registries_are_hosts(name):
    docker_image.check_repository(name)


@given(st.lists(st.text("$(){}AHOME") | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_words_reach_a_container_as_they_are(words):
    given_job = {"metadata": {}, "spec": {"template": {"spec": {"containers": [{}]}}}}
    made = kubernetes_template.fill(given_job, name="n", image="i", command=words, environment={})
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert [expanded(word, {"HOME": "/root", "A": "a"}) for word in container["command"]] == words


def changed(tmp_path, change) -> Path:
    job = yaml.safe_load((KUBERNETES / "job.yaml").read_text())
    change(job, job["spec"]["template"]["spec"]["containers"][0])
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    return tmp_path / "job.yaml"


def beside(variable: str) -> dict:
    """A container beside that of the step, with a variable."""
    return {"name": "beside", "image": "b", "env": [{"name": variable, "value": "abc"}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job, _: job["metadata"].pop("namespace"), "is no Job with a namespace"),
        (lambda job, _: job.update(kind="Pod"), "is a Job of batch/v1"),
        (lambda job, _: job["spec"].pop("activeDeadlineSeconds"), "would wait for ever"),
        (lambda job, _: job["spec"].update(backoffLimit=3), "backoffLimit: 0"),
        (lambda job, _: job["spec"]["template"]["spec"].update(restartPolicy="OnFailure"), "restartPolicy: Never"),
        (lambda _, container: container.update(args=["x"]), "leaves command and args"),
        (lambda _, container: container["env"].append({"name": "MLFLOW_RUN_ID", "value": "1"}), "sets MLFLOW_RUN_ID"),
        (
            lambda _, container: container["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"}),
            "holds the value of AWS_SECRET_ACCESS_KEY in plain text",
        ),
        (
            lambda job, _: job["spec"]["template"]["spec"]["containers"].append(beside("DB_PASSWORD")),
            "holds the value of DB_PASSWORD in plain text",
        ),
        (
            lambda job, _: job["spec"]["template"]["spec"].update(initContainers=[beside("AWS_SESSION_TOKEN")]),
            "holds the value of AWS_SESSION_TOKEN in plain text",
        ),
    ],
)
def test_a_template_that_would_fail_or_tell_secrets_is_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message) as refused:
        kubernetes_template.read(changed(tmp_path, change))
    assert "abc" not in str(refused.value)


def test_a_template_may_leave_variables_empty(tmp_path):
    template = kubernetes_template.read(
        changed(tmp_path, lambda _, container: container.update(env=None, envFrom=None))
    )
    made = kubernetes_template.fill(template, name="n", image="i", command=["c"], environment={"A": "a"})
    assert made["spec"]["template"]["spec"]["containers"][0]["env"] == [{"name": "A", "value": "a"}]
    assert kubernetes_template.secret_names(made) == {}


def test_the_secrets_of_every_container_must_be_there():
    takes = {"envFrom": [{"secretRef": {"name": "one"}}]}
    first = {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "two", "key": "k"}}}]}
    pod = {"containers": [{}, takes], "initContainers": [first]}
    assert kubernetes_template.secret_names({"spec": {"template": {"spec": pod}}}) == {"one": set(), "two": {"k"}}


def test_the_template_is_found_from_every_folder(tmp_path, monkeypatch):
    """By its path in the project, as backend.json names it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "sqlite:///mlflow.db")
    config = json.loads((KUBERNETES / "backend.json").read_text()) | {"repository-uri": "registry.your.org/ocmlflow"}
    for template, message in (
        (config["kube-job-template-path"], "cannot reach runs in sqlite"),
        ("backends/kubernetes/namespace.yaml", "is no Job with a namespace"),
    ):
        (tmp_path / "backend.json").write_text(json.dumps({**config, "kube-job-template-path": template}))
        words = ["--step", "train", "--backend", "kubernetes", "--config", "backend.json"]
        with pytest.raises(InputError, match=message):
            launch.run(launch_options(words))


@pytest.fixture
def logs():
    """A client of an API server of nothing but a pod's log, and what it answers where the step's container is named."""
    answer: dict = {"status": 200, "said": b"2026-01-01T00:00:00.1Z epoch 1\n"}

    class Handler(JsonHandler):
        def _get(self):
            status, said = answer["status"], answer["said"]
            if parse_qs(urlparse(self.path).query).get("container") != ["step"]:  # of a pod with several
                status, said = 400, b'{"message": "a container name must be specified for pod p"}'
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_GET = _get  # noqa: N815

    server = serve(Handler)
    configuration = kubernetes.client.Configuration(host=f"http://127.0.0.1:{server.server_port}")
    with kubernetes.client.ApiClient(configuration) as client:
        yield client, answer
    server.shutdown()
    server.server_close()


def test_the_log_is_that_of_the_step_and_is_missed_aloud(logs, caplog):
    client, answer = logs
    over, shown = threading.Event(), []
    over.set()
    kubernetes_job._read_log(client, "p", "n", over, shown.append)
    assert shown == ["epoch 1"]
    assert not caplog.text
    answer |= {"status": 403, "said": b'{"message": "pods is forbidden"}'}
    kubernetes_job._read_log(client, "p", "n", over, shown.append)
    assert "the log of pod p cannot be read, and is asked for again: pods is forbidden" in caplog.text


def test_what_is_not_deleted_is_told(caplog):
    """As where Ctrl-C comes while the API server is away: the run ends all the same."""
    job = {"metadata": {"name": "j", "namespace": "n"}}
    with kubernetes.client.ApiClient(kubernetes.client.Configuration(host="http://127.0.0.1:9")) as client:
        kubernetes_job.delete(client, job)
    assert "Job j goes on: " in caplog.text
    assert "`kubectl -n n delete job j` ends it" in caplog.text


def test_a_tracking_server_of_this_machine_alone_is_no_server_for_a_pod():
    template = kubernetes_template.read(KUBERNETES / "job.yaml")
    kubernetes_template.check_address(template, "http://mlflow.mlflow.svc:5000")
    for address in ("http://127.0.0.1:5000", "http://localhost:5000"):
        with pytest.raises(InputError, match="set KUBE_MLFLOW_TRACKING_URI"):
            kubernetes_template.check_address(template, address)
    template["spec"]["template"]["spec"]["hostNetwork"] = True
    kubernetes_template.check_address(template, "http://127.0.0.1:5000")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"existing_cluster_id": "1"}, "new clusters only, leave out existing_cluster_id"),
        ({"new_cluster": {"spark_version": "16.4.x"}}, "lacks node_type_id, num_workers"),
        ({"libraries": [{"jar": "x"}]}, "libraries come from PyPI"),
    ],
)
def test_a_cluster_that_databricks_would_refuse_is_refused(change, message):
    config = json.loads((DATABRICKS / "cluster.json").read_text())
    with pytest.raises(InputError, match=message):
        databricks_job.check({**config, **change}, Path("cluster.json"))


def test_a_secret_of_a_cluster_stays_in_its_scope():
    cluster = json.loads((DATABRICKS / "cluster.json").read_text())
    cluster["new_cluster"]["spark_env_vars"]["AWS_SECRET_ACCESS_KEY"] = "{{secrets/ocmlflow/aws}}"
    databricks_job.check(cluster, Path("cluster.json"))
    cluster["new_cluster"]["spark_env_vars"]["AWS_SECRET_ACCESS_KEY"] = "abc"
    with pytest.raises(InputError, match="AWS_SECRET_ACCESS_KEY in plain text") as refused:
        databricks_job.check(cluster, Path("cluster.json"))
    assert "abc" not in str(refused.value)


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("spark_conf", "spark.hadoop.fs.s3a.secret.key"),
        ("spark_conf", "spark.hadoop.fs.s3a.access.key"),
        ("spark_conf", "fs.azure.account.key.maps.dfs.core.windows.net"),
        ("docker_image", "password"),
    ],
)
def test_a_cluster_holds_no_secret_anywhere(where, name):
    cluster = json.loads((DATABRICKS / "cluster.json").read_text())
    part = cluster["new_cluster"].setdefault(where, {})
    part["spark.hadoop.fs.s3a.aws.credentials.provider"] = "com.amazonaws.auth.InstanceProfileCredentialsProvider"
    part["fs.azure.sas.token.provider.type.maps"] = part["fs.azure.account.keyprovider.maps"] = "com.your.Provider"
    part["spark.hadoop.hadoop.security.credential.provider.path"] = "jceks://file/keys"
    part["spark.sql.maxTokens"] = "5"
    part[name] = "{{secrets/ocmlflow/key}}"
    databricks_job.check(cluster, Path("cluster.json"))
    part[name] = "abc"
    with pytest.raises(InputError, match=f"{re.escape(name)} in plain text"):
        databricks_job.check(cluster, Path("cluster.json"))


def test_what_is_not_cancelled_is_told(caplog):
    class Refusing(JsonHandler):
        def _any(self):
            self.content()
            self.answer(403, {"error_code": "PERMISSION_DENIED", "message": "not yours"})

        do_GET = do_POST = _any  # noqa: N815

    server = serve(Refusing)
    config = Config(host=f"http://127.0.0.1:{server.server_port}", token="of-nobody", retry_timeout_seconds=1)
    client = WorkspaceClient(config=config)
    databricks_job.cancel(client, 1)
    assert "run 1 of the workspace goes on: not yours" in caplog.text
    server.shutdown()
    server.server_close()
    databricks_job.cancel(client, 2)
    assert "run 2 of the workspace goes on: " in caplog.text


@pytest.mark.parametrize(("version", "spark"), [("12.2.x-ml", False), ("13.0.x-ml", True), ("16.4.x-gpu-ml", True)])
def test_newer_runtimes_get_a_spark_job_in_the_shape_that_mlflow_wants(version, spark):
    config = {"new_cluster": {"spark_version": version}, "libraries": [{"pypi": {"package": "keras"}}]}
    assert databricks_job.needs_spark_job(config) == spark
    shape = databricks_job.backend_config(config)
    assert shape == (config["new_cluster"] if spark else config)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("sqlite:///mlflow.db", "another machine cannot reach runs in sqlite:///mlflow.db"),
        ("http://me:hidden@127.0.0.1:9", "the tracking address carries a password"),
        ("http://127.0.0.1:9", "the tracking server http://127.0.0.1:9 does not answer"),
    ],
)
def test_a_tracking_address_that_will_not_do_is_refused(monkeypatch, address, message):
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: address)
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        remote_runs.check_server()
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--step train --backend kubernetes -P epochs", "--parameter: must be NAME=VALUE, got epochs"),
        ("--step fly --backend kubernetes", "predict or main, got fly"),
        ("--step train --backend slurm", "--backend: must be databricks or kubernetes, got slurm"),
        ("--step train --backend databricks -P epochs=0", "--parameter: epochs: must be at least 1, got 0"),
        ("--step predict --backend kubernetes", "--parameter: images: is needed"),
    ],
)
def test_wrong_words_end_the_launcher_at_once(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        launch_options(words.split())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the configuration"),
        ("{", "cannot read the configuration"),
        ("{}", "lacks repository-uri, kube-job-template-path"),
    ],
)
def test_a_configuration_that_lacks_something_is_refused(tmp_path, content, message):
    path = tmp_path / "backend.json"
    if content:
        path.write_text(content)
    words = ["--step", "train", "--backend", "kubernetes", "--config", str(path)]
    with pytest.raises(InputError, match=message):
        launch.run(launch_options(words))


def test_a_run_that_another_machine_fills_ends_once(tmp_path):
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    try:
        client = MlflowClient()
        for error, status in ((InputError("no image"), "FAILED"), (KeyboardInterrupt(), "KILLED")):
            run = remote_runs.create_run("train", "kubernetes", "launched")
            with pytest.raises(type(error)), remote_runs.ended_with_block(run.info.run_id):
                raise error
            assert client.get_run(run.info.run_id).info.status == status
            assert str(error) in client.get_run(run.info.run_id).data.tags["mlflow.note.content"]
        run = remote_runs.create_run("prepare", "kubernetes", "launched")  # of a share, which has no run of its own
        with remote_runs.ended_with_block(run.info.run_id):
            pass
        assert client.get_run(run.info.run_id).info.status == "FINISHED"
        run = remote_runs.create_run("train", "kubernetes", "launched")
        client.set_terminated(run.info.run_id, "FINISHED")
        with pytest.raises(InputError), remote_runs.ended_with_block(run.info.run_id):
            raise InputError("the connection was lost")
        assert client.get_run(run.info.run_id).info.status == "FINISHED"
    finally:
        mlflow.set_tracking_uri(before)
