"""Scenes, to chip stores and their index.

A set of chips is a folder: `index.parquet` (GeoParquet, a row a chip), `chips.json` (the rules they were cut by) and
for every scene a Zarr v3 group `<scene>.zarr` with the arrays `image` (chip, row, col, band) uint8 and `label`
(chip, row, col) uint8 of 0, 1 and 255 for not valid. One chunk is one chip, one shard a block of 8 x 8 chips.
"""

import functools
import hashlib
import io
import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import zarr
from affine import Affine
from rasterio.windows import Window, union
from shapely.geometry.base import BaseGeometry
from zarr.codecs import ZstdCodec

from ocmlflow import grid, labels, raster, storage
from ocmlflow.catalog import Scene
from ocmlflow.errors import InputError

log = logging.getLogger(__name__)

BLOCK = 8
"""Chips along each side of a block, the unit of work and of storage."""
ROWS = "rows.parquet"
"""File in a scene's store with its rows of the index, before the split."""


@dataclass(frozen=True)
class Rules:
    """How chips are cut."""

    gsd: float
    """Metres per pixel."""
    size: int
    """Pixels along a side."""
    stride: int
    """Pixels from one chip to the next."""
    min_valid: float
    """Chips with a smaller share of imagery are left out."""


@dataclass(frozen=True)
class Chips:
    """A set of chips, open for reading."""

    folder: Path
    index: gpd.GeoDataFrame
    """Columns id, scene, place, split, position (in the store), row, col (of the first pixel, on the scene's grid of
    `gsd`), gsd, utm (its CRS), x, y (of the middle, in metres), valid_share, building_share, hash, geometry (lon,
    lat)."""
    rules: dict[str, Any]
    """Rules of the cut and the split, and `catalog`, the href it came from."""

    def select(self, split: str) -> gpd.GeoDataFrame:
        """The rows of one split, `train` or `validation`."""
        return self.index[self.index.split == split].reset_index(drop=True)


@dataclass(frozen=True)
class _Job:
    scene: Scene
    target: raster.Grid
    windows: list[Window]
    first: int  # position of the block's first chip in the store
    footprints: list[BaseGeometry]
    store: Path
    rules: Rules


def footprints(scene: Scene, crs: str) -> list[BaseGeometry]:
    """Polygons of the buildings of a scene, valid, in `crs`.

    Raises InputError for labels that cannot be read, say no CRS, or lie nowhere on their scene.
    """
    found: list[BaseGeometry] = []
    for href in scene.labels:
        try:
            file = io.BytesIO(storage.read(href)) if storage.is_remote(href) else storage.path(href)
            frame = gpd.read_file(file, columns=[])
        except Exception as error:  # pyogrio, GDAL and the network each have errors of their own
            raise InputError(f"cannot read labels {href} of scene {scene.id}: {error}") from error
        if len(frame) and frame.crs is None:
            raise InputError(f"labels {href} of scene {scene.id} name no CRS; GeoJSON in degrees needs none")
        shapes = [shape for shape in frame.geometry if shape is not None and not shape.is_empty] if len(frame) else []
        if shapes:
            drawn = gpd.GeoSeries(shapes, crs=frame.crs)
            polygons = labels.polygons(drawn.to_crs(crs))
            if not polygons:
                raise InputError(
                    f"none of the {len(drawn)} geometries of labels {href} of scene {scene.id} is a polygon on earth: "
                    f"they are {', '.join(sorted(set(drawn.geom_type)))} in {frame.crs.name}, from "
                    f"{drawn.total_bounds[0]:g}, {drawn.total_bounds[1]:g}; GeoJSON is in degrees"
                )
            found += polygons
    return found


def check(scene: Scene, *, gsd: float) -> tuple[raster.Grid, float]:
    """The grid that a scene is cut on and its native metres per pixel; InputError where it cannot be cut.

    Reads the header of the image and the labels, no pixels.
    """
    with raster.opened(scene.image) as (_, own):
        target = raster.ground_grid(own, gsd=gsd)
        native = raster.gsd(own)
    polygons = footprints(scene, target.crs)
    extent = shapely.Polygon(target.corners(Window(0, 0, target.width, target.height)))
    if polygons and not shapely.intersects(polygons, extent).any():
        raise InputError(
            f"none of the {len(polygons)} footprints of scene {scene.id} lies on its image: "
            f"check that {scene.labels[0]} belongs to {scene.image} and that its CRS is the one it names"
        )
    return target, native


def cut(scene: Scene, target: raster.Grid, folder: Path, *, rules: Rules, executor: Executor) -> gpd.GeoDataFrame:
    """Cut a labelled scene into chips: writes `<scene>.zarr`, its rows inside, and returns these, without a split.

    What is whole already, from a call that was interrupted, is read and not made again.
    """
    store = folder / f"{scene.id}.zarr"
    if store.exists():
        log.info("scene %s: chips are there already", scene.id)
        return gpd.read_parquet(store / ROWS)
    part = folder / f"{scene.id}.zarr.part"
    shutil.rmtree(part, ignore_errors=True)
    jobs = list(_jobs(scene, target, part, rules))
    _create(part, len(jobs) * BLOCK * BLOCK, rules.size)
    records = [record for found in executor.map(_cut_block, jobs) for record in found]
    index = _frame(records)
    index.to_parquet(part / ROWS)
    part.rename(store)
    return index


def save(folder: Path, index: gpd.GeoDataFrame, rules: dict[str, Any]) -> None:
    """Write the index and the rules of the chips in `folder`; the set is whole from then on."""
    index.to_parquet(folder / "index.parquet")
    (folder / "chips.json").write_text(json.dumps(rules, indent=2))


def load(folder: Path) -> Chips:
    """The set of chips in `folder`; InputError where there is none."""
    if not (folder / "chips.json").exists():
        raise InputError(f"{folder} holds no chips: chips.json, written last, is not there")
    return Chips(folder, gpd.read_parquet(folder / "index.parquet"), json.loads((folder / "chips.json").read_text()))


def read(folder: Path, row: Any) -> np.ndarray:
    """(size, size, 4) uint8: RGB and the coded label of the chip of one row of the index."""
    image, label = _arrays(folder / f"{row.scene}.zarr")
    return np.concatenate([image[row.position], label[row.position][..., np.newaxis]], axis=-1)


def digest(index: gpd.GeoDataFrame) -> str:
    """32 hex digits that name what the chips hold and how they are split."""
    return storage.digest(index[["id", "split", "hash"]].sort_values("id").to_csv(index=False))


def rules_of(rules: Rules, **more: Any) -> dict[str, Any]:
    """The rules as they are saved beside the index."""
    return {**asdict(rules), **more}


@functools.lru_cache(maxsize=256)
def _arrays(store: Path) -> tuple[Any, Any]:
    group = zarr.open_group(store, mode="r")
    return group["image"], group["label"]


def _jobs(scene: Scene, target: raster.Grid, store: Path, rules: Rules) -> Iterator[_Job]:
    polygons = footprints(scene, target.crs)
    tree = shapely.STRtree(polygons)
    side = rules.size + (BLOCK - 1) * rules.stride
    rows = grid.reaching(target.height, size=rules.size, stride=rules.stride)
    cols = grid.reaching(target.width, size=rules.size, stride=rules.stride)
    count = 0
    for top in range(0, len(rows), BLOCK):
        for left in range(0, len(cols), BLOCK):
            windows = [
                Window(col, row, rules.size, rules.size)
                for row in rows[top : top + BLOCK]
                for col in cols[left : left + BLOCK]
            ]
            extent = shapely.Polygon(target.corners(Window(cols[left], rows[top], side, side)))
            near = [polygons[i] for i in sorted(tree.query(extent))]
            yield _Job(scene, target, windows, count * BLOCK * BLOCK, near, store, rules)
            count += 1


def _create(store: Path, chips: int, size: int) -> None:
    group = zarr.open_group(store, mode="w")
    for name, shape, fill in (("image", (size, size, 3), 0), ("label", (size, size), labels.NOT_VALID)):
        group.create_array(
            name,
            shape=(chips, *shape),
            chunks=(1, *shape),
            shards=(BLOCK * BLOCK, *shape),
            dtype="uint8",
            fill_value=fill,
            compressors=ZstdCodec(level=1),
            chunk_key_encoding={"name": "default", "separator": "."},  # one folder an array, not four
        )


def _cut_block(job: _Job) -> list[dict[str, Any]]:
    """Cut the chips of one block, write its shard, and return a record for every chip kept."""
    with raster.opened(job.scene.image) as (dataset, own), raster.warped(dataset, own, job.target) as vrt:
        block = union(*job.windows)
        pixels = raster.read_padded(vrt, block)
    label = labels.burn(
        job.footprints,
        job.target.transform @ Affine.translation(block.col_off, block.row_off),
        height=int(block.height),
        width=int(block.width),
    )
    coded = labels.encode(label, pixels.valid)
    size = job.rules.size
    images = np.zeros((BLOCK * BLOCK, size, size, 3), np.uint8)
    codes = np.full((BLOCK * BLOCK, size, size), labels.NOT_VALID, np.uint8)
    records = []
    for number, window in enumerate(job.windows):
        top, left = int(window.row_off - block.row_off), int(window.col_off - block.col_off)
        at = np.s_[top : top + size, left : left + size]
        valid = pixels.valid[at]
        if valid.any() and valid.mean() >= job.rules.min_valid:
            images[number], codes[number] = pixels.image[at], coded[at]
            records.append(_record(job, window, job.first + number, images[number], codes[number]))
    if records:
        group = zarr.open_group(job.store, mode="r+")
        for name, values in (("image", images), ("label", codes)):
            array: Any = group[name]
            array[job.first : job.first + BLOCK * BLOCK] = values
    return records


def _record(job: _Job, window: Window, position: int, image: np.ndarray, coded: np.ndarray) -> dict[str, Any]:
    label, valid = labels.decode(coded)
    x, y = job.target.transform @ (window.col_off + window.width / 2, window.row_off + window.height / 2)
    return {
        "id": f"{job.scene.id}-{window.row_off:06d}-{window.col_off:06d}",
        "scene": job.scene.id,
        "place": job.scene.place,
        "position": position,
        "row": window.row_off,
        "col": window.col_off,
        "gsd": job.rules.gsd,
        "utm": job.target.crs,
        "x": x,
        "y": y,
        "valid_share": float(valid.mean()),
        "building_share": float(label[valid].mean()),
        "hash": hashlib.blake2b(image.tobytes() + coded.tobytes(), digest_size=8).hexdigest(),
        "geometry": raster.outline(job.target, window),
    }


def _frame(records: Iterable[dict[str, Any]]) -> gpd.GeoDataFrame:
    frame = pd.DataFrame(list(records), columns=list(_COLUMNS)).astype(_COLUMNS)
    return gpd.GeoDataFrame(frame, geometry="geometry", crs="EPSG:4326")


_COLUMNS = {
    "id": "str",
    "scene": "str",
    "place": "str",
    "position": "int64",
    "row": "int64",
    "col": "int64",
    "gsd": "float64",
    "utm": "str",
    "x": "float64",
    "y": "float64",
    "valid_share": "float64",
    "building_share": "float64",
    "hash": "str",
    "geometry": "object",
}
