"""Finds the image and the labels among the assets of a STAC item, by their keys, roles and media types."""

import posixpath
import re
from collections.abc import Iterable
from urllib.parse import urlparse

import pystac

from ocmlflow.scenes import headers

LABEL_SUFFIX = "-labels"  # of label items of the challenge, which have no `source` link
LABEL_FILES = {
    ".geojson": "application/geo+json",
    ".geojsonl": "application/geo+json-seq",
    ".geojsons": "application/geo+json-seq",
    ".ndjson": "application/geo+json-seq",
    ".gpkg": "application/geopackage+sqlite3",
    ".fgb": "application/flatgeobuf",
    ".parquet": "application/vnd.apache.parquet",
    ".geoparquet": "application/vnd.apache.parquet",
    ".shp": "application/vnd.shp",
    ".kml": "application/vnd.google-earth.kml+xml",
}
IMAGE_FILES = {".tif": "image/tiff", ".tiff": "image/tiff"}

_LABELS = re.compile(r"(.*[-_ ])?(labels?|buildings?)([-_ ].*)?")
_NO_PICTURE = re.compile(
    r"(.*[-_ ])?(thumb(nail)?s?|overviews?|previews?|quicklook|browse|metadata|masks?|udm2?)([-_ ].*)?"
    r"|(.*[-_ ])?(n?dsm|dtm|dem|chm|elevation)([-_ ].*)?"
    r"|clouds?|cloud-shadow|snow-ice|land-water|saturation|date|graphic|iso-19115|.*azimuth|.*angle|terrain-.*"
)
"""Roles, and keys of assets without roles, of rasters that are not the full picture: STAC best practices, "List of
Asset Roles", and the view, eo and raster extensions."""
_VISUAL = ("visual", "true-color", "true_color", "rgb")
_PICTURE = re.compile(r"image|(.*[-_ ])?ortho(photo|image|mosaic|rectified)?([-_ ].*)?")
_OTHER_THAN_VECTOR = ("image/", "text/", "application/pdf", "application/xml")


def image_asset(item: pystac.Item) -> pystac.Asset | None:
    """The GeoTIFF that shows the scene; None where the item has none.

    Assets that a role (or a key, where there are no roles) calls a thumbnail, overview, mask, metadata or elevation
    are never taken. Of the others, `visual` comes first, then `image` and `ortho`, then the role `data`; assets whose
    bands are said not to be three of 8 bits come last. Where several are equally likely, their headers are read: the
    largest of three bands of 8 bits is taken.
    """
    ranks = {key: _image_rank(item, key, asset) for key, asset in item.assets.items()}
    known = [rank for rank in ranks.values() if rank is not None]
    likely = [item.assets[key] for key, rank in ranks.items() if known and rank == min(known)]
    return max(likely, key=_rgb_pixels) if len(likely) > 1 else next(iter(likely), None)


def band_names(item: pystac.Item, asset: pystac.Asset) -> tuple[str, ...]:
    """Common names of an asset's bands in their order, empty for a band without one; none where the item names none.

    Bands are listed in `bands` (STAC 1.1) or `eo:bands` of the asset. Before STAC 0.9, `eo:bands` of an asset are the
    numbers of those of the item.
    """
    of_item = item.properties.get("eo:bands")
    listed = asset.extra_fields.get("bands") or asset.extra_fields.get("eo:bands")
    if not isinstance(listed, list):
        return ()
    if isinstance(of_item, list):
        listed = [of_item[band] if isinstance(band, int) and band < len(of_item) else band for band in listed]
    names = tuple(_band_name(band) for band in listed)
    return names if any(names) else ()


def label_assets(item: pystac.Item) -> list[pystac.Asset]:
    """The vector files of labels, or the label rasters where there are no vector files.

    An asset is labels where its key or a role says so, and in an item of labels: one that has properties of STAC's
    label extension, the suffix `-labels` of the challenge, or a link to its `source`. Any other vector file may outline
    the imagery, or clouds.
    """
    drawn = [asset for key, asset in item.assets.items() if _is_label(item, key, asset)]
    vectors = [asset for asset in drawn if not _is_tiff(asset)]
    return vectors or drawn


def is_label_item(item: pystac.Item) -> bool:
    """Whether an item says of itself that it is labels of an image."""
    return (
        _has_label_extension(item) or item.id.endswith(LABEL_SUFFIX) or any(link.rel == "source" for link in item.links)
    )


def describe_assets(item: pystac.Item) -> str:
    """Keys, roles and media types of the item's assets, for messages."""
    texts = [
        f"{key} ({', '.join(filter(None, [*_roles(asset), str(asset.media_type or '')])) or 'no role or type'})"
        for key, asset in item.assets.items()
    ]
    return ", ".join(texts) or "none"


def _image_rank(item: pystac.Item, key: str, asset: pystac.Asset) -> int | None:
    """How likely an asset is the image, 0 most; None where it is none."""
    names = [key.lower(), *_roles(asset)]
    is_untyped = key == "image" and not _media_type(asset)
    if (
        not (_is_tiff(asset) or is_untyped)
        or _is_label(item, key, asset)
        or _matches(_NO_PICTURE, _roles(asset) or [key.lower()])
    ):
        return None
    if any(name in _VISUAL for name in names):
        rank = 0
    elif _matches(_PICTURE, names):
        rank = 1
    elif _has_label_extension(item):
        return None
    else:
        rank = 2 if "data" in names else 3
    unlikely = _has_other_bands(asset) or _matches(_NO_PICTURE, names)
    return rank + 4 * (not asset.media_type) + 8 * unlikely


def _is_label(item: pystac.Item, key: str, asset: pystac.Asset) -> bool:
    names = [key.lower(), *_roles(asset)]
    if _matches(_LABELS, names):
        return _matches(_LABELS, _roles(asset)) or not {"metadata", "thumbnail", "overview"} & set(_roles(asset))
    if not is_label_item(item) or _matches(_NO_PICTURE, names):
        return False
    if _is_tiff(asset):
        return item.properties.get("label:type") == "raster"
    return not _media_type(asset).startswith(_OTHER_THAN_VECTOR)


def _band_name(band: object) -> str:
    if not isinstance(band, dict):
        return ""
    names = (band.get("eo:common_name"), band.get("common_name"), band.get("name"))
    return next((str(name) for name in names if name), "")


def _has_label_extension(item: pystac.Item) -> bool:
    return any(name.startswith("label:") for name in item.properties)


def _has_other_bands(asset: pystac.Asset) -> bool:
    """Whether an asset's metadata say that it has not three bands of 8 bits."""
    fields = asset.extra_fields
    listed = [bands for name in ("raster:bands", "eo:bands", "bands") if isinstance(bands := fields.get(name), list)]
    types = {band.get("data_type") for bands in listed for band in bands if isinstance(band, dict)}
    other_types = (types | {fields.get("data_type")}) - {None, "uint8"}
    return bool(other_types) or any(0 < len(bands) < 3 for bands in listed)


def _rgb_pixels(asset: pystac.Asset) -> int:
    """Pixels of an asset by its header; 0 where it has not three bands of 8 bits, or cannot be read."""
    return sum(
        header.height * header.width for header in headers.read([asset.get_absolute_href() or ""]) if header.is_rgb
    )


def _roles(asset: pystac.Asset) -> list[str]:
    return [str(role).lower() for role in asset.roles or ()]


def _matches(pattern: re.Pattern[str], names: Iterable[str]) -> bool:
    return any(pattern.fullmatch(name) for name in names)


def _is_tiff(asset: pystac.Asset) -> bool:
    # image/tiff; before STAC 1.0, image/vnd.stac.geotiff and image/x.geotiff
    return _media_type(asset).endswith("tiff")


def _media_type(asset: pystac.Asset) -> str:
    """Media type without parameters; by the file name where none is given."""
    media_type = str(asset.media_type or "").partition(";")[0].strip().lower()
    suffix = posixpath.splitext(urlparse(asset.href).path)[1].lower()
    return media_type or (IMAGE_FILES | LABEL_FILES).get(suffix, "")
