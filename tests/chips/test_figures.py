import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from affine import Affine
from conftest import CRS, TRANSFORM
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rasterio.windows import Window

from ocmlflow.chips import figures
from ocmlflow.scenes import geobox
from ocmlflow.scenes.geobox import GeoBox


def test_a_preview_shows_chips_from_all_over(made):
    found = figures.preview(made.folder, made.index, count=4)
    assert found.shape == (4 * 38 + 6, 3 * 38 + 6, 3)
    assert figures.preview(made.folder, made.index.iloc[:1], count=4).shape == (38 + 6, 3 * 38 + 6, 3)


def town_of(scene: str, *, crs: str = CRS, east: float = 0, count: int = 4) -> gpd.GeoDataFrame:
    """Count x count chips of 51.2 m of a folder's scene."""
    own = GeoBox(crs, Affine.translation(east, 0) @ TRANSFORM, 512 * count, 512 * count)
    windows = [Window(col * 512, row * 512, 512, 512) for row in range(count) for col in range(count)]
    x, y = zip(*(own.transform @ (w.col_off + 256, w.row_off + 256) for w in windows), strict=True)
    frame = {"scene": scene, "place": "folder", "utm": crs, "x": x, "y": y}
    frame["split"] = ["train", "validation"] * (len(windows) // 2)
    return gpd.GeoDataFrame(frame, geometry=[geobox.outline(own, w) for w in windows], crs="EPSG:4326")


@pytest.mark.parametrize(
    ("scenes", "panels"),
    [
        ([town_of("a"), town_of("b", east=400)], 1),
        ([town_of("a"), town_of("b", crs="EPSG:32636"), town_of("c", crs="EPSG:32645"), town_of("d", east=90_000)], 4),
        ([town_of(str(number), east=1900 * number) for number in range(30)], 1),  # a row of 55 km
        ([town_of("a", count=60)], 1),
    ],
)
def test_every_chip_is_seen_however_far_its_scenes_lie_apart(scenes, panels):
    index = pd.concat(scenes, ignore_index=True)
    scores = np.where(index.split == "train", 0.0, 1.0)
    maps = [figures.split_map(index), figures.block_map(index, scores, low=0, high=1, colours="RdYlGn")]
    for figure in maps:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        shown = np.asarray(canvas.buffer_rgba())[..., :3]
        axes = [at for at in figure.axes if at.get_title()]
        assert len(axes) == panels
        for utm, x, y in zip(index.utm, index.x, index.y, strict=True):
            spots = [at.transData.transform((x, y)).astype(int) for at in axes if _in(at, x, y)]
            near = [shown[len(shown) - up - 2 : len(shown) - up + 1, right - 1 : right + 2] for right, up in spots]
            assert any((pixels < 200).any() for pixels in near), (utm, x, y)


def _in(at, x: float, y: float) -> bool:
    (left, right), (bottom, top) = at.get_xlim(), at.get_ylim()
    return left <= x <= right and bottom <= y <= top


def test_a_map_says_what_it_leaves_out():
    index = pd.concat([town_of(str(n), east=9000 * n, count=2) for n in range(26)], ignore_index=True)
    figure = figures.split_map(index)
    assert figure.get_suptitle() == "without 8 chips of 2 smaller groups of scenes"
    assert {at.get_title().split("\n")[0] for at in figure.axes} <= {f"folder: {n}" for n in range(26)}
