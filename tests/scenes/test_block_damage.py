import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import CRS, GSD, TRANSFORM, noise
from rasterio.enums import Resampling
from rasterio.windows import Window

from ocmlflow.errors import InputError
from ocmlflow.scenes import geobox, inspection, partial_read, raster, resample

BLOCK = 128


def damaged_jpeg(path: Path, *, transform: Affine = TRANSFORM, row: int = 1, col: int = 1) -> str:
    """A scene of 4 by 4 blocks of JPEG, of which one has 200 zeros in its middle: libjpeg only warns of that."""
    shape = {"height": 512, "width": 512, "count": 3, "dtype": "uint8", "crs": CRS, "transform": transform}
    tiles = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "jpeg", "photometric": "ycbcr"}
    with rasterio.open(path, "w", driver="GTiff", **shape, **tiles) as file:
        file.write(np.moveaxis(noise(512, 512), -1, 0))
    with rasterio.open(path) as file:
        offset, size = (
            int(file.get_tag_item(f"BLOCK_{name}_{col}_{row}", "TIFF", bidx=1)) for name in ("OFFSET", "SIZE")
        )
    content = bytearray(path.read_bytes())
    content[offset + size // 2 : offset + size // 2 + 200] = bytes(200)
    path.write_bytes(content)
    return str(path)


def read_whole(href: str, gsd: float = GSD) -> tuple[np.ndarray, list[Window]]:
    """Validity on the ground grid, with damage left out, and the windows of the damage."""
    with raster.open_scene(href) as (image, own):
        target = geobox.utm_grid(own, gsd=gsd)
        with resample.window_reader(image, own, target) as read:
            pixels, unreadable = partial_read.read_pixels(read, Window(0, 0, target.width, target.height))
    return pixels.valid, unreadable


def test_a_block_of_which_libjpeg_complains_is_damaged(tmp_path):
    href = damaged_jpeg(tmp_path / "a.tif")
    with raster.open_scene(href) as (image, _):
        for _ in range(2):  # the second time, the block is in GDAL's cache and gives no warning
            with pytest.raises(InputError, match=r"cannot read image .*a\.tif at rows 100-200, .*damaged: .*JPEG"):
                raster.read(image, Window(100, 100, 100, 100))
            assert raster.read(image, Window(256, 0, 256, 512)).valid.all()
    valid, unreadable = read_whole(href)
    expected = np.ones((512, 512), bool)
    expected[BLOCK : 2 * BLOCK, BLOCK : 2 * BLOCK] = False
    np.testing.assert_array_equal(valid, expected)
    assert unreadable == [Window(BLOCK, BLOCK, BLOCK, BLOCK)]


@pytest.mark.parametrize("turn", [0, 20])
@pytest.mark.parametrize("gsd", [0.1, 0.15])
def test_damage_is_found_where_the_scene_is_resampled(tmp_path, turn, gsd):
    whole = damaged_jpeg(tmp_path / "a.tif", transform=TRANSFORM @ Affine.rotation(turn))
    valid, unreadable = read_whole(whole, gsd)
    assert unreadable
    lost_m2 = (512**2 * GSD**2) - valid.sum() * gsd**2
    assert lost_m2 >= 0.98 * (BLOCK * GSD) ** 2


def test_damage_is_found_in_worker_processes(tmp_path):
    href = damaged_jpeg(tmp_path / "a.tif")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        _, unreadable = executor.submit(read_whole, href).result()
    assert unreadable == [Window(BLOCK, BLOCK, BLOCK, BLOCK)]


def test_damage_is_found_though_warnings_are_not_logged(tmp_path):
    href = damaged_jpeg(tmp_path / "a.tif")
    code = "import logging; logging.getLogger('rasterio').setLevel(logging.ERROR)\n"
    code += f"from test_block_damage import read_whole; print(len(read_whole({href!r})[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == "1", done.stderr


@pytest.mark.parametrize("kept", [300, 3_000, 40_000, 150_000, 300_000])
def test_a_truncated_scene_gives_no_error_but_its_own(tmp_path, kept):
    """With overviews and metadata: GDAL leaves errors behind that surface at the next call."""
    path = tmp_path / "a.tif"
    shape = {"height": 512, "width": 512, "count": 3, "dtype": "uint8", "crs": CRS, "transform": TRANSFORM}
    with rasterio.open(path, "w", driver="GTiff", tiled=True, blockxsize=BLOCK, blockysize=BLOCK, **shape) as file:
        file.write(np.moveaxis(noise(512, 512), -1, 0))
        file.update_tags(some="thing")
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4], Resampling.average)
        file.update_tags(other="thing")
    path.write_bytes(path.read_bytes()[:kept])
    errors = []
    for gsd in (0.1, 0.2):
        try:
            with raster.open_scene(str(path)) as (image, own):
                target = geobox.utm_grid(own, gsd=gsd)
                image = inspection.inspect(image, own, [target], collar_m2=100)
                with resample.window_reader(image, own, target) as read:
                    partial_read.read_pixels(read, Window(0, 0, target.width, target.height))
        except InputError as error:
            errors.append(str(error))
    assert all("a.tif" in error for error in errors)
