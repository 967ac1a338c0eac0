"""Writes the built-in sample: synthetic drone scenes and their footprints, as STAC in the layout of the challenge."""

import hashlib
import json
import logging
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from rasterio import Affine
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import transform_geom
from shapely import geometry
from shapely.affinity import affine_transform
from shapely.geometry.base import BaseGeometry

from ocmlflow.sample.render import DrawnScene, Land, draw

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """What the scenes of one place share."""

    epsg: int
    corner: tuple[float, float]
    """Easting and northing of the first scene's upper left corner."""
    land: Land


HIL_ROOFS = {"rust": 5, "iron": 3, "paint": 4, "tile": 4, "concrete": 1.5, "bitumen": 1, "thatch": 0.7}
BAY_ROOFS = {"rust": 4, "iron": 6, "paint": 2, "tile": 0.7, "concrete": 3, "bitumen": 1, "thatch": 1}
PLACES = {
    "hil": Place(
        32636, (196240, 72580), Land(((196, 140, 100), (150, 98, 68)), ((88, 114, 56), (132, 146, 80)), HIL_ROOFS)
    ),
    "bay": Place(
        32737, (505640, 9436310), Land(((212, 194, 162), (166, 148, 120)), ((116, 124, 76), (90, 104, 58)), BAY_ROOFS)
    ),
}


@dataclass(frozen=True)
class SceneSpec:
    """Name, place, size and look of one scene to draw."""

    name: str
    place: str
    gsd: float
    shape: tuple[int, int]
    """(height, width) in pixels."""
    density: float
    """From 0, outskirts, to 1, a dense quarter."""
    compress: str = "DEFLATE"
    ragged: bool = True
    """Whether the imagery ends at a ragged outline inside the file, as in a mosaic."""


SCENES = (
    SceneSpec("hil-1", "hil", 0.08, (1390, 1730), 0.7, "JPEG"),
    SceneSpec("hil-2", "hil", 0.12, (1290, 1105), 0.3),
    SceneSpec("bay-1", "bay", 0.10, (1340, 1470), 0.75),
    SceneSpec("bay-2", "bay", 0.07, (1450, 1870), 0.4, "JPEG"),
)
CHIPS = tuple(
    SceneSpec(f"chip-{i}", ("hil", "bay")[i % 2], 0.10, (1024, 1024), (0.8, 0.3, 0.6)[i % 3], ragged=i == 3)
    for i in range(6)
)
LICENCE = "CC0-1.0 (synthetic sample drawn by ocmlflow; no real place, no real imagery)"
DATE = "2020-02-01"
CRS84 = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
ASSETS = {
    ".tif": ("image", "image/tiff; application=geotiff; profile=cloud-optimized"),
    ".geojson": ("labels", "application/geo+json"),
}

Link = tuple[str, str]
"""Relation and href."""


def write(folder: Path, *, seed: int) -> None:
    """Write the sample's catalogues: train_tier_1/catalog.json and test/catalog.json under `folder`.

    Training scenes are georeferenced and have footprints, test chips have neither. The same seed gives the same bytes.
    Raises FileExistsError where `folder` exists. The folder appears only when it is complete.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; the sample needs a new folder: name another one, or remove this one")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for code in PLACES:
        _write_place(part / "train_tier_1" / code, seed)
    links = [("root", "./catalog.json"), *(("child", f"./{code}/collection.json") for code in PLACES)]
    _write_record(part / "train_tier_1" / "catalog.json", links, description="Synthetic training data")
    _write_chips(part / "test", seed)
    part.rename(folder)


def _write_place(folder: Path, seed: int) -> None:
    specs = [spec for spec in SCENES if spec.place == folder.name]
    outlines = [_write_scene(folder / _id(spec, seed), spec, i, seed) for i, spec in enumerate(specs)]
    names = [name for spec in specs for name in (_id(spec, seed), f"{_id(spec, seed)}-labels")]
    bbox = shapely.total_bounds(outlines).tolist()
    extent = {"spatial": {"bbox": [bbox]}, "temporal": {"interval": [[f"{DATE}T00:00:00Z", None]]}}
    links = [("root", "../catalog.json"), ("parent", "../catalog.json")]
    links += [("item", f"./{name}/{name}.json") for name in names]
    about = f"Synthetic data of the made-up place {folder.name}"
    _write_record(folder / "collection.json", links, description=about, license="CC0-1.0", extent=extent)


def _write_scene(folder: Path, spec: SceneSpec, number: int, seed: int) -> BaseGeometry:
    """Write a scene and, in a folder beside it, its labels; returns the outline of its imagery in degrees."""
    place = PLACES[spec.place]
    drawn = _draw(spec, seed)
    x, y = place.corner[0] + 420 * number, place.corner[1] - 260 * number

    def lonlat(shape: Any) -> Any:
        ground = affine_transform(shape, [1, 0, 0, -1, x, y])
        return transform_geom(f"EPSG:{place.epsg}", "EPSG:4326", ground, precision=8)  # to the millimetre

    image = folder / f"{folder.name}.tif"
    labels = folder.with_name(f"{folder.name}-labels") / f"{folder.name}.geojson"
    georeference = {"crs": f"EPSG:{place.epsg}", "transform": Affine(spec.gsd, 0, x, 0, -spec.gsd, y)}
    _write_tif(image, drawn, spec.compress, **georeference)
    building = {"type": "Feature", "properties": {"building": "yes"}}
    features = [building | {"geometry": lonlat(shape)} for shape in drawn.buildings]
    _write_json(labels, {"type": "FeatureCollection", "crs": CRS84, "features": features})
    outline = geometry.shape(lonlat(drawn.outline))
    area = {"area": spec.place}
    links = [("root", "../../catalog.json"), ("parent", "../collection.json"), ("collection", "../collection.json")]
    _write_item(image, outline, links, area, collection=spec.place)
    about: dict[str, Any] = {"label:description": f"Building footprints of scene {folder.name}", "label:type": "vector"}
    counts = [{"property_key": ["building"], "counts": [{"name": "yes", "count": len(features)}]}]
    about |= {"label:properties": ["building"], "label:overviews": counts}
    _write_item(labels, outline, links, area | about, stac_extensions=["label"])
    return outline


def _write_chips(folder: Path, seed: int) -> None:
    names = {_id(spec, seed): spec for spec in CHIPS}
    for name, spec in names.items():
        _write_tif(folder / name / f"{name}.tif", _draw(spec, seed), spec.compress)
        # As in the challenge, a made-up place: chips have no georeference.
        nowhere = shapely.box(0, -0.0092, 0.0092, 0)
        links = [("root", "../catalog.json"), ("parent", "../catalog.json")]
        _write_item(folder / name / f"{name}.tif", nowhere, links, {})
    links = [("root", "./catalog.json"), *(("item", f"./{name}/{name}.json") for name in sorted(names))]
    _write_record(folder / "catalog.json", links, description="Synthetic test chips")


def _draw(spec: SceneSpec, seed: int) -> DrawnScene:
    log.info("%s: %d x %d pixels", spec.name, *spec.shape)
    look: dict[str, Any] = {"shape": spec.shape, "gsd": spec.gsd, "density": spec.density, "ragged": spec.ragged}
    return draw(PLACES[spec.place].land, **look, seed=[seed, *spec.name.encode()])


def _write_tif(path: Path, drawn: DrawnScene, compress: str, **georeference: Any) -> None:
    bands = np.concatenate([np.moveaxis(drawn.image, -1, 0), 255 * drawn.valid[None].astype(np.uint8)])
    profile = {"count": 4, "dtype": "uint8", "photometric": "RGB", "alpha": "YES", "interleave": "pixel"}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": compress}
    profile |= {"jpeg_quality": 85} if compress == "JPEG" else {"predictor": 2, "zlevel": 4}
    path.parent.mkdir(parents=True)
    with warnings.catch_warnings():
        if not georeference:
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
        height, width = drawn.valid.shape
        with rasterio.open(path, "w", "GTiff", height=height, width=width, **profile, **georeference) as target:
            target.write(bands)
        with rasterio.open(path, "r+") as target:
            target.build_overviews([2, 4, 8], Resampling.average)


def _write_item(file: Path, outline: BaseGeometry, links: list[Link], properties: dict[str, Any], **more: Any) -> None:
    """Write the STAC item of an image or label file beside it."""
    key, kind = ASSETS[file.suffix]
    more |= {"assets": {key: {"href": f"./{file.name}", "type": kind}}, "bbox": outline.bounds}
    properties = properties | {"license": LICENCE, "datetime": f"{DATE} 00:00:00Z"}
    path = file.parent / f"{file.parent.name}.json"
    _write_record(path, links, type="Feature", geometry=geometry.mapping(outline), properties=properties, **more)


def _write_record(path: Path, links: list[Link], **record: Any) -> None:
    """Write a STAC catalogue, collection or item whose id is the name of its folder."""
    record |= {"id": path.parent.name, "stac_version": "0.8.1"}
    record["links"] = [{"rel": rel, "href": href, "type": "application/json"} for rel, href in links]
    _write_json(path, record)


def _write_json(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _id(spec: SceneSpec, seed: int) -> str:
    return hashlib.md5(f"{seed}/{spec.name}".encode(), usedforsecurity=False).hexdigest()[:6]
