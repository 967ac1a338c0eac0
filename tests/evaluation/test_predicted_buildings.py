import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine
from conftest import distance_m
from rasterio.windows import Window

from ocmlflow.chips import labels, targets
from ocmlflow.evaluation import building_matching, predicted_buildings
from ocmlflow.evaluation.predictions import Predictions
from ocmlflow.prediction import instances, polygonize, vector_files
from ocmlflow.prediction.instances import Evidence
from ocmlflow.prediction.separation import DISTANCE_STEPS
from ocmlflow.scenes.geobox import GeoBox

GSD = 0.1
SIZE = 64
ORIGIN = 505_000.7
"""In metres: the edges of chips are no round numbers."""
PERCENTS = np.linspace(0, 100, 65536).astype(np.uint8)
HOUSES = [shapely.box(2, 3, 8, 9), shapely.box(8, 3, 14, 9), shapely.box(15, 12, 18, 18)]
"""Metres from the upper left of the scene, downwards; the first two share a wall."""
GRID = GeoBox("EPSG:32630", Affine(GSD, 0, ORIGIN, 0, -GSD, ORIGIN), 4 * SIZE, 4 * SIZE)
RULES = {"block_m": 10.0, "min_area_m2": 2.0, "min_hole_m2": 1.0}


def on_ground(houses: list) -> np.ndarray:
    return shapely.transform(np.array(houses), lambda at: at * (1, -1) + ORIGIN)


def degrees(houses: list) -> gpd.GeoDataFrame:
    frame = gpd.GeoDataFrame({"scene": ["s"] * len(houses)}, geometry=on_ground(houses), crs=GRID.crs)
    return frame.to_crs("EPSG:4326")


def cut(drawn: list | None, *, distance: bool, invalid: np.ndarray | None = None, **fields) -> Predictions:
    """Sixteen chips of a scene whose mask is that of HOUSES."""
    shape = {"height": GRID.height, "width": GRID.width}
    mask = labels.rasterize(on_ground(HOUSES), GRID.transform, **shape)
    metres = distance_m(targets.draw(on_ground(HOUSES), GRID.transform, gsd=GSD, **shape))
    coded = labels.encode(mask, ~invalid if invalid is not None else np.ones(mask.shape, bool))

    def chips(scene: np.ndarray) -> np.ndarray:
        return scene.reshape(4, SIZE, 4, SIZE).swapaxes(1, 2).reshape(16, SIZE, SIZE)

    row, col = (axis.ravel() * SIZE for axis in np.meshgrid(range(4), range(4), indexing="ij"))
    rows = gpd.GeoDataFrame({"scene": "s", "place": "acc", "row": row, "col": col, "gsd": GSD, "utm": GRID.crs})
    rows["x"], rows["y"] = GRID.transform @ (col + SIZE / 2, row + SIZE / 2)
    steps = np.rint(metres / targets.CLIP_M * DISTANCE_STEPS).astype(np.uint8)
    return Predictions(
        None,
        rows,
        chips(mask.astype(np.uint16) * 65535),
        chips(coded),
        distance=chips(steps) if distance else None,
        drawn=None if drawn is None else degrees(drawn),
        **fields,
    )


def test_chips_without_footprints_have_no_polygons_to_match():
    assert predicted_buildings.match(cut(None, distance=False), PERCENTS, 50, **RULES) is None


@pytest.mark.parametrize("distance", [True, False])
def test_learned_distances_part_houses_that_share_a_wall_across_chips(distance):
    found = predicted_buildings.match(cut(HOUSES, distance=distance), PERCENTS, 50, **RULES)
    counts = found.counts
    if distance:
        assert (counts.tp, counts.fp, counts.fn, counts.merges) == (3, 0, 0, 0)
        assert found.drawn.iou.min() > 0.9
        assert found.drawn.boundary_m.max() < 0.15
    else:  # a straight wall shows in no mask
        assert counts.merges == 1


def test_masks_of_other_tools_are_not_separated():
    found = predicted_buildings.match(cut(HOUSES, distance=True, separate=False), PERCENTS, 50, **RULES)
    assert (len(found.predicted), found.counts.merges) == (2, 1)


def test_outlines_are_those_of_predict():
    predicted = cut(HOUSES, distance=True)
    scene = {
        name: np.block([list(getattr(predicted, name)[4 * n : 4 * n + 4]) for n in range(4)])
        for name in ("levels", "distance")
    }
    scene = {name: values.reshape(GRID.height, GRID.width) for name, values in scene.items()}

    def read(window: Window) -> Evidence:
        part = window.toslices()
        percents = PERCENTS[scene["levels"][part]]
        return Evidence(percents, np.ones(percents.shape, bool), scene["distance"][part])

    blocks = instances.blocks(read, GRID.height, GRID.width, gsd=GSD, threshold=50, separate=True)
    frames = vector_files.frames(
        polygonize.trace(blocks), GRID, scene="s", outline="squared", min_area_m2=2.0, min_hole_m2=1.0
    )
    written = np.concatenate([frame.geometry.to_numpy() for frame in frames])
    expected = building_matching.match(
        written,
        on_ground(HOUSES),
        shapely.box(5e5, 5e5, 6e5, 6e5),
        scene="s",
        place="acc",
        block_m=10.0,
        min_area_m2=2.0,
    )
    found = predicted_buildings.match(predicted, PERCENTS, 50, **RULES)
    assert found.predicted.corners.tolist() == expected.predicted.corners.tolist()
    assert found.drawn.iou.to_numpy() == pytest.approx(expected.drawn.iou.to_numpy(), abs=1e-6)


def test_both_sides_end_where_the_imagery_ends():
    invalid = np.zeros((GRID.height, GRID.width), bool)
    invalid[:, :40] = True  # 2 of the 6 metres of the first house
    found = predicted_buildings.match(cut(HOUSES, distance=True, invalid=invalid), PERCENTS, 50, **RULES)
    assert found.counts.tp == 3
    assert found.drawn.iou.min() > 0.85


def test_polygons_of_another_tool_take_the_place_of_traced_ones():
    predicted = cut(HOUSES, distance=True, outlines=degrees(HOUSES[:1]))
    counts = predicted_buildings.match(predicted, PERCENTS, 50, **RULES).counts
    assert (counts.tp, counts.fp, counts.fn) == (1, 0, 2)


def test_the_edges_of_chips_cut_no_building():
    wide = [shapely.box(0.5, y, 25, y + 1.5) for y in np.arange(0.55, 24, 2.7)]
    predicted = cut(wide, distance=False, outlines=degrees(wide))
    found = predicted_buildings.match(predicted, PERCENTS, 50, **RULES)
    assert (found.counts.tp, len(found.drawn), len(found.predicted)) == (len(wide),) * 3
