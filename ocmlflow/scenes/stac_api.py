"""Finds the item pages of a STAC API: from a landing page, a collection, its items or a search, page by page."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlparse

from ocmlflow.errors import InputError
from ocmlflow.storage import json_files
from ocmlflow.storage.hrefs import is_https

PAGE = 100
"""Items to ask for at a time; servers may give fewer."""
MAX_ITEMS = 20_000
"""Most items that are read from one address; a landing page may name millions."""


@dataclass(frozen=True)
class Request:
    """A request for a page."""

    href: str
    method: str = "GET"
    body: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)


def start(content: dict[str, Any], href: str) -> Request | None:
    """The request for the items, or else the collections, of a landing page or collection of an API.

    None where the content at `href` names none: it is a static catalogue.
    """
    rels = [link.get("rel") for link in links(content)]
    if "item" in rels or not is_https(href):
        return None
    if "conformsTo" in content or "data" in rels:
        return _first(content, href, "search") or _first(content, href, "data")
    return _first(content, href, "items")


def pages(first: dict[str, Any], request: Request) -> Iterator[tuple[str, dict[str, Any]]]:
    """Address and content of each page, from the content of the first on, which `request` gave, by the links `next`.

    Raises InputError for an API that leads in circles or names more than MAX_ITEMS items; OSError and ValueError where
    a page cannot be read.
    """
    href, content, count = request.href, first, 0
    asked: set[str] = set()
    while True:
        count += len(content.get("features", []))
        matched = content.get("numberMatched") or content.get("context", {}).get("matched") or count
        if max(count, matched) > MAX_ITEMS:
            raise InputError(
                f"{href} names {max(count, matched)} items, more than {MAX_ITEMS}: name a collection, or a search of "
                "less ground, with collections= and bbox= in its address"
            )
        yield request.href, content
        following = _next(content, request)
        if not following:
            return
        if repr(following) in asked:
            raise InputError(f"the STAC API at {href} leads in circles: {following.href} follows itself")
        asked.add(repr(following))
        request = following
        content = fetch(request)


def fetch(request: Request) -> dict[str, Any]:
    """The page that a request gives; OSError or ValueError where it cannot be read or is no JSON object."""
    content = json_files.request(request.method, request.href, body=request.body, headers=request.headers)
    if not isinstance(content, dict):
        raise ValueError(f"{request.href} answers no JSON object")
    return content


def links(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The links of a STAC object that have a target; ValueError where they are no list of objects."""
    given = content.get("links") or []
    if not isinstance(given, list) or not all(isinstance(link, dict) for link in given):
        raise ValueError("its links are no list of JSON objects")
    return [link for link in given if isinstance(link.get("href"), str)]


def _first(content: dict[str, Any], href: str, rel: str) -> Request | None:
    """The request of a link of this kind, by GET where there is a choice; for PAGE items, but for collections."""
    found = sorted((link for link in links(content) if link.get("rel") == rel), key=_method)
    if not found or "parquet" in str(found[0].get("type")):
        return None
    target = urljoin(href, found[0]["href"])
    if _method(found[0]) == "POST":
        return Request(target, "POST", {"limit": PAGE})
    if rel == "data" or "limit=" in urlparse(target).query:
        return Request(target)
    return Request(f"{target}{'&' if urlparse(target).query else '?'}limit={PAGE}")


def _next(content: dict[str, Any], request: Request) -> Request | None:
    """STAC API, "Paging": https://github.com/radiantearth/stac-api-spec/tree/main/item-search#pagination."""
    link = next((link for link in links(content) if link.get("rel") == "next"), None)
    if not link:
        return None
    href = urljoin(request.href, link["href"])
    if not is_https(href):
        raise InputError(f"{request.href} names {href} as its next page, which is no http or https address")
    headers = {str(name): str(value) for name, value in (link.get("headers") or {}).items()}
    if _method(link) == "GET":
        return Request(href, headers=headers)
    body = (request.body or {}) if link.get("merge") else {}
    return Request(href, "POST", body | (link.get("body") or {}), headers)


def _method(link: dict[str, Any]) -> str:
    return str(link.get("method") or "GET").upper()
