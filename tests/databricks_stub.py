"""A stand-in for a Databricks workspace: DBFS, secrets and job runs, whose command a container runs for real.

The image plays the cluster's runtime: what it holds is there, what is uploaded lies under /dbfs, nothing else.
"""

import json
import re
import subprocess
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlparse

from json_server import JsonHandler, serve

TOKEN = "dapi-of-nobody"


class Workspace:
    """The state of the workspace, and its server on a free port."""

    def __init__(self, environment: dict[str, str], image: str, dbfs: Path):
        self.environment, self.image, self.dbfs = environment, image, dbfs
        self.secrets: dict[str, str] = {}
        """By SCOPE/KEY."""
        self.submitted: dict[int, dict] = {}
        self.states: dict[int, dict[str, str]] = {}
        self.outputs: dict[int, str] = {}
        self.clusters_come_up = True
        self.refuses = ""
        """What every submission is answered with, if anything."""
        self.server = serve(_handler(self))
        self.host = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        for number in self.submitted:
            self._docker("rm", "--force", f"databricks-{number}")

    def submit(self, job: dict) -> tuple[int, dict]:
        cluster = job.get("new_cluster") or {}
        missing = [key for key in ("spark_version", "node_type_id") if key not in cluster]
        missing += [] if "num_workers" in cluster or "autoscale" in cluster else ["num_workers"]
        if missing or self.refuses:
            return _error(400, "INVALID_PARAMETER_VALUE", self.refuses or f"new_cluster lacks {missing}")
        number = 1000 + len(self.submitted)
        self.submitted[number] = job
        self.states[number] = {"life_cycle_state": "PENDING", "state_message": "Waiting for cluster"}
        if self.clusters_come_up:
            threading.Thread(target=self._run, args=(number, job), daemon=True).start()
        return 200, {"run_id": number}

    def cancel(self, number: int) -> tuple[int, dict]:
        self.states[number] = {"life_cycle_state": "TERMINATED", "result_state": "CANCELED"}
        self._docker("kill", f"databricks-{number}")
        return 200, {}

    def _docker(self, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["docker", *words], env=self.environment, capture_output=True, text=True)

    def _run(self, number: int, job: dict) -> None:
        self.states[number] = {"life_cycle_state": "RUNNING", "state_message": "In run"}
        variables = {
            "DB_HOME": "/databricks",
            "PYTHONPATH": "",
        }  # what the image knows of the project counts for nothing
        if shell := job.get("shell_command_task"):
            variables |= shell["env_vars"]
            command = shell["command"]
        else:
            task = job["spark_python_task"]
            command = ["python", task["python_file"].replace("dbfs:", "/dbfs"), *task["parameters"]]
        for name, value in job["new_cluster"].get("spark_env_vars", {}).items():
            variables[name] = re.sub(r"\{\{secrets/(.+)\}\}", lambda found: self.secrets[found[1]], value)
        name = f"databricks-{number}"
        words = [
            "--name",
            name,
            "--network",
            "host",
            "--user",
            "0",
            "--volume",
            f"{self.dbfs}:/dbfs",
            "--workdir",
            "/tmp",
        ]
        words += [word for key, value in variables.items() for word in ("--env", f"{key}={value}")]
        done = self._docker("run", *words, "--entrypoint", command[0], self.image, *command[1:])
        self.outputs[number] = done.stdout + done.stderr
        if "result_state" not in self.states[number]:
            result = "FAILED" if done.returncode else "SUCCESS"
            self.states[number] = {"life_cycle_state": "TERMINATED", "result_state": result}


def _error(code: int, name: str, message: str) -> tuple[int, dict]:
    return code, {"error_code": name, "message": message}


def _handler(workspace: Workspace) -> type[JsonHandler]:
    class Handler(JsonHandler):
        def _any(self):
            url = urlparse(self.path)
            content = self.content()
            self.answer(*self._answered(url.path, parse_qs(url.query), content))

        do_GET = do_POST = _any  # noqa: N815

        def _answered(self, path: str, query: dict[str, list[str]], content: bytes) -> tuple[int, dict]:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                public = path.startswith(("/.well-known", "/oidc"))
                return _error(404, "NOT_FOUND", "none") if public else _error(403, "PERMISSION_DENIED", "Invalid token")
            if path.startswith("/dbfs/"):
                file = workspace.dbfs / path.removeprefix("/dbfs/")
                if file.exists():
                    return _error(409, "RESOURCE_ALREADY_EXISTS", "File already exists")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
                return 200, {}
            given = {**{k: v[0] for k, v in query.items()}, **(json.loads(content) if content else {})}
            match self.command, re.sub(r"^/api/2\.\d/", "", path):
                case "GET", "preview/scim/v2/Me":
                    return 200, {"userName": "nobody@your.org"}
                case "GET", "dbfs/get-status":
                    file = workspace.dbfs / given["path"].lstrip("/")
                    if file.exists():
                        return 200, {"path": given["path"], "is_dir": False, "file_size": file.stat().st_size}
                    return _error(404, "RESOURCE_DOES_NOT_EXIST", f"No file exists on path {given['path']}.")
                case "POST", "jobs/runs/submit":
                    return workspace.submit(given)
                case "POST", "jobs/runs/cancel":
                    return workspace.cancel(int(given["run_id"]))
                case "GET", "jobs/runs/get" if (number := int(given["run_id"])) in workspace.submitted:
                    page = f"{workspace.host}/#job/{number + 1}/run/1"
                    state = workspace.states[number]
                    return 200, {"run_id": number, "job_id": number + 1, "run_page_url": page, "state": state}
                case "GET", "jobs/runs/get-output" if (number := int(given["run_id"])) in workspace.submitted:
                    return 200, {"logs": workspace.outputs.get(number, "")}
            return _error(404, "ENDPOINT_NOT_FOUND", f"No API found for '{self.command} {path}'")

    return Handler
