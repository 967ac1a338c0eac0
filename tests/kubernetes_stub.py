"""A stand-in for a Kubernetes API server of one node: Jobs whose containers the Docker engine runs for real.

It holds to what the real one does where MLflow and the launcher depend on it: names are checked, strict schemas too,
a dry run makes nothing, Secrets become variables, a pod that asks for a GPU waits until the node has one and the pod
tolerates it, a deleted Job's pods end only if the policy says so, deadlines fail a Job, an Indexed Job has many pods,
a pod that fails is followed by another as often as backoffLimit allows.
"""

import base64
import json
import re
import subprocess
import threading
import uuid
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlparse

import kubernetes_validate
from json_server import JsonHandler, serve

NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
GPU = "nvidia.com/gpu"
INDEX = "batch.kubernetes.io/job-completion-index"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Cluster:
    """The state of the cluster, and its server on a free port."""

    def __init__(self, environment: dict[str, str], *, namespaces: tuple[str, ...] = ("ocmlflow",), gpus: int = 0):
        self.environment, self.namespaces, self.gpus = environment, namespaces, gpus
        self.jobs: dict[tuple[str, str], dict] = {}
        self.pods: dict[tuple[str, str], dict] = {}
        self.secrets: dict[tuple[str, str], dict[str, str]] = {}
        self.folders: dict[str, str] = {}
        """Of persistent volume claims."""
        self.requests: list[tuple[str, str]] = []
        self.changed = threading.Condition()
        self.server = serve(_handler(self))

    def kubeconfig(self) -> str:
        """Of clients of this cluster."""
        name = {"cluster": "stub", "user": "stub", "namespace": "default"}
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "stub", "cluster": {"server": f"http://127.0.0.1:{self.server.server_port}"}}],
                "users": [{"name": "stub", "user": {"token": "of-nobody"}}],
                "contexts": [{"name": "stub", "context": name}],
                "current-context": "stub",
            }
        )

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.jobs.clear()  # so that no pod follows one that is removed
        for _, pod in list(self.pods):
            self.docker("rm", "--force", pod)

    def docker(self, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["docker", *words], env=self.environment, capture_output=True, text=True)

    def add_gpu(self) -> None:
        """Give the node a GPU, its label and its taint."""
        with self.changed:
            self.gpus = 1
            self.changed.notify_all()

    def create(self, namespace: str, job: dict, *, dry: bool) -> tuple[int, dict]:
        name = job["metadata"].get("name", "")
        if namespace not in self.namespaces:
            return _status(404, "NotFound", f'namespaces "{namespace}" not found')
        if not NAME.fullmatch(name):
            return _status(422, "Invalid", f'Job.batch "{name}" is invalid: metadata.name: Invalid value: "{name}"')
        try:
            kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.ValidationError as error:
            return _status(422, "Invalid", f'Job.batch "{name}" is invalid: {error.message}')
        variables = [v["name"] for v in job["spec"]["template"]["spec"]["containers"][0].get("env", [])]
        if len(variables) != len(set(variables)):
            return _status(422, "Invalid", f"a variable is there twice: {sorted(variables)}")
        if (namespace, name) in self.jobs:
            return _status(409, "AlreadyExists", f'jobs.batch "{name}" already exists')
        job["metadata"] |= {"namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": _now()}
        job["status"] = {"startTime": _now()}
        if not dry:
            self.jobs[namespace, name] = job
            threading.Thread(target=self._run, args=(namespace, job), daemon=True).start()
        return 201, job

    def delete(self, namespace: str, name: str, policy: str) -> tuple[int, dict]:
        if (namespace, name) not in self.jobs:
            return _status(404, "NotFound", f'jobs.batch "{name}" not found')
        with self.changed:
            del self.jobs[namespace, name]
            self.changed.notify_all()
        if policy != "Orphan":
            for pod in self._pods_of(namespace, name):
                self.docker("stop", "--time", "5", pod["metadata"]["name"])
                self.docker("rm", "--force", pod["metadata"]["name"])
                self.pods.pop((namespace, pod["metadata"]["name"]), None)
        return 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def log(self, pod: str, query: dict[str, list[str]]) -> subprocess.Popen:
        words = ["docker", "logs", "--follow"]
        words += ["--timestamps"] if query.get("timestamps") == ["true"] else []
        words += ["--since", f"{query['sinceSeconds'][0]}s"] if "sinceSeconds" in query else []
        # Both streams of the container in one, as the kubelet has them.
        return subprocess.Popen([*words, pod], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def _pods_of(self, namespace: str, job: str) -> list[dict]:
        return [p for (ns, _), p in list(self.pods.items()) if ns == namespace and p["job"] == job]

    def _run(self, namespace: str, job: dict) -> None:
        """What the Job controller does."""
        spec, name = job["spec"], job["metadata"]["name"]
        indexed = spec.get("completionMode") == "Indexed"
        failures: list[int | None] = []
        over = threading.Event()

        def one(index: int | None) -> None:
            # A pod that fails is followed by another of its index, until all together have failed too often.
            while self._run_pod(namespace, job, index) and (namespace, name) in self.jobs and not over.is_set():
                failures.append(index)
                if len(failures) > spec.get("backoffLimit", 6):
                    return

        indices = range(spec.get("completions", 1)) if indexed else [None]
        threads = [threading.Thread(target=one, args=(index,), daemon=True) for index in indices]
        for thread in threads:
            thread.start()
        deadline = spec.get("activeDeadlineSeconds")
        for thread in threads:
            thread.join(deadline)
        if any(thread.is_alive() for thread in threads):
            over.set()
            for pod in self._pods_of(namespace, name):
                self.docker("kill", pod["metadata"]["name"])
            why = ("Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
        elif len(failures) > spec.get("backoffLimit", 6):
            why = ("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        else:
            why = ("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
        condition = dict(zip(("type", "reason", "message"), why, strict=True))
        job["status"]["conditions"] = [{**condition, "status": "True", "lastTransitionTime": _now()}]

    def _run_pod(self, namespace: str, job: dict, index: int | None) -> int:
        """What scheduler and kubelet do with one pod; returns the exit status of its container."""
        spec, name = job["spec"]["template"]["spec"], f"{job['metadata']['name']}-{uuid.uuid4().hex[:5]}"
        pod = {
            "job": job["metadata"]["name"],
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {"job-name": job["metadata"]["name"]},
                "annotations": {INDEX: str(index)} if index is not None else {},
            },
            "spec": spec,
            "status": {"phase": "Pending"},
        }
        self.pods[namespace, name] = pod
        with self.changed:
            while why := self._does_not_fit(spec):
                scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}
                pod["status"]["conditions"] = [scheduled]
                self.changed.wait()
                if (namespace, job["metadata"]["name"]) not in self.jobs:
                    return 1
        pod["status"].pop("conditions", None)
        container = spec["containers"][0]
        created = self.docker("create", "--name", name, *self._options(namespace, spec, container, index))
        if created.returncode:
            waiting = {"reason": "ErrImagePull", "message": created.stderr.strip()}
            pod["status"]["containerStatuses"] = [_container(container, {"waiting": waiting})]
            with self.changed:
                self.changed.wait_for(lambda: (namespace, job["metadata"]["name"]) not in self.jobs)
            return 1
        self.docker("start", name)
        pod["status"] |= {"phase": "Running", "containerStatuses": [_container(container, {"running": {}})]}
        code = int(self.docker("wait", name).stdout.strip() or 137)
        ended = {"exitCode": code, "reason": "Error" if code else "Completed"}
        pod["status"] |= {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [_container(container, {"terminated": ended})],
        }
        return code

    def _does_not_fit(self, spec: dict) -> str:
        """Why the one node does not take the pod."""
        asked = int(spec["containers"][0].get("resources", {}).get("limits", {}).get(GPU, 0))
        labels = {f"{GPU}.present": "true"} if self.gpus else {}
        if any(labels.get(key) != value for key, value in spec.get("nodeSelector", {}).items()):
            return "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
        if asked > self.gpus:
            return f"0/1 nodes are available: 1 Insufficient {GPU}."
        if self.gpus and GPU not in [t.get("key") for t in spec.get("tolerations", [])]:
            return f"0/1 nodes are available: 1 node(s) had untolerated taint {{{GPU}: present}}."
        return ""

    def _options(self, namespace: str, spec: dict, container: dict, index: int | None) -> list[str]:
        """The pod as words of `docker create`."""
        words = ["--network", "host"] if spec.get("hostNetwork") else ["--network", "none"]
        variables: dict[str, str] = {}
        for source in container.get("envFrom", []):
            variables |= self.secrets[namespace, source["secretRef"]["name"]]
        for variable in container.get("env", []):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            value = self.secrets[namespace, reference["name"]][reference["key"]] if reference else variable["value"]
            variables[variable["name"]] = value
        if index is not None:
            variables["JOB_COMPLETION_INDEX"] = str(index)
        words += [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
        security = {**spec.get("securityContext", {}), **container.get("securityContext", {})}
        if "runAsUser" in security:
            words += ["--user", f"{security['runAsUser']}:{security.get('runAsGroup', 0)}"]
        words += ["--read-only"] if security.get("readOnlyRootFilesystem") else []
        words += [w for c in security.get("capabilities", {}).get("drop", []) for w in ("--cap-drop", c)]
        words += ["--security-opt", "no-new-privileges"] if security.get("allowPrivilegeEscalation") is False else []
        limit = container.get("resources", {}).get("limits", {}).get("memory")
        words += ["--memory", limit.replace("Gi", "g").replace("Mi", "m")] if limit else []
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            volume = volumes[mount["name"]]
            if "persistentVolumeClaim" in volume:
                words += [
                    "--volume",
                    f"{self.folders[volume['persistentVolumeClaim']['claimName']]}:{mount['mountPath']}",
                ]
            elif volume["emptyDir"].get("medium") == "Memory":
                words += ["--mount", f"type=tmpfs,destination={mount['mountPath']},tmpfs-mode=1777"]
            else:
                words += ["--volume", mount["mountPath"]]
        words += ["--workdir", container["workingDir"]] if "workingDir" in container else []
        first, *rest = [expanded(word, variables) for word in container.get("command", []) + container.get("args", [])]
        return [*words, "--entrypoint", first, container["image"], *rest]


def expanded(word: str, variables: dict[str, str]) -> str:
    """The word as the kubelet makes it: $(NAME) is a variable, $$ a dollar, anything else itself."""

    def known(found: re.Match) -> str:
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", known, word)


def _container(container: dict, state: dict) -> dict:
    named = {"name": container["name"], "image": container["image"], "imageID": "", "ready": False, "restartCount": 0}
    return {**named, "state": state}


def _status(code: int, reason: str, message: str) -> tuple[int, dict]:
    told = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return code, {**told, "reason": reason, "message": message, "code": code}


def _handler(cluster: Cluster) -> type[JsonHandler]:
    class Handler(JsonHandler):
        def _any(self):
            url = urlparse(self.path)
            query = parse_qs(url.query)
            content = self.content()
            cluster.requests.append((self.command, self.path))
            if self.headers.get("Authorization") != "Bearer of-nobody":
                return self.answer(*_status(401, "Unauthorized", "Unauthorized"))
            match self.command, *url.path.strip("/").split("/"):
                case "POST", "apis", "batch", "v1", "namespaces", namespace, "jobs":
                    dry = query.get("dryRun") == ["All"]
                    return self.answer(*cluster.create(namespace, json.loads(content), dry=dry))
                case "GET", "apis", "batch", "v1", "namespaces", namespace, "jobs", name, *_:
                    found = cluster.jobs.get((namespace, name))
                    return self.answer(
                        *((200, found) if found else _status(404, "NotFound", f'jobs.batch "{name}" not found'))
                    )
                case "DELETE", "apis", "batch", "v1", "namespaces", namespace, "jobs", name:
                    body = json.loads(content or b"{}")
                    # Without a policy the pods of a batch/v1 Job stay.
                    policy = query.get("propagationPolicy", [body.get("propagationPolicy", "Orphan")])[0]
                    return self.answer(*cluster.delete(namespace, name, policy))
                case "GET", "api", "v1", "namespaces", namespace, "secrets", name:
                    found = cluster.secrets.get((namespace, name))
                    if found is None:
                        return self.answer(*_status(404, "NotFound", f'secrets "{name}" not found'))
                    data = {key: base64.b64encode(value.encode()).decode() for key, value in found.items()}
                    return self.answer(200, {"kind": "Secret", "apiVersion": "v1", "data": data})
                case "GET", "api", "v1", "namespaces", namespace, "pods":
                    job = query["labelSelector"][0].removeprefix("job-name=")
                    return self.answer(
                        200, {"kind": "PodList", "apiVersion": "v1", "items": cluster._pods_of(namespace, job)}
                    )
                case "GET", "api", "v1", "namespaces", _, "pods", name, "log":
                    return self._stream(cluster.log(name, query))
            return self.answer(*_status(404, "NotFound", "the server could not find the requested resource"))

        do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = _any  # noqa: N815

        def _stream(self, source: subprocess.Popen) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with source:
                for line in source.stdout:
                    self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")

    return Handler
