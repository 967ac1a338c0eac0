"""Example chips of an evaluation: picks the best, worst and median ones, and draws pictures of them."""

import numpy as np

from ocmlflow import pictures
from ocmlflow.chips import chip_set, labels
from ocmlflow.evaluation import calibration
from ocmlflow.evaluation.predictions import Predictions
from ocmlflow.evaluation.scores import PixelScores


def panels(predicted: Predictions, number: int, temperature: float, threshold: int) -> list[np.ndarray]:
    """Four pictures of a chip: image, image with the label's outlines, calibrated probability, errors.

    Each is (height, width, 3) uint8. `number` is the chip's row in the predictions, `threshold` in percent.
    """
    row = next(predicted.rows.iloc[[number]].itertuples())
    image = chip_set.read(predicted.folder, row).image
    label, valid = labels.decode(predicted.coded[number])
    percents = calibration.level_percents(temperature)[predicted.levels[number]]
    errors = pictures.draw_errors(image, percents >= threshold, label, valid)
    return [image, pictures.draw_outlines(image, label, valid), pictures.to_grey(percents / 100), errors]


def pick(pixels: PixelScores, threshold: int, *, count: int) -> tuple[list[int], list[int], list[int]]:
    """Row numbers of at most `count` best, worst and median chips each, by IoU at a threshold in percent.

    Chips without any labelled or predicted building are left out. No chip is both among the best and the worst, unless
    there is only one.
    """
    ious = pixels.chip_ious(threshold)
    ascending = [int(number) for number in np.argsort(ious, kind="stable") if not np.isnan(ious[number])]
    size = min(count, len(ascending) // 2 or len(ascending))
    middle = (len(ascending) - size) // 2
    return ascending[::-1][:size], ascending[:size], ascending[middle : middle + size]
