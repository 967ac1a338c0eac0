import warnings

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import (
    CRS,
    ELSEWHERE,
    GSD,
    TRANSFORM,
    bright,
    building,
    hole,
    items,
    noise,
    pixels,
    town,
    write_image,
)
from pyproj import Geod, Transformer
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import geometry_mask
from rio_cogeo.cogeo import cog_validate
from scipy import ndimage

from ocmlflow import catalog, maps
from ocmlflow.errors import InputError

SETTINGS = maps.Settings(
    gsd=GSD,
    multiple=1,
    size=32,
    margin=4,
    batch_size=3,
    threshold=50,
    min_area_m2=0,
    chip_gsd=GSD,
    on_own_grid=True,
    aoi=None,
    skip_unreadable=False,
)


def settings(**changed) -> maps.Settings:
    return maps.Settings(**{**vars(SETTINGS), **changed})


def draw(href: str, folder, **changed) -> maps.Map:
    folder.mkdir(exist_ok=True)
    return maps.draw(catalog.Scene("one", "", href), bright, folder, settings=settings(**changed), progress=items)


def footprints(made: maps.Map) -> gpd.GeoDataFrame:
    return gpd.read_parquet(made.footprints)


def read(path) -> tuple[np.ndarray, dict]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            return file.read(1), file.profile


def roofs(height: int = 70, width: int = 90) -> np.ndarray:
    """A dark image with a roof over several windows and one of a few pixels."""
    image = noise(height, width)
    image[30:60, 20:60] = 230
    image[5:9, 70:80] = 240
    return image


@pytest.mark.parametrize("batch_size", [1, 3])
def test_maps_lie_on_the_scene_s_own_grid(tmp_path, how, batch_size):
    image, valid = roofs(), hole(70, 90)
    made = draw(write_image(tmp_path / "a.tif", image, valid, how=how), tmp_path / "out", batch_size=batch_size)
    (percent, about), (mask, _) = read(made.probability), read(made.mask)
    for path in (made.probability, made.mask):
        _, profile = read(path)
        assert (profile["crs"], profile["transform"]) == (rasterio.CRS.from_string(CRS), TRANSFORM)
        assert (profile["height"], profile["width"], profile["nodata"]) == (70, 90, 255)
        assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
    np.testing.assert_array_equal(percent == 255, ~valid)
    np.testing.assert_array_equal(mask == 255, ~valid)
    np.testing.assert_array_equal(mask[valid], percent[valid] >= 50)
    expected = np.floor(bright(image)[..., 0] * 100 + 1e-4)
    np.testing.assert_array_equal(percent[valid], expected[valid])
    assert (made.pixels, made.building_pixels) == (valid.sum(), (mask == 1).sum())
    assert about["dtype"] == "uint8"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "one-mask.tif",
        "one-probability.tif",
        "one.parquet",
    ]


def test_footprints_are_those_of_the_mask(tmp_path):
    made = draw(write_image(tmp_path / "a.tif", roofs(), hole(70, 90)), tmp_path / "out")
    mask = read(made.mask)[0] == 1
    assert footprints(made).crs == CRS
    assert made.buildings == ndimage.label(mask)[1]
    assert set(footprints(made).scene) == {"one"}
    burnt = geometry_mask(footprints(made).geometry, mask.shape, TRANSFORM, invert=True)
    assert burnt[ndimage.binary_erosion(mask)].all()
    assert not burnt[~ndimage.binary_dilation(mask)].any()
    assert footprints(made).probability.between(0.85, 1).all()
    large = draw(write_image(tmp_path / "a.tif", roofs()), tmp_path / "out", min_area_m2=2)
    assert large.buildings == 1
    np.testing.assert_array_equal(read(large.mask)[0][5:9, 70:80], 1)  # the mask keeps what is small


@pytest.mark.parametrize(("threshold", "least"), [(90, 230), (91, 240), (95, 256)])
def test_the_threshold_itself_is_building(tmp_path, threshold, least):
    """Roofs of 230 are 90.2 percent, those of 240 are 94.1."""
    made = draw(write_image(tmp_path / "a.tif", roofs()), tmp_path / "out", threshold=threshold)
    np.testing.assert_array_equal(read(made.mask)[0] == 1, roofs()[..., 0] >= least)


def test_what_a_network_says_of_no_imagery_counts_for_nothing(tmp_path, how):
    scene = catalog.Scene("one", "", write_image(tmp_path / "a.tif", roofs(), hole(70, 90), how=how))
    made = maps.draw(scene, lambda x: np.ones_like(x[..., :1], np.float32), tmp_path, settings=SETTINGS, progress=items)
    assert made.building_pixels == made.pixels == hole(70, 90).sum()
    assert set(np.unique(read(made.probability)[0][hole(70, 90)])) <= {99, 100}


def wrong_zone() -> Affine:
    """Where Monrovia lies in zone 36, far to the east of its own zone 29."""
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32636", always_xy=True).transform(-10.8, 6.3)
    return Affine(GSD, 0, x, 0, -GSD, y)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [(CRS, TRANSFORM), ("EPSG:32636", wrong_zone()), ("EPSG:3857", Affine(0.1, 0, 0, 0, -0.1, 5e6))],
)
def test_areas_are_true_square_metres(tmp_path, crs, transform):
    """The area of a roof of 30 x 40 pixels, along the ellipsoid, whatever the CRS makes of it."""
    made = draw(write_image(tmp_path / "a.tif", roofs(), crs=crs, transform=transform), tmp_path / "out")
    corners = [transform @ corner for corner in ((20, 30), (60, 30), (60, 60), (20, 60))]
    lons, lats = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(*zip(*corners, strict=True))
    area = abs(Geod(ellps="WGS84").polygon_area_perimeter(lons, lats)[0])
    assert footprints(made).area_m2.max() == pytest.approx(area, rel=0.01)


@pytest.mark.parametrize("gsd", [0.05, 0.1, 0.17, 0.3])
def test_a_scene_of_another_resolution_is_mapped_on_its_own_grid(tmp_path, gsd):
    image, valid = roofs(), hole(70, 90)
    made = draw(write_image(tmp_path / "a.tif", image, valid), tmp_path / "out", gsd=gsd)
    mask, roof = read(made.mask)[0], bright(image)[..., 0] >= 0.5
    np.testing.assert_array_equal(mask == 255, ~valid)
    found = (mask == 1)[valid]
    iou = (found & roof[valid]).sum() / (found | roof[valid]).sum()
    assert iou >= (0.99 if gsd <= GSD else 0.85)


def test_no_window_shows_in_the_map(tmp_path):
    """Windows of any size and margin give the map of one large window."""
    href = write_image(tmp_path / "a.tif", roofs(), crs="EPSG:32636", transform=wrong_zone())
    whole = read(draw(href, tmp_path / "whole", size=512, margin=0).probability)[0].astype(int)
    parts = read(draw(href, tmp_path / "parts", size=32, margin=7).probability)[0]
    assert np.abs(whole - parts).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 70), (31, 3)])
def test_a_scene_smaller_than_a_window(tmp_path, height, width):
    image = np.full((height, width, 3), 230, np.uint8)
    made = draw(write_image(tmp_path / "a.tif", image), tmp_path / "out")
    np.testing.assert_array_equal(read(made.mask)[0], np.ones((height, width)))
    assert made.buildings == 1


@pytest.mark.parametrize("valid", [np.ones((40, 40), bool), np.zeros((40, 40), bool)], ids=["dark", "not valid"])
def test_a_scene_without_buildings(tmp_path, valid):
    made = draw(write_image(tmp_path / "a.tif", noise(40, 40), valid), tmp_path / "out")
    assert (made.building_pixels, made.pixels) == (0, valid.sum())
    assert footprints(made).empty
    assert list(footprints(made).columns) == ["scene", "probability", "area_m2", "geometry"]
    np.testing.assert_array_equal(read(made.mask)[0], np.where(valid, 0, 255))


def test_a_building_across_the_blocks_of_a_map_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(maps, "BLOCK", 16)
    apart = footprints(draw(write_image(tmp_path / "a.tif", roofs()), tmp_path / "apart"))
    monkeypatch.setattr(maps, "BLOCK", 2048)
    whole = footprints(draw(str(tmp_path / "a.tif"), tmp_path / "whole"))
    assert len(apart) == len(whole) == 2
    by = ["area_m2", "probability"]
    assert apart.sort_values(by)[by].to_numpy().tolist() == whole.sort_values(by)[by].to_numpy().tolist()


@pytest.mark.parametrize("gsd", [0.1, 0.25])
def test_a_chip_without_a_place_gets_a_plain_mask(tmp_path, how, gsd):
    image, valid = roofs(64, 64), hole(64, 64)
    href = write_image(tmp_path / "a.tif", image, valid, how=how, crs=None)
    made = draw(href, tmp_path / "out", chip_gsd=gsd, gsd=gsd)
    mask, profile = read(made.mask)
    assert (profile["nodata"], profile["crs"], mask.shape, profile["dtype"]) == (None, None, (64, 64), "uint8")
    np.testing.assert_array_equal(mask, (bright(image)[..., 0] >= 0.5) & valid)
    assert made.footprints is None


def test_what_cannot_be_predicted_is_refused_before(tmp_path):
    scene = catalog.Scene("one", "", write_image(tmp_path / "a.tif", noise(30, 20)))
    assert maps.check(scene, settings=SETTINGS) == maps.Look(placed=True, height=30, width=20, inside=True)
    with pytest.raises(InputError, match="cannot open image nowhere"):
        maps.check(catalog.Scene("one", "", "nowhere.tif"), settings=SETTINGS)


@pytest.mark.parametrize("crs", [CRS, None])
def test_an_overview_shows_scene_and_map_side_by_side(tmp_path, crs, monkeypatch):
    href = write_image(tmp_path / "a.tif", roofs(), crs=crs)
    made = draw(href, tmp_path / "out")
    assert maps.overview(catalog.Scene("one", "", href), made).shape == (70 + 12, 2 * 90 + 18, 3)
    monkeypatch.setattr(maps, "OVERVIEW", 45)
    picture = maps.overview(catalog.Scene("one", "", href), made)
    assert picture.dtype == np.uint8
    assert picture.shape == (35 + 12, 2 * 45 + 18, 3)


def test_a_town_is_mapped_roof_by_roof(tmp_path):
    drawn_roofs = town(tmp_path, "acc/aaa", transform=ELSEWHERE)
    made = draw(str(tmp_path / "acc/aaa/aaa.tif"), tmp_path / "out")
    valid = pixels(str(tmp_path / "acc/aaa/aaa.tif")).valid
    drawn = geometry_mask(drawn_roofs, valid.shape, ELSEWHERE, invert=True)
    np.testing.assert_array_equal(read(made.mask)[0] == 1, drawn & valid)
    whole = [roof for roof in drawn_roofs if any(roof.equals(found) for found in footprints(made).geometry)]
    assert len(whole) >= len(drawn_roofs) - 1  # but the one that the corner without imagery cuts
    assert building(0, 0, 1, 1).area == pytest.approx(GSD**2)
