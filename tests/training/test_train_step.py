import numpy as np
import pytest

from ocmlflow.training.train_step import PooledScores


def test_pooled_scores_are_counts_added_up():
    scores = PooledScores()
    draw = np.random.default_rng(0)
    tp = fp = fn = 0
    for count in (5, 40):
        logits = draw.normal(size=(1, count, 1, 1)).astype(np.float32)
        label, valid = draw.integers(0, 2, (2, 1, count, 1, 1)).astype(np.float32)
        scores.update_state(logits, label * valid, valid)
        predicted, truth, counted = logits >= 0, label == 1, valid == 1
        tp += (predicted & truth & counted).sum()
        fp += (predicted & ~truth & counted).sum()
        fn += (~predicted & truth & counted).sum()
    found = {name: float(value) for name, value in scores.result().items()}
    assert found == pytest.approx({"iou": tp / (tp + fp + fn), "precision": tp / (tp + fp), "recall": tp / (tp + fn)})
    scores.reset_state()
    assert float(scores.result()["iou"]) == 0
