import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window

from ocmlflow.prediction import tile_store
from ocmlflow.scenes import windows


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_any_window_across_the_tiles_is_that_of_the_whole(tmp_path_factory, height, width, data):
    folder = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(0)
    percents, valid = rng.integers(0, 101, (height, width)), rng.random((height, width)) < 0.8
    valid[: height // 2, : width // 2] = False
    tiles = windows.tiles(height, width, size=16, margin=3, multiple=2)
    for tile in tiles:
        assert tile in tile_store.missing(folder, tiles)
        at = tile.core.toslices()
        tile_store.write(folder, tile, percents[at].astype(np.float32) / 100, valid[at])
    assert tile_store.missing(folder, tiles) == []
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = Window(col, row, data.draw(st.integers(1, width - col)), data.draw(st.integers(1, height - row)))
    steps, seen = tile_store.reader(folder, tiles)(window)
    np.testing.assert_array_equal(seen, valid[window.toslices()])
    np.testing.assert_array_equal(steps[seen], (percents[window.toslices()] * tile_store.STEPS_PER_PERCENT)[seen])


def test_a_tile_half_written_is_missing(tmp_path, monkeypatch):
    (tile,) = tiles = windows.tiles(8, 8, size=16, margin=0)

    def full(file, array):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space"):
        tile_store.write(tmp_path, tile, np.zeros((8, 8), np.float32), np.ones((8, 8), bool))
    assert tile_store.missing(tmp_path, tiles) == tiles
