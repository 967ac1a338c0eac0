"""Pictures of a training: augmented crops with their labels, and validation chips with predictions and errors."""

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
    """RGB picture of four built chips, spread over the places: image with outlines, probability, errors at 50 %."""
    built = rows[rows.building_share > 0].sort_values(["place", "id"])
    chosen = built.iloc[np.linspace(0, len(built) - 1, 4).astype(int)]

    def predict(images: np.ndarray) -> np.ndarray:
        # A batch is split over all devices, so each gets a copy of the one chip.
        return np.asarray(model.predict_on_batch(np.repeat(images, devices, axis=0))[:1])

    halves = (chosen.iloc[:2], chosen.iloc[2:])
    return np.concatenate([prediction_sheet(predict, folder, half, threshold=50) for half in halves], axis=1)


def augmentation_sheet(crops: Crops, recipe: Recipe) -> np.ndarray:
    """RGB picture of 64 augmented crops, as training uses them, with the outlines of their labels."""
    seed = keras.random.SeedGenerator(recipe.seed)
    outlined: list[np.ndarray] = []
    while len(outlined) < 64:
        (batch,) = crops[len(outlined) // crops.batch_size]
        augmented = augment(*batch, seed, crop=recipe.crop, strength=recipe.augment, zoom=recipe.zoom)
        images, coded = (keras.ops.convert_to_numpy(values).round().astype(np.uint8) for values in augmented)
        for image, label in zip(images, coded[..., 0], strict=True):
            outlined.append(pictures.draw_outlines(image, *labels.decode(label)))
    return pictures.contact_sheet([outlined[first : first + 8] for first in range(0, 64, 8)])


def prediction_sheet(predict: Predict, folder: Folder, rows: gpd.GeoDataFrame, *, threshold: int) -> np.ndarray:
    """RGB picture with a row per chip: image with the label's outlines, probability, errors at `threshold` percent."""
    picture_rows = []
    for chip in chip_set.read_all(folder, rows.itertuples()):
        image, (label, valid) = chip.image, labels.decode(chip.label)
        probability = predict(image[np.newaxis])[0, ..., 0]
        building = to_percent(probability) >= threshold
        errors = pictures.draw_errors(image, building, label, valid)
        picture_rows.append([pictures.draw_outlines(image, label, valid), pictures.to_grey(probability), errors])
    return pictures.contact_sheet(picture_rows)
