import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocmlflow.scenes import windows

lengths, sizes = st.integers(1, 60), st.integers(1, 24)


@given(lengths, sizes, st.data())
def test_windows_cover_every_pixel(length, size, data):
    stride = data.draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
    first = windows.start_offsets(length, size=size, stride=stride)
    assert {p for f in first for p in range(f, f + size)}.issuperset(range(length))
    assert len(set(first)) == len(first)
    assert all(0 <= f < length for f in first)
    side_by_side = [p for f in first if f % size == 0 for p in range(f, f + size)]
    assert sorted(p for p in side_by_side if p < length) == list(range(length))


@given(lengths, lengths, sizes)
def test_blocks_touch_each_pixel_once(height, width, size):
    times = np.zeros((height, width), int)
    for window in windows.blocks(height, width, size=size):
        assert max(window.height, window.width) <= size
        times[window.toslices()] += 1
    assert (times == 1).all()


@given(lengths, lengths, sizes, st.data())
def test_cores_touch_each_pixel_once_with_context_around(height, width, size, data):
    multiple = data.draw(st.integers(1, size))
    margin = data.draw(st.integers(0, (size - multiple) // 2))
    times = np.zeros((height, width), int)
    for tile in windows.tiles(height, width, size=size, margin=margin, multiple=multiple):
        times[tile.core.toslices()] += 1
        for axis, length in enumerate((height, width)):
            (first, last), (kept, end) = tile.window.toranges()[axis], tile.core.toranges()[axis]
            assert 0 <= first <= kept < end <= last <= length
            assert first % multiple == 0
            assert last - first <= min(size, length)
            assert kept - first >= margin or kept == first == 0
            assert last - end >= margin or end == last == length
    assert (times == 1).all()


@given(lengths, sizes, st.data())
def test_tile_windows_are_of_one_size_few_and_small(length, size, data):
    multiple = data.draw(st.integers(1, size))
    margin = data.draw(st.integers(0, (size - multiple) // 2))
    found = [tile.window.width for tile in windows.tiles(1, length, size=size, margin=margin, multiple=multiple)]
    assert len(set(found[:-1])) <= 1
    assert found[0] - multiple < found[-1] <= found[0]
    stride = (size - 2 * margin) // multiple * multiple
    assert len(found) == (1 if length <= size else -(-(length - 2 * margin) // stride))
    # None could be smaller by a multiple.
    assert (found[0] - multiple - 2 * margin) * len(found) + 2 * margin < length


@pytest.mark.parametrize("stride", [0, -1, 3, 16])
def test_a_stride_that_does_not_divide_the_size_is_refused(stride):
    with pytest.raises(ValueError, match=rf"must divide 8.*got {stride}"):
        windows.start_offsets(100, size=8, stride=stride)


@pytest.mark.parametrize("margin", [-1, 4, 8])
def test_a_margin_that_leaves_no_core_is_refused(margin):
    with pytest.raises(ValueError, match=rf"0\.\.3.*got {margin}"):
        windows.tiles(100, 100, size=8, margin=margin)
