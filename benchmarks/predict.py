"""How fast scenes become maps, against the network alone, in how much memory, and whether windows show.

    python -m benchmarks.predict speed --image SCENE.tif --model models:/NAME@champion
    python -m benchmarks.predict chips --image CHIP.tif --model models:/NAME@champion
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
import rasterio
from affine import Affine
from rasterio.windows import Window

from ocmlflow.chips.targets import CLIP_M
from ocmlflow.pipeline.options import PredictOptions
from ocmlflow.prediction import engine, inference, instances, polygonize, scene_map, vector_files
from ocmlflow.prediction.engine import Ensemble
from ocmlflow.prediction.instances import Evidence, ReadEvidence
from ocmlflow.prediction.polygonize import LabelBlock
from ocmlflow.prediction.scene_tiles import MapSettings
from ocmlflow.prediction.separation import DISTANCE_STEPS
from ocmlflow.probability import Predict
from ocmlflow.progress import silent
from ocmlflow.scenes import geobox, raster, resample, windows
from ocmlflow.scenes.catalog import Scene
from ocmlflow.scenes.geobox import GeoBox
from ocmlflow.scenes.raster import Pixels
from ocmlflow.tracking import registry
from ocmlflow.tracking.model_facts import ModelFacts

GSD = 0.1
OWN = PredictOptions(images="x", output="y")
"""The verb's defaults."""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("speed", "chips", "seams", "memory", "polygons", "alone", "whole"))
    p.add_argument("--image")
    p.add_argument("--model")
    p.add_argument("--engine", default="openvino", help="of speed and chips")
    p.add_argument("--tta", default="none", help="of speed: none, flips or d4")
    p.add_argument("--work", default=".ocmlflow", help="where the exported model lies")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if args.what == "speed":
            speed(args)
        elif args.what == "chips":
            chips(args, scratch)
        elif args.what == "seams":
            seams(args.image, args.model)
        elif args.what == "memory":
            memory(scratch)
        elif args.what == "polygons":
            traced(scratch)
        else:
            print("{:.2f} {:.2f} {}".format(*(alone if args.what == "alone" else whole)(args, scratch)))


def speed(args: argparse.Namespace) -> None:
    """Each figure from two processes of its own, taken in turns, of which the faster counts."""
    print("| engine | what | Mpx/s of scene | Mpx per CPU second | peak MB |\n| --- | --- | --- | --- | --- |")
    with raster.open_scene(args.image) as (_, own):
        area = own.width * own.height / 1e6
    words = ["--image", args.image, "--model", args.model, "--engine", args.engine]
    words += ["--work", args.work, "--tta", args.tta]
    found: dict[str, list[list[float]]] = {"alone": [], "whole": []}
    for what in ("alone", "whole") * 2:
        command = [sys.executable, "-m", "benchmarks.predict", what, *words]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[what].append([float(word) for word in done.stdout.split()[-3:]])
    for what, name in (("alone", "the network alone, on windows in memory"), ("whole", "scene to files")):
        seconds, cpu, megabytes = (min(values) for values in zip(*found[what], strict=True))
        print(f"| {args.engine} | {name} | {area / seconds:.2f} | {area / cpu:.2f} | {megabytes:.0f} |", flush=True)


def network_of(args: argparse.Namespace) -> tuple[Ensemble, ModelFacts]:
    model = registry.load_model(args.model)
    with tempfile.TemporaryDirectory() as folder:
        fetch = partial(registry.download_keras_file, model, Path(folder))
        how = {"engine": args.engine, "multiple": model.facts.multiple, "temperature": 1.0}
        member = engine.prepare_member(fetch, model.key, folder=Path(args.work).resolve(), **how)
    return Ensemble((member,), args.tta), model.facts


def alone(args: argparse.Namespace, _: Path) -> tuple[float, float, int]:
    """Seconds, CPU seconds and peak memory of the network on the scene's windows that show imagery."""
    network, facts = network_of(args)
    with raster.open_scene(args.image) as (dataset, own):
        target = geobox.utm_grid(own, gsd=facts.gsd)
        tiles = windows.tiles(target.height, target.width, size=OWN.size, margin=OWN.margin, multiple=facts.multiple)
        with resample.window_reader(dataset, own, target) as read:
            seen = [read(tile.window) for tile in tiles]
    images = [pixels.image[np.newaxis] for pixels in seen if pixels.valid.any()]
    predict = network()
    predict(images[0])
    return *timed(lambda: [predict(image) for image in images]), peak()


def whole(args: argparse.Namespace, scratch: Path) -> tuple[float, float, int]:
    """The same of the scene's way to all files; without a model by a network that costs nothing."""
    if not args.model:
        return *timed(lambda: drawn(args.image, brightness, GSD, 1, scratch)), peak()
    network, facts = network_of(args)
    network()  # loaded; compiled for the scene's windows when it has seen one
    return *timed(lambda: drawn(args.image, network, facts.gsd, facts.multiple, scratch)), peak()


def chips(args: argparse.Namespace, scratch: Path) -> None:
    """What the network gains from windows of several small scenes in one batch, beside all else that a chip costs."""
    network, facts = network_of(args)
    image = np.random.default_rng(0).integers(0, 256, (16, 512, 512, 3), np.uint8)
    predict = network()
    print("| chips of 512 px | CPU milliseconds a chip |\n| --- | --- |")
    for count in (1, 4, 16):
        parts = [image[first : first + count] for first in range(0, 16, count)]
        predict(parts[0])
        _, cpu = timed(lambda parts=parts: [predict(part) for part in parts * 2])
        print(f"| the network, {count} at once | {cpu / 32 * 1e3:.0f} |", flush=True)
    for name, using in (("without a network", brightness), ("file to files", network)):
        _, cpu = timed(lambda using=using: [drawn(args.image, using, facts.gsd, 32, scratch) for _ in range(16)])
        print(f"| {name} | {cpu / 16 * 1e3:.0f} |", flush=True)


def seams(image: str, uri: str) -> None:
    """Share of the pixels that differ by 0.02 and more from one window over (at most 3000 x 3000 of) the scene."""
    model = registry.load_model(uri)
    predict = inference.padded(model.keras.predict_on_batch, model.facts.multiple)
    with raster.open_scene(image) as (dataset, own):
        target = geobox.utm_grid(own, gsd=model.facts.gsd)
        height, width = min(target.height, 3000), min(target.width, 3000)
        with resample.window_reader(dataset, own, target) as read:
            whole = read(Window(0, 0, width, height)).image
    expected = predict(whole[np.newaxis])[0, ..., 0]

    def read_again(window: Window) -> Pixels:
        return Pixels(whole[window.toslices()], np.ones((int(window.height), int(window.width)), bool))

    print("| windows of up to | margin | start at multiples of | pixels off by 0.02 |\n| --- | --- | --- | --- |")
    for size, margin, multiple in (
        (1024, 64, 1),
        (1024, 64, 32),
        (1024, 128, 32),
        (1024, 192, 32),
        (1184, 160, 32),
        (2048, 160, 32),
    ):
        tiles = windows.tiles(height, width, size=size, margin=margin, multiple=multiple)
        found = np.zeros_like(expected)
        for core in inference.predict_tiles(predict, read_again, tiles, batch_size=1):
            found[core.tile.core.toslices()] = core.probability
        off = (np.abs(found - expected) >= 0.02).mean()
        print(f"| {size} | {margin} | {multiple} | {off:.4%} |", flush=True)


def memory(scratch: Path) -> None:
    """With a network that costs nothing, on scenes with a strip and a diagonal of imagery full of roofs."""
    print("| side, pixels | buildings, MB of GeoParquet | seconds | peak memory, MB |\n| --- | --- | --- | --- |")
    for side in (5_000, 20_000, 60_000):
        image = roofs(side, scratch)
        command = [sys.executable, "-m", "benchmarks.predict", "whole", "--image", str(image)]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        print(f"| {side} | {found[0]} | {float(found[-3]):.0f} | {found[-1]} |", flush=True)
        image.unlink()


def roofs(side: int, scratch: Path) -> Path:
    """A scene of which a strip of 4,096 pixels, as wide as it is, and squares on the diagonal hold imagery."""
    path = scratch / f"{side}.tif"
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 4, "dtype": "uint8", "crs": "EPSG:32630"}
    profile |= {"transform": Affine(GSD, 0, 500_000, 0, -GSD, 620_000), "tiled": True, "blockxsize": 512}
    profile |= {"blockysize": 512, "compress": "deflate", "photometric": "RGB", "alpha": "YES"}
    ground = np.random.default_rng(0).integers(20, 90, (4, 2048, 2048), np.uint8)
    ground[3] = 255
    for row in range(20, 2000, 96):
        for col in range(20, 2000, 80):
            ground[:3, row : row + 60, col : col + 50] += 140
    with rasterio.open(path, "w", **profile, sparse_ok=True, bigtiff="YES") as out:
        for row in range(0, side, 2048):
            for col in range(0, side, 2048):
                if row < 4096 or row == col:
                    height, width = min(2048, side - row), min(2048, side - col)
                    out.write(ground[:, :height, :width], window=Window(col, row, width, height))
    return path


def traced(scratch: Path) -> None:
    read = evidence(6_000, 2_000)
    small = list(polygonize.trace(instances.blocks(read, 6_000, 6_000, gsd=GSD, threshold=50, separate=True)))
    whole = list(polygonize.trace(in_one_piece(read, 6_000)))
    key = lambda f: (f.outline.bounds, f.outline.area, f.probability)  # noqa: E731
    same = all(a.outline.equals(b.outline) for a, b in zip(sorted(small, key=key), sorted(whole, key=key), strict=True))
    print(f"{len(whole)} buildings of a scene of 6,000 px square, in blocks and in one piece: equal is {same}\n")
    print("| side, pixels | footprints | seconds, to GeoParquet | peak memory, MB |\n| --- | --- | --- | --- |")
    for side, count in ((6_000, 2_000), (20_000, 22_000), (60_000, 200_000)):
        place = GeoBox("EPSG:32630", Affine(GSD, 0, 500_000, 0, -GSD, 620_000), side, side)
        found = polygonize.trace(
            instances.blocks(evidence(side, count), side, side, gsd=GSD, threshold=50, separate=True)
        )
        frames = vector_files.frames(
            found, place, scene="one", outline=OWN.outline, min_area_m2=OWN.min_area_m2, min_hole_m2=OWN.min_hole_m2
        )
        seconds, _ = timed(partial(vector_files.write, frames, scratch / "a.parquet"))
        with pq.ParquetFile(scratch / "a.parquet") as file:
            print(f"| {side} | {file.metadata.num_rows} | {seconds:.0f} | {peak()} |", flush=True)


def in_one_piece(read: ReadEvidence, side: int) -> Iterator[LabelBlock]:
    """The buildings of a scene that is a single block."""
    block, instances.BLOCK = instances.BLOCK, side
    yield from instances.blocks(read, side, side, gsd=GSD, threshold=50, separate=True)
    instances.BLOCK = block


def evidence(side: int, count: int) -> ReadEvidence:
    """Rectangles, many of which overlap, and the distance to the nearest edge of one, read so that none is held."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, side - 100, (count, 2))
    sides = rng.integers(20, 100, (count, 2))

    def read(window: Window) -> Evidence:
        building = np.zeros((window.height, window.width), bool)
        steps = np.zeros(building.shape, np.uint8)
        first = np.array([window.row_off, window.col_off])
        near = ((corners + sides > first) & (corners < first + building.shape)).all(axis=1)
        for corner, (height, width) in zip(corners[near] - first, sides[near], strict=True):
            rows, cols = (np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)) for n in (height, width))
            own = np.minimum(np.minimum.outer(rows, cols) * (GSD / CLIP_M * DISTANCE_STEPS), DISTANCE_STEPS)
            inside = np.s_[max(corner[0], 0) : corner[0] + height, max(corner[1], 0) : corner[1] + width]
            shown = own[max(-corner[0], 0) :, max(-corner[1], 0) :][
                : building[inside].shape[0], : building[inside].shape[1]
            ]
            building[inside] = True
            steps[inside] = shown
        return Evidence(np.where(building, np.uint8(80), np.uint8(5)), np.ones(building.shape, bool), steps)

    return read


def drawn(image: str, network: Ensemble, gsd: float, multiple: int, scratch: Path) -> None:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        how = {"settings": settings(gsd, multiple), "progress": silent}
        made = scene_map.map_scene(Scene("one", "", image), network, Path(folder), **how)
        if made.footprints:
            print(f"{made.buildings},{made.footprints.stat().st_size / 1e6:.0f}")


def settings(gsd: float, multiple: int) -> MapSettings:
    return MapSettings(
        gsd=gsd,
        multiple=multiple,
        size=OWN.size,
        margin=OWN.margin,
        batch_size=OWN.batch_size,
        threshold=50,
        min_area_m2=OWN.min_area_m2,
        min_hole_m2=OWN.min_hole_m2,
        chip_gsd=gsd,
        on_own_grid=True,
        aoi=None,
        collar_m2=OWN.collar_m2,
        stretch=None,
        separate=OWN.separate,
        instances=False,
        outline=OWN.outline,
        skip_unreadable=False,
    )


def brightness() -> Predict:
    return lambda images: images[..., 1:2] / np.float32(255)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and CPU seconds."""
    started, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - cpu


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
