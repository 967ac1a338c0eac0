"""Reads JSON files and answers of bounded size, with or without a byte order mark."""

import json
from typing import Any

from ocmlflow.storage import hrefs

LIMIT = 32 << 20
"""Largest size in bytes: in memory, JSON takes up to 25 times as much."""


def read(href: str) -> Any:
    """The content of the JSON file at `href`.

    Raises an OSError that names it where it cannot be read or is larger than LIMIT, and ValueError where it is not
    JSON, or is nested deeper than Python can follow.
    """
    return parse(hrefs.read(href, limit=LIMIT))


def request(method: str, href: str, *, body: object = None, headers: dict[str, str] | None = None) -> Any:
    """The JSON that an http(s) server answers to a request with a JSON body; errors as of `read`."""
    return parse(hrefs.request(method, href, body=body, headers=headers, limit=LIMIT))


def parse(content: bytes) -> Any:
    """JSON in UTF-8, 16 or 32, with or without a byte order mark; ValueError where it is none."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
