"""A step and a template, to a Kubernetes Job: checked before, followed to its end, deleted when it is unwanted."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import yaml

from ocmlflow.errors import InputError

SECRET = re.compile(r"SECRET|PASSWORD|TOKEN|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
GIVEN = ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID")
"""Variables that the launcher sets, as MLflow's own backend does."""
STEP = "step"
"""Name of the container that runs the step; a template may have others beside it."""

Job = dict[str, Any]


def template(path: Path) -> Job:
    """The Job template in that file; InputError where a run of it would fail, never end, or show what is secret."""
    try:
        found = yaml.safe_load(path.read_text())
        pod = found["spec"]["template"]["spec"]
        (container, *_) = pod["containers"]
        kind, namespace = (found["apiVersion"], found["kind"]), found["metadata"]["namespace"]
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"cannot read the Job template {path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no Job with a namespace and a container: {error} is missing") from error
    wrong = {
        "is a Job of batch/v1": kind == ("batch/v1", "Job"),
        "names its namespace": bool(namespace),
        "restartPolicy: Never": pod.get("restartPolicy") == "Never",
        "backoffLimit: 0, as a second pod would go on in the run of the first": found["spec"].get("backoffLimit") == 0,
        "activeDeadlineSeconds, or a pod that never fits is waited for without end": bool(
            found["spec"].get("activeDeadlineSeconds")
        ),
        "leaves command and args of the container to the launcher": "args" not in container,
    }
    for rule, holds in wrong.items():
        if not holds:
            raise InputError(f"{path}: what is needed is a template that has {rule}")
    for one in containers(found):
        for variable in one.get("env") or []:
            name = variable.get("name", "")
            if one is container and name in GIVEN:
                raise InputError(f"{path} sets {name}, which the launcher sets: leave it out")
            if SECRET.search(name) and variable.get("value"):
                raise InputError(f"{path} holds the value of {name} in plain text: take it from a Secret (valueFrom)")
    return dict(found)


def check_reaches(template: Job, address: str) -> None:
    """Raise InputError where the tracking server's address means another machine to a pod than to us."""
    host = urlparse(address).hostname or ""
    if (host == "localhost" or host.startswith("127.")) and not template["spec"]["template"]["spec"].get("hostNetwork"):
        raise InputError(
            f"to a pod {address} is the pod itself: set KUBE_MLFLOW_TRACKING_URI to the address that pods reach the "
            "tracking server by"
        )


def job(template: Job, *, name: str, image: str, command: Sequence[str], environment: Mapping[str, str]) -> Job:
    """The template with name, image, command and variables filled in; the words of the command arrive as they are."""
    made = deepcopy(template)
    made["metadata"]["name"] = name
    container = made["spec"]["template"]["spec"]["containers"][0]
    # No shell reads the command, but Kubernetes replaces $(NAME) by a variable and $$ by one dollar.
    words = [word.replace("$", "$$") for word in command]
    container |= {"name": STEP, "image": image, "command": words}
    container["env"] = [*(container.get("env") or []), *({"name": k, "value": v} for k, v in environment.items())]
    return made


def secret_names(job: Job) -> dict[str, set[str]]:
    """The Secrets that the Job's containers name, with the keys that they take."""
    found: dict[str, set[str]] = {}
    for container in containers(job):
        for variable in container.get("env") or []:
            key = (variable.get("valueFrom") or {}).get("secretKeyRef")
            if key and not key.get("optional"):
                found.setdefault(key["name"], set()).add(key["key"])
        for source in container.get("envFrom") or []:
            if "secretRef" in source and not source["secretRef"].get("optional"):
                found.setdefault(source["secretRef"]["name"], set())
    return found


def containers(job: Job) -> list[dict[str, Any]]:
    """All containers of a Job's pod, those that prepare it first."""
    pod = job["spec"]["template"]["spec"]
    return [*(pod.get("initContainers") or []), *pod["containers"]]
