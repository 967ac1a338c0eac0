"""Builds STAC items and collections for data that was made from scenes."""

from datetime import UTC, datetime
from typing import Any

import pystac
import shapely
from shapely.geometry.base import BaseGeometry

from ocmlflow import redaction
from ocmlflow.scenes.catalog import Scene
from ocmlflow.storage import hrefs

UNKNOWN = datetime(1970, 1, 1, tzinfo=UTC)
"""Time of items whose time is unknown, since STAC requires one."""


def build_item(
    name: str, scenes: list[Scene], *, outline: BaseGeometry, assets: dict[str, tuple[str, str]], **facts: Any
) -> dict[str, Any]:
    """A STAC item, as a JSON dict, of data made from scenes, with a `derived_from` link to each of them.

    `outline` is in degrees (lon, lat). `assets` gives href and media type by name, `facts` further properties. The time
    is that of the scenes: from the earliest to the latest.
    """
    times = sorted(scene.acquired for scene in scenes if scene.acquired)
    item = pystac.Item(
        id=name,
        geometry=shapely.geometry.mapping(outline),
        bbox=_bbox([outline]),
        datetime=None if times else UNKNOWN,
        start_datetime=times[0] if times else None,
        end_datetime=times[-1] if times else None,
        properties=facts,
    )
    for scene in scenes:
        media = str(pystac.MediaType.GEOJSON if scene.item else pystac.MediaType.GEOTIFF)
        for source in [scene.item] if scene.item else scene.tiles or [scene.image]:
            target = redaction.redact(hrefs.absolute(source))
            item.add_link(pystac.Link(pystac.RelType.DERIVED_FROM, target, media_type=media, title=scene.id))
    for key, (href, media) in assets.items():
        item.add_asset(key, pystac.Asset(href, media_type=media))
    return item.to_dict(include_self_link=False, transform_hrefs=False)


def link_to_collection(name: str, item: dict[str, Any]) -> dict[str, Any]:
    """The item with links to the collection `name`, in whose folder `items/` it is to be written."""
    media_type = str(pystac.MediaType.JSON)
    upwards = [
        {"rel": rel, "href": "../collection.json", "type": media_type} for rel in ("collection", "parent", "root")
    ]
    return {**item, "links": [*upwards, *item["links"]], "collection": name}


def build_collection(name: str, items: list[dict[str, Any]], *, description: str) -> dict[str, Any]:
    """A STAC collection, as a JSON dict, of items in the folder `items/` beside it; it covers their extent."""
    boxes = [item["bbox"] for item in items]
    bbox = _bbox([shapely.geometry.shape(item["geometry"]) for item in items])
    known = {pystac.utils.str_to_datetime(time) for item in items for time in _times(item["properties"])} - {UNKNOWN}
    times = sorted(known)
    interval: list[datetime | None] = [times[0], times[-1]] if times else [None, None]
    extent = pystac.Extent(
        pystac.SpatialExtent([bbox, *boxes] if len(boxes) > 1 else [bbox]),
        pystac.TemporalExtent([interval]),
    )
    built = pystac.Collection(name, description, extent, license="other")
    media = str(pystac.MediaType.GEOJSON)
    for item in items:
        built.add_link(pystac.Link(pystac.RelType.ITEM, f"./items/{item['id']}.json", media_type=media))
    return built.to_dict(include_self_link=False, transform_hrefs=False)


def _bbox(outlines: list[BaseGeometry]) -> list[float]:
    """West, south, east, north; where it crosses 180 degrees, west is greater than east, as in RFC 7946."""
    west, south, east, north = shapely.total_bounds(outlines).tolist()
    if west == -180 and east == 180:
        bounds = shapely.bounds(shapely.get_parts(outlines))
        west, east = float(bounds[bounds[:, 0] >= 0, 0].min()), float(bounds[bounds[:, 0] < 0, 2].max())
    return [west, south, east, north]


def _times(properties: dict[str, Any]) -> list[str]:
    values = (properties.get(key) for key in ("datetime", "start_datetime", "end_datetime"))
    return [value for value in values if value]
