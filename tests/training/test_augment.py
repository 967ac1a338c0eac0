import keras
import numpy as np
import pytest
from scipy import ndimage

from ocmlflow.training import augment as augmentation
from ocmlflow.training.augment import augment, context_side

CROP = 32
ZOOM = 1.18
SIDE = context_side(CROP, strength=1, zoom=ZOOM)


def augmented(coded: np.ndarray, *, seed: int = 0, strength: float = 1) -> np.ndarray:
    """Image and label (batch, CROP, CROP, 4) float32 made of those of a (batch, side, side, 4) uint8 batch."""
    return made(coded, keras.random.SeedGenerator(seed), strength=strength)


def made(coded: np.ndarray, seed: keras.random.SeedGenerator, *, strength: float = 1, zoom: float = ZOOM) -> np.ndarray:
    parts = augment(coded[..., :3], coded[..., 3:], seed, crop=CROP, strength=strength, zoom=zoom)
    return np.concatenate([keras.ops.convert_to_numpy(part) for part in parts], axis=-1)


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
    for chip in augmented(np.stack([painted(label)] * 24)):
        brightness = chip[..., :3].mean(axis=-1)
        # Light, blur and noise are other for each chip: three pixels from outlines, halfway tells roof from ground.
        roof, ground = (ndimage.binary_erosion(chip[..., 3] == n, iterations=3, border_value=1) for n in (1, 0))
        assert roof.any()
        assert brightness[roof].min() > (brightness[roof].mean() + brightness[ground].mean()) / 2
        assert brightness[ground].max() < (brightness[roof].mean() + brightness[ground].mean()) / 2


def test_holes_are_of_one_colour_and_not_valid(monkeypatch):
    monkeypatch.setattr(augmentation, "RARE_SHARE", 1)
    draw = np.random.default_rng(0)
    coded = np.concatenate([draw.integers(0, 256, (8, SIDE, SIDE, 3)), draw.integers(0, 2, (8, SIDE, SIDE, 1))], -1)
    for chip in augmented(coded.astype(np.uint8)):
        hole = chip[..., 3] == 255
        assert 0 < hole.sum() <= (augmentation.MAX_HOLE * CROP + 1) ** 2
        assert np.ptp(chip[hole][:, :3], axis=0).max() < 1e-3
        assert hole.any(axis=0).sum() * hole.any(axis=1).sum() == hole.sum()  # a rectangle


def test_without_strength_and_zoom_the_eight_symmetries_are_left():
    chip = np.random.default_rng(0).integers(0, 256, (CROP, CROP, 4)).astype(np.uint8)
    views = [np.rot90(side, turns) for side in (chip, chip[:, ::-1]) for turns in range(4)]
    found = made(np.stack([chip] * 64), keras.random.SeedGenerator(0), strength=0, zoom=1)
    met = {next(n for n, view in enumerate(views) if np.allclose(view, one, atol=0.05)) for one in found}
    assert met == set(range(8))


def test_the_context_keeps_borders_out_of_sight(monkeypatch):
    monkeypatch.setattr(augmentation, "RARE_SHARE", 0)  # no holes
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
    first, second = (made(coded, seed) for _ in range(2))
    assert not np.array_equal(first, second)
    twins = augmented(np.stack([coded[0], coded[0]]))
    assert not np.array_equal(twins[0], twins[1])


@pytest.mark.parametrize("crop", [32, 64, 256])
def test_context_is_a_little_more_than_the_crop(crop):
    assert context_side(crop, strength=0, zoom=1) == crop < context_side(crop, strength=1, zoom=1.18) < 1.6 * crop
