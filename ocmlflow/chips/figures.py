"""Arrays, to pictures that show at a glance whether labels and predictions sit on their roofs."""

from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ocmlflow import pictures
from ocmlflow.chips import chip_set, labels
from ocmlflow.chips.zarr_store import Chip, Folder

SPLIT_COLOURS = {"train": "#3b7dd8", "validation": "#e0762f", "test": "#3f9b57", "unused": "#b5b5b5"}
PANELS = 24
TOGETHER_M = 2000.0
"""Scenes of a place that are no further apart share a panel of a map."""
SMALLEST = 0.02
"""A chip's side as a share of its panel's, below which a white edge would hide it."""


def preview(folder: Folder, rows: gpd.GeoDataFrame, *, count: int) -> np.ndarray:
    """Chips of one scene, from the emptiest to the most built: image, label's outlines, label and valid."""
    ordered = rows.sort_values(["building_share", "id"])
    chosen = ordered.iloc[np.unique(np.linspace(0, len(rows) - 1, count).astype(int))]
    return pictures.contact_sheet([_triple(chip_set.read(folder, row)) for row in chosen.itertuples()])


def split_map(index: gpd.GeoDataFrame) -> Figure:
    """Where the chips lie, coloured by split: a panel for each group of scenes that lie together."""
    figure, panels = _panels(index, side=3.6)
    for at, name, here in panels:
        rows = index[here]
        found = [split for split in SPLIT_COLOURS if (rows.split == split).any()]
        _draw(at, rows, rows.split.map(SPLIT_COLOURS).tolist())
        counts = ", ".join(f"{(rows.split == split).sum()} {split}" for split in found)
        at.set_title(f"{name}\n{counts}", fontsize=9)
    return figure


def block_map(rows: gpd.GeoDataFrame, values: np.ndarray, *, low: float, high: float, colours: str) -> Figure:
    """The chips, coloured by the value (chips,) of their ground: a panel for each group of scenes that lie together."""
    figure, panels = _panels(rows, side=3.2)
    scale = ScalarMappable(Normalize(low, high), colours)
    for at, name, here in panels:
        shown = scale.to_rgba(values[here])
        shown[np.isnan(values[here])] = (0.85, 0.85, 0.85, 1)
        _draw(at, rows[here], shown)
        at.set_title(name, fontsize=9)
    figure.colorbar(scale, ax=figure.axes, shrink=0.7)
    return figure


def _panels(rows: gpd.GeoDataFrame, *, side: float) -> tuple[Figure, list[tuple[Axes, str, np.ndarray]]]:
    """A figure of panels of `side` inches, and each with the name of its chips and which they are, (chips,) bool.

    Those of PANELS groups with the most chips; the figure says how many others there are.
    """
    groups = _groups(rows)
    some = groups.value_counts().index[:PANELS]
    across = min(4, len(some))
    down = -(-len(some) // across)
    figure = Figure(figsize=(side * across + 0.4, (side + 0.2) * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for at in axes:
        at.set_axis_off()
    if left := int((~groups.isin(some)).sum()):
        figure.suptitle(f"without {left} chips of {groups.nunique() - len(some)} smaller groups of scenes", fontsize=9)
    named = [(group, (groups == group).to_numpy()) for group in some]
    alone = rows.place.groupby(groups).first().value_counts() == 1
    panels = []
    for at, (_, here) in zip(axes, named, strict=False):
        place, scenes = rows.place[here].iloc[0], sorted(set(rows.scene[here]))
        name = place or "(no place)"
        if not alone[place]:
            name += f": {scenes[0]}" + (f" and {len(scenes) - 1} more" if len(scenes) > 1 else "")
        panels.append((at, name, here))
    return figure, panels


def _groups(rows: gpd.GeoDataFrame) -> pd.Series:
    """The number of each chip's group: scenes of one place and UTM zone, no further than TOGETHER_M from the next.

    A folder is one place, wherever its scenes lie: in one panel, those of two towns would be two dots.
    """
    by = rows.groupby(["place", "utm", "scene"])
    boxes = shapely.box(by.x.min(), by.y.min(), by.x.max(), by.y.max())
    first, second = shapely.STRtree(boxes).query(boxes, "dwithin", TOGETHER_M)
    keys = by.x.min().index
    alike = [keys.get_level_values(name).to_numpy() for name in ("place", "utm")]
    linked = np.logical_and.reduce([names[first] == names[second] for names in alike])
    pairs = coo_array((np.ones(linked.sum()), (first[linked], second[linked])), shape=(len(boxes), len(boxes)))
    _, group = connected_components(pairs, directed=False)
    return pd.Series(group[by.ngroup().to_numpy()], index=rows.index)


def _draw(at: Axes, rows: gpd.GeoDataFrame, colours: Any) -> None:
    """Draw chips of one UTM zone; an edge tells large ones apart, and makes small ones large enough to be seen."""
    outlines = rows.geometry.to_crs(rows.utm.iloc[0])
    left, bottom, right, top = outlines.total_bounds
    large = np.sqrt(outlines.area.median()) > SMALLEST * max(right - left, top - bottom)
    # Snapped to whole pixels, what is smaller than one may be nothing.
    small = {"edgecolor": colours, "linewidth": 1.0, "snap": False}
    edge = {"edgecolor": "white", "linewidth": 0.3} if large else small
    outlines.plot(ax=at, facecolor=colours, clip_on=False, **edge)  # a row of chips may be lower than its edge


def _triple(chip: Chip) -> list[np.ndarray]:
    label, valid = labels.decode(chip.label)
    flat = np.where(label[..., np.newaxis] > 0, pictures.HIT_COLOUR, (255, 255, 255)).astype(np.uint8)
    flat[~valid] = pictures.INVALID_COLOUR
    return [chip.image, pictures.draw_outlines(chip.image, label, valid), flat]
