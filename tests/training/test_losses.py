import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from ocmlflow.errors import InputError
from ocmlflow.training import losses

NAMES = ["bce", "dice", "focal", "jaccard", "bce+dice"]


def loss(name: str, logits, label, valid=None) -> np.ndarray:
    """The loss of chips that are given as (batch, pixels)."""
    valid = np.ones_like(label) if valid is None else valid
    shaped = [np.asarray(values, np.float32)[:, np.newaxis, :, np.newaxis] for values in (logits, label, valid)]
    return ops.convert_to_numpy(losses.named(name)(*shaped))


def test_cross_entropy_of_a_coin():
    # log 2 for not knowing; log(1 + e^-2) for being right by 2.
    assert loss("bce", [[0, 0]], [[0, 1]]) == pytest.approx(np.log(2))
    assert loss("bce", [[2, -2]], [[1, 0]]) == pytest.approx(np.log(1 + np.exp(-2)))


def test_dice_of_four_pixels():
    # Probability 1/2 all over, two pixels building: 1 - (2 * 1 + 1) / (2 + 2 + 1).
    assert loss("dice", [[0, 0, 0, 0]], [[1, 1, 0, 0]]) == pytest.approx(2 / 5)
    assert loss("dice", [[99, -99]], [[1, 0]]) == pytest.approx(0, abs=1e-6)


def test_focal_loss_of_one_pixel():
    # Probability 3/4 of what is true: (1/4)^2 times the cross-entropy.
    assert loss("focal", [[np.log(3)]], [[1]]) == pytest.approx(np.log(4 / 3) / 16)


@given(st.integers(0, 1000))
def test_lovasz_of_hard_answers_is_the_jaccard_loss(seed):
    # At the corners, where every error is 0 or 2, the surrogate is twice what it stands for.
    predicted, label, valid = np.random.default_rng(seed).integers(0, 2, (3, 1, 12))
    seen = valid == 1
    union = ((predicted | label) & valid).sum()
    expected = ((predicted != label) & seen).sum() / union if union else 0
    assert loss("jaccard", 2.0 * predicted - 1, label, valid) == pytest.approx(2 * expected, abs=1e-5)


def test_a_sum_is_the_sum_and_an_unknown_name_is_refused():
    chips = [[0.3, -2, 5]], [[1, 0, 0]]
    assert loss("bce+dice", *chips) == pytest.approx(loss("bce", *chips) + loss("dice", *chips))
    with pytest.raises(InputError, match="no loss 'tversky'; there are: bce, dice, focal, jaccard"):
        losses.named("bce+tversky")


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 1000))
def test_what_is_not_valid_takes_no_part(name, seed):
    draw = np.random.default_rng(seed)
    logits, other = draw.normal(size=(2, 3, 9)) * 5
    label, otherwise, valid = draw.integers(0, 2, (3, 3, 9))
    changed = np.where(valid, logits, other), np.where(valid, label, otherwise)
    np.testing.assert_allclose(loss(name, *changed, valid), loss(name, logits, label, valid), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_each_chip_has_its_own_loss(name):
    logits, label = np.random.default_rng(0).normal(size=(3, 9)), np.eye(3, 9)
    together = loss(name, logits, label)
    assert together.shape == (3,)
    alone = [loss(name, logits[n : n + 1], label[n : n + 1])[0] for n in range(3)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_no_logit_is_too_large(name):
    found = loss(name, [[100, -100], [100, -100]], [[1, 0], [0, 1]])
    assert np.isfinite(found).all()
    assert found[0] == pytest.approx(0, abs=1e-4)
    assert found[1] >= 0.5


@pytest.mark.parametrize("name", NAMES)
def test_a_chip_of_nothing_costs_nothing(name):
    assert loss(name, [[3, -3]], [[1, 0]], [[0, 0]]) == pytest.approx(0)
    assert np.isfinite(loss(name, [[3, -3]], [[0, 0]]))
