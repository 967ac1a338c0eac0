"""The whole line, and its faults, against real servers as `entrypoints.server` starts them."""

import contextlib
import hashlib
import http.client
import io
import json
import logging
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlparse

import alembic.command
import alembic.config
import boto3
import geopandas as gpd
import keras
import mlflow
import pytest
import requests
import sqlalchemy
from affine import Affine
from conftest import TRANSFORM, free_block, parsed, town, write_catalog
from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.s3_artifact_repo import _cached_get_s3_client
from mlflow.store.tracking.dbmodels import initial_models
from rio_cogeo import cog_validate

from ocmlflow.chips import chip_set, zarr_store
from ocmlflow.cli import arguments, doctor, send, server
from ocmlflow.errors import InputError
from ocmlflow.launch import remote_runs
from ocmlflow.pipeline import evaluate, predict, prepare, train
from ocmlflow.pipeline.options import DoctorOptions, SendOptions, ServerOptions
from ocmlflow.server import postgresql, processes, team_server
from ocmlflow.server import settings as server_settings
from ocmlflow.storage import hrefs, range_cache
from ocmlflow.tracking import chip_artifacts, model_facts, outbox, outbox_sender, registry, run_search
from ocmlflow.tracking import runs as tracking_runs
from ocmlflow.tracking.model_facts import ModelFacts
from ocmlflow.tracking.outbox import Outbox, UndeliveredError
from ocmlflow.training import encoders
from ocmlflow.training.dataset import Crops

ROOT = Path(__file__).parents[2]

# In this process MLflow's libraries warn of one another; the verbs' own warnings are errors in the other tests.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("_garbage")]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, team_servers):
    if request.param not in team_servers[0]:
        pytest.skip("PostgreSQL is not installed")
    return request.param


@pytest.fixture
def team(team_servers, monkeypatch, tmp_path):
    """Makes one of the servers, or a line to it, the one in use, with a new experiment; returns the experiment's id."""
    before = mlflow.get_tracking_uri()
    monkeypatch.setattr(chip_artifacts, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    # Tries follow one another at once where MLflow would wait for minutes.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr(outbox, "RETRY_S", 0.5)

    def use(database: str, *, direct: bool = False, url: str = "", s3_url: str = "") -> str:
        settings = team_servers[0][database]
        for name, value in settings["s3"].items():
            monkeypatch.setenv(name, value)
        forget_credentials()
        if s3_url:
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_url)
        name = f"test-{uuid.uuid4().hex}"
        place = f"s3://data/{name}" if direct else None
        mlflow.set_tracking_uri(settings["url"])
        experiment = mlflow.create_experiment(name, artifact_location=place)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")  # set_experiment sets it: restored at the end
        mlflow.set_experiment(experiment_id=experiment)
        mlflow.set_tracking_uri(url or settings["url"])
        return experiment

    yield use
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def small_chips(made, tmp_path_factory):
    """The chips of 32 pixels, as `prepare` would have left them."""
    folder = shutil.copytree(made.folder, tmp_path_factory.mktemp("small") / "chips")
    rules = json.loads((folder / "chips.json").read_text()) | {"catalog": "towns", "validation": "kam"}
    (folder / "chips.json").write_text(json.dumps(rules))
    return folder


def prepared(folder: Path) -> str:
    """Run id of a `prepare` run that left these chips."""
    with tracking_runs.run("prepare", {}) as run:
        chip_artifacts.upload(folder, run.info.run_id)
        mlflow.set_tag(chip_artifacts.DIGEST, chip_set.digest(chip_set.load(folder).index))
    return run.info.run_id


def forget_credentials() -> None:
    """As a new process would."""
    boto3.setup_default_session()
    _cached_get_s3_client.cache_clear()  # kept for minutes, whatever the credentials; no public way to reset it


def server_options(words: list[str]) -> ServerOptions:
    return arguments.parse(ServerOptions, words, prog="ocmlflow server")


def settings_of(folder: Path, options: ServerOptions) -> dict:
    """The settings of the server in that folder, made by these options if there is none."""
    return server_settings.read_or_create(
        folder,
        database=options.database,
        port=options.port,
        s3_port=options.s3_port,
        database_port=options.database_port,
        workers=options.workers,
        allowed_hosts=options.allowed_hosts,
    )


def port_of(url: str) -> int:
    return int(urlparse(url).port or 0)


def wait_until(holds, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class After(logging.Handler):
    """Does something right after the training has said that an epoch is over, before MLflow hears of it."""

    def __init__(self, **acts) -> None:
        super().__init__()
        self.acts = acts

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.match(r"epoch (\d+):", record.getMessage()):
            self.acts.get(f"epoch_{found[1]}", lambda: None)()


@pytest.fixture
def after():
    """Attaches an `After` to the training."""
    log = logging.getLogger("ocmlflow.training.callbacks")
    handlers: list[After] = []

    def attach(**acts) -> None:
        handlers.append(After(**acts))
        log.addHandler(handlers[-1])
        log.setLevel(logging.INFO)

    yield attach
    for handler in handlers:
        log.removeHandler(handler)


SMALL = ["--encoder", "tiny", "--weights", "none", "--crop", "32", "--batch_size", "4", "--picture_epochs", "2"]
SMALL += ["--ema", "0"]  # compiles sooner


@pytest.fixture
def _tiny(monkeypatch):
    """An encoder that compiles in a second."""

    def tiny(image, pretrained):
        stages = [keras.layers.Rescaling(1 / 255)(image)]
        for _ in range(5):
            stages.append(keras.layers.Conv2D(4, 3, strides=2, padding="same")(stages[-1]))
        return stages[1:]

    monkeypatch.setitem(encoders.ENCODERS, "tiny", tiny)


@pytest.mark.usefixtures("_tiny")
def test_a_training_loses_nothing_when_the_server_is_away_in_the_middle_and_at_the_end(
    team, team_servers, line_to, small_chips, after
):
    settings = team_servers[0]["sqlite"]
    line = line_to(port_of(settings["url"]))
    experiment = team("sqlite", url=f"http://{line.address}")
    chips_run, direct = prepared(small_chips), MlflowClient(settings["url"])

    def run():
        return direct.search_runs([experiment], "tags.`ocmlflow.verb` = 'train'")[0]

    def steps(name: str) -> list[int]:
        return [point.step for point in direct.get_metric_history(run().info.run_id, name)]

    def back_and_away_again() -> None:
        assert steps("validation/iou") == [1]  # epochs 2 to 4 went on without it
        line.become("open")
        wait_until(lambda: steps("validation/iou") == [1, 2, 3])
        line.become("away")

    def known() -> None:
        wait_until(lambda: steps("validation/iou") == [1])
        line.become("away")

    after(epoch_2=known, epoch_4=back_and_away_again)
    name = f"away-{uuid.uuid4().hex[:8]}"
    with pytest.raises(UndeliveredError, match=r"`ocmlflow send` sends them"):
        train.run(parsed("train", [*SMALL, "--chips", chips_run, "--epochs", "5", "--name", name]))
    assert run().info.status == "RUNNING"
    with pytest.raises(InputError, match="entries are not sent, they are kept in"):
        send.run(SendOptions())
    line.become("open")
    send.run(SendOptions(run=run().info.run_id))
    assert run().info.status == "FINISHED"
    for figure in ("train/loss", "validation/iou", "validation/recall"):
        assert steps(figure) == [1, 2, 3, 4, 5]
    times = [point.timestamp for point in direct.get_metric_history(run().info.run_id, "train/loss")]
    assert times == sorted(times)
    assert times[-1] <= run().info.end_time  # as they were, not as they came
    version = direct.get_model_version_by_alias(name, "candidate")
    assert version.run_id == run().info.run_id
    assert registry.load_model(f"models:/{name}@candidate").facts.chips == chips_run
    names = {file.path for file in direct.list_artifacts(run().info.run_id)}
    assert {"validation.jpg", "environment.txt"} <= names
    assert not direct.list_artifacts(run().info.run_id, "state")
    assert not outbox.unsent(outbox_sender.unsent_folder())
    with pytest.raises(InputError, match="all its entries are sent"):
        send.run(SendOptions(run=run().info.run_id))


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "proxied"])
def test_the_line_runs_on_the_servers_with_all_data_in_s3(direct, team, team_servers, tmp_path):
    """Direct artifacts on SQLite, proxied ones on PostgreSQL where it is; catalogue, images, results in the same S3."""
    database = "postgresql" if "postgresql" in team_servers[0] and not direct else "sqlite"
    experiment, client = team(database, direct=direct), MlflowClient()
    base, name = f"s3://data/{uuid.uuid4().hex}", f"line-{uuid.uuid4().hex[:8]}"
    drawn = {}
    for number, place in enumerate(("acc/a1", "kam/k1")):
        at = TRANSFORM @ Affine.translation(10_000 * number, 0)
        drawn[place] = town(tmp_path / "towns", place, transform=at, height=200, width=300, seed=number)
    write_catalog(tmp_path / "towns", drawn)
    hrefs.mirror(str(tmp_path / "towns"), f"{base}/towns")
    image = f"{base}/towns/kam/k1/k1.tif"
    words = ["--catalog", f"{base}/towns/catalog.json", "--validation", "kam", "--workers", "1", "--size", "64"]
    prepare.run(parsed("prepare", [*words, "--work", str(tmp_path / "work")]))
    train.run(parsed("train", [*SMALL, "--epochs", "1", "--name", name]))
    evaluate.run(parsed("evaluate", ["--model", f"models:/{name}@candidate"]))
    words = ["--model", f"models:/{name}@champion", "--images", image, "--output", f"{base}/out"]
    predict.run(parsed("predict", [*words, "--size", "512", "--engine", "keras", "--work", str(tmp_path / "work")]))

    runs = {run.data.tags[tracking_runs.VERB]: run for run in client.search_runs([experiment])}
    assert {verb: run.info.status for verb, run in runs.items()} == dict.fromkeys(
        ("prepare", "train", "evaluate", "predict"), "FINISHED"
    )
    assert {urlparse(run.info.artifact_uri).scheme for run in runs.values()} == {"s3" if direct else "mlflow-artifacts"}
    assert client.get_model_version_by_alias(name, "champion").run_id == runs["train"].info.run_id
    report = mlflow.artifacts.load_text(f"runs:/{runs['evaluate'].info.run_id}/report.html")
    assert f"{runs['evaluate'].data.metrics['iou']:.3f}" in report
    (tmp_path / "mask.tif").write_bytes(hrefs.read(f"{base}/out/masks/k1.tif"))
    assert cog_validate(tmp_path / "mask.tif", strict=True)[0]
    footprints = gpd.read_parquet(io.BytesIO(hrefs.read(f"{base}/out/footprints/k1.parquet")))
    assert set(footprints.scene) <= {"k1"}
    made = chip_set.load(chip_artifacts.open_folder(runs["prepare"].info.run_id))
    assert chip_set.digest(made.index) == runs["prepare"].data.tags[chip_artifacts.DIGEST]
    (kept_in,) = (tmp_path / "cache" / "chips").glob(f"{runs['prepare'].info.run_id}-*")
    kept = hrefs.list_recursive(str(kept_in))  # read from S3 once
    assert {"k1.zarr/image/c.0.0.0.0", "k1.zarr/label/c.0.0.0", "chips.json"} <= kept.keys()
    assert not {name for name in kept if name.endswith("rows.parquet")}  # what nobody asks for


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "proxied"])
def test_an_upload_that_broke_goes_on_where_it_was_and_all_is_whole(direct, team, team_servers, line_to, tmp_path):
    """Files of 10 MB, which go to S3 in parts."""
    settings = team_servers[0]["sqlite"]
    line = line_to(port_of(settings["s3"]["AWS_ENDPOINT_URL_S3"] if direct else settings["url"]))
    address = f"http://{line.address}"
    experiment = team("sqlite", direct=direct, **{"s3_url" if direct else "url": address})
    source, size = tmp_path / "chips", 10_000_000
    (source / "a.zarr" / "image").mkdir(parents=True)
    for number in range(4):
        (source / "a.zarr" / "image" / f"c.{number}").write_bytes(os.urandom(size))
    (source / "chips.json").write_text("{}")
    run_id = MlflowClient(settings["url"]).create_run(experiment).info.run_id
    line.left = 25_000_000
    with pytest.raises(InputError, match=rf"cannot be uploaded to run {run_id}; run `prepare` again to go on"):
        chip_artifacts.upload(source, run_id)
    line.left = None
    line.become("open")
    forget_credentials()
    assert not chip_artifacts.is_complete(run_id)
    there = set(chip_artifacts._sizes(chip_artifacts._address(run_id))) - {chip_artifacts.FILE_LIST}
    assert 0 < len(there) < 4
    assert chip_artifacts.upload(source, run_id) == (5 - len(there), (4 - len(there)) * size + 2)
    assert chip_artifacts.is_complete(run_id)
    assert chip_artifacts.upload(source, run_id) == (0, 0)
    (source / "a.zarr" / "image" / "c.2").write_bytes(os.urandom(size))  # of the same size
    (source / "a.zarr" / "image" / "c.3").unlink()
    assert chip_artifacts.upload(source, run_id) == (1, size)
    folder = chip_artifacts.open_folder(run_id)
    back = {
        name: hashlib.sha256(zarr_store.read_bytes(folder, name)).hexdigest()
        for name in hrefs.list_recursive(str(source))
    }
    assert back == {name: hashlib.sha256((source / name).read_bytes()).hexdigest() for name in back}
    assert set(chip_artifacts._sizes(chip_artifacts._address(run_id))) == {*back, chip_artifacts.FILE_LIST}


def test_chips_that_are_gone_or_do_not_fit_the_cache_are_errors_that_say_so(
    team, team_servers, line_to, small_chips, monkeypatch
):
    team("sqlite")
    proxied = prepared(small_chips)
    monkeypatch.setenv("OCMLFLOW_CACHE_GB", "0.00001")
    with pytest.raises(InputError, match=r"mlflow-artifacts:/.* has 0\.0 GB, the cache in .*OCMLFLOW_CACHE_GB higher"):
        chip_artifacts.open_folder(proxied)
    monkeypatch.delenv("OCMLFLOW_CACHE_GB")
    monkeypatch.setattr(range_cache, "PATIENCE_S", 1)
    line = line_to(port_of(team_servers[0]["sqlite"]["s3"]["AWS_ENDPOINT_URL_S3"]))
    team("sqlite", direct=True, s3_url=f"http://{line.address}")
    direct = prepared(small_chips)
    made = chip_set.load(chip_artifacts.open_folder(direct))
    crops = Crops(made, side=32, inner=32, batch_size=4, seed=0, workers=2, building_crops=0.5)
    line.become("away")
    with pytest.raises(InputError, match=rf"cannot read aaa\.zarr/.* of the chips of run {direct}: s3://data/.*aaa"):
        crops[0]
    with pytest.raises(InputError, match=rf"the chips of run {direct} cannot be listed: cannot list s3://data/"):
        chip_artifacts.open_folder(direct)


def test_clients_of_proxied_artifacts_need_not_reach_the_s3_server(team, team_servers, small_chips, monkeypatch):
    team("sqlite")
    for way in ("DOWNLOAD", "UPLOAD"):
        monkeypatch.delenv(f"MLFLOW_ENABLE_PROXY_MULTIPART_{way}", raising=False)
    closed = port_of(team_servers[0]["sqlite"]["s3"]["AWS_ENDPOINT_URL_S3"])
    connect = socket.socket.connect

    def firewall(self: socket.socket, address) -> None:
        if address[1] == closed:
            raise ConnectionRefusedError(f"port {closed} is closed to clients")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", firewall)
    run_id = prepared(small_chips)
    assert len(chip_set.load(chip_artifacts.open_folder(run_id)).index)
    # What MLflow does when nothing is said: its tries take two minutes.
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "true")
    url = get_artifact_repository(mlflow.get_run(run_id).info.artifact_uri)._get_presigned_download_url(
        "environment.txt"
    )
    with pytest.raises(requests.ConnectionError):
        requests.get(url.url, timeout=10)


def test_a_server_that_is_away_at_the_start_ends_it_at_once_or_is_waited_for(team, team_servers, line_to, monkeypatch):
    line = line_to(port_of(team_servers[0]["sqlite"]["url"]))
    team("sqlite", url=f"http://{line.address}")
    line.become("away")
    with (
        pytest.raises(InputError, match=rf"no run can be started at http://{line.address}: .*doctor` says"),
        tracking_runs.run("train", {}),
    ):
        pytest.fail("the work began")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    line.become("away", times=2)
    with tracking_runs.run("train", {}) as run:
        pass
    assert MlflowClient().get_run(run.info.run_id).info.status == "FINISHED"


def test_a_database_that_is_away_is_told_in_one_line_without_its_password(team, monkeypatch):
    team("sqlite")
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)  # tries that take two minutes
    mlflow.set_tracking_uri("postgresql+psycopg2://mlflow:hidden@127.0.0.1:9/runs")
    said = r"no run can be started at postgresql\+psycopg2://127\.0\.0\.1:9/runs: connection to .*refused[^\n]*doctor`"
    with pytest.raises(InputError, match=said), tracking_runs.run("train", {}):
        pytest.fail("the work began")
    with pytest.raises(
        InputError, match=r"resume=0 names no run of .*, or that does not answer: connection to .*refused"
    ):
        run_search.get_interrupted("train", "0")


@pytest.mark.parametrize("fault", ["busy", "slow", "refused"])
def test_artifacts_outlast_the_faults_of_s3(fault, team, team_servers, line_to, monkeypatch, tmp_path):
    line = line_to(port_of(team_servers[0]["sqlite"]["s3"]["AWS_ENDPOINT_URL_S3"]))
    experiment = team("sqlite", direct=True, s3_url=f"http://{line.address}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    state, secret = tmp_path / "state.npz", os.environ["AWS_SECRET_ACCESS_KEY"]

    def credentials(value: str) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", value)
        forget_credentials()

    def work() -> str:
        with tracking_runs.run("train", {}) as run:
            if fault == "refused":
                credentials("expired-secret")
            else:
                line.become(fault)
            state.write_bytes(b"state")
            tracking_runs.save_state(state)
            tracking_runs.log_metrics({"loss": 1.0}, step=1)
        return run.info.run_id

    if fault == "slow":
        work()
    else:
        with pytest.raises(UndeliveredError) as caught:
            work()
        assert "secret" not in str(caught.value)
        credentials(secret)
        line.become("open")
        send.run(SendOptions())
    (run,) = MlflowClient().search_runs([experiment])
    assert (line.faults > 0) == (fault == "busy")
    assert run.info.status == "FINISHED"
    assert hrefs.read(f"{run.info.artifact_uri}/state/state.npz") == b"state"
    assert run.data.metrics["loss"] == 1


def test_credentials_that_s3_refuses_end_a_run_before_its_work(team, monkeypatch):
    team("sqlite", direct=True)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    forget_credentials()
    with (
        pytest.raises(InputError, match=r"no run can be started.*SignatureDoesNotMatch"),
        tracking_runs.run("train", {}),
    ):
        pytest.fail("the work began")
    assert mlflow.active_run() is None


def test_two_trainings_register_at_once(team, database):
    team(database)
    image = keras.Input((None, None, 3), dtype="uint8")
    network = keras.Model(image, keras.layers.Conv2D(1, 1)(keras.layers.Rescaling(1 / 255)(image)))
    name, client = f"race-{uuid.uuid4().hex[:8]}", MlflowClient()
    runs = [client.create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id for _ in range(4)]

    def register(run_id: str) -> None:
        box = Outbox(outbox_sender.unsent_folder() / run_id, partial(outbox_sender.send_entry, run_id))
        network.save(box.folder / "model.keras")
        told = {"do": "model", "name": name, "facts": {"gsd": 0.1, "run": run_id}}
        box.put(told, box.folder / "model.keras")
        box.close()

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(register, runs))
    versions = client.search_model_versions(f"name = '{name}'")
    assert sorted(int(version.version) for version in versions) == [1, 2, 3, 4]
    assert {version.run_id for version in versions} == set(runs)
    assert all(version.tags["gsd"] == "0.1" for version in versions)
    assert client.get_model_version_by_alias(name, "candidate").run_id in runs


@pytest.mark.usefixtures("_tiny")
def test_a_training_on_a_full_disk_goes_on_and_is_resumed(team, small_chips, after):
    """Files of more than 100 kB do not fit from epoch 2 on: neither states nor the model."""
    experiment, before = team("sqlite"), resource.getrlimit(resource.RLIMIT_FSIZE)
    chips_run, name = prepared(small_chips), f"full-{uuid.uuid4().hex[:8]}"

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))

    after(epoch_2=fill)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails, as on a full disk
    try:
        with pytest.raises(InputError, match=r"the model cannot be kept: .*Make room, then go on with resume="):
            train.run(parsed("train", [*SMALL, "--chips", chips_run, "--epochs", "2", "--name", name]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    client = MlflowClient()
    run = client.search_runs([experiment], "tags.`ocmlflow.verb` = 'train'")[0]
    assert run.info.status == "FAILED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2]
    logging.getLogger("ocmlflow.training.callbacks").handlers.clear()
    train.run(parsed("train", ["--resume", run.info.run_id]))
    assert client.get_run(run.info.run_id).info.status == "FINISHED"
    assert client.get_model_version_by_alias(name, "candidate").run_id == run.info.run_id


def test_no_secret_is_written_anywhere(team, team_servers, tmp_path):
    """Not in what is shown, in parameters, tags, artifacts or what is kept to be sent later."""
    experiment, settings = team("sqlite"), team_servers[0]["sqlite"]
    catalog = "http://user:planted-1@127.0.0.1:9/catalog.json?X-Amz-Signature=planted-2"
    address = settings["url"].replace("http://", "http://team:planted-3@")
    database = "postgresql+psycopg2://mlflow:planted-6@127.0.0.1:9/runs"
    planted = {"AWS_SECRET_ACCESS_KEY": "planted-4-key", "AWS_SESSION_TOKEN": "planted-5-token"}
    code = (
        "import os\n"
        "from ocmlflow.cli import console\n"
        "from ocmlflow.tracking import runs\n"
        "def main():\n"
        f"    with runs.run('prepare', {{'catalog': {catalog!r}, 'store': {database!r}}}):\n"
        "        runs.log_metrics({'a': 1.0})\n"
        f"        raise RuntimeError({catalog!r} + os.environ['AWS_SECRET_ACCESS_KEY'] + {database!r})\n"
        "console.run(main)"
    )
    at_work = [
        subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, **planted, "MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_ID": experiment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for uri, words in (
            (address, ["-m", "entrypoints.prepare", "--catalog", catalog]),
            (address, ["-c", code]),
            (database, ["-m", "entrypoints.doctor"]),
        )
    ]
    shown = ""
    for process in at_work:
        shown += process.communicate(timeout=300)[0]
        assert process.returncode == 1, shown
    runs = MlflowClient().search_runs([experiment])
    assert len(runs) == 2
    for run in runs:
        shown += json.dumps(run.to_dictionary())
        folder = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="")
        shown += "".join(path.read_text() for path in Path(folder).rglob("*") if path.is_file())
    for path in (tmp_path / "state").rglob("*.json"):
        shown += path.read_text()
    assert "127.0.0.1:9/catalog.json" in shown
    assert (
        "FAULT  tracking server: postgresql+psycopg2://127.0.0.1:9/runs cannot be opened: set MLFLOW_TRACKING_URI"
        in shown
    )
    assert re.findall(r".{0,60}planted.{0,20}", shown) == []


@pytest.fixture
def guard(team_servers, tmp_path):
    """A proxy as docs/server.md has it before the server: its address, its certificate, paths that it does not hand on.

    TLS, and a name and password, without which it answers 401.
    """
    hidden: set[str] = set()

    class Guard(BaseHTTPRequestHandler):
        def do_GET(self):
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != requests.auth._basic_auth_str("team", "open-sesame"):
                return self.send_error(401)
            if self.path in hidden:
                return self.send_error(404)
            server = http.client.HTTPConnection("127.0.0.1", port_of(team_servers[0]["sqlite"]["url"]))
            with contextlib.closing(server):
                server.request(self.command, self.path, content, dict(self.headers))
                answer = server.getresponse()
                content = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        certificate,
        *subject,
    ]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Guard) as proxy:
        proxy.socket = context.wrap_socket(proxy.socket, server_side=True)
        Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{proxy.server_port}", certificate, hidden
        proxy.shutdown()


def test_launcher_and_doctor_reach_a_server_behind_tls_and_a_password(team, guard, monkeypatch, capsys, tmp_path):
    address, certificate, hidden = guard
    team("sqlite", url=address)

    def consult() -> str:
        try:
            doctor.run(DoctorOptions(work=str(tmp_path), free_gb=0.01))
        except InputError:
            return capsys.readouterr().out
        return capsys.readouterr().out

    with pytest.raises(InputError, match="CERTIFICATE_VERIFY_FAILED"):
        remote_runs.check_server()
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
    with pytest.raises(InputError, match="401"):
        remote_runs.check_server()
    assert f"FAULT  tracking server: {address} wants credentials" in consult()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "team")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "open-sesame")
    assert remote_runs.check_server() == address
    said = consult()
    assert re.search(rf"ok     tracking server: {address} answers in \d+ ms, MLflow 3\.", said)
    assert "ok     artifacts: 100 kB written to and read from mlflow-artifacts:/" in said
    hidden.add("/version")
    assert re.search(rf"ok     tracking server: {address} .* MLflow of a version that it does not tell", consult())


def test_models_that_could_run_code_are_refused(team):
    team("sqlite")
    image = keras.Input((None, None, 3), dtype="uint8")
    evil = keras.Model(image, keras.layers.Lambda(lambda x: x / 255)(image))

    class Python(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: list[str]) -> list[str]:
            return model_input

    with mlflow.start_run(log_system_metrics=False):
        facts = ModelFacts(gsd=0.1, multiple=1, run="none", chips="none", trained_on=())
        kept = {"pip_requirements": ["keras"], "metadata": model_facts.to_metadata(facts)}
        lambdas = mlflow.keras.log_model(evil, name="lambda", **kept).model_uri
        pickled = mlflow.pyfunc.log_model(name="pickle", python_model=Python(), **kept).model_uri
    with pytest.raises(InputError, match="is refused because it is unsafe"):
        _ = registry.load_model(lambdas).keras
    with pytest.raises(InputError, match="is no Keras file but python_function"):
        registry.load_model(pickled)


def test_status_tells_what_runs_and_down_forgets_nothing(team_servers, capsys):
    settings, top = team_servers
    for database in settings:
        server.run(server_options(["status", "--folder", str(top / database)]))
    said = capsys.readouterr().out
    assert said.count("answers, process") == sum(len(one["parts"]) for one in settings.values())
    assert oct((top / "sqlite" / "settings.json").stat().st_mode)[-3:] == "600"
    with pytest.raises(InputError, match="holds no server: `ocmlflow server up` makes one"):
        server.run(server_options(["status", "--folder", str(top / "none")]))


def test_the_settings_for_a_shell_hold_beside_temporary_credentials_of_elsewhere(team_servers):
    code = "from ocmlflow.storage import hrefs; print(hrefs.list_files('s3://mlflow'))"
    script = f'set -a; . {team_servers[1]}/sqlite/client.env; exec {sys.executable} -c "{code}"'
    shell = {**os.environ, "AWS_SESSION_TOKEN": "of-another-key"}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=shell, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_mlflows_page_may_write_under_the_names_that_the_server_has_and_no_other_page(team_servers):
    address = f"{team_servers[0]['sqlite']['url']}/ajax-api/2.0/mlflow/runs/search"
    for origin, answer in {
        "https://mlflow.example.org": 200,
        "http://mlflow.example.org": 200,
        "https://a.org": 403,
    }.items():
        names = {"Host": "mlflow.example.org", "Origin": origin}
        found = requests.post(address, json={"experiment_ids": ["0"]}, headers=names, timeout=60)
        assert (origin, found.status_code) == (origin, answer), found.text


def test_another_server_at_a_port_is_not_taken_for_a_part_of_this_one(team_servers, tmp_path, capsys, request):
    other = team_servers[0]["sqlite"]["ports"]
    folder, free = tmp_path / "server", free_block(8)
    request.addfinalizer(lambda: team_server.down(folder))
    words = ["--folder", str(folder), "--database", "sqlite", "--port", str(free[5]), "--s3_port", str(free[0])]
    for flag, name in (("--port", "mlflow"), ("--s3_port", "s3")):
        with pytest.raises(InputError, match=rf"port {other[name]}, which {name} needs, is taken by another program"):
            server.run(server_options(["up", *words, flag, str(other[name])]))
    assert not folder.exists()
    settings = settings_of(folder, server_options(["up", *words])) | {"ports": other}
    (folder / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=f"port {other['s3']}, which s3 needs"):
        server.run(server_options(["up", *words]))
    with pytest.raises(InputError, match="s3, mlflow: see the logs"):
        server.run(server_options(["status", *words]))
    assert "mlflow      does not run" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["no program", "no user", "no rights"])
def test_a_server_whose_database_cannot_be_made_is_made_the_same_way_when_it_can(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0 if fault == "no user" else 1000)
    monkeypatch.setattr(postgresql, "DEBIAN", tmp_path)
    monkeypatch.setenv("PATH", os.environ["PATH"] if fault == "no rights" else "")
    initdb = tmp_path / "15" / "bin" / "initdb"
    if fault != "no program":
        initdb.parent.mkdir(parents=True)
        initdb.write_text("#!/bin/sh\necho no rights >&2; exit 1\n")
        initdb.chmod(0o755)
    monkeypatch.setattr("pwd.getpwnam", {}.__getitem__)
    ports, folder = free_block(8), tmp_path / "server"
    words = ["--port", str(ports[5]), "--s3_port", str(ports[0]), "--database_port", str(ports[6])]
    args = server_options(["up", "--folder", str(folder), *words])
    said = {"no program": "initdb is not installed: apt-get", "no user": "the user postgres, .* is missing"}
    for _ in range(2):
        with pytest.raises(InputError, match=said.get(fault, "cannot create a database in .*: no rights")):
            server.run(args)
        assert not folder.exists() or not list(folder.iterdir())
    initdb.parent.mkdir(parents=True, exist_ok=True)
    initdb.write_text('#!/bin/sh\necho 15 > "$2/PG_VERSION"\n')
    initdb.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert settings_of(folder, args)["parts"] == ["s3", "postgresql", "mlflow"]
    assert (folder / "postgresql" / "PG_VERSION").read_text() == "15\n"
    assert not list(folder.glob("*.p*"))


def test_a_backup_brings_runs_and_artifacts_back(team, team_servers, database, tmp_path):
    team(database)
    settings, top = team_servers
    with tracking_runs.run("prepare", {"catalog": "towns"}) as run:
        tracking_runs.log_metrics({"chips": 7.0})
    with mlflow.start_run(run_id=run.info.run_id, log_system_metrics=False):
        mlflow.log_text("some text", "note.txt")
    server.run(server_options(["backup", "--folder", str(top / database), "--backup", str(tmp_path / "kept")]))
    with pytest.raises(InputError, match="stop MLflow first"):
        server.run(server_options(["restore", "--folder", str(top / database), "--backup", str(tmp_path / "kept")]))
    # A second server of the same kind, with nothing in it, that is never started but for what holds the data.
    ports = free_block(8)
    words = ["--folder", str(top / f"{database}-2"), "--database", database, "--s3_port", str(ports[0])]
    args = server_options(["restore", *words, "--database_port", str(ports[6]), "--backup", str(tmp_path / "kept")])
    try:
        second = settings_of(Path(args.folder), args)
        server.run(args)
        with sqlalchemy.create_engine(second["store"]).begin() as connection:  # what a newer MLflow might have added
            connection.execute(sqlalchemy.text("CREATE TABLE later (run_id VARCHAR(32) REFERENCES runs (run_uuid))"))
        server.run(args)
        mlflow.set_tracking_uri(second["store"])
        assert mlflow.get_run(run.info.run_id).data.metrics["chips"] == 7
        assert "later" not in sqlalchemy.inspect(sqlalchemy.create_engine(second["store"])).get_table_names()
        with processes.as_owner(second):
            (note,) = [
                name
                for name in hrefs.list_recursive("s3://mlflow")
                if name.endswith(f"{run.info.run_id}/artifacts/note.txt")
            ]
            assert hrefs.read(f"s3://mlflow/{note}") == b"some text"
        make_old(second["store"])
        server.run(server_options(["upgrade", *words]))
        (old,) = MlflowClient().search_runs(["0"])
        assert (old.info.run_id, old.info.run_name, old.info.status) == ("0" * 32, "old run", "FINISHED")
        assert old.data.metrics == {"loss": 0.5}
        with mlflow.start_run(experiment_id="0", log_system_metrics=False):
            mlflow.log_metric("loss", 0.25)
        assert len(MlflowClient().search_runs(["0"])) == 2
    finally:
        mlflow.set_tracking_uri(settings[database]["url"])
        team_server.down(Path(args.folder))


def make_old(store: str) -> None:
    """Make a database one of MLflow 2.22 with one run: MLflow's first tables, brought to the revision of then."""
    engine = sqlalchemy.create_engine(store)
    with engine.begin() as connection:
        found = sqlalchemy.MetaData()
        found.reflect(connection)
        found.drop_all(connection)
    initial_models.Base.metadata.create_all(engine)
    folder = Path(mlflow.__file__).parent / "store" / "db_migrations"
    migrations = alembic.config.Config(folder / "alembic.ini")
    migrations.set_main_option("script_location", str(folder))
    migrations.set_main_option("sqlalchemy.url", store.replace("%", "%%"))
    alembic.command.upgrade(migrations, "0584bdc529eb")
    with engine.begin() as connection:
        for row in (
            "INSERT INTO experiments (experiment_id, name, lifecycle_stage, artifact_location) "
            "VALUES (0, 'Default', 'active', 's3://mlflow/0')",
            "INSERT INTO runs (run_uuid, name, user_id, status, lifecycle_stage, experiment_id, start_time, end_time, "
            f"artifact_uri) VALUES ('{'0' * 32}', 'old run', 'me', 'FINISHED', 'active', 0, 1, 2, 's3://mlflow/0/0')",
            "INSERT INTO latest_metrics (run_uuid, key, value, timestamp, step, is_nan) "
            f"VALUES ('{'0' * 32}', 'loss', 0.5, 1, 1, false)",
        ):
            connection.execute(sqlalchemy.text(row))
    engine.dispose()


def test_clean_removes_deleted_runs_and_models_and_their_artifacts_alone(team, team_servers, database, tmp_path):
    team(database)
    (kept, gone), client = ([prepared_note() for _ in range(2)], MlflowClient())
    logged = [client.create_logged_model(gone.info.experiment_id, source_run_id=gone.info.run_id) for _ in range(2)]
    for model in logged:
        client.log_model_artifacts(model.model_id, str(write_note(tmp_path)))
        client.finalize_logged_model(model.model_id, "READY")
    client.delete_run(gone.info.run_id)
    client.delete_logged_model(logged[1].model_id)
    settings, top = team_servers
    server.run(server_options(["clean", "--folder", str(top / database), "--older_than", "0d"]))
    with pytest.raises(mlflow.MlflowException, match="not found"):
        client.get_run(gone.info.run_id)
    with processes.as_owner(settings[database]):
        names = hrefs.list_recursive("s3://mlflow")
    assert any(kept.info.run_id in name for name in names)
    assert not any(gone.info.run_id in name for name in names)
    assert [any(model.model_id in name for name in names) for model in logged] == [True, False]  # docs/server.md


def write_note(folder: Path) -> Path:
    (folder / "note").mkdir(exist_ok=True)
    (folder / "note" / "note.txt").write_text("a note")
    return folder / "note"


def prepared_note():
    with tracking_runs.run("prepare", {}) as run:
        pass
    return run


def test_the_doctor_says_what_is_wrong_and_how_to_mend_it(team, team_servers, line_to, monkeypatch, capsys, tmp_path):
    settings = team_servers[0]["sqlite"]
    experiment = team("sqlite", direct=True)

    def consult(**options) -> str:
        forget_credentials()
        try:
            doctor.run(DoctorOptions(**{"work": str(tmp_path), "free_gb": 0.01, **options}))
        except InputError as error:
            return f"{capsys.readouterr().out} {error}"
        return capsys.readouterr().out

    said = consult()
    assert "FAULT" not in said
    assert re.search(r"ok     tracking server: http://127\.0\.0\.1:\d+ answers in \d+ ms, MLflow 3\.", said)
    assert re.search(r"ok     S3: s3://data/.* gives ranges, to boto3 and to GDAL", said)
    assert "ok     Keras: 3." in said
    assert not MlflowClient().search_runs([experiment])
    assert not hrefs.list_recursive(MlflowClient().get_experiment(experiment).artifact_location)
    assert "FAULT  disk: " in consult(free_gb=1e9)
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    said = consult()
    assert "FAULT  artifacts: nothing can be written or read: the secret is not that of the access key" in said
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    assert "FAULT  S3: s3://nobucket: these credentials have no right to that bucket" in consult(s3="s3://nobucket")
    Outbox(outbox_sender.unsent_folder() / "aaa", lambda told, folder: 1 / 0).put({"do": "tags", "values": {}})
    assert "1 runs left something: `ocmlflow send` sends it" in consult()
    line = line_to(port_of(settings["url"]))
    line.become("away")
    mlflow.set_tracking_uri(f"http://{line.address}")
    said = consult()
    assert f"FAULT  tracking server: http://{line.address} does not answer: is it up" in said
    assert "-      artifacts: to be checked when the tracking server answers" in said
    mlflow.set_tracking_uri(settings["url"])
