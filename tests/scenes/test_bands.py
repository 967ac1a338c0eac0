from pathlib import Path

import numpy as np
import pytest
import rasterio
from conftest import CRS, GSD, TRANSFORM, noise, write_json
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from ocmlflow.errors import InputError
from ocmlflow.scenes import catalog, geobox, raster, resample

NAMES = ("blue", "green", "red", "nir")


def write(
    path: Path, names: tuple[str, ...], *, descriptions=True, colours: str = "", **profile
) -> tuple[str, np.ndarray]:
    """A GeoTIFF whose bands hold 10, 20 and 30 more than noise for blue, green and red; and its RGB."""
    ground = noise(40, 50)[..., 0]
    values = {"red": ground + 30, "green": ground + 20, "blue": ground + 10, "alpha": np.full_like(ground, 255)}
    bands = np.stack([values.get(name.lower().split()[0], ground) for name in names])
    shape = {"height": 40, "width": 50, "count": len(names), "dtype": "uint8", "crs": CRS, "transform": TRANSFORM}
    with rasterio.open(path, "w", driver="GTiff", **({"photometric": "MINISBLACK"} | profile), **shape) as file:
        file.write(bands)
        if descriptions:
            file.descriptions = names
        if colours:
            file.colorinterp = [ColorInterp[name] for name in colours.split()]
    return str(path), np.stack([values["red"], values["green"], values["blue"]], -1)


def seen(href: str, names=(), *, turned: bool = False) -> np.ndarray:
    with raster.open_scene(href, band_names=names) as (image, own):
        target = geobox.utm_grid(own, gsd=GSD)
        with (resample.warp_reader if turned else resample.window_reader)(image, own, target) as read:
            pixels = read(Window(0, 0, target.width, target.height))
    assert pixels.valid.all()
    return pixels.image


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "names",
    [NAMES, ("nir", "red", "green", "blue"), ("Red", "Green", "Blue", "Red Edge"), ("alpha", "blue", "green", "red")],
)
def test_colours_are_found_by_the_names_of_the_bands(tmp_path, names, turned):
    href, rgb = write(tmp_path / "a.tif", names)
    np.testing.assert_array_equal(seen(href, turned=turned), rgb)
    href, rgb = write(tmp_path / "b.tif", names, descriptions=False)
    np.testing.assert_array_equal(seen(href, tuple(name.lower() for name in names), turned=turned), rgb)


def test_colours_are_found_by_the_colour_interpretation(tmp_path):
    href, rgb = write(tmp_path / "a.tif", NAMES, descriptions=False, colours="blue green red undefined")
    np.testing.assert_array_equal(seen(href), rgb)


def test_bands_without_names_are_red_green_and_blue(tmp_path):
    href, rgb = write(tmp_path / "a.tif", ("red", "green", "blue", "nir"), descriptions=False)
    np.testing.assert_array_equal(seen(href), rgb)
    np.testing.assert_array_equal(seen(href, ("red", "green", "blue")), rgb)  # the alpha band is often not named


@pytest.mark.parametrize("turned", [False, True])
def test_a_fourth_band_that_is_named_infrared_is_no_alpha(tmp_path, turned):
    href, rgb = write(tmp_path / "a.tif", ("red", "green", "blue", "nir"), photometric="RGB", alpha="YES")
    np.testing.assert_array_equal(seen(href, turned=turned), rgb)
    with raster.open_scene(href) as (image, _):
        assert "band 4 is named nir" in image.rules.notes[0]


def test_names_that_contradict_each_other_are_refused(tmp_path):
    href, _ = write(tmp_path / "a.tif", NAMES)
    with pytest.raises(
        InputError, match=r"a\.tif are named in two ways, its STAC item: red, green, blue, nir; its band"
    ):
        seen(href, ("red", "green", "blue", "nir"))
    href, _ = write(tmp_path / "b.tif", NAMES, descriptions=False, photometric="RGB")
    with pytest.raises(
        InputError, match=r"two ways, its STAC item: .*; its colour interpretation: .* -colorinterp_1 red"
    ):
        seen(href, NAMES)


def test_names_without_a_colour_or_of_more_bands_are_refused(tmp_path):
    href, _ = write(tmp_path / "a.tif", ("nir", "red", "green"))
    with pytest.raises(InputError, match=r"a\.tif has no blue band by its band descriptions, which names nir, red"):
        seen(href)
    href, _ = write(tmp_path / "b.tif", ("red", "green", "blue"))
    with pytest.raises(InputError, match=r"b\.tif has 3 bands, its STAC item names blue, green, red, nir"):
        seen(href, NAMES)


@pytest.mark.parametrize("field", ["eo:bands", "bands", "numbers"])
def test_the_names_of_a_stac_item_reach_the_scene(tmp_path, field):
    write(tmp_path / "v.tif", NAMES, descriptions=False)
    named = [{"name": f"B{number}", "common_name": name} for number, name in enumerate(NAMES)]
    fields = {"eo:bands": [0, 1, 2, 3]} if field == "numbers" else {field: named}
    if field == "bands":  # of STAC 1.1
        fields = {"bands": [{"name": band["name"], "eo:common_name": band["common_name"]} for band in named]}
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "s1",
        "properties": {"datetime": "2024-01-01T00:00:00Z"} | ({"eo:bands": named} if field == "numbers" else {}),
        "geometry": None,
        "links": [],
        "assets": {"image": {"href": "./v.tif", "type": "image/tiff; application=geotiff", **fields}},
    }
    (scene,) = catalog.find_images(write_json(tmp_path / "s1.json", item))
    assert scene.bands == NAMES
