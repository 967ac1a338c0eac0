import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import rasterio
from conftest import noise, pixels, write_image
from rasterio.enums import Resampling

from ocmlflow.errors import InputError
from ocmlflow.scenes import raster, sidecars
from ocmlflow.storage import s3 as storage_s3


@contextmanager
def served(folder: Path, mode: str):
    """The address of a folder on a server in a process of its own: GDAL holds Python's lock while it waits for some."""
    words = [sys.executable, str(Path(__file__).parents[1] / "range_server.py"), str(folder), mode]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def scene_with_mask(folder: Path) -> tuple[Path, np.ndarray]:
    """A scene of 150 KB, large enough to be read in ranges, and its mask in a file beside it."""
    valid = np.ones((300, 300), bool)
    valid[:, 180:] = False
    path = Path(write_image(folder / "one.tif", noise(300, 300), how="nothing"))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
        file.write_mask(valid)
    assert (folder / "one.tif.msk").exists()
    return path, valid


@pytest.mark.parametrize("mode", ["ranges", "nohead", "redirects"])
def test_a_mask_beside_the_image_counts_over_http_as_on_a_disk(tmp_path, mode):
    path, valid = scene_with_mask(tmp_path)
    np.testing.assert_array_equal(pixels(str(path)).valid, valid)
    with served(tmp_path, mode) as address:
        np.testing.assert_array_equal(pixels(f"{address}/one.tif").valid, valid)


def test_a_mask_beside_the_image_counts_in_s3_as_on_a_disk(tmp_path, s3):
    path, valid = scene_with_mask(tmp_path)
    for file in (path, tmp_path / "one.tif.msk"):
        storage_s3.upload(file, f"{s3}/scenes/{file.name}")
    np.testing.assert_array_equal(pixels(f"{s3}/scenes/one.tif").valid, valid)


def test_a_server_without_ranges_is_named_as_that(tmp_path):
    write_image(tmp_path / "one.tif", noise(1400, 1500))
    with (
        served(tmp_path, "noranges") as address,
        pytest.raises(InputError, match=r"one\.tif: its server sends whole files only.*copy the file first"),
    ):
        pixels(f"{address}/one.tif")


def test_overviews_and_metadata_beside_the_image_count_over_http(tmp_path):
    image = noise(300, 300)
    path = Path(write_image(tmp_path / "one.tif", image, how="nothing"))
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4], Resampling.average)
    (tmp_path / "one.tif.aux.xml").write_text(
        "<PAMDataset>"
        + "".join(f'<PAMRasterBand band="{n}"><NoDataValue>50</NoDataValue></PAMRasterBand>' for n in (1, 2, 3))
        + "</PAMDataset>"
    )
    with served(tmp_path, "ranges") as address, raster.open_scene(f"{address}/one.tif") as (remote, _):
        assert (remote.dataset.nodata, remote.dataset.overviews(1)) == (50, [2, 4])


def test_a_world_file_counts_over_http(tmp_path):
    path = Path(write_image(tmp_path / "one.tif", noise(300, 300), crs=None))
    (tmp_path / "one.tfw").write_text("0.1\n0\n0\n-0.1\n500000\n620000\n")
    with served(tmp_path, "ranges") as address:
        for href in (str(path), f"{address}/one.tif"):
            with pytest.raises(InputError, match=r"has a transform, .* but no CRS"):
                pixels(href)


def test_what_only_has_the_name_of_a_sidecar_does_not_count(tmp_path):
    """Some servers answer any name with a page, and metadata may name files of the reader's machine."""
    write_image(tmp_path / "one.tif", noise(300, 300), how="nothing")
    (tmp_path / "one.tif.msk").write_text("<html></html>")
    (tmp_path / "one.tfw").write_text("<html></html>")
    (tmp_path / "one.tif.aux.xml").write_text(
        '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/etc/passwd</MDI></Metadata></PAMDataset>'
    )
    with served(tmp_path, "ranges") as address:
        assert sidecars.find(f"{address}/one.tif") == []
        assert pixels(f"{address}/one.tif").valid.all()


@pytest.mark.parametrize("suffix", [".tif.msk", ".tif.ovr", ".tif.aux.xml", ".tfw"])
@pytest.mark.parametrize("remote", [False, True])
def test_a_file_beside_the_image_is_part_of_its_fingerprint(tmp_path, suffix, remote):
    path = Path(write_image(tmp_path / "one.tif", noise(30, 30)))
    content = {".tif.aux.xml": b"<PAMDataset></PAMDataset>", ".tfw": b"0.1\n"}.get(suffix, b"II*\0")
    with served(tmp_path, "ranges") as address:
        href = f"{address}/one.tif" if remote else str(path)
        before = sidecars.fingerprint(href)
        assert sidecars.fingerprint(href) == before
        (tmp_path / f"one{suffix}").write_bytes(content)
        assert sidecars.fingerprint(href) != before
