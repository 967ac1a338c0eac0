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
    parts = [part.strip() for part in name.split("+")]
    unknown = [part for part in parts if part not in LOSSES]
    if unknown:
        raise InputError(f"there is no loss '{unknown[0]}'; there are: {', '.join(LOSSES)}, and sums such as bce+dice")

    def total(logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        return sum(LOSSES[part](logits, label, valid) for part in parts)

    return total


def bce(logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy, mean over the valid pixels of each chip."""
    return _mean(_cross_entropy(logits, label), valid)


def focal(logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Focal loss (arXiv:1708.02002) of exponent 2 without class weights, mean over the valid pixels of each chip."""
    miss = ops.abs(label - ops.sigmoid(logits))  # one less the probability of what is true
    return _mean(miss**2 * _cross_entropy(logits, label), valid)


def jaccard(logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Lovász hinge (arXiv:1705.08790, section 3.1) of each chip's valid pixels: a convex bound of one less the IoU."""
    pixels = (ops.shape(logits)[0], -1)
    logits, label, valid = (ops.reshape(values, pixels) for values in (logits, label, valid))
    # What is not valid comes last, behind every pixel that is right, and costs nothing there.
    errors = ops.where(valid > 0, 1.0 - logits * (2.0 * label - 1.0), -1e9)
    order = ops.argsort(-errors, axis=1)
    errors = ops.take_along_axis(errors, order, axis=1)
    label = ops.take_along_axis(label * valid, order, axis=1)
    building = ops.sum(label, axis=1, keepdims=True)
    found = ops.cumsum(label, axis=1)
    union = building + ops.cumsum(1.0 - label, axis=1)
    loss = 1.0 - (building - found) / union
    steps = ops.concatenate([loss[:, :1], loss[:, 1:] - loss[:, :-1]], axis=1)
    return ops.sum(ops.relu(errors) * ops.stop_gradient(steps), axis=1)


def dice(logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """One less the Dice coefficient (arXiv:1606.04797) of each chip's valid pixels, 0..1."""
    probability = ops.sigmoid(logits) * valid
    label = label * valid
    both = ops.sum(probability * label, _AXES)
    either = ops.sum(probability, _AXES) + ops.sum(label, _AXES)
    # One pixel's worth of smoothing: an empty chip costs what is falsely called building, and 0 when nothing is.
    return 1.0 - (2.0 * both + 1.0) / (either + 1.0)


LOSSES: dict[str, Loss] = {"bce": bce, "dice": dice, "focal": focal, "jaccard": jaccard}


def _cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    # log(1 + exp(-|z|)) + max(z, 0) - z * y: no overflow, whatever the logit.
    return ops.log1p(ops.exp(-ops.abs(logits))) + ops.relu(logits) - logits * label


def _mean(pixel: Tensor, valid: Tensor) -> Tensor:
    return ops.sum(pixel * valid, _AXES) / ops.maximum(ops.sum(valid, _AXES), 1.0)
