"""Reads the footprints of a scene from its label files, repairs them, and counts what was wrong."""

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
    """The footprints that people drew on one scene."""

    polygons: np.ndarray
    """(count,) valid shapely polygons, in the CRS asked for, without duplicates."""
    drawn: int
    """Features in the label files."""
    empty: int
    """Features without an area: nulls, points, lines, and geometries that lie nowhere on earth."""
    repaired: int
    """Features that were not valid: rings that cross themselves, parts that overlap."""
    duplicates: int
    """Polygons left out because an equal one came before."""


def read(scene: Scene, crs: str) -> LabelFootprints:
    """The footprints of a scene, in `crs`.

    Raises InputError for a label file that cannot be read, has not exactly one layer with geometries, names no CRS, or
    has geometries but no polygon on earth.
    """
    files = [_read_file(scene, href, crs) for href in scene.labels]
    polygons = np.concatenate([file.polygons for file in files]) if files else np.empty(0, dtype=object)
    _, first = np.unique(shapely.to_wkb(shapely.normalize(polygons)), return_index=True)
    return LabelFootprints(
        polygons[np.sort(first)],
        drawn=sum(file.drawn for file in files),
        empty=sum(file.empty for file in files),
        repaired=sum(file.repaired for file in files),
        duplicates=len(polygons) - len(first),
    )


def _read_file(scene: Scene, href: str, crs: str) -> LabelFootprints:
    try:
        file = io.BytesIO(hrefs.read(href)) if hrefs.is_remote(href) else hrefs.local_path(href)
        layers = gpd.list_layers(file).dropna()  # tables without geometries, such as styles, have no geometry type
        frame = gpd.read_file(file, columns=[], layer=layers.index[0] if len(layers) else None)
    except Exception as error:  # pyogrio, GDAL and the network each raise their own
        raise InputError(f"cannot read labels {href} of scene {scene.id}: {error}") from error
    if len(layers) != 1:
        raise InputError(
            f"labels {href} of scene {scene.id} have {len(layers)} layers with geometries ({', '.join(layers.name)}); "
            "save the buildings as a file with one layer"
        )
    if not len(frame):
        return LabelFootprints(np.empty(0, dtype=object), 0, 0, 0, 0)
    if frame.crs is None:
        raise InputError(f"labels {href} of scene {scene.id} name no CRS; save them with one, or as GeoJSON in degrees")
    geometries = frame.geometry.to_numpy()
    drawn = frame.geometry[~(shapely.is_missing(geometries) | shapely.is_empty(geometries))]
    projected = drawn.to_crs(crs)
    polygons = labels.polygons(projected)
    if len(drawn) and not len(polygons):
        raise InputError(
            f"none of the {len(drawn)} geometries of labels {href} of scene {scene.id} is a polygon on earth: "
            f"they are {', '.join(sorted(set(drawn.geom_type)))} in {frame.crs.name}, from "
            f"{drawn.total_bounds[0]:g}, {drawn.total_bounds[1]:g}; GeoJSON must be in degrees"
        )
    on_earth = np.isfinite(projected.bounds).all(axis=1)
    areas = on_earth & drawn.geom_type.isin(["Polygon", "MultiPolygon", "GeometryCollection"])
    return LabelFootprints(
        polygons,
        drawn=len(frame),
        empty=len(frame) - int(areas.sum()),
        repaired=int((~drawn[areas].is_valid).sum()),
        duplicates=0,
    )
