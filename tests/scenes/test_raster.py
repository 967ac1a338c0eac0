from functools import partial

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import CRS, GSD, NODATA, TRANSFORM, hole, noise, pixels, write_image, wrong_zone
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod, Transformer
from rasterio.windows import Window

from ocmlflow.errors import InputError
from ocmlflow.scenes import geobox, georeference, raster, resample
from ocmlflow.scenes.geobox import GeoBox


def own_grid(href: str) -> GeoBox:
    with raster.open_scene(href, gsd=GSD) as (_, own):
        return own


def test_alpha_nodata_and_mask_band_give_the_same_validity(tmp_path, how):
    image, valid = noise(30, 40), hole(30, 40)
    found = pixels(write_image(tmp_path / "a.tif", image, valid, how=how))
    np.testing.assert_array_equal(found.valid, valid)
    np.testing.assert_array_equal(found.image, np.where(valid[..., np.newaxis], image, 0))


def test_black_and_pixels_with_one_nodata_band_are_valid(tmp_path, how):
    image = noise(20, 20)
    image[4:8, 4:8] = 0
    image[12:16, 12:16, 0] = NODATA
    href = write_image(tmp_path / "a.tif", image, hole(20, 20), how=how)
    for target in (None, own_grid(href)):
        found = pixels(href, target)
        np.testing.assert_array_equal(found.valid, hole(20, 20))
        np.testing.assert_array_equal(found.image[found.valid], image[found.valid])


def test_an_image_without_alpha_nodata_or_mask_is_all_valid(tmp_path):
    href = write_image(tmp_path / "a.tif", noise(9, 9), how="nothing")
    assert pixels(href).valid.all()
    assert pixels(href, own_grid(href)).valid.all()


def test_lossy_alpha_is_valid_above_127(tmp_path):
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
def test_a_window_is_padded_with_not_valid_pixels(tmp_path_factory, row, col, size):
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
def test_an_image_outside_the_earth_is_refused_by_name(tmp_path, crs, transform, why):
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
        assert not georeference.is_georeferenced(dataset.dataset)


def test_warping_to_the_same_grid_changes_nothing(tmp_path, how):
    href = write_image(tmp_path / "a.tif", noise(30, 40), hole(30, 40), how=how)
    own, warped = pixels(href), pixels(href, own_grid(href))
    np.testing.assert_array_equal(warped.valid, own.valid)
    np.testing.assert_array_equal(warped.image, own.image)
    target = geobox.utm_grid(own_grid(href), gsd=GSD)
    assert (target.height, target.width) == (30, 40)
    np.testing.assert_array_equal(pixels(href, target).image, own.image)


def test_larger_pixels_are_averaged(tmp_path, how):
    board = np.indices((40, 40)).sum(axis=0) % 2 * 200 + 20
    href = write_image(tmp_path / "a.tif", np.stack([board] * 3, -1).astype(np.uint8), how=how)
    found = pixels(href, geobox.utm_grid(own_grid(href), gsd=2 * GSD))
    assert found.image.shape == (20, 20, 3)
    assert np.abs(found.image[2:-2, 2:-2].astype(int) - 120).max() <= 3


@pytest.mark.parametrize("gsd", [0.06, 0.2])
def test_pixels_that_are_not_valid_do_not_bleed_into_valid_ones(tmp_path, how, gsd):
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


def test_warped_windows_equal_parts_of_the_whole(tmp_path):
    href = write_image(tmp_path / "a.tif", noise(60, 60), crs="EPSG:32636", transform=wrong_zone())
    target = geobox.utm_grid(own_grid(href), gsd=0.08)
    whole = pixels(href, target)
    window = Window(13, 9, 20, 22)
    with raster.open_scene(href) as (image, own), resample.warp_reader(image, own, target) as read:
        part = read(window)
    np.testing.assert_array_equal(part.valid, whole.valid[window.toslices()])
    np.testing.assert_allclose(part.image, whole.image[window.toslices()].astype(int), atol=2)


def test_an_image_without_a_georeference_needs_a_gsd(tmp_path):
    href = write_image(tmp_path / "chip.tif", noise(8, 9), crs=None)
    with pytest.raises(InputError, match=r"chip\.tif has no georeference"), raster.open_scene(href):
        pass
    with raster.open_scene(href, gsd=0.3) as (dataset, own):
        assert not georeference.is_georeferenced(dataset.dataset)
        assert geobox.gsd(own) == pytest.approx(0.3, rel=0.001)


@pytest.mark.parametrize("gsd", [0.1, 0.3, 0.0518])
def test_an_image_without_a_georeference_is_aligned_to_the_utm_grid_of_its_gsd(tmp_path, gsd):
    """Chips of the model's own resolution go through the network pixel by pixel, not blurred by a shift."""
    href = write_image(tmp_path / "chip.tif", noise(8, 9), crs=None)
    with raster.open_scene(href, gsd=gsd) as (dataset, own):
        target = geobox.utm_grid(own, gsd=gsd)
        with resample.warp_reader(dataset, own, target) as read:
            np.testing.assert_array_equal(read(Window(0, 0, 9, 8)).image, noise(8, 9))


@pytest.mark.parametrize("image", [noise(8, 8)[..., :1], noise(8, 8).astype(np.uint16)], ids=["grey", "16 bit"])
def test_images_other_than_8_bit_rgb_are_refused(tmp_path, image):
    href = write_image(tmp_path / "odd.tif", image, how="nothing")
    with pytest.raises(InputError, match=r"odd\.tif has .*8 bits"), raster.open_scene(href):
        pass


@pytest.mark.parametrize("href", ["nowhere.tif", "text.tif", "s3://data/nowhere.tif", "http://127.0.0.1:9/a.tif"])
def test_files_that_are_no_image_are_refused_by_name(tmp_path, monkeypatch, href):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.tif").write_text("hello")
    with pytest.raises(InputError, match=f"cannot open image {href}"), raster.open_scene(href):
        pass


@pytest.mark.parametrize("warp", [False, True])
def test_a_read_error_has_a_message_and_no_gdal_error_attached(tmp_path, warp):
    """Which could not be sent from one process to another."""
    path = tmp_path / "short.tif"
    write_image(path, noise(100, 300))
    path.write_bytes(path.read_bytes()[:60_000])
    target = GeoBox(CRS, TRANSFORM, 100, 300)
    with (
        raster.open_scene(str(path)) as (image, own),
        resample.warp_reader(image, own, target) as read_warped,
        pytest.raises(InputError) as error,
    ):
        (read_warped if warp else partial(raster.read, image))(Window(20, 10, 120, 80))
    said = str(error.value)
    assert said.startswith(f"cannot read image {path} at rows 10-90, columns 20-140: ")
    assert "IReadBlock failed" in said
    assert "previous exception" not in said
    assert error.value.__cause__.__cause__ is error.value.__cause__.__context__ is None
