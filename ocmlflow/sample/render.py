"""Draws synthetic drone scenes: ground, roads, roofs, shadows and trees, and the footprints of the buildings.

Shapes are in metres, x to the right and y down from the upper left corner. `sun` is the offset in metres, per metre of
height, from a point to its shadow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.random import Generator
from rasterio import Affine
from rasterio.features import rasterize
from scipy import fft, ndimage
from shapely import MultiPolygon, Point, Polygon
from shapely.affinity import rotate, translate

from ocmlflow.sample import layout
from ocmlflow.sample.layout import Colour, Feature, House

EDGES = {"flat": slice(4), "hip": slice(4), "gable": slice(2, 4), "mono": slice(2, 3)}
"""Edges that a roof rises from, of left, right, top and bottom, by its form."""
WALL_HEIGHTS = {"flat": 5, "hip": 3.5, "gable": 3, "mono": 2.5}
"""Metres; walls cast the shadow of a house."""


@dataclass(frozen=True)
class Land:
    """Look of a place: two tones of soil, two of grass, and the weight of each material in layout.ROOFS."""

    soil: tuple[Colour, Colour]
    grass: tuple[Colour, Colour]
    roofs: dict[str, float]


@dataclass(frozen=True)
class DrawnScene:
    """A synthetic scene; the outline of its valid pixels and its buildings are in metres.

    Buildings lie within the outline; one has a courtyard, one has two parts.
    """

    image: np.ndarray
    """(height, width, 3) uint8 RGB; 0 where not valid."""
    valid: np.ndarray
    """(height, width) bool."""
    outline: Polygon
    buildings: list[Polygon | MultiPolygon]


@dataclass(frozen=True)
class _Canvas:
    """An image (height, width, 3) float32 to draw on, with coarse and fine noise (height, width) of deviation 1."""

    image: np.ndarray
    mottle: np.ndarray
    grain: np.ndarray
    gsd: float
    sun: np.ndarray


def draw(
    land: Land, *, shape: tuple[int, int], gsd: float, density: float, ragged: bool, seed: Sequence[int]
) -> DrawnScene:
    """A synthetic scene of `shape` (height, width): outskirts at density 0, a dense quarter at 1.

    With `ragged`, the imagery ends inside the picture at a ragged outline, as in a mosaic. The same seed gives the same
    scene.
    """
    rng = np.random.default_rng(seed)
    canvas = _bare_ground(land, shape, gsd, density, rng)
    size = gsd * np.array(shape[::-1])
    roads, plots = layout.street_plan(size, density, rng)
    houses = layout.houses([plot for i, plot in enumerate(plots) if i % 7 != 3], land.roofs, rng)
    footprints = [house.footprint for house in houses]
    _draw_features(
        canvas,
        [*layout.road_features(roads, rng), *layout.lot_features(plots[3::7]), *layout.wall_features(plots[::3])],
    )
    _shade(canvas, [(house.site.box(*wing), WALL_HEIGHTS[house.form]) for house in houses for wing in house.wings])
    for house in houses:
        _draw_roof(canvas, house, rng)
    _draw_trees(canvas, size, shapely.union_all([*(road.polygon() for road in roads), *footprints]), land, rng)
    outline: Polygon = _outline(size, rng) if ragged else shapely.box(0, 0, *size)
    valid = _rasterize(canvas, [outline]) > 0
    return DrawnScene(_expose(canvas, rng) * valid[..., None], valid, outline, _clip(footprints, outline))


def _bare_ground(land: Land, shape: tuple[int, int], gsd: float, density: float, rng: Generator) -> _Canvas:
    patches, mottle, grain = (_noise(shape, metres / gsd, rng) for metres in (14, 3, 0.3))
    soil = _between(*land.soil, 0.5 + 0.3 * patches + 0.15 * mottle)
    grass = _between(*land.grass, 0.5 + 0.4 * mottle)
    image = _between(soil, grass, 2.5 * (0.6 * patches + 0.5 * mottle + 0.35 * grain - density))
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
    """Colours between `first` and `last`, by a share that is clipped to 0..1."""
    first, last = np.asarray(first, np.float32), np.asarray(last, np.float32)
    return np.asarray(first + (last - first) * np.clip(share, 0, 1, dtype=np.float32)[..., None])


def _rasterize(canvas: _Canvas, shapes: Sequence[Any]) -> np.ndarray:
    """Index of the last shape over the centre of each pixel, plus one; 0 for none: (height, width) uint16."""
    numbered = [(shape, i + 1) for i, shape in enumerate(shapes)]
    out = np.zeros(canvas.image.shape[:2], np.uint16)
    return rasterize(numbered, out=out, transform=Affine.scale(canvas.gsd)) if numbered else out


def _draw_features(canvas: _Canvas, features: list[Feature]) -> None:
    """Draw flat features with frayed edges, then shadows, then features with a height."""
    tall = [feature for feature in features if feature[2]]
    _paint(canvas, [feature for feature in features if not feature[2]], fray=1.4)
    _shade(canvas, [(shape, height) for shape, _, height in tall])
    _paint(canvas, tall)


def _paint(canvas: _Canvas, features: list[Feature], fray: float = 0) -> None:
    """Fill features with their colours; their edges fray over `fray` metres."""
    where = _rasterize(canvas, [shape for shape, _, _ in features])
    inside = (where > 0).astype(np.float32)
    if fray:
        spread = ndimage.uniform_filter(inside, round(fray / canvas.gsd))
        inside *= np.clip(2 * spread - 0.6 + 0.2 * canvas.mottle, 0, 0.92)
    on = inside > 0
    colours = np.array([colour for _, colour, _ in features], np.float32)[where[on] - 1]
    colours *= 1 + 0.05 * (canvas.mottle + canvas.grain)[on, None]
    canvas.image[on] += inside[on, None] * (colours - canvas.image[on])


def _shade(canvas: _Canvas, tall: Sequence[tuple[Polygon, float]]) -> None:
    """Darken the shadows of convex prisms, red more than blue, since the sky lights a shadow."""
    shapes = [shapely.union(shape, translate(shape, *(height * canvas.sun))).convex_hull for shape, height in tall]
    dark = ndimage.gaussian_filter((_rasterize(canvas, shapes) > 0).astype(np.float32), 0.12 / canvas.gsd)
    canvas.image[:] *= 1 - dark[..., None] * np.array((0.58, 0.56, 0.52), np.float32)


def _window(canvas: _Canvas, bounds: Sequence[float]) -> tuple[Any, np.ndarray, np.ndarray]:
    """Slices of the pixels around bounds, at least two each way, and their x (1, width) and y (height, 1) in metres."""
    height, width, _ = canvas.image.shape
    around = np.array(bounds) / canvas.gsd + (-2, -2, 3, 3)
    left, top, right, bottom = around.clip((0, 0, 2, 2), (width - 2, height - 2, width, height)).astype(int)
    x, y = ((np.arange(*ends, dtype=np.float32) + 0.5) * canvas.gsd for ends in ((left, right), (top, bottom)))
    return np.s_[top:bottom, left:right], x[None, :], y[:, None]


def _light(height: np.ndarray, canvas: _Canvas) -> np.ndarray:
    """Light on a surface of `height` metres: (height, width, 1), 1 on level ground."""
    slope_y, slope_x = np.gradient(height, canvas.gsd)
    light = (1 + slope_x * canvas.sun[0] + slope_y * canvas.sun[1]) / np.sqrt(1 + slope_x**2 + slope_y**2)
    return np.asarray(light.clip(0.35, 1.35)[..., None], np.float32)


def _draw_roof(canvas: _Canvas, house: House, rng: Generator) -> None:
    window, x, y = _window(canvas, house.footprint.bounds)
    site = house.site
    angle = np.radians(site.angle)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    # Along and across the house, from its centre.
    u = (x - site.x) * cos + (y - site.y) * sin
    v = (y - site.y) * cos - (x - site.x) * sin
    inward = np.stack([(u - left, right - u, v - top, bottom - v) for left, top, right, bottom in house.wings])
    # Distance to the eaves. Where wings meet, the higher plane is visible: that draws valleys and hips.
    rise = inward[:, EDGES[house.form]].min(axis=1).max(axis=0)
    rise_y, rise_x = np.gradient(rise, canvas.gsd)
    colour = _cover(house, np.where(np.abs(rise_x * cos + rise_y * sin) > 0.7, v, u), rise, canvas.gsd, rng)
    height = rise * rng.uniform(0.2, 0.5)
    if house.form == "flat":
        parapet = rise < 0.35
        height = 0.5 * parapet
        colour[parapet] = 0.4 * colour[parapet] + 130
    colour *= (1 + 0.08 * canvas.mottle[window] + 0.05 * canvas.grain[window])[..., None] * _light(height, canvas)
    roof = inward.min(axis=1).max(axis=0) > 0
    canvas.image[window][roof] = colour[roof]


def _cover(house: House, along: np.ndarray, rise: np.ndarray, gsd: float, rng: Generator) -> np.ndarray:
    """Colours (height, width, 3) of a roof of striped sheets, 0.9 m along the eaves by 2.4 m up the slope."""
    palette = np.asarray(house.roof.colours, np.float32)
    mixed = house.roof.mixed
    own = palette[rng.integers(len(palette))]
    other = palette[rng.integers(len(palette), size=(40, 40))]
    # Sheets of the same age lie side by side.
    odd = ndimage.uniform_filter(rng.random((40, 40)), (3, 1)) < mixed * rng.uniform(0.4, 1.2)
    sheets = np.where(odd[..., None], other, own) * rng.normal(1, 0.02 + 0.1 * mixed, (40, 40, 1))
    colour = sheets[np.floor(along / 0.9).astype(int) % 40, np.floor(rise / 2.4).astype(int) % 40]
    stripes = 1 + 0.06 * (house.form != "flat") * np.sin(2 * np.pi * along / max(0.36, 3.2 * gsd))
    return np.asarray(colour * stripes[..., None] * rng.normal(1, 0.06), np.float32)


def _draw_trees(canvas: _Canvas, size: np.ndarray, occupied: Any, land: Land, rng: Generator) -> None:
    """Draw lumpy tree crowns, which may reach over `occupied` ground but do not hide it."""
    trees = rng.uniform((0, 0, 1), (*size, 4), (round(size.prod() / 90), 3))  # x, y, radius
    trees = trees[shapely.distance(shapely.points(trees[:, :2]), occupied) > 0.5 * trees[:, 2]]
    _shade(canvas, [(Point(x, y).buffer(radius), 5) for x, y, radius in trees])
    for middle_x, middle_y, radius in trees.tolist():
        window, x, y = _window(canvas, (middle_x - radius, middle_y - radius, middle_x + radius, middle_y + radius))
        lumps = 0.2 * canvas.grain[window] + 0.3 * canvas.mottle[window]
        dome = 1 - ((x - middle_x) ** 2 + (y - middle_y) ** 2) / radius**2 + lumps
        light = _light(radius * np.sqrt(dome.clip(0)), canvas) * (1 + 0.16 * canvas.grain[window])[..., None]
        canvas.image[window][dome > 0.2] = (light * rng.normal(0.75, 0.08, 3) * land.grass[0])[dome > 0.2]


def _outline(size: np.ndarray, rng: Generator) -> Any:
    """Outline of the imagery: most of the frame, slightly rotated, with ragged edges."""
    tilted = rotate(shapely.box(*(0.04 * size), *(0.96 * size)), rng.uniform(2, 4))
    edge = np.array(shapely.segmentize(tilted, 6).exterior.coords)[:-1]
    return shapely.intersection(Polygon(edge + rng.uniform(-0.9, 0.9, edge.shape)), shapely.box(0, 0, *size))


def _expose(canvas: _Canvas, rng: Generator) -> np.ndarray:
    """The image as a camera sees it, with a colour cast, blur and noise: (height, width, 3) uint8, 1..255."""
    gain = rng.uniform(0.9, 1.1) * rng.normal(1, 0.03, 3)
    blur = rng.uniform(0.45, 0.75)
    exposed = ndimage.gaussian_filter(canvas.image, (blur, blur, 0)) * gain.astype(np.float32)
    exposed += np.float32(3.5) * rng.standard_normal(exposed.shape, dtype=np.float32)
    return exposed.clip(1, 255).astype(np.uint8)


def _clip(footprints: list[Polygon], outline: Polygon) -> list[Polygon | MultiPolygon]:
    """Footprints cut to the imagery; the last and its nearest neighbour become one building of two parts."""
    parts = shapely.get_parts(shapely.intersection(footprints, outline))
    *others, last = (part for part in parts if part.area > 1)
    near = min(others, key=last.distance)
    return [*(part for part in others if part is not near), MultiPolygon([last, near])]
