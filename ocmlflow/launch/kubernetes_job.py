"""A step and a template, to a Kubernetes Job: checked before, followed to its end, deleted when it is unwanted."""

import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from threading import Event, Thread
from typing import Any

import kubernetes
import urllib3
from kubernetes.client.exceptions import ApiException

from ocmlflow.errors import InputError
from ocmlflow.launch import kubernetes_template
from ocmlflow.launch.kubernetes_template import Job

log = logging.getLogger(__name__)

POLL_S = 1.0
DELETE_S = 30
"""How long an API server may take to delete a Job."""
PATIENCE_S = 300
"""How long an API server that does not answer is asked again before its Job is given up."""
STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?Z ")


def connect(context: str | None) -> kubernetes.client.ApiClient:
    """A client of the cluster of that context of the kubeconfig, of the current one, or of the cluster around."""
    try:
        return kubernetes.config.new_client_from_config(context=context)
    except (OSError, kubernetes.config.ConfigException) as error:
        if context:
            raise InputError(f"the kubeconfig has no usable context {context}: {error}") from error
        inside = kubernetes.client.Configuration()
        try:
            kubernetes.config.load_incluster_config(client_configuration=inside)
        except kubernetes.config.ConfigException:
            raise InputError(f"no cluster: {error}. Set KUBECONFIG, or kube-context in the configuration") from error
        return kubernetes.client.ApiClient(inside)


def check(client: kubernetes.client.ApiClient, job: Job) -> None:
    """Raise InputError unless the cluster would take the Job, and has the Secrets that it names."""
    namespace = job["metadata"]["namespace"]
    try:
        kubernetes.client.BatchV1Api(client).create_namespaced_job(namespace, job, dry_run="All")
    except ApiException as error:
        raise InputError(f"the cluster refuses the Job in namespace {namespace}: {_message(error)}") from error
    except urllib3.exceptions.HTTPError as error:
        raise InputError(f"the cluster does not answer at {client.configuration.host}: {error}") from error
    for secret, keys in kubernetes_template.secret_names(job).items():
        try:
            found = kubernetes.client.CoreV1Api(client).read_namespaced_secret(secret, namespace).data or {}
        except ApiException as error:
            if error.status == 403:
                log.warning("Secret %s cannot be looked at from here: whether it is there is not checked", secret)
                continue
            raise InputError(f"Secret {secret} in namespace {namespace}: {_message(error)}") from error
        if missing := keys - found.keys():
            raise InputError(f"Secret {secret} in namespace {namespace} lacks {', '.join(sorted(missing))}")


def submit(client: kubernetes.client.ApiClient, job: Job) -> None:
    """Create the Job."""
    try:
        kubernetes.client.BatchV1Api(client).create_namespaced_job(job["metadata"]["namespace"], job)
    except (ApiException, urllib3.exceptions.HTTPError) as error:
        raise InputError(f"the cluster did not take the Job: {_message(error)}") from error


def delete(client: kubernetes.client.ApiClient, job: Job) -> None:
    """Delete the Job with its pods, if it is there; where that fails, say how to."""
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    try:
        # Without the policy the pods of a deleted Job go on.
        kubernetes.client.BatchV1Api(client).delete_namespaced_job(
            name, namespace, propagation_policy="Background", _request_timeout=DELETE_S
        )
    except (ApiException, urllib3.exceptions.HTTPError) as error:
        if not _is_missing(error):
            log.error(
                "Job %s goes on: %s. `kubectl -n %s delete job %s` ends it", name, _message(error), namespace, name
            )


def follow(
    client: kubernetes.client.ApiClient, job: Job, *, pending_s: float, show: Callable[[str], None]
) -> str | None:
    """Wait for the Job, showing its log line by line; None when it is complete, else why it is not.

    Says why a pod does not start, and gives it up after `pending_s` seconds.
    """
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    begun, told, reader, over = time.monotonic(), "", None, Event()
    answered = begun
    try:
        while True:
            try:
                status = kubernetes.client.BatchV1Api(client).read_namespaced_job_status(name, namespace).status
                pods = kubernetes.client.CoreV1Api(client).list_namespaced_pod(
                    namespace, label_selector=f"job-name={name}"
                )
                answered = time.monotonic()
            except (ApiException, urllib3.exceptions.HTTPError) as error:
                if _is_missing(error):
                    return f"Job {name} was deleted"
                if time.monotonic() - answered > PATIENCE_S:
                    return f"the cluster has not answered for {PATIENCE_S} s: {_message(error)}"
                over.wait(POLL_S)
                continue
            started = [pod for pod in pods.items if pod.status.phase != "Pending"]
            if started and not reader:
                reader = Thread(
                    target=_read_log, args=(client, started[0].metadata.name, namespace, over, show), daemon=True
                )
                reader.start()
            waiting = "" if started else _why_pending(pods.items)
            if waiting != told:
                told = waiting
                log.info("%s", f"waiting for a pod: {waiting}" if waiting else "the pod runs")
            ended = {condition.type: condition for condition in status.conditions or [] if condition.status == "True"}
            if "Complete" in ended or "Failed" in ended:
                over.set()
                if reader:
                    reader.join(60)
                if "Complete" in ended:
                    return None
                reasons = [
                    str(ended["Failed"].message),
                    *_ends(pods.items),
                    waiting and f"the pod waited for: {waiting}",
                ]
                return "; ".join(filter(None, reasons))
            if waiting and time.monotonic() - begun > pending_s:
                delete(client, job)
                return f"no pod has started in {pending_s / 60:g} minutes: {waiting}"
            time.sleep(POLL_S)
    finally:
        over.set()


def _read_log(
    client: kubernetes.client.ApiClient, pod: str, namespace: str, over: Event, show: Callable[[str], None]
) -> None:
    """Show the pod's log until it ends; a connection that breaks is made again where it was."""
    last, failing = "", False
    while True:
        final = over.is_set()  # asked before, so that what came in between is read once more
        seen, new = last, True
        since = math.ceil(time.time() - datetime.fromisoformat(last[:19] + "+00:00").timestamp()) + 1 if last else None
        try:
            stream = kubernetes.client.CoreV1Api(client).read_namespaced_pod_log(
                pod,
                namespace,
                container=kubernetes_template.STEP,
                follow=True,
                timestamps=True,
                since_seconds=since,
                _preload_content=False,
            )
            for line in _lines(stream):
                if found := STAMP.match(line):
                    last = f"{found[1]}.{found[2] or '':0<9}"
                    new = last > seen
                    line = line[found.end() :]
                if new:
                    show(line)
            failing = False
        except (ApiException, urllib3.exceptions.HTTPError) as error:
            if not (failing or (final and _is_missing(error))):  # once, and not of what has been deleted
                log.warning("the log of pod %s cannot be read, and is asked for again: %s", pod, _message(error))
            failing = True
        if final:
            return
        over.wait(POLL_S)


def _lines(stream: Any) -> Iterator[str]:
    rest = b""
    for part in stream.stream(4096, decode_content=False):
        *lines, rest = (rest + part).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
    if rest:
        yield rest.decode(errors="replace")


def _why_pending(pods: Sequence[Any]) -> str:
    """Why no pod has started, in the scheduler's or the kubelet's words."""
    for pod in pods:
        for status in pod.status.container_statuses or []:
            if status.state.waiting:
                return f"{status.state.waiting.reason} {status.state.waiting.message or ''}".strip()
        for condition in pod.status.conditions or []:
            if condition.type == "PodScheduled" and condition.status == "False":
                return str(condition.message or condition.reason)
    return "it is being made" if not pods else "it is being started"


def _ends(pods: Sequence[Any]) -> list[str]:
    """How the containers ended: reason and exit status."""
    states = [status.state.terminated for pod in pods for status in pod.status.container_statuses or []]
    return [f"the container ended with status {state.exit_code} ({state.reason})" for state in states if state]


def _is_missing(error: Exception) -> bool:
    return isinstance(error, ApiException) and error.status == 404


def _message(error: Exception) -> str:
    """What an API server says, without the headers around it."""
    if not isinstance(error, ApiException):
        return str(error)
    found = re.search(r'"message"\s*:\s*"((?:[^"\\]|\\.)*)"', str(error.body or ""))
    return found[1].replace('\\"', '"') if found else f"{error.status} {error.reason}"
