"""Reads the headers of GeoTIFFs, and finds those that touch or overlap."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import rasterio
import shapely
from affine import Affine

from ocmlflow.scenes import gdal_settings, image_file
from ocmlflow.storage import hrefs

CACHE = 16 << 20
"""Bytes of GDAL's block cache while headers are read."""
READERS = 16
"""Headers that are read at a time where files are remote: each waits for a request or two."""
TOUCHING_PX = 0.5
"""Pixels that tiles may lie apart and still be one picture."""


@dataclass(frozen=True)
class Header:
    """What a GeoTIFF says of itself."""

    href: str
    dtypes: tuple[str, ...]
    """Of its bands."""
    colours: tuple[str, ...]
    """Colour interpretation of its bands, as GDAL names them."""
    nodata: float | None
    crs: str
    """WKT; empty where there is none."""
    transform: Affine
    height: int
    width: int

    @property
    def is_picture(self) -> bool:
        """Whether it has bands for red, green and blue."""
        return len(self.dtypes) >= 3

    @property
    def is_rgb(self) -> bool:
        """Whether it has bands of 8 bits for red, green and blue."""
        return self.is_picture and set(self.dtypes[:3]) == {"uint8"}


def read(files: Sequence[str]) -> list[Header]:
    """Headers of the files that can be read, in their order; errors in the others are reported when they are used."""
    threads = READERS if any(map(hrefs.is_remote, files)) else 1
    with image_file.ignore_missing_georeference(), ThreadPoolExecutor(threads) as executor:
        return [header for header in executor.map(_read_header, files) if header]


def touching(headers: Sequence[Header]) -> list[list[Header]]:
    """Groups of two or more files that touch or overlap, directly or through others; in the order of their first ones.

    Files of different CRSs are not compared.
    """
    groups: list[list[Header]] = []
    for crs in dict.fromkeys(header.crs for header in headers if header.crs):
        groups += _touching([header for header in headers if header.crs == crs])
    return [group for group in groups if len(group) > 1]


def names(headers: Sequence[Header]) -> str:
    """The first three file names, and how many more there are."""
    more = f" and {len(headers) - 3} more" if len(headers) > 3 else ""
    return ", ".join(header.href.rpartition("/")[2] for header in headers[:3]) + more


def _read_header(href: str) -> Header | None:
    try:
        with (
            gdal_settings.environment(href, cache=CACHE),
            rasterio.open(gdal_settings.name(href), driver="GTiff") as dataset,
        ):
            return Header(
                href=href,
                dtypes=tuple(dataset.dtypes),
                colours=tuple(colour.name for colour in dataset.colorinterp),
                nodata=dataset.nodata,
                crs=dataset.crs.to_wkt() if dataset.crs else "",
                transform=dataset.transform,
                height=dataset.height,
                width=dataset.width,
            )
    except rasterio.errors.RasterioError:
        return None


def _touching(headers: Sequence[Header]) -> list[list[Header]]:
    """Connected groups among files of one CRS, by their outlines; single files too."""
    outlines = shapely.polygons([[h.transform @ c for c in _corners(h)] for h in headers])
    reach = [TOUCHING_PX * max(abs(h.transform.a), abs(h.transform.b)) for h in headers]
    one, other = shapely.STRtree(outlines).query(shapely.buffer(outlines, reach, join_style="mitre"))
    group = np.arange(len(headers))
    while True:  # the smallest number spreads through each group
        smallest = group.copy()
        np.minimum.at(smallest, one, group[other])
        np.minimum.at(smallest, other, group[one])
        if (smallest == group).all():
            break
        group = smallest
    return [[headers[i] for i in map(int, np.flatnonzero(group == number))] for number in np.unique(group)]


def _corners(header: Header) -> list[tuple[int, int]]:
    return [(0, 0), (header.width, 0), (header.width, header.height), (0, header.height)]
