from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocmlflow.prediction.map_writer import Watermark
from ocmlflow.scenes import windows

TILES = windows.tiles(40, 30, size=16, margin=2)


@given(st.permutations(TILES))
def test_the_watermark_is_the_first_row_that_is_not_predicted(order):
    watermark = Watermark(TILES, 40)
    for count, tile in enumerate(order, start=1):
        watermark.advance(tile)
        assert watermark.row == min((left.core.row_off for left in order[count:]), default=40)
    assert watermark.is_complete


def test_a_waiting_thread_goes_on_when_the_rows_are_predicted():
    watermark = Watermark(TILES, 40)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(watermark.wait, 40)
        for tile in TILES:
            watermark.advance(tile)
        waiting.result(timeout=60)


def test_a_waiting_thread_ends_with_the_prediction():
    watermark = Watermark(TILES, 40)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(watermark.wait, 40)
        watermark.close()
        with pytest.raises(RuntimeError, match="was not predicted to its end"):
            waiting.result(timeout=60)
    watermark.wait(0)  # nothing to wait for


def test_a_scene_that_is_predicted_already_is_not_waited_for():
    watermark = Watermark([], 40)
    watermark.wait(40)
    assert watermark.is_complete
