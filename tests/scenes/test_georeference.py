import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import CRS, GSD, TRANSFORM, noise, write_image
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from ocmlflow.errors import InputError
from ocmlflow.scenes import georeference, raster
from ocmlflow.scenes.geobox import GeoBox


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"crs": CRS}, "has a CRS but no transform, .*world file.* gdal_edit.py -a_ullr"),
        ({"transform": TRANSFORM}, "has a transform, .* but no CRS.* gdal_edit.py -a_srs"),
        ({"crs": CRS, "gcps": True}, "placed by 4 ground control points alone.* gdalwarp -r bilinear -t_srs"),
        ({"rpcs": True}, "placed by RPCs .* gdalwarp -rpc"),
        ({"crs": CRS, "transform": Affine(0, 0, 500_000, 0, 0, 620_000)}, "pixels have no size.* gdal_edit.py -a_ullr"),
    ],
)
def test_half_a_place_is_refused_and_no_chip_without_one(tmp_path, place, words):
    if "gcps" in place:
        corners = [(row, col) for row in (0, 30) for col in (0, 30)]
        place["gcps"] = [GroundControlPoint(row, col, *(TRANSFORM @ (col, row))) for row, col in corners]
    if "rpcs" in place:
        coefficients = [1.0] + 19 * [0.0]
        numbers = dict.fromkeys(("height_off", "lat_off", "line_off", "long_off", "samp_off"), 1.0)
        numbers |= dict.fromkeys(("height_scale", "lat_scale", "line_scale", "long_scale", "samp_scale"), 1.0)
        terms = ("line_num_coeff", "line_den_coeff", "samp_num_coeff", "samp_den_coeff")
        place["rpcs"] = RPC(**numbers, **dict.fromkeys(terms, coefficients))
    path = tmp_path / "half.tif"
    with rasterio.open(path, "w", driver="GTiff", height=30, width=30, count=3, dtype="uint8", **place) as file:
        file.write(np.moveaxis(noise(30, 30), -1, 0))
    for gsd in (None, GSD):
        with pytest.raises(InputError, match=rf"half\.tif .*{words}"), raster.open_scene(str(path), gsd=gsd):
            pass


@pytest.mark.parametrize(
    ("pixel_m", "words"),
    [
        (0.001, "has pixels of 0.001 m .*finer than the 0.01 m"),
        (0.0099999, None),
        (0.1, None),
        (2.0, None),
        (2.1, "has pixels of 2.1 m, over 20 times the 0.1 m of the chips"),
        (10.0, "has pixels of 10 m, over 20 times the 0.1 m of the chips"),
    ],
)
def test_imagery_of_no_use_for_the_resolution_is_refused(pixel_m, words):
    own = GeoBox(CRS, Affine(pixel_m * 0.9996, 0, 500_000, 0, -pixel_m * 0.9996, 620_000), 300, 300)
    if words is None:
        georeference.check_resolution(own, "a.tif", gsd=0.1, seen_by="the chips")
    else:
        with pytest.raises(InputError, match=rf"a\.tif {words}"):
            georeference.check_resolution(own, "a.tif", gsd=0.1, seen_by="the chips")


def test_only_what_says_nothing_of_its_place_is_a_chip(tmp_path):
    href = write_image(tmp_path / "chip.tif", noise(30, 30), crs=None)
    with raster.open_scene(href, gsd=GSD) as (image, own):
        assert not georeference.is_georeferenced(image.dataset)
        assert (own.height, own.width) == (30, 30)
