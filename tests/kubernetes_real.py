"""A real Kubernetes cluster of one node, of binaries that `.ci/kubernetes` has built, on the tests' Docker engine."""

import json
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import kubernetes
import pytest
from containers import CACHE, free_port, process, wait_until

BINARIES = CACHE.parent / "ocmlflow-kubernetes"
GPU = "nvidia.com/gpu"
TOKEN = "admin-of-nobody"


@contextmanager
def cluster(docker_engine: Namespace, base_image: str, folder: Path) -> Iterator[Namespace]:
    """Its kubeconfig and an API client; all its pods are gone with the block."""
    if not (BINARIES / "kubelet").exists() or not shutil.which("etcd"):
        pytest.skip(f"no Kubernetes in {BINARIES}: .ci/kubernetes builds it, in some six minutes of two CPUs")
    certificates = folder / "certs"
    certificates.mkdir()
    key, public = certificates / "sa.key", certificates / "sa.pub"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    subprocess.run(["openssl", "rsa", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
    (certificates / "tokens.csv").write_text(f"{TOKEN},admin,admin,system:masters\n")
    client_port, peer_port, port = free_port(), free_port(), free_port()
    etcd, address = f"http://127.0.0.1:{client_port}", f"https://127.0.0.1:{port}"
    config = folder / "kubeconfig"
    config.write_text(_kubeconfig(address, certificates / "apiserver.crt"))
    pause = "ocmlflow-test-pause"  # what holds a pod together
    words = ["docker", "build", "--quiet", "--tag", pause, "-"]
    idle = f'FROM {base_image}\nCMD ["sleep", "infinity"]\n'
    subprocess.run(words, input=idle, env=docker_engine.environment, text=True, check=True, capture_output=True)
    with ExitStack() as stack:
        stack.callback(_clean, docker_engine, folder)

        def start(name: str, *words: str) -> subprocess.Popen:
            program = BINARIES / name if (BINARIES / name).exists() else name
            environment = {**docker_engine.environment, "DOCKER_API_VERSION": "1.40"}
            return stack.enter_context(process([program, *words], folder / f"{name}.log", env=environment))

        peer = f"http://127.0.0.1:{peer_port}"
        start(
            "etcd",
            f"--data-dir={folder}/etcd",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        )
        api = start(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={certificates}",
            f"--token-auth-file={certificates}/tokens.csv",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={key}",
            f"--service-account-key-file={public}",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--external-hostname=127.0.0.1",
            "--kubelet-preferred-address-types=Hostname",
        )
        wait_until(
            lambda: _answers(f"{address}/readyz"), alive=lambda: api.poll() is None, what=f"{folder}/kube-apiserver"
        )
        start(
            "kube-controller-manager",
            f"--kubeconfig={config}",
            f"--service-account-private-key-file={key}",
            f"--root-ca-file={certificates}/apiserver.crt",
            "--leader-elect=false",
            "--controllers=*,-nodeipam,-attachdetach,-cloud-node-lifecycle",
            "--bind-address=127.0.0.1",
            f"--secure-port={free_port()}",
            "--port=0",
        )
        start(
            "kube-scheduler",
            f"--kubeconfig={config}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={free_port()}",
            "--port=0",
        )
        kubelet = start(
            "kubelet",
            f"--kubeconfig={config}",
            f"--docker-endpoint={docker_engine.environment['DOCKER_HOST']}",
            f"--pod-infra-container-image={pause}",
            f"--root-dir={folder}/kubelet",
            f"--cert-dir={folder}/kubelet/pki",
            "--hostname-override=localhost",
            "--address=127.0.0.1",
            f"--port={free_port()}",
            f"--healthz-port={free_port()}",
            "--cgroup-driver=cgroupfs",
            "--cgroups-per-qos=false",
            "--enforce-node-allocatable=",
            "--fail-swap-on=false",
            "--oom-score-adj=0",
            "--anonymous-auth=true",
            "--authorization-mode=AlwaysAllow",
            "--authentication-token-webhook=false",
            "--read-only-port=0",
            "--eviction-hard=",
            "--image-gc-high-threshold=100",
            "--make-iptables-util-chains=false",
            "--node-status-update-frequency=5s",
        )
        client = kubernetes.config.new_client_from_config(str(config))
        wait_until(
            lambda: _ready(client), alive=lambda: kubelet.poll() is None, what=f"the node, see {folder}/kubelet.log,"
        )
        yield Namespace(kubeconfig=config.read_text(), client=client)


def add_gpu(client: kubernetes.client.ApiClient) -> None:
    """Have the node advertise a GPU, as NVIDIA's device plugin and feature discovery do."""
    core = kubernetes.client.CoreV1Api(client)
    taint = {"key": GPU, "value": "present", "effect": "NoSchedule"}
    core.patch_node("localhost", {"metadata": {"labels": {f"{GPU}.present": "true"}}, "spec": {"taints": [taint]}})
    core.patch_node_status("localhost", {"status": {"capacity": {GPU: "1"}, "allocatable": {GPU: "1"}}})


def _kubeconfig(address: str, certificate: Path) -> str:
    cluster = {"server": address, "certificate-authority": str(certificate)}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": TOKEN}}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": "admin"}}],
            "current-context": "local",
        }
    )


def _answers(address: str) -> bool:
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {TOKEN}"})
    try:
        with urllib.request.urlopen(request, context=ssl._create_unverified_context(), timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _ready(client: kubernetes.client.ApiClient) -> bool:
    nodes = kubernetes.client.CoreV1Api(client).list_node().items
    return any(c.type == "Ready" and c.status == "True" for node in nodes for c in node.status.conditions or [])


def _clean(docker_engine: Namespace, folder: Path) -> None:
    """Remove the containers and mounts that a kubelet leaves when it ends."""
    words = ["docker", "ps", "--all", "--quiet", "--filter", "label=io.kubernetes.pod.namespace"]
    left = subprocess.run(words, env=docker_engine.environment, capture_output=True, text=True).stdout.split()
    if left:
        subprocess.run(["docker", "rm", "--force", *left], env=docker_engine.environment, capture_output=True)
    for line in reversed(Path("/proc/mounts").read_text().splitlines()):  # what lies in another goes first
        if line.split()[1].startswith(f"{folder}/kubelet"):
            subprocess.run(["umount", line.split()[1]], capture_output=True)
