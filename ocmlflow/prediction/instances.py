"""Finds the buildings of a scene on a grid of blocks with a margin, so that they do not depend on anything else.

The blocks are fixed to the scene: windows of the network, workers and interruptions change nothing. A building that
reaches over the edge of a block goes on in the next one where the first block, which sees beyond its edge, says so.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from rasterio.windows import Window

from ocmlflow.prediction import polygonize, separation
from ocmlflow.prediction.polygonize import LabelBlock
from ocmlflow.scenes import windows

BLOCK = 2048
"""Side of a block, in pixels."""
MARGIN = 128
"""Pixels that a block sees beyond its edge: enough to find by learned distance what the whole scene would."""


@dataclass(frozen=True)
class Evidence:
    """What a network says of a window."""

    percents: np.ndarray
    """(height, width) uint8: probability of building in percent."""
    valid: np.ndarray
    """(height, width) bool: where there is imagery."""
    distance: np.ndarray | None
    """(height, width) uint8: distance to the building's own edge in the steps of `separation`; None if unknown."""


ReadEvidence = Callable[[Window], Evidence]
"""Reads a window of the scene."""


def blocks(
    read: ReadEvidence, height: int, width: int, *, gsd: float, threshold: int, separate: bool
) -> Iterator[LabelBlock]:
    """The buildings of a scene of `height` by `width` pixels of `gsd` metres, block by block, row by row.

    A pixel of at least `threshold` percent is building. Without `separate`, buildings that touch are one, and keep
    their staircases.
    """
    for window in windows.blocks(height, width, size=BLOCK):
        if not separate:
            evidence = read(window)
            yield polygonize.mask_block(window, evidence.percents, _mask(evidence, threshold))
            continue
        seen = _widened(window, height, width)
        yield _separated(read(seen), seen, window, gsd=gsd, threshold=threshold)


def _mask(evidence: Evidence, threshold: int) -> np.ndarray:
    return (evidence.percents >= threshold) & evidence.valid


def _widened(window: Window, height: int, width: int) -> Window:
    """The window with the margin around it, as far as the scene goes."""
    row, col = max(0, window.row_off - MARGIN), max(0, window.col_off - MARGIN)
    bottom = min(height, window.row_off + window.height + MARGIN)
    right = min(width, window.col_off + window.width + MARGIN)
    return Window(col, row, right - col, bottom - row)


def _separated(evidence: Evidence, seen: Window, window: Window, *, gsd: float, threshold: int) -> LabelBlock:
    """The block `window` of the buildings that are found in the window `seen` around it."""
    top, left = window.row_off - seen.row_off, window.col_off - seen.col_off
    bottom, right = top + window.height, left + window.width
    core = np.s_[top:bottom, left:right]
    labels = separation.separate(_mask(evidence, threshold), evidence.distance, gsd=gsd)
    # What the network says where there is no imagery must not count.
    labels = np.where(evidence.valid, separation.smooth(labels, gsd=gsd), 0)
    return LabelBlock(
        window,
        evidence.percents[core],
        separation.connected(labels[core]),
        joins_below=_goes_on(labels[bottom - 1, left:right], labels[bottom : bottom + 1, left:right]),
        joins_right=_goes_on(labels[top:bottom, right - 1], labels[top:bottom, right : right + 1].T),
    )


def _goes_on(edge: np.ndarray, beyond: np.ndarray) -> np.ndarray | np.bool_:
    """Where the building of an edge pixel is also that of the pixel beyond; `beyond` has no row at a scene's edge."""
    return (edge == beyond[0]) & (edge > 0) if len(beyond) else np.False_
