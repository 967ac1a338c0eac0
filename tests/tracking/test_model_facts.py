"""Facts of a model are stored as metadata and read back; missing and wrong ones are refused by name."""

import json

import pytest

from ocmlflow.errors import InputError
from ocmlflow.tracking import model_facts
from ocmlflow.tracking.model_facts import ChipSplit, ModelFacts

FACTS = ModelFacts(
    gsd=0.1, multiple=32, run="r", chips="c", trained_on=(ChipSplit("c", 1), ChipSplit("b", None)), fold=1
)
STORED = {
    "gsd": 0.1,
    "multiple": 32,
    "run": "r",
    "chips": "c",
    "fold": 1,
    "trained_on": [{"chips": "c", "fold": 1}, {"chips": "b", "fold": None}],
}


def test_facts_are_stored_as_before_and_read_back():
    assert model_facts.to_metadata(FACTS) == STORED
    assert model_facts.from_metadata(json.loads(json.dumps(STORED)), model="towns version 1") == FACTS


def test_metadata_of_a_complete_training_is_read():
    """What `train` of version 0.1.0 and later stores; a GSD of 1 m is a whole number in JSON."""
    words = {"data": "d", "validation": "kam", "architecture": "unet", "encoder": "resnet18", "init": "towns version 1"}
    facts = model_facts.from_metadata({**STORED, **words, "gsd": 1, "other": [1]}, model="towns version 2")
    assert (facts.gsd, facts.validation, facts.encoder, facts.init) == (1.0, "kam", "resnet18", "towns version 1")
    assert isinstance(facts.gsd, float)
    assert model_facts.to_metadata(facts) == {**STORED, **words, "gsd": 1.0}


@pytest.mark.parametrize("name", ["gsd", "multiple", "run", "chips", "trained_on"])
def test_a_missing_fact_is_refused_by_name(name):
    metadata = {key: value for key, value in STORED.items() if key != name}
    with pytest.raises(InputError, match=rf"model models:/towns/1 lacks {name}: .* train it again"):
        model_facts.from_metadata(metadata, model="models:/towns/1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gsd", "0.1"),
        ("gsd", 0),
        ("gsd", float("nan")),
        ("multiple", 32.0),
        ("multiple", True),
        ("run", None),
        ("chips", 7),
        ("fold", "1"),
        ("trained_on", "c"),
        ("trained_on", ["c"]),
        ("trained_on", [{"chips": "c"}, {"fold": 1}]),
        ("encoder", 5),
    ],
)
def test_a_fact_of_the_wrong_type_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=rf"model models:/towns/1 has {name}=.* is needed"):
        model_facts.from_metadata({**STORED, name: value}, model="models:/towns/1")
