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
import mlflow
import pytest
import yaml
from conftest import TRANSFORM, town, write_catalog
from affine import Affine
from databricks_stub import TOKEN, Workspace
from kubernetes_stub import Cluster
from mlflow import MlflowClient

from entrypoints import launch
from ocmlflow import staging
from ocmlflow.errors import InputError

ROOT = Path(__file__).parent.parent
SECRET = {"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret"}

# In this process MLflow's libraries warn of one another.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def client(server):
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server.address)
    yield MlflowClient()
    mlflow.set_tracking_uri(before)


@pytest.fixture
def cluster(engine, server):
    """A cluster with the Secret of the shipped templates."""
    made = Cluster(engine.environment)
    made.secrets["ocmlflow", "ocmlflow"] = {**server.variables}
    yield made
    made.close()


@pytest.fixture
def at(cluster, registry, base_image, server, tmp_path, engine):
    """What the launcher is given for that cluster: its environment and configuration, and a template to change."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(cluster.kubeconfig())
    environment = {**engine.environment, "KUBECONFIG": str(kubeconfig), "MLFLOW_TRACKING_URI": server.address}

    def configured(template: str = "job-cpu.yaml", **changes) -> Path:
        job = yaml.safe_load((ROOT / "backends/kubernetes" / template).read_text())
        job["spec"]["template"]["spec"]["hostNetwork"] = True  # the engine of the tests has no other
        job["spec"] |= changes
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


@pytest.fixture(scope="module")
def chips(client, server, tmp_path_factory):
    """A `prepare` run on the server, of two small towns, made here."""
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
        **server.variables,
        "MLFLOW_TRACKING_URI": server.address,
        "MLFLOW_EXPERIMENT_NAME": "launched",
    }
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return newest(client).info.run_id


def test_a_training_on_kubernetes_leaves_metrics_in_mlflow_and_the_model_in_s3(
    at, cluster, client, chips, server, image
):
    name = "main.maps.launched"  # three levels, as Unity Catalog has them
    words = {"chips": chips, "epochs": 1, "name": name, "crop": 32, "batch_size": 4}
    done = ended(launched(at, "train", "kubernetes", at.configured(), **words))
    assert done.status == 0, done.err[-3000:]
    run = newest(client)
    assert run.info.status == "FINISHED"
    assert f"done" in done.err
    assert {"val/iou"} & set(run.data.metrics) or run.data.metrics
