import numpy as np
import pytest
from conftest import GSD, noise, write_image
from rasterio.windows import Window

from ocmlflow.errors import InputError
from ocmlflow.scenes import geobox, raster, resample, stretching

RGB = noise(40, 50)
"""Values of 20 to 89."""


def seen(href: str, stretch: str | None, *, warped: bool = False) -> np.ndarray:
    with raster.open_scene(href, stretch=stretching.parse(stretch)) as (image, own):
        target = geobox.utm_grid(own, gsd=GSD)
        with (resample.warp_reader if warped else resample.window_reader)(image, own, target) as read:
            return read(Window(0, 0, target.width, target.height)).image


@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize(
    ("kind", "how"),
    [("uint16", "alpha"), ("uint16", "mask"), ("int16", "mask"), ("float32", "mask"), ("float32", "nodata")],
)
def test_values_of_other_types_become_those_of_8_bits(tmp_path, kind, how, warped):
    href = write_image(tmp_path / "a.tif", (RGB * 10.0).astype(kind), how=how)
    np.testing.assert_array_equal(seen(href, "0,2550", warped=warped), RGB)


def test_percentiles_are_those_of_the_scene(tmp_path):
    href = write_image(tmp_path / "a.tif", RGB.astype(np.uint16) * 10)
    low, high = np.percentile(RGB.astype(float) * 10, (2, 98))
    expected = ((RGB * 10.0 - low) * 255 / (high - low)).clip(0, 255)
    np.testing.assert_allclose(seen(href, "2%,98%"), expected, atol=1)


def test_without_a_stretch_the_refusal_names_the_values_that_would_do(tmp_path):
    href = write_image(tmp_path / "a.tif", RGB.astype(np.uint16) * 10)
    with pytest.raises(
        InputError, match=r"Give stretch=2\d\d,8\d\d .*gdal_translate -ot Byte -scale 2\d\d 8\d\d 0 255"
    ):
        seen(href, None)


def test_images_of_8_bits_stay_as_they_are(tmp_path):
    np.testing.assert_array_equal(seen(write_image(tmp_path / "a.tif", RGB), "0,4095"), RGB)
