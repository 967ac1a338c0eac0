"""Reads the footprints of a scene from its label files, repairs them, and counts what was wrong."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyproj
import shapely

from ocmlflow.chips import label_files, label_filter, label_formats, label_table, labels
from ocmlflow.chips.label_files import Features, State
from ocmlflow.chips.label_table import LabelTable
from ocmlflow.errors import InputError
from ocmlflow.scenes import geobox
from ocmlflow.scenes.catalog import Scene

NEAR_M = 20.0
"""Footprints so near a scene are read too: what is drawn around them may reach into it (`buffer_m` is at most 10)."""

SAME_IOU = 0.9
"""Two footprints of a larger IoU are one building, drawn twice."""


@dataclass(frozen=True)
class LabelFootprints:
    """The footprints that people drew on one scene."""

    polygons: np.ndarray
    """(count,) valid shapely polygons, in the CRS asked for, without duplicates."""
    features: np.ndarray
    """(count,) int: the feature that each is of, a position in `states`."""
    states: np.ndarray
    """(features,) of `label_files.State`: what became of each feature that was read."""
    duplicates: int
    """Polygons left out because one came before that is equal, or has an IoU above SAME_IOU."""
    remarks: tuple[str, ...]
    """What was odd about the files, for a log."""

    @property
    def drawn(self) -> int:
        """Features that were read."""
        return len(self.states)

    def count(self, state: State) -> int:
        """Features of one state."""
        return int((self.states == state).sum())


def read(
    scene: Scene,
    crs: str,
    *,
    extent: shapely.Polygon,
    layer: str | None,
    where: str | None,
    tables: Mapping[str, LabelTable],
) -> LabelFootprints:
    """The footprints of a scene, in `crs`, in metres.

    `layer` and `where` (an SQL condition of properties) choose features. `tables` has the files that several scenes
    share: of them, only what is near `extent`, the scene's outline in `crs`, is read.

    Raises InputError for a label file that cannot be read, has several layers and none is chosen, names no CRS or one
    that does not say where on earth it is, and for one that has features of which none can be used.
    """
    files = []
    for href in scene.labels:
        try:
            if table := tables.get(href):
                file = _near(table, crs, extent)
            else:
                features = label_files.read_all(href, layer=layer, where=where)
                file = _footprints(features, crs)
                check_usable(features, file.states)
        except InputError as error:
            raise InputError(f"labels {href} of scene {scene.id}: {error}") from error
        files.append(replace(file, remarks=tuple(f"labels {href}: {remark}" for remark in file.remarks)))
    if files and all(href in tables for href in scene.labels) and not any(len(file.polygons) for file in files):
        files.append(_nothing_near(scene, crs, extent, tables))
    return _joined(files)


def _nothing_near(scene: Scene, crs: str, extent: shapely.Polygon, tables: Mapping[str, LabelTable]) -> LabelFootprints:
    """No footprints, with a remark; InputError where the shared label files do not even cover ground near the scene."""
    names = ", ".join(scene.labels)
    if not any(_meets(tables[href].bounds, _box(tables[href], crs, extent)) for href in scene.labels):
        raise InputError(
            f"none of the footprints of labels {names} lies on or around scene {scene.id}, {scene.image}: check that "
            "they belong together and that their CRS is the one they name"
        )
    nothing = np.empty(0, dtype=object), np.empty(0, int), np.empty(0, np.uint8)
    remark = f"no footprint of labels {names} is on it: it is cut as ground without buildings; aoi= tells if it is not"
    return LabelFootprints(*nothing, duplicates=0, remarks=(remark,))


def _meets(one: label_formats.Box, other: label_formats.Box) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _joined(files: list[LabelFootprints]) -> LabelFootprints:
    """The footprints of several files as one, without duplicates."""
    polygons = np.concatenate([np.empty(0, dtype=object), *(file.polygons for file in files)])
    starts = np.cumsum([0, *(file.drawn for file in files)])
    owners = [file.features + start for file, start in zip(files, starts[:-1], strict=True)]
    _, first = np.unique(shapely.to_wkb(shapely.normalize(polygons)), return_index=True)
    kept = np.sort(first)
    kept = kept[_drawn_once(polygons[kept])]
    return LabelFootprints(
        polygons[kept],
        np.concatenate([np.empty(0, int), *owners])[kept],
        np.concatenate([np.empty(0, np.uint8), *(file.states for file in files)]),
        duplicates=len(polygons) - len(kept),
        remarks=tuple(remark for file in files for remark in file.remarks),
    )


def _drawn_once(footprints: np.ndarray) -> np.ndarray:
    """(count,) bool: which footprints stay if each building that was drawn twice is counted once, as the first."""
    one, other = shapely.STRtree(footprints).query(footprints, predicate="intersects")
    later = one < other
    one, other = one[later], other[later]
    areas = shapely.area(footprints)
    alike = np.minimum(areas[one], areas[other]) > SAME_IOU * np.maximum(areas[one], areas[other])
    one, other = one[alike], other[alike]
    common = shapely.area(shapely.intersection(footprints[one], footprints[other]))
    is_double = common > SAME_IOU * (areas[one] + areas[other] - common)
    stays = np.ones(len(footprints), bool)
    for first, second in sorted(zip(one[is_double].tolist(), other[is_double].tolist(), strict=True)):
        stays[second] &= not stays[first]
    return stays


def _near(table: LabelTable, crs: str, extent: shapely.Polygon) -> LabelFootprints:
    """The footprints of a shared file near a scene."""
    return _footprints(label_table.near(table, _box(table, crs, extent)), crs)


def _box(table: LabelTable, crs: str, extent: shapely.Polygon) -> label_formats.Box:
    """A box around a scene in the CRS of a shared file."""
    left, bottom, right, top = _transformer(table.crs, crs).transform_bounds(
        *extent.buffer(NEAR_M).bounds, direction="INVERSE"
    )
    return (left, bottom, right, top) if left <= right else (-np.inf, bottom, np.inf, top)  # across 180 degrees


def _footprints(features: Features, crs: str) -> LabelFootprints:
    """The footprints of features of one file, projected and repaired."""
    states = features.states.copy()
    usable = np.flatnonzero(states <= State.REPAIRED)
    shapes = _projected(features, usable, crs)
    polygons, owners, repaired = labels.take_apart(shapes)
    has_area = np.isin(np.arange(len(usable)), owners)
    on_earth = np.isfinite(shapely.bounds(shapes)).all(axis=-1)
    states[usable[repaired]] = State.REPAIRED
    states[usable[~has_area]] = State.EMPTY
    states[usable[~on_earth]] = State.OUTSIDE
    told = [*remarks(features, states), *_lines_and_points(shapes[on_earth])]
    if len(polygons) and features.crs:
        middle = shapely.centroid(features.geometries[usable[owners[0]]])
        told += filter(None, [geobox.place_doubt(features.crs, crs, middle.x, middle.y)])
    return LabelFootprints(polygons, usable[owners], states, 0, tuple(told))


def _projected(features: Features, chosen: np.ndarray, crs: str) -> np.ndarray:
    """Geometries of the chosen features in another CRS; infinite where they lie outside of it."""
    shapes = features.geometries[chosen]
    if not len(shapes):
        return shapes
    transformer = _transformer(features.crs, crs)
    return np.asarray(shapely.transform(shapes, lambda points: np.column_stack(transformer.transform(*points.T))))


def _transformer(source: pyproj.CRS | None, target: str) -> pyproj.Transformer:
    if source is None:
        raise InputError("the file names no CRS; save it with one, or as GeoJSON in degrees")
    try:
        return pyproj.Transformer.from_crs(source, target, always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise InputError(
            f"its CRS, {source.name}, does not say where on earth it lies: save it in one that does, such as "
            "EPSG:4326, or, if only the name is wrong, give it the right one, say with ogr2ogr -a_srs EPSG:CODE"
        ) from error


def remarks(features: Features, states: np.ndarray) -> list[str]:
    """What was odd about the features of a file, in words."""
    counts = {state: int((states == state).sum()) for state in State}
    found = []
    if counts[State.REFUSED]:
        number, reason = next(iter(features.reasons.items()))
        found.append(f"{counts[State.REFUSED]} of {len(states)} features cannot be read; feature {number}: {reason}")
    if counts[State.REPAIRED]:
        found.append(
            f"{counts[State.REPAIRED]} features repaired, whose rings were open or crossed, or parts overlapped"
        )
    if counts[State.EMPTY]:
        found.append(f"{counts[State.EMPTY]} features without an area left out")
    if counts[State.LEFT_OUT] == len(states) > 0:
        found.append(f"where leaves out all {len(states)} features")
    if features.doubts:
        found.append(
            f"{label_filter.counted(features.doubts)} seem to be no buildings, and are burnt as such; choose the "
            "buildings, say with where=\"building!='no'\""
        )
    return found


def _lines_and_points(shapes: np.ndarray) -> list[str]:
    """A remark about lines and points, alone and in collections, if there are any."""
    parts, _ = labels.parts(shapes)
    kinds = Counter(shapely.GeometryType(kind) for kind in shapely.get_type_id(parts))
    found = [
        f"{kinds[kind]} {kind.name.lower()}"
        for kind in shapely.GeometryType
        if kinds[kind] and kind < shapely.GeometryType.POLYGON
    ]
    return [f"left out, since footprints are polygons: {', '.join(found)}"] if found else []


def check_usable(features: Features, states: np.ndarray) -> None:
    """Raise InputError where a file has features, and by their states none of them can be used."""
    if not len(states) or np.isin(states, (State.USED, State.REPAIRED, State.LEFT_OUT)).any():
        return
    reason = next((f"; feature {number}: {text}" for number, text in features.reasons.items()), "")
    shapes = features.geometries[~shapely.is_missing(features.geometries)]
    place = ""
    if len(shapes) and features.crs:
        kinds = ", ".join(sorted({shape.geom_type for shape in shapes}))
        left, bottom, _, _ = shapely.total_bounds(shapes)
        place = f"; they are {kinds} in {features.crs.name}, from {left:g}, {bottom:g}; GeoJSON must be in degrees"
    raise InputError(f"none of its {len(states)} features is a polygon on earth{reason}{place}")
