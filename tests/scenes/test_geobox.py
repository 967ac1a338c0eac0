import numpy as np
import pytest
import shapely
from affine import Affine
from conftest import CRS, GSD, TRANSFORM, wrong_zone
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod, Transformer
from rasterio.windows import Window

from ocmlflow.errors import InputError
from ocmlflow.scenes import geobox
from ocmlflow.scenes.geobox import GeoBox


def test_gsd_is_measured_on_the_ground():
    # The scale of UTM is 0.9996 on the middle of a zone.
    own = GeoBox(CRS, TRANSFORM, 40, 40)
    assert geobox.gsd(own) == pytest.approx(GSD / 0.9996, rel=1e-4)
    # Far from it: 0.9996 / sqrt(1 - (cos lat * sin dlon)^2), on the sphere.
    scale = 0.9996 / np.sqrt(1 - (np.cos(np.radians(6.3)) * np.sin(np.radians(33 + 10.8))) ** 2)
    assert geobox.gsd(GeoBox("EPSG:32636", wrong_zone(), 40, 40)) == pytest.approx(GSD / scale, rel=0.01)
    # In degrees, at the equator and at 60 degrees north, where a degree of longitude is half as long.
    degree = 1e-6
    for lat, metres in ((0, 0.1109), (60, 0.1109 * np.sqrt(0.5))):
        own = GeoBox("EPSG:4326", Affine(degree, 0, 10, 0, -degree, lat), 2, 2)
        assert geobox.gsd(own) == pytest.approx(metres, rel=0.01)


def test_the_utm_grid_is_in_the_zone_of_the_ground():
    assert geobox.utm_grid(GeoBox("EPSG:32636", wrong_zone(), 40, 40), gsd=0.1).crs == "EPSG:32629"
    south = Affine(1e-6, 0, 39.2, 0, -1e-6, -6.8)
    assert geobox.utm_grid(GeoBox("EPSG:4326", south, 40, 40), gsd=0.1).crs == "EPSG:32737"


def test_a_transform_outside_its_crs_is_refused():
    with pytest.raises(InputError, match="lies outside its CRS"):
        geobox.utm_grid(GeoBox("EPSG:4326", Affine(1, 0, 500_000, 0, -1, 600_000), 9, 9), gsd=0.1)


@given(st.floats(0.02, 0.5), st.integers(1, 300), st.integers(1, 300), st.floats(0.02, 0.5))
def test_the_utm_grid_covers_the_scene_and_little_more(own_gsd, height, width, gsd):
    transform = Affine(own_gsd, 0, 500_123.4567, 0, -own_gsd, 619_876.543)
    target = geobox.utm_grid(GeoBox(CRS, transform, height, width), gsd=gsd)
    (left, top), (right, bottom) = target.transform @ (0, 0), target.transform @ (target.width, target.height)
    east, south = transform @ (width, height)
    slack = 1e-5
    assert left - slack <= transform.c < left + gsd + slack
    assert right - gsd - slack < east <= right + slack
    assert top - gsd - slack < transform.f <= top + slack
    assert bottom - slack <= south < bottom + gsd + slack
    assert np.isclose(left / gsd, round(left / gsd), atol=1e-3)


def test_outlines_are_in_degrees_around_their_pixels():
    own = GeoBox(CRS, TRANSFORM, 40, 40)
    outline = geobox.outline(own, Window(10, 20, 10, 10))
    area, _ = Geod(ellps="WGS84").geometry_area_perimeter(outline)
    assert abs(area) == pytest.approx((10 * GSD / 0.9996) ** 2, rel=0.001)
    assert geobox.outline(own, Window(0, 0, 40, 40)).covers(outline)


def test_outlines_across_180_degrees_are_cut_there():
    """As RFC 7946 asks: a part on each side, which together are the whole, and meet what lies there."""
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32760", always_xy=True).transform(180, -17)
    own = GeoBox("EPSG:32760", Affine(GSD, 0, x - 20, 0, -GSD, y), 40, 400)
    outline = geobox.outline(own, Window(0, 0, 400, 40))
    west, east = sorted(outline.geoms, key=lambda part: -part.bounds[0])
    assert (west.bounds[2], east.bounds[0]) == (180, -180)
    area = sum(abs(Geod(ellps="WGS84").geometry_area_perimeter(part)[0]) for part in outline.geoms)
    assert area == pytest.approx(400 * 40 * geobox.gsd(own) ** 2, rel=0.001)
    found = geobox.outlines(own, np.zeros(10, int), np.arange(0, 400, 40), size=40)
    assert sum(part.geom_type == "MultiPolygon" for part in found) == 1
    assert all(part.bounds[2] - part.bounds[0] < 0.001 for part in found if part.geom_type == "Polygon")
    assert shapely.symmetric_difference(shapely.union_all(found), outline).area < 1e-3 * outline.area
