"""Users of one server with rights of their own (MLflow's basic-auth): what may not be registered is told early."""

import os
import sys

import mlflow
import pytest
from conftest import one_layer
from containers import answering_mlflow, free_port
from mlflow import MlflowClient

from ocmlflow.cli import send
from ocmlflow.errors import InputError
from ocmlflow.pipeline.options import SendOptions
from ocmlflow.tracking import outbox_sender, registry, runs
from ocmlflow.tracking.model_facts import ModelFacts
from ocmlflow.tracking.outbox import UndeliveredError

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's libraries warn of one another
PASSWORD = "of-twelve-letters"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server on which users may read what others registered, and change their own: its address."""
    folder, port = tmp_path_factory.mktemp("rights"), free_port()
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        f"admin_username = admin\nadmin_password = {PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    variables = {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "secret"}
    variables |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with answering_mlflow(command, port, folder, {**os.environ, **variables}) as address:
        yield address


@pytest.fixture
def login(server, monkeypatch):
    """Makes a user the current one, with an experiment of their own."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server)
    known = set()

    def become(user: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        if user not in known:
            from mlflow.server.auth.client import AuthServiceClient  # late: its libraries warn of one another

            AuthServiceClient(server).create_user(user, PASSWORD)
        known.add(user)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")
        mlflow.set_experiment(user)

    yield become
    mlflow.set_tracking_uri(before)


def train_as(name: str) -> None:
    """Log a model and register it under that name, in a run."""
    with runs.run("train", {}) as trained:
        facts = ModelFacts(gsd=0.1, multiple=1, run=trained.info.run_id, chips="chips", trained_on=())
        runs.log_model(one_layer(1, 0), facts, name=name)


def test_a_model_of_somebody_else_is_told_before_the_training_and_sent_under_another_name(server, login):
    login("alice")
    registry.register("buildings")
    registry.register("buildings")  # her own, once more
    login("robert")
    with pytest.raises(InputError, match=r"cannot register a version of buildings: .* does not let this user change"):
        registry.register("buildings")
    registry.register("roberts")

    with pytest.raises(UndeliveredError, match=r"send --run \w+ --name NAME"):
        train_as("buildings")  # as if the right had been withdrawn meanwhile
    (trained,) = mlflow.search_runs(experiment_names=["robert"], output_format="list")
    run_id = trained.info.run_id
    with pytest.raises(InputError, match="not sent"):
        send.run(SendOptions(run=run_id))
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    with pytest.raises(InputError, match=f"are for {server}, not for http://127.0.0.1:9: set MLFLOW_TRACKING_URI"):
        send.run(SendOptions(run=run_id, name="roberts"))
    send.run(SendOptions())  # offers it to no other server
    mlflow.set_tracking_uri(server)
    send.run(SendOptions(run=run_id, name="roberts"))
    assert registry.find_version(run_id, "roberts") == "1"
    assert MlflowClient().get_model_version_by_alias("roberts", "candidate").run_id == run_id
    assert MlflowClient().get_run(run_id).info.status == "FINISHED"
    assert not (outbox_sender.unsent_folder() / run_id).exists()
