import numpy as np
import pytest
from conftest import noise
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window

from ocmlflow.errors import InputError
from ocmlflow.scenes import partial_read
from ocmlflow.scenes.raster import Pixels


@given(st.integers(1, 700), st.integers(1, 500), st.data())
def test_everything_but_the_surroundings_of_damage_is_read(height, width, data):
    broken = [(data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))) for _ in range(2)]
    image, valid = noise(height, width), np.ones((height, width), bool)

    def read(window: Window) -> Pixels:
        rows, cols = window.toranges()
        if any(rows[0] <= row < rows[1] and cols[0] <= col < cols[1] for row, col in broken):
            raise InputError("cannot read image")
        return Pixels(image[window.toslices()], valid[window.toslices()])

    pixels, unreadable = partial_read.read_pixels(read, Window(0, 0, width, height))
    lost = np.zeros((height, width), bool)
    for window in unreadable:
        assert max(window.height, window.width) <= partial_read.SMALLEST_PX
        lost[window.toslices()] = True
    assert all(lost[at] for at in broken)
    assert len(unreadable) <= 2
    np.testing.assert_array_equal(pixels.valid, ~lost)
    np.testing.assert_array_equal(pixels.image, np.where(lost[..., np.newaxis], 0, image))


def test_other_errors_are_not_caught():
    def read(window):
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        partial_read.read_pixels(read, Window(0, 0, 5, 5))
