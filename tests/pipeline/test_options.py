"""Option records: what they refuse, and what comes back from text."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocmlflow.errors import InputError
from ocmlflow.pipeline import option_values, options
from ocmlflow.pipeline.option_fields import GROUPS
from ocmlflow.pipeline.options import (
    CompareOptions,
    DoctorOptions,
    EvaluateOptions,
    LaunchOptions,
    MainOptions,
    PredictOptions,
    PrepareOptions,
    ProtocolOptions,
    SendOptions,
    ServerOptions,
    TrainOptions,
)
from ocmlflow.prediction import ground_outlines

NEEDED = {
    PrepareOptions: {"catalog": "c"},
    TrainOptions: {},
    EvaluateOptions: {},
    CompareOptions: {"models": "a,b"},
    ProtocolOptions: {"name": "blocks", "catalog": "c"},
    PredictOptions: {"images": "i", "output": "o"},
    MainOptions: {},
    DoctorOptions: {},
    ServerOptions: {"action": "status"},
    LaunchOptions: {"step": "train", "backend": "kubernetes"},
    SendOptions: {},
}
RECORDS = list(NEEDED)


def texts(parameters):
    """Parameters as MLflow keeps them, which are texts, and None is not logged."""
    return {name: str(value) for name, value in parameters.items() if value is not None}


def refusal(record, **given):
    with pytest.raises(InputError) as refused:
        options.make(record, **NEEDED[record] | given)
    return str(refused.value)


@pytest.mark.parametrize("record", RECORDS)
def test_every_option_is_described(record):
    assert record.__doc__.endswith(".")
    for field in options.option_fields(record):
        assert field.about.group in GROUPS
        assert field.about.help.endswith(".")
        if field.optional and field.default is None:
            assert "Without it, " in field.about.help  # what happens, where no default says it


@pytest.mark.parametrize("record", RECORDS)
def test_defaults_come_back_from_what_is_logged(record):
    made = options.make(record, **NEEDED[record])
    again = options.from_text(
        record, texts(options.parameters(made)) if record is not LaunchOptions else NEEDED[record]
    )
    assert options.parameters(again) == options.parameters(made)
    assert dataclasses.replace(made) == made == pickle.loads(pickle.dumps(made))
    assert options.changed(made) == {name: getattr(made, name) for name in NEEDED[record]}


def test_what_is_logged_reads_back_with_its_type():
    given = {"bbox": (-10.8, 6.2, -10.7, 6.3), "share": (0, 4), "buffer_m": 1, "dry_run": True, "test": 0.2}
    made = options.make(PrepareOptions, catalog=["a", Path("b/c.json")], **given)
    assert options.parameters(made) == vars(made) | {"stride": 512, "validation": "0.2"}
    assert texts(options.parameters(made))["bbox"] == "(-10.8, 6.2, -10.7, 6.3)"
    again = options.from_text(PrepareOptions, texts(options.parameters(made)))
    assert dataclasses.replace(again, stride=None, validation=None) == made
    assert (again.catalog, again.buffer_m, again.test) == ("a,b/c.json", 1.0, "0.2")
    assert isinstance(again.buffer_m, float)


def test_none_reads_back_where_none_is_a_value():
    assert options.from_text(TrainOptions, {"patience": "None", "chips": "None"}) == TrainOptions()
    with pytest.raises(InputError, match="epochs: must be a whole number, got None"):
        options.from_text(TrainOptions, {"epochs": "None"})


def test_what_predict_writes_by_default_is_what_is_scored():
    predict = options.make(PredictOptions, images="i", output="o")
    evaluate = options.make(EvaluateOptions)
    assert predict.outline == ground_outlines.OUTLINES[0]
    assert predict.separate
    assert predict.min_area_m2 == evaluate.min_area_m2
    for outline in ground_outlines.OUTLINES:
        assert options.make(PredictOptions, images="i", output="o", outline=outline).outline == outline


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "epochs": st.integers(50, 10**6),
            "learning_rate": st.floats(1e-8, 1),
            "freeze": st.integers(0, 49),
            "patience": st.none() | st.integers(1, 99),
            "loss": st.text(st.characters(codec="utf-8")),
            "precision": st.sampled_from(["float32", "bfloat16"]),
            "seed": st.integers(0, 2**32 - 1).map(np.uint32),
            "zoom": st.floats(1, 2).map(np.float64),
        },
    )
)
def test_a_record_goes_through_text_and_back(given):
    made = options.make(TrainOptions, **{"epochs": 50} | given)
    assert options.from_text(TrainOptions, texts(options.parameters(made))) == made
    words = options.words(made)
    assert options.from_text(TrainOptions, dict(zip([w[2:] for w in words[::2]], words[1::2], strict=True))) == made


@pytest.mark.parametrize(
    ("record", "given", "message"),
    [
        (PrepareOptions, {"size": 100}, "size: must be a multiple of 32, got 100"),
        (PrepareOptions, {"gsd": 0}, "gsd: must be 0.01 to 10, got 0"),
        (PrepareOptions, {"gsd": float("nan")}, "gsd: must be 0.01 to 10, got nan"),
        (PrepareOptions, {"collar_m2": float("inf")}, "collar_m2: must be at least 0, got inf"),
        (PrepareOptions, {"collar_m2": 10**400}, "collar_m2: must be at least 0, got 1000"),
        (PrepareOptions, {"stride": 384}, "stride: must divide the size of 512, because held-out ground"),
        (PrepareOptions, {"folds": 3, "test": "kam"}, "folds: each fold is held out in turn, leave out test"),
        (
            PrepareOptions,
            {"bbox": (1, 2, 3)},
            "bbox: must be four numbers, west,south,east,north in degrees, got (1, 2, 3)",
        ),
        (PrepareOptions, {"bbox": (3, 0, 1, 1)}, "bbox: must have west < east and south < north"),
        (PrepareOptions, {"share": (2, 2)}, "share: must be I/N with I from 0 to N - 1, such as 0/4, got (2, 2)"),
        (PrepareOptions, {"catalog": ["a,b"]}, "catalog: must be names without a comma, got 'a,b'"),
        (PrepareOptions, {"catalog": 3}, "catalog: must be a path or an address, got 3"),
        (PrepareOptions, {"validation": True}, "validation: must be a path or an address, got True"),
        (TrainOptions, {"epochs": "30"}, "epochs: must be a whole number, got '30'"),
        (TrainOptions, {"epochs": True}, "epochs: must be a whole number, got True"),
        (TrainOptions, {"epochs": 3.0}, "epochs: must be a whole number, got 3.0"),
        (TrainOptions, {"epochs": None}, "epochs: must be a whole number, got None"),
        (TrainOptions, {"augment": True}, "augment: must be a number, got True"),
        (TrainOptions, {"epoch": 3}, "epoch: train has no such option; did you mean epochs?"),
        (TrainOptions, {"resume": "a", "epochs": 3, "zoom": 1}, "that it was started with, leave out epochs, zoom"),
        (TrainOptions, {"init": "a", "encoder": "b", "weights": "none"}, "is trained, leave out encoder, weights"),
        (TrainOptions, {"freeze": 1, "weights": "none"}, "freeze: an encoder of random weights has to learn"),
        (TrainOptions, {"freeze": 30}, "freeze: the encoder would learn in none of the 30 epochs"),
        (EvaluateOptions, {"promote": "false"}, "promote: must be true or false, got 'false'"),
        (EvaluateOptions, {"promote": 0}, "promote: must be true or false, got 0"),
        (PredictOptions, {"margin": 1009}, "margin: must be at most 576 at a size of 1184, got 1009"),
        (PredictOptions, {"tta": "x"}, "tta: must be none, flips or d4, got x"),
        (MainOptions, {"catalog": "x"}, "catalog: needs validation and images beside it"),
        (ProtocolOptions, {"places": "a"}, "places: only for leave-one-place-out, got it for blocks"),
        (ProtocolOptions, {"train": {"fold": 1}}, "train: must be NAME=VALUE of what the protocol does not set itself"),
        (ProtocolOptions, {"train": "loss"}, "does not set itself, got loss"),
        (ProtocolOptions, {"train": "crop=100"}, "train: crop: must be a multiple of 32, got 100"),
        (ProtocolOptions, {"epochs": 2, "train": {"freeze": 2}}, "train: freeze: the encoder would learn in none"),
        (LaunchOptions, {"parameter": {"epochs": 0}}, "parameter: epochs: must be at least 1, got 0"),
        (LaunchOptions, {"parameter": ["a-b=3"]}, "parameter: must be NAME=VALUE, got a-b=3"),
        (LaunchOptions, {"step": "prepare"}, "parameter: catalog: is needed. STAC file"),
        (ServerOptions, {"port": 80}, "port: must be 1024 to 65535, got 80"),
    ],
)
def test_what_cannot_work_is_refused_by_name(record, given, message):
    assert message in refusal(record, **given)


def test_a_missing_option_is_named():
    with pytest.raises(InputError, match=r"output: is needed\. Folder or s3"):
        options.make(PredictOptions, images="x")


def test_a_changed_copy_takes_its_derived_values_anew():
    made = PrepareOptions(catalog="c")
    assert (made.effective_stride, made.effective_validation) == (512, "0.2")
    assert dataclasses.replace(made, size=256).effective_stride == 256
    assert dataclasses.replace(made, folds=3).effective_validation is None


def test_paths_that_are_handed_on_mean_the_folder_where_they_were_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = "b/*.tif,s3://c/d.tif,"  # the empty part is not the folder itself
    made = options.make(MainOptions, catalog=["a", Path("b/c.json")], validation="kam", images=images, output="o,p")
    assert made.catalog == f"{tmp_path}/a,{tmp_path}/b/c.json"
    assert made.images == f"{tmp_path}/b/*.tif,s3://c/d.tif,"
    assert (made.output, made.work) == (f"{tmp_path}/o,p", f"{tmp_path}/.ocmlflow")
    monkeypatch.chdir("/")
    assert dataclasses.replace(made) == made
    assert options.make(ProtocolOptions, name="blocks", catalog="a, s3://b").catalog == "/a,s3://b"


def test_a_protocol_tells_train_what_it_was_told():
    made = options.make(ProtocolOptions, name="blocks", catalog="c", train="loss=dice,crop=512,", epochs=3)
    assert made.training("m") == {"loss": "dice", "crop": "512", "seed": 0, "name": "m", "epochs": 3}


def test_words_hold_what_differs_from_the_defaults():
    assert options.words(TrainOptions(epochs=30, augment=0)) == ["--augment", "0.0"]
    assert options.words(EvaluateOptions(promote=False)) == ["--promote", "false"]
    assert options.words(options.make(ServerOptions, folder="f", action="up")) == ["up", "--folder", "f"]
    launch = options.make(LaunchOptions, step="train", backend="kubernetes", parameter={"epochs": 3, "loss": "dice"})
    assert options.words(launch)[4:] == ["--parameter", "epochs=3", "--parameter", "loss=dice"]
    assert options.words({"a": 1, "b": None, "c": False}) == ["--a", "1", "--c", "false"]


@pytest.mark.parametrize("value", ["0/4", "(0, 4)", (0, 4), [0, 4]])
def test_a_share_of_the_work_is_read(value):
    assert option_values.work_share(value) == (0, 4)


@pytest.mark.parametrize(
    "name", ["a/b", "a:b", "a@b", "it's", "a,b", "a#b", "a?b", "50%", "a\nb", " a", "", "..", "a" * 251]
)
@pytest.mark.parametrize("record", [TrainOptions, MainOptions, SendOptions])
def test_a_model_name_that_some_server_or_address_refuses_is_refused_here(record, name):
    assert refusal(record, name=name, **({"run": "r"} if record is SendOptions else {})).startswith(
        "name: must be a name"
    )


def test_a_name_to_send_under_needs_its_run():
    assert refusal(SendOptions, name="other") == "name: names the model of one run, give run too"
