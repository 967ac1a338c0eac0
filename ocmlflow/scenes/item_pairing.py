"""Pairs STAC items of labels with the items of their images."""

import itertools
import logging
from collections import defaultdict

import pystac

from ocmlflow.scenes import asset_roles

log = logging.getLogger(__name__)


def labels_of(images: list[pystac.Item], items: list[pystac.Item], href: str) -> dict[int, list[str]]:
    """Hrefs of the labels of each image item, by the `id()` of the item: STAC ids may occur twice."""
    by_name = index_by_name(images)
    labels: dict[int, list[str]] = {id(item): [] for item in images}
    for item in items:
        drawn = [label_href for asset in asset_roles.label_assets(item) if (label_href := asset.get_absolute_href())]
        sources = source_images(item, by_name) if drawn else []
        for source in sources:
            labels[id(source)] += drawn
        if drawn and not sources:
            log.warning("labels %s belong to no scene of %s", item.id, href)
    return labels


def index_by_name(items: list[pystac.Item]) -> dict[str, list[pystac.Item]]:
    """The items by their hrefs and by their ids."""
    by_name: dict[str, list[pystac.Item]] = defaultdict(list)
    for item in items:
        for name in (item.get_self_href() or "", item.id):
            by_name[name].append(item)
    return by_name


def source_images(item: pystac.Item, images: dict[str, list[pystac.Item]]) -> list[pystac.Item]:
    """The images that a label item belongs to: by its `source` links, else by id, else by an equal outline.

    `images` are indexed by `index_by_name`.
    """
    links = {link.href for link in item.links if link.rel == "source"}
    if sources := [image for link in links for image in images.get(link, [])]:
        return sources
    for name in (item.id.removesuffix(asset_roles.LABEL_SUFFIX), item.id):
        sources = images.get(name, [])
        # Ids are unique within a collection only.
        own = [image for image in sources if image.collection_id == item.collection_id]
        if own or len(sources) == 1:
            return own or sources
    candidates = itertools.chain.from_iterable(images.values())
    return [image for image in candidates if item.geometry and image.geometry == item.geometry][:1]


def place_name(item: pystac.Item) -> str:
    """Id of the item's collection, else its property `area`, which the challenge's items have."""
    return str(item.collection_id or item.properties.get("area", ""))
