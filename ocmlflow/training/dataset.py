"""Makes batches of uint8 crops or whole chips from a chip set, in an order that the seed decides."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import geopandas as gpd
import keras
import numpy as np

from ocmlflow.chips import chip_set
from ocmlflow.chips.chip_set import ChipSet
from ocmlflow.chips.labels import INVALID
from ocmlflow.chips.zarr_store import Chip, Folder
from ocmlflow.errors import InputError

Batch: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Images (batch, side, side, 3) uint8 RGB, and (batch, side, side, 2) uint8: labels and targets, coded as in
`chips.labels` and `chips.targets`."""


class Batches(keras.utils.PyDataset):
    """Batches made by `workers` threads; `error` is the first exception that one of them raised."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers=workers, max_queue_size=4)
        self.error: Exception | None = None

    def __getitem__(self, number: int) -> tuple[Batch]:
        try:
            return (self.batch(number),)  # a tuple of one: for Keras both arrays are input, none is a target
        except Exception as error:
            self.error = self.error or error
            raise

    @abstractmethod
    def batch(self, number: int) -> Batch:
        """The batch of this number, counted from 0."""


@contextmanager
def reraise_batch_error(*batches: Batches) -> Iterator[None]:
    """Raise the original exception of a loader thread, where TensorFlow raises one of its own instead."""
    try:
        yield
    except Exception:
        errors = [each.error for each in batches if each.error]
        if errors:
            raise errors[0] from None
        raise


class Crops(Batches):
    """Random crops of the training chips, balanced over scenes and over built and empty ground.

    A scene's chance grows with the square root of its number of chips, times the weight of its catalogue in `weights`
    (1 without one). The share `building_crops` of the crops is around a building. A crop has `side` pixels along a
    side; the `inner` ones in its middle come from the chip, and those beyond the chip are not valid. A batch depends on
    seed, epoch and number alone, not on the thread that makes it.
    """

    def __init__(
        self,
        chips: ChipSet,
        *,
        side: int,
        inner: int,
        batch_size: int,
        seed: int,
        workers: int,
        building_crops: float,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(workers)
        self.rows = chips.select("train")
        self.folder = chips.folder
        self.side = side
        self.inner = inner
        self.batch_size = batch_size
        self.seed = seed
        self.building_crops = building_crops
        self.epoch = 0  # `Model.fit` counts from 1: Keras calls on_epoch_end once before the first epoch
        catalog_weight = self.rows.catalog.map(lambda catalog: (weights or {}).get(catalog, 1.0)).to_numpy()
        chips_of_scene = self.rows.groupby("scene").id.transform("size").to_numpy()
        weight = catalog_weight / np.sqrt(chips_of_scene)
        self.chances = _normalized(weight)
        built = weight * (self.rows.building_share.to_numpy() > 0)
        self.built_chances = _normalized(built) if built.any() else None

    def __len__(self) -> int:
        """Batches in an epoch, which has as many crops as there are training chips."""
        return math.ceil(len(self.rows) / self.batch_size)

    def batch(self, number: int) -> Batch:
        draw = np.random.default_rng([self.seed, self.epoch, number])
        # All chips are drawn before the first is read, so that remote ones can be fetched side by side.
        drawn = [self._draw_chip(draw) for _ in range(self.batch_size)]
        chips = chip_set.read_all(self.folder, (self.rows.iloc[row] for row, _ in drawn))
        return stack(
            [
                crop(chip, side=self.side, inner=self.inner, at_building=at_building, draw=draw)
                for chip, (_, at_building) in zip(chips, drawn, strict=True)
            ]
        )

    def on_epoch_end(self) -> None:
        self.epoch += 1

    def _draw_chip(self, draw: np.random.Generator) -> tuple[int, bool]:
        """Number of a random row, and whether the crop is to be around a building."""
        at_building = self.built_chances is not None and draw.random() < self.building_crops
        return int(draw.choice(len(self.rows), p=self.built_chances if at_building else self.chances)), at_building


class RemainingBatches(keras.utils.PyDataset):
    """The batches of an epoch from number `first` on, to resume in the middle of it."""

    def __init__(self, batches: Batches, first: int) -> None:
        super().__init__(workers=batches.workers, max_queue_size=batches.max_queue_size)
        self.batches = batches
        self.first = first

    def __len__(self) -> int:
        return len(self.batches) - self.first

    def __getitem__(self, number: int) -> tuple[Batch]:
        return self.batches[self.first + number]


class WholeChips(Batches):
    """Whole chips in the order of the given rows; the last batch may be smaller.

    Chips without a valid pixel pad a batch to a multiple of `devices`.
    """

    def __init__(
        self, folder: Folder, rows: gpd.GeoDataFrame, *, batch_size: int, devices: int = 1, workers: int = 1
    ) -> None:
        super().__init__(workers)
        self.folder = folder
        self.rows = rows
        self.batch_size = batch_size
        self.devices = devices

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def batch(self, number: int) -> Batch:
        rows = self.rows.iloc[number * self.batch_size : (number + 1) * self.batch_size]
        chips = list(chip_set.read_all(self.folder, rows.itertuples()))
        padding = Chip(chips[0].image, np.full_like(chips[0].label, INVALID), chips[0].targets)
        return stack([*chips, *[padding] * (-len(chips) % self.devices)])


def stack(chips: Sequence[Chip]) -> Batch:
    """A batch of chips or crops of equal size; InputError for chips without targets."""
    coded = [np.stack([chip.label, _targets(chip)], axis=-1) for chip in chips]
    return np.stack([chip.image for chip in chips]), np.stack(coded)


def catalog_weights(catalogs: Iterable[str], text: str | None) -> dict[str, float]:
    """Weight of each catalogue that `text` names by a part of its address, as in `tier_2=0.2,tier_1=1`.

    Raises InputError for a part that names no catalogue, for a catalogue named twice, for a weight that is no number of
    0 to 1e6, and where no catalogue with a weight above 0 is left.
    """
    known = list(catalogs)
    weights: dict[str, float] = {}
    for item in text.split(",") if text else ():
        part, _, value = item.rpartition("=")
        matching = [catalog for catalog in known if part and part in catalog]
        if not matching:
            raise InputError(
                f"catalog_weights={text}: {part or 'nothing'} is in the address of no training catalogue; "
                f"those are {', '.join(known)}"
            )
        weight = _weight(value)
        if weight is None:
            raise InputError(f"catalog_weights={text}: {part}= takes a number of 0 to 1e6, got {value or 'nothing'}")
        for catalog in matching:
            if catalog in weights:
                raise InputError(f"catalog_weights={text}: {catalog} is named twice; which weight is meant?")
            weights[catalog] = weight
    if weights and not any(weights.get(catalog, 1) for catalog in known):
        raise InputError(f"catalog_weights={text} leaves nothing to train on")
    return weights


def _weight(text: str) -> float | None:
    """The number in the text, or None where it is none of 0 to 1e6."""
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if 0 <= weight <= 1e6 else None


def has_building_to_learn(chips: ChipSet, weights: Mapping[str, float]) -> bool:
    """Whether any training chip with a weight above 0 has a building pixel that is not too near an outline.

    Reads chips until the first that has one.
    """
    rows = chips.select("train")
    drawn = rows[(rows.building_share > 0) & rows.catalog.map(lambda catalog: weights.get(catalog, 1) > 0)]
    return any((chip.label == 1).any() for chip in chip_set.read_all(chips.folder, drawn.itertuples()))


def crop(chip: Chip, *, side: int, inner: int, at_building: bool, draw: np.random.Generator) -> Chip:
    """A random square of `side` pixels of a chip, around a building pixel or, failing that, any valid pixel.

    The `inner` pixels in its middle come from the chip, if the chip is that large. Pixels beyond the chip are black and
    not valid.
    """
    row, col = _random_pixel(chip.label, at_building=at_building, draw=draw)
    row_jitter, col_jitter = draw.integers(-inner // 4, inner // 4 + 1, size=2)
    height, width = chip.label.shape
    top = _first_pixel(row + row_jitter, length=height, side=side, inner=inner)
    left = _first_pixel(col + col_jitter, length=width, side=side, inner=inner)
    # Slices of the chip and of the crop: they differ where the crop reaches beyond the chip.
    chip_part = np.s_[max(top, 0) : top + side, max(left, 0) : left + side]
    crop_part = np.s_[max(-top, 0) : height - top, max(-left, 0) : width - left]
    image = np.zeros((side, side, 3), np.uint8)
    label = np.full((side, side), INVALID, np.uint8)
    image[crop_part] = chip.image[chip_part]
    label[crop_part] = chip.label[chip_part]
    targets = np.zeros((side, side), np.uint8)
    targets[crop_part] = _targets(chip)[chip_part]
    return Chip(image, label, targets)


def _targets(chip: Chip) -> np.ndarray:
    """The targets of a chip; InputError for a chip of an earlier version, which has none."""
    if chip.targets is None:
        raise InputError(
            "these chips were cut by an earlier version, which did not keep what tells touching buildings apart: run "
            "`prepare` again, and train on its chips"
        )
    return chip.targets


def _random_pixel(label: np.ndarray, *, at_building: bool, draw: np.random.Generator) -> tuple[int, int]:
    """Row and column of a building pixel, if one is wanted and there is one; else of a valid pixel, else of any."""
    choices = np.flatnonzero(label == 1) if at_building else np.empty(0)
    if not len(choices):
        choices = np.flatnonzero(label != INVALID)
    row, col = np.unravel_index(draw.choice(choices) if len(choices) else draw.integers(label.size), label.shape)
    return int(row), int(col)


def _first_pixel(middle: int, *, length: int, side: int, inner: int) -> int:
    """First pixel, along one axis, of a crop about `middle`; negative where the crop begins before the chip."""
    room = length - inner
    first_inner = int(np.clip(middle - inner // 2, 0, room)) if room > 0 else room // 2
    return first_inner - (side - inner) // 2


def _normalized(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()
