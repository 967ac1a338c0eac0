"""Joins objects across the edges of blocks, for rasters that are too large to label in one piece.

In a mask, an object is a connected component: pixels that share an edge belong to one, pixels that share only a corner
do not. Where objects were told apart otherwise, whoever adds a block says at which of its edge pixels they go on.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage


def label_objects(mask: np.ndarray) -> np.ndarray:
    """Label the objects of a mask (height, width) bool: (height, width) int32, numbered from 1, 0 is background."""
    return np.asarray(ndimage.label(mask)[0])


def edge_labels(labels: np.ndarray) -> set[int]:
    """The labels of a block's objects that touch an edge of the block, and may go on in a neighbour."""
    edges = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return set(_distinct(edges))


@dataclass(frozen=True)
class _Edge:
    """One side of a block, whose neighbour has not come yet."""

    start: int
    """First column of a horizontal edge, first row of a vertical one."""
    numbers: np.ndarray
    """(length,) int64: the object at each pixel; 0 for none, and where a neighbour has come."""

    @property
    def stop(self) -> int:
        return self.start + len(self.numbers)

    def from_row(self, row: int) -> "_Edge":
        """What a vertical edge has at this row and below."""
        start = max(self.start, row)
        return _Edge(start, self.numbers[start - self.start :])


class BlockJoiner:
    """Numbers the objects of a raster's blocks, and joins those that go on across block edges.

    Blocks may come in any order and be of any size; they must not overlap. An object has one number in each block that
    it lies in. Memory holds the edges whose neighbours have not come, and the numbers of objects of several blocks.
    """

    def __init__(self) -> None:
        self.count = 0
        # By the line between two rows or columns of pixels, on which the edges of both neighbours lie.
        self._open: dict[tuple[str, int], list[_Edge]] = {}
        # Each number of an object of several blocks, to the list of all its numbers, which they share.
        self._joined: dict[int, list[int]] = {}

    def add(
        self,
        row: int,
        col: int,
        labels: np.ndarray,
        *,
        joins_below: np.ndarray | np.bool_ = np.True_,
        joins_right: np.ndarray | np.bool_ = np.True_,
    ) -> int:
        """Add the block that starts at a pixel of the raster; returns its offset: label `i` gets number offset + `i`.

        `labels` (height, width) int numbers the objects of the block from 1, 0 is background. An object goes on in the
        neighbour at the pixels where both have one, but over the lower edge only where `joins_below`, (width,) bool,
        and over the right edge only where `joins_right`, (height,) bool.
        """
        offset = self.count
        self.count += int(labels.max(initial=0))
        height, width = labels.shape
        self._add_edge(("row", row), col, labels[0], offset)
        self._add_edge(("row", row + height), col, np.where(joins_below, labels[-1], 0), offset)
        self._add_edge(("col", col), row, labels[:, 0], offset)
        self._add_edge(("col", col + width), row, np.where(joins_right, labels[:, -1], 0), offset)
        return offset

    def objects(self, numbers: Iterable[int]) -> list[list[int]]:
        """The objects that have these numbers, each once: all its numbers, sorted."""
        by_first = {object_numbers[0]: object_numbers for object_numbers in map(self._numbers_of, numbers)}
        return sorted(sorted(object_numbers) for object_numbers in by_first.values())

    def joined_objects(self) -> list[list[int]]:
        """The objects of several blocks: the sorted numbers of each."""
        return self.objects(self._joined)

    def finish_rows(self, row: int, numbers: Iterable[int]) -> list[list[int]]:
        """Finish the rows above this one: all blocks to come start at it or below.

        Returns those objects of these numbers that cannot grow any more, as `objects` does, and forgets them.
        """
        self._close_above(row)
        on_edges = {number for edges in self._open.values() for edge in edges for number in _distinct(edge.numbers)}
        growing = {joined for number in on_edges for joined in self._numbers_of(number)}
        finished = self.objects(number for number in numbers if number not in growing)
        for object_numbers in finished:
            for number in object_numbers:
                self._joined.pop(number, None)
        return finished

    def _numbers_of(self, number: int) -> list[int]:
        return self._joined.get(number, [number])

    def _close_above(self, row: int) -> None:
        """Drop the edges, or the parts of vertical ones, that no block from this row on can touch."""
        lines = list(self._open.items())
        self._open = {}
        for (direction, position), edges in lines:
            if direction == "col":
                edges = [edge.from_row(row) for edge in edges if edge.stop > row]
            elif position < row:
                edges = []
            if edges:
                self._open[direction, position] = edges

    def _add_edge(self, line: tuple[str, int], start: int, labels: np.ndarray, offset: int) -> None:
        new = _Edge(start, np.where(labels > 0, labels + np.int64(offset), 0))
        edges = self._open.pop(line, [])
        for edge in edges:
            self._join_edges(edge, new)
        if still_open := [edge for edge in (*edges, new) if edge.numbers.any()]:
            self._open[line] = still_open

    def _join_edges(self, one: _Edge, other: _Edge) -> None:
        """Join the objects that face each other where two edges of one line overlap: their blocks are neighbours."""
        start = max(one.start, other.start)
        stop = min(one.stop, other.stop)
        if start >= stop:
            return
        ours = one.numbers[start - one.start : stop - one.start]
        theirs = other.numbers[start - other.start : stop - other.start]
        facing = (ours > 0) & (theirs > 0)
        for pair in set(zip(ours[facing].tolist(), theirs[facing].tolist(), strict=True)):
            self._join(*pair)
        # A pixel has one neighbour across the line: nothing else can come here.
        ours[:] = 0
        theirs[:] = 0

    def _join(self, number: int, other: int) -> None:
        smaller, larger = sorted((self._numbers_of(number), self._numbers_of(other)), key=len)
        if smaller is larger:
            return
        larger.extend(smaller)
        for moved in (larger[0], *smaller):  # the larger may have been alone as well
            self._joined[moved] = larger


def _distinct(numbers: np.ndarray) -> list[int]:
    """The numbers of an edge but 0, each once."""
    return [number for number in np.unique(numbers).tolist() if number]
