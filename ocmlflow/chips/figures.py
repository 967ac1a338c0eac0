"""Pictures of a chip set: previews of chips with their labels, and maps of splits and of scores by block."""

from typing import Any, NamedTuple

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
MAX_PANELS = 24
SAME_PANEL_M = 2000.0
"""Scenes of a place that are no further apart share a panel of a map."""
LARGE_SHARE = 0.02
"""Chips whose side is a larger share of their panel's get a white edge, which would hide smaller ones."""


def preview(folder: Folder, rows: gpd.GeoDataFrame, *, count: int) -> np.ndarray:
    """RGB picture of `count` chips of a scene, from the emptiest to the most built: image, outlines, label."""
    ordered = rows.sort_values(["building_share", "id"])
    chosen = ordered.iloc[np.unique(np.linspace(0, len(rows) - 1, count).astype(int))]
    return pictures.contact_sheet([_chip_pictures(chip_set.read(folder, row)) for row in chosen.itertuples()])


def split_map(index: gpd.GeoDataFrame) -> Figure:
    """Map of the chips, coloured by split, with a panel for each group of neighbouring scenes."""
    figure, panels = _panels(index, side=3.6)
    for panel in panels:
        rows = index[panel.inside]
        _draw_chips(panel.axes, rows, rows.split.map(SPLIT_COLOURS).tolist())
        sizes = {split: int((rows.split == split).sum()) for split in SPLIT_COLOURS}
        counts = ", ".join(f"{size} {split}" for split, size in sizes.items() if size)
        panel.axes.set_title(f"{panel.name}\n{counts}", fontsize=9)
    return figure


def block_map(rows: gpd.GeoDataFrame, values: np.ndarray, *, low: float, high: float, colours: str) -> Figure:
    """Map of the chips, coloured by `values` (chips,), with a panel for each group of neighbouring scenes.

    `low` and `high` are the ends of the colour map `colours` of matplotlib; chips whose value is NaN are grey.
    """
    figure, panels = _panels(rows, side=3.2)
    scale = ScalarMappable(Normalize(low, high), colours)
    for panel in panels:
        chip_values = values[panel.inside]
        chip_colours = scale.to_rgba(chip_values)
        chip_colours[np.isnan(chip_values)] = (0.85, 0.85, 0.85, 1)
        _draw_chips(panel.axes, rows[panel.inside], chip_colours)
        panel.axes.set_title(panel.name, fontsize=9)
    figure.colorbar(scale, ax=figure.axes, shrink=0.7)
    return figure


class _Panel(NamedTuple):
    """One panel of a map."""

    axes: Axes
    name: str
    """Place, and scenes where the place has several panels."""
    inside: np.ndarray
    """(chips,) bool: which chips it shows."""


def _panels(rows: gpd.GeoDataFrame, *, side: float) -> tuple[Figure, list[_Panel]]:
    """A figure with panels of `side` inches for the MAX_PANELS groups of scenes that have the most chips.

    The figure's title says how many chips and groups are left out.
    """
    group = _neighbour_groups(rows)
    largest = group.value_counts().index[:MAX_PANELS]
    across = min(4, len(largest))
    down = -(-len(largest) // across)
    figure = Figure(figsize=(side * across + 0.4, (side + 0.2) * down), layout="constrained")
    all_axes = figure.subplots(down, across, squeeze=False).ravel()
    for axes in all_axes:
        axes.set_axis_off()
    if left_out := int((~group.isin(largest)).sum()):
        others = group.nunique() - len(largest)
        figure.suptitle(f"without {left_out} chips of {others} smaller groups of scenes", fontsize=9)
    groups_of_place = rows.place.groupby(group).first().value_counts()
    panels = []
    for axes, number in zip(all_axes, largest, strict=False):
        inside = (group == number).to_numpy()
        name = _panel_name(rows[inside], is_whole_place=groups_of_place[rows.place[inside].iloc[0]] == 1)
        panels.append(_Panel(axes, name, inside))
    return figure, panels


def _panel_name(rows: gpd.GeoDataFrame, *, is_whole_place: bool) -> str:
    """The place of some chips; with its scenes where other panels show the rest of the place."""
    place = rows.place.iloc[0] or "(no place)"
    if is_whole_place:
        return str(place)
    first, *others = sorted(set(rows.scene))
    return f"{place}: {first}" + (f" and {len(others)} more" if others else "")


def _neighbour_groups(rows: gpd.GeoDataFrame) -> pd.Series:
    """Number of each chip's group: scenes of one place and UTM zone, each within SAME_PANEL_M of another one.

    A place can be a folder of scenes from anywhere: in one panel, those of two towns would be two dots.
    """
    scene_of_chip = rows.groupby(["place", "utm", "scene"])
    scenes = scene_of_chip.agg(left=("x", "min"), bottom=("y", "min"), right=("x", "max"), top=("y", "max"))
    scenes = scenes.reset_index()
    boxes = shapely.box(scenes.left, scenes.bottom, scenes.right, scenes.top)
    one, other = shapely.STRtree(boxes).query(boxes, "dwithin", SAME_PANEL_M)
    place = scenes.place.to_numpy()
    utm = scenes.utm.to_numpy()
    near = (place[one] == place[other]) & (utm[one] == utm[other])
    links = coo_array((np.ones(near.sum()), (one[near], other[near])), shape=(len(scenes), len(scenes)))
    _, group_of_scene = connected_components(links, directed=False)
    return pd.Series(group_of_scene[scene_of_chip.ngroup().to_numpy()], index=rows.index)


def _draw_chips(axes: Axes, rows: gpd.GeoDataFrame, colours: Any) -> None:
    """Draw the outlines of chips of one UTM zone, filled with a colour each."""
    outlines = rows.geometry.to_crs(rows.utm.iloc[0])
    left, bottom, right, top = outlines.total_bounds
    if np.sqrt(outlines.area.median()) > LARGE_SHARE * max(right - left, top - bottom):
        edge = {"edgecolor": "white", "linewidth": 0.3}
    else:
        # An edge of their own colour keeps tiny chips visible. Snapped to whole pixels they could vanish.
        edge = {"edgecolor": colours, "linewidth": 1.0, "snap": False}
    outlines.plot(ax=axes, facecolor=colours, clip_on=False, **edge)  # a row of chips may be lower than its edge


def _chip_pictures(chip: Chip) -> list[np.ndarray]:
    """Three RGB pictures of a chip: image, image with outlines, and the label with its invalid pixels."""
    label, valid = labels.decode(chip.label)
    flat = np.where(label[..., np.newaxis] > 0, pictures.HIT_COLOUR, (255, 255, 255)).astype(np.uint8)
    flat[~valid] = pictures.INVALID_COLOUR
    return [chip.image, pictures.draw_outlines(chip.image, label, valid), flat]
