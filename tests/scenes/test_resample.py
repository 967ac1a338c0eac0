import math

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import DATA, GSD, TRANSFORM, hole, needs_data, noise, write_image
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import Resampling
from rasterio.windows import Window

from ocmlflow.scenes import geobox, raster, resample
from ocmlflow.scenes.geobox import GeoBox
from ocmlflow.scenes.raster import Pixels


def read(href: str, target: GeoBox, window: Window | None = None) -> Pixels:
    with raster.open_scene(href) as (dataset, own), resample.window_reader(dataset, own, target) as found:
        return found(window or Window(0, 0, target.width, target.height))


def ground(href: str, gsd: float) -> GeoBox:
    with raster.open_scene(href) as (_, own):
        return geobox.utm_grid(own, gsd=gsd)


def by_hand(image: np.ndarray, valid: np.ndarray, to_source: Affine, height: int, width: int) -> tuple:
    """A triangle filter as wide as the larger pixel, weighted by validity: colours and share of validity, float."""

    def weights(count: int, length: int, scale: float, offset: float) -> np.ndarray:
        middles = (np.arange(count)[:, None] + 0.5) * scale + offset
        found = np.clip(1 - np.abs(np.arange(length)[None] + 0.5 - middles) / max(scale, 1), 0, None)
        return found / found.sum(axis=1, keepdims=True)

    rows = weights(height, image.shape[0], to_source.e, to_source.f)
    cols = weights(width, image.shape[1], to_source.a, to_source.c)
    share = rows @ valid.astype(float) @ cols.T
    summed = np.stack([rows @ (image[..., band] * valid.astype(float)) @ cols.T for band in range(3)], -1)
    return summed / np.maximum(share, 1e-9)[..., None], share


@given(st.floats(0.04, 0.35), st.integers(0, 3), st.booleans())
def test_resized_pixels_equal_a_triangle_filter_of_the_scene(tmp_path_factory, gsd, corner, holed):
    folder = tmp_path_factory.getbasetemp() / "filtered"
    transform = Affine(GSD, 0, 500_000 + corner * 0.033, 0, -GSD, 620_000 - corner * 0.021)
    image, valid = noise(40, 50), hole(40, 50) if holed else np.ones((40, 50), bool)
    href = write_image(folder / f"{corner}{holed}.tif", image, valid, transform=transform)
    target = ground(href, gsd)
    found = read(href, target)
    colours, share = by_hand(image, valid, ~transform @ target.transform, target.height, target.width)
    inner = np.zeros_like(found.valid)
    inner[1:-1, 1:-1] = True  # at the edge of the scene its last pixels go on
    clear = inner & (np.abs(share - 0.5) > 0.01)
    np.testing.assert_array_equal(found.valid[clear], share[clear] > 0.5)
    seen = inner & found.valid
    # Two passes round to whole levels; next to holes so does the weighting, and half a weight doubles all three.
    assert np.abs(found.image[seen] - colours[seen]).max() <= (3.5 if holed else 1.5)


@pytest.mark.parametrize("gsd", [0.1, 0.073, 0.15])
def test_windows_equal_parts_of_the_whole_and_are_not_valid_beyond(tmp_path, how, gsd, monkeypatch):
    href = write_image(tmp_path / "a.tif", noise(60, 70), hole(60, 70), how=how)
    target = ground(href, gsd)
    whole = read(href, target)
    monkeypatch.setattr(resample, "STRIP_PIXELS", 600)
    for window in (Window(13, 9, 20, 22), Window(-5, -7, 30, 20), Window(target.width - 9, target.height - 3, 20, 20)):
        part = read(href, target, window)
        rows = np.arange(window.row_off, window.row_off + window.height)
        cols = np.arange(window.col_off, window.col_off + window.width)
        inside = np.outer((rows >= 0) & (rows < target.height), (cols >= 0) & (cols < target.width))
        expected = whole.valid[np.clip(rows, 0, target.height - 1)][:, np.clip(cols, 0, target.width - 1)]
        np.testing.assert_array_equal(part.valid, expected & inside)
        colours = whole.image[np.clip(rows, 0, target.height - 1)][:, np.clip(cols, 0, target.width - 1)]
        assert (np.abs(part.image.astype(int) - colours)[part.valid] <= 2).all()
        assert not part.image[~part.valid].any()
    beyond = read(href, target, Window(target.width + 50, 0, 8, 8))
    assert not beyond.valid.any()


def test_pixels_of_the_same_grid_are_unchanged(tmp_path, how):
    href = write_image(tmp_path / "a.tif", noise(30, 40), hole(30, 40), how=how)
    found = read(href, ground(href, GSD))
    np.testing.assert_array_equal(found.valid, hole(30, 40))
    np.testing.assert_array_equal(found.image[found.valid], noise(30, 40)[hole(30, 40)])


@pytest.mark.parametrize("gsd", [0.06, 0.2])
def test_pixels_that_are_not_valid_do_not_bleed(tmp_path, how, gsd):
    image = np.where(hole(30, 40)[..., np.newaxis], 200, 0).repeat(3, -1).astype(np.uint8)
    href = write_image(tmp_path / "a.tif", image, hole(30, 40), how=how)
    found = read(href, ground(href, gsd))
    assert np.abs(found.image[found.valid].astype(int) - 200).max() <= 2


@pytest.mark.parametrize(
    "transform",
    [Affine(GSD, 0, 500_000, 0, GSD, 619_990), TRANSFORM @ Affine.rotation(20)],
    ids=["north down", "rotated"],
)
def test_other_orientations_are_warped_to_the_same_ground(tmp_path, transform):
    image = np.full((60, 60, 3), 20, np.uint8)
    image[39:42, 9:12] = 255
    href = write_image(tmp_path / "a.tif", image, transform=transform)
    target = ground(href, 0.07)
    dot = np.argwhere(read(href, target).image[..., 0] > 128).mean(axis=0) + 0.5
    assert math.dist(target.transform @ dot[::-1], transform @ (10.5, 40.5)) < 0.07


@pytest.mark.parametrize("overviews", [False, True])
@pytest.mark.parametrize("gsd", [0.05, 0.1, 0.13, 0.2, 0.35])
def test_a_rotated_scene_is_as_sharp_as_others(tmp_path, gsd, overviews):
    """The same ground, once with its rows running south: warped, it is what it is where it is only resized."""
    image = noise(20, 100).repeat(3, 0).repeat(3, 1)
    straight = write_image(tmp_path / "a.tif", image)
    turned = TRANSFORM @ Affine(0, -1, image.shape[1], 1, 0, 0)
    href = write_image(tmp_path / "b.tif", np.rot90(image), transform=turned)
    if overviews:
        with_overviews(href)
    target = ground(straight, gsd)
    expected, found = read(straight, target), read(href, target)
    assert target == ground(href, gsd)
    inner = np.s_[2:-2, 2:-2]
    assert found.valid[inner].all()
    assert np.abs(found.image[inner].astype(int) - expected.image[inner]).mean() < (1 if gsd <= GSD else 2.5)


def with_overviews(href: str) -> None:
    with rasterio.open(href, "r+") as file:
        file.build_overviews([2, 4], Resampling.average)


def test_an_overview_that_is_fine_enough_is_read(tmp_path, how):
    smooth = np.add.outer(np.arange(203) * 0.6, np.arange(161) * 0.5)[..., np.newaxis].repeat(3, -1).astype(np.uint8)
    href = write_image(tmp_path / "a.tif", smooth, how=how, transform=Affine(0.02, 0, 500_000, 0, -0.02, 620_000))
    target = ground(href, 0.1)
    without = read(href, target)
    with_overviews(href)
    with raster.open_scene(href) as (dataset, own):
        assert resample.overview_level(dataset, own, target) == 1
    found = read(href, target)
    inner = np.s_[2:-2, 2:-2]  # the last pixels of an overview stand for less than a whole one
    np.testing.assert_array_equal(found.valid[inner], without.valid[inner])
    assert np.abs(found.image[inner].astype(int) - without.image[inner]).max() <= 2


@needs_data
@pytest.mark.parametrize("scene", ["acc/d41d8a/d41d8a.tif", "ban/ban01/ban01.tif", "kam/kam01/kam01.tif"])
def test_real_scenes_are_close_to_gdal_s_warp(scene):
    href = str(DATA / "train_tier_1" / scene)
    with raster.open_scene(href) as (dataset, own):
        target = geobox.utm_grid(own, gsd=0.1)
        window = Window(700, 600, 700, 600) if "kam" in scene else Window(3000, 1900, 700, 600)
        with resample.warp_reader(dataset, own, target) as read_warped:
            expected = read_warped(window)
    found = read(href, target, window)
    assert (found.valid == expected.valid).mean() > 0.998
    both = found.valid & expected.valid
    assert both.mean() > 0.5
    assert np.quantile(np.abs(found.image[both].astype(int) - expected.image[both]), 0.998) <= 3
