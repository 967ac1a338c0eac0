"""Segmentation losses of each chip: cross-entropy, focal, Dice, Lovász, and sums of them.

A loss takes logits, label (0 or 1) and valid (0 or 1), each (batch, height, width, 1) float32, and gives (batch,)
float32. Pixels that are not valid take no part; a chip without a valid pixel has loss 0.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from keras import ops

from ocmlflow.errors import InputError

Tensor: TypeAlias = Any  # of whichever backend
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

_AXES = (1, 2, 3)


def named(name: str) -> Loss:
    """The loss of this name, or the sum of several, such as `bce+dice`; InputError for an unknown name."""
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
    miss = ops.abs(label - ops.sigmoid(logits))  # 1 minus the probability of the true class
    return _mean(miss**2 * _cross_entropy(logits, label), valid)


def jaccard(logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Lovász hinge (arXiv:1705.08790, section 3.1) of each chip's valid pixels: a convex bound of 1 - IoU."""
    pixels = (ops.shape(logits)[0], -1)
    logits, label, valid = (ops.reshape(values, pixels) for values in (logits, label, valid))
    # Invalid pixels sort last, behind every correct one, and cost nothing there.
    errors = ops.where(valid > 0, 1.0 - logits * (2.0 * label - 1.0), -1e9)
    order = ops.argsort(-errors, axis=1)
    errors = ops.take_along_axis(errors, order, axis=1)
    label = ops.take_along_axis(label * valid, order, axis=1)
    building = ops.sum(label, axis=1, keepdims=True)
    missed = ops.cumsum(label, axis=1)
    union = building + ops.cumsum(1.0 - label, axis=1)
    # 1 - IoU where the first pixels in this order are wrong and the rest right; its steps weigh the errors.
    loss = 1.0 - (building - missed) / union
    steps = ops.concatenate([loss[:, :1], loss[:, 1:] - loss[:, :-1]], axis=1)
    return ops.sum(ops.relu(errors) * ops.stop_gradient(steps), axis=1)


def dice(logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """1 minus the Dice coefficient (arXiv:1606.04797) of each chip's valid pixels, 0..1."""
    probability = ops.sigmoid(logits) * valid
    label = label * valid
    both = ops.sum(probability * label, _AXES)
    either = ops.sum(probability, _AXES) + ops.sum(label, _AXES)
    # Smoothed by one pixel: a chip without buildings has loss 0 if none is predicted, and more for false ones.
    return 1.0 - (2.0 * both + 1.0) / (either + 1.0)


LOSSES: dict[str, Loss] = {"bce": bce, "dice": dice, "focal": focal, "jaccard": jaccard}
"""Losses by name."""


def _cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    # log(1 + exp(-|z|)) + max(z, 0) - z * y: does not overflow for any logit.
    return ops.log1p(ops.exp(-ops.abs(logits))) + ops.relu(logits) - logits * label


def _mean(pixel: Tensor, valid: Tensor) -> Tensor:
    return ops.sum(pixel * valid, _AXES) / ops.maximum(ops.sum(valid, _AXES), 1.0)
