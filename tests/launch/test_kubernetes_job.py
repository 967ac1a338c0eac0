"""A Job is followed to its end, against an API server that answers as told."""

import kubernetes
import pytest
from json_server import JsonHandler, serve

from ocmlflow.launch import kubernetes_job

JOB = {"metadata": {"name": "j", "namespace": "n"}}
PENDING = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "no node fits"}]}
ENDED = {"terminated": {"exitCode": 3, "reason": "Error"}}
STATUS = {"name": "step", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": ENDED}
FAILED = {"phase": "Failed", "containerStatuses": [STATUS]}
LOG = b"2026-01-01T00:00:00.1Z epoch 1\n2026-01-01T00:00:02.5Z epoch 2\n"


@pytest.fixture
def cluster(monkeypatch):
    """A client, the states of Job and pod that come one after the other (the last one stays), and the calls."""
    monkeypatch.setattr(kubernetes_job, "POLL_S", 0.01)
    states: list = []
    calls: list[str] = []

    class Handler(JsonHandler):
        def _get(self):
            calls.append(f"GET {self.path.partition('?')[0]}")
            if self.path.partition("?")[0].endswith("/log"):
                self.send_response(200)
                self.send_header("Content-Length", str(len(LOG)))
                self.end_headers()
                self.wfile.write(LOG)
            elif "/pods" in self.path:
                pod = states[0][1]
                if len(states) > 1:
                    del states[0]
                pods = [{"metadata": {"name": "p", "namespace": "n"}, "status": pod}] if pod else []
                self.answer(200, {"kind": "PodList", "apiVersion": "v1", "items": pods})
            elif isinstance(states[0], int):
                code = states[0]
                if len(states) > 1:
                    del states[0]
                self.answer(code, {"kind": "Status", "message": "says no"})
            else:
                conditions = [{"type": states[0][0], "status": "True", "message": "too many"}] if states[0][0] else []
                self.answer(200, {**JOB, "status": {"conditions": conditions}})

        def _change(self):
            self.content()
            calls.append(f"{self.command} {self.path.partition('?')[0]}")
            self.answer(200, JOB)

        do_GET = _get  # noqa: N815
        do_POST = do_DELETE = _change  # noqa: N815

    server = serve(Handler)
    configuration = kubernetes.client.Configuration(host=f"http://127.0.0.1:{server.server_port}")
    with kubernetes.client.ApiClient(configuration) as client:
        yield client, states, calls
    server.shutdown()
    server.server_close()


def run(client, *, pending_s=60.0):
    shown: list[str] = []
    failure = kubernetes_job.run(client, JOB, pending_s=pending_s, show=shown.append)
    return failure, shown


def test_a_job_that_completes_has_its_log_shown_once(cluster, caplog):
    caplog.set_level("INFO")
    client, states, calls = cluster
    states += [("", None), ("", PENDING), ("", {"phase": "Running"}), ("", {"phase": "Running"}), ("Complete", FAILED)]
    assert run(client) == (None, ["epoch 1", "epoch 2"])
    assert calls[0] == "POST /apis/batch/v1/namespaces/n/jobs"
    assert not [call for call in calls if call.startswith("DELETE")]
    assert "waiting for a pod: no node fits" in caplog.text
    assert "the pod runs" in caplog.text


def test_a_job_that_fails_says_why(cluster):
    client, states, _ = cluster
    states += [("Failed", FAILED)]
    assert run(client)[0] == "too many; the container ended with status 3 (Error)"


def test_a_job_whose_pod_never_starts_is_deleted(cluster):
    client, states, calls = cluster
    states += [("", PENDING)]
    assert run(client, pending_s=0.1)[0] == "no pod has started in 0.00166667 minutes: no node fits"
    assert calls[-1] == "DELETE /apis/batch/v1/namespaces/n/jobs/j"


def test_a_job_that_was_deleted_or_whose_cluster_is_silent_is_given_up(cluster, monkeypatch):
    client, states, _ = cluster
    states += [500, ("", PENDING), 404]
    assert run(client)[0] == "Job j was deleted"  # and one error of the server was waited out
    monkeypatch.setattr(kubernetes_job, "PATIENCE_S", 0.1)
    states[:] = [500]
    assert run(client)[0] == "the cluster has not answered for 0.1 s: says no"


def test_an_interruption_deletes_the_job(cluster, monkeypatch):
    client, states, calls = cluster
    states += [("", PENDING)]

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(kubernetes_job, "_why_pending", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(client)
    assert calls[-1] == "DELETE /apis/batch/v1/namespaces/n/jobs/j"
