"""The launcher and MLflow's own backends, against an API server and a workspace that run the containers for real."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import boto3
import kubernetes
import mlflow
import pytest
import yaml
from affine import Affine
from conftest import GSD, TRANSFORM, one_layer, town, write_catalog
from databricks_stub import TOKEN, Workspace
from kubernetes_real import add_gpu
from kubernetes_real import cluster as real_cluster
from kubernetes_stub import INDEX, Cluster
from mlflow import MlflowClient

from ocmlflow.chips import chip_set
from ocmlflow.launch import docker_image
from ocmlflow.storage import hrefs
from ocmlflow.tracking import registry, runs
from ocmlflow.tracking.model_facts import ChipSplit, ModelFacts

ROOT = Path(__file__).parents[2]
NAME = "main.maps.launched"
"""Of three levels, as Unity Catalog has them."""
AWKWARD = "two words; $(HOME) $$(HOME) $HOME $$ 'quoted' *"

# In this process MLflow's libraries warn of one another.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("_garbage")]


@pytest.fixture(scope="module")
def client(mlflow_server):
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(mlflow_server.address)
    yield MlflowClient()
    mlflow.set_tracking_uri(before)


@pytest.fixture
def cluster(docker_engine, mlflow_server):
    """A cluster with the Secret of the shipped templates."""
    made = Cluster(docker_engine.environment)
    made.secrets["ocmlflow", "ocmlflow"] = {**mlflow_server.variables}
    yield made
    made.close()


@pytest.fixture
def at(given, cluster):
    """What the launcher is given for that cluster: its environment and configuration, and a template to change."""
    return given(cluster.kubeconfig())


@pytest.fixture
def given(registry, base_image, mlflow_server, tmp_path, docker_engine):
    return lambda kubeconfig: _given(kubeconfig, registry, base_image, mlflow_server, tmp_path, docker_engine)


def _given(content, registry, base_image, mlflow_server, tmp_path, docker_engine):
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(content)
    environment = {
        **docker_engine.environment,
        "KUBECONFIG": str(kubeconfig),
        "MLFLOW_TRACKING_URI": mlflow_server.address,
    }

    def configured(template: str = "job-cpu.yaml", *, memory: str = "", claim: str = "", **changes) -> Path:
        job = yaml.safe_load((ROOT / "backends/kubernetes" / template).read_text())
        job["spec"]["template"]["spec"]["hostNetwork"] = True  # the engine of the tests has no other
        job["spec"] |= changes
        if memory:  # the node of the tests is small
            resources = job["spec"]["template"]["spec"]["containers"][0]["resources"]
            resources["requests"] = {"memory": memory, "cpu": "100m"}
            resources["limits"] |= {"memory": "4Gi", "ephemeral-storage": "4Gi"}
        if claim:  # in place of a folder of the pod's own
            (work,) = (volume for volume in job["spec"]["template"]["spec"]["volumes"] if volume["name"] == "work")
            del work["emptyDir"]
            work["persistentVolumeClaim"] = {"claimName": claim}
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
        build = ["--network", "host", "--build-arg", f"BASE_IMAGE={base_image}"]
        config = {"repository-uri": f"{registry}/ocmlflow", "kube-job-template-path": str(tmp_path / "job.yaml")}
        path = tmp_path / "backend.json"
        path.write_text(json.dumps({**config, "build": build}))
        return path

    return Namespace(environment=environment, configured=configured, tmp=tmp_path)


def launched(at, step, backend, config, *words, **parameters):
    """The launcher's process, started as a user starts it."""
    pairs = [word for name, value in parameters.items() for word in ("-P", f"{name}={value}")]
    command = [sys.executable, "-m", "entrypoints.launch", "--step", step, "--backend", backend, *pairs]
    return subprocess.Popen(
        [*command, "--config", config, "--experiment", "launched", *words],
        cwd=ROOT,
        env=at.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    """Exit status, what it printed and what it logged."""
    out, err = process.communicate(timeout=400)
    return Namespace(status=process.returncode, out=out, err=err)


def newest(client):
    experiment = client.get_experiment_by_name("launched").experiment_id
    return client.search_runs([experiment], order_by=["attributes.start_time DESC"], max_results=1)[0]


def lines_until(process, pattern):
    """What a process logs, up to a line with that pattern."""
    read = []
    for line in process.stderr:
        read.append(line)
        if re.search(pattern, line):
            return "".join(read)
    pytest.fail(f"{pattern} was never logged: {''.join(read)[-3000:]}")


def check_trained(run, variables):
    """The run has all that a training leaves, on the server and in S3."""
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "1"
    assert run.data.tags["mlflow.project.entryPoint"] == "train"
    assert any("iou" in name for name in run.data.metrics)
    versions = [v for v in MlflowClient().search_model_versions(f"name = '{NAME}'") if v.run_id == run.info.run_id]
    assert len(versions) == 1
    s3 = boto3.Session(variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"]).client(
        "s3", endpoint_url=variables["AWS_ENDPOINT_URL_S3"], region_name="us-east-1"
    )
    bucket, _, prefix = (
        MlflowClient()
        .get_logged_model(versions[0].source.split("/")[-1])
        .artifact_location.removeprefix("s3://")
        .partition("/")
    )
    kept = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]]
    assert any(key.endswith("model.keras") for key in kept), kept


@pytest.fixture(scope="module")
def chips(client, mlflow_server, tmp_path_factory):
    """A `prepare` run on the mlflow_server, of two small towns, made here."""
    folder = tmp_path_factory.mktemp("towns")
    towns = {"acc/aaa": TRANSFORM, "kam/kkk": TRANSFORM @ Affine.translation(10_000, 0)}
    drawn = {
        name: town(folder, name, transform=at, height=200, width=300, seed=n)
        for n, (name, at) in enumerate(towns.items())
    }
    words = ["--catalog", write_catalog(folder, drawn), "--validation", "kam", "--size", "64", "--workers", "1"]
    command = [sys.executable, "-m", "entrypoints.prepare", *words, "--work", str(folder / "work")]
    environment = {
        **os.environ,
        **mlflow_server.variables,
        "MLFLOW_TRACKING_URI": mlflow_server.address,
        "MLFLOW_EXPERIMENT_NAME": "launched",
    }
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return newest(client).info.run_id


@pytest.fixture(scope="module")
def brightness(chips, mlflow_server):
    """A registered version of one layer, which takes what is bright for building."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in mlflow_server.variables.items():
            patch.setenv(name, value)
        patch.setenv("MLFLOW_EXPERIMENT_ID", "")  # set_experiment sets it: restored at the end
        mlflow.set_experiment("launched")
        registry.register("brightness")
        with runs.run("train", {}) as trained:
            facts = ModelFacts(
                gsd=GSD, multiple=1, run=trained.info.run_id, chips=chips, trained_on=(ChipSplit(chips, None),)
            )
            runs.log_model(one_layer(40, -20), facts, name="brightness")
    return "models:/brightness/1"


@pytest.fixture(scope="module")
def training(chips, brightness):
    """Parameters of a training of a moment: another network takes half a minute to compile."""
    return {"chips": chips, "init": brightness, "epochs": 1, "name": NAME, "crop": 32, "batch_size": 4}


def test_the_image_runs_as_nobody_holds_code_and_no_more(docker_engine, project_image):
    def run(*words):
        command = ["docker", "run", "--rm", "--network", "none", project_image, *words]
        return subprocess.run(command, env=docker_engine.environment, capture_output=True, text=True)

    looked = run("sh", "-c", "id -u; find /app -type f; touch /app/x")
    user, *files = looked.stdout.splitlines()
    assert user == "1000"
    assert looked.returncode == 1  # the code cannot be changed
    sent = {
        f"/app/{path.relative_to(ROOT)}"
        for pattern in ("ocmlflow/**/*", "entrypoints/*.py")
        for path in ROOT.glob(pattern)
    }
    assert set(files) == {file for file in sent if file.endswith((".py", ".html", ".typed"))} | {
        "/app/MLproject",
        "/app/conda.yaml",
    }
    variables = run("env").stdout
    assert not re.search("SECRET|PASSWORD|TOKEN", variables)
    assert "--epochs" in run("python", "-m", "entrypoints.train", "--help").stdout
    refused = run("python", "-m", "entrypoints.train", "--epochs", "0")
    assert refused.returncode == 2


def test_the_image_maps_the_sample_into_a_volume(docker_engine, project_image):
    """By its own command, as README gives it, for one epoch: the steps' code lies in a folder that is not theirs."""

    def docker(*words):
        done = subprocess.run(["docker", *words], env=docker_engine.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    command = json.loads(docker("image", "inspect", "--format", "{{json .Config.Cmd}}", project_image))
    volume = docker("volume", "create").strip()
    try:
        mounted = ["--volume", f"{volume}:/work", "--network", "none"]
        docker("run", "--rm", *mounted, project_image, *command, "--epochs", "1")
        work = Path(docker("volume", "inspect", "--format", "{{.Mountpoint}}", volume).strip())
        assert {path.name for path in work.iterdir()} == {".ocmlflow", "mlflow.db", "mlruns", "output"}
        assert len(list(work.glob("output/masks/*.tif"))) == 8  # of two scenes and six chips
        assert len(list(work.glob("output/items/*.json"))) == 2
        assert (work / "output/submission.tgz").exists()
    finally:
        docker("volume", "rm", volume)


def test_a_training_waits_for_a_gpu_and_leaves_metrics_in_mlflow_and_the_model_in_s3(
    at, cluster, client, training, mlflow_server
):
    whole = {name: value for name, value in training.items() if name != "init"}  # of a network that the image holds
    process = launched(at, "train", "kubernetes", at.configured("job.yaml"), **whole)
    waited = lines_until(process, "waiting for a pod: 0/1 nodes are available")
    cluster.add_gpu()
    done = ended(process)
    assert done.status == 0, done.err[-3000:]
    run = newest(client)
    check_trained(run, mlflow_server.variables)
    assert "epoch 1" in done.out  # the pod's log
    assert run.data.tags["ocmlflow.code"]
    assert run.data.tags["mlflow.source.name"] == ROOT.name
    ((_, job),) = cluster.jobs.items()
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert re.fullmatch(r"127\.0\.0\.1:\d+/ocmlflow:[0-9a-f]{12}@sha256:[0-9a-f]{64}", container["image"])
    for secret in ("testsecret", "of-nobody"):
        assert secret not in json.dumps(job) + waited + done.out + done.err


def test_a_step_that_fails_fails_the_launcher_and_its_words_arrive_as_they_are(at, cluster, client, registry):
    done = ended(launched(at, "train", "kubernetes", at.configured(), chips=AWKWARD))
    assert done.status == 1
    assert f"chips={AWKWARD} names no run" in done.out
    assert "the container ended with status 1" in done.err.splitlines()[-1]
    run = newest(client)
    assert run.info.status == "FAILED"
    assert run.data.params["chips"] == AWKWARD


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_pod_and_run(at, cluster, client, training, docker_engine, how):
    def containers():
        command = ["docker", "ps", "--all", "--quiet"]
        done = subprocess.run(command, env=docker_engine.environment, capture_output=True, text=True, check=True)
        return done.stdout.split()

    before = containers()  # of tests that were killed: the engine's data stays from run to run
    process = launched(at, "train", "kubernetes", at.configured(), **{**training, "epochs": 500})
    lines_until(process, "the pod runs")
    process.send_signal(how)
    done = ended(process)
    assert done.status == 130, done.err[-3000:]
    assert not cluster.jobs
    assert not cluster.pods
    assert containers() == before
    assert newest(client).info.status == "KILLED"


def test_a_pod_that_never_starts_is_given_up_with_the_reason(at, cluster, client, training):
    words = ["--pending_minutes", "0.03"]
    done = ended(launched(at, "train", "kubernetes", at.configured("job.yaml"), *words, **training))
    assert done.status == 1
    assert "no pod has started in 0.03 minutes: 0/1 nodes are available" in done.err.splitlines()[-1]
    assert not cluster.jobs
    assert newest(client).info.status == "FAILED"


def test_the_deadline_of_the_template_is_told_with_what_the_pod_waited_for(at, cluster, client, training):
    config = at.configured("job.yaml", activeDeadlineSeconds=2)
    done = ended(launched(at, "train", "kubernetes", config, **training))
    assert done.status == 1
    assert "longer than specified deadline; the pod waited for: 0/1 nodes" in done.err.splitlines()[-1]
    assert newest(client).info.status == "FAILED"


def test_a_push_that_is_refused_ends_the_run_as_failed(at, cluster, client, training):
    config = at.configured()
    config.write_text(re.sub(r"127\.0\.0\.1:\d+/", "127.0.0.1:9/", config.read_text()))
    done = ended(launched(at, "train", "kubernetes", config, **training))
    assert done.status == 1
    assert "is not pushed" in done.err.splitlines()[-1]
    assert newest(client).info.status == "FAILED"
    assert not cluster.jobs


def test_what_the_cluster_lacks_is_told_before_a_run_is_made(at, cluster, client, training):
    before = newest(client).info.run_id
    del cluster.secrets["ocmlflow", "ocmlflow"]
    done = ended(launched(at, "train", "kubernetes", at.configured(), **training))
    assert (done.status, newest(client).info.run_id) == (1, before)
    assert 'Secret ocmlflow in namespace ocmlflow: secrets "ocmlflow" not found' in done.err
    cluster.namespaces = ()
    done = ended(launched(at, "train", "kubernetes", at.configured(), **training))
    assert (done.status, newest(client).info.run_id) == (1, before)
    assert 'refuses the Job in namespace ocmlflow: namespaces "ocmlflow" not found' in done.err
    assert not cluster.jobs


def mlflow_run(at, *words, **parameters):
    """MLflow's own command."""
    pairs = [word for name, value in parameters.items() for word in ("-P", f"{name}={value}")]
    command = [sys.executable, "-m", "mlflow", "run", *words, "--experiment-name", "launched", *pairs]
    return subprocess.run(command, cwd=ROOT, env=at.environment, capture_output=True, text=True, timeout=400)


def test_mlflows_own_kubernetes_backend(at, cluster, client, training, mlflow_server, project_image):
    config = at.configured()
    words = [
        "backends/kubernetes",
        "-e",
        "train",
        "--backend",
        "kubernetes",
        "--backend-config",
        config,
        "--build-image",
    ]
    done = mlflow_run(at, *words, **training)
    assert done.returncode == 0, done.stderr[-3000:]
    check_trained(newest(client), mlflow_server.variables)
    done = mlflow_run(at, *words, epochs=0)
    assert done.returncode == 1
    assert newest(client).info.status == "FAILED"


def shares(verb, image, count, **words):
    """The shipped Job of a verb's shares, changed as its head says, and the command of one run that does it all."""
    job = yaml.safe_load((ROOT / f"backends/kubernetes/{verb}-shares.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container["image"] = image
    command = container["command"]
    command[command.index("--share") + 1] = f"$(JOB_COMPLETION_INDEX)/{count}"
    job["spec"] |= {"completions": count, "parallelism": count}
    for name, value in words.items():
        if f"--{name}" in command:
            command[command.index(f"--{name}") + 1] = str(value)
        else:
            command += [f"--{name}", str(value)]
    job["spec"]["template"]["spec"]["hostNetwork"] = True  # the engine of the tests has no other
    at = command.index("--share")
    return job, [*command[:at], *command[at + 2 :]]


def create(cluster, job):
    """Create a Job; gives functions that ask how it has ended, if it has, and for its pods and their indices."""
    client = kubernetes.config.new_client_from_config_dict(yaml.safe_load(cluster.kubeconfig()))
    batch, core = kubernetes.client.BatchV1Api(client), kubernetes.client.CoreV1Api(client)
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    batch.create_namespaced_job(namespace, job)

    def end() -> str:
        conditions = batch.read_namespaced_job_status(name, namespace).status.conditions
        return conditions[0].type if conditions else ""

    def pods() -> list[tuple[str, str]]:
        found = core.list_namespaced_pod(namespace, label_selector=f"job-name={name}").items
        return [(pod.metadata.annotations[INDEX], pod.metadata.name) for pod in found]

    return Namespace(end=end, pods=pods)


def in_a_container(at, image, command, volumes, variables):
    """Run a command in a container that sees these folders."""
    words = ["docker", "run", "--rm", "--network", "host"]
    words += [word for path, folder in volumes.items() for word in ("--volume", f"{folder}:{path}")]
    words += [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    done = subprocess.run([*words, image, *command], env=at.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_shares_of_an_indexed_job_make_the_chips_of_one_run(at, cluster, client, chips, project_image, tmp_path):
    towns = Path(client.get_run(chips).data.params["catalog"]).parent
    words = {"catalog": "/data/catalog.json", "validation": "kam", "size": 64, "stride": 8, "workers": 1}
    job, alone = shares("prepare", project_image, 4, **words)
    pod = job["spec"]["template"]["spec"]
    pod["volumes"].append({"name": "data", "persistentVolumeClaim": {"claimName": "data"}})
    pod["containers"][0]["volumeMounts"].append({"name": "data", "mountPath": "/data"})
    volumes = {"work": tmp_path / "work", "alone": tmp_path / "alone"}
    for volume in volumes.values():
        volume.mkdir()
    cluster.folders |= {"ocmlflow-work": str(volumes["work"]), "data": str(towns)}
    for path in (*volumes.values(), towns, *towns.rglob("*")):
        path.chmod(0o777)
    created = create(cluster, job)
    while not created.end():
        time.sleep(0.2)
    logs = [cluster.docker("logs", pod).stderr for _, pod in created.pods()]
    assert created.end() == "Complete", logs
    found = sorted(re.search(r"share (\d)/4: (\d+) blocks cut", text).groups() for text in logs)
    assert [share for share, _ in found] == ["0", "1", "2", "3"]
    # The run after them, which sees the same folder, and one that does all by itself.
    for volume in volumes.values():
        variables = {"MLFLOW_TRACKING_URI": "sqlite:////work/mlflow.db"}
        in_a_container(at, project_image, alone, {"/work": volume, "/data": towns}, variables)
    made = {name: next(volume.glob("mlruns/*/*/artifacts/chips")) for name, volume in volumes.items()}
    assert chip_set.digest(chip_set.load(made["work"]).index) == chip_set.digest(chip_set.load(made["alone"]).index)
    for file in (path for path in made["alone"].rglob("*") if path.is_file()):
        assert (made["work"] / file.relative_to(made["alone"])).read_bytes() == file.read_bytes(), file


def test_shares_of_an_indexed_job_make_the_maps_of_one_run(
    at, cluster, client, brightness, project_image, mlflow_server, s3, tmp_path
):
    """Two pods share the windows of one scene; one is killed, and another goes on; one run then makes the maps."""
    town(tmp_path, "scenes/aaa", transform=TRANSFORM, height=600, width=900)
    hrefs.put(tmp_path / "scenes/aaa/aaa.tif", f"{s3}/scenes/aaa.tif")
    words = {"model": brightness, "size": 64, "margin": 16, "min_area_m2": 0.1}  # its roofs are small
    places = {"images": f"{s3}/scenes/aaa.tif", "output": f"{s3}/together", "work": "/work"}
    job, alone = shares("predict", project_image, 2, **places, **words)
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o777)
    cluster.folders["ocmlflow-work"] = str(work)
    variables = {**mlflow_server.variables, "MLFLOW_TRACKING_URI": mlflow_server.address}
    cluster.secrets["ocmlflow", "ocmlflow"] = variables
    created = create(cluster, job)
    while not (list(work.glob("predict/*/aaa-tiles/0-0.npy")) or created.end()):  # which is of the share 0
        time.sleep(0.01)
    tiles = {path: path.stat().st_mtime_ns for path in work.glob("predict/*/aaa-tiles/*.npy")}
    killed = cluster.docker("kill", dict(created.pods())["0"])
    while not created.end():
        time.sleep(0.2)
    logs = [(index, cluster.docker("logs", pod).stderr) for index, pod in created.pods()]
    assert (killed.returncode, created.end()) == (0, "Complete"), logs
    assert sorted(index for index, _ in logs) == ["0", "0", "1"]
    assert sorted(index for index, log in logs if "windows predicted" in log) == ["0", "1"]
    assert {path: path.stat().st_mtime_ns for path in tiles} == tiles  # what the first had done was not done again
    assert not hrefs.list_files(f"{s3}/together")
    # The run after them is the launcher's, whose template has the same folder.
    config = at.configured(claim="ocmlflow-work")
    done = ended(launched(at, "predict", "kubernetes", config, **places, **words))
    assert done.status == 0, done.out[-3000:] + done.err[-3000:]
    run = newest(client)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["buildings"] > 0
    assert [path.suffix for path in (work / "predict").iterdir()] == [".lock"]  # it took what they had left in there
    alone[alone.index("--output") + 1] = f"{s3}/alone"
    in_a_container(at, project_image, alone, {}, variables)
    made = {}
    for name in ("together", "alone"):
        folder = tmp_path / name
        hrefs.mirror(f"{s3}/{name}", str(folder))
        made[name] = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.*")}
    assert {Path(name).suffix for name in made["alone"]} == {".tif", ".parquet", ".fgb", ".geojson", ".jpg", ".json"}
    assert made["together"] == made["alone"]


def test_a_real_cluster_does_as_its_stand_in_does(
    docker_engine, base_image, given, client, training, mlflow_server, tmp_path
):
    """GPU template on a node that advertises one, failure with awkward words, Ctrl-C."""
    with real_cluster(docker_engine, base_image, tmp_path) as real:
        core, batch = kubernetes.client.CoreV1Api(real.client), kubernetes.client.BatchV1Api(real.client)
        core.create_namespace(yaml.safe_load((ROOT / "backends/kubernetes/namespace.yaml").read_text()))
        secret = {"metadata": {"name": "ocmlflow"}, "stringData": mlflow_server.variables}
        core.create_namespaced_secret("ocmlflow", secret)
        at = given(real.kubeconfig)
        process = launched(at, "train", "kubernetes", at.configured("job.yaml", memory="1Gi"), **training)
        lines_until(process, "waiting for a pod: 0/1 nodes are available")
        add_gpu(real.client)
        done = ended(process)
        assert done.status == 0, done.err[-3000:]
        check_trained(newest(client), mlflow_server.variables)
        assert "epoch 1" in done.out
        config = at.configured("job.yaml", memory="1Gi")
        done = ended(launched(at, "train", "kubernetes", config, chips=AWKWARD))
        assert done.status == 1
        assert f"chips={AWKWARD} names no run" in done.out
        assert newest(client).info.status == "FAILED"
        before = len(batch.list_namespaced_job("ocmlflow").items)
        process = launched(at, "train", "kubernetes", config, **{**training, "epochs": 500})
        lines_until(process, "the pod runs")
        process.send_signal(signal.SIGINT)
        assert ended(process).status == 130
        assert newest(client).info.status == "KILLED"
        assert len(batch.list_namespaced_job("ocmlflow").items) == before
        while [pod for pod in core.list_namespaced_pod("ocmlflow").items if pod.status.phase == "Running"]:
            time.sleep(0.5)


@pytest.fixture
def workspace(docker_engine, project_image, mlflow_server, tmp_path):
    """A workspace, whose cluster reaches S3 by secrets; and what its clients are given."""
    made = Workspace(docker_engine.environment, project_image, tmp_path / "dbfs")
    made.secrets = {f"ocmlflow/{name}": value for name, value in mlflow_server.variables.items()}
    config = json.loads((ROOT / "backends/databricks/cluster.json").read_text())
    variables = {name: f"{{{{secrets/ocmlflow/{name}}}}}" for name in mlflow_server.variables}
    config["new_cluster"]["spark_env_vars"] = {**variables, "MLFLOW_REGISTRY_URI": mlflow_server.address}
    made.config, made.content = tmp_path / "cluster.json", config
    made.config.write_text(json.dumps(config))
    credentials = {
        "DATABRICKS_HOST": made.host,
        "DATABRICKS_TOKEN": TOKEN,
        "MLFLOW_TRACKING_URI": mlflow_server.address,
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    yield made, Namespace(environment={**docker_engine.environment, **credentials, "PATH": path})
    made.close()


def test_a_training_on_databricks_as_a_spark_job(workspace, client, training, mlflow_server):
    made, at = workspace
    done = ended(launched(at, "train", "databricks", made.config, **training))
    assert done.status == 0, done.err[-3000:] + done.out[-3000:]
    run = newest(client)
    check_trained(run, mlflow_server.variables)
    ((_, job),) = made.submitted.items()
    assert set(job) == {"run_name", "new_cluster", "libraries", "spark_python_task"}
    assert job["libraries"] == made.content["libraries"]
    assert "epoch 1" in done.out
    assert "testsecret" not in json.dumps(job) + done.out + done.err
    assert TOKEN not in json.dumps(job) + done.out + done.err


def test_a_step_that_fails_on_databricks_fails_the_launcher(workspace, client):
    made, at = workspace
    done = ended(launched(at, "train", "databricks", made.config, chips=AWKWARD))
    assert done.status == 1
    assert f"chips={AWKWARD} names no run" in done.out
    assert newest(client).info.status == "FAILED"
    assert newest(client).data.params["chips"] == AWKWARD


def test_ctrl_c_cancels_on_databricks(workspace, client, training):
    made, at = workspace
    process = launched(at, "train", "databricks", made.config, **{**training, "epochs": 500})
    lines_until(process, "of the workspace: RUNNING")
    process.send_signal(signal.SIGINT)
    assert ended(process).status == 130
    assert [state["result_state"] for state in made.states.values()] == ["CANCELED"]
    assert newest(client).info.status == "KILLED"


def test_what_databricks_refuses_or_never_starts_ends_as_failed(workspace, client, training):
    made, at = workspace
    made.refuses = "node type g5.2xlarge is not there"
    done = ended(launched(at, "train", "databricks", made.config, **training))
    assert done.status == 1
    assert made.refuses in done.err
    assert newest(client).info.status == "FAILED"
    made.refuses, made.clusters_come_up = "", False
    done = ended(launched(at, "train", "databricks", made.config, "--pending_minutes", "0.03", **training))
    assert done.status == 1
    assert "no cluster has come up in 0.03 minutes: PENDING Waiting for cluster" in done.err.splitlines()[-1]
    assert [state["result_state"] for state in made.states.values()] == ["CANCELED"]
    at.environment["DATABRICKS_TOKEN"] = "another"
    before = newest(client).info.run_id
    done = ended(launched(at, "train", "databricks", made.config, **training))
    assert (done.status, newest(client).info.run_id) == (1, before)
    assert "no Databricks workspace" in done.err


def test_mlflows_own_databricks_backend(workspace, client, training, mlflow_server, tmp_path):
    """From a clean copy: MLflow uploads all that lies in the folder."""
    made, at = workspace
    docker_image.stage(ROOT, tmp_path / "project")
    words = [str(tmp_path / "project"), "-e", "train", "--backend", "databricks", "--backend-config", str(made.config)]
    for parameters, result in ((training, "SUCCESS"), ({"epochs": 0}, "FAILED")):
        done = mlflow_run(at, *words, "--env-manager", "local", **parameters)
        assert done.returncode == 0, done.stderr[-3000:]  # it returns after the submission
        number = max(made.submitted)
        while "result_state" not in made.states[number]:
            time.sleep(0.2)
        assert made.states[number]["result_state"] == result, made.outputs[number][-3000:]
        if result == "SUCCESS":
            check_trained(newest(client), mlflow_server.variables)
        else:
            assert newest(client).info.status == "FAILED"
