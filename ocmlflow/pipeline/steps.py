"""Runs steps as child runs, each in a process of its own; finished ones with the same inputs are reused."""

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ocmlflow
from ocmlflow.errors import InputError
from ocmlflow.pipeline import prepare, train
from ocmlflow.pipeline.options import PrepareOptions, TrainOptions, from_text, words
from ocmlflow.tracking import child_runs, chip_artifacts, registry, run_search

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learned:
    """What `prepare` and `train` made."""

    chips: str
    """Run id of `prepare`."""
    training: str
    """Run id of `train`."""
    model: str
    """Address of the new version."""


def learn(cutting: Mapping[str, object], learning: Mapping[str, object], *, title: str = "") -> Learned:
    """Chips and a model made with these options of `prepare` and `train`, by new or by finished runs."""
    chips = step("prepare", cutting, key=prepare.key(from_text(PrepareOptions, cutting)), title=title)
    learning = {"chips": chips, **learning}
    key = train.key(from_text(TrainOptions, learning), chip_artifacts.digest(chips))
    training, name = step("train", learning, key=key, title=title), str(learning["name"])
    return Learned(chips, training, f"models:/{name}/{registry.find_version(training, name)}")


def step(verb: str, given: Mapping[str, object], *, key: str | None = None, title: str = "") -> str:
    """Run id of a step: of a finished run with the same key, else of a new child run of its own process.

    The new run is named after the verb and the title. InputError where the step fails.
    """
    finished = run_search.newest_finished(verb, key=key) if key else None
    if finished:
        log.info("%s: run %s did the same already", verb, finished.info.run_id)
        return str(finished.info.run_id)
    run_id = child_runs.create_child(verb, title)
    status = subprocess.run(
        [sys.executable, "-m", "ocmlflow", verb, *words(given)], env=_environment(run_id)
    ).returncode
    if status:
        child_runs.end_if_running(run_id, "FAILED")  # a process that was killed could not
        raise InputError(f"step {verb} failed; its own message stands above")
    made = run_search.newest_finished(verb, key=key) if key else None  # a step may continue a run that was interrupted
    return str(made.info.run_id if made else run_id)


def _environment(run_id: str) -> dict[str, str]:
    """Variables for a step that fills the run, with this very package."""
    package = str(Path(ocmlflow.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return {**os.environ, **child_runs.run_variables(run_id), "PYTHONPATH": paths}
