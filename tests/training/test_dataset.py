from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import keras
import numpy as np
import pytest

from ocmlflow.chips import chip_set
from ocmlflow.chips.labels import INVALID
from ocmlflow.chips.zarr_store import Chip
from ocmlflow.errors import InputError
from ocmlflow.training import dataset
from ocmlflow.training.dataset import Batch, Crops, WholeChips


def crops(made, *, side=24, batch_size=3, seed=5, workers=1, building_crops=0.5) -> Crops:
    how = {"batch_size": batch_size, "seed": seed, "workers": workers, "building_crops": building_crops}
    return Crops(made, side=side, inner=side, **how)


def epoch(batches: Crops) -> list[np.ndarray]:
    return [together(batches[number]) for number in range(len(batches))]


def together(given: tuple[Batch]) -> np.ndarray:
    """(batch, side, side, 4) uint8: image and label of what Keras is given."""
    return np.concatenate(given[0], axis=-1)


def test_batches_are_the_seed_s_in_whatever_order_and_thread(made):
    expected = epoch(crops(made))
    assert expected[0].shape == (3, 24, 24, 5)
    assert expected[0].dtype == np.uint8
    backwards = crops(made)
    np.testing.assert_array_equal([together(backwards[n]) for n in reversed(range(len(backwards)))][::-1], expected)
    threaded = crops(made)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda number: together(threaded[number]), range(len(threaded))))
    np.testing.assert_array_equal(found, expected)


def test_another_epoch_and_another_seed_are_other_batches(made):
    batches = crops(made)
    first = epoch(batches)
    batches.on_epoch_end()
    second = epoch(batches)
    other = epoch(crops(made, seed=6))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert len({batch.tobytes() for batch in first + second + other}) == 3 * len(first)


def test_an_epoch_has_as_many_crops_as_there_are_chips(made):
    chips_there = len(made.select("train"))
    assert (len(crops(made)) - 1) * 3 < chips_there <= len(crops(made)) * 3


class Recorder(keras.Model):
    """Learns nothing and remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.seen: list[np.ndarray] = []

    def train_step(self, data):
        self.seen.append(np.concatenate(data[0], axis=-1))
        return {"loss": 0.0}


@pytest.mark.parametrize("workers", [1, 3])
def test_fit_shows_the_batches_in_their_order_and_mixes_no_epochs(made, workers):
    direct, known = crops(made), {}
    for number in range(3):
        known |= {batch.tobytes(): (number, place) for place, batch in enumerate(epoch(direct))}
        direct.on_epoch_end()
    model = Recorder()
    model.compile(run_eagerly=True)
    model.fit(crops(made, workers=workers), epochs=2, verbose=0, shuffle=False)
    seen = [known[batch.tobytes()] for batch in model.seen]
    # Keras resets its iterator before it starts, and so the first epoch of a fit is number 1.
    assert seen == [(number, place) for number in (1, 2) for place in range(len(direct))]


def test_whole_chips_come_once_and_in_order(made):
    rows = made.select("validation")
    batches = WholeChips(made.folder, rows, batch_size=4)
    found = np.concatenate([together(batches[number]) for number in range(len(batches))])
    np.testing.assert_array_equal(found, [np.dstack(chip_set.read(made.folder, row)) for row in rows.itertuples()])


def test_the_last_batch_is_filled_up_for_all_devices(made):
    rows = made.select("validation").iloc[:5]
    last = together(WholeChips(made.folder, rows, batch_size=4, devices=2)[1])
    assert len(last) == 2
    np.testing.assert_array_equal(last[0], np.dstack(chip_set.read(made.folder, next(rows.iloc[[4]].itertuples()))))
    assert (last[1, ..., 3] == INVALID).all()


def chip_with(at: tuple[int, int], *, height: int, width: int) -> Chip:
    """Its only building is one pixel; every pixel of the image says where it is."""
    image, label = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    image[..., 0], image[..., 1] = np.indices((height, width))
    label[at] = 1
    return Chip(image, label, label * np.uint8(70))


@pytest.mark.parametrize("at", [(0, 0), (63, 63), (30, 5), (10, 50)])
def test_a_crop_holds_the_building_it_is_to_hold(at):
    for seed in range(30):
        chip, draw = chip_with(at, height=64, width=64), np.random.default_rng(seed)
        found = dataset.crop(chip, side=24, inner=16, at_building=True, draw=draw)
        assert (found.label == 1).sum() == 1
        assert found.image[found.label == 1][0, :2].tolist() == list(at)


@pytest.mark.parametrize("at_building", [True, False])
def test_the_middle_of_a_crop_is_from_the_chip_and_its_surroundings_where_there_are_any(at_building):
    chip, firsts = chip_with((39, 0), height=40, width=64), set()
    for seed in range(200):
        draw = np.random.default_rng(seed)
        found = dataset.crop(chip, side=26, inner=16, at_building=at_building, draw=draw)
        row, col = (int(n) for n in found.image[5, 5, :2])
        firsts.add((row, col))
        np.testing.assert_array_equal(found.image[5:21, 5:21], chip.image[row : row + 16, col : col + 16])
        around = np.pad(chip.label, 5, constant_values=INVALID)[row : row + 26, col : col + 26]
        np.testing.assert_array_equal(found.label, around)
        np.testing.assert_array_equal(found.targets, np.where(around == 1, 70, 0))
        assert not found.image[around == INVALID].any()
    assert at_building or {(0, 0), (24, 0), (0, 48), (24, 48)} < firsts  # its corners too are in the middle of some


def test_chips_without_targets_are_refused():
    chip = chip_with((3, 3), height=8, width=8)._replace(targets=None)
    with pytest.raises(InputError, match=r"these chips were cut by an earlier version, .* run `prepare` again"):
        dataset.stack([chip])
    with pytest.raises(InputError, match="run `prepare` again"):
        dataset.crop(chip, side=4, inner=4, at_building=True, draw=np.random.default_rng(0))


def test_crops_come_from_everywhere():
    chip = chip_with((0, 0), height=8, width=8)
    draws = map(np.random.default_rng, range(200))
    found = [dataset.crop(chip, side=6, inner=6, at_building=False, draw=draw) for draw in draws]
    seen = [tuple(one.image[0, 0, :2]) for one in found]
    assert set(seen) == {(row, col) for row in range(3) for col in range(3)}


@pytest.mark.parametrize("at_building", [True, False])
def test_no_crop_is_without_anything_valid(at_building):
    chip = Chip(np.full((64, 64, 3), 255, np.uint8), np.full((64, 64), INVALID, np.uint8), np.zeros((64, 64), np.uint8))
    chip.label[60:, :4] = 0
    for seed in range(30):
        found = dataset.crop(chip, side=24, inner=16, at_building=at_building, draw=np.random.default_rng(seed))
        assert (found.label == 0).any()


@pytest.mark.parametrize("at_building", [True, False])
def test_what_lies_beyond_a_small_chip_is_not_valid(at_building):
    chip, draw = chip_with((2, 3), height=5, width=20), np.random.default_rng(0)
    found = dataset.crop(chip, side=12, inner=12, at_building=at_building, draw=draw)
    assert found.image.shape == (12, 12, 3)
    outside = found.label == INVALID
    assert outside.shape == (12, 12)
    assert outside.sum() == 7 * 12
    assert not found.image[outside].any()


def test_crops_of_a_catalogue_come_as_often_as_its_weight_says(made):
    index = made.index.assign(catalog=["a" if n % 2 else "b" for n in range(len(made.index))])
    two = replace(made, index=index)
    settings = {"side": 8, "inner": 8, "batch_size": 1, "seed": 0, "workers": 1, "building_crops": 0.5}
    even, odd = (Crops(two, **settings, weights=weights) for weights in ({}, {"a": 0.25}))
    for before, after in ((even.chances, odd.chances), (even.built_chances, odd.built_chances)):
        less = (odd.rows.catalog == "a").to_numpy() & (before > 0)
        more = (odd.rows.catalog == "b").to_numpy() & (before > 0)
        assert after.sum() == pytest.approx(1)
        np.testing.assert_allclose((after[less] / before[less]).mean(), 0.25 * (after[more] / before[more]).mean())


def test_weights_name_catalogues_by_a_part_of_their_address():
    known = ["train_tier_1/catalog.json", "train_tier_2/catalog.json"]
    assert dataset.catalog_weights(known, None) == dataset.catalog_weights([], None) == {}
    assert dataset.catalog_weights(known, "tier_2=0.2") == {known[1]: 0.2}
    assert dataset.catalog_weights(known, "tier=3") == dict.fromkeys(known, 3)
    for told, message in (
        ("tier_2=0.2,tier=0.5", "train_tier_2/catalog.json is named twice"),
        ("tier=0.5,tier_2=0.2", "train_tier_2/catalog.json is named twice"),
        ("tier_3=1", "tier_3 is in the address of no training catalogue; those are train_tier_1"),
        ("tier_2", "nothing is in the address"),
        ("tier_2=", "tier_2= takes a number of 0 to 1e6, got nothing"),
        ("tier_2=-1", "got -1"),
        ("tier_2=nan", "got nan"),
        ("tier=0", "leaves nothing to train on"),
    ):
        with pytest.raises(InputError, match=message):
            dataset.catalog_weights(known, told)


def test_chips_teach_where_a_building_is_drawn(made):
    assert dataset.has_building_to_learn(made, {})
    assert not dataset.has_building_to_learn(made, dict.fromkeys(made.index.catalog, 0.0))


def test_that_share_of_the_crops_is_around_a_building(made):
    def showing(share):
        _, label = crops(made, side=8, batch_size=400, building_crops=share).batch(0)
        return (label == 1).any(axis=(1, 2, 3)).mean()

    none, half, every = (showing(share) for share in (0.0, 0.5, 1.0))
    assert every == 1
    assert none < 0.7
    assert half == pytest.approx((1 + none) / 2, abs=0.08)
