"""Reads the footprints of a scene from its label files, repairs them, and counts what was wrong."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyproj
import shapely

from ocmlflow.chips import label_files, label_filter, label_table, labels
from ocmlflow.chips.label_files import Features, State
from ocmlflow.chips.label_table import LabelTable
from ocmlflow.errors import InputError
from ocmlflow.scenes import geobox
from ocmlflow.scenes.catalog import Scene

NEAR_M = 20.0
"""Footprints so near a scene are read too: what is drawn around them may reach into it (`buffer_m` is at most 10)."""


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
    """Polygons left out because an equal one came before."""
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
    layer: str | None = None,
    where: str | None = None,
    tables: Mapping[str, LabelTable] | None = None,
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
            if table := (tables or {}).get(href):
                files.append(_near(table, crs, extent))
            else:
                features = label_files.read_all(href, layer=layer, where=where)
                files.append(_check_usable(href, features, _footprints(href, features, crs)))
        except InputError as error:
            raise InputError(f"scene {scene.id}: {error}") from error
    return _joined(files)


def _joined(files: list[LabelFootprints]) -> LabelFootprints:
    """The footprints of several files as one, without duplicates."""
    polygons = np.concatenate([np.empty(0, dtype=object), *(file.polygons for file in files)])
    starts = np.cumsum([0, *(file.drawn for file in files)])
    owners = [file.features + start for file, start in zip(files, starts[:-1], strict=True)]
    _, first = np.unique(shapely.to_wkb(shapely.normalize(polygons)), return_index=True)
    kept = np.sort(first)
    return LabelFootprints(
        polygons[kept],
        np.concatenate([np.empty(0, int), *owners])[kept],
        np.concatenate([np.empty(0, np.uint8), *(file.states for file in files)]),
        duplicates=len(polygons) - len(first),
        remarks=tuple(remark for file in files for remark in file.remarks),
    )


def _near(table: LabelTable, crs: str, extent: shapely.Polygon) -> LabelFootprints:
    """The footprints of a shared file near a scene."""
    to_file = _transformer(table.href, crs, table.crs)
    box = to_file.transform_bounds(*extent.buffer(NEAR_M).bounds)
    if box[0] > box[2]:  # across 180 degrees
        box = (-np.inf, box[1], np.inf, box[3])
    return _footprints(table.href, label_table.near(table, box), crs)


def _footprints(href: str, features: Features, crs: str) -> LabelFootprints:
    """The footprints of features of one file, projected and repaired."""
    states = features.states.copy()
    usable = np.flatnonzero(states <= State.REPAIRED)
    shapes = _projected(href, features, usable, crs)
    polygons, owners, repaired = labels.take_apart(shapes)
    has_area = np.isin(np.arange(len(usable)), owners)
    on_earth = np.isfinite(shapely.bounds(shapes)).all(axis=-1)
    states[usable[repaired]] = State.REPAIRED
    states[usable[~has_area]] = State.EMPTY
    states[usable[~on_earth]] = State.OUTSIDE
    remarks = [*_remarks(features, states), *_lines_and_points(shapes[on_earth])]
    return LabelFootprints(polygons, usable[owners], states, 0, tuple(f"labels {href}: {remark}" for remark in remarks))


def _projected(href: str, features: Features, chosen: np.ndarray, crs: str) -> np.ndarray:
    """Geometries of the chosen features in another CRS; infinite where they lie outside of it."""
    shapes = features.geometries[chosen]
    if not len(shapes):
        return shapes
    transformer = _transformer(href, features.crs, crs)
    return np.asarray(shapely.transform(shapes, lambda points: np.column_stack(transformer.transform(*points.T))))


def _transformer(href: str, source: pyproj.CRS | str | None, target: pyproj.CRS | str | None) -> pyproj.Transformer:
    if source is None or target is None:
        raise InputError(f"labels {href} name no CRS; save them with one, or as GeoJSON in degrees")
    try:
        return pyproj.Transformer.from_crs(source, target, always_xy=True)
    except pyproj.exceptions.ProjError as error:
        name = (source if isinstance(source, pyproj.CRS) else pyproj.CRS(target)).name
        raise InputError(
            f"the CRS of labels {href}, {name}, does not say where on earth they lie: save them in one that does, such "
            "as EPSG:4326, or, if only the name is wrong, give them the right one, say with ogr2ogr -a_srs EPSG:CODE"
        ) from error


def _remarks(features: Features, states: np.ndarray) -> list[str]:
    """What was odd about the features of a file, in words."""
    counts = {state: int((states == state).sum()) for state in State}
    remarks = []
    if counts[State.REFUSED]:
        number, reason = next(iter(features.reasons.items()))
        remarks.append(f"{counts[State.REFUSED]} of {len(states)} features cannot be read; feature {number}: {reason}")
    if counts[State.REPAIRED]:
        remarks.append(f"{counts[State.REPAIRED]} features repaired, whose rings were open or crossed, or parts overlapped")
    if counts[State.EMPTY]:
        remarks.append(f"{counts[State.EMPTY]} features without an area left out")
    if counts[State.LEFT_OUT] == len(states) > 0:
        remarks.append(f"where leaves out all {len(states)} features")
    if features.doubts:
        remarks.append(
            f"{label_filter.counted(features.doubts)} seem to be no buildings, and are burnt as such; choose the "
            "buildings, say with where=\"building!='no'\""
        )
    return remarks


def _lines_and_points(shapes: np.ndarray) -> list[str]:
    """A remark about lines and points, alone and in collections, if there are any."""
    parts, _ = labels.parts(shapes)
    kinds = Counter(str(shapely.GeometryType(kind).name) for kind in shapely.get_type_id(parts))
    found = [f"{kinds[name]} {text}" for name, text in (("POINT", "points"), ("LINESTRING", "lines")) if kinds[name]]
    return [f"{' and '.join(found)} left out; footprints are polygons"] if found else []


def _check_usable(href: str, features: Features, footprints: LabelFootprints) -> LabelFootprints:
    """The same footprints; InputError where a file has features, and none of them can be used."""
    states = footprints.states
    if not len(states) or len(footprints.polygons) or (states == State.LEFT_OUT).any():
        return footprints
    reason = next((f"; feature {number}: {text}" for number, text in features.reasons.items()), "")
    shapes = features.geometries[~shapely.is_missing(features.geometries)]
    kinds = sorted({shape.geom_type for shape in shapes})
    place = "; they are {} in {}, from {:g}, {:g}; GeoJSON must be in degrees"
    name = features.crs.name if features.crs else "no CRS"
    raise InputError(
        f"none of the {len(states)} features of labels {href} is a polygon on earth{reason}"
        + (place.format(", ".join(kinds), name, *shapely.total_bounds(shapes)[:2]) if kinds else "")
    )
