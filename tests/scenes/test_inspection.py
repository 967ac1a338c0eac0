from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import CRS, GSD, TRANSFORM, hole, noise, write_image
from rasterio.enums import Resampling
from rasterio.windows import Window

from ocmlflow.errors import InputError
from ocmlflow.scenes import geobox, inspection, raster, resample
from ocmlflow.scenes.raster import Pixels
from ocmlflow.scenes.reading_rules import ReadingRules

TURNED = TRANSFORM @ Affine.rotation(20)


def write(path: Path, image: np.ndarray, *, overviews: tuple[int, ...] = (), **profile) -> str:
    """A tiled GeoTIFF of all bands of the image (height, width, bands)."""
    height, width, count = image.shape
    shape = {"height": height, "width": width, "count": count, "dtype": image.dtype}
    place = {"crs": CRS, "transform": TRANSFORM, "tiled": True, "blockxsize": 128, "blockysize": 128}
    with rasterio.open(path, "w", driver="GTiff", **shape, **(place | profile)) as file:
        file.write(np.moveaxis(image, -1, 0))
    if overviews:
        with rasterio.open(path, "r+") as file:
            file.build_overviews(list(overviews), Resampling.average)
    return str(path)


def set_mask(path: str, valid: np.ndarray, *, inside: bool) -> None:
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside), rasterio.open(path, "r+") as file:
        file.write_mask(valid)


def seen(href: str, *, gsd: float = GSD, collar_m2: float = 0, stretch=None) -> tuple[Pixels, ReadingRules, float]:
    """The scene on its ground grid, the rules by which it is read, and the square metres of imagery."""
    with raster.open_scene(href, stretch=stretch) as (image, own):
        target = geobox.utm_grid(own, gsd=gsd)
        image = inspection.inspect(image, own, [target], collar_m2=collar_m2)
    with (
        raster.open_scene(href, rules=image.rules) as (again, own),
        resample.window_reader(again, own, target) as read,
    ):
        pixels = read(Window(0, 0, target.width, target.height))
    return pixels, image.rules, float(pixels.valid.sum()) * gsd**2


def opaque(valid: np.ndarray, value: int = 255) -> np.ndarray:
    return np.where(valid, value, 0).astype(np.uint8)[..., np.newaxis]


def left_part(height: int, width: int, share: float) -> np.ndarray:
    valid = np.zeros((height, width), bool)
    valid[:, : int(share * width)] = True
    return valid


@pytest.mark.parametrize("transform", [TRANSFORM, TURNED], ids=["aligned", "turned"])
@pytest.mark.parametrize("gsd", [0.1, 0.2])
@pytest.mark.parametrize("mask", [None, "inside", "beside"])
def test_alpha_decides_over_a_nodata_value_and_a_mask_adds_to_it(tmp_path, transform, gsd, mask):
    image = noise(300, 300)
    image[20:60, 30:90] = 255  # a white roof, though 255 is the nodata value
    valid = left_part(300, 300, 2 / 3)
    image[~valid] = 255
    bands = np.dstack([image, opaque(valid)])
    href = write(tmp_path / "a.tif", bands, transform=transform, photometric="RGB", alpha="YES", nodata=255)
    expected = valid.copy()
    if mask:
        expected[:, :50] = False
        masked = np.ones((300, 300), bool)
        masked[:, :50] = False
        set_mask(href, masked, inside=mask == "inside")
    pixels, _, imagery_m2 = seen(href, gsd=gsd)
    assert imagery_m2 == pytest.approx(expected.sum() * GSD**2, rel=0.02)
    if transform == TRANSFORM and gsd == GSD:
        np.testing.assert_array_equal(pixels.valid, expected)


@pytest.mark.parametrize("transform", [TRANSFORM, TURNED], ids=["aligned", "turned"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_mask_decides_over_a_nodata_value(tmp_path, transform, inside):
    image = noise(300, 300)
    image[20:60, 30:90] = 255
    valid = left_part(300, 300, 2 / 3)
    href = write(tmp_path / "a.tif", image, transform=transform, nodata=255)
    set_mask(href, valid, inside=inside)
    assert seen(href)[2] == pytest.approx(valid.sum() * GSD**2, rel=0.02)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("gsd", [0.1, 0.2, 0.45, 1.0])
def test_a_mask_written_after_the_overviews_counts_at_any_resolution(tmp_path, inside, gsd):
    valid = left_part(900, 900, 0.5)
    href = write(tmp_path / "a.tif", noise(900, 900), overviews=(2, 4, 8))
    set_mask(href, valid, inside=inside)
    _, rules, imagery_m2 = seen(href, gsd=gsd)
    assert imagery_m2 == pytest.approx(valid.sum() * GSD**2, rel=0.02)
    assert rules.use_overviews == (gsd == 0.1)


@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("gsd", [0.2, 0.4])
@pytest.mark.parametrize("external", [True, False])
def test_overviews_of_half_of_the_scene_are_not_used(tmp_path, alpha, gsd, external):
    image = np.dstack([noise(900, 900), opaque(np.ones((900, 900), bool))]) if alpha else noise(900, 900)
    half = image.copy()
    half[450:] = 0
    kind = {"photometric": "RGB", "alpha": "YES"} if alpha else {}
    href = write(tmp_path / "a.tif", half, overviews=() if external else (2, 4, 8), **kind)
    if external:
        with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(href, "r+") as file:
            file.build_overviews([2, 4], Resampling.average)
        assert (tmp_path / "a.tif.ovr").exists()
    with rasterio.open(href, "r+") as file:
        file.write(np.moveaxis(image[450:], -1, 0), window=Window(0, 450, 900, 450))
    pixels, rules, _ = seen(href, gsd=gsd)
    assert not rules.use_overviews
    assert "overviews do not show what it shows" in rules.notes[0]
    assert pixels.valid.all()
    assert pixels.image.min() > 20


@pytest.mark.parametrize("resampling", [Resampling.nearest, Resampling.average, Resampling.gauss, Resampling.cubic])
@pytest.mark.parametrize("how", ["alpha", "nodata", "mask", "nothing"])
def test_good_overviews_are_used(tmp_path, how, resampling):
    href = write_image(tmp_path / "a.tif", noise(700, 900).repeat(1, 0), hole(700, 900), how=how)
    with rasterio.open(href, "r+") as file:
        file.build_overviews([2, 4, 8], resampling)
    assert seen(href, gsd=0.4)[1].use_overviews


def test_overviews_that_were_never_filled_are_not_used(tmp_path):
    """As gdaladdo leaves them when it is killed: their tiles have neither place nor size."""
    image = np.dstack([noise(1000, 1000), opaque(np.ones((1000, 1000), bool))])
    href = write(tmp_path / "a.tif", image, photometric="RGB", alpha="YES", sparse_ok=True)
    with rasterio.Env(SPARSE_OK_OVERVIEW=True), rasterio.open(href, "r+") as file:
        file.write(np.zeros((4, 1000, 1000), np.uint8))
        file.build_overviews([2, 4, 8], Resampling.average)
        file.write(np.moveaxis(image, -1, 0))
    pixels, rules, _ = seen(href, gsd=0.4)
    assert not rules.use_overviews
    assert pixels.valid.all()


def with_collar(kind: str, rng: np.random.Generator) -> np.ndarray:
    """(400, 600, 3): imagery to the left, 300 columns of a collar to the right."""
    image = noise(400, 600)
    image[100:180, 100:200] = 255  # a white roof of 80 m2
    image[300:340, 100:140] = 0
    collar = np.zeros((400, 300, 3), np.uint8)
    if kind == "white":
        collar[:] = 255
    elif kind == "noisy white":
        collar[:] = rng.integers(248, 256, collar.shape)
    elif kind == "noisy black":
        collar[:] = rng.integers(0, 8, collar.shape)
    elif kind == "magenta":
        collar[:] = (255, 0, 255)
    elif kind == "noisy grey":
        collar[:] = 128 + rng.integers(-1, 2, collar.shape)
    image[:, 300:] = collar
    return image


@pytest.mark.parametrize("transform", [TRANSFORM, TURNED], ids=["aligned", "turned"])
@pytest.mark.parametrize("gsd", [0.1, 0.2])
@pytest.mark.parametrize("kind", ["white", "noisy white", "black", "noisy black", "magenta", "noisy grey"])
def test_a_collar_of_one_colour_is_no_imagery_and_a_roof_is(tmp_path, kind, gsd, transform):
    href = write(tmp_path / "a.tif", with_collar(kind, np.random.default_rng(0)), transform=transform)
    pixels, rules, imagery_m2 = seen(href, gsd=gsd, collar_m2=100)
    assert imagery_m2 == pytest.approx(400 * 300 * GSD**2, rel=0.02)
    assert "around the imagery count as no imagery" in rules.notes[0]
    if transform == TRANSFORM and gsd == GSD:
        np.testing.assert_array_equal(pixels.valid, left_part(400, 600, 0.5))
    believed = seen(href, gsd=gsd, collar_m2=0)
    assert believed[2] == pytest.approx(400 * 600 * GSD**2, rel=0.02)
    assert not believed[1].notes


@pytest.mark.parametrize("quality", [75, 90])
@pytest.mark.parametrize("colour", [255, 0, 200])
def test_a_collar_compressed_as_jpeg_is_no_imagery(tmp_path, colour, quality):
    image = noise(512, 600)
    image[:, 400:] = colour
    href = write(tmp_path / "a.tif", image, compress="jpeg", quality=quality, photometric="ycbcr")
    pixels, _, imagery_m2 = seen(href, collar_m2=100)
    assert imagery_m2 == pytest.approx(512 * 400 * GSD**2, rel=0.03)
    assert not pixels.valid[:, 416:].any()


def test_wedges_and_thin_frames_are_collars_and_roofs_at_the_edge_are_not(tmp_path):
    image = noise(300, 300)
    rows, cols = np.indices((300, 300))
    image[rows + cols < 150] = 255  # 112 m2
    href = write(tmp_path / "wedge.tif", image)
    assert seen(href, collar_m2=100)[2] == pytest.approx(900 - 112.5, rel=0.01)
    frame = noise(300, 300)
    frame[:10] = frame[-10:] = 0
    frame[:, :10] = frame[:, -10:] = 0
    assert seen(write(tmp_path / "frame.tif", frame), collar_m2=100)[2] == pytest.approx(28**2, rel=0.01)
    roofs = noise(300, 300)
    for first in range(0, 300, 120):
        roofs[:60, first : first + 80] = (235, 200, 160)
        roofs[-40:, first : first + 60] = 255
    pixels, rules, _ = seen(write(tmp_path / "roofs.tif", roofs), collar_m2=100)
    assert pixels.valid.all()
    assert not rules.notes


def test_ground_that_is_flat_in_a_coarse_view_is_no_collar(tmp_path):
    """Coarse pixels of 4 by 4 lose the texture of a lawn."""
    image = np.random.default_rng(0).integers(20, 90, (4000, 4000, 1), np.uint8).repeat(3, -1)
    pixels, rules, _ = seen(write(tmp_path / "a.tif", image), gsd=0.8, collar_m2=100)
    assert pixels.valid.all()
    assert not rules.notes


def test_large_black_areas_inside_are_no_imagery_and_black_roofs_are(tmp_path):
    image = noise(700, 700)
    image[100:460, 100:460] = 0  # 1,296 m2
    image[600:650, 600:650] = 0
    pixels, _, imagery_m2 = seen(write(tmp_path / "a.tif", image), collar_m2=100)
    assert imagery_m2 == pytest.approx(4900 - 1296, rel=0.01)
    assert pixels.valid[600:650, 600:650].all()


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("gsd", [0.1, 0.2])
@pytest.mark.parametrize("transform", [TRANSFORM, TURNED], ids=["aligned", "turned"])
def test_tiles_that_were_never_written_are_no_imagery(tmp_path, interleave, gsd, transform):
    path = tmp_path / "a.tif"
    profile = {"crs": CRS, "transform": transform, "tiled": True, "blockxsize": 128, "blockysize": 128}
    shape = {"height": 512, "width": 512, "count": 3, "dtype": "uint8", "sparse_ok": True, "interleave": interleave}
    with rasterio.open(path, "w", driver="GTiff", photometric="RGB", **profile, **shape) as file:
        file.write(np.moveaxis(noise(256, 512), -1, 0), window=Window(0, 0, 512, 256))
    _, rules, imagery_m2 = seen(str(path), gsd=gsd)
    assert imagery_m2 == pytest.approx(512 * 256 * GSD**2, rel=0.02)
    assert "8 of its 16 tiles were never written" in rules.notes[0]


def test_a_file_without_a_written_tile_is_refused(tmp_path):
    profile = {"crs": CRS, "transform": TRANSFORM, "tiled": True, "count": 3, "dtype": "uint8", "sparse_ok": True}
    for side, words in ((4096, "none of its .* tiles was ever written"), (2_000_000, "has 2000000 x 2000000 pixels")):
        path = tmp_path / f"{side}.tif"
        with rasterio.open(path, "w", driver="GTiff", height=side, width=side, bigtiff="yes", **profile):
            pass
        with pytest.raises(InputError, match=rf"{side}\.tif .*{words}"):
            seen(str(path))


@pytest.mark.parametrize("transform", [TRANSFORM, TURNED], ids=["aligned", "turned"])
def test_alpha_of_one_and_of_16_bits_is_opaque(tmp_path, transform):
    valid = left_part(300, 300, 2 / 3)
    bands = np.dstack([noise(300, 300), opaque(valid, 1)])
    href = write(tmp_path / "one.tif", bands, transform=transform, photometric="RGB", alpha="YES")
    pixels, rules, imagery_m2 = seen(href)
    assert imagery_m2 == pytest.approx(600, rel=0.02)
    assert "alpha band is nowhere above 1" in rules.notes[0]
    assert pixels.image[pixels.valid].min() >= 20


def test_a_mask_of_one_is_opaque(tmp_path):
    valid = left_part(300, 300, 2 / 3)
    href = write(tmp_path / "one.tif", noise(300, 300))
    write(tmp_path / "m.tif", opaque(valid, 1))
    with rasterio.open(tmp_path / "m.tif", "r+") as file:
        file.update_tags(INTERNAL_MASK_FLAGS_1="2")
    (tmp_path / "m.tif").rename(tmp_path / "one.tif.msk")
    assert seen(href)[2] == pytest.approx(600, rel=0.02)


def test_alpha_of_0_everywhere_is_said(tmp_path):
    bands = np.dstack([noise(300, 300), np.zeros((300, 300, 1), np.uint8)])
    _, rules, imagery_m2 = seen(write(tmp_path / "a.tif", bands, photometric="RGB", alpha="YES"))
    assert imagery_m2 == 0
    assert "alpha band is 0 everywhere" in rules.notes[0]


@pytest.mark.parametrize(("fourth", "is_doubted"), [("infrared", True), ("alpha", False), ("lossy", False)])
def test_an_alpha_band_that_looks_like_a_picture_is_warned_of(tmp_path, fourth, is_doubted):
    image = noise(300, 200)
    alpha = {"infrared": image[..., 0], "alpha": 255 * hole(300, 200), "lossy": 253 + image[..., 0] % 3}[fourth]
    bands = np.dstack([image, alpha.astype(np.uint8)])
    _, rules, _ = seen(write(tmp_path / "a.tif", bands, photometric="RGB", alpha="YES"))
    assert any("gdal_edit.py -colorinterp_4 undefined" in note for note in rules.notes) == is_doubted


def test_an_unreadable_alpha_band_raises_no_error_at_the_check(tmp_path):
    path = Path(write_image(tmp_path / "short.tif", noise(600, 300)))
    path.write_bytes(path.read_bytes()[:400_000])
    with raster.open_scene(str(path)) as (image, own):
        image = inspection.inspect(image, own, [own], collar_m2=100)
        assert raster.read(image, Window(0, 0, 300, 100)).valid.all()  # GDAL's error is none of this one's
        with pytest.raises(InputError, match="rows 500-600"):
            raster.read(image, Window(0, 500, 300, 100))
