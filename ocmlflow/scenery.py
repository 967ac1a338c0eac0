"""Made-up ground as a drone sees it, with the polygons of its buildings.

Shapes are in metres, x to the right and y down from the upper left corner. `sun` is the way, in these metres, that
the shadow of a point runs for each metre of its height.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import shapely
from numpy.random import Generator
from rasterio import Affine
from rasterio.features import rasterize
from scipy import fft, ndimage
from shapely import MultiPolygon, Point, Polygon
from shapely.affinity import rotate, translate

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
Thing = tuple[Polygon, Colour, float]  # height in metres: what has any is convex, stands sharp and casts a shadow

WHITE, GREY, ASPHALT, EARTH, GLASS = (232, 232, 226), (158, 154, 146), (112, 110, 108), (206, 184, 158), (38, 44, 50)
PAINT = ((148, 52, 62), (186, 64, 60), (66, 118, 172), (88, 126, 110), (214, 214, 208), (92, 106, 126))
CARS = (WHITE, GREY, GLASS, (196, 166, 80), *PAINT)
ROADS = (7.0, 6.0, 4.5, 3.6)  # metres wide, by how often the ground was cut before
WINGS = (4, 1, 1, 2, 1, 1, 3, 1, 1, 1)  # of one house after another: a ring around a courtyard, bars, an L, a U
EDGES = {"flat": slice(4), "hip": slice(4), "gable": slice(2, 4), "mono": slice(2, 3)}  # that a roof rises from
HEIGHTS = {"flat": 5, "hip": 3.5, "gable": 3, "mono": 2.5}  # of the walls that cast a shadow, in metres
# What covers a plot without a building and how high, colour and height of lines on it, their number across and along.
LOTS = (
    ((104, 132, 66), 0, WHITE, 0, 3, 2),  # pitch
    ((186, 150, 116), 0, (182, 176, 166), 0.5, 5, 3),  # foundations
    (GREY, 0.1, WHITE, 0.1, 3, 2),  # paved court
    ((146, 116, 84), 0, (120, 96, 66), 0, 0, 18),  # field
)


@dataclass(frozen=True)
class Roof:
    """Colours of a material, the forms it comes in (see EDGES), and the share of sheets of another colour."""

    colours: tuple[Colour, ...]
    forms: tuple[str, ...]
    mixed: float = 0


ROOFS = {
    "rust": Roof(((122, 62, 42), (146, 86, 56), (170, 126, 88), (156, 146, 130)), ("gable", "mono"), 0.45),
    "iron": Roof(((178, 180, 178), (200, 200, 196), (212, 214, 214), (142, 110, 86)), ("gable", "mono", "hip"), 0.35),
    "paint": Roof(PAINT, ("gable", "hip")),
    "tile": Roof(((204, 114, 70), (184, 94, 60), (142, 80, 60)), ("hip", "gable"), 0.15),
    "concrete": Roof(((168, 162, 150), (192, 185, 172), (144, 136, 122)), ("flat",)),
    "bitumen": Roof(((64, 62, 60), (82, 80, 78), (50, 52, 56)), ("flat", "mono")),
    "thatch": Roof(((146, 120, 86), (120, 98, 70)), ("hip",), 0.3),
}


@dataclass(frozen=True)
class Land:
    """How the ground of a place looks: two tones of soil and of grass, and the weight of each of ROOFS."""

    soil: tuple[Colour, Colour]
    grass: tuple[Colour, Colour]
    roofs: dict[str, float]


@dataclass(frozen=True)
class Scenery:
    """Image (height, width, 3) uint8 and valid (height, width) bool; outline of what is valid and buildings in metres.

    Buildings lie within the outline; one has a courtyard, one two parts. The image is 0 where not valid.
    """

    image: np.ndarray
    valid: np.ndarray
    outline: Polygon
    buildings: list[Polygon | MultiPolygon]


@dataclass(frozen=True)
class _Canvas:
    """A (height, width, 3) float32 image to draw on, and (height, width) noise of deviation 1, coarse and fine."""

    image: np.ndarray
    mottle: np.ndarray
    grain: np.ndarray
    gsd: float
    sun: np.ndarray


@dataclass(frozen=True)
class _Spot:
    """A rectangle on the ground: its middle, the degrees its long side is turned by, length and width."""

    x: float
    y: float
    angle: float
    size: np.ndarray

    def put(self, shape: Any) -> Any:
        """A shape drawn around the origin, moved here."""
        return translate(rotate(shape, self.angle, origin=(0, 0)), self.x, self.y)

    def box(self, left: float, top: float, right: float, bottom: float) -> Polygon:
        return self.put(shapely.box(left, top, right, bottom))

    def ground(self, margin: float = 0) -> Polygon:
        x, y = self.size / 2 - margin
        return self.box(-x, -y, x, y)


@dataclass(frozen=True)
class _House:
    """Wings under one roof: left, top, right and bottom of each, drawn around the origin and put at a spot."""

    spot: _Spot
    wings: list[Box]
    footprint: Any
    roof: Roof
    form: str


def draw(land: Land, *, shape: tuple[int, int], gsd: float, crowd: float, ragged: bool, seed: Sequence[int]) -> Scenery:
    """Scenery of (height, width) pixels: outskirts at crowd 0, a dense quarter at 1.

    Where `ragged`, imagery ends inside the picture, as a mosaic's does. The same seed gives the same scenery.
    """
    rng = np.random.default_rng(seed)
    canvas, size = _bare_ground(land, shape, gsd, crowd, rng), gsd * np.array(shape[::-1])
    roads, plots = _streets(size, crowd, rng)
    houses = _houses([plot for i, plot in enumerate(plots) if i % 7 != 3], land, rng)
    footprints = [house.footprint for house in houses]
    _draw_things(canvas, [*_roads(roads, rng), *_lots(plots[3::7]), *_walls(plots[::3])])
    _shade(canvas, [(house.spot.box(*wing), HEIGHTS[house.form]) for house in houses for wing in house.wings])
    for house in houses:
        _draw_roof(canvas, house, rng)
    _draw_trees(canvas, size, shapely.union_all([*(road.ground() for road in roads), *footprints]), land, rng)
    outline: Polygon = _outline(size, rng) if ragged else shapely.box(0, 0, *size)
    valid = _burn(canvas, [outline]) > 0
    return Scenery(_expose(canvas, rng) * valid[..., None], valid, outline, _clip(footprints, outline))


def _bare_ground(land: Land, shape: tuple[int, int], gsd: float, crowd: float, rng: Generator) -> _Canvas:
    patches, mottle, grain = (_noise(shape, metres / gsd, rng) for metres in (14, 3, 0.3))
    soil = _between(*land.soil, 0.5 + 0.3 * patches + 0.15 * mottle)
    grass = _between(*land.grass, 0.5 + 0.4 * mottle)
    image = _between(soil, grass, 2.5 * (0.6 * patches + 0.5 * mottle + 0.35 * grain - crowd))
    azimuth = rng.uniform(0, 2 * np.pi)
    sun = rng.uniform(0.6, 1.2) * np.array([np.cos(azimuth), np.sin(azimuth)], np.float32)
    return _Canvas(image * (1 + 0.09 * grain)[..., None], mottle, grain, gsd, sun)


def _noise(shape: tuple[int, int], spot: float, rng: Generator) -> np.ndarray:
    """(height, width) float32 of mean 0 and deviation 1, smooth over `spot` pixels and rough at every larger scale."""
    size = [fft.next_fast_len(n, real=True) for n in shape]
    spectrum = fft.rfft2(rng.standard_normal(size, dtype=np.float32))
    frequency = np.hypot(fft.fftfreq(size[0])[:, None], fft.rfftfreq(size[1])[None])
    spectrum *= (1 / (1 + (frequency * spot * 2) ** 2)).astype(np.float32)
    field = fft.irfft2(spectrum, s=size)[: shape[0], : shape[1]]
    return np.asarray((field - field.mean()) / field.std(), np.float32)


def _between(first: Any, last: Any, share: np.ndarray) -> np.ndarray:
    """Colours between two, by a share that is clipped to 0..1."""
    first, last = np.asarray(first, np.float32), np.asarray(last, np.float32)
    return np.asarray(first + (last - first) * np.clip(share, 0, 1, dtype=np.float32)[..., None])


def _streets(size: np.ndarray, crowd: float, rng: Generator) -> tuple[list[_Spot], list[_Spot]]:
    """Roads, the main one first, and the plots between them, the middle one first."""
    x, y = size / 2
    town, frame = _Spot(x, y, rng.uniform(0, 180), np.full(2, np.hypot(*size) + 24)), shapely.box(0, 0, *size)
    parts = [(is_road, spot) for is_road, spot in _cut(town, 0, crowd, rng) if frame.intersects(spot.ground())]
    plots = sorted((spot for is_road, spot in parts if not is_road), key=lambda spot: np.hypot(spot.x - x, spot.y - y))
    return [spot for is_road, spot in parts if is_road], plots


def _cut(spot: _Spot, depth: int, crowd: float, rng: Generator) -> Iterator[tuple[bool, _Spot]]:
    """Roads, marked True, and plots that ground falls into when it is cut across again and again."""
    length, width = spot.size
    if depth >= len(ROADS) and length * width < rng.uniform(0.8, 1.6) * 850 * 0.1**crowd:
        yield False, spot
        return
    gap = ROADS[depth] if depth < len(ROADS) else rng.uniform(0.5, 1.8)
    start = length * rng.uniform(-0.12, 0.12) - gap / 2
    if depth < len(ROADS):
        yield True, _part(spot, start, start + gap)
    for ends in ((-length / 2, start), (start + gap, length / 2)):
        yield from _cut(_part(spot, *ends), depth + 1, crowd + rng.normal(0, 0.06), rng)


def _part(spot: _Spot, start: float, stop: float) -> _Spot:
    """The spot from start to stop along its length."""
    middle, size = spot.put(Point((start + stop) / 2, 0)), np.array([stop - start, spot.size[1]])
    return _Spot(middle.x, middle.y, spot.angle + 90 * int(size.argmax()), np.sort(size)[::-1])


def _houses(plots: list[_Spot], land: Land, rng: Generator) -> list[_House]:
    """Buildings that do not overlap, one on a plot, some with a shed."""
    houses: list[_House] = []
    weights = np.array(list(land.roofs.values())) / sum(land.roofs.values())
    for plot, wings in zip(plots, cycle(WINGS), strict=False):
        roof = ROOFS[rng.choice(list(land.roofs), p=weights)]
        size = np.minimum(plot.size * rng.uniform(0.86, 0.97, 2), rng.uniform((10, 7), (22, 14)))
        house = _house(plot, size, rng.uniform(-0.7, 0.7, 2), wings, roof, rng)
        shed = _house(plot, rng.uniform(2.2, 5, 2), rng.choice((-1, 1), 2), 1, ROOFS["rust"], rng)
        for new in (house, shed)[: rng.integers(1, 3)]:
            if not shapely.dwithin(new.footprint, [other.footprint for other in houses], 0.25).any():
                houses.append(new)
    return houses


def _house(plot: _Spot, size: np.ndarray, side: np.ndarray, wings: int, roof: Roof, rng: Generator) -> _House:
    """A house of `size` metres, pushed from the plot's middle towards a side: -1 to 1 along each axis."""
    middle = plot.put(Point(side * np.maximum(plot.size - size, 0) / 2))
    spot = _Spot(middle.x, middle.y, plot.angle + rng.normal(0, 3), size)
    (x, y), arm = (size / 2).tolist(), rng.uniform(0.3, 0.38) * float(min(size))
    ring = [(-x, -y, x, arm - y), (-x, -y, arm - x, y), (x - arm, -y, x, y), (-x, y - arm, x, y)]
    boxes: list[Box] = ring[:wings] if wings > 1 else [(-x, -y, x, y)]
    form = str(rng.choice(roof.forms))
    footprint = shapely.union_all([spot.box(*box) for box in boxes])
    return _House(spot, boxes, footprint, roof, "hip" if wings > 1 and form != "flat" else form)


def _roads(roads: list[_Spot], rng: Generator) -> Iterator[Thing]:
    """Asphalt on the main roads, beaten earth on others, and cars at the edges."""
    for i, road in enumerate(roads):
        yield road.ground(0.4 if i < 2 else -0.5), ASPHALT if i < 2 else EARTH, 0
        for x in np.arange(-road.size[0] / 2, road.size[0] / 2, 12) + rng.uniform(-3, 3):
            y = (road.size[1] / 2 - 1) * rng.choice((-1, 1))
            yield road.box(x - 2, y - 0.8, x + 2, y + 0.8).buffer(-0.2).buffer(0.3), rng.choice(CARS), 1.3
            yield from ((road.box(x + end, y - 0.6, x + end + 0.5, y + 0.6), GLASS, 1.3) for end in (-1.5, 0.4))


def _lots(plots: list[_Spot]) -> Iterator[Thing]:
    for plot, (cover, low, colour, high, across, along) in zip(plots, cycle(LOTS), strict=False):
        x, y = 0.45 * plot.size
        yield plot.box(-x, -y, x, y), cover, low
        yield from ((plot.box(at - 0.13, -y, at + 0.13, y), colour, high) for at in np.linspace(-x, x, across))
        yield from ((plot.box(-x, at - 0.13, x, at + 0.13), colour, high) for at in np.linspace(-y, y, along))


def _walls(plots: list[_Spot]) -> Iterator[Thing]:
    for plot in plots:
        x, y = plot.size / 2
        # The gate stands open.
        for left, top, right, bottom in ((-x, -y, x, -y), (-x, -y, -x, y), (x, -y, x, y), (-x, y, x / 3, y)):
            yield plot.box(left - 0.15, top - 0.15, right + 0.15, bottom + 0.15), GREY, 1.7


def _burn(canvas: _Canvas, shapes: Sequence[Any]) -> np.ndarray:
    """(height, width) uint16: one more than the index of the last shape on each pixel's centre, 0 for none."""
    numbered = [(shape, i + 1) for i, shape in enumerate(shapes)]
    out = np.zeros(canvas.image.shape[:2], np.uint16)
    return rasterize(numbered, out=out, transform=Affine.scale(canvas.gsd)) if numbered else out


def _draw_things(canvas: _Canvas, things: list[Thing]) -> None:
    """What is flat, its edges frayed, then shadows, then what stands."""
    tall = [thing for thing in things if thing[2]]
    _paint(canvas, [thing for thing in things if not thing[2]], fray=1.4)
    _shade(canvas, [(shape, height) for shape, _, height in tall])
    _paint(canvas, tall)


def _paint(canvas: _Canvas, things: list[Thing], fray: float = 0) -> None:
    """Colour things in; their edges fray over some metres."""
    where = _burn(canvas, [shape for shape, _, _ in things])
    inside = (where > 0).astype(np.float32)
    if fray:
        spread = ndimage.uniform_filter(inside, round(fray / canvas.gsd))
        inside *= np.clip(2 * spread - 0.6 + 0.2 * canvas.mottle, 0, 0.92)
    on = inside > 0
    colours = np.array([colour for _, colour, _ in things], np.float32)[where[on] - 1]
    colours *= 1 + 0.05 * (canvas.mottle + canvas.grain)[on, None]
    canvas.image[on] += inside[on, None] * (colours - canvas.image[on])


def _shade(canvas: _Canvas, tall: Sequence[tuple[Polygon, float]]) -> None:
    """Darken the ground that convex prisms shade, red more than blue: the sky still lights a shadow."""
    shapes = [shapely.union(shape, translate(shape, *(height * canvas.sun))).convex_hull for shape, height in tall]
    dark = ndimage.gaussian_filter((_burn(canvas, shapes) > 0).astype(np.float32), 0.12 / canvas.gsd)
    canvas.image[:] *= 1 - dark[..., None] * np.array((0.58, 0.56, 0.52), np.float32)


def _window(canvas: _Canvas, bounds: Sequence[float]) -> tuple[Any, np.ndarray, np.ndarray]:
    """Slices of the pixels around bounds, at least two each way, and the x (1, width) and y (height, 1) of each."""
    height, width, _ = canvas.image.shape
    around = np.array(bounds) / canvas.gsd + (-2, -2, 3, 3)
    left, top, right, bottom = around.clip((0, 0, 2, 2), (width - 2, height - 2, width, height)).astype(int)
    x, y = ((np.arange(*ends, dtype=np.float32) + 0.5) * canvas.gsd for ends in ((left, right), (top, bottom)))
    return np.s_[top:bottom, left:right], x[None, :], y[:, None]


def _light(height: np.ndarray, canvas: _Canvas) -> np.ndarray:
    """(height, width, 1) light that falls on a surface of `height` metres; 1 on level ground."""
    slope_y, slope_x = np.gradient(height, canvas.gsd)
    light = (1 + slope_x * canvas.sun[0] + slope_y * canvas.sun[1]) / np.sqrt(1 + slope_x**2 + slope_y**2)
    return np.asarray(light.clip(0.35, 1.35)[..., None], np.float32)


def _draw_roof(canvas: _Canvas, house: _House, rng: Generator) -> None:
    window, x, y = _window(canvas, house.footprint.bounds)
    spot, turn = house.spot, np.radians(house.spot.angle)
    cos, sin = float(np.cos(turn)), float(np.sin(turn))
    u, v = (x - spot.x) * cos + (y - spot.y) * sin, (y - spot.y) * cos - (x - spot.x) * sin
    inward = np.stack([(u - left, right - u, v - top, bottom - v) for left, top, right, bottom in house.wings])
    # Where wings meet, the higher plane is the one seen: that draws valleys and hips.
    rise = inward[:, EDGES[house.form]].min(axis=1).max(axis=0)
    rise_y, rise_x = np.gradient(rise, canvas.gsd)
    colour = _cover(house, np.where(np.abs(rise_x * cos + rise_y * sin) > 0.7, v, u), rise, canvas.gsd, rng)
    height, rim = rise * rng.uniform(0.2, 0.5), rise < 0.35
    if house.form == "flat":
        height, colour[rim] = 0.5 * rim, 0.4 * colour[rim] + 130
    colour *= (1 + 0.08 * canvas.mottle[window] + 0.05 * canvas.grain[window])[..., None] * _light(height, canvas)
    roof = inward.min(axis=1).max(axis=0) > 0
    canvas.image[window][roof] = colour[roof]


def _cover(house: _House, along: np.ndarray, rise: np.ndarray, gsd: float, rng: Generator) -> np.ndarray:
    """(height, width, 3) colours of the covering: striped sheets of 0.9 m along the eaves by 2.4 m up the slope."""
    palette, mixed = np.asarray(house.roof.colours, np.float32), house.roof.mixed
    own, other = palette[rng.integers(len(palette))], palette[rng.integers(len(palette), size=(40, 40))]
    # Sheets of one age lie together.
    odd = ndimage.uniform_filter(rng.random((40, 40)), (3, 1)) < mixed * rng.uniform(0.4, 1.2)
    sheets = np.where(odd[..., None], other, own) * rng.normal(1, 0.02 + 0.1 * mixed, (40, 40, 1))
    colour = sheets[np.floor(along / 0.9).astype(int) % 40, np.floor(rise / 2.4).astype(int) % 40]
    stripes = 1 + 0.06 * (house.form != "flat") * np.sin(2 * np.pi * along / max(0.36, 3.2 * gsd))
    return np.asarray(colour * stripes[..., None] * rng.normal(1, 0.06), np.float32)


def _draw_trees(canvas: _Canvas, size: np.ndarray, taken: Any, land: Land, rng: Generator) -> None:
    """Lumpy crowns that may hang over what is taken but do not hide it."""
    trees = rng.uniform((0, 0, 1), (*size, 4), (round(size.prod() / 90), 3))  # x, y, radius
    trees = trees[shapely.distance(shapely.points(trees[:, :2]), taken) > 0.5 * trees[:, 2]]
    _shade(canvas, [(Point(x, y).buffer(radius), 5) for x, y, radius in trees])
    for middle_x, middle_y, radius in trees.tolist():
        window, x, y = _window(canvas, (middle_x - radius, middle_y - radius, middle_x + radius, middle_y + radius))
        lumps = 0.2 * canvas.grain[window] + 0.3 * canvas.mottle[window]
        dome = 1 - ((x - middle_x) ** 2 + (y - middle_y) ** 2) / radius**2 + lumps
        light = _light(radius * np.sqrt(dome.clip(0)), canvas) * (1 + 0.16 * canvas.grain[window])[..., None]
        canvas.image[window][dome > 0.2] = (light * rng.normal(0.75, 0.08, 3) * land.grass[0])[dome > 0.2]


def _outline(size: np.ndarray, rng: Generator) -> Any:
    """Most of the frame, tilted and ragged."""
    tilted = rotate(shapely.box(*(0.04 * size), *(0.96 * size)), rng.uniform(2, 4))
    edge = np.array(shapely.segmentize(tilted, 6).exterior.coords)[:-1]
    return shapely.intersection(Polygon(edge + rng.uniform(-0.9, 0.9, edge.shape)), shapely.box(0, 0, *size))


def _expose(canvas: _Canvas, rng: Generator) -> np.ndarray:
    """(height, width, 3) uint8, 1..255, as a camera saw it: a cast, a little blur, noise."""
    gain, blur = rng.uniform(0.9, 1.1) * rng.normal(1, 0.03, 3), rng.uniform(0.45, 0.75)
    seen = ndimage.gaussian_filter(canvas.image, (blur, blur, 0)) * gain.astype(np.float32)
    seen += np.float32(3.5) * rng.standard_normal(seen.shape, dtype=np.float32)
    return seen.clip(1, 255).astype(np.uint8)


def _clip(footprints: list[Polygon], outline: Polygon) -> list[Polygon | MultiPolygon]:
    """Footprints within the imagery; the last and its neighbour count as one building in two parts."""
    parts = shapely.get_parts(shapely.intersection(footprints, outline))
    *others, last = (part for part in parts if part.area > 1)
    near = min(others, key=last.distance)
    return [*(part for part in others if part is not near), MultiPolygon([last, near])]
