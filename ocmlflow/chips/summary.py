"""Chips that are cut, to what is worth knowing of each scene and to a STAC item of them all."""

from pathlib import Path
from typing import Any

import geopandas as gpd
import shapely

from ocmlflow.chips import chip_set, label_shift, splits
from ocmlflow.scenes import stac_writer
from ocmlflow.scenes.catalog import Scene

SHIFT_CHIPS = 32
"""Chips of a scene, those with the most building, whose labels are laid over the image's edges."""


def scene(rows: gpd.GeoDataFrame, folder: Path, *, gsd: float) -> dict[str, Any]:
    """Of the chips of one scene: how many, their building share and colours, and how far its labels seem to lie off."""
    weights = rows.valid_share / rows.valid_share.sum()
    found: dict[str, Any] = {split: int((rows.split == split).sum()) for split in splits.SPLITS}
    found["building_share"] = round(float((rows.building_share * weights).sum()), 4)
    found |= {band: round(float((rows[band] * weights).sum()), 1) for band in ("red", "green", "blue")}
    chosen = rows.sort_values(["building_share", "id"], ascending=False).head(SHIFT_CHIPS)
    shift = label_shift.estimate((chip_set.read(folder, row) for row in chosen.itertuples()), gsd=gsd)
    if shift is not None:
        found |= {"shift_east_m": round(shift[0], 2), "shift_north_m": round(shift[1], 2)}
    return found


def stac_item(index: gpd.GeoDataFrame, scenes: list[Scene], *, gsd: float) -> dict[str, Any]:
    """The set of chips as a STAC item, derived from its scenes."""
    names = sorted(set(index.scene))
    assets = {name: (f"./{name}.zarr", "application/vnd.zarr; version=3") for name in names}
    assets |= {"index": ("./index.parquet", "application/vnd.apache.parquet")}
    # A scene across 180 degrees has an outline on each side.
    parts = index[["scene", "geometry"]].explode(ignore_index=True)
    sides = parts.groupby([parts.scene, parts.bounds.minx < 0]).geometry
    outlines = [shapely.union_all(rows.to_numpy()).convex_hull for _, rows in sides]
    return stac_writer.build_item(
        f"chips-{chip_set.digest(index)}",
        [scene for scene in scenes if scene.id in names],
        outline=shapely.union_all(outlines),
        assets=assets,
        gsd=gsd,
        chips=len(index),
    )
