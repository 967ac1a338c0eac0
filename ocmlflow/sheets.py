"""Chips of a training, to sheets of pictures that show what the network sees and what it finds."""

from typing import Any

import geopandas as gpd
import keras
import numpy as np

from ocmlflow import evaluation, labels, pictures
from ocmlflow.augment import augment
from ocmlflow.dataset import Crops
from ocmlflow.learner import Recipe
from ocmlflow.store import Files


def predicted(model: keras.Model, folder: Files, rows: gpd.GeoDataFrame, devices: int) -> np.ndarray:
    """Four chips, spread over the places, two beside two: image and label, probability, errors."""
    chosen = rows[rows.building_share > 0].sort_values(["place", "id"])
    chosen = chosen.iloc[np.linspace(0, len(chosen) - 1, 4).astype(int)]
    halves = (chosen.iloc[:2], chosen.iloc[2:])

    def predict(images: np.ndarray) -> np.ndarray:  # one chip, which is to be shared out as well
        return np.asarray(model.predict_on_batch(np.repeat(images, devices, axis=0))[:1])

    return np.concatenate([evaluation.picture(predict, folder, half, threshold=50) for half in halves], axis=1)


def augmented(crops: Crops, recipe: Recipe) -> np.ndarray:
    """Sixty-four crops as the network is shown them, with the outlines of their labels."""
    seed = keras.random.SeedGenerator(recipe.seed)
    shown: list[Any] = []
    while len(shown) < 64:
        (batch,) = crops[len(shown) // crops.batch_size]
        made = augment(*batch, seed, crop=recipe.crop, strength=recipe.augment, zoom=recipe.zoom)
        shown += zip(*(keras.ops.convert_to_numpy(part).round().astype(np.uint8) for part in made), strict=True)
    drawn = [pictures.outlined(image, *labels.decode(label[..., 0])) for image, label in shown[:64]]
    return pictures.sheet([drawn[number : number + 8] for number in range(0, 64, 8)])
