"""What a wrong resolution costs: pooled IoU of chips without a georeference, predicted as if of several resolutions.

    MLFLOW_TRACKING_URI=… python -m benchmarks.chip_gsd --images CATALOG --masks DIR --model MODEL --gsds 0.05,0.1

DIR holds the true mask of each chip, `<id>.tif` of 0 and 1. Prints a Markdown table.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from ocmlflow.evaluation import metrics
from ocmlflow.evaluation.metrics import Counts
from ocmlflow.scenes import catalog, geotiff, raster
from ocmlflow.scenes.catalog import Scene

ROOT = Path(__file__).parent.parent


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--images", required=True)
    p.add_argument("--masks", required=True, type=Path)
    p.add_argument("--model", required=True)
    p.add_argument("--gsds", required=True, help="metres per pixel, separated by commas")
    args = p.parse_args()
    print("| chip_gsd | pooled IoU |\n| --- | --- |")
    for gsd in args.gsds.split(","):
        with tempfile.TemporaryDirectory() as output:
            words = ["--images", args.images, "--model", args.model, "--chip_gsd", gsd, "--output", output]
            command = [sys.executable, "-m", "entrypoints.predict", *words, "--work", f"{output}/work"]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            total = sum(
                (count(scene, Path(output), args.masks) for scene in catalog.find_images(args.images)), start=zero()
            )
        print(f"| {gsd} | {total.iou:.3f} |", flush=True)


def zero() -> Counts:
    return Counts(0, 0, 0, 0)


def count(scene: Scene, output: Path, masks: Path) -> Counts:
    with raster.open_scene(scene.image, gsd=1.0) as (chip, own):
        valid = raster.read_valid(chip, raster.Window(0, 0, own.width, own.height))
    with geotiff.open_written(output / "masks" / f"{scene.id}.tif") as mask:
        found = mask.read(1)
    with geotiff.open_written(masks / f"{scene.id}.tif") as mask:
        true = mask.read(1)
    return metrics.counts(metrics.histogram(np.where(found == 1, 100, 0).astype(np.uint8), true, valid), threshold=50)


if __name__ == "__main__":
    main()
