import numpy as np
import pytest
import rasterio
from conftest import CRS, TRANSFORM, noise, room_for
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio._err import CPLE_BaseError
from rasterio.enums import Resampling
from rio_cogeo.cogeo import cog_validate

from ocmlflow.scenes import geotiff
from ocmlflow.scenes.geobox import GeoBox


@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_a_written_raster_is_read_back(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "written.tif"
    height, width = values.shape
    with geotiff.create(path, None, height=height, width=width, dtype="uint8", nodata=None) as out:
        out.write(values, 1)
    with geotiff.open_written(path) as file:
        np.testing.assert_array_equal(file.read(1), values)


@pytest.mark.parametrize(("height", "width"), [(20, 30), (530, 700)])
def test_cogs_are_valid_and_keep_their_pixels(tmp_path, height, width):
    values = noise(height, width)[..., 0]
    values[:5] = 255
    plain, cog = tmp_path / "plain.tif", tmp_path / "cog.tif"
    own = GeoBox(CRS, TRANSFORM, height, width)
    with geotiff.create(plain, own, height=height, width=width, dtype="uint8", nodata=255) as out:
        out.write(values, 1)
    geotiff.write_cog(plain, cog, overviews=Resampling.nearest)
    assert cog_validate(cog, strict=True, quiet=True) == (True, [], [])
    with rasterio.open(cog) as file:
        np.testing.assert_array_equal(file.read(1), values)
        assert (file.crs, file.transform, file.nodata) == (rasterio.CRS.from_string(CRS), TRANSFORM, 255)


@pytest.mark.parametrize("lost", [1, 100, 3_000, 30_000, 200_000])
def test_a_cog_on_a_full_disk_is_an_error(tmp_path, lost):
    values = noise(700, 1100)[..., 0]
    plain, cog = tmp_path / "plain.tif", tmp_path / "cog.tif"
    own = GeoBox(CRS, TRANSFORM, 700, 1100)
    with geotiff.create(plain, own, height=700, width=1100, dtype="uint8", nodata=255) as out:
        out.write(values, 1)
    geotiff.write_cog(plain, cog, overviews=Resampling.nearest)
    size = cog.stat().st_size
    cog.unlink()
    with room_for(size - lost), pytest.raises((OSError, CPLE_BaseError)):
        geotiff.write_cog(plain, cog, overviews=Resampling.nearest)
