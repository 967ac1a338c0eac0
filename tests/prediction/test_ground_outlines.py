import numpy as np
import pytest
import shapely
from affine import Affine
from conftest import CRS
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize
from rasterio.windows import Window
from scipy import ndimage

from ocmlflow.prediction import ground_outlines, polygonize, separation
from ocmlflow.prediction.outlines import WrittenOutlines
from ocmlflow.prediction.polygonize import LabelBlock, PredictedFootprint
from ocmlflow.scenes.geobox import GeoBox

GSD = 0.1


def traced(labels: np.ndarray) -> list[PredictedFootprint]:
    labels = separation.connected(labels)
    window = Window(0, 0, labels.shape[1], labels.shape[0])
    return list(polygonize.trace([LabelBlock(window, np.full(labels.shape, 80, np.uint8), labels)]))


def town(seed: int, *, side: int = 400) -> np.ndarray:
    """Labels of touching buildings with crooked walls, and of what lies open between them."""
    random = np.random.default_rng(seed)
    centres = np.zeros((side, side), int)
    rows, cols = random.integers(0, side, (2, 40))
    centres[rows, cols] = np.arange(1, 41)
    row, col = ndimage.distance_transform_edt(centres == 0, return_distances=False, return_indices=True)
    open_ground = ndimage.gaussian_filter(random.standard_normal((side, side)), 12)
    return separation.smooth(np.where(open_ground < 0.02, centres[row, col], 0), gsd=GSD)


def drawn(footprints: list[PredictedFootprint], *, outline: str, size: int = 2_000) -> dict[tuple, shapely.Polygon]:
    """The outline in metres of each footprint, by its first pixel."""
    grid = GeoBox(CRS, Affine(GSD, 0, 500_000, 0, -GSD, 620_000), 400, 400)
    written = WrittenOutlines()
    polygons = {}
    for batch, around in ground_outlines.batches(footprints, size=size):
        outlines = ground_outlines.to_ground(batch, around, written, grid, outline=outline)
        written.add(outlines)
        polygons.update(zip([footprint.first_pixel for footprint in batch], outlines, strict=True))
    return polygons


def common_m2(outlines: np.ndarray) -> np.ndarray:
    """Area that each pair of outlines shares."""
    one, other = shapely.STRtree(outlines).query(outlines, predicate="intersects")
    return np.asarray(shapely.area(outlines[one[one < other]] & outlines[other[one < other]]))


@pytest.mark.parametrize("outline", ["squared", "simple"])
@given(angle=st.floats(0, 180), shift=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_a_turned_rectangle_has_four_corners(outline, angle, shift):
    roof = shapely.affinity.translate(shapely.affinity.rotate(shapely.box(100, 100, 180, 220), angle), shift, shift)
    labels = separation.smooth(rasterize([roof], (320, 320)).astype(np.int32), gsd=GSD)
    (outlined,) = drawn(traced(labels), outline=outline).values()
    corners = len(outlined.exterior.coords) - 1
    assert corners == 4 if outline == "squared" else corners <= 8
    assert outlined.area == pytest.approx(96, rel=0.05 if outline == "squared" else 0.12)
    if outline == "squared":
        walls = np.diff(shapely.get_coordinates(outlined), axis=0)
        turns = (walls * np.roll(walls, 1, axis=0)).sum(axis=1)
        assert turns == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("outline", ground_outlines.OUTLINES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_neighbours_keep_their_area_and_hardly_overlap(outline, seed):
    footprints = traced(town(seed))
    polygons = drawn(footprints, outline=outline)
    outlines = np.array(list(polygons.values()), object)
    exact = np.array([footprint.outline.area * GSD**2 for footprint in footprints])
    large = exact > 10
    assert shapely.area(outlines)[large] == pytest.approx(exact[large], rel=0.3)  # their walls are very crooked
    assert shapely.area(outlines).sum() == pytest.approx(exact.sum(), rel=0.05)
    assert shapely.is_valid(outlines).all()
    assert common_m2(outlines).sum() < 0.01 * exact.sum()


@pytest.mark.parametrize("outline", ground_outlines.OUTLINES)
def test_shared_walls_are_the_same_line_in_every_batch(outline):
    """Also where the neighbours come in different batches, and a long building waits for all of its neighbours."""
    labels = town(5)
    labels[10:390, 198:204] = 100
    footprints = traced(labels)
    whole = drawn(footprints, outline=outline)
    pixel_walls = shared_walls({footprint.first_pixel: footprint.outline for footprint in footprints})
    assert len(pixel_walls) > 20
    for size in (1, 3, 7, 2_000):
        polygons = drawn(footprints, outline=outline, size=size)
        assert polygons.keys() == whole.keys()
        if outline != "squared":
            assert all(polygons[key].equals_exact(whole[key]) for key in whole)
        for one, other in pixel_walls:
            assert shapely.distance(polygons[one], polygons[other]) == 0
            common = polygons[one].boundary & polygons[other].boundary
            assert common.length > 0.5


def shared_walls(outlines: dict) -> list[tuple]:
    """Pairs of outlines in pixels that share more than a metre of wall."""
    keys = sorted(outlines)
    return [
        (one, other)
        for number, one in enumerate(keys)
        for other in keys[number + 1 :]
        if (outlines[one] & outlines[other]).length > 20
    ]


def test_a_row_of_houses_has_straight_walls_and_few_corners():
    houses = [shapely.affinity.rotate(shapely.box(60 * n, 0, 60 * n + 60, 100), 20, origin=(0, 0)) for n in range(4)]
    labels = rasterize([(shapely.affinity.translate(h, 60, 60), n) for n, h in enumerate(houses, 1)], (300, 350))
    outlines = list(drawn(traced(separation.smooth(labels.astype(np.int32), gsd=GSD)), outline="squared").values())
    assert len(outlines) == 4
    assert all(len(outline.exterior.coords) - 1 <= 8 for outline in outlines)
    assert common_m2(np.array(outlines)).sum() < 1e-6


def test_a_round_hut_stays_round():
    hut = shapely.Point(60, 60).buffer(40)
    (outline,) = drawn(traced(rasterize([hut], (120, 120)).astype(np.int32)), outline="squared").values()
    assert len(outline.exterior.coords) - 1 >= 6
    assert outline.area == pytest.approx(hut.area * GSD**2, rel=0.1)


def test_no_footprints_are_one_empty_batch():
    ((batch, around),) = ground_outlines.batches([], size=10)
    assert (batch, len(around)) == ([], 0)
    assert drawn([], outline="squared") == {}
