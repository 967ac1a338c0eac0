"""What was made of scenes, to STAC items, and those to a collection."""

from datetime import UTC, datetime
from typing import Any

import pystac
import shapely
from shapely.geometry.base import BaseGeometry

from ocmlflow import redaction
from ocmlflow.scenes.catalog import Scene
from ocmlflow.storage import hrefs

UNKNOWN = datetime(1970, 1, 1, tzinfo=UTC)
"""The time of items of which nobody knows it: STAC asks for one."""


def build_item(
    name: str, scenes: list[Scene], *, outline: BaseGeometry, assets: dict[str, tuple[str, str]], **facts: Any
) -> dict[str, Any]:
    """A STAC item, as JSON, of what was made of some scenes: derived from each of them, with its outline in degrees.

    `assets` gives href and media type by name, `facts` more properties. The times are those of the scenes.
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
        target = redaction.redact(hrefs.absolute(scene.item or scene.image))
        media = str(pystac.MediaType.GEOJSON if scene.item else pystac.MediaType.GEOTIFF)
        item.add_link(pystac.Link(pystac.RelType.DERIVED_FROM, target, media_type=media, title=scene.id))
    for key, (href, media) in assets.items():
        item.add_asset(key, pystac.Asset(href, media_type=media))
    return item.to_dict(include_self_link=False, transform_hrefs=False)


def link_to_collection(name: str, item: dict[str, Any]) -> dict[str, Any]:
    """An item, as `dataset` makes it, that is to lie in the `items/` of a collection, with its links to that."""
    media = str(pystac.MediaType.JSON)
    upwards = [{"rel": rel, "href": "../collection.json", "type": media} for rel in ("collection", "parent", "root")]
    return {**item, "links": [*upwards, *item["links"]], "collection": name}


def build_collection(name: str, items: list[dict[str, Any]], *, description: str) -> dict[str, Any]:
    """A STAC collection, as JSON, of items as `member` makes them, which lie beside it in `items/`.

    Its extent is theirs.
    """
    boxes, whole = [item["bbox"] for item in items], _bbox([shapely.geometry.shape(i["geometry"]) for i in items])
    times = sorted({pystac.utils.str_to_datetime(t) for item in items for t in _times(item["properties"])} - {UNKNOWN})
    interval: list[datetime | None] = [times[0], times[-1]] if times else [None, None]
    extent = pystac.Extent(
        pystac.SpatialExtent([whole, *boxes] if len(boxes) > 1 else [whole]),
        pystac.TemporalExtent([interval]),
    )
    made = pystac.Collection(name, description, extent, license="other")
    media = str(pystac.MediaType.GEOJSON)
    for item in items:
        made.add_link(pystac.Link(pystac.RelType.ITEM, f"./items/{item['id']}.json", media_type=media))
    return made.to_dict(include_self_link=False, transform_hrefs=False)


def _bbox(outlines: list[BaseGeometry]) -> list[float]:
    """West, south, east, north; across 180 degrees west is more than east, as RFC 7946 asks."""
    west, south, east, north = shapely.total_bounds(outlines).tolist()
    if west == -180 and east == 180:
        bounds = shapely.bounds(shapely.get_parts(outlines))
        west, east = float(bounds[bounds[:, 0] >= 0, 0].min()), float(bounds[bounds[:, 0] < 0, 2].max())
    return [west, south, east, north]


def _times(properties: dict[str, Any]) -> list[str]:
    named = (properties.get(key) for key in ("datetime", "start_datetime", "end_datetime"))
    return [time for time in named if time]
