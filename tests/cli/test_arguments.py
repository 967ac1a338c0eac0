"""Parsers that are made from option records."""

import subprocess
import sys
from pathlib import Path

import pytest

from ocmlflow.cli import arguments
from ocmlflow.errors import InputError
from ocmlflow.pipeline import options
from ocmlflow.pipeline.options import (
    DoctorOptions,
    EvaluateOptions,
    LaunchOptions,
    PredictOptions,
    PrepareOptions,
    SendOptions,
    ServerOptions,
    TrainOptions,
)

RECORDS = [*options.STEPS.values(), DoctorOptions, ServerOptions, LaunchOptions, SendOptions]


def parse(record, line):
    return arguments.parse(record, line.split(), prog="ocmlflow x")


@pytest.mark.parametrize("record", RECORDS)
def test_help_shows_every_option_and_its_default(record, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # no name is broken at a hyphen
    with pytest.raises(SystemExit, match="0"):
        parse(record, "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert " ".join(record.__doc__.split()) in shown
    for field in options.option_fields(record):
        assert f"--{field.name} " in shown or field.about.positional
        default = "true" if field.default is True else "false" if field.default is False else field.default
        assert field.default in (None, ()) or f"(default: {default})" in shown
    assert "default: None" not in shown


def test_help_comes_without_anything_heavy():
    code = (
        "import sys\nfrom ocmlflow.cli import arguments\nfrom ocmlflow.pipeline import options\n"
        "arguments.make_parser(options.TrainOptions, prog='x').format_help()\n"
        "print(sorted({'numpy', 'requests', 'mlflow', 'keras'} & set(sys.modules)))"
    )
    root = Path(arguments.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_words_become_a_record():
    found = parse(PrepareOptions, "--catalog c --gsd 0.2 --dry_run TRUE --share 1/4 --bbox -10.8,6.2,-10.7,6.3")
    given = {"catalog": "c", "gsd": 0.2, "dry_run": True, "share": (1, 4), "bbox": (-10.8, 6.2, -10.7, 6.3)}
    assert found == options.make(PrepareOptions, **given)
    found = parse(LaunchOptions, "--step train --backend databricks -P epochs=3 --parameter catalog_weights=a=1")
    assert found.parameter == (("epochs", "3"), ("catalog_weights", "a=1"))
    assert parse(ServerOptions, "up --port 5001") == ServerOptions(action="up", port=5001)


@pytest.mark.parametrize("record", RECORDS)
def test_words_of_a_record_give_the_record(record):
    needed = {"name": "blocks", "action": "up", "step": "train", "backend": "kubernetes", "models": "x,y"}
    fields = options.option_fields(record)
    made = options.make(record, **{field.name: needed.get(field.name, "x") for field in fields if field.required})
    assert arguments.parse(record, options.words(made), prog="x") == made


@pytest.mark.parametrize(
    ("record", "given"),
    [
        (PrepareOptions, {"catalog": "c", "size": 100}),
        (PrepareOptions, {"catalog": "c", "bbox": "-1,2,-3,4"}),
        (PrepareOptions, {"catalog": "c", "folds": 3, "validation": "kam"}),
        (PrepareOptions, {"catalog": "c", "min_valid": -1}),
        (TrainOptions, {"epochs": 2, "freeze": 2}),
        (TrainOptions, {"resume": "a", "epochs": 3}),
        (EvaluateOptions, {"split": "train"}),
        (PredictOptions, {"images": "i", "output": "o", "threshold": 1.5}),
        (ServerOptions, {"action": "fly"}),
    ],
)
def test_python_and_the_command_line_refuse_the_same(record, given, capsys):
    with pytest.raises(InputError) as refused:
        options.make(record, **given)
    words = [str(given.pop("action"))] if "action" in given else []
    with pytest.raises(SystemExit, match="2"):
        arguments.parse(record, [*words, *options.words(given)], prog="ocmlflow x")
    message = f"argument {'' if words else '--'}{refused.value}"
    assert capsys.readouterr().err.splitlines()[-1] == f"ocmlflow x: error: {message}"


@pytest.mark.parametrize(
    ("record", "line", "message"),
    [
        (TrainOptions, "--epochs many", "argument --epochs: must be a whole number, got many"),
        (TrainOptions, "--epoch 3", "unrecognized arguments: --epoch 3; did you mean --epochs?"),
        (TrainOptions, "--epochs", "argument --epochs: expected one argument"),
        (TrainOptions, "--epochs --crop 32", "argument --epochs: expected one argument"),
        (EvaluateOptions, "--promote maybe", "argument --promote: must be true or false, got maybe"),
        (PrepareOptions, "", "the following arguments are required: --catalog"),
        (ServerOptions, "", "the following arguments are required: ACTION"),
        (ServerOptions, "up down", "unrecognized arguments: down"),
        (LaunchOptions, "--step train --backend kubernetes -P x", "argument --parameter: must be NAME=VALUE, got x"),
    ],
)
def test_wrong_words_end_with_status_2(record, line, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(record, line)
    assert message in capsys.readouterr().err


def test_without_words_those_of_the_process_are_read(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ocmlflow", "--epochs", "3"])
    assert arguments.parse(TrainOptions, prog="x").epochs == 3
