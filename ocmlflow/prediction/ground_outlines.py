"""Turns traced footprints into the outlines that are written: squared, simple or exact."""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import shapely

from ocmlflow.prediction import simplification, squaring
from ocmlflow.prediction.outlines import WrittenOutlines
from ocmlflow.prediction.polygonize import PredictedFootprint
from ocmlflow.scenes import geobox
from ocmlflow.scenes.geobox import GeoBox

OUTLINES = ("squared", "simple", "exact")
"""Right angles where the building has them, which is the default; staircases simplified; along the edges of pixels."""
TOLERANCE_M = 0.5
"""Outlines are simplified by this, in metres, or by a pixel if that is more."""


def batches(
    footprints: Iterable[PredictedFootprint], *, size: int
) -> Iterator[tuple[list[PredictedFootprint], np.ndarray]]:
    """Batches of about `size` footprints, at least one batch, and the outlines of others that touch those.

    The footprints come in the order of their first pixels, as `polygonize.trace` gives them. One waits for a later
    batch where a footprint to come may touch it.
    """
    rest = iter(footprints)
    waiting: list[PredictedFootprint] = []
    before = np.empty(0, object)
    is_last = False
    while not is_last:
        waiting += (new := list(islice(rest, size)))
        is_last = len(new) < size
        outlines = np.array([footprint.outline for footprint in waiting], object)
        bottom = shapely.bounds(outlines)[:, 3]
        is_ready = np.full(len(waiting), True) if is_last else bottom < waiting[-1].first_pixel[0]
        ready, later = outlines[is_ready], outlines[~is_ready]
        yield (
            [footprint for footprint, is_now in zip(waiting, is_ready, strict=True) if is_now],
            np.concatenate([_touching(before, ready), _touching(later, ready)]),
        )
        before = _touching(np.concatenate([before, ready]), later)
        waiting = [footprint for footprint, is_now in zip(waiting, is_ready, strict=True) if not is_now]


def to_ground(
    batch: list[PredictedFootprint], around: np.ndarray, written: WrittenOutlines, grid: GeoBox, *, outline: str
) -> np.ndarray:
    """Outlines of footprints in the CRS of their grid, (count,), in the style that OUTLINES names.

    `around` are the outlines of others that touch them, in pixels. Walls that two footprints share stay one line. An
    outline that would overlap another, or a written one, if it were squared, is simple.
    """
    pixels = np.array([footprint.outline for footprint in batch], object)
    if outline == "exact" or not batch:
        return _on_ground(pixels, grid)
    gsd = geobox.gsd(grid)
    simple = simplification.simplify(pixels, around, tolerance=max(1.0, TOLERANCE_M / gsd))
    plain = _on_ground(simple.polygons, grid)
    if outline == "simple":
        return plain
    squares = _on_ground(squaring.square(simple, gsd=gsd), grid)
    return squaring.without_overlap(squares, plain, written.near(squares))


def _on_ground(outlines: np.ndarray, grid: GeoBox) -> np.ndarray:
    # Not as a product of matrices, whose last digits depend on the number of threads.
    return np.asarray(shapely.transform(outlines, lambda corners: np.stack(grid.transform @ tuple(corners.T), axis=1)))


def _touching(outlines: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Those of the outlines that touch one of the others."""
    touching, _ = shapely.STRtree(others).query(outlines, predicate="intersects")
    return outlines[np.unique(touching)]
