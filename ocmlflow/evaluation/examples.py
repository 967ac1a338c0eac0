"""Predictions against labels, to scores of pixels and of buildings, by scene, by place, by ground and in all."""

import numpy as np

from ocmlflow import pictures
from ocmlflow.chips import chip_set, labels
from ocmlflow.evaluation import calibration
from ocmlflow.evaluation.predictions import Predictions
from ocmlflow.evaluation.scores import PixelScores


def panels(made: Predictions, number: int, temperature: float, threshold: int) -> list[np.ndarray]:
    """Pictures of one chip: image, the same with the label's outlines, calibrated probability, errors."""
    row = next(made.rows.iloc[[number]].itertuples())
    image, (label, valid) = chip_set.read(made.folder, row).image, labels.decode(made.coded[number])
    percents = calibration.level_percents(temperature)[made.levels[number]]
    errors = pictures.draw_errors(image, percents >= threshold, label, valid)
    return [image, pictures.draw_outlines(image, label, valid), pictures.to_grey(percents / 100), errors]


def pick(evaluation: PixelScores, threshold: int, *, count: int) -> tuple[list[int], list[int], list[int]]:
    """Row numbers of the best, the worst and the median chips by IoU, of those with building, labelled or predicted."""
    ious = evaluation.chip_ious(threshold)
    order = [int(i) for i in np.argsort(ious, kind="stable") if not np.isnan(ious[i])]
    half = min(count, len(order) // 2 or len(order))
    first = (len(order) - half) // 2
    return order[::-1][:half], order[:half], order[first : first + half]
