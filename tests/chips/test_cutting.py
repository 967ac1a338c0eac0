"""Stores are the same whoever cuts them, however often it is interrupted, and nothing is lost on the way."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from conftest import (
    ELSEWHERE,
    GSD,
    TRANSFORM,
    building,
    cut,
    items,
    noise,
    rules_with,
    town,
    write_catalog,
    write_image,
    write_labels,
)

from ocmlflow import executors
from ocmlflow.chips import block_cutting, chip_set, cutting, labels, scene_survey, targets, zarr_store
from ocmlflow.errors import InputError
from ocmlflow.scenes import catalog
from ocmlflow.scenes.catalog import Scene

ROOT = Path(__file__).parents[2]
SMALL = rules_with(size=8, stride=8)  # a block is then 64 pixels


@pytest.fixture(scope="module")
def towns(tmp_path_factory) -> list[Scene]:
    """Two scenes of six blocks each, at blocks of 64 pixels."""
    folder = tmp_path_factory.mktemp("towns")
    places = {"acc/aaa": TRANSFORM, "kam/kkk": ELSEWHERE}
    drawn = {name: town(folder, name, transform=at, height=120, width=180) for name, at in places.items()}
    return catalog.read_scenes(write_catalog(folder, drawn))


def cut_all(scenes, folder: Path, *, rules=SMALL, executor=None, keep_empty=True) -> pd.DataFrame:
    folder.mkdir(parents=True, exist_ok=True)
    surveys = [scene_survey.survey(scene, gsd=rules.gsd, collar_m2=0, bbox=None) for scene in scenes]
    planned = pd.concat([chip_set.candidates(found, rules=rules) for found in surveys], ignore_index=True)
    with executor or ThreadPoolExecutor(1) as doing:
        found = cutting.cut(
            surveys, planned.assign(keep_empty=keep_empty), folder, rules=rules, executor=doing, progress=items
        )
        return pd.concat([rows for _, rows in found]).sort_values("id", ignore_index=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_one_two_or_many_workers_write_the_same_bytes(towns, tmp_path):
    alone = cut_all(towns, tmp_path / "one")
    assert len(alone) > 500
    cut_all(towns, tmp_path / "two", executor=executors.executor(2, None))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def share_of(scenes, folder: Path, share: tuple[int, int], *, rules=SMALL) -> int:
    """Cut one share of what `cut_all` cuts; returns how many blocks that were."""
    folder.mkdir(parents=True, exist_ok=True)
    surveys = [scene_survey.survey(scene, gsd=rules.gsd, collar_m2=0, bbox=None) for scene in scenes]
    planned = pd.concat([chip_set.candidates(found, rules=rules) for found in surveys], ignore_index=True)
    with ThreadPoolExecutor(1) as doing:
        blocks, failed = cutting.cut_share(
            surveys,
            planned.assign(keep_empty=True),
            folder,
            share=share,
            rules=rules,
            executor=doing,
            progress=items,
        )
    assert not failed
    return blocks


@pytest.mark.parametrize(("shares", "run"), [(1, 8), (2, 8), (5, 1), (30, 1)])
def test_shares_are_disjoint_cover_every_block_and_leave_nothing_to_cut(towns, tmp_path, monkeypatch, shares, run):
    monkeypatch.setattr(cutting, "BLOCKS_PER_JOB", run)
    parts = [share_of(towns, tmp_path / "shared", (number, shares)) for number in range(shares)]
    assert sum(parts) == 12  # a block cut twice would count twice
    assert max(parts) - min(parts) <= run
    assert share_of(towns, tmp_path / "shared", (0, 1)) == 0
    monkeypatch.setattr(block_cutting, "_cut_block", None)
    cut_all(towns, tmp_path / "shared")
    monkeypatch.undo()
    cut_all(towns, tmp_path / "alone")
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


SHARE = """
import sys
from pathlib import Path
from test_cutting import share_of
from ocmlflow.chips import cutting
from ocmlflow.scenes import catalog
cutting.BLOCKS_PER_JOB = 1
share_of(catalog.read_scenes(sys.argv[1]), Path(sys.argv[2]), (int(sys.argv[3]), 3))
"""


def test_shares_cut_at_the_same_time_and_one_killed_end_with_the_same_bytes(towns, tmp_path):
    command = [sys.executable, "-c", SHARE, towns[0].catalog, tmp_path / "shared"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "chips")])
    environment = {**os.environ, "PYTHONPATH": paths}
    shares = [subprocess.Popen([*command, str(number)], env=environment) for number in range(3)]
    while not written(tmp_path / "shared") and any(share.poll() is None for share in shares):
        time.sleep(0.01)
    shares[0].kill()
    shares[0].wait(60)
    assert [share.wait(60) for share in shares[1:]] == [0, 0]
    (tmp_path / "shared" / "aaa.left.new").mkdir()  # as a share leaves it that is killed while it makes a store
    cut_all(towns, tmp_path / "shared")
    cut_all(towns, tmp_path / "alone")
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == ["aaa.zarr", "kkk.zarr"]


SCRIPT = """
import sys
from pathlib import Path
from test_cutting import cut_all
from ocmlflow.chips import cutting
from ocmlflow.scenes import catalog
cutting.BLOCKS_PER_JOB = 1
cut_all(catalog.read_scenes(sys.argv[1]), Path(sys.argv[2]))
print("whole")
"""


def test_killed_again_and_again_it_ends_with_the_same_bytes(towns, tmp_path):
    """SIGKILL after every few files written, until a run comes to its end."""
    cut_all(towns, tmp_path / "whole")
    out = tmp_path / "out"
    out.mkdir()
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "chips")])
    command = [sys.executable, "-c", SCRIPT, towns[0].catalog, str(out)]
    kills = 0
    while True:
        before = written(out)
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)
        while process.poll() is None and written(out) < before + 4 + kills:
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        shown, _ = process.communicate()
        if "whole" in shown:
            break
        kills += 1
        assert kills < 50
    assert kills > 2
    assert contents(out) == contents(tmp_path / "whole")


def written(folder: Path) -> int:
    """Files of chips, and of what is whole, in a folder that a process may be writing at the moment."""
    return sum(name.startswith("c.") or name.endswith(".json") for _, _, names in os.walk(folder) for name in names)


def test_a_dask_cluster_whose_worker_is_killed_writes_the_same_bytes(towns, tmp_path):
    import distributed

    cut_all(towns, tmp_path / "one")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        executors.executor(1, cluster.scheduler_address) as executor,
    ):
        victim = executor.submit(os.getpid).result()
        killer = ThreadPoolExecutor(1).submit(kill_when, tmp_path / "dask", victim)
        (tmp_path / "dask").mkdir()
        cut_all(towns, tmp_path / "dask", executor=_kept_open(executor))
        assert killer.result() == victim
    assert contents(tmp_path / "dask") == contents(tmp_path / "one")


class _kept_open:  # noqa: N801
    """An executor whose block may end without ending it."""

    def __init__(self, executor):
        self.executor = executor

    def __enter__(self):
        return self.executor

    def __exit__(self, *_):
        pass


def kill_when(folder: Path, victim: int) -> int:
    """Kill a process as soon as the first block is whole."""
    deadline = time.monotonic() + 60
    while not list(folder.glob("*.part/blocks/*.json")) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(victim, signal.SIGKILL)
    return victim


@pytest.mark.parametrize("content", [b"", b"[1]", b'[{"row": 1}]', b"{"])
def test_damaged_records_of_an_interrupted_cut_are_named(towns, tmp_path, content):
    share_of(towns[:1], tmp_path, (0, 2))
    damaged = sorted(tmp_path.glob("aaa.zarr.part/blocks/*.json"))[0]
    damaged.write_bytes(content)
    message = re.escape(f"{damaged} is damaged (") + r".*\): delete .*/aaa\.zarr\.part, then its scene is cut again"
    with pytest.raises(InputError, match=message):
        cut_all(towns[:1], tmp_path)


def test_damaged_rows_of_a_finished_scene_are_named(towns, tmp_path):
    cut_all(towns[:1], tmp_path)
    rows = tmp_path / "aaa.zarr" / cutting.ROWS_FILE
    rows.write_bytes(rows.read_bytes()[:-30])
    with pytest.raises(InputError, match=re.escape(f"{rows} is damaged (")):
        cut_all(towns[:1], tmp_path)


def test_blocks_without_a_chip_take_no_file(tmp_path):
    valid = np.zeros((64, 200), bool)
    valid[:, :20] = True
    image = write_image(tmp_path / "one.tif", noise(64, 200), valid)
    index = cut(Scene("one", "acc", image), tmp_path / "out", rules=SMALL)
    assert len(index) == 8 * 3
    shards = sorted(path.name for path in (tmp_path / "out" / "one.zarr" / "image").glob("c.*"))
    assert shards == ["c.0.0.0.0"]


def test_empty_chips_are_written_only_where_they_are_wanted(towns, tmp_path):
    everything = cut_all(towns, tmp_path / "all")
    built = cut_all(towns, tmp_path / "built", keep_empty=False)
    assert built.id.tolist() == everything[everything.building_share > 0].id.tolist()
    assert 0 < len(built) < len(everything)


def test_near_outlines_scores_know_the_label_and_training_does_not(tmp_path):
    footprints = [building(10, 10, 40, 50)]
    image = write_image(tmp_path / "one.tif", noise(64, 64))
    scene = Scene("one", "acc", image, (write_labels(tmp_path / "one.geojson", footprints),))
    index = cut(scene, tmp_path / "out", rules=rules_with(size=64, stride=64, buffer_m=0.4))
    coded = chip_set.read(tmp_path / "out", index.iloc[0]).label
    label, valid = labels.decode(coded)
    np.testing.assert_array_equal(label, labels.rasterize(footprints, TRANSFORM, height=64, width=64))
    assert valid.all()
    ring = coded >= labels.NEAR_OUTLINE
    assert ring[10, 10:50].all()
    assert ring[6:14, 30].all()
    assert not ring[15:35, 15:45].any()
    assert not ring[5, 30]
    assert index.building_share[0] == pytest.approx(30 * 40 / 64**2)


def test_targets_tell_buildings_apart(tmp_path):
    footprints = [building(10, 10, 40, 30), building(10, 34, 40, 60)]  # 0.4 m apart
    image = write_image(tmp_path / "one.tif", noise(64, 64))
    scene = Scene("one", "acc", image, (write_labels(tmp_path / "one.geojson", footprints),))
    index = cut(scene, tmp_path / "out", rules=rules_with(size=64, stride=64))
    target = chip_set.read(tmp_path / "out", index.iloc[0]).targets
    assert (target[20, 31:33] & targets.TOUCH).all()
    assert not target[20, 11] & targets.CORE
    assert (target[20, 16:25] & targets.CORE).all()
    assert (target[25, 20] & targets.STEPS) * targets.CLIP_M / targets.STEPS == pytest.approx(0.95, abs=0.05)
    assert target[5, 5] == target[50, 31] == 0


@pytest.mark.parametrize(("stride", "buffer_m"), [(16, 0.3), (32, 2.0)])
def test_chips_show_what_is_drawn_around_footprints_of_other_blocks(tmp_path, stride, buffer_m):
    """Chips, overlapping or not, of blocks of two sizes, are windows of one drawing of the whole scene."""
    rng = np.random.default_rng(2)
    corners = TRANSFORM @ rng.uniform(0, 320, (2, 40))
    boxes = [shapely.box(x, y, x + 3, y + 2) for x, y in zip(*corners, strict=True)]
    footprints = [shapely.affinity.rotate(one, angle) for one, angle in zip(boxes, range(40), strict=True)]
    image = write_image(tmp_path / "one.tif", noise(320, 320), how="nothing")
    scene = Scene("one", "acc", image, (write_labels(tmp_path / "one.geojson", footprints),))
    rules = rules_with(stride=stride, buffer_m=buffer_m)
    index = cut(scene, tmp_path / "out", rules=rules)
    drawn = scene_survey.survey(scene, gsd=GSD, collar_m2=0, bbox=None).footprints.polygons
    place = {"transform": TRANSFORM, "height": 320, "width": 320}
    ring = labels.near_outline(drawn, buffer_m=buffer_m, **place)
    coded = labels.encode(labels.rasterize(drawn, **place), np.True_, ring)
    target = targets.draw(drawn, gsd=GSD, **place)
    assert len(index) == (320 // stride - 32 // stride + 1) ** 2
    for chip in index.itertuples():
        at = np.s_[chip.row : chip.row + 32, chip.col : chip.col + 32]
        stored = chip_set.read(tmp_path / "out", chip)
        np.testing.assert_array_equal(stored.label, coded[at])
        np.testing.assert_array_equal(stored.targets, target[at])


def spoil(path: str, *, how: str) -> None:
    """Cut a GeoTIFF off, or overwrite some of its compressed tiles."""
    content = bytearray(Path(path).read_bytes())
    if how == "truncated":
        Path(path).write_bytes(content[: len(content) * 2 // 3])
    else:
        middle = len(content) // 2
        content[middle : middle + len(content) // 4] = b"\x00" * (len(content) // 4)
        Path(path).write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "corrupt"])
@pytest.mark.parametrize("gsd", [0.1, 0.15])
@pytest.mark.parametrize("crs", ["EPSG:32630", "EPSG:32631"], ids=["resized", "warped"])
def test_a_broken_image_is_a_named_error_never_a_hole(tmp_path, how, gsd, crs):
    image = write_image(tmp_path / "plain.tif", noise(300, 300), how="nothing", crs=crs)
    with rasterio.open(image) as file:
        tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
        with rasterio.open(tmp_path / "one.tif", "w", **{**file.profile, **tiles}) as tiled:
            tiled.write(file.read())
    spoil(str(tmp_path / "one.tif"), how=how)
    scene = Scene("one", "acc", str(tmp_path / "one.tif"))
    with pytest.raises(InputError, match=r"cannot (read|open) image .*one\.tif"):
        cut(scene, tmp_path / "out", rules=rules_with(gsd=gsd))


def test_a_full_disk_is_no_unreadable_scene(towns, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zarr_store, "write", full)
    with pytest.raises(OSError, match="No space left"):
        cut_all(towns, tmp_path / "out")
    monkeypatch.undo()
    cut_all(towns, tmp_path / "whole")
    cut_all(towns, tmp_path / "out")  # goes on
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_nothing_of_the_making_stays(towns, tmp_path):
    cut_all(towns, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aaa.zarr", "kkk.zarr"]
    assert not list(tmp_path.rglob("*.new")) + list(tmp_path.rglob("*.part"))


def test_ten_thousand_windows_are_hundreds_of_files(tmp_path):
    """With 100 x 100 chips of 8 pixels, as many as a scene of 5 km at 0.1 m has of 512."""
    image = write_image(tmp_path / "one.tif", noise(800, 800), how="nothing")
    index = cut(Scene("one", "acc", image), tmp_path / "out", rules=SMALL)
    assert len(index) == 10_000
    assert len(contents(tmp_path / "out")) < 600
