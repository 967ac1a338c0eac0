import os
import shutil
import subprocess
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path

import geopandas as gpd
import keras
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from conftest import (
    CRS,
    ELSEWHERE,
    GSD,
    TRANSFORM,
    bright,
    brightness,
    building,
    hole,
    items,
    noise,
    pixels,
    room_for,
    town,
    write_image,
)
from PIL import Image
from pyproj import Geod, Transformer
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import geometry_mask
from rasterio.windows import Window
from rio_cogeo.cogeo import cog_validate
from scipy import ndimage
from shapely import affinity

from ocmlflow import executors
from ocmlflow.errors import InputError
from ocmlflow.prediction import (
    inference,
    instance_raster,
    instances,
    map_writer,
    preflight,
    scene_map,
    scene_tiles,
    tile_store,
    vector_files,
)
from ocmlflow.prediction.preflight import SceneCheck
from ocmlflow.prediction.scene_map import MapFiles
from ocmlflow.prediction.scene_tiles import MapSettings
from ocmlflow.probability import Predict
from ocmlflow.scenes import geobox, partial_read, raster, resample, windows
from ocmlflow.scenes.catalog import Scene
from ocmlflow.training import networks

SETTINGS = MapSettings(
    gsd=GSD,
    multiple=1,
    size=32,
    margin=4,
    batch_size=3,
    threshold=50,
    min_area_m2=0,
    min_hole_m2=0,
    chip_gsd=GSD,
    on_own_grid=True,
    aoi=None,
    collar_m2=0,
    stretch=None,
    separate=False,
    instances=False,
    outline="exact",
    skip_unreadable=False,
)


FILES = {"one-mask.tif", "one-probability.tif", "one.parquet", "one.fgb", "one.geojson", "one.jpg"}


def settings(**changed) -> MapSettings:
    return MapSettings(**{**vars(SETTINGS), **changed})


def draw(href: str, folder, *, network=brightness, executor=None, **changed) -> MapFiles:
    folder.mkdir(exist_ok=True)
    how = {"settings": settings(**changed), "progress": items, "executor": executor}
    return scene_map.map_scene(Scene("one", "", href), network, folder, **how)


def footprints(made: MapFiles) -> gpd.GeoDataFrame:
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
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FILES, made.tiles.name}


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
    href = write_image(tmp_path / "a.tif", roofs(), hole(70, 90), how=how)
    made = draw(href, tmp_path / "out", network=lambda: lambda x: np.ones_like(x[..., :1], np.float32))
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
    href = write_image(tmp_path / "a.tif", roofs(), crs=crs, transform=transform)
    made = draw(href, tmp_path / "out", gsd=GSD / 4)  # whose pixels do not blur the edges
    corners = [transform @ corner for corner in ((20, 30), (60, 30), (60, 60), (20, 60))]
    lons, lats = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(*zip(*corners, strict=True))
    area = abs(Geod(ellps="WGS84").polygon_area_perimeter(lons, lats)[0])
    assert footprints(made).area_m2.max() == pytest.approx(area, rel=0.02)


@pytest.mark.parametrize("crs", ["EPSG:32760", "EPSG:32701"])
def test_a_scene_across_180_degrees_is_mapped_as_any(tmp_path, crs):
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(180, -17)
    href = write_image(tmp_path / "a.tif", roofs(), crs=crs, transform=Affine(GSD, 0, x - 4, 0, -GSD, y))
    made = draw(href, tmp_path / "out", aoi=shapely.box(-180, -18, -179, -16))
    mask = read(made.mask)[0]
    np.testing.assert_array_equal(mask[:, 42:] == 1, roofs()[:, 42:, 0] > 200)
    assert (mask[:, :38] == 255).all()
    assert footprints(made).area_m2.max() == pytest.approx(30 * 20 * GSD**2, rel=0.08)  # whose edges are blurred
    assert made.outline.bounds[::2] == (-180, 180)
    assert sum(part.bounds[2] - part.bounds[0] for part in made.outline.geoms) < 0.001


@pytest.mark.parametrize("gsd", [0.05, 0.1, 0.17, 0.3])
def test_a_scene_of_another_resolution_is_mapped_on_its_own_grid(tmp_path, gsd):
    image, valid = roofs(), hole(70, 90)
    made = draw(write_image(tmp_path / "a.tif", image, valid), tmp_path / "out", gsd=gsd)
    mask, roof = read(made.mask)[0], bright(image)[..., 0] >= 0.5
    np.testing.assert_array_equal(mask == 255, ~valid)
    found = (mask == 1)[valid]
    iou = (found & roof[valid]).sum() / (found | roof[valid]).sum()
    assert iou >= (0.99 if gsd <= GSD else 0.85)


@pytest.mark.parametrize("coarser", [1, 2, 5, 16])
def test_no_more_is_held_of_a_scene_that_is_coarser_than_the_network(tmp_path, monkeypatch, coarser):
    held, near = [], tile_store.source_window
    monkeypatch.setattr(map_writer, "BLOCK", 64)
    monkeypatch.setattr(tile_store, "source_window", lambda *given: held.append(near(*given)) or held[-1])
    made = draw(write_image(tmp_path / "a.tif", roofs()), tmp_path / "out", gsd=GSD / coarser, size=512)
    np.testing.assert_array_equal(read(made.mask)[0] == 1, bright(roofs())[..., 0] >= 0.5)
    assert max(max(window.height, window.width) for window in held) <= 2**0.5 * 64 + 2 * (coarser + 3)


def test_a_scene_that_is_far_coarser_than_the_network_is_refused(tmp_path):
    scene = Scene("one", "", write_image(tmp_path / "a.tif", noise(30, 20)))
    with pytest.raises(InputError, match=r"a\.tif has pixels of 0.1 m, over 20 times the 0.004 m of the model"):
        preflight.check(scene, settings=settings(gsd=0.004))


def test_a_turned_scene_is_mapped_as_sharply_as_any(tmp_path):
    image = np.kron(noise(30, 80)[..., :1] > 60, np.full((4, 4, 3), 230)).astype(np.uint8)
    href = write_image(tmp_path / "a.tif", image, transform=TRANSFORM @ Affine.rotation(45))
    roof, found = image[..., 0] > 0, read(draw(href, tmp_path / "out", size=512).mask)[0] == 1
    assert (found & roof).sum() / (found | roof).sum() > 0.99


def test_no_window_shows_in_the_map(tmp_path):
    """Windows of any size and margin give the map of one large window."""
    href = write_image(tmp_path / "a.tif", roofs(), crs="EPSG:32636", transform=wrong_zone())
    whole = read(draw(href, tmp_path / "whole", size=512, margin=0).probability)[0].astype(int)
    parts = read(draw(href, tmp_path / "parts", size=32, margin=7).probability)[0]
    assert np.abs(whole - parts).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 70), (31, 3), (31, 5000), (513, 511)])
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
    assert list(footprints(made).columns) == vector_files.COLUMNS
    np.testing.assert_array_equal(read(made.mask)[0], np.where(valid, 0, 255))


def test_a_building_across_the_blocks_of_a_scene_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(instances, "BLOCK", 16)
    apart = footprints(draw(write_image(tmp_path / "a.tif", roofs()), tmp_path / "apart"))
    monkeypatch.setattr(instances, "BLOCK", 2048)
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


def test_a_scene_was_taken_when_its_catalogue_says_or_else_its_file(tmp_path):
    href, item = write_image(tmp_path / "a.tif", noise(30, 20)), datetime(2020, 2, 7, tzinfo=UTC)
    for tag, said, expected in (
        ("2019:03:04 05:06:07", None, datetime(2019, 3, 4, 5, 6, 7, tzinfo=UTC)),
        ("2019:03:04 05:06:07", item, item),
        ("0000:00:00 00:00:00", None, None),
    ):
        with rasterio.open(href, "r+") as file:
            file.update_tags(TIFFTAG_DATETIME=tag)
        assert preflight.check(Scene("one", "", href, acquired=said), settings=SETTINGS).acquired == expected


def test_a_datum_that_nobody_knows_is_warned_of_before(tmp_path, caplog):
    for name, ellipsoid in (("a", "WGS84"), ("b", "bessel")):
        crs = f"+proj=utm +zone=30 +ellps={ellipsoid} +units=m"
        preflight.check(
            Scene(name, "", write_image(tmp_path / f"{name}.tif", noise(30, 20), crs=crs)), settings=SETTINGS
        )
    (message,) = caplog.messages
    assert "b.tif: the datum of the CRS" in message
    assert "100 m" in message


def test_what_cannot_be_predicted_is_refused_before(tmp_path):
    scene = Scene("one", "", write_image(tmp_path / "a.tif", noise(30, 20)))
    assert preflight.check(scene, settings=SETTINGS) == SceneCheck(
        is_georeferenced=True, height=30, width=20, inside=True, acquired=None
    )
    with pytest.raises(InputError, match="cannot open image nowhere"):
        preflight.check(Scene("one", "", "nowhere.tif"), settings=SETTINGS)
    chip = Scene("one", "", write_image(tmp_path / "chip.tif", noise(30, 20), crs=None))
    assert not preflight.check(chip, settings=settings(on_own_grid=False)).is_georeferenced
    with pytest.raises(InputError, match="leave out grid=model"):
        preflight.check(chip, settings=settings(on_own_grid=False, chip_gsd=0.05))


@pytest.mark.parametrize("crs", [CRS, None])
def test_an_overview_shows_scene_and_map_side_by_side(tmp_path, crs, monkeypatch):
    href = write_image(tmp_path / "a.tif", roofs(), crs=crs)
    picture = np.asarray(Image.open(draw(href, tmp_path / "out").overview)).astype(int)
    assert picture.shape == (70 + 12, 2 * 90 + 18, 3)
    scene, found = picture[6:76, 6:96], picture[6:76, 102:192]
    assert abs(scene[40:50, 30:50] - 230).max() < 10  # white, and tinted red beside it
    assert (found[40:50, 30:50, 0] > found[40:50, 30:50, 1] + 50).all()
    assert abs(scene[:25, :60] - found[:25, :60]).mean() < 10
    monkeypatch.setattr(scene_map, "OVERVIEW_PX", 45)
    picture = np.asarray(Image.open(draw(href, tmp_path / "out2").overview))
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


def degrees(*outlines: shapely.Polygon) -> shapely.Geometry:
    return shapely.union_all(gpd.GeoSeries(list(outlines), crs=CRS).to_crs("EPSG:4326").to_numpy())


@pytest.mark.parametrize("gsd", [0.1, 0.17])
@pytest.mark.parametrize("on_own_grid", [True, False])
def test_outside_the_area_of_interest_there_is_nothing(tmp_path, gsd, on_own_grid):
    href = write_image(tmp_path / "a.tif", roofs())
    seen = []

    def predict(images):
        seen.append(len(images))
        return bright(images)

    def drawn(folder, **changed):
        seen.clear()
        how = {"gsd": gsd, "on_own_grid": on_own_grid, "batch_size": 1, **changed}
        return draw(href, tmp_path / folder, network=lambda: predict, **how), len(seen)

    area = degrees(building(30, 20, 60, 41), building(0, 85, 5, 90))
    (whole, all_windows), (part, some_windows) = drawn("whole"), drawn("part", aoi=area)
    (everything, about), (found, _) = read(whole.mask), read(part.mask)
    inside = geometry_mask(
        gpd.GeoSeries([area], crs="EPSG:4326").to_crs(CRS), found.shape, about["transform"], invert=True
    )
    np.testing.assert_array_equal(found, np.where(inside, everything, 255))
    assert some_windows < all_windows or gsd > GSD
    assert part.buildings == 1
    near = abs(part.area_m2 - 30 * 21 * GSD**2)
    assert near <= 0.02 if gsd == GSD else near < 1


@pytest.mark.parametrize(
    ("area", "share"),
    [
        (shapely.box(-180, -90, 180, 90), 1),
        (shapely.box(-180, 0, 180, 90), 1),
        (shapely.box(0, 45, 4, 50), 0.5),
        (shapely.box(-170, 45, 170, 50), 0.5),
        (shapely.box(0, 44, 4, 44.9999), 0),
    ],
    ids=["world", "hemisphere", "four degrees", "wide", "south of the scene"],
)
@pytest.mark.parametrize("on_own_grid", [True, False])
def test_the_edges_of_a_large_area_of_interest_are_straight_in_degrees(tmp_path, area, share, on_own_grid):
    """In metres they are not: the southern edge of four degrees bends by two kilometres."""
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32631", always_xy=True).transform(2, 45)
    transform = Affine(GSD, 0, round(x), 0, -GSD, round(y + 3.5))
    href = write_image(tmp_path / "a.tif", roofs(), crs="EPSG:32631", transform=transform)
    how = {"aoi": area, "on_own_grid": on_own_grid}
    assert preflight.check(Scene("one", "", href), settings=settings(**how)).inside == (share > 0)
    mask, about = read(draw(href, tmp_path / "out", **how).mask)
    xs, ys = about["transform"] @ (np.indices(mask.shape)[::-1] + 0.5)
    inside = shapely.contains_xy(
        area, *Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True).transform(xs, ys)
    )
    assert inside.mean() == pytest.approx(share, abs=0.1)
    np.testing.assert_array_equal(mask != 255, inside)


def test_scenes_away_from_the_area_of_interest_are_told_and_chips_refused(tmp_path):
    scene = Scene("one", "", write_image(tmp_path / "a.tif", noise(30, 20)))
    away, here = degrees(building(500, 500, 600, 600)), degrees(building(5, 5, 9, 9))
    assert not preflight.check(scene, settings=settings(aoi=away)).inside
    assert preflight.check(scene, settings=settings(aoi=here)).inside
    chip = Scene("one", "", write_image(tmp_path / "b.tif", noise(30, 20), crs=None))
    with pytest.raises(InputError, match=r"b\.tif has no georeference"):
        preflight.check(chip, settings=settings(aoi=here))


@pytest.mark.parametrize("gsd", [0.1, 0.25])
def test_on_the_model_s_grid_the_map_is_what_the_network_said(tmp_path, how, gsd):
    href = write_image(tmp_path / "a.tif", roofs(), hole(70, 90), how=how)
    made = draw(href, tmp_path / "out", gsd=gsd, on_own_grid=False)
    with raster.open_scene(href) as (dataset, own):
        target = geobox.utm_grid(own, gsd=gsd)
        with resample.window_reader(dataset, own, target) as reading:
            seen = reading(Window(0, 0, target.width, target.height))
    percents, about = read(made.probability)
    assert (about["transform"], about["crs"]) == (target.transform, rasterio.CRS.from_string(CRS))
    np.testing.assert_array_equal(percents == 255, ~seen.valid)
    expected = np.floor(bright(seen.image)[..., 0] * 100 + 1e-4)
    np.testing.assert_array_equal(percents[seen.valid], expected[seen.valid])


def broken(path, height: int, width: int, **place) -> str:
    """Write a bright image of which one block of 256 pixels square, the second of the second row, is lost."""
    image = np.full((height, width, 3), 200, np.uint8)
    image += noise(height, width) // 8
    plain = write_image(path.with_name("plain.tif"), image, how="nothing", **place)
    tiles = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "interleave": "pixel"}
    with rasterio.open(plain) as file, rasterio.open(path, "w", **{**file.profile, **tiles}) as out:
        out.write(file.read())
    with rasterio.open(path) as file:
        offset, size = (int(file.get_tag_item(f"BLOCK_{what}_1_1", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE"))
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = bytes(size)
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("crs", [CRS, "EPSG:32636"], ids=["resized", "warped"])
@pytest.mark.parametrize("gsd", [0.1, 0.15])
def test_a_broken_block_is_a_named_error_or_a_hole_that_is_listed(tmp_path, gsd, crs):
    place = {"crs": crs, "transform": TRANSFORM if crs == CRS else wrong_zone()}
    broken(tmp_path / "a.tif", 1024, 768, **place)
    with pytest.raises(InputError, match=r"cannot read image .*a\.tif"):
        draw(str(tmp_path / "a.tif"), tmp_path / "out", gsd=gsd, size=512)
    made = draw(str(tmp_path / "a.tif"), tmp_path / "out2", gsd=gsd, size=512, skip_unreadable=True)
    mask = read(made.mask)[0]
    lost = np.zeros(mask.shape, bool)
    lost[256:512, 256:512] = True
    assert (mask[lost] == 255).all()
    # GDAL warps blocks of 512 x 128 pixels at a time.
    reach = round(gsd / GSD * (2 * partial_read.SMALLEST_PX if crs == CRS else 512))
    assert (mask[~ndimage.binary_dilation(lost, iterations=reach)] == 1).all()
    listed = gpd.GeoSeries(list(made.unreadable), crs="EPSG:4326").to_crs(crs)
    assert shapely.union_all(listed.to_numpy()).contains(building(257, 257, 511, 511, place["transform"]))
    assert made.pixels == (mask == 1).sum()


def test_what_was_predicted_before_an_interruption_is_not_predicted_again(tmp_path):
    href = write_image(tmp_path / "a.tif", roofs(), hole(70, 90))
    whole = draw(href, tmp_path / "whole", batch_size=1)
    calls, total = [], len(windows.tiles(70, 90, size=32, margin=4))

    def breaking(images):
        calls.append(len(images))
        if len(calls) in (5, 9):
            raise KeyboardInterrupt
        return bright(images)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            draw(href, tmp_path / "out", network=lambda: breaking, batch_size=1)
    made = draw(href, tmp_path / "out", network=lambda: breaking, batch_size=1)
    assert len(calls) <= total + 2
    for name in ("probability", "mask", "footprints"):
        assert getattr(made, name).read_bytes() == getattr(whole, name).read_bytes()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FILES, made.tiles.name}


@pytest.mark.parametrize("crs", [CRS, "EPSG:4326"])
def test_squared_footprints_are_right_angled_and_cover_the_same(tmp_path, crs):
    """A turned rectangle, whose mask is a staircase, gets its four corners back; in degrees too."""
    transform = TRANSFORM if crs == CRS else Affine(GSD / 111_320, 0, 3.0, 0, -GSD / 111_320, 0.5)
    roof = affinity.rotate(shapely.box(40, 50, 160, 110), 25)
    image = noise(160, 200)
    image[geometry_mask([roof], (160, 200), Affine.identity(), invert=True)] = 230
    href = write_image(tmp_path / "a.tif", image, crs=crs, transform=transform)
    plain, square = (
        footprints(draw(href, tmp_path / outline, outline=outline, size=64)) for outline in ("exact", "squared")
    )
    assert len(plain) == len(square) == 1
    assert (len(plain.geometry[0].exterior.coords) > 6, len(square.geometry[0].exterior.coords)) == (True, 5)
    drawn = affinity.affine_transform(square.geometry[0], (~transform).to_shapely())
    assert drawn.intersection(roof).area / drawn.union(roof).area > 0.95
    assert square.area_m2[0] == pytest.approx(roof.area * GSD**2, rel=0.03)


FULL = """
import resource, signal, sys
from pathlib import Path
from conftest import bright, items
from ocmlflow.prediction import scene_map
from ocmlflow.prediction.scene_tiles import MapSettings
from ocmlflow.scenes.catalog import Scene
from ocmlflow.storage import hrefs
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead, as on a full disk
href, folder, *limits = sys.argv[1:]
settings = MapSettings(0.1, 1, 512, 4, 1, 50, 0, 0, 0.1, True, None, 0, None, False, False, "exact", False)
for limit in map(int, limits):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        scene_map.map_scene(Scene("one", "", href), lambda: bright, Path(folder), settings=settings, progress=items)
    except Exception as error:
        print(type(error).__name__)
    else:
        sys.exit(f"{limit} bytes were enough")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
made = scene_map.map_scene(Scene("one", "", href), lambda: bright, Path(folder), settings=settings, progress=items)
# And on the way from one file system to another.
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
try:
    hrefs.put(made.mask, f"/dev/shm/{Path(folder).parent.name}/mask.tif")
except OSError:
    print("OSError")
"""


def test_a_full_disk_is_an_error_whenever_it_comes_and_leaves_no_half_file(tmp_path):
    """Tiles, rasters, the very end of a COG or the output do not fit; with room again, the work goes on from there."""
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    href = write_image(tmp_path / "a.tif", image)
    whole = draw(href, tmp_path / "whole", size=512)
    limits = [3_000, 40_000, whole.probability.stat().st_size - 1]
    elsewhere = Path("/dev/shm") / tmp_path.name
    try:
        done = subprocess.run(
            [sys.executable, "-c", FULL, href, str(tmp_path / "out"), *map(str, limits)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.split()) == len(limits) + 1, done.stdout
        assert not elsewhere.exists() or not list(elsewhere.iterdir())
    finally:
        shutil.rmtree(elsewhere, ignore_errors=True)
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_full_disk_is_an_error_where_a_chip_s_map_ends(tmp_path):
    href = write_image(tmp_path / "a.tif", np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8), crs=None)
    size = draw(href, tmp_path / "out").probability.stat().st_size
    shutil.rmtree(tmp_path / "out")
    with room_for(size - 1), pytest.raises(OSError, match=r"one-probability\.tif is incomplete"):
        draw(href, tmp_path / "out")


def test_a_real_map_of_many_windows_is_the_same_on_workers_and_in_shares(tmp_path):
    """Every file, to the byte; with a block that cannot be read, which windows on both sides of it meet."""
    href = broken(tmp_path / "a.tif", 1000, 900)
    how = {"size": 160, "margin": 16, "skip_unreadable": True, "gsd": 0.15, "separate": True}
    whole = draw(href, tmp_path / "whole", **how)
    assert whole.unreadable
    with executors.executor(2, None) as executor:
        spread = draw(href, tmp_path / "spread", executor=executor, **how)
    plan = scene_tiles.plan(Scene("one", "", href), tmp_path / "shares", settings=settings(**how))
    runs = scene_tiles.split(plan)
    assert len(runs) > 4
    for share in (1, 0):  # in any order
        for run in runs[share::2]:
            scene_tiles.predict_all(run, brightness)
    shares = draw(href, tmp_path / "shares", network=nobody, **how)
    for made in (spread, shares):
        for name in FILES - {"one.jpg"}:
            assert (made.mask.parent / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
        assert [part.wkt for part in made.unreadable] == [part.wkt for part in whole.unreadable]
        assert (made.buildings, made.pixels) == (whole.buildings, whole.pixels)


def terrace(height: int = 300, width: int = 260) -> np.ndarray:
    """A dark image with three houses in a row whose corners touch in necks, and one that stands alone."""
    image = noise(height, width)
    for col in (20, 80, 140):
        image[40:100, col : col + 60] = 230
    for col in (80, 140):
        image[40:60, col - 8 : col + 8] = 60
        image[80:100, col - 8 : col + 8] = 60
    image[200:260, 20:90] = 240
    return image


def test_buildings_that_touch_get_a_footprint_each_and_the_mask_stays(tmp_path):
    href = write_image(tmp_path / "a.tif", terrace())
    joined, apart = (draw(href, tmp_path / str(separate), separate=separate) for separate in (False, True))
    assert (joined.buildings, apart.buildings) == (2, 4)
    assert joined.mask.read_bytes() == apart.mask.read_bytes()
    assert apart.area_m2 == pytest.approx(joined.area_m2, rel=0.05)  # corners are rounded


def red_and_blue() -> Predict:
    """A network that takes red for the probability of building, and blue for the distance to its own edge."""
    return lambda images: images[..., ::2] / np.float32(255)


def row_of_houses() -> np.ndarray:
    """Houses wall to wall, which only the distance to their own edges tells apart."""
    image = noise(300, 260)
    image[..., 2] = 0
    image[100:180, 20:240, 0] = 230
    ramp = np.minimum(np.arange(80), np.arange(80)[::-1])
    for start, stop in ((20, 80), (80, 150), (150, 240)):
        across = np.minimum(np.arange(stop - start), np.arange(stop - start)[::-1])
        image[100:180, start:stop, 2] = np.minimum(np.minimum.outer(ramp, across) * 255 // 20, 255)
    return image


def test_the_learned_distance_tells_houses_apart_that_share_a_wall(tmp_path):
    href = write_image(tmp_path / "a.tif", row_of_houses())
    made = draw(href, tmp_path / "out", separate=True, network=red_and_blue)
    assert made.buildings == 3
    widths = sorted(outline.bounds[2] - outline.bounds[0] for outline in footprints(made).geometry)
    assert widths == pytest.approx([6, 7, 9], abs=0.3)


@pytest.mark.parametrize("on_own_grid", [True, False])
def test_instances_hold_the_row_of_the_footprint_at_each_pixel(tmp_path, monkeypatch, on_own_grid):
    monkeypatch.setattr(instance_raster, "BLOCK", 64)
    transform = Affine(GSD / 111_320, 0, 3, 0, -GSD / 111_320, 1)
    href = write_image(tmp_path / "a.tif", terrace(), crs="EPSG:4326", transform=transform)
    made = draw(href, tmp_path / "out", separate=True, instances=True, on_own_grid=on_own_grid)
    (rows, about), (mask, about_mask) = read(made.instances), read(made.mask)
    assert cog_validate(made.instances, strict=True, quiet=True) == (True, [], [])
    assert (about["dtype"], about["nodata"], about["transform"]) == ("uint32", 0, about_mask["transform"])
    assert set(np.unique(rows)) == {0, 1, 2, 3, 4}
    for number, outline in enumerate(footprints(made).geometry, 1):
        inside = geometry_mask([outline], rows.shape, about["transform"], invert=True)
        np.testing.assert_array_equal(rows == number, inside)
    assert (mask[rows > 0] == 1).mean() > 0.97
    assert draw(href, tmp_path / "plain").instances is None


@pytest.mark.parametrize("crs", [CRS, "EPSG:4326", "EPSG:32636"])
def test_footprints_are_the_same_whatever_the_grid_of_the_map(tmp_path, crs):
    transform = {CRS: TRANSFORM, "EPSG:32636": wrong_zone()}.get(crs, Affine(GSD / 111_320, 0, 3, 0, -GSD / 111_320, 1))
    href = write_image(tmp_path / "a.tif", terrace(), crs=crs, transform=transform)
    own, model = (footprints(draw(href, tmp_path / str(on), separate=True, on_own_grid=on)) for on in (True, False))
    assert own.crs == crs
    assert own.drop(columns="geometry").equals(model.drop(columns="geometry"))
    assert own.to_crs(model.crs).geom_equals_exact(model, 1e-4).all()


@pytest.mark.parametrize(("network", "scenery"), [(brightness, terrace), (red_and_blue, row_of_houses)])
def test_maps_of_separated_buildings_are_the_same_with_windows_of_any_size_after_kills_and_on_workers(
    tmp_path, monkeypatch, network, scenery
):
    monkeypatch.setattr(instances, "BLOCK", 128)
    href = write_image(tmp_path / "a.tif", np.tile(scenery(), (2, 2, 1)), np.tile(hole(300, 260), (2, 2)))
    whole = draw(href, tmp_path / "whole", separate=True, size=1024, network=network)
    assert whole.buildings > 10
    calls = []

    def breaking(images):
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return network()(images)

    with pytest.raises(KeyboardInterrupt):
        draw(href, tmp_path / "killed", separate=True, size=160, network=lambda: breaking)
    killed = draw(href, tmp_path / "killed", separate=True, size=160, network=network)
    with executors.executor(2, None) as executor:
        spread = draw(href, tmp_path / "spread", separate=True, size=96, network=network, executor=executor)
    for made in (killed, spread):
        for name in FILES - {"one.jpg"}:
            assert (made.mask.parent / name).read_bytes() == (whole.mask.parent / name).read_bytes(), name


def nobody() -> Predict:
    raise AssertionError("nothing is left to predict")


def test_what_fails_on_a_worker_ends_the_map_by_name(tmp_path):
    href = broken(tmp_path / "a.tif", 1000, 900)
    with executors.executor(2, None) as executor, pytest.raises(InputError, match=r"cannot read image .*a\.tif"):
        draw(href, tmp_path / "out", executor=executor, size=160, margin=16)


def test_a_row_of_windows_is_one_window_to_the_real_network(tmp_path):
    """Far enough from a window's edge the network cannot see it, if windows start at its own steps."""
    keras.utils.set_random_seed(0)
    network = networks.build(architecture="unet", encoder="efficientnet-lite0", pretrained=True)
    image = np.random.default_rng(0).integers(0, 256, (32, 4000, 3), np.uint8)
    predict = inference.padded(networks.with_probability(network).predict_on_batch, 32)
    whole = predict(image[np.newaxis])[0, ..., 0]
    for size, margin in ((2048, 768), (1600, 771)):
        for tile in windows.tiles(32, 4000, size=size, margin=margin, multiple=32):
            window, core = tile.window, tile.core
            found = predict(image[np.newaxis][:, :, window.col_off : window.col_off + window.width])[0, ..., 0]
            kept = found[:, core.col_off - window.col_off :][:, : core.width]
            np.testing.assert_allclose(kept, whole[:, core.col_off : core.col_off + core.width], atol=1e-3)
