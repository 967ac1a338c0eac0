from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from conftest import CRS, GSD, NODATA, TRANSFORM, hole, noise, pixels, room_for, write_image
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pyproj import Geod, Transformer
from rasterio._err import CPLE_BaseError
from rasterio.enums import Resampling
from rasterio.windows import Window
from rio_cogeo.cogeo import cog_validate

from ocmlflow.errors import InputError
from ocmlflow.scenes import geobox, geotiff, raster
from ocmlflow.scenes.geobox import GeoBox

MONROVIA = -10.8, 6.3  # where two scenes of the challenge are filed in zone 36 in place of 29


def wrong_zone(*, gsd: float = GSD, size: int = 40) -> Affine:
    """Transform, in EPSG:32636, of a square of pixels around Monrovia."""
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32636", always_xy=True).transform(*MONROVIA)
    return Affine(gsd, 0, x - gsd * size / 2, 0, -gsd, y + gsd * size / 2)


def own_grid(href: str) -> GeoBox:
    with raster.open_scene(href, gsd=GSD) as (_, own):
        return own


def test_valid_is_the_same_however_the_file_says_it(tmp_path, how):
    image, valid = noise(30, 40), hole(30, 40)
    found = pixels(write_image(tmp_path / "a.tif", image, valid, how=how))
    np.testing.assert_array_equal(found.valid, valid)
    np.testing.assert_array_equal(found.image, np.where(valid[..., np.newaxis], image, 0))


def test_black_and_one_band_of_the_nodata_value_are_imagery(tmp_path, how):
    image = noise(20, 20)
    image[4:8, 4:8] = 0
    image[12:16, 12:16, 0] = NODATA
    href = write_image(tmp_path / "a.tif", image, hole(20, 20), how=how)
    for target in (None, own_grid(href)):
        found = pixels(href, target)
        np.testing.assert_array_equal(found.valid, hole(20, 20))
        np.testing.assert_array_equal(found.image[found.valid], image[found.valid])


def test_an_image_that_says_nothing_is_valid_all_over(tmp_path):
    href = write_image(tmp_path / "a.tif", noise(9, 9), how="nothing")
    assert pixels(href).valid.all()
    assert pixels(href, own_grid(href)).valid.all()


def test_lossy_alpha_is_imagery_above_127(tmp_path):
    alphas = np.array([0, 1, 126, 127, 128, 200, 255], np.uint8)
    image = np.full((1, len(alphas), 3), 77, np.uint8)
    href = write_image(tmp_path / "a.tif", np.concatenate([image, alphas[np.newaxis, :, np.newaxis]], -1), how="as is")
    with rasterio.open(href, "r+") as file:
        file.colorinterp = [*file.colorinterp[:3], rasterio.enums.ColorInterp.alpha]
    for target in (None, own_grid(href)):
        found = pixels(href, target)
        assert found.valid[0].tolist() == [False] * 4 + [True] * 3
        assert (found.image[0] == 77).all(axis=-1).tolist() == [False] * 4 + [True] * 3


@given(st.integers(-12, 30), st.integers(-12, 30), st.integers(1, 50))
def test_a_window_is_read_as_it_is_inside_and_not_valid_outside(tmp_path_factory, row, col, size):
    folder = tmp_path_factory.getbasetemp() / "padded"
    image, valid = noise(30, 20), hole(30, 20)
    href = str(folder / "a.tif") if folder.exists() else write_image(folder / "a.tif", image, valid)
    if row + size <= 0 or col + size <= 0 or col >= 20 or row >= 30:
        return  # beside the image
    with raster.open_scene(href) as (dataset, _):
        found = raster.read_padded(dataset, Window(col, row, size, size))
    around = ((50, 50), (50, 50))
    at = np.s_[row + 50 : row + 50 + size, col + 50 : col + 50 + size]
    np.testing.assert_array_equal(found.valid, np.pad(valid, around)[at])
    np.testing.assert_array_equal(
        found.image, np.pad(np.where(valid[..., np.newaxis], image, 0), (*around, (0, 0)))[at]
    )


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


def test_the_ground_grid_lies_in_the_zone_of_the_ground():
    assert geobox.utm_grid(GeoBox("EPSG:32636", wrong_zone(), 40, 40), gsd=0.1).crs == "EPSG:32629"
    south = Affine(1e-6, 0, 39.2, 0, -1e-6, -6.8)
    assert geobox.utm_grid(GeoBox("EPSG:4326", south, 40, 40), gsd=0.1).crs == "EPSG:32737"


def test_a_transform_outside_its_crs_is_refused():
    with pytest.raises(InputError, match="lies outside its CRS"):
        geobox.utm_grid(GeoBox("EPSG:4326", Affine(1, 0, 500_000, 0, -1, 600_000), 9, 9), gsd=0.1)


STEP = GSD / 111_320  # in degrees


@pytest.mark.parametrize(
    ("crs", "transform", "why"),
    [
        ('LOCAL_CS["Local Coordinates",UNIT["metre",1]]', TRANSFORM, "Local Coordinates, does not say where"),
        ("EPSG:4326", Affine(1, 0, 500_000, 0, -1, 600_000), "lies outside its CRS, WGS 84"),
        ("EPSG:4326", Affine(STEP, 0, 200, 0, -STEP, 0.5), "edge of its CRS, WGS 84; .* -t_srs EPSG:32604"),
        ("EPSG:4326", Affine(STEP, 0, -180 - 5 * STEP, 0, -STEP, 0.5), "edge of its CRS, WGS 84; .* -t_srs EPSG:32601"),
        ("EPSG:3857", Affine(GSD, 0, 20_037_507, 0, -GSD, 0), "edge of its CRS, WGS 84 / Pseudo-Mercator"),
    ],
    ids=["local", "metres", "200 degrees", "across 180 degrees", "across 180 degrees in metres"],
)
def test_what_has_no_place_on_earth_is_refused_by_name(tmp_path, crs, transform, why):
    href = write_image(tmp_path / "lost.tif", noise(30, 40), crs=crs, transform=transform)
    with (
        pytest.raises(InputError, match=rf"lost\.tif has no valid place on earth: .*{why}"),
        raster.open_scene(href, gsd=GSD),
    ):
        pass


def test_a_transform_without_a_crs_is_refused_by_name(tmp_path):
    """And not taken for a chip of the challenge, which has neither, by which its resolution would be lost."""
    href = write_image(tmp_path / "world.tif", noise(8, 9), crs=None)
    (tmp_path / "world.tfw").write_text("0.1\n0\n0\n-0.1\n500000\n620000\n")
    with (
        pytest.raises(InputError, match=r"world\.tif has a transform, .* but no CRS"),
        raster.open_scene(href, gsd=GSD),
    ):
        pass
    (tmp_path / "world.tfw").write_text("1\n0\n0\n-1\n0.5\n-0.5\n")  # pixels counted downwards are no place
    with raster.open_scene(href, gsd=GSD) as (dataset, _):
        assert not raster.is_georeferenced(dataset)


@given(st.floats(0.02, 0.5), st.integers(1, 300), st.integers(1, 300), st.floats(0.02, 0.5))
def test_the_ground_grid_covers_the_scene_and_little_more(own_gsd, height, width, gsd):
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


def test_warping_to_the_same_grid_changes_nothing(tmp_path, how):
    href = write_image(tmp_path / "a.tif", noise(30, 40), hole(30, 40), how=how)
    own, warped = pixels(href), pixels(href, own_grid(href))
    np.testing.assert_array_equal(warped.valid, own.valid)
    np.testing.assert_array_equal(warped.image, own.image)
    target = geobox.utm_grid(own_grid(href), gsd=GSD)
    assert (target.height, target.width) == (30, 40)
    np.testing.assert_array_equal(pixels(href, target).image, own.image)


def test_larger_pixels_are_averages(tmp_path, how):
    board = np.indices((40, 40)).sum(axis=0) % 2 * 200 + 20
    href = write_image(tmp_path / "a.tif", np.stack([board] * 3, -1).astype(np.uint8), how=how)
    found = pixels(href, geobox.utm_grid(own_grid(href), gsd=2 * GSD))
    assert found.image.shape == (20, 20, 3)
    assert np.abs(found.image[2:-2, 2:-2].astype(int) - 120).max() <= 3


@pytest.mark.parametrize("gsd", [0.06, 0.2])
def test_what_is_not_imagery_does_not_bleed_into_what_is(tmp_path, how, gsd):
    image = np.where(hole(30, 40)[..., np.newaxis], 200, 0).repeat(3, -1).astype(np.uint8)
    href = write_image(tmp_path / "a.tif", image, hole(30, 40), how=how)
    found = pixels(href, geobox.utm_grid(own_grid(href), gsd=gsd))
    assert (found.image[found.valid] == 200).all()
    assert found.valid.mean() == pytest.approx(hole(30, 40).mean(), abs=0.05)


@pytest.mark.parametrize(
    ("crs", "transform"), [(CRS, TRANSFORM), (CRS, TRANSFORM @ Affine.rotation(30)), ("EPSG:32636", wrong_zone())]
)
def test_a_point_keeps_its_place_on_the_ground(tmp_path, crs, transform):
    image = np.full((60, 60, 3), 20, np.uint8)
    image[39:42, 19:22] = 255
    href = write_image(tmp_path / "a.tif", image, crs=crs, transform=transform)
    target = geobox.utm_grid(own_grid(href), gsd=0.07)
    dot = np.argwhere(pixels(href, target).image[..., 0] > 128).mean(axis=0) + 0.5
    drawn = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(*(transform @ (20.5, 40.5)))
    found = Transformer.from_crs(target.crs, "EPSG:4326", always_xy=True).transform(*(target.transform @ dot[::-1]))
    assert Geod(ellps="WGS84").inv(*drawn, *found)[2] < 0.07


def test_windows_warped_apart_equal_the_whole(tmp_path):
    href = write_image(tmp_path / "a.tif", noise(60, 60), crs="EPSG:32636", transform=wrong_zone())
    target = geobox.utm_grid(own_grid(href), gsd=0.08)
    whole = pixels(href, target)
    window = Window(13, 9, 20, 22)
    with raster.open_scene(href) as (dataset, own), raster.warp(dataset, own, target) as vrt:
        part = raster.read(vrt, window)
    np.testing.assert_array_equal(part.valid, whole.valid[window.toslices()])
    np.testing.assert_allclose(part.image, whole.image[window.toslices()].astype(int), atol=2)


def test_an_image_without_a_place_needs_its_gsd(tmp_path):
    href = write_image(tmp_path / "chip.tif", noise(8, 9), crs=None)
    with pytest.raises(InputError, match=r"chip\.tif has no georeference"), raster.open_scene(href):
        pass
    with raster.open_scene(href, gsd=0.3) as (dataset, own):
        assert not raster.is_georeferenced(dataset)
        assert geobox.gsd(own) == pytest.approx(0.3, rel=0.001)


@pytest.mark.parametrize("gsd", [0.1, 0.3, 0.0518])
def test_an_image_without_a_place_lies_on_the_ground_grid_of_its_gsd(tmp_path, gsd):
    """Chips of the model's own resolution go through the network pixel by pixel, not blurred by a shift."""
    href = write_image(tmp_path / "chip.tif", noise(8, 9), crs=None)
    with raster.open_scene(href, gsd=gsd) as (dataset, own):
        target = geobox.utm_grid(own, gsd=gsd)
        with raster.warp(dataset, own, target) as vrt:
            np.testing.assert_array_equal(raster.read(vrt, Window(0, 0, vrt.width, vrt.height)).image, noise(8, 9))


@pytest.mark.parametrize("image", [noise(8, 8)[..., :1], noise(8, 8).astype(np.uint16)], ids=["grey", "16 bit"])
def test_what_is_no_rgb_of_8_bits_is_refused(tmp_path, image):
    href = write_image(tmp_path / "odd.tif", image, how="nothing")
    with pytest.raises(InputError, match=r"odd\.tif has .*8 bits"), raster.open_scene(href):
        pass


@pytest.mark.parametrize("href", ["nowhere.tif", "text.tif", "s3://data/nowhere.tif", "http://127.0.0.1:9/a.tif"])
def test_what_is_no_image_is_refused_by_name(tmp_path, monkeypatch, href):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.tif").write_text("hello")
    with pytest.raises(InputError, match=f"cannot open image {href}"), raster.open_scene(href):
        pass


@pytest.mark.parametrize("warp", [False, True])
def test_what_cannot_be_read_is_told_in_words_and_holds_no_error_of_gdal_s(tmp_path, warp):
    """Which could not be sent from one process to another."""
    path = tmp_path / "short.tif"
    write_image(path, noise(100, 300))
    path.write_bytes(path.read_bytes()[:60_000])
    target = GeoBox(CRS, TRANSFORM, 100, 300)
    with (
        raster.open_scene(str(path)) as (dataset, own),
        raster.warp(dataset, own, target) as vrt,
        pytest.raises(InputError) as error,
    ):
        raster.read(vrt if warp else dataset, Window(20, 10, 120, 80))
    said = str(error.value)
    assert said.startswith(f"cannot read image {path} at rows 10-90, columns 20-140: ")
    assert "IReadBlock failed" in said
    assert "previous exception" not in said
    assert error.value.__cause__.__cause__ is error.value.__cause__.__context__ is None


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
def test_a_cog_without_room_is_an_error_and_never_half_a_file(tmp_path, lost):
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


@pytest.mark.parametrize(("fourth", "doubted"), [("infrared", True), ("alpha", False), ("lossy", False)])
def test_an_alpha_that_looks_like_a_picture_is_doubted(tmp_path, caplog, fourth, doubted):
    image = noise(300, 200)
    alpha = {"infrared": image[..., 0], "alpha": 255 * hole(300, 200), "lossy": 253 + image[..., 0] % 3}[fourth]
    profile = {"driver": "GTiff", "height": 300, "width": 200, "count": 4, "dtype": "uint8", "crs": CRS}
    with rasterio.open(tmp_path / "a.tif", "w", **profile, transform=TRANSFORM) as file:
        file.write(np.moveaxis(np.dstack([image, alpha]).astype(np.uint8), -1, 0))
    with raster.open_scene(str(tmp_path / "a.tif")) as (dataset, _):
        raster.warn_of_doubtful_alpha(dataset)
    assert ("gdal_edit.py -colorinterp_4 undefined" in caplog.text) == doubted


def test_an_alpha_that_cannot_be_read_is_left_to_those_who_need_it(tmp_path):
    path = Path(write_image(tmp_path / "short.tif", noise(600, 300)))
    path.write_bytes(path.read_bytes()[:400_000])
    with raster.open_scene(str(path)) as (dataset, _):
        raster.warn_of_doubtful_alpha(dataset)
        assert raster.read(dataset, Window(0, 0, 300, 100)).valid.all()  # GDAL's error is none of this one's
        with pytest.raises(InputError, match="rows 500-600"):
            raster.read(dataset, Window(0, 500, 300, 100))
