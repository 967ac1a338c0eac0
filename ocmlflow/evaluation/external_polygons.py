"""Reads buildings that another tool predicted as polygons, so that they can be scored like a model's predictions."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from affine import Affine

from ocmlflow.chips import labels
from ocmlflow.errors import InputError

log = logging.getLogger(__name__)

SUFFIXES = (".parquet", ".geoparquet", ".fgb", ".gpkg", ".geojson", ".json")
"""Suffixes of polygon files, the first preferred where a scene has several."""


def files(path: Path) -> list[Path]:
    """The polygon files that a path names: itself, or those in the folder."""
    if path.is_file():
        return [path] if path.suffix.lower() in SUFFIXES else []
    return sorted(file for file in path.glob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def read(path: Path, rows: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """The polygons of the scenes of some chips, columns scene and geometry, in degrees.

    `path` is a folder with a file for each scene, SCENE.parquet (GeoParquet), SCENE.fgb, SCENE.gpkg or SCENE.geojson,
    or one file for all scenes, or a folder with nothing but that. Raises InputError if a scene has no file, and for a
    file that cannot be read, names no CRS, or lies elsewhere than the chips, and where there is no polygon at all.
    """
    scenes = sorted(set(rows.scene))
    of_scene = {scene: file for file in reversed(_preferred(files(path))) for scene in scenes if file.stem == scene}
    if of_scene:
        if missing := [scene for scene in scenes if scene not in of_scene]:
            raise InputError(
                f"{path} has no polygons for {len(missing)} of {len(scenes)} scenes, such as {missing[0]}: each needs "
                f"a file (an empty one where nothing is found), say {missing[0]}.parquet or {missing[0]}.geojson"
            )
        parts = [_read_scene(of_scene[scene], rows[rows.scene == scene], scene) for scene in scenes]
    else:
        parts = _read_all_scenes(path, rows)
    found = gpd.GeoDataFrame(pd.concat(parts, ignore_index=True), crs="EPSG:4326")
    if not len(found):
        raise InputError(f"{path} holds no polygon: there is nothing to score")
    return found


def reader(outlines: gpd.GeoDataFrame, rows: gpd.GeoDataFrame) -> Callable[[Any, np.ndarray], np.ndarray]:
    """A function that gives the mask of a chip: its row and image to (size, size, 1) float32, 1 building, 0 not."""
    trees = {}
    for (scene, utm), _ in rows.groupby(["scene", "utm"]):
        trees[scene] = shapely.STRtree(labels.polygons(outlines.geometry[outlines.scene == scene].to_crs(utm)))

    def mask(row: Any, image: np.ndarray) -> np.ndarray:
        size = image.shape[0]
        half_m = size / 2 * row.gsd
        tree = trees[row.scene]
        near = tree.query(shapely.box(row.x - half_m, row.y - half_m, row.x + half_m, row.y + half_m))
        transform = Affine(row.gsd, 0, row.x - half_m, 0, -row.gsd, row.y + half_m)
        burnt = labels.rasterize(tree.geometries[np.sort(near)], transform, height=size, width=size)
        return burnt.astype(np.float32)[..., np.newaxis]

    return mask


def _preferred(paths: list[Path]) -> list[Path]:
    return sorted(paths, key=lambda file: SUFFIXES.index(file.suffix.lower()))


def _read_scene(file: Path, rows: gpd.GeoDataFrame, scene: str) -> gpd.GeoDataFrame:
    """The polygons in the file of one scene."""
    frame = _read_file(file)
    if not len(frame):
        log.warning("%s holds no polygon: nothing is found in scene %s", file, scene)
    elif not shapely.box(*frame.total_bounds).intersects(shapely.box(*rows.to_crs(frame.crs).total_bounds)):
        raise InputError(f"{file} lies elsewhere than the {len(rows)} chips of its scene: is its CRS right?")
    return frame.assign(scene=scene)


def _read_all_scenes(path: Path, rows: gpd.GeoDataFrame) -> list[gpd.GeoDataFrame]:
    """The polygons of one file by the scene whose chips they meet; of several scenes, each has them."""
    candidates = files(path)
    if len(candidates) != 1:
        names = ", ".join(file.name for file in candidates[:3])
        raise InputError(
            f"{path} has {len(candidates)} polygon files ({names}), none by the name of a scene, such as "
            f"{rows.scene.iloc[0]}: name them by their scenes, or give one file for all"
        )
    frame = _read_file(candidates[0])
    parts = []
    for scene, chips in rows.groupby("scene"):
        meets = shapely.STRtree(frame.geometry.to_numpy()).query(chips.geometry.to_numpy(), predicate="intersects")[1]
        parts.append(frame.iloc[np.unique(meets)].assign(scene=scene))
        if not len(meets):
            log.warning("%s has no polygon on the chips of scene %s", candidates[0], scene)
    if len(frame) and not any(map(len, parts)):
        raise InputError(
            f"none of the {len(frame)} polygons of {candidates[0]} lies on the {len(rows)} chips: is its CRS right?"
        )
    return parts


def _read_file(file: Path) -> gpd.GeoDataFrame:
    """The valid polygons of a file in degrees; InputError if it cannot be read or names no CRS."""
    try:
        frame = gpd.read_parquet(file) if file.suffix.lower() in SUFFIXES[:2] else gpd.read_file(file)
        if not isinstance(frame, gpd.GeoDataFrame):
            raise ValueError("it holds no geometries")
    except Exception as error:  # pyarrow, geopandas and GDAL raise of many types
        raise InputError(f"cannot read polygons {file}: {error}") from error
    if frame.crs is None:
        raise InputError(f"{file} names no CRS: save it with one, or as GeoJSON in degrees")
    geometry = labels.polygons(frame.geometry.to_crs("EPSG:4326"))
    return gpd.GeoDataFrame({"scene": np.full(len(geometry), "", object)}, geometry=geometry, crs="EPSG:4326")
