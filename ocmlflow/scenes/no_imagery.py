"""Parts of a scene that are no imagery though its file does not declare them, as cells of any or of one colour."""

from dataclasses import dataclass

import numpy as np
from rasterio.windows import Window


@dataclass(frozen=True)
class BlankArea:
    """Cells of an image's own pixel grid whose pixels are no imagery."""

    cell: tuple[int, int]
    """Rows and columns of pixels in a cell."""
    cells: np.ndarray
    """(rows, cols) bool: which cells."""
    low: tuple[int, int, int] = (0, 0, 0)
    high: tuple[int, int, int] = (255, 255, 255)
    """Only pixels whose red, green and blue lie in this range, ends included, are no imagery."""

    @property
    def is_of_any_colour(self) -> bool:
        """Whether all pixels of the cells are no imagery."""
        return (self.low, self.high) == ((0, 0, 0), (255, 255, 255))


def cells_of(area: BlankArea, window: Window, scale: tuple[float, float]) -> np.ndarray | None:
    """(height, width) bool: pixels of a window that lie in the area's cells; None where none does.

    `scale` has the rows and columns of the image's own pixels in a pixel of the window.
    """
    if not _cells_met(area, window, scale).any():
        return None
    rows = _cell_numbers(window.row_off, window.height, scale[0], area.cell[0], area.cells.shape[0])
    cols = _cell_numbers(window.col_off, window.width, scale[1], area.cell[1], area.cells.shape[1])
    return area.cells[np.ix_(rows, cols)]


def is_blank(areas: tuple[BlankArea, ...], window: Window, scale: tuple[float, float]) -> bool:
    """Whether a window lies in cells of any colour as a whole, so that it need not be read."""
    return any(area.is_of_any_colour and _cells_met(area, window, scale).all() for area in areas)


def _cells_met(area: BlankArea, window: Window, scale: tuple[float, float]) -> np.ndarray:
    """The cells of an area, (rows, cols) bool, that a window meets."""
    spans = []
    for axis, (first, count) in enumerate(((window.row_off, window.height), (window.col_off, window.width))):
        last = area.cells.shape[axis] - 1
        start, stop = ((first + at) * scale[axis] // area.cell[axis] for at in (0.5, count - 0.5))
        spans.append(slice(min(int(start), last), min(int(stop), last) + 1))
    return area.cells[tuple(spans)]


def pixels_of(
    areas: tuple[BlankArea, ...], colours: np.ndarray, window: Window, scale: tuple[float, float]
) -> np.ndarray | None:
    """(height, width) bool: pixels of a window that belong to the areas, by its RGB (3, height, width) uint8."""
    blank = None
    for area in areas:
        near = cells_of(area, window, scale)
        if near is None:
            continue
        if not area.is_of_any_colour:
            low, high = (np.array(limit, np.uint8)[:, np.newaxis, np.newaxis] for limit in (area.low, area.high))
            near = near & ((colours >= low) & (colours <= high)).all(axis=0)
        blank = near if blank is None else blank | near
    return blank


def _cell_numbers(first: float, count: float, scale: float, cell: int, cells: int) -> np.ndarray:
    """Number of the cell of each of `count` pixels along an axis."""
    middles = (np.arange(int(first), int(first + count)) + 0.5) * scale
    return (middles // cell).astype(int).clip(0, cells - 1)
