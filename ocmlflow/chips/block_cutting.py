"""Cuts blocks of chips from one scene and writes their shards: the work of one worker at a time."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.windows import Window, union

from ocmlflow.chips import chip_set, labels, targets, zarr_store
from ocmlflow.chips.chip_set import Rules
from ocmlflow.errors import InputError
from ocmlflow.scenes import raster, resample
from ocmlflow.scenes.geobox import GeoBox
from ocmlflow.scenes.reading_rules import ReadingRules
from ocmlflow.scenes.resample import ReadWindow

DONE_FOLDER = "blocks"
"""Folder in the store of an unfinished scene: a file of chip records, `<block number>.json`, for each block done."""


@dataclass(frozen=True)
class ChipWindow:
    """A window of the scene that may become a chip."""

    number: int
    """Number of the chip in its block, 0 to 63."""
    window: Window
    """Pixels of the scene's grid; it may reach beyond the scene."""
    keep_empty: bool
    """Whether to keep the chip if it shows no building."""


@dataclass(frozen=True)
class ShardBlock:
    """The chips of one shard."""

    number: int
    """Number of the block in its scene."""
    chips: list[ChipWindow]
    """In any order, at least one."""
    footprints: np.ndarray
    """(count,) shapely polygons in the CRS of the grid: all that may be drawn in the block."""
    labelled: np.ndarray | None
    """(count,) shapely polygons in the CRS of the grid: the ground that was labelled; None where all of it was."""


@dataclass(frozen=True)
class BlockJob:
    """Blocks of one scene for one worker to cut."""

    scene: str
    """Id of the scene."""
    image: str
    """Href of its image."""
    grid: GeoBox
    """Grid of the chips."""
    reading: ReadingRules
    """How the image is read."""
    blocks: list[ShardBlock]
    """Side by side, so that parts of the image that two of them need are decoded once."""
    store: Path
    """The unfinished store of the scene."""
    rules: Rules


def cut_job(job: BlockJob) -> tuple[str, InputError | None]:
    """Cut the blocks of a job; returns the scene's id, and the error if its image could not be read."""
    try:
        with (
            raster.open_scene(job.image, rules=job.reading) as (image, own),
            resample.window_reader(image, own, job.grid) as read_window,
        ):
            for block in job.blocks:
                records = _cut_block(read_window, block, job)
                done = job.store / DONE_FOLDER / f"{block.number}.json"
                new = done.with_suffix(".new")
                new.write_text(json.dumps(records))
                new.replace(done)
    except InputError as error:
        return job.scene, error
    return job.scene, None


def _cut_block(read_window: ReadWindow, block: ShardBlock, job: BlockJob) -> list[dict[str, Any]]:
    """Cut the chips of one block and write its shards; returns a record of every chip that is kept."""
    area = union(*(chip.window for chip in block.chips))
    arrays = _block_arrays(read_window, area, block, job)
    size = job.rules.size
    encoded: dict[str, dict[int, bytes]] = {name: {} for name in arrays}
    records = []
    for chip in block.chips:
        top, left = int(chip.window.row_off - area.row_off), int(chip.window.col_off - area.col_off)
        pixels = np.s_[top : top + size, left : left + size]
        chip_arrays = {name: np.ascontiguousarray(values[pixels]) for name, values in arrays.items()}
        valid, building = labels.count_pixels(chip_arrays["label"])
        if not valid or valid < job.rules.min_valid * size**2 or not (building or chip.keep_empty):
            continue
        for name, values in chip_arrays.items():
            encoded[name][chip.number] = zarr_store.encode(values)
        position = block.number * zarr_store.CHIPS_PER_SHARD + chip.number
        records.append(_record(chip_arrays, chip.window, position=position, valid=valid, building=building))
    if records:
        for name, chips in encoded.items():
            zarr_store.write(job.store, name, block.number, chips)
    return records


def _block_arrays(read_window: ReadWindow, area: Window, block: ShardBlock, job: BlockJob) -> dict[str, np.ndarray]:
    """The arrays `image`, `label` (coded) and `targets` of the area of a block."""
    pixels = read_window(area)
    image, valid = pixels.image, pixels.valid
    raster_grid: dict[str, Any] = {
        "transform": job.grid.transform @ Affine.translation(area.col_off, area.row_off),
        "height": int(area.height),
        "width": int(area.width),
    }
    if block.labelled is not None:
        valid = valid & (labels.rasterize(block.labelled, **raster_grid) > 0)
        image[~valid] = 0
    footprints = block.footprints
    near = labels.near_outline(footprints, buffer_m=job.rules.buffer_m, **raster_grid) if job.rules.buffer_m else None
    return {
        "image": image,
        "label": labels.encode(labels.rasterize(footprints, **raster_grid), valid, near),
        "targets": targets.draw(footprints, gsd=job.rules.gsd, **raster_grid),
    }


def _record(
    arrays: dict[str, np.ndarray], window: Window, *, position: int, valid: int, building: int
) -> dict[str, Any]:
    """Columns of the chip index that are known once a chip is cut."""
    sampled = np.count_nonzero(arrays["label"][::4, ::4] != labels.INVALID)
    # The image is 0 where it is not valid, so sums over all pixels are sums over the valid ones.
    means = np.einsum("rcb->b", arrays["image"][::4, ::4], dtype=np.float64) / max(sampled, 1)
    return {
        "row": int(window.row_off),
        "col": int(window.col_off),
        "position": position,
        "valid_share": valid / arrays["label"].size,
        "building_share": building / valid,
        **dict(zip(("red", "green", "blue"), (round(float(mean), 2) for mean in means), strict=True)),
        "hash": chip_set.content_hash(*arrays.values()),
    }
