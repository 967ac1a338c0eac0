"""How fast scenes become maps, against the network alone, in how much memory, and whether windows show.

    python -m benchmarks.predict speed --image SCENE.tif --model models:/NAME@champion
    python -m benchmarks.predict seams --image SCENE.tif --model models:/NAME@champion
    python -m benchmarks.predict memory
    python -m benchmarks.predict polygons

The model is taken from the MLflow store of this folder. Each prints a Markdown table.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from affine import Affine
from rasterio.windows import Window

from benchmarks.prepare import sparse_scene
from entrypoints import predict as verb
from ocmlflow import grid, inference, maps, polygons, raster, resample, tracking, vector, windows
from ocmlflow.catalog import Scene
from ocmlflow.raster import Pixels

GSD = 0.1
OWN = verb.parse(["--images", "x", "--output", "y"])
"""The verb's defaults."""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("speed", "seams", "memory", "polygons", "one"))
    p.add_argument("--image")
    p.add_argument("--model")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if args.what == "speed":
            speed(args.image, args.model, scratch)
        elif args.what == "seams":
            seams(args.image, args.model)
        elif args.what == "memory":
            memory(scratch)
        elif args.what == "polygons":
            traced(scratch)
        else:
            seconds = timed(lambda: drawn(args.image, bright, GSD, 1, scratch))
            print(f"{seconds:.0f} {peak()}")


def speed(image: str, uri: str, scratch: Path) -> None:
    from ocmlflow import engine

    model = tracking.load_model(uri)
    print("| engine | the network alone, Mpx/s of scene | scene to files, Mpx/s | of the network alone | peak MB |")
    print("| --- | --- | --- | --- | --- |")
    for name in ("openvino", "keras"):
        multiple = model.facts["multiple"]
        predict, _ = engine.predict(model.keras, engine=name, multiple=multiple, folder=scratch)
        with raster.opened(image) as (dataset, own):
            target = raster.ground_grid(own, gsd=model.facts["gsd"])
            tiles = tiles_of(target, OWN.size, OWN.margin, multiple)
            with resample.on_grid(dataset, own, target) as read:
                windows = [read(tile.window).image[np.newaxis] for tile in tiles]
        predict(windows[0])
        for _ in range(2):  # the second is told: caches are warm for both
            alone = timed(partial(each, predict, windows))
            whole = timed(partial(drawn, image, predict, model.facts["gsd"], multiple, scratch))
        area = own.width * own.height / 1e6
        print(f"| {name} | {area / alone:.2f} | {area / whole:.2f} | {alone / whole:.2f} | {peak()} |", flush=True)


def seams(image: str, uri: str) -> None:
    """Share of the pixels that differ by 0.02 and more from one window over (at most 3000 x 3000 of) the scene."""
    model = tracking.load_model(uri)
    predict = inference.padded(model.keras.predict_on_batch, model.facts["multiple"])
    with raster.opened(image) as (dataset, own):
        target = raster.ground_grid(own, gsd=model.facts["gsd"])
        height, width = min(target.height, 3000), min(target.width, 3000)
        with resample.on_grid(dataset, own, target) as read:
            whole = read(Window(0, 0, width, height)).image
    expected = predict(whole[np.newaxis])[0, ..., 0]

    def read_again(window: Window) -> Pixels:
        return Pixels(whole[window.toslices()], np.ones((int(window.height), int(window.width)), bool))

    print(
        "| size | margin | starts at | computed, of the scene | pixels off by 0.02 |\n| --- | --- | --- | --- | --- |"
    )
    for size, margin, multiple in ((1024, 64, 1), (1024, 64, 32), (1024, 128, 32), (1024, 192, 32), (2048, 160, 32)):
        tiles = grid.tiles(height, width, size=size, margin=margin, multiple=multiple)
        found = np.zeros_like(expected)
        for tile, probability, _ in inference.predict_tiles(predict, read_again, tiles, batch_size=1):
            found[tile.core.toslices()] = probability
        off = (np.abs(found - expected) >= 0.02).mean()
        print(f"| {size} | {margin} | {multiple} | {(size / (size - 2 * margin)) ** 2:.2f} | {off:.4%} |", flush=True)


def memory(scratch: Path) -> None:
    """With a network that costs nothing, on a scene of which the diagonal holds imagery."""
    print("| side, pixels | seconds | peak memory, MB |\n| --- | --- | --- |")
    for side in (5_000, 20_000, 60_000):
        image, _ = sparse_scene(side, scratch)
        command = [sys.executable, "-m", "benchmarks.predict", "one", "--image", image]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        print("| {} | {} | {} |".format(side, *found.stdout.split()), flush=True)


def traced(scratch: Path) -> None:
    small = list(polygons.trace(blocks(6_000, 2_000, 512), width=6_000))
    whole = list(polygons.trace(blocks(6_000, 2_000, 6_000), width=6_000))
    key = lambda f: (f.outline.bounds, f.outline.area, f.probability)  # noqa: E731
    same = all(a.outline.equals(b.outline) for a, b in zip(sorted(small, key=key), sorted(whole, key=key), strict=True))
    print(f"{len(whole)} footprints of a mask of 6,000 px square, in blocks and in one piece: equal is {same}\n")
    print("| side, pixels | buildings | seconds, to GeoParquet | peak memory, MB |\n| --- | --- | --- | --- |")
    for side, count in ((6_000, 2_000), (20_000, 22_000), (60_000, 200_000)):
        place = raster.Grid("EPSG:32630", Affine(GSD, 0, 500_000, 0, -GSD, 620_000), side, side)
        found = polygons.trace(blocks(side, count, maps.BLOCK), width=side)
        frames = vector.frames(found, place, scene="one", tolerance=1, min_area_m2=OWN.min_area_m2)
        seconds = timed(partial(vector.write, frames, scratch / "a.parquet"))
        with pq.ParquetFile(scratch / "a.parquet") as file:
            print(f"| {side} | {file.metadata.num_rows} | {seconds:.0f} | {peak()} |", flush=True)


def blocks(side: int, count: int, size: int) -> Iterator[polygons.Block]:
    """A mask of rectangles with ragged edges, block by block, so that it is never held."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, side - 100, (count, 2))
    sides = rng.integers(20, 100, (count, 2))
    for window in grid.blocks(side, side, size=size):
        building = np.zeros((window.height, window.width), bool)
        first = np.array([window.row_off, window.col_off])
        near = ((corners + sides > first) & (corners < first + building.shape)).all(axis=1)
        for (top, left), (height, width) in zip(corners[near] - first, sides[near], strict=True):
            building[max(top, 0) : top + height, max(left, 0) : left + width] = True
        yield polygons.Block(window, np.where(building, np.uint8(80), np.uint8(5)), building)


def drawn(image: str, predict: inference.Predict, gsd: float, multiple: int, scratch: Path) -> None:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        with_all = settings(gsd, multiple)
        made = maps.draw(Scene("one", "", image), predict, Path(folder), settings=with_all, progress=lambda i, _: i)
        for suffix in vector.DRIVERS:
            vector.convert(made.footprints, made.footprints.with_suffix(suffix))


def settings(gsd: float, multiple: int) -> windows.Settings:
    return windows.Settings(
        gsd=gsd,
        multiple=multiple,
        size=OWN.size,
        margin=OWN.margin,
        batch_size=OWN.batch_size,
        threshold=50,
        min_area_m2=OWN.min_area_m2,
        chip_gsd=gsd,
        on_own_grid=True,
        aoi=None,
        skip_unreadable=False,
    )


def tiles_of(target: raster.Grid, size: int, margin: int, multiple: int) -> list[grid.Tile]:
    return grid.tiles(target.height, target.width, size=size, margin=margin, multiple=multiple)


def each(predict: inference.Predict, windows: list[np.ndarray]) -> None:
    for window in windows:
        predict(window)


def bright(images: np.ndarray) -> np.ndarray:
    return images[..., 1:2] / np.float32(255)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
