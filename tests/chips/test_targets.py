import numpy as np
import pytest
import shapely
from affine import Affine
from conftest import distance_m
from hypothesis import given
from hypothesis import strategies as st

from ocmlflow.chips import labels, targets

GSD = 0.1
TRANSFORM = Affine(GSD, 0, 500, 0, -GSD, 900)


def box(left: float, top: float, right: float, bottom: float):
    """A footprint by metres right of and below the first pixel."""
    return shapely.box(500 + left, 900 - bottom, 500 + right, 900 - top)


def drawn(footprints, *, height: int = 120, width: int = 200, top: int = 0, left: int = 0) -> np.ndarray:
    """Targets of a window of the ground."""
    transform = TRANSFORM @ Affine.translation(left, top)
    return targets.draw(footprints, transform, height=height, width=width, gsd=GSD)


def test_a_wall_that_two_share_has_distance_nought_on_both_sides():
    target = drawn([box(2, 2, 8, 10), box(8, 2, 14, 10)])
    metres = distance_m(target)
    np.testing.assert_allclose(metres[60, 70:90], np.minimum(np.abs(np.arange(70, 90) + 0.5 - 80) * GSD, 2), atol=0.03)
    assert metres[60, 50] == pytest.approx(2)
    assert not metres[10].any()


def test_core_and_touch():
    target = drawn([box(2, 2, 8, 10), box(8.6, 2, 14, 10)])
    is_core, is_touch = target & targets.CORE > 0, target & targets.TOUCH > 0
    assert is_core[60, 26:75].all()
    assert not is_core[60, 20:24].any()
    assert is_touch[60, 81:85].all()  # 0.6 m apart: the ground between, as far as it is within 0.5 m of both
    assert not is_touch[60, 30:79].any()
    assert not (is_core & is_touch).any()


def test_a_narrow_building_has_a_core_too():
    target = drawn([box(2, 2, 12, 2.8)])
    assert (target[:, 70] & targets.CORE > 0).sum() == 6  # 0.8 m wide: deeper than 0.1 m


def test_of_overlapping_footprints_the_smaller_one_is_on_top():
    compound, house = box(1, 1, 18, 11), box(4, 4, 8, 8)
    for order in ([compound, house], [house, compound]):
        metres = distance_m(drawn(order))
        assert metres[60, 41] == pytest.approx(0.15, abs=0.05)
        assert metres[60, 38] == pytest.approx(2)


def test_ground_without_footprints_is_blank():
    assert not drawn([]).any()
    assert not drawn([box(50, 50, 60, 60)]).any()


@given(st.integers(0, 9999), st.integers(0, 100), st.integers(0, 60), st.integers(20, 90))
def test_a_window_is_part_of_the_whole(seed, left, top, side):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-2, 18, (12, 2))
    sizes = rng.uniform(0.4, 7, (12, 2))
    footprints = np.array(
        [
            shapely.affinity.rotate(box(x, y, x + w, y + h), angle)
            for (x, y), (w, h), angle in zip(corners, sizes, rng.uniform(0, 90, 12), strict=True)
        ]
    )
    whole = drawn(footprints, height=160, width=200)
    part = drawn(footprints, height=side, width=side, top=top, left=left)
    inside = whole[top : top + side, left : left + side]
    np.testing.assert_array_equal(part[: inside.shape[0], : inside.shape[1]], inside)


@given(st.integers(0, 9999))
def test_distance_lies_where_the_label_is(seed):
    rng = np.random.default_rng(seed)
    footprints = [box(x, y, x + w, y + h) for x, y, w, h in rng.uniform(0.3, 12, (8, 4))]
    target = drawn(footprints)
    label = labels.rasterize(footprints, TRANSFORM, height=120, width=200)
    np.testing.assert_array_equal(target & targets.STEPS > 0, label > 0)
    assert not (target & targets.CORE)[label == 0].any()
