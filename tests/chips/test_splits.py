"""The split by ground."""

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from affine import Affine
from conftest import CRS, ELSEWHERE, TRANSFORM
from hypothesis import assume, given
from hypothesis import strategies as st
from rasterio.windows import Window

from ocmlflow.chips import ground_blocks, splits
from ocmlflow.errors import InputError
from ocmlflow.scenes import geobox
from ocmlflow.scenes.geobox import GeoBox


def chips_of(scene: str, place: str, *, rows: int, cols: int, transform: Affine = TRANSFORM, stride=32, size=32):
    """An index of chips, without their pixels."""
    own = GeoBox(CRS, transform, rows * size, cols * size)
    windows = [Window(c * stride, r * stride, size, size) for r in range(rows) for c in range(cols)]
    middles = [transform @ (w.col_off + size / 2, w.row_off + size / 2) for w in windows]
    frame = {"id": [f"{scene}-{n}" for n in range(len(windows))], "scene": scene, "place": place, "utm": CRS}
    frame |= {"x": [x for x, _ in middles], "y": [y for _, y in middles]}
    return gpd.GeoDataFrame(frame, geometry=[geobox.outline(own, w) for w in windows], crs="EPSG:4326")


def split(index, *, validation, block_m, seed, test=None):
    assigned = splits.assign(index, validation=validation, test=test, folds=None, block_m=block_m, seed=seed)
    return splits.drop_touching(assigned)


def covered(index: gpd.GeoDataFrame) -> shapely.Geometry:
    return shapely.union_all(index.to_crs(CRS).geometry)


@pytest.mark.parametrize(("validation", "held"), [("kam", {"k"}), ("a2", {"a2"}), ("kam, a1", {"k", "a1"})])
def test_places_and_scenes_are_held_out_by_name(validation, held):
    index = pd.concat(
        [
            chips_of("a1", "acc", rows=2, cols=2),
            chips_of("a2", "acc", rows=2, cols=2, transform=ELSEWHERE),
            chips_of("k", "kam", rows=2, cols=2, transform=Affine.translation(0, 5000) @ TRANSFORM),
        ],
        ignore_index=True,
    )
    kept, dropped = split(index, validation=validation, block_m=500.0, seed=0)
    assert set(kept[kept.split == "validation"].scene) == held
    assert set(kept[kept.split == "train"].scene) == {"a1", "a2", "k"} - held
    assert dropped.empty


def test_an_unknown_name_is_refused_with_those_known():
    index = chips_of("a1", "acc", rows=2, cols=2)
    with pytest.raises(InputError, match=r"validation=zzz is neither .* a1, acc"):
        split(index, validation="zzz", block_m=500.0, seed=0)


@pytest.mark.parametrize("validation", ["acc", "0", "1", "1.5", "nan"])
def test_a_split_needs_both_sides(validation):
    with pytest.raises(InputError, match="validation="):
        split(chips_of("a1", "acc", rows=3, cols=3), validation=validation, block_m=500.0, seed=0)


def test_names_may_be_of_digits_alone():
    scenes = [chips_of(name, place, rows=2, cols=2) for name, place in (("401175", "mon"), ("353093", "2019"))]
    index = pd.concat(scenes, ignore_index=True)
    for told, scene in (("401175", "401175"), ("2019", "353093")):
        held_out = splits.assign(index, validation=told, test=None, folds=None, block_m=500.0, seed=0)
        assert set(held_out[held_out.split == "validation"].scene) == {scene}


def test_held_out_chips_that_only_overlap_others_are_no_split():
    index = chips_of("a1", "acc", rows=1, cols=5, stride=16)
    index["row"], index["col"] = 0, np.arange(0, 80, 16)
    index["split"] = np.where(index.col == 80 - 16, "train", np.where(index.col == 16, "validation", "unused"))
    with pytest.raises(InputError, match="1 training chips and 0 validation chips"):
        splits.drop_touching(splits.without_overlap(index, size=32))


def test_chips_all_on_one_block_of_ground_are_refused_with_what_would_do():
    told = (
        r"validation=0\.2 puts 9 of 9 chips into validation.* lie on 1 block of 500 m: use smaller blocks \(block_m\)"
    )
    with pytest.raises(InputError, match=told):
        split(chips_of("a1", "acc", rows=3, cols=3), validation="0.2", block_m=500.0, seed=0)
    with pytest.raises(InputError, match=r"puts .* into validation.* Use shares of less than 1 in all"):
        split(chips_of("a1", "acc", rows=9, cols=9), validation="0.6", test="0.4", block_m=4.0, seed=0)


@given(st.integers(2, 9), st.integers(2, 9), st.sampled_from([32, 20, 8]), st.floats(0.05, 0.9), st.integers(0, 9))
def test_held_out_ground_is_apart(rows, cols, stride, share, seed):
    index = chips_of("a1", "acc", rows=rows, cols=cols, stride=stride)
    try:
        kept, dropped = split(index, validation=str(share), block_m=9.0, seed=seed)
    except InputError:
        assume(False)
    assert sorted([*kept.id, *dropped.id]) == sorted(index.id)
    train, validation = kept[kept.split == "train"], kept[kept.split == "validation"]
    assert covered(train).distance(covered(validation)) > 0.5  # they do not even touch
    assert set(dropped.split) <= {"train"}
    again, _ = split(index, validation=str(share), block_m=9.0, seed=seed)
    assert again.split.tolist() == kept.split.tolist()


def test_a_share_is_about_that_share_and_another_seed_another_ground():
    index = chips_of("a1", "acc", rows=40, cols=40)
    splits = [split(index, validation="0.2", block_m=9.6, seed=seed)[0] for seed in (0, 1)]
    for kept in splits:
        assert (kept.split == "validation").sum() / len(index) == pytest.approx(0.2, abs=0.02)
    held = [set(kept[kept.split == "validation"].id) for kept in splits]
    assert held[0] != held[1]


@pytest.mark.parametrize("shift", [0, 16, 32, 33])
def test_scenes_on_the_same_ground_share_none_after_the_split(shift):
    over = TRANSFORM @ Affine.translation(shift, 0)
    index = pd.concat(
        [chips_of("a1", "acc", rows=2, cols=5), chips_of("a2", "dar", rows=2, cols=2, transform=over)],
        ignore_index=True,
    )
    kept, dropped = split(index, validation="dar", block_m=500.0, seed=0)
    assert len(dropped) == {0: 6, 16: 6, 32: 8, 33: 6}[shift]
    train, validation = (covered(kept[kept.split == name]) for name in ("train", "validation"))
    assert train.distance(validation) > 0
    with pytest.raises(InputError, match="training chips lie on the ground of validation chips"):
        splits.check_disjoint(index.assign(split=np.where(index.place == "dar", "validation", "train")))


@given(
    st.integers(4, 12),
    st.integers(4, 12),
    st.sampled_from([32, 20, 8]),
    st.floats(0.05, 0.5),
    st.floats(0.05, 0.5),
    st.integers(0, 9),
)
def test_training_validation_and_test_are_apart_from_one_another(rows, cols, stride, validation, test, seed):
    index = chips_of("a1", "acc", rows=rows, cols=cols, stride=stride)
    try:
        kept, dropped = split(index, validation=str(validation), test=str(test), block_m=9.0, seed=seed)
    except InputError:
        assume(False)
    assert sorted([*kept.id, *dropped.id]) == sorted(index.id)
    parts = {name: covered(some) for name, some in kept.groupby("split")}
    assert set(parts) == {"train", "validation", "test"}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert parts[one].distance(parts[other]) > 0.5
    assert "test" not in set(dropped.split)  # all others give way to it
    more = splits.assign(index, validation=str(validation / 2), test=str(test), folds=None, block_m=9.0, seed=seed)
    assert set(more[more.split == "test"].id) == set(kept[kept.split == "test"].id)  # whatever validation is


def test_shares_of_validation_and_test_are_those_of_all_chips_that_no_name_took():
    index = pd.concat(
        [chips_of("a1", "acc", rows=40, cols=40), chips_of("k", "kam", rows=40, cols=40, transform=ELSEWHERE)],
        ignore_index=True,
    )
    both = splits.assign(index, validation="0.1", test="0.2", folds=None, block_m=9.6, seed=3)
    shares = both.split.value_counts(normalize=True)
    assert shares.test == pytest.approx(0.2, abs=0.01)
    assert shares.validation == pytest.approx(0.1, abs=0.01)
    named = splits.assign(index, validation="0.2", test="kam", folds=None, block_m=9.6, seed=3)
    assert set(named[named.split == "test"].scene) == {"k"}
    assert (named.split == "validation").mean() == pytest.approx(0.2, abs=0.01)
    named = splits.assign(index, validation="kam", test="0.2", folds=None, block_m=9.6, seed=3)
    assert set(named[named.split == "validation"].scene) == {"k"}
    assert (named.split == "test").mean() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        ("k", "kam", "16 chips of validation=k are in test=kam as well"),
        ("acc", "kam", "validation=acc puts 16 of 16 chips into validation; every split needs some"),
        ("0.2", "2", "test=2 is neither a share between 0 and 1"),
        ("0.2", "zzz", r"test=zzz is neither .* a1, acc, k, kam"),
    ],
)
def test_test_ground_that_cannot_be_is_refused(validation, test, message):
    index = pd.concat(
        [chips_of("a1", "acc", rows=4, cols=4), chips_of("k", "kam", rows=4, cols=4, transform=ELSEWHERE)],
        ignore_index=True,
    )
    with pytest.raises(InputError, match=message):
        split(index, validation=validation, test=test, block_m=500.0, seed=0)


@pytest.mark.parametrize("under", ["train", "validation"])
def test_chips_on_the_ground_of_test_chips_are_refused(under):
    over = TRANSFORM @ Affine.translation(64, 0)
    index = pd.concat(
        [chips_of("a1", "acc", rows=1, cols=6), chips_of("a2", "dar", rows=1, cols=1, transform=over)],
        ignore_index=True,
    )
    other = "validation" if under == "train" else "train"
    index["split"] = [*[under] * 4, "unused", other, "test"]
    with pytest.raises(InputError, match=r"3 \w+ chips lie on the ground of test chips"):
        splits.check_disjoint(index)


def test_the_made_chips_are_split_by_place(made):
    assert set(made.select("train").place) == {"acc"}
    assert set(made.select("validation").place) == {"kam"}
    assert len(made.select("train")) + len(made.select("validation")) == len(made.index)


@pytest.mark.parametrize("held_out", ["validation", "test"])
def test_ground_that_is_scored_counts_no_pixel_twice(held_out):
    index = chips_of("a1", "acc", rows=5, cols=5, stride=16)
    index["row"], index["col"] = np.repeat(np.arange(0, 80, 16), 5), np.tile(np.arange(0, 80, 16), 5)
    index["split"] = np.where(index.col < 48, held_out, "train")
    thinned = splits.without_overlap(index, size=32)
    assert (thinned.split == "train").sum() == (index.split == "train").sum()
    kept = thinned[thinned.split == held_out]
    assert sorted(zip(kept.row, kept.col, strict=True)) == [(r, c) for r in (0, 32, 64) for c in (0, 32)]
    assert covered(kept).area == pytest.approx(kept.to_crs(CRS).area.sum(), rel=1e-6)


def folded(*, rows: int, cols: int, folds: int, seed: int):
    index = chips_of("a1", "acc", rows=rows, cols=cols)
    place = {"row": np.repeat(np.arange(rows), cols) * 32, "col": np.tile(np.arange(cols), rows) * 32}
    index = index.assign(**place, building_share=(np.arange(len(index)) % 3).astype(float))
    return splits.assign(index, validation=None, test=None, folds=folds, block_m=12.8, seed=seed)


@given(st.integers(8, 20), st.integers(8, 20), st.integers(2, 4), st.integers(0, 5), st.floats(0.2, 1))
def test_folds_are_alike_in_size_and_each_is_apart_from_its_training(rows, cols, folds, seed, share):
    index = folded(rows=rows, cols=cols, folds=folds, seed=seed)
    sizes = index.fold.value_counts()
    assert len(sizes) == folds
    assert sizes.max() - sizes.min() <= 36  # one block: 4 x 4 chips, and those that its edge cuts
    for fold in range(folds):
        try:
            held = splits.hold_out_fold(index, fold, size=32, empty_share=share, seed=seed)
        except InputError:
            assume(False)
        validation, train = held[held.split == "validation"], held[held.split == "train"]
        assert set(validation.id) == set(index[index.fold == fold].id)
        assert covered(train).distance(covered(validation)) > 0.5
        empty = train.building_share == 0
        assert set(train.id[empty]) == set(train.id) & set(index.id[splits.sample_ids(index.id, share, seed)]) & set(
            index.id[index.building_share == 0]
        )


def test_too_many_folds_are_refused():
    with pytest.raises(InputError, match=r"folds=20: the scenes lie on \d blocks of 12\.8 m"):
        folded(rows=8, cols=8, folds=20, seed=0)


def test_a_drawn_share_is_about_that_share_and_holds_when_more_come():
    ids = pd.Series([f"a-{number}" for number in range(2000)])
    drawn = splits.sample_ids(ids, 0.3, 7)
    assert drawn.mean() == pytest.approx(0.3, abs=0.04)
    np.testing.assert_array_equal(drawn[:500], splits.sample_ids(ids[:500], 0.3, 7))
    assert (drawn != splits.sample_ids(ids, 0.3, 8)).any()
    assert splits.sample_ids(ids, 1, 7).all()
    assert not splits.sample_ids(ids, 0, 7).any()


def fitted(index, *, validation="0.2", folds=None, size=512):
    """The split with blocks that follow the ground, and their sides by place."""
    held_out = {"validation": validation, "test": None, "folds": folds, "seed": 0}
    block_m = splits.fitting_block_m(index, **held_out, size=size, gsd=0.1)
    sides = dict(zip(index.place, block_m.tolist(), strict=True))
    return splits.drop_touching(splits.assign(index, **held_out, block_m=block_m))[0], sides


def town_of(place: str, side: int, number: int = 0):
    """An index of side x side chips of 51.2 m, in a place of its own."""
    away = Affine.translation(0, -20_000 * number) @ TRANSFORM
    return chips_of(f"{place}1", place, rows=side, cols=side, transform=away, size=512, stride=512)


@pytest.mark.parametrize(("side", "block_m"), [(3, 125), (4, 125), (5, 62.5), (8, 250), (12, 500), (20, 500)])
def test_blocks_follow_the_ground_and_a_small_scene_can_be_trained(side, block_m):
    kept, sides = fitted(town_of("acc", side))
    assert sides == {"acc": block_m}
    train, validation = ((kept.split == name).sum() for name in ("train", "validation"))
    assert train >= 0.3 * side**2
    assert 1 <= validation <= 0.4 * side**2


def test_ground_that_cannot_be_split_is_told_which_chips_would_do():
    message = (
        r"4 chips of 51\.2 m are too few .* the ground of acc is 102 x 102 m\. Use smaller chips, such as size=256"
    )
    with pytest.raises(InputError, match=message):
        fitted(town_of("acc", 2))
    kept, _ = fitted(chips_of("acc1", "acc", rows=4, cols=4, size=256, stride=256), size=256)
    assert {"train", "validation"} == set(kept.split)


def test_a_share_takes_blocks_of_every_place_that_has_ground_for_it(caplog):
    towns = [town_of(place, side, number) for number, (place, side) in enumerate((("big", 40), ("b", 20), ("c", 12)))]
    index = pd.concat(towns, ignore_index=True)
    kept = splits.assign(index, validation="0.1", test="0.1", folds=None, block_m=128.0, seed=0)
    for held_out in ("validation", "test"):
        shares = (kept.split == held_out).groupby(kept.place).mean()
        assert shares.between(0.05, 0.16).all(), shares
    assert not caplog.records
    hamlet = town_of("hamlet", 2, 3)
    splits.assign(pd.concat([index, hamlet]), validation="0.1", test=None, folds=None, block_m=500.0, seed=0)
    assert "validation=0.1 holds out no chip of " in caplog.text
    assert "hamlet (1 block of 500 m): too little ground for that share; smaller blocks (block_m)" in caplog.text


def test_blocks_of_a_small_town_are_smaller_than_those_of_a_large_one():
    kept, sides = fitted(pd.concat([town_of("big", 40), town_of("small", 6, 1)], ignore_index=True), validation="0.1")
    assert sides == {"big": 500, "small": 250}
    for place in ("big", "small"):
        assert set(kept[kept.place == place].split) == {"train", "validation"}


def test_folds_of_a_small_scene_have_ground_enough():
    index = town_of("acc", 8)
    sides = splits.fitting_block_m(index, validation=None, test=None, folds=4, size=512, gsd=0.1, seed=0)
    dealt = splits.assign(index, validation=None, test=None, folds=4, block_m=sides, seed=0)
    assert set(dealt.fold) == {0, 1, 2, 3}
    assert sides[0] < ground_blocks.LARGEST_M


def test_a_block_of_a_small_scene_is_held_out_where_it_shows_imagery():
    index = town_of("acc", 6)
    in_the_middle = (index.x - index.x.mean()).abs().lt(110) & (index.y - index.y.mean()).abs().lt(110)
    kept, _ = fitted(index.assign(imagery=in_the_middle.astype(float)))
    likely = kept[kept.imagery > 0]
    assert set(likely.split) == {"train", "validation"}
