"""The outlines that `predict` would write for the chips of a scene, matched with the drawn ones.

Chips are put together on the grid of the model, so that buildings are whole over their edges.
"""

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from affine import Affine
from rasterio.features import shapes
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from ocmlflow.chips import labels
from ocmlflow.evaluation import building_matching
from ocmlflow.evaluation.building_matching import MatchedBuildings
from ocmlflow.evaluation.predictions import Predictions
from ocmlflow.prediction import ground_outlines, instances, polygonize, vector_files
from ocmlflow.prediction.instances import Evidence, ReadEvidence
from ocmlflow.scenes.geobox import GeoBox


def match(
    predicted: Predictions,
    percents_of_levels: np.ndarray,
    threshold: int,
    *,
    block_m: float,
    min_area_m2: float,
    min_hole_m2: float,
) -> MatchedBuildings | None:
    """Predicted and drawn buildings of all scenes, at a threshold in percent; None where no footprints are kept.

    `percents_of_levels` (65536,) gives the calibrated percent of each level. Both sides are clipped to the valid pixels
    of the chips: of a building across the edge counts what lies inside.
    """
    if predicted.drawn is None:
        return None
    parts = []
    for scene, chips in predicted.rows.groupby("scene").indices.items():
        grid = _grid(predicted, chips)
        ground = _ground(predicted, chips, grid)
        outlines = _polygons(predicted.outlines, str(scene), grid.crs)
        if outlines is None:
            read = _reader(predicted, chips, percents_of_levels)
            outlines = _trace(read, grid, predicted, threshold, min_area_m2=min_area_m2, min_hole_m2=min_hole_m2)
        drawn = _polygons(predicted.drawn, str(scene), grid.crs)
        assert drawn is not None
        matched = building_matching.match(
            building_matching.clip(outlines, ground),
            building_matching.clip(drawn, ground),
            ground,
            scene=str(scene),
            place=str(predicted.rows.place.iloc[chips[0]]),
            block_m=block_m,
            min_area_m2=min_area_m2,
        )
        parts.append(matched)
    return building_matching.combine(parts)


def _grid(predicted: Predictions, chips: np.ndarray) -> GeoBox:
    """The grid of a scene, as far as its chips go."""
    rows = predicted.rows.iloc[chips]
    size = predicted.levels.shape[1]
    first = rows.iloc[0]
    left = first.x - (first.col + size / 2) * first.gsd
    top = first.y + (first.row + size / 2) * first.gsd
    transform = Affine(first.gsd, 0, left, 0, -first.gsd, top)
    return GeoBox(first.utm, transform, int(rows.row.max()) + size, int(rows.col.max()) + size)


def _ground(predicted: Predictions, chips: np.ndarray, grid: GeoBox) -> BaseGeometry:
    """The valid pixels of a scene's chips, as a geometry in the CRS of the grid."""
    parts = []
    for number in chips:
        row = predicted.rows.iloc[number]
        _, valid = labels.decode(predicted.coded[number])
        outlines = shapes(valid.astype(np.uint8), mask=valid, transform=Affine.translation(row.col, row.row))
        parts += [shapely.geometry.shape(outline) for outline, _ in outlines]
    # Joined in whole pixels: metres of neighbouring chips differ in their last digits, which would leave cracks.
    ground = shapely.union_all(parts)
    return shapely.transform(ground, lambda corners: np.stack(grid.transform @ tuple(corners.T), axis=1))


def _reader(predicted: Predictions, chips: np.ndarray, percents_of_levels: np.ndarray) -> ReadEvidence:
    """A function that reads a window of a scene from its chips; what lies outside of them is not valid."""
    size = predicted.levels.shape[1]
    rows, cols = (predicted.rows[name].to_numpy()[chips] for name in ("row", "col"))

    def read(window: Window) -> Evidence:
        top, left, height, width = (int(v) for v in (window.row_off, window.col_off, window.height, window.width))
        percents = np.zeros((height, width), np.uint8)
        valid = np.zeros((height, width), bool)
        distance = None if predicted.distance is None else np.zeros((height, width), np.uint8)
        near = (rows < top + height) & (rows + size > top) & (cols < left + width) & (cols + size > left)
        for number, row, col in zip(chips[near], rows[near], cols[near], strict=True):
            inside = np.s_[max(top - row, 0) : top + height - row, max(left - col, 0) : left + width - col]
            y, x = max(row - top, 0), max(col - left, 0)
            _, chip_valid = labels.decode(predicted.coded[number][inside])
            target = np.s_[y : y + chip_valid.shape[0], x : x + chip_valid.shape[1]]
            percents[target] = percents_of_levels[predicted.levels[number][inside]]
            valid[target] = chip_valid
            if distance is not None and predicted.distance is not None:
                distance[target] = np.where(chip_valid, predicted.distance[number][inside], 0)
        return Evidence(percents, valid, distance)

    return read


def _trace(
    read: ReadEvidence,
    grid: GeoBox,
    predicted: Predictions,
    threshold: int,
    *,
    min_area_m2: float,
    min_hole_m2: float,
) -> np.ndarray:
    """Outlines of predicted buildings in the CRS of the grid, made as `predict` makes them."""
    blocks = instances.blocks(
        read,
        grid.height,
        grid.width,
        gsd=grid.transform.a,
        threshold=threshold,
        separate=predicted.separate,
    )
    frames = vector_files.frames(
        polygonize.trace(blocks),
        grid,
        scene="",
        outline=ground_outlines.OUTLINES[0],
        min_area_m2=min_area_m2,
        min_hole_m2=min_hole_m2,
    )
    return np.concatenate([frame.geometry.to_numpy() for frame in frames])


def _polygons(frame: gpd.GeoDataFrame | None, scene: str, crs: str) -> np.ndarray | None:
    """The polygons of a scene in a CRS."""
    if frame is None:
        return None
    chosen: pd.Series = frame.scene == scene
    return labels.polygons(frame.geometry[chosen].to_crs(crs))
