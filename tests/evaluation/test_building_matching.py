import time

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.affinity import translate

from ocmlflow.evaluation import building_matching
from ocmlflow.evaluation.building_matching import MatchedBuildings

GROUND = shapely.box(0, 0, 1000, 1000)


def boxes(*corners: tuple[float, float, float, float]) -> np.ndarray:
    """Boxes of left, bottom, right and top."""
    return np.array([*(shapely.box(*box) for box in corners), None], object)[:-1]


def matched(predicted: np.ndarray, drawn: np.ndarray, ground=GROUND, **options) -> MatchedBuildings:
    given = {"scene": "s", "place": "acc", "block_m": 100.0, "min_area_m2": 2.0, **options}
    return building_matching.match(predicted, drawn, ground, **given)


def test_a_wall_that_two_share_makes_two_buildings():
    drawn = boxes((0, 0, 10, 10), (10, 0, 20, 10))
    apart = building_matching.scores(matched(drawn, drawn))
    assert (apart["f1"], apart["iou"], apart["boundary_m"], apart["merges"]) == (1, 1, 0, 0)
    melted = building_matching.scores(matched(boxes((0, 0, 20, 10)), drawn))
    assert (melted["tp"], melted["merges"], melted["predicted"], melted["drawn"]) == (1, 1, 1, 2)  # an IoU of a half
    assert matched(boxes((0, 0, 20, 10)), boxes((0, 0, 9, 10), (11, 0, 20, 10))).counts.tp == 0


def test_a_building_that_is_cut_in_two_is_a_split():
    both = boxes((0, 0, 4, 10), (5, 0, 10, 10))
    found = building_matching.scores(matched(both, boxes((0, 0, 10, 10))))
    assert (found["splits"], found["tp"], found["fp"], found["fn"]) == (1, 1, 1, 0)


def test_a_building_counts_whole_where_its_inner_point_is_on_the_ground():
    mostly_inside = (-4, 0, 6, 10)
    mostly_outside = (-6, 20, 4, 30)
    drawn = boxes(mostly_inside, mostly_outside)
    found = matched(boxes(mostly_inside), drawn)
    assert found.counts.tp == 1
    assert found.counts.fn == 0
    assert matched(boxes(mostly_outside), drawn).counts.fp == 0
    assert found.drawn.iou.tolist() == [1]


def test_clipping_leaves_what_lies_inside_of_the_buildings_across_the_edge():
    ground = shapely.union(shapely.box(0, 0, 10, 10), shapely.box(20, 0, 30, 10))
    left = building_matching.clip(boxes((1, 1, 3, 3), (8, 0, 22, 4), (40, 0, 44, 4), (10, 5, 20, 6)), ground)
    assert sorted(shapely.area(left)) == [4, 8, 8]


def test_specks_count_on_no_side():
    specks = boxes((0, 0, 1, 1), (5, 5, 9, 9))
    assert matched(specks, specks).counts.tp == 1
    assert matched(specks[:1], specks[:1]).counts.fp == 0


def test_a_match_has_size_and_block_of_its_drawn_building():
    found = matched(boxes((97, 0, 101.2, 6), (300, 0, 306, 6)), boxes((97, 0, 101, 6), (500, 0, 530, 30)))
    sizes = building_matching.size_counts(found)
    assert sizes["below 25 m²"].tp == 1
    assert sizes["25 to 100 m²"].fp == 1
    assert sizes["from 500 m²"].fn == 1
    counts = dict(zip(found.blocks, found.block_counts(found.blocks).tolist(), strict=True))
    assert counts == {"s 0 0": [1, 0, 0], "s 3 0": [0, 1, 0], "s 5 0": [0, 0, 1]}


def test_density_is_the_share_of_the_block_that_is_drawn():
    found = matched(boxes((700, 0, 710, 10)), boxes((0, 0, 50, 50), (200, 0, 280, 80), (400, 0, 420, 20)))
    assert found.drawn.density.tolist() == ["0.1 to 0.3", "from 0.3", "below 0.1"]
    assert found.predicted.density.tolist() == ["empty"]
    table = building_matching.table(found, "density")
    assert table.density.tolist() == ["empty", "below 0.1", "0.1 to 0.3", "from 0.3"]
    assert table.drawn.sum() == 3


def test_density_counts_the_ground_alone():
    ground = shapely.box(0, 0, 20, 10)
    assert matched(boxes(), boxes((0, 0, 10, 10)), ground).drawn.density.tolist() == ["from 0.3"]


def test_places_and_scenes_are_told_apart():
    one, other = boxes((0, 0, 10, 10)), boxes((50, 50, 60, 60))
    parts = [matched(one, one, scene="a", place="acc"), matched(one, other, scene="b", place="kam")]
    both = building_matching.combine(parts)
    table = building_matching.table(both, "place").set_index("place")
    assert table.f1.to_dict() == {"acc": 1, "kam": 0}
    assert both.counts == parts[0].counts + parts[1].counts
    assert len(both.blocks) == 2


def test_the_interval_draws_blocks_of_ground():
    drawn = boxes(*((100.0 * n, 0, 100.0 * n + 10, 10) for n in range(10)))
    found = building_matching.scores(matched(drawn[:5], drawn))
    assert found["recall"] == 0.5
    assert found["recall_low"] < 0.4
    assert found["recall_high"] > 0.6
    assert np.isnan(building_matching.scores(matched(drawn[:1], drawn[:1]))["f1_low"])


def test_differences_draw_the_same_blocks_for_both():
    drawn = boxes(*((100.0 * n, 0, 100.0 * n + 10, 10) for n in range(10)))
    same = building_matching.differences(matched(drawn[:5], drawn), matched(drawn[:5], drawn))
    assert [(row["difference"], row["low"], row["high"]) for row in same] == [(0, 0, 0)] * 3
    better = building_matching.differences(matched(drawn[:9], drawn), matched(drawn[:5], drawn))
    assert {row["score"]: row["low"] > 0 for row in better}["recall"]


def test_no_building_is_no_error():
    found = building_matching.scores(matched(boxes(), boxes()))
    assert np.isnan(found["f1"])
    assert found["drawn"] == 0
    assert building_matching.table(matched(boxes(), boxes()), "place").empty
    assert building_matching.differences(matched(boxes(), boxes()), matched(boxes(), boxes())) == []


@given(st.integers(0, 10**6))
def test_distance_of_outlines_is_that_of_shapely(seed):
    draw = np.random.default_rng(seed)
    shapes = [shapely.Point(*draw.uniform(0, 5, 2)).buffer(draw.uniform(1, 9), quad_segs=2) for _ in range(8)]
    outlines, others = np.array(shapes[:4]), np.array(shapes[4:])
    expected = []
    for outline, other in zip(outlines, others, strict=True):
        points = shapely.points(shapely.get_coordinates(shapely.segmentize(outline.exterior, 0.25)))
        expected.append(shapely.distance(points, other.exterior).mean())
    assert building_matching.boundary_distances(outlines, others) == pytest.approx(expected)


def test_batches_change_no_distance(monkeypatch):
    outlines = boxes(*((0, 0, 4 + n, 4) for n in range(9)))
    others = np.array([translate(outline, 1, 0) for outline in outlines])
    whole = building_matching.boundary_distances(outlines, others)
    monkeypatch.setattr(building_matching, "BATCH", 300)
    assert building_matching.boundary_distances(outlines, others).tolist() == whole.tolist()


def test_a_quarter_of_a_hundred_thousand_buildings_takes_a_quarter_of_a_minute():
    cols, rows = np.divmod(np.arange(25_000), 158)
    draw = np.random.default_rng(0)
    left, bottom = 15.0 * cols, 15.0 * rows
    shift = draw.uniform(-2, 2, (2, len(left)))
    drawn = shapely.box(left, bottom, left + 9, bottom + 12)
    predicted = shapely.box(left + shift[0], bottom + shift[1], left + shift[0] + 9, bottom + shift[1] + 12)
    start = time.process_time()
    found = building_matching.scores(matched(predicted, drawn, shapely.box(-50, -50, 5000, 5000)))
    assert time.process_time() - start < 15
    assert found["drawn"] == 25_000
    assert 0 < found["boundary_m"] < 2
