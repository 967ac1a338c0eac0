"""Polygonizes the buildings of a scene block by block into footprints that are whole across block edges."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import shapely
from affine import Affine
from rasterio.features import shapes
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from ocmlflow.prediction import block_join
from ocmlflow.prediction.block_join import BlockJoiner
from ocmlflow.scenes import image_file


@dataclass(frozen=True)
class LabelBlock:
    """The buildings in one block of a scene."""

    window: Window
    """Where the block lies in the scene."""
    percents: np.ndarray
    """(height, width) uint8: probability of building in percent."""
    labels: np.ndarray
    """(height, width) int32: the building of each pixel, from 1; 0 for none. Its pixels are connected by edges."""
    joins_below: np.ndarray | np.bool_ = np.True_
    """(width,) bool: where a building of the last row and the one below are the same; by default wherever they meet."""
    joins_right: np.ndarray | np.bool_ = np.True_
    """(height,) bool: the same for the last column and the one to the right of it."""


@dataclass(frozen=True)
class PredictedFootprint:
    """Outline and probability of one predicted building."""

    outline: BaseGeometry
    """Polygon along the edges of pixels, in (col, row) of the scene, with a hole for each courtyard."""
    probability: float
    """Mean over the pixels of the building, 0..1."""

    @property
    def first_pixel(self) -> tuple[int, int]:
        """(row, col) of the leftmost pixel in the topmost row of an outline in pixels, which no other building has."""
        cols, rows = shapely.get_coordinates(shapely.get_exterior_ring(self.outline)).T
        return int(rows.min()), int(cols[rows == rows.min()].min())


@dataclass(frozen=True)
class _Part:
    """The part of a building that lies in one block."""

    outline: BaseGeometry
    """Polygon along the edges of pixels, in (col, row) of the scene."""
    pixels: int
    percent_sum: int
    """Sum of the probability in percent over the pixels."""


def mask_block(window: Window, percents: np.ndarray, building: np.ndarray) -> LabelBlock:
    """The block of a mask, `building` (height, width) bool, in which each connected component is a building.

    Pixels that share an edge belong to one building, pixels that share only a corner do not.
    """
    return LabelBlock(window, percents, block_join.label_objects(building))


def trace(blocks: Iterable[LabelBlock]) -> Iterator[PredictedFootprint]:
    """Footprints of buildings, in (col, row) of their scene, whole across the edges of blocks.

    The blocks cover each pixel once and come row by row, as `windows.blocks` gives them. Footprints come in the order
    of their first pixels, whatever the size of the blocks, as soon as no block to come can change that: memory holds
    the buildings that reach the last row of blocks, and those that begin below the first pixel of one of them.
    """
    joiner = BlockJoiner()
    open_parts: dict[int, _Part] = {}
    finished: list[tuple[tuple[int, int], PredictedFootprint]] = []
    row = 0

    def finish(part: _Part) -> None:
        footprint = PredictedFootprint(part.outline, part.percent_sum / part.pixels / 100)
        heapq.heappush(finished, (footprint.first_pixel, footprint))

    for block in blocks:
        if block.window.row_off != row:
            row = block.window.row_off
            for numbers in joiner.finish_rows(row, open_parts):
                finish(_take(open_parts, numbers))
            for numbers in joiner.objects(open_parts):
                open_parts[numbers[0]] = _take(open_parts, numbers)
            first_open = min((part.outline.bounds[1] for part in open_parts.values()), default=row)
            while finished and finished[0][0][0] < first_open:
                yield heapq.heappop(finished)[1]
        if not block.labels.any():
            continue
        offset = joiner.add(
            block.window.row_off,
            block.window.col_off,
            block.labels,
            joins_below=block.joins_below,
            joins_right=block.joins_right,
        )
        edge_labels = block_join.edge_labels(block.labels)
        for label, part in _parts(block):
            if label in edge_labels:
                open_parts[offset + label] = part
            else:
                finish(part)
    for numbers in joiner.objects(open_parts):
        finish(_take(open_parts, numbers))
    while finished:
        yield heapq.heappop(finished)[1]


def _parts(block: LabelBlock) -> Iterator[tuple[int, _Part]]:
    """The label of each building of a block, with its outline and sums."""
    building = block.labels > 0
    building_labels = block.labels[building]
    pixels = np.bincount(building_labels)
    percent_sums = np.bincount(building_labels, weights=block.percents[building])
    to_scene = Affine.translation(block.window.col_off, block.window.row_off)
    geometries = shapes(block.labels, mask=building, connectivity=4, transform=to_scene)
    with image_file.ignore_missing_georeference():  # rasterio changes the warning filters of all threads as it starts
        first = list(islice(geometries, 1))
    for geometry, value in chain(first, geometries):
        label = int(value)
        yield label, _Part(_polygon(geometry["coordinates"]), int(pixels[label]), int(percent_sums[label]))


def _polygon(rings: list[list[tuple[float, float]]]) -> BaseGeometry:
    # Rings as arrays: shapely's own `shape` takes each corner by itself, eight times as long.
    outer, *holes = (np.array(ring) for ring in rings)
    return shapely.Polygon(outer, holes)


def _take(open_parts: dict[int, _Part], numbers: list[int]) -> _Part:
    """Remove the parts of these numbers, as far as they are not merged already, and merge them."""
    parts = [open_parts.pop(number) for number in numbers if number in open_parts]
    if len(parts) == 1:
        return parts[0]
    # Outlines run along whole pixels, so the union is exact; simplify(0) drops the points along block edges.
    outline = shapely.union_all([part.outline for part in parts]).simplify(0)
    return _Part(outline, sum(part.pixels for part in parts), sum(part.percent_sum for part in parts))
