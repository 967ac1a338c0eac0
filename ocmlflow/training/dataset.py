"""Chip index, to batches of uint8 crops, in an order that the seed decides."""

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
"""Images (batch, side, side, 3) uint8 RGB, and labels (batch, side, side, 1) uint8, coded as in `labels`."""


class Batches(keras.utils.PyDataset):
    """Batches that `workers` threads make, and the first error that one of them met."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers=workers, max_queue_size=4)
        self.error: Exception | None = None

    def __getitem__(self, number: int) -> tuple[Batch]:
        try:
            return (self.batch(number),)  # to Keras both are input
        except Exception as error:
            self.error = self.error or error
            raise

    @abstractmethod
    def batch(self, number: int) -> Batch:
        """The batch of that number, from 0 on."""


@contextmanager
def reraise_batch_error(*batches: Batches) -> Iterator[None]:
    """Has what a thread met come out of the block as it was raised: TensorFlow tells it in an error of its own."""
    try:
        yield
    except Exception:
        for met in (some.error for some in batches if some.error):
            raise met from None
        raise


class Crops(Batches):
    """Random crops of the training chips, drawn so that no scene and no empty ground drowns the others.

    A scene is drawn in proportion to the root of its number of chips, times the weight of its catalogue, 1 if there is
    none in `weights`; that share of the crops, `building_crops`, is around a building. The `inner` pixels in the middle
    of a crop are from the chip; of the `side` along it, those beyond the chip are not valid. The batch of an epoch and
    number is the same whichever thread makes it.
    """

    def __init__(
        self,
        made: ChipSet,
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
        self.rows = made.select("train")
        self.folder, self.side, self.inner, self.batch_size, self.seed = made.folder, side, inner, batch_size, seed
        self.building_crops = building_crops
        self.epoch = 0  # `fit` counts from 1: Keras ends an epoch before the first
        scenes = self.rows.groupby("scene").id.transform("size").to_numpy()
        weight = self.rows.catalog.map(lambda catalog: (weights or {}).get(catalog, 1.0)).to_numpy() / np.sqrt(scenes)
        self.chances = _shares(weight)
        built = weight * (self.rows.building_share.to_numpy() > 0)
        self.built_chances = _shares(built) if built.any() else None

    def __len__(self) -> int:
        """Batches an epoch: as many crops as there are chips."""
        return math.ceil(len(self.rows) / self.batch_size)

    def batch(self, number: int) -> Batch:
        draw = np.random.default_rng([self.seed, self.epoch, number])
        chosen = [self._choose(draw) for _ in range(self.batch_size)]  # first: then chips can be fetched side by side
        read = chip_set.read_all(self.folder, (self.rows.iloc[chip] for chip, _ in chosen))
        cut = [
            crop(chip, side=self.side, inner=self.inner, at_building=at_building, draw=draw)
            for chip, (_, at_building) in zip(read, chosen, strict=True)
        ]
        return stack(cut)

    def on_epoch_end(self) -> None:
        self.epoch += 1

    def _choose(self, draw: np.random.Generator) -> tuple[int, bool]:
        """Number of a row, and whether some building of its chip is to be in the crop."""
        at_building = self.built_chances is not None and draw.random() < self.building_crops
        return int(draw.choice(len(self.rows), p=self.built_chances if at_building else self.chances)), at_building


class RemainingBatches(keras.utils.PyDataset):
    """The batches of an epoch from the one of that number on."""

    def __init__(self, batches: Batches, first: int) -> None:
        super().__init__(workers=batches.workers, max_queue_size=batches.max_queue_size)
        self.batches, self.first = batches, first

    def __len__(self) -> int:
        return len(self.batches) - self.first

    def __getitem__(self, number: int) -> tuple[Batch]:
        return self.batches[self.first + number]


class WholeChips(Batches):
    """The chips of some rows of an index, whole and in their order; the last batch may be smaller.

    To as many as a multiple of `devices` chips of which nothing is valid fill it up.
    """

    def __init__(
        self, folder: Folder, rows: gpd.GeoDataFrame, *, batch_size: int, devices: int = 1, workers: int = 1
    ) -> None:
        super().__init__(workers)
        self.folder, self.rows, self.batch_size, self.devices = folder, rows, batch_size, devices

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def batch(self, number: int) -> Batch:
        rows = self.rows.iloc[number * self.batch_size : (number + 1) * self.batch_size]
        read = list(chip_set.read_all(self.folder, rows.itertuples()))
        missing = -len(read) % self.devices
        empty = Chip(read[0].image, np.full_like(read[0].label, INVALID))
        return stack([*read, *[empty] * missing])


def stack(some: Sequence[Chip]) -> Batch:
    """A batch of chips or crops of one size."""
    return np.stack([one.image for one in some]), np.stack([one.label for one in some])[..., np.newaxis]


def catalog_weights(catalogs: Iterable[str], told: str | None) -> dict[str, float]:
    """Weight of each catalogue that was given one, as in `tier_2=0.2,tier_1=1`, by a part of its address.

    InputError for what names no catalogue, or one twice, and where nothing is left.
    """
    known = list(catalogs)
    found: dict[str, float] = {}
    for part in told.split(",") if told else ():
        text, _, value = part.rpartition("=")
        named = [catalog for catalog in known if text and text in catalog]
        if not named:
            raise InputError(
                f"catalog_weights={told}: {text or 'nothing'} is in the address of no training catalogue; "
                f"those are {', '.join(known)}"
            )
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if not 0 <= weight <= 1e6:
            raise InputError(f"catalog_weights={told}: {text}= takes a number of 0 to 1e6, got {value or 'nothing'}")
        for catalog in named:
            if catalog in found:
                raise InputError(f"catalog_weights={told}: {catalog} is named twice; which weight is meant?")
            found[catalog] = weight
    if found and not any(found.get(catalog, 1) for catalog in known):
        raise InputError(f"catalog_weights={told} leaves nothing to train on")
    return found


def has_building_to_learn(made: ChipSet, weights: Mapping[str, float]) -> bool:
    """Whether some building of the training chips that are drawn is learnt from, which near its outline it may not be.

    Reads chips up to the first that shows one.
    """
    rows = made.select("train")
    drawn = rows[(rows.building_share > 0) & rows.catalog.map(lambda catalog: weights.get(catalog, 1) > 0)]
    return any((chip.label == 1).any() for chip in chip_set.read_all(made.folder, drawn.itertuples()))


def crop(chip: Chip, *, side: int, inner: int, at_building: bool, draw: np.random.Generator) -> Chip:
    """Square of `side` pixels of a chip, around some pixel of a building or of any that is valid.

    The `inner` pixels in the middle are from the chip, if it is as large as that; what lies beyond it is not valid.
    """
    label = chip.label
    around = np.flatnonzero(label == 1) if at_building else np.empty(0)
    if not len(around):
        around = np.flatnonzero(label != INVALID)
    middle = np.unravel_index(draw.choice(around) if len(around) else draw.integers(label.size), label.shape)
    jitter = draw.integers(-inner // 4, inner // 4 + 1, size=2)
    made = Chip(np.zeros((side, side, 3), np.uint8), np.full((side, side), INVALID, np.uint8))
    ends = []
    for at, off, length in zip(middle, jitter, label.shape, strict=True):
        space = length - inner
        first = int(np.clip(at + off - inner // 2, 0, space)) if space > 0 else space // 2
        ends.append((first - (side - inner) // 2, length))
    there, here = zip(*((slice(max(f, 0), f + side), slice(max(-f, 0), n - f)) for f, n in ends), strict=True)
    made.image[here], made.label[here] = chip.image[there], label[there]
    return made


def _shares(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()
