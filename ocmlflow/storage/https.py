"""Sends http(s) requests, repeated where a server is busy."""

import functools
import os
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from ocmlflow.storage import s3
from ocmlflow.storage.s3 import ServerUnavailableError

USER_AGENT = "ocmlflow"  # data.source.coop, a home of the challenge's data, answers 403 to Python's own
TIMEOUT_S = 60
RETRIES = 4
"""Of requests over https."""


class StatusError(FileNotFoundError):
    """A server answers with an error."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def read_start(method: str, href: str, count: int, body: object = None, headers: dict[str, str] | None = None) -> bytes:
    """The first bytes of an answer; more of it is not waited for."""
    with request(method, href, stream=True, json=body, headers=headers) as response:
        content = bytearray()
        try:
            for part in response.iter_content(1 << 16):
                content += part
                if len(content) >= count:
                    break
        except requests.RequestException as error:
            raise FileNotFoundError(f"{href}: the answer breaks off") from error
    return bytes(content[:count])


def request(method: str, href: str, **options: Any) -> requests.Response:
    """The answer to a request, of which `options` are those of requests.

    Raises a FileNotFoundError that names the address where there is none, and a StatusError where it is an error.
    """
    try:
        response = _session(os.getpid()).request(method, href, timeout=TIMEOUT_S, allow_redirects=True, **options)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise ServerUnavailableError(f"no answer from {href}") from error
    except requests.RequestException as error:  # such as a host that cannot be one
        raise FileNotFoundError(f"{href} cannot be asked for: {error}") from error
    if response.status_code in s3.TRANSIENT_STATUSES:
        raise ServerUnavailableError(f"{href} answers {response.status_code} {response.reason}")
    if not response.ok:
        raise StatusError(f"{href} answers {response.status_code} {response.reason}", response.status_code)
    return response


@functools.lru_cache(maxsize=1)
def _session(process: int) -> requests.Session:
    """A session of this process, which retries transient HTTP statuses with growing pauses."""
    session = requests.Session()
    session.headers["User-Agent"] = USER_AGENT
    retry = Retry(RETRIES, backoff_factor=0.3, status_forcelist=s3.TRANSIENT_STATUSES, raise_on_status=False)
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session
