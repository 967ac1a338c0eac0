import errno
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ocmlflow.chips import chip_set, zarr_store
from ocmlflow.errors import InputError
from ocmlflow.storage import hrefs, range_cache, s3
from ocmlflow.storage.range_cache import RangeCache
from ocmlflow.storage.s3 import ServerUnavailableError
from ocmlflow.training.dataset import Crops, WholeChips

ROOT = Path(__file__).parents[2]


def entry(cache: RangeCache, name: str, size: int) -> bytes:
    """Bytes that only that name has, through the cache."""
    return cache.read(name, size, lambda part: part.write_bytes(content(name, size)), 0, size)


def content(name: str, size: int) -> bytes:
    return random.Random(name).randbytes(size)


def held(folder: Path) -> int:
    return sum(
        file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.name != range_cache.SIZE_FILE
    )


def far_folder(fetch, cache):
    return zarr_store.RemoteFolder("s3://far", fetch, cache)


HAMMER = """
import random, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from ocmlflow.storage.range_cache import RangeCache
cache = RangeCache(Path(sys.argv[1]), 100_000)
def some(seed):
    draw = random.Random(seed)
    for _ in range(150):
        name, size = f"a/{draw.randrange(60)}", draw.randrange(3_000, 3_004)
        content = random.Random(name).randbytes(size)
        assert cache.read(f"{name}-{size}", size, lambda part: part.write_bytes(content), 0, size) == content
with ThreadPoolExecutor(4) as threads:
    list(threads.map(some, range(4)))
"""


def test_the_cache_stays_bounded_and_correct_under_many_threads_and_processes(tmp_path):
    command = [sys.executable, "-c", HAMMER, str(tmp_path / "cache")]
    at_work = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    most = 0
    while any(process.poll() is None for process in at_work):
        if (tmp_path / "cache").exists():
            most = max(most, held_meanwhile(tmp_path / "cache"))
    assert [process.returncode for process in at_work] == [0, 0]
    assert 50_000 < most <= 100_000 + 2 * 4 * 3_003  # and what each thread is just writing
    assert 50_000 < held(tmp_path / "cache") <= 100_000
    assert not list((tmp_path / "cache" / range_cache.PARTIAL_FOLDER).iterdir())


def held_meanwhile(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def test_the_least_recently_used_files_are_evicted(tmp_path):
    cache = RangeCache(tmp_path, 10_000)
    for number in range(9):
        entry(cache, str(number), 1_000)
        os.utime(tmp_path / str(number), (time.time() - 100 + number,) * 2)
    entry(cache, "0", 1_000)
    for number in range(9, 12):
        entry(cache, str(number), 1_000)
    assert {path.name for path in tmp_path.iterdir()} >= {"0", "8", "9", "10", "11"}
    assert not (tmp_path / "1").exists()
    assert held(tmp_path) <= 10_000


def test_a_file_larger_than_the_cache_is_read_and_not_kept(tmp_path):
    cache = RangeCache(tmp_path, 1_000)
    assert entry(cache, "large", 2_000) == content("large", 2_000)
    assert held(tmp_path) == 0


def test_an_incomplete_file_is_fetched_again(tmp_path):
    cache = RangeCache(tmp_path, 10_000)
    entry(cache, "a", 1_000)
    (tmp_path / "a").write_bytes(b"half")  # the machine went down
    assert entry(cache, "a", 1_000) == content("a", 1_000)
    with pytest.raises(OSError, match="b has 5 bytes where 1000 were expected"):
        cache.read("b", 1_000, lambda part: part.write_bytes(b"short"), 0, 5)
    assert {path.name for path in tmp_path.iterdir()} == {"a", range_cache.SIZE_FILE, range_cache.PARTIAL_FOLDER}


def test_abandoned_partial_files_are_evicted(tmp_path):
    cache = RangeCache(tmp_path, 10_000)
    entry(cache, "a", 1_000)
    for name, age in (("old", 2 * range_cache.ABANDONED_S), ("new", 0)):
        (tmp_path / range_cache.PARTIAL_FOLDER / name).write_bytes(bytes(4_000))
        os.utime(tmp_path / range_cache.PARTIAL_FOLDER / name, (time.time() - age,) * 2)
    (tmp_path / range_cache.SIZE_FILE).write_text("9500")
    entry(cache, "b", 1_000)
    assert [path.name for path in (tmp_path / range_cache.PARTIAL_FOLDER).iterdir()] == ["new"]


def test_the_cache_shrinks_on_a_full_disk(tmp_path):
    cache = RangeCache(tmp_path, 100_000)
    for number in range(10):
        entry(cache, str(number), 1_000)
    tries = []

    def make(part: Path) -> None:
        tries.append(held(tmp_path))
        if tries[-1] > 6_000:
            part.write_bytes(b"as far as it went")
            raise OSError(errno.ENOSPC, "No space left on device")
        part.write_bytes(bytes(1_000))

    assert cache.read("late", 1_000, make, 0, 1_000) == bytes(1_000)
    assert tries[0] == 10_000
    assert tries[1] <= 5_100
    entry(cache, "later", 1_000)
    assert held(tmp_path) <= 6_000


def test_threads_wait_for_a_file_that_another_fetches(tmp_path):
    cache, made, go = RangeCache(tmp_path, 10_000), [], threading.Event()

    def make(part: Path) -> None:
        made.append(1)
        go.wait(10)
        part.write_bytes(bytes(1_000))

    with ThreadPoolExecutor(4) as threads:
        coming = [threads.submit(cache.read, "a", 1_000, make, 0, 1_000) for _ in range(4)]
        while not made:
            time.sleep(0.01)
        go.set()
        assert {future.result() for future in coming} == {bytes(1_000)}
    assert made == [1]


def test_the_size_limit_is_the_setting_or_half_of_the_disk(tmp_path, monkeypatch):
    assert 0 < range_cache.size_limit(tmp_path / "new") <= range_cache.LIMIT_GB * 1e9
    monkeypatch.setenv("OCMLFLOW_CACHE_GB", "0.5")
    assert range_cache.size_limit(tmp_path) == 500_000_000
    for wrong in ("much", "-1", "inf", "nan"):
        monkeypatch.setenv("OCMLFLOW_CACHE_GB", wrong)
        with pytest.raises(InputError, match=f"OCMLFLOW_CACHE_GB={wrong}: a number of gigabytes"):
            range_cache.size_limit(tmp_path)


@pytest.fixture
def fetched(monkeypatch) -> list[tuple[str, int]]:
    """The parts that are asked of S3, and their bytes."""
    asked: list[tuple[str, int]] = []
    read = s3.read_range

    def span(href: str, first: int, last: int) -> bytes:
        asked.append((href, last - first + 1))
        return read(href, first, last)

    monkeypatch.setattr(s3, "read_range", span)
    return asked


@pytest.fixture
def in_s3(made, s3) -> str:
    hrefs.mirror(str(made.folder), s3)
    return s3


def same(found: tuple, expected: tuple) -> bool:
    """Whether two chips, or two batches, are alike."""
    return all(np.array_equal(*parts) for parts in zip(found, expected, strict=True))


@pytest.mark.parametrize("small", [range_cache.WHOLE_FILE_BYTES, 100])
def test_chips_from_s3_equal_those_on_disk_and_are_fetched_once(made, in_s3, fetched, tmp_path, monkeypatch, small):
    """As small files, whole, and as large ones, in parts."""
    monkeypatch.setattr(range_cache, "WHOLE_FILE_BYTES", small)
    sizes = hrefs.list_recursive(in_s3)
    folder = far_folder(range_cache.open_ranges(in_s3, sizes, RangeCache(tmp_path, 10_000_000), "run"), tmp_path)
    far = chip_set.load(folder)
    rows = list(made.index.itertuples())
    for _ in range(2):
        for row, chip in zip(rows, chip_set.read_all(folder, rows), strict=True):
            assert same(chip, chip_set.read(made.folder, row))
        before = len(fetched)
    assert before == len(fetched)
    assert sum(count for _, count in fetched) <= sum(sizes.values())
    assert len(set(fetched)) == len(fetched) or small == 100  # two chips of one size in one shard are two parts
    settings = {"side": 24, "inner": 20, "batch_size": 3, "seed": 5, "workers": 1, "building_crops": 0.5}
    assert same(Crops(far, **settings).batch(0), Crops(made, **settings).batch(0))
    whole, near = (WholeChips(one.folder, one.select("validation"), batch_size=4) for one in (far, made))
    assert same(whole.batch(0), near.batch(0))
    with pytest.raises(InputError, match=r"none\.zarr/image/zarr\.json is damaged: there is no such file"):
        zarr_store.read(folder, "none.zarr", 0)


def test_only_the_bytes_of_a_chip_are_fetched_where_the_cache_is_small(made, in_s3, fetched, tmp_path, monkeypatch):
    monkeypatch.setattr(range_cache, "WHOLE_FILE_BYTES", 1_200)
    sizes = hrefs.list_recursive(in_s3)
    folder = far_folder(range_cache.open_ranges(in_s3, sizes, RangeCache(tmp_path, 20_000), "run"), tmp_path)
    rows = list(made.index.itertuples())
    chip = sum(len(zarr_store.encode(array)) for array in chip_set.read(made.folder, rows[0]))
    assert sum(sizes.values()) > 5 * 20_000
    draw = random.Random(0)
    for count in range(1, 101):
        row = draw.choice(rows)
        assert same(chip_set.read(folder, row), chip_set.read(made.folder, row))
        assert sum(size for _, size in fetched) < count * (chip + 3 * zarr_store.INDEX_BYTES + 2_000) + 5_000
    assert held(tmp_path) <= 20_000


def test_a_busy_or_missing_s3_server_is_asked_again(made, in_s3, tmp_path, line_to, monkeypatch):
    line = line_to(int(os.environ["AWS_ENDPOINT_URL_S3"].rpartition(":")[2]))
    sizes = hrefs.list_recursive(in_s3)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{line.address}")
    folder = far_folder(range_cache.open_ranges(in_s3, sizes, RangeCache(tmp_path, 10_000_000), "run"), tmp_path)
    rows = list(made.index.itertuples())
    for fault, number in (("busy", 0), ("away", 20)):
        line.become(fault, times=2)
        assert same(chip_set.read(folder, rows[number]), chip_set.read(made.folder, rows[number]))
    assert line.faults == 4


@pytest.mark.parametrize(("fault", "said"), [("away", "127.0.0.1"), ("busy", "the S3 server answers 503")])
def test_an_s3_server_that_stays_unavailable_is_an_error_naming_the_file(
    made, in_s3, tmp_path, line_to, monkeypatch, caplog, fault, said
):
    line = line_to(int(os.environ["AWS_ENDPOINT_URL_S3"].rpartition(":")[2]))
    sizes = hrefs.list_recursive(in_s3)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{line.address}")
    monkeypatch.setattr(range_cache, "PATIENCE_S", 1)
    folder = range_cache.open_ranges(in_s3, sizes, RangeCache(tmp_path, 10_000_000), "run")
    line.become(fault)
    with pytest.raises(ServerUnavailableError, match=rf"{in_s3}/chips\.json: .*{said}"):
        folder("chips.json", 0, None)
    caplog.clear()
    monkeypatch.setattr(range_cache, "PATIENCE_S", 60)
    line.become("open")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(FileNotFoundError, match=rf"{in_s3}/chips\.json: the S3 server answers SignatureDoesNotMatch"):
        folder("chips.json", 0, None)
    assert "trying again" not in caplog.text  # what will not pass is not waited for


def test_files_that_are_only_served_whole_must_fit_the_cache(made, tmp_path):
    """As through MLflow's server."""
    sizes, came = hrefs.list_recursive(str(made.folder)), []

    def download(name: str, part: Path) -> None:
        came.append(name)
        part.write_bytes((made.folder / name).read_bytes())

    fetch = range_cache.open_whole_files(
        "mlflow-artifacts:/1", sizes, RangeCache(tmp_path, 10_000_000), "run", download
    )
    rows = list(made.index.itertuples())
    folder = far_folder(fetch, tmp_path)
    for chip, row in zip(chip_set.read_all(folder, rows), rows, strict=True):
        assert same(chip, chip_set.read(made.folder, row))
    assert len(came) == len(set(came))
    with pytest.raises(InputError, match=r"has 0\.0 GB, the cache .* Set OCMLFLOW_CACHE_GB higher, or keep"):
        range_cache.open_whole_files("mlflow-artifacts:/1", sizes, RangeCache(tmp_path, 1_000), "run", download)
