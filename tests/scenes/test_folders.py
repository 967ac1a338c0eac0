import logging
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from conftest import CRS, TRANSFORM, building, hole, noise, pixels, upload, write_image, write_labels

from ocmlflow.errors import InputError
from ocmlflow.scenes import catalog, folders, vrt

SIDE = 24


def write_tiles(folder, *, overlap=0, how="alpha", valid=None, without=(), **profile) -> np.ndarray:
    """Write `t00.tif` to `t22.tif`, nine tiles of one picture, and return the picture (72, 72, 3)."""
    image = noise(3 * SIDE, 3 * SIDE)
    valid = np.ones(image.shape[:2], bool) if valid is None else valid
    for row, col in set(product(range(3), repeat=2)) - set(without):
        rows, cols = (slice(SIDE * i - overlap * (i > 0), SIDE * (i + 1)) for i in (row, col))
        transform = TRANSFORM @ Affine.translation(cols.start, rows.start)
        path = folder / f"t{row}{col}.tif"
        write_image(path, image[rows, cols], valid[rows, cols], how=how, transform=transform, **profile)
    return image


@pytest.fixture
def warned(caplog):
    """The texts of warnings so far."""
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("source", ["", "*.tif"])
@pytest.mark.parametrize("overlap", [0, 5])
def test_tiles_that_touch_or_overlap_are_warned_of(tmp_path, source, overlap, warned):
    write_tiles(tmp_path / "ground", overlap=overlap)
    assert len(catalog.find_images(f"{tmp_path}/ground/{source}")) == 9
    (text,) = warned()
    assert (
        f"9 GeoTIFFs of {tmp_path}/ground/{source} touch or overlap others (t00.tif, t01.tif, t02.tif and 6 more)"
        in text
    )
    assert "mosaic=true" in text


def test_scenes_apart_are_not_warned_of(tmp_path, warned):
    for number, crs in enumerate([CRS, CRS, "EPSG:32631"]):  # the third has the coordinates of the first
        transform = TRANSFORM @ Affine.translation(100 * (number % 2), 0)
        write_image(tmp_path / f"s{number}.tif", noise(8, 8), crs=crs, transform=transform)
    write_image(tmp_path / "chip1.tif", noise(8, 8), crs=None)
    write_image(tmp_path / "chip2.tif", noise(8, 8), crs=None)
    assert len(catalog.find_images(str(tmp_path))) == 5
    assert not warned()


@pytest.mark.parametrize("overlap", [0, 5])
@pytest.mark.parametrize("how", ["alpha", "nodata", "mask", "none"])
@pytest.mark.parametrize("source", ["", "*.tif"])
def test_a_mosaic_is_the_picture_that_its_tiles_are_of(tmp_path, overlap, how, source, warned):
    valid = hole(3 * SIDE, 3 * SIDE) if how != "none" else np.ones((3 * SIDE, 3 * SIDE), bool)
    image = write_tiles(tmp_path / "ground", overlap=overlap, how=how, valid=valid, without=[(0, 1)])
    valid[: SIDE - overlap, SIDE - 0 : 2 * SIDE - overlap] = False  # no tile shows it
    (scene,) = catalog.find_images(f"{tmp_path}/ground/{source}", mosaics=tmp_path / "work")
    shown = pixels(scene.image)
    np.testing.assert_array_equal(shown.valid, valid)
    np.testing.assert_array_equal(shown.image[valid], image[valid])
    assert (scene.id, scene.place, len(scene.tiles)) == ("ground", "ground", 8)
    assert not warned()
    before = (tmp_path / "work" / scene.image).stat().st_mtime_ns
    (again,) = catalog.find_images(f"{tmp_path}/ground/{source}", mosaics=tmp_path / "work")
    assert again.image == scene.image
    assert (tmp_path / "work" / again.image).stat().st_mtime_ns == before


def test_tiles_on_s3_are_a_mosaic_too(tmp_path, s3):
    image = write_tiles(tmp_path / "ground")
    upload(tmp_path / "ground", f"{s3}/ground")
    (scene,) = catalog.find_images(f"{s3}/ground/", mosaics=tmp_path / "work")
    assert scene.id == "ground"
    np.testing.assert_array_equal(pixels(scene.image).image, image)


def test_a_mosaic_has_the_labels_of_its_tiles(tmp_path):
    write_tiles(tmp_path / "ground")
    for name in ("t00", "t11"):
        write_labels(tmp_path / f"ground/{name}.geojson", [building(1, 1, 5, 5)])
    (scene,) = catalog.read_scenes(str(tmp_path / "ground"), mosaics=tmp_path / "work")
    assert scene.labels == (str(tmp_path / "ground/t00.geojson"), str(tmp_path / "ground/t11.geojson"))


def test_each_group_of_tiles_is_a_mosaic_and_what_lies_alone_a_scene(tmp_path, caplog):
    write_tiles(tmp_path / "ground", without=[(1, 0), (1, 1), (1, 2)])
    write_image(tmp_path / "ground/a.tif", noise(8, 8), transform=TRANSFORM @ Affine.translation(1000, 0))
    scenes = catalog.find_images(str(tmp_path / "ground"), mosaics=tmp_path / "work")
    assert [(scene.id, len(scene.tiles)) for scene in scenes] == [("ground-t00", 3), ("ground-t20", 3), ("a", 0)]


def test_no_mosaic_where_nothing_touches_is_said(tmp_path, warned):
    write_image(tmp_path / "a.tif", noise(8, 8))
    write_image(tmp_path / "b.tif", noise(8, 8), transform=TRANSFORM @ Affine.translation(1000, 0))
    assert len(catalog.find_images(str(tmp_path), mosaics=tmp_path / "work")) == 2
    assert "mosaic=true: no GeoTIFFs" in warned()[0]


@pytest.mark.parametrize(
    ("odd", "what"),
    [
        ({"transform": TRANSFORM @ Affine.translation(SIDE, 0) @ Affine.scale(2)}, "resolutions: 0.1 by 0.1, and 0.2"),
        ({"how": "nodata"}, "bands"),
        ({"transform": TRANSFORM @ Affine.translation(SIDE, 0) @ Affine.rotation(1)}, "resolutions|rotations"),
    ],
)
def test_tiles_that_are_not_alike_are_refused_by_name(tmp_path, odd, what):
    write_tiles(tmp_path, without=[(0, 1)])
    write_image(tmp_path / "odd.tif", noise(SIDE, SIDE), **odd)
    with pytest.raises(InputError, match=rf"mosaic=true: .*different ({what}).*odd\.tif"):
        catalog.find_images(str(tmp_path), mosaics=tmp_path / "work")


@pytest.mark.parametrize("other", ["dsm.tif", "heights.tif"])
def test_an_elevation_model_beside_pictures_is_left_out_with_a_warning(tmp_path, other, warned):
    write_image(tmp_path / "ortho.tif", noise(8, 8))
    write_image(tmp_path / other, np.ones((8, 8, 1), np.float32), how="none")
    for source in ("", "/*.tif"):
        assert [scene.id for scene in catalog.find_images(f"{tmp_path}{source}")] == ["ortho"]
    assert f"{other} of {tmp_path} is left out: 1 band(s) of float32 are no picture" in warned()[0]
    (tmp_path / "ortho.tif").unlink()
    assert len(catalog.find_images(str(tmp_path))) == 1  # refused by name when it is opened


@pytest.mark.parametrize("images", ["images", "Images", "img", "."])
@pytest.mark.parametrize("labels", ["labels", "Labels", "masks", "."])
@pytest.mark.parametrize("name", ["A.GeoJSON", "a_labels.geojson", "a-buildings.gpkg"])
def test_images_and_labels_may_lie_in_folders_of_their_own(tmp_path, images, labels, name):
    top = tmp_path / "town"
    write_image(top / images / "a.tif", noise(8, 8))
    if images == "." or labels != ".":
        write_labels(top / labels / name, [building(1, 1, 5, 5)])
        expected = (str(top / labels / name),)
    else:
        expected = ()
    for source in (top, top / images, f"{top}/{images}/*.tif", top / images / "a.tif"):
        (scene,) = catalog.read_scenes(str(source))
        assert scene.labels == expected
        assert scene.place == "town" or str(source) != str(top)


def test_images_and_labels_may_lie_in_folders_of_their_own_on_s3(tmp_path, s3):
    write_image(tmp_path / "town/images/a.tif", noise(8, 8))
    write_labels(tmp_path / "town/labels/a.geojson", [building(1, 1, 5, 5)])
    upload(tmp_path, s3)
    for source in ("town/", "town/images/", "town/images/*.tif", "town/images/a.tif"):
        (scene,) = catalog.read_scenes(f"{s3}/{source}")
        assert (scene.image, scene.labels) == (f"{s3}/town/images/a.tif", (f"{s3}/town/labels/a.geojson",))


def test_a_label_raster_beside_its_image_is_no_scene(tmp_path):
    write_image(tmp_path / "a.tif", noise(8, 8))
    write_image(tmp_path / "a_mask.tif", noise(8, 8))
    (scene,) = catalog.read_scenes(str(tmp_path))
    assert (scene.id, scene.labels) == ("a", (str(tmp_path / "a_mask.tif"),))


def test_a_folder_of_another_layout_says_how_files_have_to_lie(tmp_path):
    write_image(tmp_path / "train/a.tif", noise(8, 8))
    with pytest.raises(InputError, match=r"its folders are train\. Images lie in .* the same name as their image"):
        catalog.read_scenes(str(tmp_path))


def test_images_of_other_formats_are_named(tmp_path, warned):
    (tmp_path / "one.jp2").touch()
    with pytest.raises(InputError, match=r"no GeoTIFF but one\.jp2: .*gdal_translate -of COG one\.jp2 one\.tif"):
        catalog.find_images(str(tmp_path))
    write_image(tmp_path / "two.tif", noise(8, 8))
    (tmp_path / "two.jpg").touch()  # a preview
    catalog.find_images(str(tmp_path))
    (text,) = warned()
    assert "1 files of" in text
    assert "such as one.jp2" in text


def as_vrt(folder, *, rename=None, kind="") -> str:
    """A VRT of the tiles below `folder`, which names them relative to itself."""
    (scene,) = folders.images_in(str(folder / "tiles"), mosaics=folder / "work")
    text = Path(scene.href).read_text().replace('relativeToVRT="0"', 'relativeToVRT="1"')
    text = text.replace(f"{folder}/tiles/", "tiles/").replace("tiles/t11.tif", rename or "tiles/t11.tif")
    (folder / "all.vrt").write_text(text.replace("<VRTRasterBand ", f"<VRTRasterBand {kind} "))
    return str(folder / "all.vrt")


def test_a_vrt_of_tiles_is_one_scene(tmp_path, warned):
    image = write_tiles(tmp_path / "tiles")
    path = as_vrt(tmp_path)
    for source in (path, str(tmp_path), f"{tmp_path}/*.vrt"):
        (scene,) = catalog.find_images(source)
        assert (scene.id, scene.image, len(scene.tiles)) == ("all", path, 9)
    np.testing.assert_array_equal(pixels(path).image, image)
    write_labels(tmp_path / "all.geojson", [building(1, 1, 5, 5)])
    assert catalog.read_scenes(path)[0].labels == (str(tmp_path / "all.geojson"),)
    assert not warned()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"rename": "../t11.tif"}, r"names \.\./t11\.tif, which is not below its own folder"),
        ({"rename": "/etc/passwd"}, "names /etc/passwd, which is not below"),
        ({"rename": "/vsicurl/http://127.0.0.1:9/x.tif"}, "names /vsicurl/.* which is not below"),
        ({"rename": "tiles/other.tif"}, r"tiles/other\.tif, which is no GeoTIFF"),
        ({"rename": "tiles/none.tif"}, r"tiles/none\.tif, which cannot be read"),
        ({"kind": 'subClass="VRTDerivedRasterBand"'}, "is a VRTDerivedRasterBand, not tiles side by side"),
    ],
)
def test_a_vrt_that_may_read_other_files_is_refused(tmp_path, change, what):
    write_tiles(tmp_path / "tiles")
    write_image(tmp_path.parent / "t11.tif", noise(8, 8))
    path = as_vrt(tmp_path, **change)
    (tmp_path / "tiles/other.tif").write_text("<VRTDataset/>")
    with pytest.raises(InputError, match=what):
        catalog.find_images(path)


@pytest.mark.parametrize("content", ["", "hello", "<a/>", '<!DOCTYPE x [<!ENTITY a "b">]><VRTDataset/>'])
def test_what_is_no_vrt_is_refused_by_name(tmp_path, content):
    (tmp_path / "x.vrt").write_text(content)
    with pytest.raises(InputError, match=r"VRT .*x\.vrt"):
        vrt.sources(str(tmp_path / "x.vrt"))
