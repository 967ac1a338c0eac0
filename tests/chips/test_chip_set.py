import hashlib
import json
import shutil
from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from conftest import (
    CRS,
    ELSEWHERE,
    GSD,
    TRANSFORM,
    building,
    cut,
    hole,
    noise,
    rules_with,
    town,
    write_catalog,
    write_image,
    write_labels,
)
from rasterio.windows import Window

from ocmlflow.chips import chip_set, labels, scene_survey, zarr_store
from ocmlflow.chips.scene_survey import SceneSurvey
from ocmlflow.errors import InputError
from ocmlflow.scenes import catalog, geobox, raster, resample
from ocmlflow.scenes.catalog import Scene

RULES = rules_with()
PLACE = {"crs": CRS, "transform": TRANSFORM}


@pytest.fixture
def scene(tmp_path) -> Scene:
    footprints = town(tmp_path, "acc/aaa", transform=TRANSFORM)
    (found,) = catalog.read_scenes(write_catalog(tmp_path, {"acc/aaa": footprints}))
    return found


def labelled(folder, footprints: list, image: np.ndarray, valid=None, **how) -> Scene:
    href = write_image(folder / "one.tif", image, valid, **how)
    return Scene("one", "acc", href, (write_labels(folder / "one.geojson", footprints),))


def look(scene: Scene) -> SceneSurvey:
    return scene_survey.survey(scene, gsd=GSD, collar_m2=0, bbox=None)


def each(folder, index):
    return [(row, chip_set.read(folder, row)) for row in index.itertuples()]


@pytest.mark.parametrize("stride", [32, 16])
@pytest.mark.parametrize("gsd", [0.1, 0.14])
def test_a_chip_is_the_scene_at_its_window(scene, tmp_path, gsd, stride):
    rules = rules_with(gsd=gsd, stride=stride)
    index = cut(scene, tmp_path / "out", rules=rules)
    assert index.id.is_unique
    with raster.open_scene(scene.image) as (dataset, own):
        target = geobox.utm_grid(own, gsd=gsd)
        covered = np.zeros((target.height, target.width), bool)
        with resample.window_reader(dataset, own, target) as read:
            for row, chip in each(tmp_path / "out", index):
                window = Window(row.col, row.row, 32, 32)
                found = read(window)
                np.testing.assert_allclose(chip.image.astype(int), found.image, atol=0 if gsd == GSD else 2)
                np.testing.assert_array_equal(chip.label != labels.INVALID, found.valid)
                assert row.valid_share == pytest.approx(found.valid.mean())
                assert row.building_share == pytest.approx((chip.label == 1).sum() / found.valid.sum())
                assert row.geometry.equals_exact(geobox.outline(target, window), 1e-12)
                covered[row.row : row.row + 32, row.col : row.col + 32] = True
            all_valid = read(Window(0, 0, target.width, target.height)).valid
    assert (covered | ~all_valid).mean() > 0.97  # but chips with less imagery than `min_valid`


def test_the_label_lies_on_its_roofs(scene, tmp_path):
    for gsd, least in ((0.1, 1.0), (0.14, 0.95)):
        index = cut(scene, tmp_path / str(gsd), rules=rules_with(gsd=gsd))
        shown = [chip for _, chip in each(tmp_path / str(gsd), index)]
        roof, drawn = np.stack([c.image[..., 0] for c in shown]) > 150, np.stack([c.label for c in shown]) == 1
        assert (roof & drawn).sum() / (roof | drawn).sum() >= least


def test_what_is_not_imagery_is_coded_255(tmp_path, how):
    valid = hole(64, 64)
    scene = labelled(tmp_path, [building(0, 0, 64, 64)], noise(64, 64), valid, how=how)
    index = cut(scene, tmp_path / "out", rules=RULES)
    for row, chip in each(tmp_path / "out", index):
        expected = np.where(valid[row.row : row.row + 32, row.col : row.col + 32], 1, 255)
        np.testing.assert_array_equal(chip.label, expected)
        assert not chip.image[expected == 255].any()


def test_chips_reach_over_the_edge_and_a_scene_may_be_smaller_than_one(tmp_path):
    scene = labelled(tmp_path, [building(2, 2, 10, 10)], noise(20, 40))
    index = cut(scene, tmp_path / "out", rules=RULES)
    assert index.valid_share.tolist() == pytest.approx([20 / 32, 20 / 32 * 8 / 32])
    assert sum((chip.label == 1).sum() for _, chip in each(tmp_path / "out", index)) == 64


@pytest.mark.parametrize("gsd", [GSD, 0.14])
@pytest.mark.parametrize(("stride", "min_valid"), [(32, 0.1), (16, 0.4), (32, 0.9)])
def test_windows_that_are_mostly_beyond_the_edge_are_not_promised(tmp_path, gsd, stride, min_valid):
    scene = labelled(tmp_path, [], noise(98, 140), how="nothing")
    rules = rules_with(gsd=gsd, stride=stride, min_valid=min_valid)
    found = scene_survey.survey(scene, gsd=gsd, collar_m2=0, bbox=None)
    promised = chip_set.candidates(found, rules=rules)
    index = cut(scene, tmp_path / "out", rules=rules)
    assert set(promised.id[promised.imagery > 0]) == set(index.id)
    assert 0 < len(index) < len(promised)
    every = chip_set.candidates(found, rules=replace(rules, min_valid=0))
    assert promised.id.tolist() == every.id.tolist()  # what is read, and so each pixel, is as if all were wanted


def test_a_scene_of_more_than_one_block(tmp_path):
    footprints = [building(r, c, r + 3, c + 5) for r in range(0, 90, 9) for c in range(0, 90, 11)]
    scene = labelled(tmp_path, footprints, noise(96, 100))
    index = cut(scene, tmp_path / "out", rules=rules_with(size=8, stride=8))
    assert len(index) == 12 * 13
    assert index.position.is_unique
    label = np.zeros((96, 104), np.uint8)
    for row, chip in each(tmp_path / "out", index):
        label[row.row : row.row + 8, row.col : row.col + 8] = chip.label == 1
    np.testing.assert_array_equal(label[:, :100], labels.rasterize(footprints, TRANSFORM, height=96, width=100))


def test_equal_inputs_have_equal_digests(tmp_path):
    def digest(name: str, footprints: list) -> str:
        scene = labelled(tmp_path / name, footprints, noise(64, 64))
        index = cut(scene, tmp_path / name / "out", rules=RULES)
        return chip_set.digest(index.assign(split="train"))

    one = digest("a", [building(1, 1, 9, 9)])
    assert digest("b", [building(1, 1, 9, 9)]) == one
    assert digest("c", [building(1, 1, 9, 10)]) != one
    index = cut(labelled(tmp_path, [], noise(64, 64)), tmp_path / "out", rules=RULES)
    assert chip_set.digest(index.assign(split="train")) != chip_set.digest(index.assign(split="validation"))
    shuffled = index.assign(split="train").sample(frac=1, random_state=0)
    assert chip_set.digest(shuffled) == chip_set.digest(index.assign(split="train"))


def test_an_interrupted_cut_is_redone_and_a_finished_one_kept(scene, tmp_path):
    out = tmp_path / "out"
    (out / "aaa.zarr.new" / "image").mkdir(parents=True)
    (out / "aaa.zarr.new" / "zarr.json").write_text("half")
    (out / "aaa.parquet").write_text("half")
    first = cut(scene, out, rules=RULES)
    assert sorted(path.name for path in out.iterdir()) == ["aaa.parquet", "aaa.zarr"]
    before = [np.dstack(chip) for _, chip in each(out, first)]
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = cut(scene, out, rules=RULES)
    pd.testing.assert_frame_equal(pd.DataFrame(first), pd.DataFrame(again))
    assert stamps == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    np.testing.assert_array_equal(before, [np.dstack(chip) for _, chip in each(out, again)])


def test_a_set_is_whole_when_it_is_saved(made, tmp_path):
    copy = tmp_path / "chips"
    shutil.copytree(made.folder, copy)
    assert chip_set.load(copy).rules == chip_set.rules_record(
        RULES, catalog="towns", validation="kam", seed=0, empty_share=1.0
    )
    pd.testing.assert_frame_equal(pd.DataFrame(chip_set.load(copy).index), pd.DataFrame(made.index))
    (copy / "chips.json").unlink()
    with pytest.raises(InputError, match=r"no chips: chips\.json"):
        chip_set.load(copy)


# ---- labels


@pytest.mark.parametrize("transform", [TRANSFORM, ELSEWHERE])
def test_labels_in_degrees_and_in_metres_give_the_same_label(tmp_path, transform):
    footprints = [building(3, 4, 20, 25, transform), building(40, 30, 60, 61, transform)]
    image = noise(64, 64)
    degrees = labelled(tmp_path, footprints, image, transform=transform)
    gpd.GeoDataFrame(geometry=footprints, crs=CRS).to_file(tmp_path / "one.gpkg")
    metres = Scene("two", "acc", degrees.image, (str(tmp_path / "one.gpkg"),))
    both = [cut(scene, tmp_path / "out", rules=RULES) for scene in (degrees, metres)]
    for (_, a), (_, b) in zip(*(each(tmp_path / "out", index) for index in both), strict=True):
        np.testing.assert_array_equal(np.dstack(a), np.dstack(b))
    assert both[0].building_share.max() > 0


@pytest.mark.parametrize("nothing", [[], [None], [shapely.Polygon()]])
def test_labels_without_geometry_are_no_building(tmp_path, nothing):
    scene = labelled(tmp_path, [*nothing, building(3, 4, 20, 25)] if nothing else [], noise(64, 64))
    index = cut(scene, tmp_path / "out", rules=RULES)
    assert sum((chip.label == 1).sum() for _, chip in each(tmp_path / "out", index)) in (0, 17 * 21)


def test_labels_of_which_none_has_a_geometry_are_refused(tmp_path):
    with pytest.raises(InputError, match="none of its 2 features is a polygon on earth"):
        look(labelled(tmp_path, [None, None], noise(64, 64)))


def test_chips_are_cut_from_s3(scene, tmp_path, s3):
    from ocmlflow.storage import hrefs

    local = cut(scene, tmp_path / "local", rules=RULES)
    for href in (scene.image, *scene.labels):
        copy = tmp_path / "copy"
        shutil.copy(href, copy)
        hrefs.put(copy, f"{s3}/{href.split('/')[-1]}")
    there = Scene("aaa", "acc", f"{s3}/aaa.tif", (f"{s3}/aaa.geojson",))
    assert cut(there, tmp_path / "remote", rules=RULES).hash.tolist() == local.hash.tolist()


@pytest.fixture
def listed(made, tmp_path):
    """A copy of the chips of two towns, with the list of files that a run keeps beside them."""
    folder = tmp_path / "chips"
    shutil.copytree(made.folder, folder)
    hashes = {
        str(file.relative_to(folder)): {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in folder.rglob("*")
        if file.is_file()
    }
    (folder / chip_set.FILE_LIST).write_text(json.dumps(hashes))
    return folder


def flip(file, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def read_everything(folder) -> None:
    chips = chip_set.load(folder)
    for row in chips.index.itertuples():
        chip_set.read(folder, row)


def damage(folder) -> str:
    """The message with which reading the whole chip set ends, or nothing."""
    try:
        read_everything(folder)
    except InputError as error:
        return str(error)
    return ""


def test_a_changed_byte_anywhere_in_index_rules_or_shards_is_noticed(listed):
    read_everything(listed)
    names = ["index.parquet", "chips.json", "files.json"]
    names += [str(file.relative_to(listed)) for file in listed.glob("*.zarr/*/c.*")]
    draw = np.random.default_rng(0)
    for name in names:
        content = (listed / name).read_bytes()
        for position in draw.choice(len(content), 5):
            flip(listed / name, position)
            message = damage(listed)
            if message:
                assert message.startswith(f"{listed}/")
                assert message.endswith("prepare the chips again")
            else:  # the list has files that training does not read; compressed frames have bits without a meaning
                assert name == "files.json" or pixels_are_the_same(listed, name, content)
            (listed / name).write_bytes(content)


def pixels_are_the_same(folder, name: str, content: bytes) -> bool:
    """Whether a changed shard decodes to the pixels that the `content` of the file before decoded to."""
    index = chip_set.load(folder).index
    rows = [row for row in index.itertuples() if name.startswith(f"{row.scene}.zarr")]
    changed = [chip_set.read(folder, row) for row in rows]
    (folder / name).write_bytes(content)
    return all(
        np.array_equal(before, after)
        for row, chip in zip(rows, changed, strict=True)
        for before, after in zip(chip_set.read(folder, row), chip, strict=True)
    )


def test_a_shard_of_another_scene_is_noticed(listed):
    shutil.copyfile(listed / "aaa.zarr/image/c.0.0.0.0", listed / "kkk.zarr/image/c.0.0.0.0")
    with pytest.raises(
        InputError, match=r"kkk\.zarr/image/c\.0\.0\.0\.0 is damaged: by its hash in index\.parquet, chip kkk"
    ):
        read_everything(listed)


def test_targets_that_are_not_those_written_are_noticed(listed):
    shutil.copyfile(listed / "aaa.zarr/label/c.0.0.0", listed / "kkk.zarr/targets/c.0.0.0")
    with pytest.raises(InputError, match="is damaged: by its hash"):
        read_everything(listed)


@pytest.mark.parametrize("file", ["files.json", "chips.json", "index.parquet"])
def test_a_server_that_is_away_is_not_called_damage(listed, tmp_path, file):
    def fetch(name: str, first: int, count: int | None) -> bytes:
        if name == file:
            raise InputError(f"cannot read {name}: the server is away")
        return (listed / name).read_bytes()

    with pytest.raises(InputError, match=f"^cannot read {file}: the server is away$"):
        chip_set.load(zarr_store.RemoteFolder("s3://away/chips", fetch, tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "it is not JSON"),
        (b"[]", "it holds a list, not rules by their names"),
        (b"{}", "gsd is null, not a number"),
        (b'{"gsd": "0.1"}', 'gsd is "0.1", not a number'),
        (b'{"gsd": 0.1, "buffer_m": 0, "size": [32]}', r"size is \[32\], not a whole number"),
    ],
)
def test_rules_of_the_wrong_type_are_named(listed, content, message):
    (listed / chip_set.FILE_LIST).unlink()  # a set that no run keeps
    (listed / "chips.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"chips\.json is damaged: {message}"):
        chip_set.load(listed)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"chips.json": 1}', b"\xff"])
def test_a_list_of_files_that_is_none_is_named(listed, content):
    (listed / chip_set.FILE_LIST).write_bytes(content)
    with pytest.raises(InputError, match=r"files\.json is damaged"):
        chip_set.load(listed)


def test_an_index_that_cannot_be_read_is_named(listed):
    (listed / chip_set.FILE_LIST).unlink()
    (listed / "index.parquet").write_bytes((listed / "index.parquet").read_bytes()[:1000])
    with pytest.raises(InputError, match=r"index\.parquet is damaged: it cannot be read"):
        chip_set.load(listed)
    (listed / "index.parquet").unlink()
    with pytest.raises(InputError, match=r"index\.parquet is damaged: there is no such file"):
        chip_set.load(listed)
