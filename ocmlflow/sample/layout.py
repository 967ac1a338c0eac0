"""Lays out a made-up town: streets, plots, houses and walls as polygons in metres; `render` draws them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import shapely
from numpy.random import Generator
from shapely import Point, Polygon
from shapely.affinity import rotate, translate

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
Feature = tuple[Polygon, Colour, float]
"""Shape, colour and height in metres. Features with a height are convex, have sharp edges and cast shadows."""

WHITE, GREY, ASPHALT, EARTH, GLASS = (232, 232, 226), (158, 154, 146), (112, 110, 108), (206, 184, 158), (38, 44, 50)
PAINT = ((148, 52, 62), (186, 64, 60), (66, 118, 172), (88, 126, 110), (214, 214, 208), (92, 106, 126))
CARS = (WHITE, GREY, GLASS, (196, 166, 80), *PAINT)
ROAD_WIDTHS = (7.0, 6.0, 4.5, 3.6)
"""Metres, by level of subdivision: the town is first divided by the widest road."""
WINGS = (4, 1, 1, 2, 1, 1, 3, 1, 1, 1)
"""Number of wings of one house after another: 4 surround a courtyard, 3 form a U, 2 an L, 1 is a bar."""
# Colour and height of the cover, colour and height of the lines on it, number of lines across and along.
LOTS = (
    ((104, 132, 66), 0, WHITE, 0, 3, 2),  # pitch
    ((186, 150, 116), 0, (182, 176, 166), 0.5, 5, 3),  # foundations
    (GREY, 0.1, WHITE, 0.1, 3, 2),  # paved court
    ((146, 116, 84), 0, (120, 96, 66), 0, 0, 18),  # field
)


@dataclass(frozen=True)
class Roof:
    """Colours of a roofing material, its forms (see render.EDGES), and the share of sheets of another colour."""

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
class Rectangle:
    """A rectangle on the ground: its centre, the rotation of its long side in degrees, length and width in metres."""

    x: float
    y: float
    angle: float
    size: np.ndarray

    def place(self, shape: Any) -> Any:
        """A shape drawn around the origin, rotated and moved to this rectangle."""
        return translate(rotate(shape, self.angle, origin=(0, 0)), self.x, self.y)

    def box(self, left: float, top: float, right: float, bottom: float) -> Polygon:
        return self.place(shapely.box(left, top, right, bottom))

    def polygon(self, margin: float = 0) -> Polygon:
        x, y = self.size / 2 - margin
        return self.box(-x, -y, x, y)


@dataclass(frozen=True)
class House:
    """Wings under one roof: left, top, right and bottom of each, around the origin, to be placed at the site."""

    site: Rectangle
    wings: list[Box]
    footprint: Any
    roof: Roof
    form: str


def street_plan(size: np.ndarray, density: float, rng: Generator) -> tuple[list[Rectangle], list[Rectangle]]:
    """Roads, the main one first, and the plots between them, the central one first.

    `size` is (width, height) of the town in metres; `density` goes from 0, outskirts, to 1, a dense quarter.
    """
    x, y = size / 2
    town = Rectangle(x, y, rng.uniform(0, 180), np.full(2, np.hypot(*size) + 24))
    frame = shapely.box(0, 0, *size)
    parts = [(is_road, site) for is_road, site in _subdivide(town, 0, density, rng) if frame.intersects(site.polygon())]
    plots = sorted((site for is_road, site in parts if not is_road), key=lambda site: np.hypot(site.x - x, site.y - y))
    return [site for is_road, site in parts if is_road], plots


def _subdivide(site: Rectangle, depth: int, density: float, rng: Generator) -> Iterator[tuple[bool, Rectangle]]:
    """Divide ground by roads and gaps, recursively; yields roads, marked True, and plots, marked False."""
    length, width = site.size
    if depth >= len(ROAD_WIDTHS) and length * width < rng.uniform(0.8, 1.6) * 850 * 0.1**density:
        yield False, site
        return
    gap = ROAD_WIDTHS[depth] if depth < len(ROAD_WIDTHS) else rng.uniform(0.5, 1.8)
    start = length * rng.uniform(-0.12, 0.12) - gap / 2
    if depth < len(ROAD_WIDTHS):
        yield True, _section(site, start, start + gap)
    for ends in ((-length / 2, start), (start + gap, length / 2)):
        yield from _subdivide(_section(site, *ends), depth + 1, density + rng.normal(0, 0.06), rng)


def _section(site: Rectangle, start: float, stop: float) -> Rectangle:
    """The part of a rectangle from start to stop along its length."""
    middle = site.place(Point((start + stop) / 2, 0))
    size = np.array([stop - start, site.size[1]])
    return Rectangle(middle.x, middle.y, site.angle + 90 * int(size.argmax()), np.sort(size)[::-1])


def houses(plots: list[Rectangle], roofs: Mapping[str, float], rng: Generator) -> list[House]:
    """Buildings that do not overlap: one on each plot, some with a shed.

    `roofs` gives the weight of each material in ROOFS.
    """
    built: list[House] = []
    weights = np.array(list(roofs.values())) / sum(roofs.values())
    for plot, wings in zip(plots, cycle(WINGS), strict=False):
        roof = ROOFS[rng.choice(list(roofs), p=weights)]
        size = np.minimum(plot.size * rng.uniform(0.86, 0.97, 2), rng.uniform((10, 7), (22, 14)))
        house = _house(plot, size, rng.uniform(-0.7, 0.7, 2), wings, roof, rng)
        shed = _house(plot, rng.uniform(2.2, 5, 2), rng.choice((-1, 1), 2), 1, ROOFS["rust"], rng)
        for new in (house, shed)[: rng.integers(1, 3)]:
            if not shapely.dwithin(new.footprint, [other.footprint for other in built], 0.25).any():
                built.append(new)
    return built


def _house(plot: Rectangle, size: np.ndarray, side: np.ndarray, wings: int, roof: Roof, rng: Generator) -> House:
    """A house of `size` metres, moved from the centre of its plot by `side`, -1 to 1 along each axis."""
    middle = plot.place(Point(side * np.maximum(plot.size - size, 0) / 2))
    site = Rectangle(middle.x, middle.y, plot.angle + rng.normal(0, 3), size)
    x, y = (size / 2).tolist()
    arm = rng.uniform(0.3, 0.38) * float(min(size))
    ring = [(-x, -y, x, arm - y), (-x, -y, arm - x, y), (x - arm, -y, x, y), (-x, y - arm, x, y)]
    boxes: list[Box] = ring[:wings] if wings > 1 else [(-x, -y, x, y)]
    form = str(rng.choice(roof.forms))
    footprint = shapely.union_all([site.box(*box) for box in boxes])
    return House(site, boxes, footprint, roof, "hip" if wings > 1 and form != "flat" else form)


def road_features(roads: list[Rectangle], rng: Generator) -> Iterator[Feature]:
    """Asphalt on the two main roads, beaten earth on the others, and cars along them."""
    for i, road in enumerate(roads):
        yield road.polygon(0.4 if i < 2 else -0.5), ASPHALT if i < 2 else EARTH, 0
        for x in np.arange(-road.size[0] / 2, road.size[0] / 2, 12) + rng.uniform(-3, 3):
            y = (road.size[1] / 2 - 1) * rng.choice((-1, 1))
            yield road.box(x - 2, y - 0.8, x + 2, y + 0.8).buffer(-0.2).buffer(0.3), rng.choice(CARS), 1.3
            yield from ((road.box(x + end, y - 0.6, x + end + 0.5, y + 0.6), GLASS, 1.3) for end in (-1.5, 0.4))


def lot_features(plots: list[Rectangle]) -> Iterator[Feature]:
    """Covers of plots without a building, and the lines on them; LOTS repeat from plot to plot."""
    for plot, (cover, low, colour, high, across, along) in zip(plots, cycle(LOTS), strict=False):
        x, y = 0.45 * plot.size
        yield plot.box(-x, -y, x, y), cover, low
        yield from ((plot.box(at - 0.13, -y, at + 0.13, y), colour, high) for at in np.linspace(-x, x, across))
        yield from ((plot.box(-x, at - 0.13, x, at + 0.13), colour, high) for at in np.linspace(-y, y, along))


def wall_features(plots: list[Rectangle]) -> Iterator[Feature]:
    """Walls around plots."""
    for plot in plots:
        x, y = plot.size / 2
        # The last wall is shorter: it leaves a gate.
        for left, top, right, bottom in ((-x, -y, x, -y), (-x, -y, -x, y), (x, -y, x, y), (-x, y, x / 3, y)):
            yield plot.box(left - 0.15, top - 0.15, right + 0.15, bottom + 0.15), GREY, 1.7
