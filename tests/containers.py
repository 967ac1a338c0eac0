"""A Docker engine, an image registry and the project's image, for the tests that run it; and an MLflow server.

Debian's engine, with root, on a socket of its own and with the host's network alone: no firewall rule is touched. What
takes minutes to make (base image, layers) stays in the user's cache for the next time.
"""

import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ocmlflow-tests"
PACKAGES = "python3,python3-venv,ca-certificates,rsync"
"""Of the base image; rsync is what MLflow calls on a Databricks cluster."""
MACHINE = ("/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
"""How this machine reaches package registries: baked into the tests' base image, never into one for users."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(ready: Callable[[], bool], *, alive: Callable[[], bool], what: str, seconds: float = 90) -> None:
    """Return when it is ready; fail the test when what should become ready has ended, or takes too long."""
    deadline = time.monotonic() + seconds
    while not ready():
        if not alive() or time.monotonic() > deadline:
            pytest.fail(f"{what} does not answer")
        time.sleep(0.1)


@contextmanager
def process(command: list, log: Path, **how) -> Iterator[subprocess.Popen]:
    """A process with a group of its own, ended with the block."""
    with log.open("w") as file:
        started = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, **how)
    try:
        yield started
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        started.wait(60)


@contextmanager
def answering_mlflow(command: list, port: int, folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of an MLflow server that runs in a folder, as soon as it answers at this port."""
    address = f"http://127.0.0.1:{port}"
    with process(command, folder / "log", env=environment, cwd=folder) as running:

        def answers() -> bool:
            try:
                return requests.get(f"{address}/health", timeout=5).ok
            except requests.RequestException:
                return False

        wait_until(answers, alive=lambda: running.poll() is None, what=f"MLflow, see {folder}/log,")
        yield address


@pytest.fixture(scope="session")
def docker_engine(tmp_path_factory) -> Iterator[Namespace]:
    """A Docker engine: the environment of its clients, and the folder for what the next session can use again."""
    missing = [name for name in ("dockerd", "docker", "docker-registry", "mmdebstrap") if not shutil.which(name)]
    if os.getuid() or missing:
        pytest.skip(f"needs root, and {', '.join(missing) or 'all else is there'} (.ci/run installs them)")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock, tempfile.TemporaryDirectory(prefix="dk") as folder:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            kept = CACHE
        except BlockingIOError:  # another session has the cache
            kept = tmp_path_factory.mktemp("engine")
        host = f"unix://{folder}/docker.sock"
        command = ["dockerd", f"--host={host}", f"--data-root={kept}/docker", f"--exec-root={folder}/exec"]
        command += [f"--pidfile={folder}/pid", "--bridge=none", "--iptables=false", "--ip6tables=false"]
        command += ["--ip-forward=false", "--ip-masq=false", "--oom-score-adjust=0", "--log-level=warn"]
        command += [f"--add-runtime=able={_runtime(Path(folder))}", "--default-runtime=able"]
        environment = {**os.environ, "DOCKER_HOST": host, "DOCKER_BUILDKIT": "0"}
        # The engine holds the lock too: it may outlive a session that is killed.
        with process(command, kept / "dockerd.log", pass_fds=[lock.fileno()]) as daemon:

            def answers() -> bool:
                return not subprocess.run(["docker", "version"], env=environment, capture_output=True).returncode

            wait_until(answers, alive=lambda: daemon.poll() is None, what=f"dockerd, see {kept}/dockerd.log,")
            yield Namespace(environment=environment, kept=kept)
            listed = _docker(environment, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()
            if pushed := [name for name in listed if name.startswith("127.0.0.1:") and not name.endswith("<none>")]:
                _docker(environment, "rmi", "--force", *pushed)
            _docker(environment, "image", "prune", "--force")
        subprocess.run(["umount", f"{folder}/exec/netns/default"], capture_output=True)  # which the engine leaves


def _runtime(folder: Path) -> Path:
    """A runc for a root without CAP_SYS_RESOURCE, as in many CI machines: it asks for nothing that takes this."""
    script = folder / "runc"
    script.write_text(RUNC)
    script.chmod(0o755)
    return script


RUNC = """#!/usr/bin/python3
import json, os, sys
words = sys.argv[1:]
if {"create", "run"} & set(words):
    bundle = words[words.index("--bundle") + 1] if "--bundle" in words else "."
    path = os.path.join(bundle, "config.json")
    config = json.load(open(path))
    process = config["process"]
    process["oomScoreAdj"] = max(process.get("oomScoreAdj") or 0, 0)
    for names in (process.get("capabilities") or {}).values():
        if "CAP_SYS_RESOURCE" in names:
            names.remove("CAP_SYS_RESOURCE")
    json.dump(config, open(path, "w"))
os.execv("/usr/sbin/runc", ["runc", *words])
"""


def _docker(environment: dict[str, str], *words: str) -> str:
    """What a docker command writes; a failure fails the test with it."""
    done = subprocess.run(["docker", *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"docker {' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def registry(docker_engine, tmp_path_factory) -> Iterator[str]:
    """Address of an image registry."""
    port, folder = free_port(), tmp_path_factory.mktemp("registry")
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: warn}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: {docker_engine.kept}/registry}}}}\n"
    )
    with process(["docker-registry", "serve", config], folder / "log") as server:

        def answers() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(answers, alive=lambda: server.poll() is None, what=f"docker-registry, see {folder}/log,")
        yield f"127.0.0.1:{port}"


@pytest.fixture(scope="session")
def base_image(docker_engine) -> str:
    """Name of an image of Debian with Python, made of packages: no registry is asked."""
    there = [Path(path) for path in MACHINE if Path(path).exists()]
    key = hashlib.sha256(PACKAGES.encode() + b"".join(path.read_bytes() for path in there)).hexdigest()[:12]
    name, archive = f"ocmlflow-test-base:{key}", CACHE / f"base-{key}.tar"
    if _docker(docker_engine.environment, "image", "ls", "--quiet", name):
        return name
    if not archive.exists():
        part = archive.with_suffix(f".{os.getpid()}.part")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", "--format=tar"]
        command += ["--aptopt=Acquire::Languages none", "--dpkgopt=force-unsafe-io"]
        command += [f"--dpkgopt=path-exclude=/usr/share/{unread}/*" for unread in ("doc", "man", "locale")]
        command += [f"--customize-hook=copy-in {path} {path.parent}" for path in there]
        made = subprocess.run([*command, "bookworm", part], capture_output=True, text=True)
        if made.returncode and "Could not resolve" in made.stderr:
            pytest.skip("the Debian mirror is not reached")
        assert made.returncode == 0, made.stderr[-2000:]
        part.rename(archive)
    _docker(docker_engine.environment, "import", "--change", "ENV LANG=C.UTF-8", str(archive), name)
    return name


@pytest.fixture(scope="session")
def project_image(docker_engine, base_image) -> str:
    """Name of the project's image, built as a user builds it, for CPUs."""
    name = "localhost/ocmlflow"
    arguments = ["--network", "host", "--build-arg", f"BASE_IMAGE={base_image}", "--tag", name]
    _docker(docker_engine.environment, "build", *arguments, str(ROOT))
    return name


@pytest.fixture(scope="session")
def mlflow_server(_s3_server, tmp_path_factory) -> Iterator[Namespace]:
    """An MLflow server whose artifacts go to S3: its address, and the environment of its clients."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    variables = {**_s3_server, "MLFLOW_S3_ENDPOINT_URL": _s3_server["AWS_ENDPOINT_URL_S3"]}
    environment = {**os.environ, **variables, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    # Clients write to S3 themselves: that is what needs the credentials in a pod.
    command += ["--default-artifact-root", "s3://data/launched", "--no-serve-artifacts"]
    with answering_mlflow(command, port, folder, environment) as address:
        yield Namespace(address=address, variables=variables)
