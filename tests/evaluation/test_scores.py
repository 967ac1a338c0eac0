import numpy as np
import pytest
from conftest import bright, items

from ocmlflow.chips import chip_set
from ocmlflow.evaluation import calibration, examples, metrics, predictions, scores
from ocmlflow.evaluation.metrics import Counts
from ocmlflow.evaluation.predictions import Predictions
from ocmlflow.evaluation.scores import PixelScores
from ocmlflow.probability import calibrate, to_percent
from ocmlflow.training import previews

SIZES = {"block_m": 5.0, "min_hole_m2": 1.0}


def half_sure(images: np.ndarray) -> np.ndarray:
    """Roofs at 0.9, ground at 0.2 to 0.7: the best threshold lies between."""
    draw = np.random.default_rng(int(images.sum()))
    ground = draw.uniform(0.2, 0.7, (*images.shape[:3], 1))
    return np.where(bright(images) > 0.5, 0.9, ground).astype(np.float32)


def predicted(made, rows, work, predict=half_sure) -> Predictions:
    return predictions.collect(predictions.of_model(predict), made.folder, rows, work=work, block_m=5.0, progress=items)


@pytest.fixture(scope="module")
def kept(made, tmp_path_factory) -> Predictions:
    return predicted(made, made.index, tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def evaluated(kept) -> PixelScores:
    return scores.score_pixels(kept, temperature=1.0)


def test_counts_are_those_of_the_valid_pixels(evaluated, made):
    coded = np.stack([chip_set.read(made.folder, row).label for row in made.index.itertuples()])
    counted = evaluated.counts(50)
    assert counted.pixels == (coded != 255).sum()
    assert counted.tp + counted.fn == (coded == 1).sum()
    assert counted.fn == 0
    assert counted.fp > 0
    assert evaluated.counts(80) == Counts(tp=(coded == 1).sum(), tn=(coded == 0).sum())


@pytest.mark.parametrize("by", ["place", "scene", "split", "id"])
def test_parts_add_up_to_the_whole(evaluated, by):
    table = evaluated.table(by, 50)
    assert table.pixels.sum() == evaluated.counts(50).pixels
    assert table.chips.sum() == len(evaluated.rows)
    building = (table.building_share * table.pixels).sum()
    assert building == pytest.approx(evaluated.counts(50).tp + evaluated.counts(50).fn)


def test_a_place_is_scored_on_its_own_chips(evaluated, made, tmp_path):
    alone = scores.score_pixels(predicted(made, made.select("validation"), tmp_path), temperature=1.0)
    row = evaluated.table("place", 50).set_index("place").loc["kam"]
    assert row.iou == alone.counts(50).iou
    assert alone.table("place", 50).place.tolist() == ["kam"]


def test_the_best_threshold_is_the_best_of_the_sweep(evaluated):
    sweep = evaluated.sweep().set_index("threshold")
    assert sweep.index.tolist() == list(metrics.THRESHOLDS)
    assert sweep.iou[evaluated.best_threshold] == sweep.iou.max() == 1
    assert 70 <= evaluated.best_threshold <= 90
    assert sweep.recall.is_monotonic_decreasing


def test_chips_are_picked_by_their_iou(evaluated):
    ious = evaluated.chip_ious(50)
    best, worst, median = examples.pick(evaluated, 50, count=3)
    assert len(best) == len(worst) == len(median) == 3
    assert not set(best) & set(worst)
    assert ious[best].tolist() == sorted(ious, reverse=True)[:3]
    assert ious[worst].tolist() == sorted(ious)[:3]
    assert ious[median].mean() == pytest.approx(np.median(ious), abs=0.1)


@pytest.mark.parametrize(
    ("ious", "expected"), [([np.nan], ([], [], [])), ([0.5], ([0], [0], [0])), ([0.5, 0.9], ([1], [0], [0]))]
)
def test_few_chips_are_picked_too(made, monkeypatch, ious, expected):
    few = PixelScores(made.index.iloc[: len(ious)], np.zeros((2, 65536), int), 1.0, np.zeros((len(ious), 2, 101), int))
    monkeypatch.setattr(PixelScores, "chip_ious", lambda *_: np.array(ious))
    assert examples.pick(few, 50, count=6) == expected


def test_a_picture_has_a_row_for_each_chip(made):
    picture = previews.prediction_sheet(half_sure, made.folder, made.index.iloc[:3], threshold=50)
    assert picture.dtype == np.uint8
    assert picture.shape == (3 * 38 + 6, 3 * 38 + 6, 3)


def test_calibration_moves_the_threshold_and_no_score(kept, evaluated):
    found = scores.score_pixels(kept, temperature=None)
    assert found.temperature != 1
    assert found.counts(found.best_threshold) == evaluated.counts(evaluated.best_threshold)
    # The mask that predict makes: percent of the calibrated probability, at the threshold.
    chip = chip_set.read(kept.folder, next(kept.rows.itertuples()))
    meant = calibrate(half_sure(chip.image[np.newaxis])[0, ..., 0], found.temperature)
    here = calibration.level_percents(found.temperature)[kept.levels[0]] >= found.best_threshold
    np.testing.assert_array_equal(to_percent(meant) >= found.best_threshold, here)


def test_buildings_are_whole_across_chips(kept, made, tmp_path):
    """The towns' roofs, 10 x 14 pixels, are cut by the edges of chips of 32; all are found as drawn."""
    found = scores.score_buildings(kept, 1.0, 80, min_area_m2=0, **SIZES)
    everything = found.of(kept.rows)["all"]
    assert everything.fp == everything.fn == everything.splits == everything.merges == 0
    assert everything.tp == 2 * 3 * 6 - 2  # one roof of each town lies where nothing is valid
    assert found.boundary_iou == 1
    assert set(found.by_scene) == {"aaa", "kkk"}
    assert found.sweep.set_index("threshold").recall[80] == 1
    nothing = scores.score_buildings(
        predicted(made, made.index, tmp_path, lambda i: bright(i) * 0), 1.0, 80, min_area_m2=0, **SIZES
    )
    assert nothing.of(kept.rows)["all"].fn == everything.tp
    assert nothing.boundary_iou == 0


def test_areas_are_those_of_the_labels(kept, evaluated):
    table = evaluated.table("scene", 80).set_index("scene")
    assert table.labelled_m2["kkk"] == pytest.approx((kept.coded[kept.rows.scene == "kkk"] == 1).sum() * 0.01)
    assert (table.area_error == 0).all()
    assert (evaluated.table("scene", 10).area_error > 0).all()


def test_false_buildings_are_counted_on_empty_ground(kept, made, tmp_path):
    one_dot = np.zeros((1, 32, 32, 1), np.float32)
    one_dot[0, 3:18, 10:24] = 1  # 2.1 m2
    one_dot[0, 25:30, 2:20] = 1  # 0.9 m2, a speck
    rows = made.index.iloc[:4]
    blank = predicted(made, rows, tmp_path, lambda _: one_dot)
    empty = Predictions(blank.folder, blank.rows, blank.levels, np.zeros_like(blank.coded))
    found = scores.score_buildings(empty, 1.0, 50, min_area_m2=2.0, **SIZES)
    assert found.false_per_km2 == pytest.approx(1 / (32 * 32 * 0.01 / 1e6))
