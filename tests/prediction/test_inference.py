import numpy as np
import pytest
from conftest import bright, hole, noise
from hypothesis import given
from hypothesis import strategies as st

from ocmlflow.prediction import inference
from ocmlflow.scenes import windows
from ocmlflow.scenes.raster import Pixels

SIZE, MARGIN = 16, 3


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 4, 32]))
def test_images_of_any_size_are_filled_up_and_cut_again(height, width, multiple):
    def predict(images):
        assert images.shape[1] % multiple == images.shape[2] % multiple == 0
        assert images.shape[1] < height + multiple
        return bright(images)

    images = np.stack([noise(height, width), noise(height, width, seed=1)])
    np.testing.assert_array_equal(inference.padded(predict, multiple)(images), bright(images))


def scene(height: int = 50, width: int = 41):
    """A way to read a scene, the windows that were read, and its pixels."""
    image, valid = noise(height, width), hole(height, width)
    seen = []

    def read(window):
        seen.append(window)
        return Pixels(image[window.toslices()], valid[window.toslices()])

    return read, seen, image


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_tiles_add_up_to_the_whole_in_order_and_once(batch_size):
    read, seen, image = scene()
    tiles = windows.tiles(50, 41, size=SIZE, margin=MARGIN)
    found, times = np.full((50, 41), np.nan, np.float32), np.zeros((50, 41), int)
    order = []
    for predicted in inference.predict_tiles(bright, read, tiles, batch_size=batch_size):
        tile = predicted.tile
        assert predicted.probability.dtype == np.float32
        assert predicted.distance is None
        np.testing.assert_array_equal(predicted.valid, hole(50, 41)[tile.core.toslices()])
        found[tile.core.toslices()] = predicted.probability
        times[tile.core.toslices()] += 1
        order.append(tile)
    assert order == tiles
    assert seen == [tile.window for tile in tiles]
    assert (times == 1).all()
    shown = np.zeros((50, 41), bool)
    for tile in tiles:
        shown[tile.core.toslices()] = hole(50, 41)[tile.window.toslices()].any()
    np.testing.assert_array_equal(found, np.where(shown, bright(image)[..., 0], 0))


def test_windows_without_imagery_never_reach_the_network():
    image, valid = np.zeros((30, 60, 3), np.uint8), np.zeros((30, 60), bool)
    image[:, 40:], valid[:, 40:] = 200, True

    def predict(images):
        assert images.any(axis=(1, 2, 3)).all()
        return bright(images)

    tiles = windows.tiles(30, 60, size=SIZE, margin=0)
    read = {tile.window: Pixels(image[tile.window.toslices()], valid[tile.window.toslices()]) for tile in tiles}
    found = list(inference.predict_tiles(predict, read.__getitem__, tiles, batch_size=2))
    assert [one.tile for one in found] == tiles
    assert {float(one.probability.max()) > 0 for one in found if one.tile.window.col_off + SIZE <= 40} == {False}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_error_in_reading_reaches_the_caller(batch_size):
    def read(window):
        if window.row_off > 20:
            raise OSError("block 7 cannot be decoded")
        return Pixels(noise(SIZE, SIZE), np.ones((SIZE, SIZE), bool))

    tiles = windows.tiles(50, 50, size=SIZE, margin=0)
    with pytest.raises(OSError, match="block 7"):
        list(inference.predict_tiles(bright, read, tiles, batch_size=batch_size))


def test_no_tiles_give_nothing():
    assert list(inference.predict_tiles(bright, lambda window: None, [], batch_size=2)) == []


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.booleans())
def test_d4_sees_a_turned_image_as_it_sees_the_image(height, width, turns, flip):
    images = np.stack([noise(height, width), noise(height, width, seed=1)])

    def slanted(images):
        """A network that sees no two sides alike."""
        ramp = np.linspace(0, 0.5, images.shape[1] * images.shape[2]).reshape(1, *images.shape[1:3], 1)
        return (bright(images) * ramp).astype(np.float32)

    def turned(arrays):
        return np.rot90(arrays[:, :, ::-1] if flip else arrays, turns, axes=(1, 2))

    d4, flips = inference.averaged([slanted], "d4"), inference.averaged([slanted], "flips")
    np.testing.assert_allclose(d4(turned(images)), turned(d4(images)), atol=1e-6)
    np.testing.assert_allclose(flips(images[:, ::-1]), flips(images)[:, ::-1], atol=1e-6)


@pytest.mark.parametrize("tta", ["none", "flips", "d4"])
def test_an_ensemble_is_the_mean_of_its_members(tta):
    images = noise(6, 9)[np.newaxis]
    found = inference.averaged([bright, lambda x: bright(x) / 2], tta)(images)
    np.testing.assert_allclose(found, 0.75 * bright(images), atol=1e-6)
    assert found.dtype == np.float32


def four_channels(images: np.ndarray) -> np.ndarray:
    """A network that gives building, distance, core and touch."""
    return np.concatenate([bright(images) / divisor for divisor in (1, 2, 3, 4)], axis=-1)


@pytest.mark.parametrize("tta", ["none", "d4"])
def test_distance_comes_with_the_probability_if_every_member_gives_it(tta):
    images = noise(6, 9)[np.newaxis]
    new, old = inference.building_and_distance(four_channels), inference.building_and_distance(bright)
    both = inference.averaged([new, new], tta)(images)
    np.testing.assert_allclose(both, four_channels(images)[..., :2], atol=1e-6)
    for members in ([new, old], [old, new]):
        np.testing.assert_allclose(inference.averaged(members, tta)(images), bright(images), atol=1e-6)


def test_temperature_leaves_the_distance():
    images = noise(6, 9)[np.newaxis]
    predict = inference.building_and_distance(four_channels)
    found = inference.calibrated(predict, 2.0)(images)
    np.testing.assert_array_equal(found[..., 1], predict(images)[..., 1])
    assert not np.allclose(found[..., 0], predict(images)[..., 0])


def test_tiles_have_the_distance_of_their_core():
    read, _, image = scene()
    predict = inference.building_and_distance(four_channels)
    for predicted in inference.predict_tiles(
        predict, read, windows.tiles(50, 41, size=SIZE, margin=MARGIN), batch_size=3
    ):
        if hole(50, 41)[predicted.tile.window.toslices()].any():
            half = bright(image)[predicted.tile.core.toslices()][..., 0] / 2
            np.testing.assert_allclose(predicted.distance, half, atol=1e-6)


def test_temperature_divides_logits():
    probability = np.array([0, 0.2, 0.5, 0.9, 1], np.float32).reshape(1, 1, 5, 1)
    found = inference.calibrated(lambda _: probability, 2.0)(np.zeros((1, 1, 5, 3), np.uint8))
    # The odds 1 to 4 become 1 to 2, those of 9 to 1 become 3 to 1.
    np.testing.assert_allclose(found[0, 0, :, 0], [0, 1 / 3, 0.5, 0.75, 1], atol=1e-3)
    assert inference.calibrated(bright, 1.0) is bright


def test_windows_of_two_sizes_make_one_batch():
    read, _, image = scene()
    tiles = windows.tiles(50, 41, size=SIZE, margin=4, multiple=4)
    assert len({(tile.window.height, tile.window.width) for tile in tiles}) > 1
    found = np.zeros((50, 41), np.float32)
    for predicted in inference.predict_tiles(bright, read, tiles, batch_size=100):
        found[predicted.tile.core.toslices()] = predicted.probability
    np.testing.assert_array_equal(found[20:], bright(image)[20:, :, 0])
