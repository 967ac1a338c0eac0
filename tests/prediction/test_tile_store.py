import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window

from ocmlflow.prediction import tile_store
from ocmlflow.prediction.inference import TilePrediction
from ocmlflow.prediction.separation import DISTANCE_STEPS
from ocmlflow.scenes import windows


@given(st.integers(1, 60), st.integers(1, 60), st.booleans(), st.data())
def test_any_window_across_the_tiles_is_that_of_the_whole(tmp_path_factory, height, width, with_distance, data):
    folder = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(0)
    percents, valid = rng.integers(0, 101, (height, width)), rng.random((height, width)) < 0.8
    valid[: height // 2, : width // 2] = False
    distance = rng.integers(0, DISTANCE_STEPS + 1, (height, width))
    tiles = windows.tiles(height, width, size=16, margin=3, multiple=2)
    for tile in tiles:
        assert tile in tile_store.missing(folder, tiles)
        at = tile.core.toslices()
        known = distance[at].astype(np.float32) / DISTANCE_STEPS if with_distance else None
        tile_store.write(folder, TilePrediction(tile, percents[at].astype(np.float32) / 100, known, valid[at]))
    assert tile_store.missing(folder, tiles) == []
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = Window(col, row, data.draw(st.integers(1, width - col)), data.draw(st.integers(1, height - row)))
    steps, seen, found = tile_store.reader(folder, tiles)(window)
    np.testing.assert_array_equal(seen, valid[window.toslices()])
    np.testing.assert_array_equal(steps[seen], (percents[window.toslices()] * tile_store.STEPS_PER_PERCENT)[seen])
    assert found is not None or not with_distance or not seen.any()
    if found is not None:
        np.testing.assert_array_equal(found[seen], distance[window.toslices()][seen])


def test_a_tile_half_written_is_missing(tmp_path, monkeypatch):
    (tile,) = tiles = windows.tiles(8, 8, size=16, margin=0)

    def full(file, array):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space"):
        tile_store.write(tmp_path, TilePrediction(tile, np.zeros((8, 8), np.float32), None, np.ones((8, 8), bool)))
    assert tile_store.missing(tmp_path, tiles) == tiles
