import numpy as np
import pytest
from conftest import DATA, needs_data
from rasterio.windows import Window
from shapely.affinity import translate

from ocmlflow.chips import label_shift, labels, scene_survey
from ocmlflow.chips.zarr_store import Chip
from ocmlflow.scenes import catalog, raster, resample

GSD = 0.1


def roofs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A chip of rough ground with thirty roofs, and its label."""
    draw = np.random.default_rng(seed)
    image, label = draw.integers(60, 120, (256, 256, 3)).astype(np.uint8), np.zeros((256, 256), np.uint8)
    for row, col in draw.integers(20, 200, (30, 2)):
        image[row : row + 22, col : col + 30] = draw.integers(0, 256, 3)
        label[row : row + 22, col : col + 30] = 1
    return image, label


@pytest.mark.parametrize(("down", "right"), [(0, 0), (7, -12), (-20, 3), (40, 41)])
def test_a_known_shift_is_found(down, right):
    chips = [Chip(image, np.roll(label, (down, right), (0, 1))) for image, label in map(roofs, range(4))]
    east, north = label_shift.estimate(chips, gsd=GSD)
    assert east == pytest.approx(-right * GSD, abs=0.1)
    assert north == pytest.approx(down * GSD, abs=0.1)


def test_what_is_not_valid_shows_no_edge():
    """A black border in the same place of every chip must not draw the labels to it."""
    chips = []
    for image, label in map(roofs, range(4)):
        image[:, 128:] = 0
        label[:, 128:] = labels.INVALID
        chips.append(Chip(image, label))
    assert np.hypot(*label_shift.estimate(chips, gsd=GSD)) < 0.1


def test_without_buildings_there_is_no_shift():
    assert label_shift.estimate([Chip(np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8))], gsd=GSD) is None


@needs_data
@pytest.mark.parametrize("name", ["kam01", "ban01"])
def test_real_labels_lie_on_their_roofs_and_a_shift_of_them_is_measured(name):
    (scene,) = catalog.select(catalog.read_scenes(str(DATA / "train_tier_1/catalog.json")), scenes=name, places=None)
    found = scene_survey.survey(scene, gsd=0.2, collar_m2=0, bbox=None)
    window = Window(300, 200, 700, 560)
    transform = found.grid.transform @ found.grid.transform.translation(window.col_off, window.row_off)
    with raster.open_scene(scene.image) as (dataset, own), resample.window_reader(dataset, own, found.grid) as read:
        pixels = read(window)
    for east, north in ((0, 0), (1.6, -1.2)):
        moved = [translate(polygon, east, north) for polygon in found.footprints.polygons]
        coded = labels.encode(labels.rasterize(moved, transform, height=560, width=700), pixels.valid)
        measured = label_shift.estimate([Chip(pixels.image, coded)], gsd=0.2)
        assert measured == pytest.approx((-east, -north), abs=0.3)
