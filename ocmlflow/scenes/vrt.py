"""Writes GDAL VRTs of tiles that are one picture, and checks which files a VRT names."""

import os
import posixpath
import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from affine import Affine

from ocmlflow.errors import InputError
from ocmlflow.scenes.headers import Header
from ocmlflow.storage import hrefs

LIMIT = 32 << 20
"""Largest size in bytes of a VRT."""


def write(tiles: Sequence[Header], folder: Path) -> str:
    """Write a GDAL VRT that shows the tiles as one picture, later ones on top; returns its path.

    What no tile covers is not valid. Raises InputError for tiles that differ in resolution, bands or nodata value, or
    are rotated.
    """
    _check_alike(tiles)
    text = _to_xml(tiles)
    path = folder / f"{hrefs.digest(text)}.vrt"
    if not path.exists():  # its time is part of what makes a scene the same
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{secrets.token_hex(4)}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    return str(path.resolve())


def sources(href: str) -> list[str]:
    """Hrefs of the GeoTIFFs that a VRT shows.

    Raises InputError for a VRT that cannot be read, that does more than put GeoTIFFs side by side, or that names files
    outside of its own folder: otherwise its author could have any file read.
    """
    remedy = "make a GeoTIFF of it, say with gdal_translate -of COG"
    try:
        content = hrefs.read(href, limit=LIMIT)
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise InputError(f"VRT {href} declares XML entities; {remedy}")
        root = ElementTree.fromstring(content)
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(f"cannot read VRT {href}: {error}") from error
    kinds = {kind for element in root.iter() if (kind := element.get("subClass"))} - {"VRTSourcedRasterBand"}
    if root.tag != "VRTDataset" or kinds:
        raise InputError(f"VRT {href} is a {', '.join(sorted(kinds)) or root.tag}, not tiles side by side; {remedy}")
    named = [element for element in root.iter() if element.tag in ("SourceFilename", "SourceDataset")]
    files = list(dict.fromkeys(_source(href, element, remedy) for element in named))
    for file in files:
        _check_tiff(href, file, remedy)
    return files


def _source(vrt: str, element: ElementTree.Element, remedy: str) -> str:
    """Href of a file that a VRT names; InputError where it lies outside of the folder of the VRT."""
    name = (element.text or "").strip()
    folder = posixpath.dirname(vrt) if hrefs.is_remote(vrt) else os.path.abspath(hrefs.local_path(vrt).parent)
    is_relative = element.get("relativeToVRT", "0") == "1"
    path = posixpath.normpath(posixpath.join(folder, name)) if is_relative else os.path.normpath(name)
    if hrefs.is_remote(vrt):
        path = f"{folder}/{posixpath.normpath(name)}"
        is_inside = is_relative and not name.startswith("/") and ":" not in name and ".." not in path.split("/")
    else:
        is_inside = path.startswith(f"{folder.rstrip('/')}/")
    if not is_inside:
        raise InputError(f"VRT {vrt} names {name}, which is not below its own folder; move it there, or {remedy}")
    return path


def _check_tiff(vrt: str, file: str, remedy: str) -> None:
    """Raise InputError unless a file begins as a TIFF does: GDAL may take any other for a list of further files."""
    try:
        start = hrefs.read_start(file, 4)
    except OSError as error:
        raise InputError(f"VRT {vrt} names {file}, which cannot be read: {error}") from error
    if start not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        raise InputError(f"VRT {vrt} names {file}, which is no GeoTIFF; {remedy}")


def _check_alike(tiles: Sequence[Header]) -> None:
    for name, values in (
        ("CRSs", [tile.crs for tile in tiles]),
        ("resolutions", [f"{tile.transform.a:.6g} by {-tile.transform.e:.6g}" for tile in tiles]),
        ("bands", [f"{', '.join(tile.dtypes)} ({', '.join(tile.colours)})" for tile in tiles]),
        ("nodata values", [str(tile.nodata) for tile in tiles]),
        ("rotations", [str((tile.transform.b, tile.transform.d)) for tile in tiles]),
    ):
        usual = Counter(values).most_common(1)[0][0]
        odd = next((i for i, value in enumerate(values) if value != usual), None)
        if odd is not None:
            raise InputError(
                f"mosaic=true: the tiles of one picture have different {name}: {usual}, and {values[odd]} in "
                f"{tiles[odd].href}; leave that out, or make the tiles alike, say with gdalwarp -t_srs and -tr"
            )
    if tiles[0].transform.b or tiles[0].transform.d:
        raise InputError(f"mosaic=true: tile {tiles[0].href} is rotated; make its grid upright, say with gdalwarp")


def _to_xml(tiles: Sequence[Header]) -> str:
    """XML of the VRT: https://gdal.org/drivers/raster/vrt.html."""
    first = tiles[0].transform
    lefts = [tile.transform.c for tile in tiles]
    tops = [tile.transform.f for tile in tiles]
    origin = Affine(first.a, 0, min(lefts), 0, first.e, max(tops) if first.e < 0 else min(tops))
    places = [tuple(map(round, ~origin @ corner)) for corner in zip(lefts, tops, strict=True)]
    width = max(col + tile.width for (col, _), tile in zip(places, tiles, strict=True))
    height = max(row + tile.height for (_, row), tile in zip(places, tiles, strict=True))
    bands = "".join(
        f'<VRTRasterBand dataType="{_gdal_type(dtype)}" band="{number}">'
        f"<ColorInterp>{colour.title()}</ColorInterp>"
        f"{_nodata_element(tiles[0])}{_sources(tiles, places, str(number))}</VRTRasterBand>"
        for number, (dtype, colour) in enumerate(zip(tiles[0].dtypes, tiles[0].colours, strict=True), 1)
    )
    geotransform = ", ".join(map(repr, origin.to_gdal()))
    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>{escape(tiles[0].crs)}</SRS>'
        f"<GeoTransform>{geotransform}</GeoTransform>{bands}{_mask_band(tiles, places)}</VRTDataset>"
    )


def _mask_band(tiles: Sequence[Header], places: Sequence[tuple[int, ...]]) -> str:
    """The masks of the tiles: of tiles without one, GDAL gives their whole area, so that gaps between are not valid."""
    if tiles[0].nodata is not None or "alpha" in tiles[0].colours:
        return ""  # gaps have the nodata value, or alpha 0
    return f'<MaskBand><VRTRasterBand dataType="Byte">{_sources(tiles, places, "mask,1")}</VRTRasterBand></MaskBand>'


def _sources(tiles: Sequence[Header], places: Sequence[tuple[int, ...]], band: str) -> str:
    kind = "SimpleSource" if tiles[0].nodata is None else "ComplexSource"
    nodata = "" if tiles[0].nodata is None else f"<NODATA>{tiles[0].nodata!r}</NODATA>"
    return "".join(
        f'<{kind}><SourceFilename relativeToVRT="0">{escape(_gdal_name(tile.href))}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand>"
        f'<SrcRect xOff="0" yOff="0" xSize="{tile.width}" ySize="{tile.height}"/>'
        f'<DstRect xOff="{col}" yOff="{row}" xSize="{tile.width}" ySize="{tile.height}"/>{nodata}</{kind}>'
        for tile, (col, row) in zip(tiles, places, strict=True)
    )


def _nodata_element(tile: Header) -> str:
    return "" if tile.nodata is None else f"<NoDataValue>{tile.nodata!r}</NoDataValue>"


def _gdal_type(dtype: str) -> str:
    return {"uint8": "Byte"}.get(dtype, dtype.replace("uint", "UInt").replace("int", "Int").replace("float", "Float"))


def _gdal_name(href: str) -> str:
    if href.startswith("s3://"):
        return f"/vsis3/{href.removeprefix('s3://')}"
    return f"/vsicurl/{href}" if hrefs.is_remote(href) else str(hrefs.local_path(href).resolve())
