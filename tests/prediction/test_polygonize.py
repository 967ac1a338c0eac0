from collections.abc import Iterator

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from ocmlflow.prediction import polygonize
from ocmlflow.prediction.polygonize import LabelBlock, PredictedFootprint
from ocmlflow.scenes import windows

masks = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def trace(building: np.ndarray, percents: np.ndarray, *, size: int) -> list[PredictedFootprint]:
    """Footprints of a mask that is traced in blocks."""
    return list(polygonize.trace(blocks(building, percents, size)))


def blocks(building: np.ndarray, percents: np.ndarray, size: int) -> Iterator[LabelBlock]:
    for window in windows.blocks(*building.shape, size=size):
        yield polygonize.mask_block(window, percents[window.toslices()], building[window.toslices()])


def key(footprint: PredictedFootprint) -> tuple:
    return footprint.outline.bounds, footprint.outline.area, round(footprint.probability, 9)


@given(masks, st.integers(1, 13), st.integers(0, 99))
def test_traced_in_blocks_is_traced_as_a_whole(building, size, seed):
    percents = np.random.default_rng(seed).integers(0, 101, building.shape, np.uint8)
    whole, joined = trace(building, percents, size=12), trace(building, percents, size=size)
    assert len(joined) == ndimage.label(building)[1]
    assert sorted(map(key, joined)) == sorted(map(key, whole))
    for a, b in zip(sorted(joined, key=key), sorted(whole, key=key), strict=True):
        assert a.outline.is_valid
        assert a.outline.equals(b.outline)
        assert len(a.outline.exterior.coords) == len(b.outline.simplify(0).exterior.coords)


@given(masks, st.integers(1, 13))
def test_areas_and_mean_probabilities_are_those_of_the_pixels(building, size):
    percents = np.where(building, 75, 3).astype(np.uint8)
    found = trace(building, percents, size=size)
    assert sum(f.outline.area for f in found) == building.sum()
    assert {f.probability for f in found} <= {0.75}
    labels = ndimage.label(building)[0]
    first_of_each = [np.argwhere(labels == label)[0].tolist() for label in range(1, labels.max() + 1)]
    assert sorted(list(f.first_pixel) for f in found) == sorted(first_of_each)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_a_courtyard_stays_open(size):
    building = np.zeros((8, 8), bool)
    building[1:7, 1:7] = True
    building[3:5, 3:5] = False
    (found,) = trace(building, building * np.uint8(60), size=size)
    assert found.outline.equals(shapely.box(1, 1, 7, 7) - shapely.box(3, 3, 5, 5))
    assert found.probability == 0.6


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_buildings_that_meet_in_a_corner_stay_apart(size):
    building = np.kron(np.eye(2, dtype=bool), np.ones((2, 2), bool))
    found = trace(building, building * np.uint8(50), size=size)
    assert sorted(f.outline.bounds for f in found) == [(0, 0, 2, 2), (2, 2, 4, 4)]


def test_a_building_is_handed_out_once_nothing_can_be_added_to_it():
    """So that memory is bounded: of a column of roofs, each is there when the blocks below it are asked for."""
    building = np.zeros((64, 16), bool)
    building[2:64:8, 5:12] = building[3:64:8, 5:12] = True
    seen = []

    def counted():
        for block in blocks(building, building * np.uint8(50), 8):
            seen.append(int(block.window.row_off))
            yield block

    for number, footprint in enumerate(polygonize.trace(counted())):
        assert footprint.outline.bounds == (5, 8 * number + 2, 12, 8 * number + 4)
        assert seen[-1] <= 8 * (number + 1)
