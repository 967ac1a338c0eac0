import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.windows import Window

from ocmlflow.chips import labels
from ocmlflow.prediction import polygonize

masks = arrays(bool, st.tuples(st.integers(1, 16), st.integers(1, 16)))


def test_a_pixel_is_building_where_its_centre_is():
    # Of pixels 0..3 the centres 1.5 and 2.5 lie in 1.4..2.6, whatever share of pixel 1 or 3 is covered.
    label = labels.rasterize([shapely.box(1.4, 0.6, 2.6, 2.4)], Affine.identity(), height=3, width=4)
    assert label.dtype == np.uint8
    assert label.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_holes_and_overlaps_and_duplicates():
    ring = shapely.box(0, 0, 3, 3) - shapely.box(1, 1, 2, 2)
    label = labels.rasterize([ring, ring, shapely.box(2, 2, 4, 4)], Affine.identity(), height=4, width=4)
    assert label.tolist() == [[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 1, 1]]


def test_nothing_to_burn_is_no_building():
    assert not labels.rasterize([], Affine.identity(), height=2, width=3).any()
    assert not labels.rasterize([shapely.box(9, 9, 10, 10)], Affine.identity(), height=2, width=3).any()


@pytest.mark.parametrize(
    ("drawn", "count", "area"),
    [
        ([shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(2, 2, 4, 4)])], 2, 5),
        ([shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])], 2, 2),  # a bow-tie
        ([None, shapely.Polygon(), shapely.Point(0, 0), shapely.LineString([(0, 0), (1, 1)])], 0, 0),
        ([shapely.GeometryCollection([shapely.Point(5, 5), shapely.box(0, 0, 2, 2)])], 1, 4),
        ([shapely.Polygon([(0, 0), (1, 1), (2, 2)])], 0, 0),  # no area
        ([shapely.box(0, 0, 1, 1)] * 2, 2, 2),
    ],
)
def test_polygons_are_what_can_be_burnt(drawn, count, area):
    found = labels.polygons(drawn)
    assert len(found) == count
    assert sum(p.area for p in found) == pytest.approx(area)
    assert all(p.is_valid and p.geom_type == "Polygon" for p in found)


CROOKED = {
    "around some of it twice": ("(0 0, 6 0, 6 6, 2 6, 2 1, 3 1, 3 8, 0 8, 0 0)", 36 + 6),
    "holes that overlap": ("(0 0, 6 0, 6 6, 0 6, 0 0), (1 1, 3 1, 3 3, 1 3, 1 1), (2 2, 4 2, 4 4, 2 4, 2 2)", 36 - 7),
    "a hole that meets the edge": ("(0 0, 6 0, 6 6, 3 6, 4 3, 2 3, 3 6, 0 6, 0 0)", 36 - 3),
    "cut to its hole": ("(0 0, 6 0, 6 6, 3 6, 3 4, 4 4, 4 2, 2 2, 2 4, 3 4, 3 6, 0 6, 0 0)", 36 - 4),
    "lobes of two sizes": ("(0 0, 6 0, 2 4, 4 4, 0 0)", 9 + 1),
}


@pytest.mark.parametrize("name", CROOKED)
def test_what_a_crooked_ring_goes_around_is_building_and_its_holes_are_not(name):
    rings, area = CROOKED[name]
    found = labels.polygons([shapely.from_wkt(f"POLYGON ({rings})")])
    assert shapely.area(found).sum() == pytest.approx(area)
    assert shapely.is_valid(found).all()


def test_what_is_drawn_twice_is_burnt():
    crossed = shapely.MultiPolygon([shapely.box(0, 0, 3, 3), shapely.box(2, 2, 4, 4)])
    label = labels.rasterize(labels.polygons([crossed]), Affine.identity(), height=4, width=4)
    assert label.tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 1]]


@given(masks, st.data())
def test_a_coded_label_is_decoded(label, data):
    valid = data.draw(arrays(bool, label.shape))
    decoded, where = labels.decode(labels.encode(label.astype(np.uint8), valid))
    np.testing.assert_array_equal(where, valid)
    np.testing.assert_array_equal(decoded, label & valid)


@given(masks)
def test_burning_what_was_outlined_gives_the_label_back(building):
    height, width = building.shape
    block = polygonize.mask_block(Window(0, 0, width, height), np.zeros((height, width), np.uint8), building)
    outlines = [footprint.outline for footprint in polygonize.trace([block])]
    label = labels.rasterize(outlines, Affine.identity(), height=height, width=width)
    np.testing.assert_array_equal(label, building)


@given(arrays(np.uint8, (7, 9), elements=st.sampled_from([0, 1, 2, 3, 255])))
def test_counts_are_those_of_the_decoded_label(coded):
    label, valid = labels.decode(coded)
    assert labels.count_pixels(coded) == (valid.sum(), label.sum())
