"""Buildings of any scenes, by a registered model: rasters, footprints, and the challenge's submission."""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrypoints import MODEL_NAME, check_writable, number, parser, progress, start, whole

if TYPE_CHECKING:
    from ocmlflow.catalog import Scene
    from ocmlflow.inference import Predict
    from ocmlflow.maps import Map, Settings

log = logging.getLogger(__name__)

PICTURES = 20
"""Scenes that get a picture in the run."""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The verb's parameters and their defaults."""
    p = parser("predict", "Map the buildings of scenes with a registered model.")
    p.add_argument("--images", required=True, help="STAC file, GeoTIFF, folder or glob of GeoTIFFs; several, by commas")
    p.add_argument("--output", required=True, help="folder or s3:// address for the results")
    p.add_argument("--model", default=f"models:/{MODEL_NAME}@champion", help="models:/NAME@ALIAS or models:/NAME/1")
    p.add_argument("--threshold", type=number(0.01, 0.99), default=None, help="the model's own if not given")
    p.add_argument(
        "--chip_gsd",
        type=number(0.01, 10),
        default=None,
        help="metres per pixel of images without a georeference; the model's own if not given",
    )
    p.add_argument("--size", type=whole(64, 8192), default=1024, help="pixels along a side of a window")
    p.add_argument("--margin", type=whole(0), default=64, help="pixels of context seen beyond what is kept")
    p.add_argument("--batch_size", type=whole(1), default=1, help="windows at once")
    p.add_argument("--work", default=".ocmlflow", help="folder for rasters in the making")
    p.add_argument("--min_area_m2", type=number(0), default=2.0, help="least area of a footprint")
    args = p.parse_args(words)
    if args.size % 32:
        p.error(f"argument --size: must be a multiple of 32, got {args.size}")
    if 2 * args.margin >= args.size:
        p.error(f"argument --margin: must be less than half the size of {args.size}, got {args.margin}")
    return args


def main(args: argparse.Namespace) -> None:
    import mlflow
    import pandas as pd

    from ocmlflow import catalog, inference, maps, tracking

    with tracking.run("predict", vars(args)):
        scenes = catalog.images(args.images)
        check_writable(args.output)
        model = tracking.load_model(args.model)
        settings = maps.Settings(
            gsd=model.facts["gsd"],
            size=args.size,
            margin=args.margin,
            batch_size=args.batch_size,
            threshold=round(100 * args.threshold) if args.threshold else model.threshold,
            min_area_m2=args.min_area_m2,
            chip_gsd=args.chip_gsd or model.facts["gsd"],
        )
        found = {s.id: maps.check(s, settings=settings) for s in progress(scenes, len(scenes), "checking")}
        chips = {name: (height, width) for name, (placed, height, width) in found.items() if not placed}
        mlflow.set_tags({"ocmlflow.model": str(model), "ocmlflow.model.run": model.facts["run"]})
        mlflow.log_metric("threshold_used", settings.threshold / 100)
        predict = inference.padded(model.keras.predict_on_batch, model.facts["multiple"])
        Path(args.work).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.work, prefix="predict-") as scratch:
            table = pd.DataFrame(_draw(scenes, chips, predict, settings, args.output, Path(scratch)))
        mlflow.log_table(table, "scenes.json")
        totals = {name: float(table[name].sum()) for name in ("megapixels", "building_megapixels", "seconds")}
        mlflow.log_metrics({**totals, "scenes": len(table), "footprints": float(table.footprints.sum())})
        tracking.describe(f"{len(table)} scenes of `{args.images}` by **{model}**, in `{args.output}`")


def _draw(
    scenes: list[Scene],
    chips: dict[str, tuple[int, int]],
    predict: Predict,
    settings: Settings,
    output: str,
    scratch: Path,
) -> list[dict[str, Any]]:
    """A row of figures for each scene, whose files lie in the output afterwards.

    `chips` gives (height, width) of the images that do not say where they lie; their masks become the submission.
    """
    import mlflow

    from ocmlflow import maps, storage, submission

    rows = []
    masks: dict[str, Path] = {}
    for done, scene in enumerate(progress(scenes, len(scenes), "predicting")):
        started = time.perf_counter()
        made = maps.draw(scene, predict, scratch, settings=settings, progress=progress)
        if done < PICTURES:
            mlflow.log_image(maps.overview(scene, made), f"pictures/{scene.id}.jpg")
        row = {
            "scene": scene.id,
            "megapixels": made.pixels / 1e6,
            "building_megapixels": made.buildings / 1e6,
            "footprints": 0 if made.footprints is None else len(made.footprints),
            "seconds": time.perf_counter() - started,
        }
        rows.append(row)
        if made.footprints is None:  # kept beside the output, for the archive
            masks[scene.id] = scratch / "chips" / f"{scene.id}.tif"
            masks[scene.id].parent.mkdir(exist_ok=True)
            shutil.copyfile(made.mask, masks[scene.id])
        _put(scene, made, output, scratch)
        log.info(
            "scene %s: %.2f Mpx, %d footprints, %.1f s", scene.id, row["megapixels"], row["footprints"], row["seconds"]
        )
    if chips:
        submission.check(masks, chips)
        submission.pack(masks, scratch / "submission.tgz")
        storage.put(scratch / "submission.tgz", storage.join(output, "submission.tgz"))
        log.info("submission of %d chips checked and packed", len(chips))
    return rows


def _put(scene: Scene, made: Map, output: str, scratch: Path) -> None:
    """Move a scene's files to the output."""
    from ocmlflow import storage

    if made.footprints is not None:
        parquet, geojson = scratch / f"{scene.id}.parquet", scratch / f"{scene.id}.geojson"
        made.footprints.to_parquet(parquet)
        # RFC 7946: degrees in seven decimals, a centimetre.
        made.footprints.to_file(geojson, driver="GeoJSON", RFC7946="YES", geometry_type="Polygon")
        for path in (parquet, geojson):
            storage.put(path, storage.join(output, "footprints", path.name))
    storage.put(made.probability, storage.join(output, "probabilities", f"{scene.id}.tif"))
    storage.put(made.mask, storage.join(output, "masks", f"{scene.id}.tif"))


if __name__ == "__main__":
    start(main, parse())
