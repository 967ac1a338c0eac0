"""How fast chips go to a server and back, and how fast batches come from there.

After `python -m entrypoints.server up`, with its settings (`set -a; . .server/client.env; set +a`):

    python -m benchmarks.transfer files      chips up and down, beside boto3's own transfer of the same files
    python -m benchmarks.transfer loader     steps a second of the loader, from disk and from S3

Both print Markdown tables.
"""

import argparse
import hashlib
import shutil
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import geopandas as gpd
import mlflow
import numpy as np
import shapely

from ocmlflow.chips import chip_set, zarr_store
from ocmlflow.chips.zarr_store import Folder
from ocmlflow.storage import hrefs, range_cache
from ocmlflow.storage import s3 as s3_store
from ocmlflow.storage.range_cache import RangeCache
from ocmlflow.tracking import chip_artifacts, outbox_sender
from ocmlflow.training.dataset import Crops

SIZE, CROP, BATCH, WORKERS = 512, 364, 8, 2
SPAN = 700_000
"""Pixels of chips, and of crops with their context; crops a step and threads, as `train` has them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("files", "loader"))
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    outbox_sender.configure_client()
    with tempfile.TemporaryDirectory() as work:
        source = make(Path(work) / "source", args.megabytes)
        chip_artifacts.CACHE = Path(work) / "cache"
        if args.what == "files":
            files(source, Path(work), args.rounds)
        else:
            loader(source, Path(work))


def make(folder: Path, megabytes: int) -> Path:
    """A set of chips of about so many megabytes: noise on blocks, which shrinks by as little as drone imagery does."""
    draw = np.random.default_rng(0)
    side = SIZE // 8
    images, labels = {}, {}
    for number in range(zarr_store.CHIPS_PER_SHARD):
        coarse = np.kron(draw.integers(0, 230, (side, side, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
        images[number] = zarr_store.encode(coarse + draw.integers(0, 20, coarse.shape).astype(np.uint8))
        label = np.zeros((SIZE, SIZE), np.uint8)
        for row, col in draw.integers(0, SIZE - 32, (20, 2)):
            label[row : row + 30, col : col + 25] = 1
        labels[number] = zarr_store.encode(label)
    blocks = max(1, round(megabytes * 1e6 / sum(map(len, [*images.values(), *labels.values()]))))
    folder.mkdir()
    zarr_store.create(folder / "a.zarr", blocks=blocks, size=SIZE)
    for block in range(blocks):
        turned = {n: images[(n + block) % zarr_store.CHIPS_PER_SHARD] for n in images}  # no two files alike
        zarr_store.write(folder / "a.zarr", "image", block, turned)
        zarr_store.write(
            folder / "a.zarr", "label", block, {n: labels[(n + block) % zarr_store.CHIPS_PER_SHARD] for n in labels}
        )
    count = blocks * zarr_store.CHIPS_PER_SHARD
    columns = {"id": [f"a-{n}" for n in range(count)], "scene": "a", "split": "train", "catalog": "c"}
    columns |= {"position": range(count), "building_share": 0.1}
    chip_set.save(folder, gpd.GeoDataFrame(columns, geometry=[shapely.Point(0, 0)] * count, crs=4326), {}, [], {})
    return folder


def runs() -> Iterator[tuple[str, str]]:
    """The two ways to the server, and a new run on each."""
    client, name = mlflow.MlflowClient(), f"transfer-{uuid.uuid4().hex[:8]}"
    for way, place in (("direct", f"s3://data/{name}"), ("proxied", None)):
        experiment = client.create_experiment(f"{name}-{way}", artifact_location=place)
        yield way, client.create_run(experiment).info.run_id
        client.delete_experiment(experiment)


def files(source: Path, work: Path, rounds: int) -> None:
    """Megabytes a second of boto3, direct and proxied artifacts, turn about; all is compared by its hash."""
    sizes = hrefs.list_recursive(str(source))
    megabytes = sum(sizes.values()) / 1e6
    expected = {name: digest((source / name).read_bytes()) for name in sizes}
    # Down comes what a training asks for: a chip at a time.
    spans = [(name, first, SPAN) for name, size in sizes.items() for first in range(0, size, SPAN)]
    print(f"{len(sizes)} files of {megabytes:.0f} MB\n\n| way | up, MB/s | down, MB/s |\n| --- | --- | --- |")
    s3 = s3_store.client()
    for _ in range(rounds):
        prefix, target = f"plain-{uuid.uuid4().hex[:8]}", work / "plain"

        def up(prefix: str = prefix) -> None:
            for name in sizes:
                s3.upload_file(str(source / name), "data", f"{prefix}/{name}")

        def down(prefix: str = prefix, target: Path = target) -> None:
            for name in sizes:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                s3.download_file("data", f"{prefix}/{name}", str(target / name))

        took = seconds(up), seconds(down)
        assert {name: digest((target / name).read_bytes()) for name in sizes} == expected
        shutil.rmtree(target)
        print(f"| boto3 alone | {megabytes / took[0]:.0f} | {megabytes / took[1]:.0f} |", flush=True)
        for name in hrefs.list_recursive(f"s3://data/{prefix}"):
            hrefs.delete(f"s3://data/{prefix}/{name}")
        for way, run_id in runs():

            def fetch(run_id: str = run_id) -> None:
                folder = chip_artifacts.open_folder(run_id)
                with ThreadPoolExecutor(chip_set.FETCH_THREADS) as executor:
                    deque(executor.map(lambda span: zarr_store.read_bytes(folder, *span), spans), maxlen=0)

            took = seconds(lambda run_id=run_id: chip_artifacts.upload(source, run_id)), seconds(fetch)  # type: ignore[misc]
            folder = chip_artifacts.open_folder(run_id)
            assert {name: digest(zarr_store.read_bytes(folder, name)) for name in sizes} == expected, f"{way} differs"
            again = seconds(lambda run_id=run_id: chip_artifacts.upload(source, run_id))  # type: ignore[misc]
            print(f"| {way} | {megabytes / took[0]:.0f} | {megabytes / took[1]:.0f} |", flush=True)
            print(f"  (sent again, when all was there: {again:.1f} s)", flush=True)
            shutil.rmtree(chip_artifacts.CACHE)


def loader(source: Path, work: Path) -> None:
    """Steps a second of the loader alone, and what came from the server, over an epoch."""
    total = sum(hrefs.list_recursive(str(source)).values())
    print(f"{total / 1e6:.0f} MB\n\n| chips | epoch | steps/s | fetched, of the set |\n| --- | --- | --- | --- |")
    epochs("disk", source, 2, total)
    for way, run_id in runs():
        chip_artifacts.upload(source, run_id)
        epochs(way, chip_artifacts.open_folder(run_id), 2, total)
        shutil.rmtree(chip_artifacts.CACHE)
        if way == "direct":
            small = range_cache.open_ranges(
                chip_artifacts._address(run_id),
                chip_artifacts._sizes(chip_artifacts._address(run_id)),
                RangeCache(work / "small", total // 4),
                run_id,
            )
            epochs("direct, cache of a quarter of the set", small, 2, total)
            held = sum(hrefs.list_recursive(str(work / "small")).values())
            print(f"  (in that cache: {held / 1e6:.0f} MB)")


def epochs(name: str, folder: Folder, count: int, total: int) -> None:
    how = {"side": CROP, "inner": CROP, "batch_size": BATCH, "seed": 0, "workers": WORKERS, "building_crops": 0.5}
    crops = Crops(chip_set.load(folder), **how)
    for epoch in range(1, count + 1):
        with counted() as fetched, ThreadPoolExecutor(WORKERS) as executor:
            took = seconds(lambda: deque(executor.map(crops.__getitem__, range(len(crops))), maxlen=0))
        print(f"| {name} | {epoch} | {len(crops) / took:.1f} | {sum(fetched) / total:.2f} |", flush=True)
        crops.on_epoch_end()


@contextmanager
def counted() -> Iterator[list[int]]:
    """Bytes of each file, or part of one, that comes from the server meanwhile."""
    sizes: list[int] = []
    before = RangeCache._add

    def add(self: RangeCache, name: str, size: int, make: Callable[[Path], None]) -> object:
        sizes.append(size)
        return before(self, name, size, make)

    RangeCache._add = add  # type: ignore[method-assign,assignment]
    try:
        yield sizes
    finally:
        RangeCache._add = before  # type: ignore[method-assign]


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    main()
