from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.windows import Window
from scipy import ndimage

from ocmlflow.prediction import block_join
from ocmlflow.prediction.block_join import BlockJoiner

masks = arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14)))


def cut(window: Window, draw: Callable) -> list[Window]:
    """A window cut in two, and its halves again, at places that are drawn."""
    row, col, height, width = window.row_off, window.col_off, window.height, window.width
    at = draw(st.integers(0, max(height, width) - 1))
    if at == 0:
        return [window]
    if height >= width:
        halves = Window(col, row, width, at), Window(col, row + at, width, height - at)
    else:
        halves = Window(col, row, at, height), Window(col + at, row, width - at, height)
    return [part for half in halves for part in cut(half, draw)]


def objects_of(mask: np.ndarray) -> set[frozenset[tuple[int, int]]]:
    """The pixels of each connected component, labelled in one piece."""
    labels, count = ndimage.label(mask)
    return {pixels_of(labels == number) for number in range(1, count + 1)}


def pixels_of(mask: np.ndarray) -> frozenset[tuple[int, int]]:
    return frozenset(zip(*map(np.ndarray.tolist, np.nonzero(mask)), strict=True))


def add(joiner: BlockJoiner, mask: np.ndarray, window: Window, numbers: np.ndarray) -> None:
    """Add one window of a mask, and note the numbers of its objects."""
    labels = block_join.label_objects(mask[window.toslices()])
    offset = joiner.add(window.row_off, window.col_off, labels)
    numbers[window.toslices()] = np.where(labels > 0, labels + offset, 0)


@given(masks, st.data(), st.randoms())
def test_objects_of_random_blocks_in_any_order_are_those_of_the_whole(mask, data, shuffler):
    blocks = cut(Window(0, 0, mask.shape[1], mask.shape[0]), data.draw)
    shuffler.shuffle(blocks)
    joiner, numbers = BlockJoiner(), np.zeros(mask.shape, int)
    for window in blocks:
        add(joiner, mask, window, numbers)
    assert joiner.count == numbers.max()
    objects = joiner.objects(range(1, joiner.count + 1))
    assert {pixels_of(np.isin(numbers, parts)) for parts in objects} == objects_of(mask)
    assert len(objects) == len(objects_of(mask))
    assert joiner.joined_objects() == [parts for parts in objects if len(parts) > 1]


@given(masks, st.data())
def test_objects_are_finished_once_and_whole_as_rows_come(mask, data):
    blocks = cut(Window(0, 0, mask.shape[1], mask.shape[0]), data.draw)
    joiner, numbers = BlockJoiner(), np.zeros(mask.shape, int)
    held, finished = set(), []
    for window in sorted(blocks, key=lambda window: (window.row_off, window.col_off)):
        finished += joiner.finish_rows(window.row_off, held)
        held -= {number for parts in finished for number in parts}
        # What is held reaches the last row that is finished, or goes below it.
        reach = numbers[max(window.row_off - 1, 0) :]
        assert all(np.isin(reach, parts).any() for parts in joiner.objects(held))
        before = joiner.count
        add(joiner, mask, window, numbers)
        held |= set(range(before + 1, joiner.count + 1))
    finished += joiner.finish_rows(mask.shape[0] + 1, held)
    assert joiner.joined_objects() == []
    assert sorted(number for parts in finished for number in parts) == list(range(1, joiner.count + 1))
    assert {pixels_of(np.isin(numbers, parts)) for parts in finished} == objects_of(mask)


@given(masks)
def test_labels_on_edges_are_those_along_the_border(mask):
    labels = block_join.label_objects(mask)
    border = np.ones(mask.shape, bool)
    border[1:-1, 1:-1] = False
    assert block_join.edge_labels(labels) == set(labels[border & mask].tolist())


def test_an_object_around_a_block_is_joined_from_both_sides():
    """A ring in nine blocks, whose middle holds an object of its own."""
    mask = np.ones((9, 9), bool)
    mask[2:7, 2:7] = False
    mask[4, 4] = True
    joiner, numbers = BlockJoiner(), np.zeros(mask.shape, int)
    for row in range(0, 9, 3):
        for col in range(0, 9, 3):
            add(joiner, mask, Window(col, row, 3, 3), numbers)
    (ring,) = joiner.joined_objects()
    assert ring == sorted(set(range(1, 10)) - {numbers[4, 4]})


@pytest.mark.parametrize(("row", "col"), [(0, 5), (5, 0), (4, 4)])
def test_blocks_that_share_no_edge_are_apart(row, col):
    full = np.ones((4, 4), np.int32)
    joiner = BlockJoiner()
    assert (joiner.add(0, 0, full), joiner.add(row, col, full)) == (0, 1)
    assert joiner.objects([2, 1]) == [[1], [2]]


def test_labels_are_numbered_from_one_and_corners_do_not_connect():
    labels = block_join.label_objects(np.eye(2, dtype=bool))
    assert labels.dtype == np.int32
    assert labels.tolist() == [[1, 0], [0, 2]]
    assert block_join.label_objects(np.zeros((2, 3), bool)).max() == 0
