import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window
from scipy import ndimage

from ocmlflow.chips import targets
from ocmlflow.prediction import instances, polygonize, separation
from ocmlflow.prediction.instances import Evidence

GSD = 0.1


def terrace(seed: int, *, side: int = 700, long: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of houses that touch, (side, side), and the distance to their own edges; one house is a long bar."""
    rng = np.random.default_rng(seed)
    numbers = np.zeros((side, side), np.int32)
    step = 70
    for row in range(0, side - step, step):
        for col in range(0, side - step, step):
            if rng.random() < 0.7:
                height, width = rng.integers(40, step + 1, 2)
                numbers[row : row + height, col : col + width] = numbers.max() + 1
    if long:
        numbers[210:250, 20 : side - 20] = numbers.max() + 1
    is_edge = np.zeros(numbers.shape, bool)
    for axis in (0, 1):
        for shift in (-1, 1):
            is_edge |= np.roll(numbers, shift, axis) != numbers
    metres = ndimage.distance_transform_edt(~is_edge) * GSD
    noisy = np.minimum(metres / targets.CLIP_M, 1) * separation.DISTANCE_STEPS + rng.normal(0, 8, numbers.shape)
    return numbers, np.where(numbers > 0, noisy, 0).clip(0, 250).astype(np.uint8)


def found(numbers, distance, monkeypatch, *, block: int, separate: bool = True) -> list[tuple]:
    """Bounds and areas of the buildings that are found in blocks of a size."""
    height, width = numbers.shape

    def read(window: Window) -> Evidence:
        part = window.toslices()
        percents = np.where(numbers[part] > 0, 90, 3).astype(np.uint8)
        return Evidence(percents, np.ones(percents.shape, bool), None if distance is None else distance[part])

    with monkeypatch.context() as patch:
        patch.setattr(instances, "BLOCK", block)
        labels = instances.blocks(read, height, width, gsd=GSD, threshold=50, separate=separate)
        return sorted((f.outline.bounds, f.outline.area, round(f.probability, 9)) for f in polygonize.trace(labels))


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 999), block=st.integers(130, 500))
def test_blocks_of_any_side_find_the_same_buildings(seed, block):
    numbers, distance = terrace(seed)
    with pytest.MonkeyPatch.context() as patch:
        assert found(numbers, distance, patch, block=block) == found(numbers, distance, patch, block=1000)


def test_without_learned_distance_blocks_find_nearly_the_same(monkeypatch):
    # How far a long bar is cut depends on its highest hill, which a block need not see.
    numbers, _ = terrace(0)
    blockwise, whole = (found(numbers, None, monkeypatch, block=block) for block in (130, 1000))
    assert len(set(blockwise) ^ set(whole)) <= 3
    assert sum(area for _, area, _ in blockwise) == pytest.approx(sum(area for _, area, _ in whole))


def test_every_house_of_a_terrace_is_found(monkeypatch):
    numbers, distance = terrace(0, long=False)  # a bar across leaves slivers of houses
    count = len(np.unique(numbers)) - 1
    assert len(found(numbers, distance, monkeypatch, block=300)) == pytest.approx(count, abs=1)


def test_without_separation_what_touches_is_one(monkeypatch):
    numbers, distance = terrace(0)
    assert len(found(numbers, distance, monkeypatch, block=300, separate=False)) == ndimage.label(numbers > 0)[1]


def test_ground_without_imagery_has_no_building():
    evidence = Evidence(np.full((50, 50), 90, np.uint8), np.zeros((50, 50), bool), None)
    [block] = instances.blocks(lambda window: evidence, 50, 50, gsd=GSD, threshold=50, separate=True)
    assert not block.labels.any()
