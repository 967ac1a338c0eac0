"""Summarizes a chip set: statistics of each scene, and a STAC item of the whole set."""

from pathlib import Path
from typing import Any

import geopandas as gpd
import shapely

from ocmlflow.chips import chip_set, label_shift, splits
from ocmlflow.scenes import stac_writer
from ocmlflow.scenes.catalog import Scene

SHIFT_CHIPS = 32
"""Number of chips, those with the most building, from which the shift of a scene's labels is estimated."""


def scene(rows: gpd.GeoDataFrame, folder: Path, *, gsd: float) -> dict[str, Any]:
    """Statistics of the chips of one scene, from its rows of the index and its store in `folder`.

    They are `train`, `validation` and `test` (chips), `building_share`, `red`, `green` and `blue` (means of the valid
    pixels) and, with buildings, `shift_east_m` and `shift_north_m` (how far its labels should move).
    """
    weights = rows.valid_share / rows.valid_share.sum()
    statistics: dict[str, Any] = {split: int((rows.split == split).sum()) for split in splits.SPLITS}
    statistics["building_share"] = round(float((rows.building_share * weights).sum()), 4)
    statistics |= {band: round(float((rows[band] * weights).sum()), 1) for band in ("red", "green", "blue")}
    chosen = rows.sort_values(["building_share", "id"], ascending=False).head(SHIFT_CHIPS)
    shift = label_shift.estimate((chip_set.read(folder, row) for row in chosen.itertuples()), gsd=gsd)
    if shift is not None:
        statistics |= {"shift_east_m": round(shift[0], 2), "shift_north_m": round(shift[1], 2)}
    return statistics


def stac_item(index: gpd.GeoDataFrame, scenes: list[Scene], *, gsd: float) -> dict[str, Any]:
    """STAC item of a chip set: its files as assets, derived from those of `scenes` that it has chips of."""
    names = sorted(set(index.scene))
    assets = {name: (f"./{name}.zarr", "application/vnd.zarr; version=3") for name in names}
    assets |= {name: (f"./{name}.parquet", "application/vnd.apache.parquet") for name in ("index", "footprints")}
    # A scene across 180 degrees gets an outline on each side: one hull would go around the earth.
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
