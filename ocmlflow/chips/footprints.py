"""The label files of a scene, to footprints in its CRS, and what was wrong with them."""

import io
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import shapely

from ocmlflow.chips import labels
from ocmlflow.errors import InputError
from ocmlflow.scenes.catalog import Scene
from ocmlflow.storage import hrefs


@dataclass(frozen=True)
class LabelFootprints:
    """What people drew on one scene."""

    polygons: np.ndarray
    """(count,) of valid shapely polygons, in the CRS asked for, none twice."""
    drawn: int
    """Features in the files."""
    empty: int
    """Features of them without an area: nulls, points, lines, and what lies nowhere on earth."""
    repaired: int
    """Features of them that are not valid: rings that cross themselves, parts that overlap."""
    duplicates: int
    """Polygons that stood there before."""


def read(scene: Scene, crs: str) -> LabelFootprints:
    """The footprints of a scene in `crs`; InputError for labels that cannot be read or say no CRS."""
    found = [_read(scene, href, crs) for href in scene.labels]
    polygons = np.concatenate([f.polygons for f in found]) if found else np.empty(0, dtype=object)
    _, first = np.unique(shapely.to_wkb(shapely.normalize(polygons)), return_index=True)
    return LabelFootprints(
        polygons[np.sort(first)],
        drawn=sum(f.drawn for f in found),
        empty=sum(f.empty for f in found),
        repaired=sum(f.repaired for f in found),
        duplicates=len(polygons) - len(first),
    )


def _read(scene: Scene, href: str, crs: str) -> LabelFootprints:
    try:
        file = io.BytesIO(hrefs.read(href)) if hrefs.is_remote(href) else hrefs.local_path(href)
        layers = gpd.list_layers(file).dropna()  # of tables without geometries, such as styles, it says no type
        frame = gpd.read_file(file, columns=[], layer=layers.index[0] if len(layers) else None)
    except Exception as error:  # pyogrio, GDAL and the network each have errors of their own
        raise InputError(f"cannot read labels {href} of scene {scene.id}: {error}") from error
    if len(layers) != 1:
        raise InputError(
            f"labels {href} of scene {scene.id} have {len(layers)} layers with geometries ({', '.join(layers.name)}); "
            "which of them are buildings nobody says: a file of one layer would do"
        )
    if not len(frame):
        return LabelFootprints(np.empty(0, dtype=object), 0, 0, 0, 0)
    if frame.crs is None:
        raise InputError(f"labels {href} of scene {scene.id} name no CRS; GeoJSON in degrees needs none")
    drawn = frame.geometry.to_numpy()
    placed = frame.geometry[~(shapely.is_missing(drawn) | shapely.is_empty(drawn))]
    there = placed.to_crs(crs)
    polygons = labels.polygons(there)
    if len(placed) and not len(polygons):
        raise InputError(
            f"none of the {len(placed)} geometries of labels {href} of scene {scene.id} is a polygon on earth: "
            f"they are {', '.join(sorted(set(placed.geom_type)))} in {frame.crs.name}, from "
            f"{placed.total_bounds[0]:g}, {placed.total_bounds[1]:g}; GeoJSON is in degrees"
        )
    on_earth = np.isfinite(there.bounds).all(axis=1)
    areas = on_earth & placed.geom_type.isin(["Polygon", "MultiPolygon", "GeometryCollection"])
    return LabelFootprints(
        polygons,
        drawn=len(frame),
        empty=len(frame) - int(areas.sum()),
        repaired=int((~placed[areas].is_valid).sum()),
        duplicates=0,
    )
