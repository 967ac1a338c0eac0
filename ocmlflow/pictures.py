"""Arrays, to pictures that show at a glance whether labels and predictions sit on their roofs."""

from collections.abc import Sequence

import geopandas as gpd
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from skimage.segmentation import find_boundaries

from ocmlflow import chips, labels
from ocmlflow.store import Chip, Files

OUTLINE = (255, 0, 255)
NOT_VALID = (90, 90, 110)
GAP = 6
SPLIT_COLOURS = {"train": "#3b7dd8", "validation": "#e0762f", "test": "#3f9b57", "unused": "#b5b5b5"}
HIT, FALSE, MISSED = (60, 170, 90), (220, 60, 50), (50, 110, 220)


def outlined(image: np.ndarray, label: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8: the image with the outlines of the label drawn over, grey where nothing is valid."""
    picture = image.copy()
    picture[~valid] = NOT_VALID
    picture[find_boundaries(label > 0, mode="inner")] = OUTLINE
    return picture


def grey(probability: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8 of a probability, 0..1."""
    return np.repeat((np.clip(probability, 0, 1) * 255).astype(np.uint8)[..., np.newaxis], 3, axis=-1)


def errors(image: np.ndarray, building: np.ndarray, label: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8: the image in grey, tinted where building was found, falsely found, and missed."""
    light = image.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    for colour, where in (
        (HIT, building & (label > 0)),
        (FALSE, building & (label == 0)),
        (MISSED, ~building & (label > 0)),
    ):
        light = _tint(light, where, colour)
    light[~valid] = NOT_VALID
    return light.astype(np.uint8)


def tinted(image: np.ndarray, building: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8: the image, tinted where there is building."""
    return _tint(image, building, FALSE)


def preview(folder: Files, rows: gpd.GeoDataFrame, *, count: int) -> np.ndarray:
    """Chips of one scene, from the emptiest to the most built: image, label's outlines, label and valid."""
    ordered = rows.sort_values(["building_share", "id"])
    chosen = ordered.iloc[np.unique(np.linspace(0, len(rows) - 1, count).astype(int))]
    return sheet([_triple(chips.read(folder, row)) for row in chosen.itertuples()])


def split_map(index: gpd.GeoDataFrame) -> Figure:
    """Where the chips of each place lie, coloured by split; the twelve places with the most chips."""
    places = index.place.value_counts().index[:12]
    across = min(4, len(places))
    figure = Figure(figsize=(3.6 * across, 3.8 * -(-len(places) // across)), layout="constrained")
    axes = figure.subplots(-(-len(places) // across), across, squeeze=False).ravel()
    for at in axes[len(places) :]:
        at.set_axis_off()
    for at, place in zip(axes, places, strict=False):
        rows = index[index.place == place]
        rows = rows.to_crs(rows.utm.iloc[0])
        counts = []
        for split, colour in SPLIT_COLOURS.items():
            some = rows[rows.split == split]
            if len(some):
                some.plot(ax=at, facecolor=colour, edgecolor="white", linewidth=0.3)
                counts.append(f"{len(some)} {split}")
        at.set_title(f"{place or '(no place)'}: {', '.join(counts)}", fontsize=9)
        at.set_axis_off()
    return figure


def block_map(rows: gpd.GeoDataFrame, values: np.ndarray, *, low: float, high: float, colours: str) -> Figure:
    """The chips of each place, coloured by the value (chips,) of their ground; the twelve places with the most."""
    places = rows.place.value_counts().index[:12]
    across = min(4, len(places))
    figure = Figure(figsize=(3.2 * across + 0.8, 3.2 * -(-len(places) // across)), layout="constrained")
    axes = figure.subplots(-(-len(places) // across), across, squeeze=False).ravel()
    scale = ScalarMappable(Normalize(low, high), colours)
    for at in axes:
        at.set_axis_off()
    for at, place in zip(axes, places, strict=False):
        here = (rows.place == place).to_numpy()
        some = rows[here].to_crs(rows[here].utm.iloc[0])
        shown = scale.to_rgba(values[here])
        shown[np.isnan(values[here])] = (0.85, 0.85, 0.85, 1)
        some.plot(ax=at, color=shown, edgecolor="white", linewidth=0.3)
        at.set_title(place or "(no place)", fontsize=9)
    figure.colorbar(scale, ax=axes.tolist(), shrink=0.7)
    return figure


def _triple(chip: Chip) -> list[np.ndarray]:
    label, valid = labels.decode(chip.label)
    flat = np.where(label[..., np.newaxis] > 0, HIT, (255, 255, 255)).astype(np.uint8)
    flat[~valid] = NOT_VALID
    return [chip.image, outlined(chip.image, label, valid), flat]


def sheet(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """One picture of rows of equally large pictures."""
    tall = [
        np.concatenate([np.pad(p, ((GAP, 0), (GAP, 0), (0, 0)), constant_values=255) for p in row], 1) for row in rows
    ]
    return np.pad(np.concatenate(tall, 0), ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


def _tint(image: np.ndarray, where: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    found = image.copy()
    found[where] = 0.45 * image[where] + 0.55 * np.array(colour)  # a picture of a thousand pixels a side is not small
    return found
