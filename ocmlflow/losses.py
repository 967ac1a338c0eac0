"""Label and logits, to the loss of each chip.

All arrays are (batch, height, width, 1) float32: logits, label of 0 and 1, valid of 0 and 1. What is not valid takes
no part; a chip with nothing valid has loss 0.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from keras import ops

from ocmlflow.errors import InputError

Tensor: TypeAlias = Any  # of whichever backend
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

_AXES = (1, 2, 3)


def named(name: str) -> Loss:
    """The loss of that name, or the sum of several, such as `bce+dice`: (logits, label, valid) to (batch,)."""
    parts = name.split("+")
    unknown = [part for part in parts if part not in LOSSES]
    if unknown:
        raise InputError(f"there is no loss {unknown[0]}; there are: {', '.join(LOSSES)}, and sums such as bce+dice")

    def total(logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        return sum(LOSSES[part](logits, label, valid) for part in parts)

    return total


def bce(logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy, mean over the valid pixels of each chip."""
    # log(1 + exp(-|z|)) + max(z, 0) - z * y: no overflow, whatever the logit.
    pixel = ops.log1p(ops.exp(-ops.abs(logits))) + ops.relu(logits) - logits * label
    return ops.sum(pixel * valid, _AXES) / ops.maximum(ops.sum(valid, _AXES), 1.0)


def dice(logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """One less the Dice coefficient (arXiv:1606.04797) of each chip's valid pixels, 0..1."""
    probability = ops.sigmoid(logits) * valid
    label = label * valid
    both = ops.sum(probability * label, _AXES)
    either = ops.sum(probability, _AXES) + ops.sum(label, _AXES)
    # One pixel's worth of smoothing: an empty chip costs what is falsely called building, and 0 when nothing is.
    return 1.0 - (2.0 * both + 1.0) / (either + 1.0)


LOSSES: dict[str, Loss] = {"bce": bce, "dice": dice}
