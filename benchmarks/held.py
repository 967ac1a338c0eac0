"""What the benchmarks of training share: places held out, and the IoU of each."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ocmlflow.chips import chip_set, labels
from ocmlflow.chips.chip_set import ChipSet
from ocmlflow.evaluation import metrics
from ocmlflow.probability import to_percent


def holding_out(made: ChipSet, places: str | None) -> ChipSet:
    """The chips of these places, with commas between them, to score, and all others to train on; or as they are."""
    if places is None:
        return made
    unknown = set(places.split(",")) - set(made.index.place)
    if unknown:
        raise SystemExit(
            f"--held: no chips of {', '.join(sorted(unknown))}; of {', '.join(sorted(set(made.index.place)))}"
        )
    held = made.index.place.isin(places.split(","))
    return replace(made, index=made.index.assign(split=np.where(held, "validation", "train")))


def scored(made: ChipSet, probability: Callable[[np.ndarray], np.ndarray]) -> str:
    """Cells of a table: pooled IoU of the validation chips, by place and all, at 0.5 and at the best threshold.

    `probability` takes an image (height, width, 3) uint8 and gives (height, width) float32.
    """
    found: dict[str, np.ndarray] = {}
    for row in made.select("validation").itertuples():
        image, label = chip_set.read(made.folder, row)
        counted = metrics.histogram(to_percent(probability(image)), *labels.decode(label))
        found[row.place] = counted + found.get(row.place, 0)
    return " | ".join(f"{place} {_iou(total)}" for place, total in {**found, "all": sum(found.values())}.items())


def _iou(total: np.ndarray) -> str:
    half, best = (metrics.counts(total, threshold=at).iou for at in (50, metrics.best_threshold(total)))
    return f"{half:.3f} / {best:.3f}"
