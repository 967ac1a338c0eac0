import numpy as np
import pytest
from scipy import ndimage

from ocmlflow.chips import targets
from ocmlflow.prediction import separation

GSD = 0.1


def pair(*, wall: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Two houses of 6 x 8 m wall to wall as one mask, and the learned distance to their own edges."""
    numbers = np.zeros((100, 180), np.int32)
    numbers[20:80, 10:90] = 1
    numbers[20:80, 90:170] = 2 if wall else 1
    metres = np.zeros(numbers.shape)
    for number in (1, 2):
        metres = np.maximum(metres, ndimage.distance_transform_edt(numbers == number) * GSD)
    steps = np.rint(np.minimum(metres / targets.CLIP_M, 1) * separation.DISTANCE_STEPS)
    return numbers, steps.astype(np.uint8)


def test_houses_wall_to_wall_are_two_where_the_distance_is_learned():
    numbers, distance = pair()
    labels = separation.separate(numbers > 0, distance, gsd=GSD)
    assert len(np.unique(labels)) == 3
    assert labels[50, 40] != labels[50, 140]
    crossing = np.flatnonzero(np.diff(labels[50, 20:160])) + 20
    assert len(crossing) == 1
    assert abs(crossing[0] - 89) <= 1
    assert ((labels > 0) == (numbers > 0)).all()


def test_one_long_house_stays_one():
    numbers, distance = pair(wall=False)
    assert len(np.unique(separation.separate(numbers > 0, distance, gsd=GSD))) == 2


def test_without_learned_distance_a_neck_separates_and_a_straight_wall_does_not():
    rows, cols = np.ogrid[:120, :200]
    discs = ((rows - 60) ** 2 + (cols - 60) ** 2 < 45**2) | ((rows - 60) ** 2 + (cols - 140) ** 2 < 45**2)
    assert len(np.unique(separation.separate(discs, None, gsd=GSD))) == 3
    numbers, _ = pair()
    assert len(np.unique(separation.separate(numbers > 0, None, gsd=GSD))) == 2


def test_an_empty_mask_has_no_building():
    empty = np.zeros((20, 30), bool)
    labels = separation.separate(empty, None, gsd=GSD)
    assert labels.shape == empty.shape
    assert not labels.any()


def test_a_building_too_thin_for_a_top_is_kept():
    line = np.zeros((40, 40), bool)
    line[20, 5:30] = True
    labels = separation.smooth(separation.separate(line, np.zeros(line.shape, np.uint8), gsd=GSD), gsd=GSD)
    assert ((labels > 0) == line).all()


def test_smoothing_takes_teeth_off_and_keeps_the_area():
    teeth = np.zeros((100, 100), np.int32)
    teeth[20:80, 20:80] = 1
    teeth[18:20, 20:80:4] = 1
    smoothed = separation.smooth(teeth, gsd=GSD)
    assert smoothed[18, 30:70].max() == smoothed[18, 30:70].min()
    assert (smoothed > 0).sum() == pytest.approx((teeth > 0).sum(), rel=0.03)


def test_pieces_are_numbered_apart():
    labels = np.array([[1, 0, 1], [1, 2, 2]], np.int32)
    pieces = separation.connected(labels)
    assert pieces[0, 0] != pieces[0, 2]
    assert pieces[1, 1] == pieces[1, 2] != pieces[0, 0]
    assert pieces.dtype == np.int32


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_settling_hills_first_changes_no_cut(seed, learned, monkeypatch):
    rng = np.random.default_rng(seed)
    building = ndimage.gaussian_filter(rng.normal(size=(400, 400)), 12) > 0
    metres = ndimage.distance_transform_edt(building) * GSD + ndimage.gaussian_filter(rng.normal(size=(400, 400)), 3)
    steps = np.rint((metres / targets.CLIP_M).clip(0, 1) * separation.DISTANCE_STEPS).astype(np.uint8)
    distance = np.where(building, steps, 0).astype(np.uint8) if learned else None
    quick = separation.separate(building, distance, gsd=GSD)
    monkeypatch.setattr(separation, "LEVELS_M", (0.0,))  # all parts of several hills are flooded
    flooded = separation.separate(building, distance, gsd=GSD)
    pairs = np.unique(np.stack([quick, flooded]).reshape(2, -1), axis=1)
    assert pairs.shape[1] == len(np.unique(quick)) == len(np.unique(flooded)) > 10


def test_a_gap_of_a_few_pixels_between_two_houses_is_closed_and_an_alley_is_not():
    for gap, closed in ((2, True), (3, True), (8, False)):
        numbers = np.zeros((100, 180), np.int32)
        numbers[20:80, 10:90] = 1
        numbers[20:80, 90 + gap : 170] = 2
        row = separation.smooth(numbers, gsd=GSD)[50]
        assert set(row[89 : 91 + gap]) == ({1, 2} if closed else {0, 1, 2})
