"""A job run of a Databricks workspace is followed to its end, against a workspace that answers as told."""

import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config
from json_server import JsonHandler, serve

from ocmlflow.launch import databricks_job


@pytest.fixture
def workspace(monkeypatch):
    """A client, the states that come one after the other (the last one stays), and the paths posted to."""
    monkeypatch.setattr(databricks_job, "POLL_S", 0.01)
    states: list[dict] = []
    posted: list[str] = []

    class Handler(JsonHandler):
        def _get(self):
            if "get-output" in self.path:
                self.answer(200, {"logs": "epoch 1\nepoch 2\n", "error": "no room"})
                return
            state = states[0]
            if len(states) > 1:
                del states[0]
            self.answer(200, {"run_id": 1, "state": state, "tasks": [{"run_id": 2, "task_key": "t"}]})

        def _post(self):
            self.content()
            posted.append(self.path)
            self.answer(200, {})

        do_GET, do_POST = _get, _post  # noqa: N815

    server = serve(Handler)
    config = Config(host=f"http://127.0.0.1:{server.server_port}", token="of-nobody", retry_timeout_seconds=1)
    yield WorkspaceClient(config=config), states, posted
    server.shutdown()
    server.server_close()


def run(client, *, pending_s=60.0):
    shown: list[str] = []
    failure = databricks_job.run(client, 1, pending_s=pending_s, show=shown.append)
    return failure, shown


def test_a_run_that_succeeds_has_its_output_shown(workspace, caplog):
    caplog.set_level("INFO")
    client, states, posted = workspace
    states += [{"life_cycle_state": "PENDING", "state_message": "starting"}, {"life_cycle_state": "RUNNING"}]
    states += [{"life_cycle_state": "TERMINATED", "result_state": "SUCCESS"}]
    assert run(client) == (None, ["epoch 1", "epoch 2"])
    assert not posted
    assert "run 1 of the workspace: PENDING starting" in caplog.text


def test_a_run_that_fails_says_why(workspace):
    client, states, _ = workspace
    states += [{"life_cycle_state": "TERMINATED", "result_state": "FAILED", "state_message": "task failed"}]
    assert run(client)[0] == "it ended as FAILED; task failed; no room"


def test_a_run_whose_cluster_never_starts_is_cancelled(workspace):
    client, states, posted = workspace
    states += [{"life_cycle_state": "PENDING", "state_message": "no machine"}]
    assert run(client, pending_s=0.1)[0] == "no cluster has come up in 0.00166667 minutes: PENDING no machine"
    assert [path for path in posted if path.endswith("/runs/cancel")]


def test_an_interruption_cancels_the_run(workspace, monkeypatch):
    client, states, posted = workspace
    states += [{"life_cycle_state": "RUNNING"}]

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ocmlflow.launch.databricks_job.time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(client)
    assert [path for path in posted if path.endswith("/runs/cancel")]
