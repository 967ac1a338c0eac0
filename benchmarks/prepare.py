"""How fast scenes become chips, against what cannot be done faster and against a plain loop, and in how much memory.

    python -m benchmarks.prepare speed --image SCENE.tif --labels LABELS.geojson
    python -m benchmarks.prepare memory
    python -m benchmarks.prepare s3 --image SCENE.tif --labels LABELS.geojson --address s3://BUCKET/FOLDER

`s3` takes the server that AWS_ENDPOINT_URL_S3 names and counts requests on the way to it. Each prints a Markdown table.
"""

import argparse
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from affine import Affine
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.windows import Window

from ocmlflow import executors
from ocmlflow.chips import chip_set, cutting, scene_survey, zarr_store
from ocmlflow.chips.chip_set import Rules
from ocmlflow.chips.scene_survey import SceneSurvey
from ocmlflow.scenes import geobox, raster, resample, windows
from ocmlflow.scenes.catalog import Scene
from ocmlflow.scenes.geobox import GeoBox
from ocmlflow.storage import hrefs

T = TypeVar("T")

SIZE = 512
COPIES = 4
"""The scene is cut under so many names at once, so that there is work for a while."""
REPEATS = 3


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("speed", "memory", "s3", "one"))
    p.add_argument("--image")
    p.add_argument("--labels")
    p.add_argument("--address")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if args.what == "speed":
            speed(args.image, args.labels, Path(scratch))
        elif args.what == "memory":
            memory(Path(scratch))
        elif args.what == "one":
            with executors.executor(1, None) as executor:
                cut([Scene("one", "x", args.image, (args.labels,))], SIZE, Path(scratch), executor)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        else:
            from_s3(args.image, args.labels, args.address, Path(scratch))


def speed(image: str, labels: str, scratch: Path) -> None:
    """Print chips per second; the limit is the same decoding and resizing by the same workers, and nothing else."""
    on_grid = regridded(image, scratch / "on-grid.tif")
    print("| scene | stride | workers | chips/s | of the limit | chips per CPU s | plain loop | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, href, stride in (
        ("as it is", image, SIZE),
        ("on the grid", on_grid, SIZE),
        ("on the grid", on_grid, SIZE // 2),
    ):
        for count in sorted({1, os.cpu_count() or 1}):
            chips_s, share, chips_cpu = best(href, labels, stride, count, scratch)
            row = f"| {name} | {stride} | {count} | {chips_s:.0f} | {share:.2f} |"
            if count == 1 and href == on_grid:
                loop = plain_loop(href, labels, stride, scratch)
                row += f" {chips_cpu:.0f} | {loop:.0f} | {chips_cpu / loop:.1f} |"
            print(row if row.count("|") == 9 else f"{row} | | |", flush=True)


def best(href: str, labels: str, stride: int, count: int, scratch: Path) -> tuple[float, float, float]:
    """Chips per second, as a share of the limit, and per CPU second: of REPEATS, that with the largest share."""
    found = []
    with executors.executor(count, None) as executor:
        list(executor.map(warm, range(4 * count)))
        surveys = look([Scene(f"copy{n}", "x", href, (labels,)) for n in range(COPIES)])
        work = runs(surveys, stride)
        for _ in range(REPEATS):
            _, limit, _ = timed(lambda: list(executor.map(read_only, work)))
            made, wall, cpu = timed(cut_surveyed, surveys, stride, scratch, executor)
            found.append((limit / wall, made / wall, made / cpu))
    share, chips_s, chips_cpu = max(found)
    return chips_s, share, chips_cpu


def memory(scratch: Path) -> None:
    print("| side, pixels | peak memory of a worker, MB |\n| --- | --- |")
    for side in (5_000, 20_000, 60_000):
        image, labels = sparse_scene(side, scratch)
        command = [sys.executable, "-m", "benchmarks.prepare", "one", "--image", image, "--labels", labels]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"| {side} | {found.stdout.strip()} |", flush=True)


def from_s3(image: str, labels: str, address: str, scratch: Path) -> None:
    copy = scratch / "copy.tif"
    copy.write_bytes(Path(image).read_bytes())
    hrefs.put(copy, f"{address}/one.tif")
    size = Path(image).stat().st_size
    with executors.executor(1, None) as executor:
        chips_local, local, _ = timed(cut, [Scene("one", "x", image, (labels,))], SIZE, scratch, executor)
        with counting_proxy() as counted:
            _, remote, _ = timed(cut, [Scene("one", "x", f"{address}/one.tif", (labels,))], SIZE, scratch, executor)
            requests, read = counted
    print("| from | chips/s | requests | bytes a request | bytes read / size |\n| --- | --- | --- | --- | --- |")
    print(f"| disk | {chips_local / local:.0f} | | | |")
    print(f"| S3 | {chips_local / remote:.0f} | {requests} | {read / requests:.0f} | {read / size:.2f} |")


def look(scenes: list[Scene]) -> list[SceneSurvey]:
    found = [scene_survey.survey(scene, gsd=0.1, collar_m2=0, bbox=None) for scene in scenes]
    return [one for one in found if one]


def rules(stride: int) -> Rules:
    return Rules(gsd=0.1, size=SIZE, stride=stride, min_valid=0.1, buffer_m=0)


def cut(scenes: list[Scene], stride: int, folder: Path, executor: Executor) -> int:
    return cut_surveyed(look(scenes), stride, folder, executor)


def cut_surveyed(surveys: list[SceneSurvey], stride: int, folder: Path, executor: Executor) -> int:
    """Number of the chips that were cut."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        windows = gpd.pd.concat([chip_set.candidates(found, rules=rules(stride)) for found in surveys])
        done = cutting.cut(
            surveys,
            windows.assign(keep_empty=True),
            Path(out),
            rules=rules(stride),
            executor=executor,
            progress=lambda items, total: items,
        )
        return sum(len(rows) for _, rows in done)


def warm(_: int) -> None:
    time.sleep(0.2)


def runs(surveys: list[SceneSurvey], stride: int) -> list[tuple[str, GeoBox, list[Window]]]:
    """What the same workers have to read: the windows of the same blocks, side by side."""
    side, reach = zarr_store.BLOCK * stride, (zarr_store.BLOCK - 1) * stride + SIZE
    return [
        (found.scene.image, found.grid, [Window(col, row, reach, reach) for col in range(0, found.grid.width, side)])
        for found in surveys
        for row in range(0, found.grid.height, side)
    ]


def read_only(run: tuple[str, GeoBox, list[Window]]) -> None:
    """Decode the blocks and bring them to the grid, and nothing else."""
    href, target, windows = run
    with raster.open_scene(href) as (dataset, own), resample.window_reader(dataset, own, target) as read:
        for window in windows:
            read(window)


def plain_loop(href: str, labels: str, stride: int, scratch: Path) -> float:
    """Chips per CPU second of the loop that everybody writes: read a window, burn, write a GeoTIFF."""

    def loop() -> int:
        count = 0
        with rasterio.open(href) as scene:
            polygons = gpd.read_file(labels).to_crs(scene.crs).geometry.to_numpy()
            tree = shapely.STRtree(polygons)
            last = scene.height - SIZE, scene.width - SIZE
            for row in (*range(0, last[0], stride), last[0]):
                for col in (*range(0, last[1], stride), last[1]):
                    window = Window(col, row, SIZE, SIZE)
                    pixels = scene.read(window=window)
                    if not (pixels[3] > 127).mean() >= 0.1:
                        continue
                    transform = scene.window_transform(window)
                    near = polygons[tree.query(shapely.box(*scene.window_bounds(window)))]
                    label = (
                        rasterize(near, (SIZE, SIZE), transform=transform) if len(near) else np.zeros_like(pixels[0])
                    )
                    profile = {"driver": "GTiff", "height": SIZE, "width": SIZE, "count": 4, "dtype": "uint8"}
                    profile |= {"crs": scene.crs, "transform": transform, "compress": "deflate"}
                    with rasterio.open(scratch / "plain" / f"{row}-{col}.tif", "w", **profile) as chip:
                        chip.write(pixels[:3], [1, 2, 3])
                        chip.write(np.where(pixels[3] > 127, label, 255).astype(np.uint8), 4)
                    count += 1
        return count

    (scratch / "plain").mkdir(exist_ok=True)
    count, _, cpu = timed(loop)
    return count / cpu


def timed(function: Callable[..., T], *arguments: Any) -> tuple[T, float, float]:
    """What the function returns, and the seconds it took on the wall and of this process's CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = function(*arguments)
    return found, time.perf_counter() - wall, time.process_time() - cpu


def regridded(image: str, target: Path) -> str:
    """The scene on the very grid that its chips are cut on, compressed as before."""
    with raster.open_scene(image) as (scene, own):
        dataset = scene.dataset
        ground = geobox.utm_grid(own, gsd=0.1)
        place = {"crs": ground.crs, "transform": ground.transform, "height": ground.height, "width": ground.width}
        profile = {**dataset.profile, **place}
        with rasterio.open(target, "w", **profile) as out, resample.window_reader(scene, own, ground) as read:
            for window in windows.blocks(ground.height, ground.width, size=4096):
                pixels = read(window)
                out.write(np.moveaxis(pixels.image, -1, 0), [1, 2, 3], window=window)
                out.write(pixels.valid.astype(np.uint8) * 255, 4, window=window)
            out.colorinterp = dataset.colorinterp
    with rasterio.open(target, "r+") as out:
        out.build_overviews([2, 4, 8, 16], Resampling.average)
    return str(target)


def sparse_scene(side: int, scratch: Path) -> tuple[str, str]:
    """A scene of which only the diagonal holds imagery, and labels on it."""
    image, labels = scratch / f"{side}.tif", scratch / f"{side}.geojson"
    transform = Affine(0.1, 0, 500_000, 0, -0.1, 620_000)
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 4, "dtype": "uint8", "crs": "EPSG:32630"}
    profile |= {"transform": transform, "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    noise = np.random.default_rng(0).integers(1, 255, (4, 2048, 2048), np.uint8)
    noise[3] = 255
    with rasterio.open(image, "w", **profile, sparse_ok=True, photometric="RGB", alpha="YES", bigtiff="YES") as out:
        for first in range(0, side - 2048, 4096):
            out.write(noise, window=Window(first, first, 2048, 2048))
    roofs = [
        shapely.box(*(transform @ (first + 500, first + 700)), *(transform @ (first + 700, first + 500)))
        for first in range(0, side - 2048, 4096)
    ]
    gpd.GeoDataFrame(geometry=roofs, crs="EPSG:32630").to_crs("EPSG:4326").to_file(labels, driver="GeoJSON")
    return str(image), str(labels)


@contextmanager
def counting_proxy() -> Iterator[Any]:
    """Requests to the S3 server, and bytes that come back, while the block runs: an array of the two."""
    before = os.environ["AWS_ENDPOINT_URL_S3"]
    spawn = get_context("spawn")
    counted = spawn.Array("q", 2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # A process of its own: GDAL keeps Python from running while it waits for an answer.
        proxy = spawn.Process(target=serve, args=(listener, urlparse(before).netloc.split(":"), counted), daemon=True)
        proxy.start()
        os.environ["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            yield counted
        finally:
            os.environ["AWS_ENDPOINT_URL_S3"] = before
            proxy.terminate()


def serve(listener: socket.socket, server: tuple[str, str], counted: Any) -> None:
    """Hand on what comes from and goes to each client, and count it."""
    while True:
        client, _ = listener.accept()
        upstream = socket.create_connection(server)
        for source, target in ((client, upstream), (upstream, client)):
            threading.Thread(target=forward, args=(source, target, counted, source is client), daemon=True).start()


def forward(source: socket.socket, target: socket.socket, counted: Any, asking: bool) -> None:
    while data := source.recv(1 << 16):
        with counted.get_lock():
            if asking:
                counted[0] += len(re.findall(rb"^(?:GET|HEAD) ", data, re.MULTILINE))
            else:
                counted[1] += len(data)
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    from benchmarks import prepare  # workers find functions in modules, not in the script that runs

    prepare.main()
