"""Reads the template of a Kubernetes Job, checks it, and fills in image, command and environment of a step."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import yaml

from ocmlflow.errors import InputError

SECRET = re.compile(r"SECRET|PASSWORD|TOKEN|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
SET_BY_LAUNCHER = ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID")
"""Environment variables that the launcher sets, as MLflow's own backend does."""
STEP = "step"
"""Name of the container that runs the step: the first of the template, which may have more."""

Job = dict[str, Any]


def read(path: Path) -> Job:
    """The Job template in that file.

    InputError where a Job from it would fail, could wait for ever, or would show secrets.
    """
    try:
        template = yaml.safe_load(path.read_text())
        spec = template["spec"]
        pod = spec["template"]["spec"]
        container = pod["containers"][0]
        kind = (template["apiVersion"], template["kind"])
        namespace = template["metadata"]["namespace"]
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"cannot read the Job template {path}: {error}") from error
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path} is no Job with a namespace and a container: {error} is missing") from error
    rules = {
        "is a Job of batch/v1": kind == ("batch/v1", "Job"),
        "names its namespace": bool(namespace),
        "restartPolicy: Never": pod.get("restartPolicy") == "Never",
        "backoffLimit: 0, as a second pod would log to the run of the first": spec.get("backoffLimit") == 0,
        "activeDeadlineSeconds, or a pod that fits no node would wait for ever": bool(
            spec.get("activeDeadlineSeconds")
        ),
        "leaves command and args of the container to the launcher": "args" not in container,
    }
    for rule, holds in rules.items():
        if not holds:
            raise InputError(f"{path}: what is needed is a template that has {rule}")
    for any_container in containers(template):
        for variable in any_container.get("env") or []:
            name = variable.get("name", "")
            if any_container is container and name in SET_BY_LAUNCHER:
                raise InputError(f"{path} sets {name}, which the launcher sets: leave it out")
            if SECRET.search(name) and variable.get("value"):
                raise InputError(f"{path} holds the value of {name} in plain text: take it from a Secret (valueFrom)")
    return dict(template)


def check_address(template: Job, address: str) -> None:
    """Raise InputError where the address of the tracking server is a local one, which means the pod itself to a pod."""
    host = urlparse(address).hostname or ""
    if (host == "localhost" or host.startswith("127.")) and not template["spec"]["template"]["spec"].get("hostNetwork"):
        raise InputError(
            f"to a pod {address} is the pod itself: set KUBE_MLFLOW_TRACKING_URI to the address that pods reach the "
            "tracking server by"
        )


def fill(template: Job, *, name: str, image: str, command: Sequence[str], environment: Mapping[str, str]) -> Job:
    """A Job: the template with its name, and with image, command and environment variables of the step."""
    job = deepcopy(template)
    job["metadata"]["name"] = name
    container = job["spec"]["template"]["spec"]["containers"][0]
    # No shell reads the command, but Kubernetes replaces $(NAME) by a variable, and $$ by one dollar.
    words = [word.replace("$", "$$") for word in command]
    container |= {"name": STEP, "image": image, "command": words}
    container["env"] = [*(container.get("env") or []), *({"name": k, "value": v} for k, v in environment.items())]
    return job


def secret_names(job: Job) -> dict[str, set[str]]:
    """Names of the Secrets that the containers of a Job need, each with the keys that they use."""
    names: dict[str, set[str]] = {}
    for container in containers(job):
        for variable in container.get("env") or []:
            key = (variable.get("valueFrom") or {}).get("secretKeyRef")
            if key and not key.get("optional"):
                names.setdefault(key["name"], set()).add(key["key"])
        for source in container.get("envFrom") or []:
            if "secretRef" in source and not source["secretRef"].get("optional"):
                names.setdefault(source["secretRef"]["name"], set())
    return names


def containers(job: Job) -> list[dict[str, Any]]:
    """All containers of a Job's pod, init containers first."""
    pod = job["spec"]["template"]["spec"]
    return [*(pod.get("initContainers") or []), *pod["containers"]]
