"""How long 100 Mpx of masks and 100,000 by 100,000 polygons take to score: `python -m benchmarks.evaluate`."""

import resource
import tempfile
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely

from ocmlflow.chips import labels
from ocmlflow.evaluation import object_matching, scorecard
from ocmlflow.evaluation.predictions import Predictions

SIZE, CHIPS, ACROSS = 512, 384, 24
SIDE = 320
"""Polygons along a side of the town."""


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        made = town(Path(work))
        start = time.perf_counter()
        card = scorecard.score("benchmark", made, at=None, block_m=100.0, min_area_m2=2.0, min_hole_m2=1.0)
        seconds = time.perf_counter() - start
    megapixels = CHIPS * SIZE**2 / 1e6
    everything = card.objects["all"]
    print(f"pixels: {megapixels:.0f} Mpx, {everything.tp + everything.fn} buildings, in {seconds:.1f} s")
    # With the pages of the files, which the system takes back when it wants.
    print(f"largest memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    labelled, predicted = polygons(0), polygons(1)
    start = time.perf_counter()
    found = object_matching.count(object_matching.polygon_overlaps(predicted, labelled))["all"]
    print(f"polygons: {len(predicted)} by {len(labelled)}, {found.tp} matched, in {time.perf_counter() - start:.1f} s")


def town(work: Path) -> Predictions:
    """Predictions of a town of 10 m houses: shifted by 0.5 m, one in ten missed, and noise."""
    draw = np.random.default_rng(0)
    levels = np.lib.format.open_memmap(work / "levels.npy", "w+", np.uint16, (CHIPS, SIZE, SIZE))
    coded = np.lib.format.open_memmap(work / "coded.npy", "w+", np.uint8, (CHIPS, SIZE, SIZE))
    for chip in range(CHIPS):
        label = np.zeros((SIZE, SIZE), np.uint8)
        probability = draw.normal(0.15, 0.04, (SIZE, SIZE)).astype(np.float32)
        for row in range(10, SIZE, 170):
            for col in range(10, SIZE, 170):
                label[row : row + 100, col : col + 100] = 1
                if draw.random() < 0.9:
                    probability[row + 5 : row + 105, col + 5 : col + 105] += 0.6
        levels[chip] = np.clip(probability, 0, 1) * 65535
        coded[chip] = labels.encode(label, np.ones_like(label, bool))
    number = np.arange(CHIPS)
    row, col = number // ACROSS * SIZE, number % ACROSS * SIZE
    frame = {"id": number.astype(str), "scene": "town", "place": "town", "row": row, "col": col, "gsd": 0.1}
    frame |= {"x": col / 10, "y": row / 10, "resolution": "a", "density": "b", "block": row // 1024 * 100 + col // 1024}
    outlines = shapely.box(col / 10, row / 10, col / 10 + 51, row / 10 + 51)
    rows = gpd.GeoDataFrame(frame, geometry=outlines, crs="EPSG:32630")
    rows["block"] = np.unique(rows.block, return_inverse=True)[1]
    return Predictions(work, rows, levels, coded)


def polygons(seed: int) -> np.ndarray:
    """(SIDE * SIDE,) houses of 12 corners, about 10 m wide, on a grid of 14 m, moved by up to 3 m."""
    draw = np.random.default_rng(seed)
    x, y = (axis.ravel() * 14.0 for axis in np.meshgrid(np.arange(SIDE), np.arange(SIDE)))
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    moved = draw.uniform(-1.5, 1.5, (2, len(x), 1))
    corners = np.stack([x[:, None] + moved[0] + 5 * np.cos(angle), y[:, None] + moved[1] + 5 * np.sin(angle)], axis=-1)
    return np.asarray(shapely.polygons(corners))


if __name__ == "__main__":
    main()
