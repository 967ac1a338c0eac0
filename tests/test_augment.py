import keras
import numpy as np
import pytest
from scipy import ndimage

from ocmlflow.augment import augment, context

CROP = 32
SIDE = context(CROP)


def augmented(coded: np.ndarray, *, seed: int = 0) -> np.ndarray:
    return keras.ops.convert_to_numpy(augment(coded, keras.random.SeedGenerator(seed), crop=CROP))


def painted(label: np.ndarray) -> np.ndarray:
    """(height, width, 4) uint8: the image is white where the label is 1, grey where it is 255, else black."""
    image = np.choose(np.searchsorted([0, 1, 255], label), [40, 200, 120])
    return np.stack([image] * 3 + [label], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("side", [CROP, SIDE])
def test_what_comes_out_is_a_crop_with_whole_labels(side):
    label = np.random.default_rng(0).choice([0, 1, 255], (4, side, side))
    found = augmented(np.stack([painted(part) for part in label]))
    assert found.shape == (4, CROP, CROP, 4)
    assert found.dtype == np.float32
    assert 0 <= found[..., :3].min() <= found[..., :3].max() <= 255
    assert set(np.unique(found[..., 3])) == {0, 1, 255}


def test_a_roof_moves_with_its_label():
    label = np.zeros((SIDE, SIDE), np.uint8)
    label[8:30, 10:22] = 1
    label[20:40, 30:40] = 1
    for chip in augmented(np.stack([painted(label)] * 12)):
        drawn, brightness = chip[..., 3] == 1, chip[..., :3].mean(axis=-1)
        bright = brightness > (brightness.min() + brightness.max()) / 2
        assert 0 < drawn.sum() < drawn.size
        inside, outside = (ndimage.binary_erosion(where, border_value=1) for where in (drawn, ~drawn))
        assert bright[inside].all()
        assert not bright[outside].any()


def test_the_context_keeps_borders_out_of_sight():
    ground = np.stack([painted(np.zeros((SIDE, SIDE), np.uint8))] * 64)
    assert set(np.unique(augmented(ground)[..., 3])) == {0}
    assert 255 in augmented(ground[:, :CROP, :CROP])[..., 3]


def test_what_is_not_valid_stays_so():
    nothing = np.full((2, SIDE, SIDE, 4), 255, np.uint8)
    assert (augmented(nothing)[..., 3] == 255).all()


def test_the_seed_decides_and_every_draw_is_another():
    label = np.random.default_rng(0).choice([0, 1], (2, SIDE, SIDE))
    coded = np.stack([painted(part) for part in label])
    np.testing.assert_array_equal(augmented(coded), augmented(coded))
    assert not np.array_equal(augmented(coded), augmented(coded, seed=1))
    seed = keras.random.SeedGenerator(0)
    first, second = (keras.ops.convert_to_numpy(augment(coded, seed, crop=CROP)) for _ in range(2))
    assert not np.array_equal(first, second)
    twins = augmented(np.stack([coded[0], coded[0]]))
    assert not np.array_equal(twins[0], twins[1])


@pytest.mark.parametrize("crop", [32, 64, 256])
def test_context_is_a_little_more_than_the_crop(crop):
    assert crop < context(crop) < 1.5 * crop
