import numpy as np
import pytest
from conftest import bright, items

from ocmlflow import chips, evaluation, metrics
from ocmlflow.metrics import Counts


def half_sure(images: np.ndarray) -> np.ndarray:
    """Roofs at 0.9, ground at 0.2 to 0.7: the best threshold lies between."""
    draw = np.random.default_rng(int(images.sum()))
    ground = draw.uniform(0.2, 0.7, (*images.shape[:3], 1))
    return np.where(bright(images) > 0.5, 0.9, ground).astype(np.float32)


@pytest.fixture(scope="module")
def evaluated(made) -> evaluation.Evaluation:
    return evaluation.evaluate(half_sure, made.folder, made.index, progress=items)


def test_counts_are_those_of_the_valid_pixels(evaluated, made):
    coded = np.stack([chips.read(made.folder, row)[..., 3] for row in made.index.itertuples()])
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


def test_a_place_is_scored_on_its_own_chips(evaluated, made):
    alone = evaluation.evaluate(half_sure, made.folder, made.select("validation"), progress=items)
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
    best, worst = evaluation.pick(evaluated, 50, count=3)
    assert len(best) == len(worst) == 3
    assert not set(best) & set(worst)
    assert ious[best].tolist() == sorted(ious, reverse=True)[:3]
    assert ious[worst].tolist() == sorted(ious)[:3]


@pytest.mark.parametrize(("ious", "expected"), [([np.nan], ([], [])), ([0.5], ([0], [0])), ([0.5, 0.9], ([1], [0]))])
def test_few_chips_are_picked_too(made, monkeypatch, ious, expected):
    few = evaluation.Evaluation(made.index.iloc[: len(ious)], np.zeros((len(ious), 2, 101), int))
    monkeypatch.setattr(evaluation.Evaluation, "chip_ious", lambda *_: np.array(ious))
    assert evaluation.pick(few, 50, count=6) == expected


def test_a_picture_has_a_row_for_each_chip(made):
    picture = evaluation.picture(half_sure, made.folder, made.index.iloc[:3], threshold=50)
    assert picture.dtype == np.uint8
    assert picture.shape == (3 * 38 + 6, 3 * 38 + 6, 3)
