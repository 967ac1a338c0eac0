"""The project's files agree with one another."""

import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import parsed
from mlflow import MlflowClient

ROOT = Path(__file__).parent.parent
VERBS = ("prepare", "train", "evaluate", "compare", "protocol", "predict", "main")
TOOLS = ("doctor", "launch", "send", "server")
"""What is run without `mlflow run`, which needs a tracking server first, and has no run of its own."""
VALUES = {"name": "blocks", "models": "x,y"}
"""Of parameters that do not take any word."""
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())


def test_conda_environment_is_that_of_the_package():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    assert conda == ["python=3.11", "pip", {"pip": dependencies}]


def test_every_verb_is_an_entry_point():
    assert set(PROJECT["entry_points"]) == set(VERBS)
    assert {path.stem for path in (ROOT / "entrypoints").glob("[a-z]*.py")} == {*VERBS, *TOOLS}


@pytest.mark.parametrize("verb", VERBS)
def test_mlproject_declares_what_cannot_be_left_out(verb, capsys):
    entry = PROJECT["entry_points"][verb]
    declared = entry.get("parameters", {})
    assert entry["command"] == " ".join([f"python -m entrypoints.{verb}", *(f"--{n} {{{n}}}" for n in declared)])
    words = [word for name in declared for word in (f"--{name}", VALUES.get(name, "x"))]
    parsed(verb, words)  # complete
    for left_out in declared:
        words = [word for name in declared if name != left_out for word in (f"--{name}", VALUES.get(name, "x"))]
        with pytest.raises(SystemExit):
            parsed(verb, words)
        assert left_out in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        ("prepare", "--catalog x --gsd 0", "--gsd: must be 0.01 to 10, got 0"),
        ("prepare", "--catalog x --size 500", "--size: must be a multiple of 32, got 500"),
        ("prepare", "--catalog x --stride 384", "--stride: must divide the size of 512, because held-out ground"),
        ("prepare", "--catalog x --min_valid 2", "--min_valid: must be 0 to 1, got 2"),
        ("prepare", "--catalog x --skip_unreadable yes", "--skip_unreadable: must be true or false, got yes"),
        ("prepare", "--catalog x --folds 3 --test kam", "--folds: each fold is held out in turn, leave out test"),
        ("prepare", "--catalog x --folds 3 --validation kam", "is held out in turn, leave out validation; got folds=3"),
        ("prepare", "--catalog x --share 2/2", "--share: must be I/N with I from 0 to N - 1, such as 0/4, got 2/2"),
        ("train", "--epochs 0", "--epochs: must be at least 1, got 0"),
        ("train", "--epochs many", "--epochs: must be a whole number, got many"),
        ("train", "--crop 100", "--crop: must be a multiple of 32, got 100"),
        ("train", "--learning_rate -1", "--learning_rate: must be 1e-08 to 1, got -1"),
        ("train", "--epoch 3", "unrecognized arguments: --epoch 3"),
        ("train", "--seed 4294967296", "--seed: must be 0 to 4294967295, got 4294967296"),
        ("main", "--seed 4294967296", "--seed: must be 0 to 4294967295"),
        ("prepare", "--catalog x --seed 4294967296", "--seed: must be 0 to 4294967295"),
        ("protocol", "--catalog x --name blocks --seed 4294967296", "--seed: must be 0 to 4294967295"),
        ("evaluate", "--promote maybe", "--promote: must be true or false, got maybe"),
        ("predict", "--images x --output y --threshold 1", "--threshold: must be 0.01 to 0.99, got 1"),
        ("predict", "--images x --output y --margin 1009", "--margin: must be at most 576 at a size of 1184"),
        ("evaluate", "--split train", "--split: must be validation or test, got train"),
        (
            "protocol",
            "--catalog x --name mine",
            "--name: must be blocks, leave-one-place-out or first-benchmark, got mine",
        ),
        (
            "protocol",
            "--catalog x --name blocks --places a",
            "--places: only for leave-one-place-out, got it for blocks",
        ),
        (
            "protocol",
            "--catalog x --name blocks --train fold=1",
            "must be NAME=VALUE of what the protocol does not set",
        ),
        ("protocol", "--catalog x --name blocks --train loss", "itself, got loss"),
        ("protocol", "--catalog x --name blocks --train crop=100", "--train: crop: must be a multiple of 32, got 100"),
        ("predict", "--images x --output y --share 2/2", "must be I/N with I from 0 to N - 1, such as 0/4, got 2/2"),
        ("main", "--catalog x", "--catalog: needs validation and images beside it"),
    ],
)
def test_parameters_out_of_range_are_refused_at_once(verb, words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        parsed(verb, words.split())
    assert message in capsys.readouterr().err


def test_paths_that_are_handed_on_mean_the_folder_where_they_were_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path)
    words = "--catalog a,b/catalog.json --validation kam --images b/*.tif,s3://c/d.tif, --output o,p"
    args = parsed("main", words.split())
    assert args.catalog == f"{here}/a,{here}/b/catalog.json"
    assert args.images == f"{here}/b/*.tif,s3://c/d.tif,"  # not the folder itself
    assert (args.output, args.work) == (f"{here}/o,p", f"{here}/.ocmlflow")
    args = parsed("protocol", ["--name", "blocks", "--catalog", "a, s3://b"])
    assert (args.catalog, args.work) == (f"{here}/a,s3://b", f"{here}/.ocmlflow")


def test_a_users_mistake_ends_in_one_line_and_status_1(tmp_path):
    verb = subprocess.run(
        [sys.executable, "-m", "entrypoints.prepare", "--catalog", "nowhere/catalog.json"],
        cwd=ROOT,
        env={**_environment(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert verb.returncode == 1
    assert verb.stderr.strip().splitlines()[-1].startswith("error: no STAC catalogue at nowhere/catalog.json")
    assert "Traceback" not in verb.stderr


ENDED = """
import os, sys, threading
import mlflow
from ocmlflow.cli import console
from ocmlflow.tracking import runs

def main():
    with runs.run("train", {}) as run:
        print(run.info.run_id, flush=True)
        os.kill(os.getpid(), int(sys.argv[1]))
        threading.Event().wait(60)

console.run(main)
"""


@pytest.mark.filterwarnings("default")  # MLflow's libraries warn of one another
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_verb_that_is_asked_to_end_ends_its_run(tmp_path, how):
    environment = {**_environment(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ENDED, str(int(how))]
    verb = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert verb.returncode == 128 + how, verb.stderr
    assert "Traceback" not in verb.stderr
    assert verb.stderr.endswith("interrupted\n") == (how == signal.SIGINT)
    run = MlflowClient(environment["MLFLOW_TRACKING_URI"]).get_run(verb.stdout.split()[0])
    assert run.info.status == "KILLED"
    assert run.data.tags["mlflow.note.content"].startswith("**Interrupted**")


def test_readme_and_ci_run_the_same_test_command():
    commands = re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 2
    found = subprocess.run(
        ["bash", "-c", re.search(r"^command=\$\((.*)\)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)[1]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == commands[1]


def test_pre_commit_runs_the_linters_of_ci():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    hooks = [hook["entry"] for hook in repository["hooks"] if hook["language"] == "system"]
    assert hooks == re.findall(r"^(?:ruff|mypy) .*$", (ROOT / ".ci/run").read_text(), re.MULTILINE)


def _environment(folder):
    import os

    # What other tests told MLflow in this process, it keeps in the environment.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return {**kept, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}


def test_compose_starts_the_three_on_loopback_with_secrets_from_outside():
    text = (ROOT / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    assert set(services) == {"mlflow", "postgresql", "s3"}
    for service in services.values():
        assert service["healthcheck"]["test"][0] == "CMD"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert set(yaml.safe_load(text)["volumes"]) == {"postgresql", "s3"}
    for name, value in re.findall(r"^ +(\w*(?:PASSWORD|KEY)\w*): (.*)$", text, re.MULTILINE):
        assert re.fullmatch(r"\$\{\w+:\?see docs/server\.md\}", value), name
    assert "${MLFLOW_ALLOWED_ORIGINS:-" in services["mlflow"]["environment"]["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"]
    # What is tested without containers is what the containers run.
    script = (ROOT / "ocmlflow" / "server" / "processes.py").read_text()
    for words in (services["s3"]["command"], services["mlflow"]["command"]):
        flags = {word.partition("=")[0] for word in words.split() if word.startswith("-")}
        assert all(flag in script for flag in flags - {"-bucket", "-dir"}), flags
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    server = [*dependencies["dependencies"], *dependencies["optional-dependencies"]["server"]]
    image = re.findall(r'"([^" ]+[<>=][^" ]*)"', (ROOT / "backends" / "server" / "Dockerfile").read_text())
    assert len(image) == 4
    assert set(image) <= set(server)
