"""Compares styles of outlines on buildings as a network would find them, made from the labels of scenes.

    python -m benchmarks.outlines CATALOG [--picture FOLDER]

Labels are burnt at 0.1 m as touching buildings, their edges moved by a smooth random field, alleys below 0.3 m closed,
and smoothed as `predict` does. Each outline is then compared with the label that it comes from. `boundary` is the mean
distance of matched outlines from those drawn; `overlaps` counts pairs that share more than 0.1 m2.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from affine import Affine
from PIL import Image, ImageDraw
from rasterio.features import rasterize
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from scipy import ndimage
from skimage import segmentation

from ocmlflow.prediction import ground_outlines, polygonize, separation
from ocmlflow.prediction.outlines import WrittenOutlines
from ocmlflow.prediction.polygonize import LabelBlock, PredictedFootprint
from ocmlflow.scenes.geobox import GeoBox

GSD = 0.1
SIDE = 4_000
"""Largest side of the ground that is taken of a scene, in pixels, from its densest corner."""

Style = Callable[[list[PredictedFootprint], GeoBox], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    styles: dict[str, Style] = {
        "Douglas-Peucker 0.3 m, each by itself": alone,
        "coverage_simplify, 1 m": covered,
        **{name: partial(own, outline=name) for name in ground_outlines.OUTLINES},
    }
    print("| scene | outline | F1 | IoU | boundary, m | corners (drawn) | invalid | overlaps | seconds |")
    print("| --- " * 9 + "|")
    for label in sorted(options.catalog.parent.rglob("*.geojson")):
        drawn, grid, image = ground(label)
        footprints = found(drawn, grid)
        for name, style in styles.items():
            started = time.perf_counter()
            outlines = style(footprints, grid)
            seconds = time.perf_counter() - started
            print(f"| {label.stem} | {name} | {scores(outlines, drawn)} | {seconds:.2f} |", flush=True)
            if options.picture:
                picture(image, grid, outlines, options.picture / f"{label.stem}-{name.split(',')[0]}.png")


def ground(label: Path) -> tuple[np.ndarray, GeoBox, np.ndarray]:
    """The polygons drawn on a part of a scene, in metres, its grid, and its picture (height, width, 3) uint8."""
    (path,) = label.parent.parent.rglob(f"{label.stem}.tif")
    frame = gpd.read_file(label)
    frame = frame.to_crs(frame.estimate_utm_crs())
    drawn = shapely.get_parts(shapely.make_valid(shapely.force_2d(frame.geometry.to_numpy())))
    drawn = drawn[(shapely.get_type_id(drawn) == 3) & (shapely.area(drawn) > 2)]
    reach = SIDE * GSD
    centres = shapely.get_coordinates(shapely.centroid(drawn))
    densest = centres[np.argmax([(np.abs(centres - centre) < reach / 2).all(axis=1).sum() for centre in centres])]
    left, top = densest[0] - reach / 2, densest[1] + reach / 2
    grid = GeoBox(frame.crs.to_string(), Affine(GSD, 0, left, 0, -GSD, top), SIDE, SIDE)
    drawn = drawn[shapely.within(drawn, shapely.box(left, top - reach, left + reach, top))]
    with (
        rasterio.open(path) as source,
        WarpedVRT(source, crs=grid.crs, transform=grid.transform, width=SIDE, height=SIDE) as warped,
    ):
        return drawn, grid, np.moveaxis(warped.read([1, 2, 3]), 0, -1)


def found(drawn: np.ndarray, grid: GeoBox) -> list[PredictedFootprint]:
    """Footprints as predicted: the drawn polygons with moved edges, alleys closed, smoothed."""
    shapes = [(polygon, number) for number, polygon in enumerate(drawn, 1)]
    labels = rasterize(shapes, (SIDE, SIDE), transform=grid.transform, dtype="int32")
    random = np.random.default_rng(0)
    moves = [ndimage.gaussian_filter(random.standard_normal((SIDE, SIDE)), 10) for _ in range(2)]
    rows, cols = (
        np.clip(axis + np.rint(3 * move / move.std()).astype(int), 0, SIDE - 1)
        for axis, move in zip(np.indices((SIDE, SIDE)), moves, strict=True)
    )
    labels = segmentation.expand_labels(labels[rows, cols], 1.5)
    labels = separation.connected(separation.smooth(labels, gsd=GSD))
    block = LabelBlock(Window(0, 0, SIDE, SIDE), np.full((SIDE, SIDE), 80, np.uint8), labels)
    return [footprint for footprint in polygonize.trace([block]) if footprint.outline.area * GSD**2 > 2]


def own(footprints: list[PredictedFootprint], grid: GeoBox, *, outline: str) -> np.ndarray:
    written = WrittenOutlines()
    for batch, around in ground_outlines.batches(footprints, size=2_000):
        written.add(ground_outlines.to_ground(batch, around, written, grid, outline=outline))
    return written.near(np.array([shapely.box(-1e9, -1e9, 1e9, 1e9)]))


def alone(footprints: list[PredictedFootprint], grid: GeoBox) -> np.ndarray:
    return np.asarray(shapely.simplify(own(footprints, grid, outline="exact"), 0.3))


def covered(footprints: list[PredictedFootprint], grid: GeoBox) -> np.ndarray:
    # With a corner at each pixel: neighbours must have the same ones.
    pixels = shapely.segmentize([footprint.outline for footprint in footprints], 1)
    simple = shapely.coverage_simplify(pixels, 1 / GSD)
    return own([PredictedFootprint(outline, 0.8) for outline in simple], grid, outline="exact")


def scores(outlines: np.ndarray, drawn: np.ndarray) -> str:
    """Cells of the table; matches are pairs of an IoU above 0.5."""
    invalid = int((~shapely.is_valid(outlines)).sum())
    outlines = shapely.make_valid(outlines)
    first, second = shapely.STRtree(outlines).query(outlines, predicate="intersects")
    common = shapely.area(shapely.intersection(outlines[first], outlines[second]))
    overlaps = int(((first < second) & (common > 0.1)).sum())
    one, other = shapely.STRtree(drawn).query(outlines, predicate="intersects")
    common = shapely.area(shapely.intersection(outlines[one], drawn[other]))
    iou = common / (shapely.area(outlines[one]) + shapely.area(drawn[other]) - common)
    is_match = iou > 0.5
    f1 = 2 * is_match.sum() / (len(outlines) + len(drawn))
    distances = [
        shapely.distance(shapely.points(shapely.get_coordinates(shapely.segmentize(a, 0.25))), b.boundary).mean()
        for a, b in zip(outlines[one[is_match]], drawn[other[is_match]], strict=True)
    ]
    corners, few = (
        np.median(shapely.get_num_coordinates(polygons) - 1 - shapely.get_num_interior_rings(polygons))
        for polygons in (outlines, drawn)
    )
    cells = (f"{f1:.3f}", f"{iou[is_match].mean():.3f}", f"{np.mean(distances):.3f}", f"{corners:.0f} ({few:.0f})")
    return " | ".join([*cells, str(invalid), str(overlaps)])


def picture(image: np.ndarray, grid: GeoBox, outlines: np.ndarray, path: Path) -> None:
    """The middle of the ground, twice as large, with the outlines."""
    middle = SIDE // 2 - 300
    sheet = Image.fromarray(image[middle : middle + 600, middle : middle + 600]).resize((1200, 1200))
    draw = ImageDraw.Draw(sheet)
    for ring in shapely.get_rings(outlines):
        points = np.stack(~grid.transform @ tuple(shapely.get_coordinates(ring).T), axis=1)
        draw.line([tuple(2 * (point - middle)) for point in points], fill=(255, 255, 0), width=2)
    sheet.save(path)


if __name__ == "__main__":
    main()
