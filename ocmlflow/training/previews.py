"""Sheets of pictures of a training: what the network is shown, and what it finds."""

from typing import Any

import geopandas as gpd
import keras
import numpy as np

from ocmlflow import pictures
from ocmlflow.chips import chip_set, labels
from ocmlflow.chips.zarr_store import Folder
from ocmlflow.probability import Predict, to_percent
from ocmlflow.training.augment import augment
from ocmlflow.training.dataset import Crops
from ocmlflow.training.train_step import Recipe


def validation_sheet(model: keras.Model, folder: Folder, rows: gpd.GeoDataFrame, devices: int) -> np.ndarray:
    """Four chips, spread over the places, two beside two: image and label, probability, errors."""
    chosen = rows[rows.building_share > 0].sort_values(["place", "id"])
    chosen = chosen.iloc[np.linspace(0, len(chosen) - 1, 4).astype(int)]
    halves = (chosen.iloc[:2], chosen.iloc[2:])

    def predict(images: np.ndarray) -> np.ndarray:  # one chip, which is to be shared out as well
        return np.asarray(model.predict_on_batch(np.repeat(images, devices, axis=0))[:1])

    return np.concatenate([prediction_sheet(predict, folder, half, threshold=50) for half in halves], axis=1)


def augmentation_sheet(crops: Crops, recipe: Recipe) -> np.ndarray:
    """Sixty-four crops as the network is shown them, with the outlines of their labels."""
    seed = keras.random.SeedGenerator(recipe.seed)
    shown: list[Any] = []
    while len(shown) < 64:
        (batch,) = crops[len(shown) // crops.batch_size]
        made = augment(*batch, seed, crop=recipe.crop, strength=recipe.augment, zoom=recipe.zoom)
        shown += zip(*(keras.ops.convert_to_numpy(part).round().astype(np.uint8) for part in made), strict=True)
    drawn = [pictures.draw_outlines(image, *labels.decode(label[..., 0])) for image, label in shown[:64]]
    return pictures.contact_sheet([drawn[number : number + 8] for number in range(0, 64, 8)])


def prediction_sheet(predict: Predict, folder: Folder, rows: gpd.GeoDataFrame, *, threshold: int) -> np.ndarray:
    """One picture of some chips, a row each: image with the label's outlines, probability, errors at the threshold."""
    shown = []
    for image, coded in chip_set.read_all(folder, rows.itertuples()):
        label, valid = labels.decode(coded)
        probability = predict(image[np.newaxis])[0, ..., 0]
        building = to_percent(probability) >= threshold
        outlined = pictures.draw_outlines(image, label, valid)
        shown.append([outlined, pictures.to_grey(probability), pictures.draw_errors(image, building, label, valid)])
    return pictures.contact_sheet(shown)
