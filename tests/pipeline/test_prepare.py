"""The verb `prepare`, called in this process on small scenes."""

import errno
import fcntl
import json
import re
import shutil
from pathlib import Path

import distributed
import geopandas as gpd
import mlflow
import numpy as np
import pystac
import pytest
import shapely
from affine import Affine
from conftest import CRS, GSD, TRANSFORM, building, noise, parsed, town, write_catalog, write_image, write_labels
from mlflow import MlflowClient

from ocmlflow.chips import chip_set, drawn_buildings, splits
from ocmlflow.errors import InputError
from ocmlflow.pipeline import prepare, work_folder
from ocmlflow.storage import hrefs
from ocmlflow.tracking import chip_artifacts
from ocmlflow.tracking import runs as tracking_runs

# In this process MLflow's and Dask's libraries warn of one another.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """An MLflow store of this module's own."""
    folder = tmp_path_factory.mktemp("mlflow")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment("prepare", artifact_location=(folder / "artifacts").as_uri())
    yield
    mlflow.set_tracking_uri(before)


@pytest.fixture
def run(tracked, monkeypatch, tmp_path):
    """Calls `prepare` with these parameters; returns its run and its chips."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")
    mlflow.set_experiment("prepare")

    def call(**parameters):
        prepare.run(parsed("prepare", words(**{"work": tmp_path / "work", **parameters})))
        experiment = mlflow.get_experiment_by_name("prepare").experiment_id
        (made,) = MlflowClient().search_runs([experiment], order_by=["attributes.end_time DESC"], max_results=1)
        return made, chip_set.load(hrefs.local_path(made.info.artifact_uri) / "chips")

    return call


def words(**parameters) -> list[str]:
    """A command line, with small chips and one process."""
    given = {"size": 64, "workers": 1, **parameters}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def places(folder: Path, *, every: int = 1) -> str:
    """A catalogue of two scenes of one place and one of another, a kilometre apart; `every` how many roofs is drawn."""
    drawn = {}
    for number, name in enumerate(("acc/a1", "acc/a2", "kam/k1")):
        at = TRANSFORM @ Affine.translation(10_000 * number, 0)
        drawn[name] = town(folder, name, transform=at, height=200, width=300, seed=number)[number::every]
    return write_catalog(folder, drawn)


def test_scenes_can_be_chosen_and_come_from_several_catalogues(tmp_path, run):
    first = places(tmp_path / "first")
    other = tmp_path / "town"
    roofs = [building(10, 10, 40, 40, TRANSFORM @ Affine.translation(50_000, 0))]
    write_image(other / "plain.tif", noise(130, 130), transform=TRANSFORM @ Affine.translation(50_000, 0))
    write_labels(other / "plain.geojson", roofs)
    _, made = run(catalog=f"{first},{other}", scenes="a1,k1,plain", validation="town")
    assert set(made.index.scene) == {"a1", "k1", "plain"}
    assert set(made.select("validation").scene) == {"plain"}
    assert set(made.index.catalog) == {first, str(other)}
    _, made = run(catalog=first, places="acc", validation="a2")
    assert set(made.index.scene) == {"a1", "a2"}


@pytest.fixture
def runs(tracked):
    """Run ids of all `prepare` runs, and what of their chips lies in the artifact store."""

    def look() -> dict[str, set[str]]:
        experiment = mlflow.get_experiment_by_name("prepare").experiment_id
        made = MlflowClient().search_runs([experiment], f"tags.`{tracking_runs.VERB}` = 'prepare'")
        found = {run.info.run_id: run.info.artifact_uri for run in made}
        return {
            run_id: set(hrefs.list_recursive(str(hrefs.local_path(uri) / "chips"))) for run_id, uri in found.items()
        }

    return look


def test_chips_that_are_there_are_neither_cut_nor_sent_again(tmp_path, run, runs, caplog):
    caplog.set_level("INFO")
    one, other = ({"catalog": places(tmp_path / name), "validation": "kam"} for name in ("one", "other"))
    first, _ = run(**one)
    last, _ = run(**other)
    before = runs()
    prepare.run(parsed("prepare", words(**one, work=tmp_path / "elsewhere")))
    assert f"run {first.info.run_id} made these chips, and they are all there" in caplog.text
    assert runs() == before
    assert not list((tmp_path / "elsewhere").rglob("*.zarr"))
    with tracking_runs.run("train", {}):  # takes what was asked for last
        assert chip_artifacts.resolve_run(None) == first.info.run_id
    (hrefs.local_path(first.info.artifact_uri) / "chips" / "a1.zarr" / "image" / "c.0.0.0.0").unlink()
    caplog.clear()
    prepare.run(parsed("prepare", words(**one, work=tmp_path / "elsewhere")))
    assert re.search(r"1 files of chips sent, 0\.\d MB", caplog.text)
    assert runs() == before
    shard = hrefs.local_path(first.info.artifact_uri) / "chips" / "k1.zarr" / "image" / "c.0.0.0.0"
    content = shard.read_bytes()
    shard.write_bytes(bytes([content[0] ^ 1]) + content[1:])  # of the right size
    caplog.clear()
    prepare.run(parsed("prepare", words(**one, work=tmp_path / "elsewhere")))
    assert re.search(r"1 files of chips sent, 0\.\d MB", caplog.text)
    assert shard.read_bytes() == content
    assert MlflowClient().get_run(first.info.run_id).info.status == "FINISHED"
    assert last.info.run_id in before


@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_a_run_that_broke_off_while_it_sent_goes_on(tmp_path, run, runs, caplog, monkeypatch, how):
    caplog.set_level("INFO")
    rules = {"catalog": places(tmp_path / "data"), "validation": "kam", "work": tmp_path / "work"}
    before, send_one, sent = set(runs()), chip_artifacts._upload_file, []

    def until_the_fourth(repository, source, name: str) -> None:
        if len(sent) == 4:
            raise KeyboardInterrupt
        sent.append(name)
        send_one(repository, source, name)

    monkeypatch.setattr(chip_artifacts, "_upload_file", until_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        prepare.run(parsed("prepare", words(**rules)))
    monkeypatch.setattr(chip_artifacts, "_upload_file", send_one)
    (broken,) = runs().keys() - before
    there = runs()[broken] - {chip_artifacts.FILE_LIST}
    assert there == set(sent)
    if how == "killed":  # at once, so that nobody told the server
        MlflowClient().update_run(broken, status="RUNNING")
    made, found = run(**rules)
    assert made.info.run_id == broken
    assert made.info.status == "FINISHED"
    count = int(re.findall(r"(\d+) files of chips sent", caplog.text)[-1])
    assert count == len(runs()[broken]) - 1 - len(there)
    for row in found.index.itertuples():
        assert chip_set.read(found.folder, row).image.shape == (64, 64, 3)


def test_test_ground_is_held_out_whole(tmp_path, run):
    made, found = run(catalog=places(tmp_path, every=25), validation="a2", test="kam", empty_share=0)
    split = {name: found.select(name) for name in ("train", "validation", "test")}
    assert {name: set(rows.scene) for name, rows in split.items()} == {
        "train": {"a1"},
        "validation": {"a2"},
        "test": {"k1"},
    }
    assert split["train"].building_share.all()
    # Scores see all of the ground: 4 x 5 chips, of which that in the corner shows too little.
    assert len(split["test"]) == made.data.metrics["test/chips"] == 19
    assert found.rules["test"] == "kam"
    rows = json.loads((found.folder / "scenes.json").read_text())
    assert [row["test"] for row in rows] == [0, 0, 19]


def test_every_fold_is_held_out_once_and_touches_no_training(tmp_path, run):
    made, found = run(catalog=places(tmp_path, every=25), folds=3, block_m=1000, empty_share=0.5)
    assert set(found.index.fold) == {0, 1, 2}
    held = []
    for fold in range(3):
        split = chip_set.load(found.folder, fold=fold)
        splits.check_disjoint(split.index)
        validation, train = split.select("validation"), split.select("train")
        assert (validation.fold == fold).all()
        assert not (train.fold == fold).any()
        empty = found.index[(found.index.fold == fold) & (found.index.building_share == 0)]
        assert set(empty.id) <= set(validation.id)  # scores see all of the ground
        assert 0 < (train.building_share == 0).sum() < (found.index[found.index.fold != fold].building_share == 0).sum()
        held += validation.id.tolist()
    assert sorted(held) == sorted(found.index.id)
    with pytest.raises(InputError, match="fold=3: these chips have folds 0 to 2"):
        chip_set.load(found.folder, fold=3)
    assert made.data.params["folds"] == "3"
    assert "validation" not in made.data.params  # whose default is of runs without folds
    assert found.rules["validation"] == "fold 0"


def test_chips_without_folds_have_none(tmp_path, run):
    _, found = run(catalog=places(tmp_path), validation="kam")
    with pytest.raises(InputError, match="these chips have no folds"):
        chip_set.load(found.folder, fold=0)
    rules = {**found.rules, "stride": 48}  # as earlier versions took it
    shutil.copytree(found.folder, tmp_path / "old")
    (tmp_path / "old" / chip_set.FILE_LIST).unlink()  # else the change of the rules would be noticed
    chip_set.save(tmp_path / "old", found.index.assign(fold=0), rules, [], {})
    with pytest.raises(InputError, match=r"fold=0: these chips come from an earlier version.* prepare them again"):
        chip_set.load(tmp_path / "old", fold=0)


def test_empty_chips_are_thinned_in_training_alone(tmp_path, run):
    catalog = places(tmp_path, every=25)
    _, everything = run(catalog=catalog, validation="kam")
    _, thinned = run(catalog=catalog, validation="kam", empty_share=0.3)
    for split, kept in (("train", 0.3), ("validation", 1.0)):
        before, after = everything.select(split), thinned.select(split)
        built = before[before.building_share > 0]
        assert set(built.id) <= set(after.id) <= set(before.id)
        empties = (len(before) - len(built), len(after) - len(built))
        assert empties[1] == pytest.approx(kept * empties[0], abs=1 + 0.25 * empties[0] * (kept < 1))
    _, again = run(catalog=catalog, validation="kam", empty_share=0.3)
    assert chip_set.digest(again.index) == chip_set.digest(thinned.index)


def test_the_set_says_what_it_was_made_of(tmp_path, run):
    made, found = run(catalog=places(tmp_path), validation="kam")
    item = pystac.Item.from_file(str(found.folder / "item.json"))
    assert {Path(link.href).stem for link in item.links if link.rel == "derived_from"} == {"a1", "a2", "k1"}
    assert set(item.assets) == {"a1", "a2", "k1", "index", "footprints"}
    assert all((found.folder / asset.href).exists() for asset in item.assets.values())
    scenes = {row["scene"]: row for row in json.loads((found.folder / "scenes.json").read_text())}
    for scene, rows in found.index.groupby("scene"):
        row = scenes[scene]
        assert row["train"] + row["validation"] == len(rows)
        assert row["native_gsd"] == pytest.approx(GSD, rel=0.01)
        assert np.hypot(row["shift_east_m"], row["shift_north_m"]) < 0.1
        pixels = np.concatenate(
            [np.dstack(chip_set.read(found.folder, row)).reshape(-1, 5) for row in rows.itertuples()]
        )
        valid = pixels[:, 3] != 255
        assert row["building_share"] == pytest.approx((pixels[valid, 3] == 1).mean(), abs=1e-4)
        for band, name in enumerate(("red", "green", "blue")):
            assert row[name] == pytest.approx(pixels[valid, band].mean(), rel=0.15)  # of a sixteenth
    files = {file.path for file in MlflowClient().list_artifacts(made.info.run_id)}
    assert {"chips", "previews", "scenes.json", "split.png"} <= files


def test_a_dry_run_says_what_would_be_done_and_touches_nothing(tmp_path, monkeypatch, capsys):
    catalog = places(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlflow, "start_run", None)
    words = f"--catalog {catalog} --validation kam --test a2 --size 64 --workers 1 --dry_run true"
    prepare.run(parsed("prepare", words.split()))
    shown = capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    # 200 x 300 pixels are 4 x 5 chips of 64, of which nine tenths of that in the corner lie beyond the edge.
    splits = [line.split()[-4:] for line in shown.splitlines()[:4]]
    assert splits[0] == ["chips", "train", "validation", "test"]
    assert splits[1:] == [["19", "19", "0", "0"], ["19", "0", "0", "19"], ["19", "0", "19", "0"]]
    assert "about 57 chips of 3 scenes; at most 1 MB to read and 1 MB to write" in shown


def spoil_image(folder: Path) -> None:
    path = folder / "acc/a2/a2.tif"
    path.write_bytes(path.read_bytes()[:90_000])


def spoil_labels(folder: Path) -> None:
    path = folder / "acc/a2-labels/a2.geojson"
    path.write_bytes(path.read_bytes()[:300])


def lose_image(folder: Path) -> None:
    (folder / "acc/a2/a2.tif").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_image, r"cannot read image .*a2\.tif"),
        (spoil_labels, r"labels .*a2\.geojson of scene a2: it cannot be read"),
        (lose_image, r"cannot open image .*a2\.tif"),
    ],
)
def test_a_scene_that_cannot_be_read_fails_the_run_or_is_counted(tmp_path, run, spoil, message):
    catalog = places(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        run(catalog=catalog, validation="kam")
    made, found = run(catalog=catalog, validation="kam", skip_unreadable="true")
    assert set(found.index.scene) == {"a1", "k1"}
    assert made.data.metrics["unreadable_scenes"] == 1
    status = {row["scene"]: row["status"] for row in json.loads((found.folder / "scenes.json").read_text())}
    assert status["a1"] == status["k1"] == "cut"
    assert status["a2"].startswith("unreadable: ")
    assert sorted(path.name for path in found.folder.glob("*.zarr*")) == ["a1.zarr", "k1.zarr"]
    again, _ = run(catalog=catalog, validation="kam", skip_unreadable="true")
    assert again.info.run_id != made.info.run_id  # it is tried anew: the fault may have passed


def test_what_a_scene_is_called_and_where_it_belongs_names_its_chips_too(tmp_path, run):
    catalog = places(tmp_path)
    first, _ = run(catalog=catalog, validation="kam")
    path = tmp_path / "acc/collection.json"
    path.write_text(path.read_text().replace('"acc"', '"mon"'))
    second, found = run(catalog=catalog, validation="kam")
    assert second.info.run_id != first.info.run_id
    assert set(found.index.place) == {"mon", "kam"}


@pytest.mark.parametrize(("status", "times", "fails"), [(503, 2, False), (403, 99, True), (404, 99, True)])
def test_a_server_that_is_busy_is_asked_again_and_a_no_is_told(tmp_path, run, web, status, times, fails):
    folder, address, answers = web
    places(folder)
    answers["/acc/a2/a2.tif"] = [status] * times
    answers["/acc/a2-labels/a2.geojson"] = [503]
    if fails:
        with pytest.raises(InputError, match=r"cannot open image http.*a2\.tif"):
            run(catalog=f"{address}/catalog.json", validation="kam")
    else:
        _, found = run(catalog=f"{address}/catalog.json", validation="kam")
        assert set(found.index.scene) == {"a1", "a2", "k1"}


def test_what_cannot_be_split_fails_before_a_chip_is_cut(tmp_path, run, monkeypatch):
    monkeypatch.setattr("ocmlflow.chips.cutting.cut", None)
    with pytest.raises(InputError, match=r"validation=0\.2 puts 20 of 20 chips into validation"):
        run(catalog=places(tmp_path), scenes="a1", block_m=500)
    catalog = str(tmp_path / "catalog.json")
    with pytest.raises(InputError, match="folds=9: the scenes lie on 3 blocks of 500 m"):
        run(catalog=catalog, folds=9, block_m=500)
    with pytest.raises(
        InputError, match=r"chips of 19\.2 m are too few .* Use smaller chips, such as size=\d+, or more"
    ):
        run(catalog=catalog, scenes="a1", size=192)


def test_one_small_scene_is_split_by_default(tmp_path, run):
    _, chips = run(catalog=places(tmp_path), scenes="a1")
    assert len(chips.select("train")) >= 6
    assert len(chips.select("validation")) >= 2


def test_a_folder_without_labels_is_told_how_they_are_named(tmp_path, run):
    write_image(tmp_path / "town" / "s.tif", noise(64, 64))
    (tmp_path / "town" / "s.txt").touch()
    with pytest.raises(InputError, match=r"by its image's name \(NAME\.geojson, "):
        run(catalog=tmp_path / "town")


def test_no_scene_in_the_box_is_told(tmp_path, run):
    with pytest.raises(InputError, match=r"no scene of .* with labels can be cut; bbox=\(10\.0, 10\.0"):
        run(catalog=places(tmp_path), validation="kam", bbox="10,10,11,11")


def test_a_cluster_must_see_the_folder_of_the_chips(tmp_path, run):
    """And where it does, it makes the same chips."""
    catalog = places(tmp_path)
    _, alone = run(catalog=catalog, validation="kam")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        _, spread = run(catalog=catalog, validation="kam", scheduler=cluster.scheduler_address)
    assert chip_set.digest(spread.index) == chip_set.digest(alone.index)


def test_shares_and_the_run_after_them_make_the_chips_of_one_run(tmp_path, run, caplog):
    catalog = places(tmp_path / "data")
    rules = {"catalog": catalog, "validation": "kam", "size": 64, "stride": 8}  # several blocks a scene
    lone, alone = run(**rules)
    MlflowClient().delete_run(lone.info.run_id)  # whose chips would be taken
    before = len(MlflowClient().search_runs([mlflow.get_experiment_by_name("prepare").experiment_id]))
    caplog.set_level("INFO")
    for number in range(2):
        words = [word for name, value in rules.items() for word in (f"--{name}", str(value))]
        words += ["--share", f"{number}/2", "--workers", "1", "--work", str(tmp_path / "shared")]
        prepare.run(parsed("prepare", words))
    after = len(MlflowClient().search_runs([mlflow.get_experiment_by_name("prepare").experiment_id]))
    assert after == before
    blocks = [int(n) for n in re.findall(r"share \d/2: (\d+) blocks cut", caplog.text)]
    assert len(blocks) == 2
    assert min(blocks) > 0
    made, together = run(**rules, work=tmp_path / "shared")
    assert chip_set.digest(together.index) == chip_set.digest(alone.index)
    for file in sorted(path for path in alone.folder.rglob("*") if path.is_file()):
        assert (together.folder / file.relative_to(alone.folder)).read_bytes() == file.read_bytes(), file
    assert {path.name for path in (tmp_path / "shared/prepare").iterdir() if path.is_dir()} == set()  # all handed on
    assert made.info.status == "FINISHED"


def test_a_share_that_is_still_cutting_keeps_the_run_after_it_waiting(tmp_path, run):
    work = tmp_path / "work"
    with (
        work_folder.hold(work, shared=True),
        work_folder.hold(work, shared=True),
        pytest.raises(InputError, match="another process is doing the same work"),
        work_folder.hold(work),
    ):
        pytest.fail("both at once")
    assert (tmp_path / "work").is_dir()


def test_a_disk_over_nfs_locks_and_one_that_cannot_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("portalocker.portalocker.LOCKER", fcntl.lockf)  # which is what a client of NFS makes of it
    for shared in (True, False):
        with work_folder.hold(tmp_path / "work", shared=shared):
            pass

    def refused(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("portalocker.portalocker.LOCKER", refused)
    with pytest.raises(InputError, match=r"work cannot lock files .*give a folder on another one with work="):  # noqa: SIM117
        with work_folder.hold(tmp_path / "work"):
            pass


def test_training_ignores_the_ring_and_scores_do_not(tmp_path, run):
    _, found = run(catalog=places(tmp_path), validation="kam", buffer_m=0.3)
    assert found.rules["buffer_m"] == 0.3
    coded = np.concatenate([chip_set.read(found.folder, row).label.ravel() for row in found.index.itertuples()])
    assert set(np.unique(coded)) == {0, 1, 2, 3, 255}
    assert (found.folder / "a1.zarr" / "targets").is_dir()


def test_black_of_a_scene_is_believed_only_if_asked(tmp_path, run):
    drawn = {}
    for number, name in enumerate(("acc/a1", "kam/k1")):
        at = TRANSFORM @ Affine.translation(10_000 * number, 0)
        image = noise(400, 400, seed=number)
        image[:, :330] = 0
        write_image(tmp_path / name / f"{name[4:]}.tif", image, transform=at)
        drawn[name] = [building(20, 340, 60, 390, at)]
    catalog = write_catalog(tmp_path, drawn)
    _, doubted = run(catalog=catalog, validation="kam")
    _, believed = run(catalog=catalog, validation="kam", collar_m2=0)
    assert len(believed.index) == 2 * 48  # and a corner of 6 %
    assert len(doubted.index) == 2 * (7 * 2 - 1)
    assert doubted.index.red.min() > 20


def test_labels_are_chosen_by_file_property_and_ground(run, tmp_path, caplog):
    """One file for all scenes, with what is no building in it, of ground that was labelled in part."""
    roofs = {}
    for number, name in enumerate(("a", "b")):
        at = TRANSFORM @ Affine.translation(10_000 * number, 0)
        roofs[name] = town(tmp_path, name, transform=at, height=200, width=300, seed=number)
        shutil.copytree(tmp_path / name, tmp_path / "scenes", dirs_exist_ok=True)
    shapes = [*roofs["a"], *roofs["b"]]
    kinds = ["no", *["yes"] * (len(shapes) - 1)]
    frame = gpd.GeoDataFrame({"building": kinds}, geometry=shapes, crs=CRS)
    frame.to_parquet(tmp_path / "city.parquet")
    ground = [shapely.box(500_000, 619_900, 500_020, 620_000), shapely.box(501_000, 619_900, 501_100, 620_000)]
    gpd.GeoSeries(ground, crs=CRS).to_crs(4326).to_file(tmp_path / "ground.geojson")
    given = {"catalog": tmp_path / "scenes", "labels": tmp_path / "city.parquet", "validation": "b", "min_valid": 0.001}
    _, whole = run(**given)
    assert "1 of building=no seem to be no buildings" in caplog.text
    made, chosen = run(**given, where="building!='no'", aoi=tmp_path / "ground.geojson")
    table = {row["scene"]: row for row in json.loads((chosen.folder / "scenes.json").read_text())}
    for row in table.values():
        states = ("used", "repaired", "empty", "outside", "refused", "left_out")
        assert sum(row[state] for state in states) == row["footprints"]
    assert table["a"]["footprints"] == len(roofs["a"]) - 1  # of a shared file, what is left out is counted once in all
    assert table["b"]["footprints"] == len(roofs["b"])
    valid_m2 = {
        name: (chips.index.valid_share * 64**2 * GSD**2)[chips.index.scene == "a"].sum()
        for name, chips in (("whole", whole), ("chosen", chosen))
    }
    assert valid_m2 == pytest.approx({"whole": 600 - 4, "chosen": 400 - 4}, abs=1)
    assert made.data.params["where"] == "building!='no'"


def test_the_drawn_footprints_lie_among_the_chips_each_once(tmp_path, run):
    catalog = places(tmp_path / "towns")
    drawn = gpd.read_file(next((tmp_path / "towns").rglob("a1*.geojson")))
    drawn_twice = gpd.GeoDataFrame(geometry=[*drawn.geometry, drawn.geometry.iloc[0]], crs=drawn.crs)
    drawn_twice.to_file(next((tmp_path / "towns").rglob("a1*.geojson")), driver="GeoJSON")
    made, chips = run(catalog=catalog, validation="kam")
    found = drawn_buildings.read(chips, ["a1"])
    assert set(found.scene) == {"a1"}
    assert found.number.tolist() == list(range(len(drawn)))
    np.testing.assert_allclose(found.area_m2, shapely.area(drawn.to_crs(CRS).geometry), atol=0.01)
    assert shapely.union_all(found.geometry).symmetric_difference(shapely.union_all(drawn.geometry)).area < 1e-14
    assert set(drawn_buildings.read(chips, ["a1", "k1"]).scene) == {"a1", "k1"}
    file = hrefs.local_path(made.info.artifact_uri) / "chips" / drawn_buildings.NAME
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"footprints.parquet.*SHA-256"):
        drawn_buildings.read(chips, ["a1"])
    file.unlink()
    with pytest.raises(InputError, match="no such file"):
        drawn_buildings.read(chips, ["a1"])
