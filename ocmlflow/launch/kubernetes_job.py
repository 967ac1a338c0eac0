"""Submits a Kubernetes Job, follows it with its log to the end, and deletes it where it is not wanted any more."""

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
"""Seconds that an API server may take to delete a Job."""
PATIENCE_S = 300
"""Seconds after which a Job is given up, when its API server does not answer."""
LOG_S = 60
"""Seconds to read the rest of a log in, when its Job has ended."""
STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?Z ")
"""Timestamp that Kubernetes puts before each line of a log."""


def connect(context: str | None) -> kubernetes.client.ApiClient:
    """A client of the cluster that this context of the kubeconfig names, its current one if None.

    Without a kubeconfig, of the cluster that this process runs in. InputError where there is none.
    """
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
    """Raise InputError unless the cluster accepts the Job in a dry run, and has the Secrets that it names."""
    namespace = job["metadata"]["namespace"]
    try:
        kubernetes.client.BatchV1Api(client).create_namespaced_job(namespace, job, dry_run="All")
    except ApiException as error:
        raise InputError(f"the cluster refuses the Job in namespace {namespace}: {_message(error)}") from error
    except urllib3.exceptions.HTTPError as error:
        raise InputError(f"the cluster does not answer at {client.configuration.host}: {error}") from error
    for secret, keys in kubernetes_template.secret_names(job).items():
        try:
            data = kubernetes.client.CoreV1Api(client).read_namespaced_secret(secret, namespace).data or {}
        except ApiException as error:
            if error.status == 403:
                log.warning("no right to read Secret %s: whether it exists is not checked", secret)
                continue
            raise InputError(f"Secret {secret} in namespace {namespace}: {_message(error)}") from error
        if missing := keys - data.keys():
            raise InputError(f"Secret {secret} in namespace {namespace} lacks {', '.join(sorted(missing))}")


def submit(client: kubernetes.client.ApiClient, job: Job) -> None:
    """Create the Job."""
    try:
        kubernetes.client.BatchV1Api(client).create_namespaced_job(job["metadata"]["namespace"], job)
    except (ApiException, urllib3.exceptions.HTTPError) as error:
        raise InputError(f"the cluster did not take the Job: {_message(error)}") from error


def delete(client: kubernetes.client.ApiClient, job: Job) -> None:
    """Delete the Job with its pods, if it exists; an error is logged, with the command that would do it."""
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


def run(client: kubernetes.client.ApiClient, job: Job, *, pending_s: float, show: Callable[[str], None]) -> str | None:
    """Submit a Job and follow it to its end; None when it is complete, else why it is not.

    The Job is deleted if this is interrupted.
    """
    try:
        submit(client, job)
        log.info("Job %s in namespace %s", job["metadata"]["name"], job["metadata"]["namespace"])
        return follow(client, job, pending_s=pending_s, show=show)
    except BaseException:
        log.info("deleting Job %s", job["metadata"]["name"])
        delete(client, job)
        raise


def follow(
    client: kubernetes.client.ApiClient, job: Job, *, pending_s: float, show: Callable[[str], None]
) -> str | None:
    """Wait for the end of a Job, and show the log of its pod line by line; None when it is complete, else why not.

    Logs why no pod starts. After `pending_s` seconds without one, the Job is deleted.
    """
    deadline = time.monotonic() + pending_s
    pending_reason = ""
    reader: Thread | None = None
    over = Event()
    try:
        while True:
            status, pods = _read_state(client, job)
            started = [pod for pod in pods if pod.status.phase != "Pending"]
            if started and not reader:
                reader = _start_reader(client, started[0].metadata, over, show)
            reason = "" if started else _why_pending(pods)
            if reason != pending_reason:
                log.info("%s", f"waiting for a pod: {reason}" if reason else "the pod runs")
                pending_reason = reason
            conditions = {each.type: each for each in status.conditions or [] if each.status == "True"}
            if "Complete" in conditions or "Failed" in conditions:
                over.set()
                if reader:
                    reader.join(LOG_S)
                return None if "Complete" in conditions else _why_failed(conditions["Failed"], pods, pending_reason)
            if pending_reason and time.monotonic() > deadline:
                delete(client, job)
                return f"no pod has started in {pending_s / 60:g} minutes: {pending_reason}"
            time.sleep(POLL_S)
    except _JobLostError as error:
        return str(error)
    finally:
        over.set()


class _JobLostError(Exception):
    """The Job is gone, or its cluster does not answer any more."""


def _read_state(client: kubernetes.client.ApiClient, job: Job) -> tuple[Any, list[Any]]:
    """Status of a Job, and its pods; a cluster that does not answer is asked again for PATIENCE_S seconds."""
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            status = kubernetes.client.BatchV1Api(client).read_namespaced_job_status(name, namespace).status
            pods = kubernetes.client.CoreV1Api(client).list_namespaced_pod(namespace, label_selector=f"job-name={name}")
            return status, pods.items
        except (ApiException, urllib3.exceptions.HTTPError) as error:
            if _is_missing(error):
                raise _JobLostError(f"Job {name} was deleted") from error
            if time.monotonic() > deadline:
                reason = f"the cluster has not answered for {PATIENCE_S} s: {_message(error)}"
                raise _JobLostError(reason) from error
        time.sleep(POLL_S)


def _start_reader(client: kubernetes.client.ApiClient, pod: Any, over: Event, show: Callable[[str], None]) -> Thread:
    """A thread that shows the log of a pod (its metadata) until `over` is set and all of it is read."""
    reader = Thread(target=_read_log, args=(client, pod.name, pod.namespace, over, show), daemon=True)
    reader.start()
    return reader


def _read_log(
    client: kubernetes.client.ApiClient, pod: str, namespace: str, over: Event, show: Callable[[str], None]
) -> None:
    """Show the log of a pod until `over` is set and all of it is read; goes on after a connection that breaks."""
    last = ""
    failing = False
    while True:
        final = over.is_set()  # asked before the log is read: what is written meanwhile is read in another round
        try:
            for timestamp, line in _new_lines(client, pod, namespace, after=last):
                show(line)
                last = timestamp
            failing = False
        except (ApiException, urllib3.exceptions.HTTPError) as error:
            # Warned of once; and not at the end, where the pod may have been deleted.
            if not (failing or (final and _is_missing(error))):
                log.warning("the log of pod %s cannot be read, and is asked for again: %s", pod, _message(error))
            failing = True
        if final:
            return
        over.wait(POLL_S)


def _new_lines(
    client: kubernetes.client.ApiClient, pod: str, namespace: str, *, after: str
) -> Iterator[tuple[str, str]]:
    """Lines of the log of a pod that are newer than the timestamp `after`, each with its own timestamp."""
    stream = kubernetes.client.CoreV1Api(client).read_namespaced_pod_log(
        pod,
        namespace,
        container=kubernetes_template.STEP,
        follow=True,
        timestamps=True,
        since_seconds=_seconds_since(after) if after else None,
        _preload_content=False,
    )
    timestamp, is_new = after, True
    for line in _lines(stream):
        if stamp := STAMP.match(line):  # else the rest of a long line
            timestamp = f"{stamp[1]}.{stamp[2] or '':0<9}"
            is_new = timestamp > after
            line = line[stamp.end() :]
        if is_new:
            yield timestamp, line


def _seconds_since(timestamp: str) -> int:
    """Whole seconds since a timestamp of a log, rounded up and one more, so that no line is missed."""
    return math.ceil(time.time() - datetime.fromisoformat(timestamp[:19] + "+00:00").timestamp()) + 1


def _lines(stream: Any) -> Iterator[str]:
    rest = b""
    for part in stream.stream(4096, decode_content=False):
        *lines, rest = (rest + part).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
    if rest:
        yield rest.decode(errors="replace")


def _why_pending(pods: Sequence[Any]) -> str:
    """Why no pod has started, in the words of the scheduler or the kubelet."""
    for pod in pods:
        for status in pod.status.container_statuses or []:
            if status.state.waiting:
                return f"{status.state.waiting.reason} {status.state.waiting.message or ''}".strip()
        for condition in pod.status.conditions or []:
            if condition.type == "PodScheduled" and condition.status == "False":
                return str(condition.message or condition.reason)
    return "it is being made" if not pods else "it is being started"


def _why_failed(condition: Any, pods: Sequence[Any], pending_reason: str) -> str:
    """Why a Job failed: its own message, how its containers ended, and what its pod waited for at last."""
    ends = [status.state.terminated for pod in pods for status in pod.status.container_statuses or []]
    reasons = [f"the container ended with status {end.exit_code} ({end.reason})" for end in ends if end]
    if pending_reason:
        reasons.append(f"the pod waited for: {pending_reason}")
    return "; ".join([str(condition.message), *reasons])


def _is_missing(error: Exception) -> bool:
    return isinstance(error, ApiException) and error.status == 404


def _message(error: Exception) -> str:
    """The message of an API server, without the headers around it."""
    if not isinstance(error, ApiException):
        return str(error)
    quoted = re.search(r'"message"\s*:\s*"((?:[^"\\]|\\.)*)"', str(error.body or ""))
    return quoted[1].replace('\\"', '"') if quoted else f"{error.status} {error.reason}"
