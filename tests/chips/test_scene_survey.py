import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from conftest import ELSEWHERE, GSD, TRANSFORM, building, cut, hole, noise, rules_with, write_image, write_labels
from pyproj import Transformer

from ocmlflow.chips import chip_set, labels, scene_survey
from ocmlflow.chips.label_files import State
from ocmlflow.chips.scene_survey import SceneSurvey
from ocmlflow.errors import InputError
from ocmlflow.scenes import raster
from ocmlflow.scenes.catalog import Scene


def scene(folder, image, footprints, valid=None, **how) -> Scene:
    href = write_image(folder / "one.tif", image, valid, **how)
    return Scene("one", "acc", href, (write_labels(folder / "one.geojson", footprints),))


def look(found: Scene, *, collar_m2: float = 0, bbox=None) -> SceneSurvey | None:
    return scene_survey.survey(found, gsd=GSD, collar_m2=collar_m2, bbox=bbox)


def coded(folder, index, height: int, width: int) -> np.ndarray:
    """The coded label of all chips of 32 pixels, laid together."""
    whole = np.full((height, width), labels.INVALID, np.uint8)
    for row in index.itertuples():
        part = whole[row.row : row.row + 32, row.col : row.col + 32]
        part[:] = chip_set.read(folder, row).label[: part.shape[0], : part.shape[1]]
    return whole


def test_large_opaque_black_is_no_imagery_and_a_black_roof_is(tmp_path):
    image = noise(320, 320)
    image[:160, :220] = np.random.default_rng(0).integers(0, 8, (160, 220, 3))  # 352 m2, with the noise of JPEG
    image[220:280, 40:120] = 0  # a roof of 48 m2
    image[10, 10] = 200  # a pixel of it that is not black
    footprints = [building(220, 40, 280, 120)]
    index = cut(scene(tmp_path, image, footprints), tmp_path / "out", rules=rules_with(min_valid=0.01), collar_m2=100)
    found = coded(tmp_path / "out", index, 320, 320)
    black = np.zeros((320, 320), bool)
    black[:160, :220] = True
    black[10, 10] = False
    np.testing.assert_array_equal(found[64:] == labels.INVALID, black[64:])
    np.testing.assert_array_equal(found == 1, labels.rasterize(footprints, TRANSFORM, height=320, width=320) == 1)
    believed = cut(scene(tmp_path, image, footprints), tmp_path / "all", rules=rules_with(), collar_m2=0)
    assert (coded(tmp_path / "all", believed, 320, 320) != labels.INVALID).all()


def test_the_overview_says_where_imagery_is(tmp_path, how):
    valid = hole(120, 150)
    found = look(scene(tmp_path, noise(120, 150), [building(50, 60, 90, 90)], valid, how=how))
    assert found.overview.factor == 10
    expected = valid.reshape(12, 10, 15, 10).mean(axis=(1, 3))
    np.testing.assert_array_equal(found.overview.imagery, expected > 0.5)
    planned = chip_set.candidates(found, rules=rules_with())
    by_window = {(row, col): share for row, col, share in zip(planned.row, planned.col, planned.imagery, strict=True)}
    for row, col in by_window:
        inside = valid[row : row + 32, col : col + 32]
        assert by_window[row, col] == pytest.approx(inside.sum() / 32**2, abs=0.7)
    whole = {
        (row, col)
        for row in range(0, 120, 32)
        for col in range(0, 150, 32)
        if valid[row : row + 32, col : col + 32].any()
    }
    assert whole <= by_window.keys()


def test_footprints_on_no_imagery_are_counted(tmp_path):
    drawn = [building(2, 2, 12, 12), building(50, 60, 90, 90), building(200, 200, 210, 210)]
    found = look(scene(tmp_path, noise(120, 150), drawn, hole(120, 150)))
    assert (found.footprints.drawn, found.footprints.count(State.OUTSIDE)) == (3, 2)


def test_labels_far_from_their_scene_are_refused(tmp_path):
    elsewhere = scene(tmp_path, noise(64, 64), [building(3, 4, 20, 25, ELSEWHERE)])
    with pytest.raises(InputError, match=r"none of the 1 footprints of scene one .*one\.geojson .*one\.tif"):
        look(elsewhere)


def test_scenes_are_chosen_by_their_own_outline(tmp_path):
    """Not by that of their item or collection, which lie in the challenge."""
    found = scene(tmp_path, noise(64, 64), [building(1, 1, 9, 9)])
    west, north = Transformer.from_crs("EPSG:32630", "EPSG:4326", always_xy=True).transform(500_000, 620_000)
    assert look(found, bbox=(west - 0.001, north - 0.001, west + 0.001, north + 0.001))
    assert look(found, bbox=(west + 0.01, north - 0.001, west + 0.02, north + 0.001)) is None


def test_labels_lie_on_their_roofs_in_the_wrong_utm_zone(tmp_path):
    """Two scenes of Monrovia, zone 29, are filed in zone 36, where a pixel is no square on the ground."""
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32636", always_xy=True).transform(-10.8, 6.3)
    transform = Affine(0.1, 0, x, 0, -0.1, y)
    image = noise(200, 200)
    image[60:120, 40:150] = 230
    (left, top), (right, bottom) = transform @ (40, 60), transform @ (150, 120)
    href = write_image(tmp_path / "one.tif", image, crs="EPSG:32636", transform=transform)
    ring = [(left, top), (right, top), (right, bottom), (left, bottom)]
    drawn = write_labels(tmp_path / "one.geojson", [shapely.Polygon(ring)], crs="EPSG:32636")
    found = Scene("one", "mon", href, (drawn,))
    surveyed = look(found)
    assert surveyed.grid.crs == "EPSG:32629"
    assert surveyed.native_gsd == pytest.approx(0.076, abs=0.01)  # the scale of UTM 44 degrees from its meridian
    index = cut(found, tmp_path / "out", rules=rules_with())
    chip = np.concatenate(
        [np.dstack(chip_set.read(tmp_path / "out", row)).reshape(-1, 5) for row in index.itertuples()]
    )
    valid = chip[:, 3] != labels.INVALID
    roof, label = chip[valid, 0] > 150, chip[valid, 3] == 1
    assert (roof & label).sum() / (roof | label).sum() > 0.97


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (noise(32, 32)[..., :1], "1 band.s. of uint8"),
        (noise(32, 32)[..., :2], "2 band.s. of uint8"),
        (noise(32, 32).astype(np.uint16) * 200, "3 band.s. of uint16"),
    ],
    ids=["grey", "two bands", "16 bit"],
)
def test_images_of_other_kinds_are_refused_by_name(tmp_path, image, message):
    with pytest.raises(InputError, match=rf"one\.tif has {message}; red, green and blue of 8 bits"):
        look(scene(tmp_path, image, [building(1, 1, 9, 9)], how="nothing"))


def test_a_palette_is_refused_by_name(tmp_path):
    found = scene(tmp_path, noise(32, 32)[..., :1], [building(1, 1, 9, 9)], how="nothing")
    with rasterio.open(found.image, "r+") as file:
        file.write_colormap(1, {n: (n, 255 - n, 0, 255) for n in range(256)})
    with pytest.raises(InputError, match="and a palette; red, green and blue"):
        look(found)


def test_three_bands_without_a_mask_and_four_without_alpha_are_imagery_all_over(tmp_path):
    four = np.dstack([noise(64, 64), np.zeros((64, 64), np.uint8)])  # near infrared, say
    for name, image in (("three", noise(64, 64)), ("four", four)):
        found = scene(tmp_path / name, image, [building(1, 1, 9, 9)], how="nothing")
        if name == "four":
            with rasterio.open(found.image, "r+") as file:
                file.colorinterp = [*file.colorinterp[:3], rasterio.enums.ColorInterp.undefined]
        index = cut(found, tmp_path / name / "out", rules=rules_with())
        assert (index.valid_share == 1).all()
        chip = chip_set.read(tmp_path / name / "out", index.iloc[0])
        np.testing.assert_array_equal(chip.image, noise(64, 64)[:32, :32])


def test_bands_are_taken_by_their_colour(tmp_path):
    found = scene(tmp_path, noise(32, 32)[..., ::-1], [building(1, 1, 9, 9)], how="nothing")
    with rasterio.open(found.image, "r+") as file:
        file.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("blue", "green", "red")]
    index = cut(found, tmp_path / "out", rules=rules_with())
    np.testing.assert_array_equal(chip_set.read(tmp_path / "out", index.iloc[0]).image, noise(32, 32))


def test_jpeg_with_a_lossy_alpha_keeps_its_outline(tmp_path):
    """As the challenge's scenes are: alpha of 1 to 127 along the edges of what has no data."""
    valid = hole(160, 160)
    plain = write_image(tmp_path / "plain.tif", np.full((160, 160, 3), 120, np.uint8), valid)
    with rasterio.open(plain) as file:
        profile = {**file.profile, "compress": "jpeg", "jpeg_quality": 50, "interleave": "pixel", "tiled": True}
        with rasterio.open(tmp_path / "one.tif", "w", **{**profile, "blockxsize": 64, "blockysize": 64}) as lossy:
            lossy.write(file.read())
            lossy.colorinterp = file.colorinterp
    with rasterio.open(tmp_path / "one.tif") as file:
        assert len(np.unique(file.read(4))) > 2
    drawn = write_labels(tmp_path / "one.geojson", [building(100, 100, 120, 130)])
    index = cut(Scene("one", "acc", str(tmp_path / "one.tif"), (drawn,)), tmp_path / "out", rules=rules_with())
    found = coded(tmp_path / "out", index, 160, 160) != labels.INVALID
    assert (found != valid).mean() < 0.01
    assert raster.OPAQUE == 127


def test_a_scene_without_a_place_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"one\.tif has no georeference"):
        look(scene(tmp_path, noise(32, 32), [], crs=None))


def test_a_footprint_that_covers_most_of_the_imagery_is_doubted(tmp_path):
    outline, roof = building(0, 0, 150, 150), building(50, 60, 90, 90)
    found = look(scene(tmp_path, noise(150, 150), [roof, outline]))
    assert any("one footprint covers 100% of the imagery (225 m2)" in remark for remark in found.remarks)
    degrees = shapely.box(-5, 5, 0, 6)  # of 5 by 1 degrees
    path = write_labels(tmp_path / "two.geojson", [degrees], crs="EPSG:4326")
    found = look(Scene("one", "acc", str(tmp_path / "one.tif"), (path,)))
    assert any("one footprint covers 100% of the imagery" in remark for remark in found.remarks)
    assert not look(scene(tmp_path, noise(150, 150), [roof, building(100, 0, 150, 140)])).remarks


def test_an_image_whose_datum_nobody_knows_is_warned_of(tmp_path):
    crs = "+proj=utm +zone=30 +ellps=bessel +units=m"
    href = write_image(tmp_path / "one.tif", noise(64, 64), crs=crs)
    found = look(
        Scene("one", "acc", href, (write_labels(tmp_path / "one.geojson", [building(3, 4, 20, 25)], crs=crs),))
    )
    assert any("one.tif" in remark and "datum" in remark and "100 m" in remark for remark in found.remarks)
    path = write_labels(tmp_path / "two.geojson", [building(3, 4, 20, 25)])
    with pytest.raises(InputError, match=r"none of the 1 footprints of scene one lies on its image: .*datum .* 100 m"):
        look(Scene("one", "acc", href, (path,)))


def test_features_are_counted_and_the_counts_add_up(tmp_path):
    drawn = [building(5, 5, 12, 12), None, building(50, 60, 90, 90), building(200, 200, 210, 210)]
    found = look(scene(tmp_path, noise(120, 150), drawn)).footprints
    counts = {state: found.count(state) for state in State if found.count(state)}
    assert counts == {State.USED: 2, State.EMPTY: 1, State.OUTSIDE: 1}
    assert sum(counts.values()) == found.drawn == 4


def test_what_lies_outside_the_labelled_ground_is_not_valid(tmp_path):
    roofs = [building(10, 10, 40, 50), building(60, 100, 90, 140), building(100, 20, 130, 70)]
    image = noise(160, 200)
    plain = scene(tmp_path, image, roofs[:1])
    aoi = gpd.GeoSeries([building(5, 5, 70, 90)], crs="EPSG:32630").to_crs(4326)[0]
    rules = rules_with(min_valid=0.001)
    index = cut(plain, tmp_path / "out", rules=rules, aoi=aoi)
    found = coded(tmp_path / "out", index, 160, 200)
    expected = np.full((160, 200), labels.INVALID)
    expected[5:70, 5:90] = 0
    expected[10:40, 10:50] = 1
    np.testing.assert_array_equal(found[:160, :192], expected[:160, :192])
    for row in index.itertuples():
        chip = chip_set.read(tmp_path / "out", row)
        assert not chip.image[chip.label == labels.INVALID].any()
        assert row.valid_share == (chip.label != labels.INVALID).mean()
    assert scene_survey.survey(plain, gsd=GSD, collar_m2=0, aoi=shapely.affinity.translate(aoi, 1, 0)) is None
    assert look(plain).labelled is None


def test_footprints_outside_the_labelled_ground_are_outside(tmp_path):
    aoi = gpd.GeoSeries([building(5, 5, 70, 90)], crs="EPSG:32630").to_crs(4326)[0]
    roofs = [building(10, 10, 40, 50), building(100, 20, 130, 70)]
    found = scene_survey.survey(scene(tmp_path, noise(160, 200), roofs), gsd=GSD, collar_m2=0, aoi=aoi)
    assert found.footprints.count(State.OUTSIDE) == 1
