"""The built-in sample: synthetic drone scenes and their building footprints, in the layout of the challenge.

Shapes are drawn in metres, x to the right and y down from the scene's upper left corner. `sun` is the way, in these
metres, that the shadow of a point runs for each metre of its height.
"""

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from numpy.random import Generator
from rasterio import Affine
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import rasterize
from rasterio.warp import transform_geom
from scipy import fft, ndimage
from shapely import LineString, MultiPolygon, Point, Polygon
from shapely.affinity import affine_transform, rotate, translate

log = logging.getLogger(__name__)

Colour = tuple[int, int, int]
WHITE, GREY, ASPHALT, GLASS, WATER = (232, 232, 226), (158, 154, 146), (112, 110, 108), (38, 44, 50), (66, 78, 66)
CARS = (WHITE, WHITE, (168, 170, 172), (40, 42, 45), (90, 92, 96), (142, 48, 44), (52, 76, 118), (196, 166, 80))
JUNK = ((60, 60, 70), (210, 205, 195), (120, 90, 60), (70, 110, 160), (175, 120, 70), (150, 150, 150))
UPWARDS = {"collection": "collection.json", "root": "../catalog.json", "parent": "collection.json"}
LICENCE = "CC0-1.0 (synthetic sample drawn by ocmlflow; no real place, no real imagery)"


@dataclass(frozen=True)
class Roof:
    """What a roof is made of and how it is pitched."""

    colours: tuple[Colour, ...]
    forms: tuple[str, ...]
    """Out of flat, mono (one slope), gable and hip; one is drawn."""
    mixed: float
    """Share of the sheets that differ from the building's own colour."""
    stripe: float
    """Strength of the stripes that corrugation or tiles make."""
    stain: float
    """Strength of weathering."""


RUST = ((122, 62, 42), (146, 86, 56), (170, 126, 88), (98, 54, 40), (156, 146, 130))
IRON = ((178, 180, 178), (202, 202, 198), (152, 152, 148), (226, 228, 228), (142, 110, 86))
PAINTS = ((148, 52, 62), (186, 64, 60), (66, 118, 172), (88, 126, 110), (228, 228, 222), (92, 106, 126))
TILES = ((204, 114, 70), (184, 94, 60), (142, 80, 60))
ROOFS = {
    "rust": Roof(RUST, ("gable", "mono"), mixed=0.45, stripe=0.06, stain=0.1),
    "iron": Roof(IRON, ("gable", "mono", "hip"), mixed=0.35, stripe=0.06, stain=0.06),
    "painted": Roof(PAINTS, ("gable", "hip"), mixed=0, stripe=0.05, stain=0.05),
    "tile": Roof(TILES, ("hip", "gable"), mixed=0.15, stripe=0.09, stain=0.05),
    "concrete": Roof(((168, 162, 150), (192, 185, 172), (144, 136, 122)), ("flat",), mixed=0, stripe=0, stain=0.13),
    "bitumen": Roof(((64, 62, 60), (82, 80, 78), (50, 52, 56)), ("flat", "mono"), mixed=0.1, stripe=0.02, stain=0.08),
    "thatch": Roof(((146, 120, 86), (120, 98, 70)), ("hip",), mixed=0.3, stripe=0.04, stain=0.14),
}


@dataclass(frozen=True)
class Place:
    """What the scenes of one place have in common."""

    epsg: int
    corner: tuple[float, float]
    """Easting and northing of the first scene's upper left corner."""
    date: str
    soil: tuple[Colour, Colour]
    grass: tuple[Colour, Colour]
    roofs: dict[str, float]
    """Weight of each material."""


PLACES = {
    "hil": Place(
        epsg=32636,
        corner=(196240.0, 72580.0),
        date="2020-01-15",
        soil=((196, 140, 100), (150, 98, 68)),
        grass=((88, 114, 56), (132, 146, 80)),
        roofs={"rust": 5, "iron": 3, "painted": 4, "tile": 4, "concrete": 1.5, "bitumen": 1, "thatch": 0.7},
    ),
    "bay": Place(
        epsg=32737,
        corner=(505640.0, 9436310.0),
        date="2020-02-20",
        soil=((212, 194, 162), (166, 148, 120)),
        grass=((116, 124, 76), (90, 104, 58)),
        roofs={"rust": 4, "iron": 6, "painted": 2, "tile": 0.7, "concrete": 3, "bitumen": 1, "thatch": 2},
    ),
}


@dataclass(frozen=True)
class Survey:
    """One image to draw."""

    name: str
    place: str
    gsd: float
    height: int
    width: int
    crowd: float
    """0 outskirts, 1 dense quarter, at the middle of the scene."""
    compress: str = "DEFLATE"
    ragged: bool = True
    """The imagery ends at a ragged outline inside the file, as a mosaic's does."""


SCENES = (
    Survey("hil-1", "hil", 0.08, 1510, 1890, 0.75, "JPEG"),
    Survey("hil-2", "hil", 0.12, 1290, 1105, 0.3),
    Survey("bay-1", "bay", 0.10, 1340, 1470, 0.8),
    Survey("bay-2", "bay", 0.07, 1650, 2130, 0.45, "JPEG"),
)
CHIPS = tuple(
    Survey(f"chip-{i}", ("hil", "bay")[i % 2], 0.10, 1024, 1024, (0.9, 0.3, 0.6)[i % 3], ragged=i == 3)
    for i in range(6)
)


@dataclass(frozen=True)
class Canvas:
    """An image while it is drawn."""

    image: np.ndarray
    """(height, width, 3) float32, 0..255; drawn on."""
    mottle: np.ndarray
    """(height, width) float32, deviation 1: spots of a few metres."""
    grain: np.ndarray
    """(height, width) float32, deviation 1: spots of a few decimetres."""
    gsd: float
    sun: np.ndarray


@dataclass(frozen=True)
class Plot:
    """A piece of land between roads."""

    ground: Polygon
    centre: np.ndarray
    angle: float
    """Degrees that its long side is turned by."""
    length: float
    width: float
    crowd: float


@dataclass(frozen=True)
class Thing:
    """A shape on the ground."""

    shape: Any
    colour: Colour
    height: float = 0.0
    """Metres; what has any is convex and casts a shadow."""
    soft: bool = False
    """Its edge frays, as that of grass and soil does."""


@dataclass(frozen=True)
class House:
    """A building: convex wings that share one roof."""

    footprint: Polygon
    wings: list[np.ndarray]
    """(corners, 2) each; the first edge is an eave."""
    roof: Roof
    form: str
    height: float


def write(folder: Path, *, seed: int) -> None:
    """Write the sample's catalogues: train_tier_1/catalog.json and test/catalog.json under `folder`.

    The training scenes are georeferenced and have footprints, the test chips neither. The same seed gives the same
    bytes. Raises FileExistsError where `folder` exists; a run that is cut short leaves nothing of that name.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; the sample goes to a folder of its own, name a new one or remove it")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    _write_train(part / "train_tier_1", seed)
    _write_test(part / "test", seed)
    part.rename(folder)


def draw(survey: Survey, rng: Generator) -> tuple[np.ndarray, Polygon, list[Polygon]]:
    """(height, width, 4) uint8 RGBA, the outline of its imagery, and the footprints of all its buildings."""
    place = PLACES[survey.place]
    canvas = _bare_ground(survey, place, rng)
    roads, plots = _streets(survey, rng)
    free, built = _uses(plots, rng)
    houses = _houses(built, place, rng)
    layers = _roads(roads, place, rng)
    for use, plot in free:
        layers += use(plot, rng)
    layers += _yards(built, rng)
    layers += [Thing(Polygon(wing), GREY, house.height) for house in houses for wing in house.wings]
    _draw_things(canvas, layers)
    for house in houses:
        _draw_roof(canvas, house, rng)
    _draw_trees(canvas, houses, plots, place, rng)
    outline = _outline(survey, rng)
    return _expose(canvas, outline, rng), outline, [house.footprint for house in houses]


# --- ground -------------------------------------------------------------------------------------------------------


def _noise(rng: Generator, shape: tuple[int, int], spot: float) -> np.ndarray:
    """(height, width) float32 of mean 0 and deviation 1, smooth over `spot` pixels and rough at every larger scale."""
    size = [fft.next_fast_len(n, real=True) for n in shape]
    spectrum = fft.rfft2(rng.standard_normal(size, dtype=np.float32))
    frequency = np.hypot(fft.fftfreq(size[0])[:, None], fft.rfftfreq(size[1])[None])
    spectrum *= (1 / (1 + (frequency * spot * 2) ** 2)).astype(np.float32)
    field = fft.irfft2(spectrum, s=size)[: shape[0], : shape[1]]
    return np.asarray((field - field.mean()) / field.std(), np.float32)


def _bare_ground(survey: Survey, place: Place, rng: Generator) -> Canvas:
    shape = survey.height, survey.width
    patches, mottle, grain = (_noise(rng, shape, metres / survey.gsd) for metres in (14, 3, 0.3))
    soil = _between(place.soil, 0.5 + 0.3 * patches + 0.15 * mottle)
    grass = _between(place.grass, 0.5 + 0.4 * mottle)
    green = np.clip(2.5 * (0.6 * patches + 0.5 * mottle + 0.35 * grain - survey.crowd), 0, 1)
    image = _between((soil, grass), green) * (1 + 0.09 * grain)[..., None]
    azimuth, cotangent = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.2)
    sun = cotangent * np.array([np.cos(azimuth), np.sin(azimuth)])
    return Canvas(image, mottle, grain, survey.gsd, sun)


def _between(ends: Sequence[Any], share: np.ndarray) -> np.ndarray:
    """Colours between the two `ends`, by a share that is clipped to 0..1."""
    first, last = (np.asarray(end, np.float32) for end in ends)
    return np.asarray(first + (last - first) * np.clip(share, 0, 1, dtype=np.float32)[..., None])


def _burn(canvas: Canvas, shapes: Sequence[Any]) -> np.ndarray:
    """(height, width) uint16: one more than the index of the last shape on each pixel's centre, 0 for none."""
    numbered = [(shape, i + 1) for i, shape in enumerate(shapes) if not shape.is_empty]
    where = np.zeros(canvas.image.shape[:2], np.uint16)
    return rasterize(numbered, out=where, transform=Affine.scale(canvas.gsd)) if numbered else where


def _draw_things(canvas: Canvas, things: list[Thing]) -> None:
    """Soft ground below hard ground below shadows below what stands."""
    _blend(canvas, [thing for thing in things if thing.soft])
    _paint(canvas, [thing for thing in things if not (thing.soft or thing.height)])
    tall = [thing for thing in things if thing.height]
    _shade(canvas, [_shadow(thing.shape, thing.height, canvas.sun) for thing in tall])
    _paint(canvas, tall)


def _paint(canvas: Canvas, things: list[Thing]) -> None:
    where = _burn(canvas, [thing.shape for thing in things])
    rows, cols = np.nonzero(where)
    colours = np.array([thing.colour for thing in things], np.float32)[where[rows, cols] - 1]
    canvas.image[rows, cols] = colours * (1 + 0.04 * (canvas.mottle + canvas.grain)[rows, cols, None])


def _blend(canvas: Canvas, things: list[Thing]) -> None:
    where = _burn(canvas, [thing.shape for thing in things])
    inside = ndimage.uniform_filter((where > 0).astype(np.float32), round(1.4 / canvas.gsd))
    share = np.clip(2 * inside - 0.6 + 0.2 * canvas.mottle, 0, 0.92) * (where > 0)
    rows, cols = np.nonzero(share)
    colours = np.array([thing.colour for thing in things], np.float32)[where[rows, cols] - 1]
    colours *= (1 + 0.07 * canvas.grain + 0.05 * canvas.mottle)[rows, cols, None]
    canvas.image[rows, cols] += share[rows, cols, None] * (colours - canvas.image[rows, cols])


def _shade(canvas: Canvas, shapes: Sequence[Any]) -> None:
    """Darken shapes, red more than blue, since the sky still lights a shadow."""
    dark = ndimage.gaussian_filter((_burn(canvas, shapes) > 0).astype(np.float32), 0.12 / canvas.gsd)
    for band, strength in enumerate((0.58, 0.56, 0.52)):
        canvas.image[..., band] *= 1 - strength * dark


def _shadow(shape: Any, height: float, sun: np.ndarray) -> Any:
    """Ground that a convex prism shades."""
    return shapely.union(shape, translate(shape, *(height * sun))).convex_hull


# --- plan ---------------------------------------------------------------------------------------------------------


def _streets(survey: Survey, rng: Generator) -> tuple[list[tuple[Polygon, bool]], list[Plot]]:
    """Roads, each with whether it is paved, and the plots between them: a square cut again and again, then bent."""
    size = survey.gsd * np.array([survey.width, survey.height])
    reach, turn, phase = np.hypot(*size) / 2 + 12, rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi, 2)
    forward = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])

    def bend(points: np.ndarray) -> np.ndarray:
        return np.asarray((points + 5 * np.sin(points[:, ::-1] / 38 + phase)) @ forward + size / 2)

    roads, plots, todo = [], [], [(np.array([-reach, -reach]), np.array([reach, reach]), 0)]
    while todo:
        low, high, depth = todo.pop()
        side = high - low
        crowd = float(np.clip(survey.crowd + 0.5 * (low + high)[0] / 2 / reach, 0, 1))
        if depth > 3 and np.prod(side) < rng.uniform(0.8, 1.6) * 850 * 0.1**crowd:
            plots.append(_plot(low, high, crowd, bend))
            continue
        axis = int(side[1] > side[0])
        cut = low[axis] + side[axis] * rng.uniform(0.38, 0.62)
        gap = (7.0, 6.0, 4.5, 3.6)[depth] if depth < 4 else rng.uniform(0.5, 1.8)
        if depth < 4:
            ends = np.array([low, high])
            ends[:, axis] = cut
            line = shapely.segmentize(LineString(ends), 4)
            roads.append((shapely.transform(line, bend).buffer(gap / 2), depth == 0 or (depth == 1 and crowd > 0.6)))
        for start, stop in ((low[axis], cut - gap / 2), (cut + gap / 2, high[axis])):
            first, last = low.copy(), high.copy()
            first[axis], last[axis] = start, stop
            todo.append((first, last, depth + 1))
    frame = shapely.box(0, 0, *size)
    return roads, [plot for plot in plots if frame.intersects(plot.ground)]


def _plot(low: np.ndarray, high: np.ndarray, crowd: float, bend: Any) -> Plot:
    side, middle = high - low, (low + high) / 2
    along = np.eye(2)[int(side[1] > side[0])]
    first, centre, last = bend(np.stack([middle - along, middle, middle + along]))
    ground = shapely.transform(shapely.segmentize(shapely.box(*low, *high), 4), bend)
    return Plot(ground, centre, _bearing(last - first), max(side) - 0.3, min(side) - 0.3, crowd)


def _uses(plots: list[Plot], rng: Generator) -> tuple[list[tuple[Any, Plot]], list[Plot]]:
    """Plots left open, each with what draws it, and plots to build on."""
    by_area = sorted(plots, key=lambda plot: -plot.ground.area)
    kinds = (_pitch, _field, _court, _pond, _foundation)
    free = list(zip(kinds, by_area, strict=False))
    built = []
    for plot in by_area[len(kinds) :]:
        if rng.random() < 0.62 + 0.33 * plot.crowd:
            built.append(plot)
        elif rng.random() < 0.7:
            free.append((kinds[rng.choice(5, p=(0, 0.4, 0.2, 0, 0.4))], plot))
    return free, built


def _houses(plots: list[Plot], place: Place, rng: Generator) -> list[House]:
    """Buildings that do not overlap, mostly one on a plot, some with a shed."""
    houses: list[House] = []
    for plot in plots:
        names, weights = list(place.roofs), np.array(list(place.roofs.values()))
        for shed in (False, True)[: 1 + (rng.random() < 0.5)]:
            name = names[rng.choice(len(names), p=weights / weights.sum())]
            house = _house(plot, "rust" if shed and name != "iron" else name, shed, rng)
            if not any(house.footprint.distance(other.footprint) < 0.25 for other in houses):
                houses.append(house)
    return houses


def _house(plot: Plot, name: str, shed: bool, rng: Generator) -> House:
    roof, loose = ROOFS[name], 1 - plot.crowd
    length = min(plot.length * rng.uniform(0.86, 0.97), rng.uniform(10, 22))
    width = min(plot.width * rng.uniform(0.86, 0.97), rng.uniform(7, 14), length)
    if shed:
        length, width = rng.uniform(2.2, 5, 2)
    slack = np.maximum([plot.length - length, plot.width - width], 0) / 2
    away = slack * (np.sign(rng.uniform(-1, 1, 2)) if shed else rng.uniform(-0.7, 0.7, 2))
    centre = np.array(_put(Point(away), plot.centre, plot.angle).coords[0])
    angle = plot.angle + (0 if shed else rng.normal(0, 1.5 + 5 * loose))
    round_hut = name == "thatch" and width < 8
    wings = [Point(0, 0).buffer(width / 2, quad_segs=4)] if round_hut else _wings(length, width, rng)
    footprint = _put(shapely.union_all(wings).normalize(), centre, angle)
    corners = [_corners(_put(wing, centre, angle)) for wing in wings]
    height = rng.uniform(3, 8) if name == "concrete" and not shed else rng.uniform(2.2, 3.6)
    return House(footprint, corners, roof, str(rng.choice(roof.forms)), height)


def _wings(length: float, width: float, rng: Generator) -> list[Polygon]:
    """Rectangles around the origin that make a bar, an L, a U or a ring with a courtyard."""
    arm = rng.uniform(3.2, 4.6)
    x, y = length / 2, width / 2
    if width < 2 * arm + 1.2:
        return [shapely.box(-x, -y, x, y)]
    ring = [
        shapely.box(-x, -y, x, arm - y),
        shapely.box(-x, -y, arm - x, y),
        shapely.box(x - arm, -y, x, y),
        shapely.box(-x, y - arm, x, y),
    ]
    count = rng.choice((1, 2, 3, 4), p=(0.5, 0.25, 0.15, 0.1))
    return ring[:count] if count > 1 else [shapely.box(-x, -y, x, y)]


def _corners(wing: Polygon) -> np.ndarray:
    """(corners, 2), the longest edge first."""
    points = np.array(wing.exterior.coords)[:-1]
    edges = np.linalg.norm(np.roll(points, -1, axis=0) - points, axis=1)
    return np.roll(points, -int(edges.round(6).argmax()), axis=0)


# --- what lies and stands on the ground --------------------------------------------------------------------------


def _roads(roads: list[tuple[Polygon, bool]], place: Place, rng: Generator) -> list[Thing]:
    red, green, blue = (int(v) for v in np.mean([place.soil[0], place.soil[0], WHITE], axis=0))
    things = [Thing(road.buffer(0.7), (red, green, blue), soft=True) for road, _ in roads]
    things += [Thing(road.buffer(-0.6), ASPHALT) for road, paved in roads if paved]
    for road, _ in roads:
        lane = road.buffer(-1.6).exterior
        for at in np.arange(rng.uniform(2, 25), lane.length - 2, rng.uniform(18, 40)):
            here, there = (np.array(lane.interpolate(at + step).coords[0]) for step in (0, 1))
            things += _car(here, _bearing(there - here), rng)
    return things


def _bearing(way: np.ndarray) -> float:
    return float(np.degrees(np.arctan2(way[1], way[0])))


def _car(at: np.ndarray, angle: float, rng: Generator) -> list[Thing]:
    body = shapely.box(-1.9, -0.65, 1.9, 0.65).buffer(0.25)
    glass = shapely.difference(shapely.box(-1.5, -0.65, 0.9, 0.65), shapely.box(-1.0, -0.6, 0.3, 0.6))
    colour = CARS[rng.integers(len(CARS))]
    return [Thing(_put(body, at, angle), colour, 1.3), Thing(_put(glass, at, angle), GLASS, 1.3)]


def _put(shape: Any, at: np.ndarray, angle: float) -> Any:
    """A shape drawn around the origin, turned by degrees and moved."""
    return translate(rotate(shape, angle, origin=(0, 0)), *at)


def _yards(plots: list[Plot], rng: Generator) -> list[Thing]:
    """Compound walls and junk."""
    things = []
    for plot in plots:
        for at in plot.centre + rng.normal(0, 5, (rng.poisson(2 + 7 * plot.crowd), 2)):
            box = shapely.box(0, 0, rng.uniform(0.2, 1.4), rng.uniform(0.2, 0.9))
            things.append(Thing(_put(box, at, rng.uniform(0, 90)), JUNK[rng.integers(len(JUNK))], 0.4))
        if rng.random() < 0.65 - 0.4 * plot.crowd:
            corners = np.array(plot.ground.oriented_envelope.buffer(-0.3, join_style="mitre").exterior.coords)
            gate = corners[0] + (corners[1] - corners[0]) * rng.uniform(0.55, 0.8)
            things += _walls([LineString([corners[0], gate]), LineString(corners[1:])], GREY, 1.7)
    return things


def _walls(lines: Sequence[LineString], colour: Colour, height: float) -> list[Thing]:
    pairs = [pair for line in lines for pair in zip(line.coords[:-1], line.coords[1:], strict=True)]
    return [Thing(LineString(pair).buffer(0.15, cap_style="square"), colour, height) for pair in pairs]


def _pitch(plot: Plot, rng: Generator) -> list[Thing]:
    """A football pitch."""
    x, y = 0.45 * plot.length, 0.42 * plot.width
    boxes = [
        shapely.box(-x, -y, x, y),
        shapely.box(-x, -y / 2, -0.7 * x, y / 2),
        shapely.box(0.7 * x, -y / 2, x, y / 2),
    ]
    lines = [box.exterior for box in (*boxes, Point(0, 0).buffer(y / 4))] + [LineString([(0, -y), (0, y)])]
    marks = [Thing(_put(line.buffer(0.1), plot.centre, plot.angle), WHITE) for line in lines]
    return [Thing(plot.ground.buffer(-0.3), (104, 132, 66), soft=True), *marks]


def _field(plot: Plot, rng: Generator) -> list[Thing]:
    """Tilled land with furrows."""
    soil: Colour = ((146, 116, 84), (118, 126, 68), (168, 150, 104))[rng.integers(3)]
    furrow = (soil[0] - 24, soil[1] - 18, soil[2] - 16)
    x = 0.47 * plot.length
    rows = [shapely.box(-x, y, x, y + 0.35) for y in np.arange(-0.45 * plot.width, 0.42 * plot.width, 0.9)]
    rows = [shapely.intersection(_put(row, plot.centre, plot.angle), plot.ground.buffer(-1)) for row in rows]
    return [Thing(plot.ground.buffer(-0.3), soil, soft=True), *(Thing(row, furrow, soft=True) for row in rows)]


def _court(plot: Plot, rng: Generator) -> list[Thing]:
    """Paved ground with parked cars, easily taken for a flat roof."""
    paved = Thing(plot.ground.buffer(-rng.uniform(0.5, 3)), GREY if rng.random() < 0.6 else (176, 122, 96))
    spots = [x for x in np.arange(3 - plot.length / 2, plot.length / 2 - 3, 2.8) if rng.random() < 0.4]
    middles = [np.array(_put(Point(x, 0), plot.centre, plot.angle).coords[0]) for x in spots]
    return [paved, *(part for at in middles for part in _car(at, plot.angle + 88, rng))]


def _pond(plot: Plot, rng: Generator) -> list[Thing]:
    """Standing water with a green rim."""
    water = plot.ground.buffer(-0.3 * plot.width).buffer(0.22 * plot.width)
    return [Thing(water.buffer(2), (92, 112, 58), soft=True), Thing(water, WATER)]


def _foundation(plot: Plot, rng: Generator) -> list[Thing]:
    """First courses of a building that has no roof yet."""
    x, y = min(0.35 * plot.length, 7), min(0.35 * plot.width, 5)
    lines = [LineString([(at, -y), (at, y)]) for at in (-x, -x / 3, x / 2, x)]
    lines += [LineString([(-x, at), (x, at)]) for at in (-y, 0, y)]
    return _walls([_put(line, plot.centre, plot.angle) for line in lines], (182, 176, 166), 0.5)


# --- roofs and trees ------------------------------------------------------------------------------------------------


def _window(canvas: Canvas, bounds: tuple[float, float, float, float]) -> tuple[Any, np.ndarray, np.ndarray]:
    """Slices of the pixels within bounds, and the x and y of their centres."""
    height, width = canvas.image.shape[:2]
    left, right = (int(np.clip(v / canvas.gsd + pad, 0, width)) for v, pad in ((bounds[0], -1), (bounds[2], 2)))
    top, bottom = (int(np.clip(v / canvas.gsd + pad, 0, height)) for v, pad in ((bounds[1], -1), (bounds[3], 2)))
    x = (np.arange(left, right, dtype=np.float32) + 0.5) * canvas.gsd
    y = (np.arange(top, bottom, dtype=np.float32) + 0.5) * canvas.gsd
    return np.s_[top:bottom, left:right], x[None, :], y[:, None]


def _draw_roof(canvas: Canvas, house: House, rng: Generator) -> None:
    window, x, y = _window(canvas, house.footprint.bounds)
    if not (x.size and y.size):
        return
    top, left = (cut.start * canvas.gsd for cut in window)
    transform = Affine(canvas.gsd, 0, left, 0, canvas.gsd, top)
    roof = rasterize([house.footprint], (y.size, x.size), transform=transform).astype(bool)
    inward, edges = zip(*(_edges(wing, x, y) for wing in house.wings), strict=True)
    # Where wings meet, the higher plane is the one seen: that draws valleys and hips.
    slopes = np.stack(edges)
    inside = slopes.min(axis=1)
    if house.form in ("gable", "mono"):
        slopes[:, 1::2] = np.inf
    if house.form == "mono":
        slopes[:, 2] = np.inf
    wing = np.where(inside > -canvas.gsd, slopes.min(axis=1), -1).argmax(axis=0)
    slopes = np.take_along_axis(slopes, wing[None, None], axis=0)[0]
    face = np.stack(inward)[wing, slopes.argmin(axis=0)]
    pitch = 0 if house.form == "flat" else np.radians(rng.uniform(12, 26))
    light = np.cos(pitch) + np.sin(pitch) * (face @ canvas.sun)
    lowest, second = np.sort(slopes, axis=0)[:2]
    u, v = _along(house.wings, wing, x, y)
    colour = _roofing(house.roof, u, v, canvas.gsd, rng) * light[..., None]
    if house.form == "flat":
        _parapet(colour, np.where(roof, inside.max(axis=0), 0), canvas)
    else:
        colour[second - lowest < 0.22] *= rng.choice((0.82, 1.12))
    _fittings(colour, np.where(wing == 0, u, -99), v, house, canvas, rng)
    stain = 1 + house.roof.stain * (canvas.mottle[window] + 0.6 * canvas.grain[window])
    canvas.image[window][roof] = (colour * stain[..., None])[roof]


def _edges(corners: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inward normals (n, 2) of a convex polygon's edges and the distance (n, height, width) of points from each."""
    step = np.roll(corners, -1, axis=0) - corners
    normal = step[:, ::-1] * [-1, 1] / np.linalg.norm(step, axis=1, keepdims=True)
    normal *= np.sign(np.sum(normal * (corners.mean(axis=0) - corners), axis=1, keepdims=True))
    (nx, ny), (cx, cy) = normal.T[..., None, None].astype(np.float32), corners.T[..., None, None].astype(np.float32)
    return normal, (x - cx) * nx + (y - cy) * ny


def _along(wings: list[np.ndarray], wing: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Metres along and across the first edge of each pixel's wing."""
    first, second = (np.stack([corners[i] for corners in wings])[wing] for i in (0, 1))
    way = (second - first) / np.linalg.norm(second - first, axis=-1, keepdims=True)
    dx, dy = x - first[..., 0], y - first[..., 1]
    return dx * way[..., 0] + dy * way[..., 1], dy * way[..., 0] - dx * way[..., 1]


def _roofing(roof: Roof, u: np.ndarray, v: np.ndarray, gsd: float, rng: Generator) -> np.ndarray:
    """(height, width, 3) colours of the covering: sheets 0.9 m by 2.4 m, striped."""
    palette = np.asarray(roof.colours, np.float32)
    own, other = palette[rng.integers(len(palette))], palette[rng.integers(len(palette), size=(40, 40))]
    # Sheets of one age lie together.
    odd = ndimage.uniform_filter(rng.random((40, 40)), (3, 1)) < roof.mixed * rng.uniform(0.4, 1.2)
    sheets = np.where(odd[..., None], other, own) * rng.normal(1, 0.02 + 0.1 * roof.mixed, (40, 40, 1))
    colour = (
        sheets[np.floor(u / 0.9).astype(int) % 40, np.floor(v / 2.4).astype(int) % 40]
        * rng.normal(1, 0.06)
        * rng.normal(1, 0.015, 3)
    )
    stripes = 1 + roof.stripe * np.sin(2 * np.pi * u / max(0.36, 3.2 * gsd))
    return np.asarray(colour * stripes[..., None], np.float32)


def _parapet(colour: np.ndarray, depth: np.ndarray, canvas: Canvas) -> None:
    """A light rim around a flat roof, which shades the floor behind it."""
    rim = depth < 0.35
    shift = np.round(0.7 * canvas.sun[::-1] / canvas.gsd).astype(int)
    colour[np.roll(rim, shift, axis=(0, 1)) & ~rim] *= 0.66
    colour[rim] = colour[rim] * 0.4 + 130


def _fittings(colour: np.ndarray, u: np.ndarray, v: np.ndarray, house: House, canvas: Canvas, rng: Generator) -> None:
    """Water tanks on some flat roofs, solar panels on some others."""
    width = np.linalg.norm(house.wings[0][2] - house.wings[0][1])
    at = rng.uniform(1.5, 5), rng.uniform(0.3, 0.7) * width
    if width < 3.5 or rng.random() > (0.7 if house.form == "flat" else 0.15):
        return
    if house.form == "flat":
        tank = np.hypot(u - at[0], v - at[1]) < 0.7
        shift = np.round(1.2 * canvas.sun[::-1] / canvas.gsd).astype(int)
        colour[np.roll(tank, shift, axis=(0, 1))] *= 0.5
        colour[tank] = JUNK[rng.integers(4)]
    else:
        du, dv = u - at[0], v - at[1] * 0.6
        panel = (np.abs(du) < 1.5) & (np.abs(dv) < 0.85)
        colour[panel] = (36, 44, 74)
        colour[panel & (np.abs(du % 1 - 0.5) < 0.06)] = (150, 155, 165)


def _draw_trees(canvas: Canvas, houses: list[House], plots: list[Plot], place: Place, rng: Generator) -> None:
    """Clumpy crowns that may hang over a roof's edge but do not hide it."""
    roofs = shapely.union_all([house.footprint.buffer(0) for house in houses])
    trees = []
    for plot in plots:
        for _ in range(rng.poisson(0.5 + 1.8 * (1 - plot.crowd))):
            radius = rng.choice((1.2, 2, 3, 4)) * rng.uniform(0.8, 1.2)
            low, high = np.reshape(plot.ground.bounds, (2, 2))
            tree = np.append(rng.uniform(low, high), radius)
            if shapely.intersection(Point(tree[:2]).buffer(radius), roofs).area < 0.35 * radius**2:
                spots = rng.normal(0, 0.42, (9, 2)) * radius
                sizes = rng.uniform(0.35, 0.6, (9, 1)) * radius
                trees.append(np.vstack([tree * [1, 1, 0.6], np.hstack([tree[:2] + spots, sizes])]))
    shade = [_shadow(Point(*b[:2]).buffer(b[2]), 1.3 * tree[0, 2] + 1, canvas.sun) for tree in trees for b in tree]
    _shade(canvas, shade)
    for tree in trees:
        _draw_crown(canvas, tree, place, rng)


def _draw_crown(canvas: Canvas, blobs: np.ndarray, place: Place, rng: Generator) -> None:
    low, high = (blobs[:, :2] - blobs[:, 2:]).min(axis=0), (blobs[:, :2] + blobs[:, 2:]).max(axis=0)
    window, x, y = _window(canvas, (*low, *high))
    if min(x.size, y.size) < 2:
        return
    cx, cy, r = blobs.T[..., None, None].astype(np.float32)
    dome = np.sqrt(np.maximum(r**2 - (x - cx) ** 2 - (y - cy) ** 2, 0)).max(axis=0)
    leaves = canvas.grain[window]
    height = np.where(dome > 0, dome + 0.12 * leaves, 0)
    dy, dx = np.gradient(ndimage.gaussian_filter(height, 0.12 / canvas.gsd), canvas.gsd)
    light = (1 + dx * canvas.sun[0] + dy * canvas.sun[1]) / np.sqrt(1 + dx**2 + dy**2)
    green = np.asarray(place.grass[0], np.float32) * rng.uniform(0.55, 0.95) * rng.normal(1, 0.07, 3)
    colour = green * (np.clip(light, 0.3, 1.5) * (1 + 0.16 * leaves))[..., None]
    crown = dome > 0.25 * blobs[0, 2] * np.maximum(1 + 0.6 * leaves, 0.2)
    canvas.image[window][crown] = colour[crown]


# --- camera ---------------------------------------------------------------------------------------------------------


def _outline(survey: Survey, rng: Generator) -> Polygon:
    """Where there is imagery, in metres: the whole frame, or a tilted, ragged part of it with a notch."""
    width, height = survey.width * survey.gsd, survey.height * survey.gsd
    frame = shapely.box(0, 0, width, height)
    if not survey.ragged:
        return frame
    tilted = rotate(shapely.box(0.03 * width, 0.03 * height, 0.97 * width, 0.97 * height), rng.uniform(2, 4))
    edge = np.array(shapely.segmentize(tilted, 6).exterior.coords)[:-1]
    ragged = Polygon(edge + rng.uniform(-0.9, 0.9, edge.shape))
    x, y = width * rng.uniform(0.2, 0.7), height * 0.1
    notch = rotate(shapely.box(x, -y, x + rng.uniform(9, 15), y + rng.uniform(1, 4)), 4)
    return ragged.difference(notch).intersection(frame)


def _expose(canvas: Canvas, outline: Polygon, rng: Generator) -> np.ndarray:
    """(height, width, 4) uint8 RGBA as a camera saw it: a cast, a little blur, noise, nothing beyond the outline."""
    gain = rng.uniform(0.9, 1.1) * rng.normal(1, 0.03, 3)
    valid = _burn(canvas, [outline]) > 0
    rgba = np.empty((*valid.shape, 4), np.uint8)
    rgba[..., 3] = 255 * valid
    blur = rng.uniform(0.45, 0.75)
    for band in range(3):
        seen = ndimage.gaussian_filter(canvas.image[..., band], blur) * np.float32(gain[band])
        seen += rng.normal(0, 1) + np.float32(3.5) * rng.standard_normal(seen.shape, dtype=np.float32)
        rgba[..., band] = np.clip(seen, 1, 255) * valid
    return rgba


# --- files ----------------------------------------------------------------------------------------------------------


def _write_train(folder: Path, seed: int) -> None:
    children = []
    for code, place in PLACES.items():
        surveys = [survey for survey in SCENES if survey.place == code]
        written = [_write_scene(folder / code, survey, i, seed) for i, survey in enumerate(surveys)]
        links = [_link("item", f"./{name}/{name}.json") for scene, _ in written for name in (scene, f"{scene}-labels")]
        boxes = [box for _, box in written]
        bbox = [*np.min(boxes, axis=0).tolist()[:2], *np.max(boxes, axis=0).tolist()[2:]]
        extent = {"spatial": {"bbox": [bbox]}, "temporal": {"interval": [[f"{place.date}T00:00:00Z", None]]}}
        more = {"extent": extent, "license": "CC0-1.0", "stac_extensions": ["label"]}
        links += [_link("parent", "../catalog.json"), _link("root", "../catalog.json")]
        _write_catalog(folder / code / "collection.json", f"Synthetic data of the made-up place {code}", links, **more)
        children.append(_link("child", f"./{code}/collection.json"))
    children.append(_link("root", "./catalog.json"))
    _write_catalog(folder / "catalog.json", "Synthetic training data", children)


def _write_scene(folder: Path, survey: Survey, number: int, seed: int) -> tuple[str, list[float]]:
    """Write a scene and its labels; its id and its west, south, east and north."""
    name, place = _id(survey, seed), PLACES[survey.place]
    rgba, outline, drawn = draw(survey, _rng(survey, seed))
    footprints = _clip(drawn, outline)
    corner = place.corner[0] + 420 * number, place.corner[1] - 260 * number
    transform = Affine(survey.gsd, 0, corner[0], 0, -survey.gsd, corner[1])
    _write_tif(folder / name / f"{name}.tif", rgba, survey.compress, crs=f"EPSG:{place.epsg}", transform=transform)
    labels = folder / f"{name}-labels" / f"{name}.geojson"
    _write_json(labels, _features([_lonlat(shape, corner, place.epsg) for shape in footprints]))
    about = {
        "label:description": f"Geojson building labels for scene {name}",
        "label:type": "vector",
        "label:properties": ["building"],
        "label:overviews": [{"property_key": ["building"], "counts": [{"name": "yes", "count": len(footprints)}]}],
    }
    around = _lonlat(outline, corner, place.epsg)
    common = {"area": survey.place, "license": LICENCE, "datetime": f"{place.date} 00:00:00Z"}
    links = [_link(rel, f"../{up}") for rel, up in UPWARDS.items()]
    asset = {"labels": {"href": f"./{name}.geojson", "type": "application/geo+json"}}
    member = {"collection": survey.place}
    _write_item(folder / name, common, around, links, _image(name), **member)
    _write_item(labels.parent, about | common, around, links, asset, **member, stac_extensions=["label"])
    log.info("scene %s of %s: %d x %d pixels, %d buildings", name, survey.place, *rgba.shape[:2], len(footprints))
    return name, list(shapely.geometry.shape(around).bounds)


def _write_test(folder: Path, seed: int) -> None:
    # A made-up place, as in the challenge, whose chips do not tell where they lie.
    frame = shapely.geometry.mapping(shapely.box(0, -0.0092, 0.0092, 0))
    links = [_link("root", "../catalog.json"), _link("parent", "../catalog.json")]
    for survey in CHIPS:
        name = _id(survey, seed)
        rgba, _, _ = draw(survey, _rng(survey, seed))
        _write_tif(folder / name / f"{name}.tif", rgba, survey.compress)
        about = {"license": LICENCE, "datetime": f"{PLACES[survey.place].date} 00:00:00Z"}
        _write_item(folder / name, about, frame, links, _image(name))
        log.info("test chip %s: %d x %d pixels", name, *rgba.shape[:2])
    items = [_link("item", f"./{name}/{name}.json") for name in sorted(_id(survey, seed) for survey in CHIPS)]
    _write_catalog(folder / "catalog.json", "Synthetic test chips", [*items, _link("root", "./catalog.json")])


def _clip(drawn: list[Polygon], outline: Polygon) -> list[Polygon | MultiPolygon]:
    """Footprints within the imagery; the first and its neighbour count as one building in two parts."""
    cut = (shapely.intersection(house, outline) for house in drawn)
    parts = [part for shape in cut for part in shapely.get_parts(shape) if isinstance(part, Polygon) and part.area > 1]
    first, *others = parts
    near = min(others, key=first.distance)
    return [MultiPolygon([first, near]), *(part for part in others if part is not near)]


def _lonlat(shape: Polygon | MultiPolygon, corner: tuple[float, float], epsg: int) -> dict[str, Any]:
    """GeoJSON geometry, to the millimetre, of a shape in metres from the corner."""
    ground = affine_transform(shape, [1, 0, 0, -1, *corner])
    return dict(transform_geom(f"EPSG:{epsg}", "EPSG:4326", shapely.geometry.mapping(ground), precision=8))


def _features(geometries: list[dict[str, Any]]) -> dict[str, Any]:
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
    features = [{"type": "Feature", "properties": {"building": "yes"}, "geometry": shape} for shape in geometries]
    return {"type": "FeatureCollection", "crs": crs, "features": features}


def _write_tif(path: Path, rgba: np.ndarray, compress: str, **georeference: Any) -> None:
    profile = {"count": 4, "dtype": "uint8", "photometric": "RGB", "alpha": "YES", "interleave": "pixel"}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": compress}
    profile |= {"jpeg_quality": 85} if compress == "JPEG" else {"predictor": 2, "zlevel": 4}
    path.parent.mkdir(parents=True)
    with warnings.catch_warnings():
        if not georeference:
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
        height, width = rgba.shape[:2]
        with rasterio.open(path, "w", "GTiff", height=height, width=width, **profile, **georeference) as target:
            target.write(np.moveaxis(rgba, -1, 0))
        with rasterio.open(path, "r+") as target:
            target.build_overviews([2, 4, 8], Resampling.average)


def _link(rel: str, href: str) -> dict[str, str]:
    return {"rel": rel, "href": href, "type": "application/json"}


def _image(name: str) -> dict[str, Any]:
    kind = "image/tiff; application=geotiff; profile=cloud-optimized"
    return {"image": {"href": f"./{name}.tif", "type": kind, "title": "GeoTIFF"}}


def _write_item(folder: Path, properties: Any, geometry: Any, links: Any, assets: Any, **more: Any) -> None:
    item = {"type": "Feature", "stac_version": "0.8.1", "id": folder.name, "properties": properties}
    item |= {"geometry": geometry, "bbox": list(shapely.geometry.shape(geometry).bounds)}
    _write_json(folder / f"{folder.name}.json", item | {"links": links, "assets": assets} | more)


def _write_catalog(path: Path, description: str, links: Any, **more: Any) -> None:
    record = {"id": path.parent.name, "stac_version": "0.8.1", "description": description, "links": links}
    _write_json(path, record | more)


def _write_json(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=4) + "\n", encoding="utf-8")


def _id(survey: Survey, seed: int) -> str:
    return hashlib.md5(f"{seed}/{survey.name}".encode(), usedforsecurity=False).hexdigest()[:6]


def _rng(survey: Survey, seed: int) -> Generator:
    return np.random.default_rng([seed, *survey.name.encode()])
