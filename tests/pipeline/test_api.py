"""The public functions, by the examples of their own pages, in a folder where MLflow has no settings."""

import ast
import inspect
import os
import pydoc
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import geopandas as gpd
import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
import rasterio
from conftest import ELSEWHERE, TRANSFORM, building, hole, noise, write_catalog, write_image
from mlflow import MlflowClient

import ocmlflow
from ocmlflow import probability
from ocmlflow.chips.chip_set import ChipSet
from ocmlflow.errors import InputError
from ocmlflow.evaluation.scorecard import Scorecard
from ocmlflow.pipeline.options import STEPS, option_fields
from ocmlflow.pipeline.predict import SceneMap
from ocmlflow.tracking.registry import Model

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.slow]  # MLflow's libraries warn of one another
STEP_FUNCTIONS = [getattr(ocmlflow, verb) for verb in STEPS if verb in ocmlflow.__all__]
OPTIONS = re.compile(r"\n\nOptions:\n.*", re.DOTALL)


def draw(path: Path, height: int, width: int, **more: Any) -> list:
    """Write a dark image with white roofs of 4 by 6 metres; returns their footprints."""
    image = noise(height, width)
    corners = [(row, col) for row in range(20, height - 60, 100) for col in range(20, width - 80, 120)]
    for row, col in corners:
        image[row : row + 40, col : col + 60] = 230
    write_image(path, image, **more)
    return [building(row, col, row + 40, col + 60, more.get("transform", TRANSFORM)) for row, col in corners]


def examples(documented: Any) -> list[str]:
    """The statements that a docstring shows."""
    text = OPTIONS.sub("", inspect.getdoc(documented) or "")
    code = "\n".join(line for line in text.splitlines() if line.startswith("    "))
    return [ast.unparse(statement) for statement in ast.parse(textwrap.dedent(code)).body]


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> dict[str, Any]:
    """What the examples of all pages make, by the names that they give it.

    A statement of several pages is run once. The training is shorter than the one that is shown, and in a run of the
    caller's.
    """
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patch.delenv(name)
        patch.chdir(folder)
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(None)  # as in a process where nobody set one
        mlflow.set_experiment("Default")
        patch.delenv("MLFLOW_EXPERIMENT_ID")
        roofs = {
            "acc/aaa": draw(folder / "acc/aaa/aaa.tif", 1024, 2048),
            "kam/kkk": draw(folder / "kam/kkk/kkk.tif", 512, 1024, transform=ELSEWHERE),
        }
        write_catalog(folder, roofs)
        draw(folder / "scenes" / "one.tif", 300, 420, valid=hole(300, 420))
        with rasterio.open(folder / "scenes" / "one.tif") as file:
            image = np.moveaxis(file.read(), 0, -1)
        found = {"ocmlflow": ocmlflow, "image": image, "images": image[np.newaxis, :256, :256, :3]}
        pages = [ocmlflow, *(getattr(ocmlflow, name) for name in ("prepare", "train", "evaluate", "compare"))]
        pages += [ocmlflow.predict, ocmlflow.load_model, ocmlflow.predict_array]
        for statement in dict.fromkeys(statement for page in pages for statement in examples(page)):
            with mlflow.start_run() if "ocmlflow.train(" in statement else nullcontext():
                exec(statement.replace("epochs=30", "epochs=1"), found)
        yield found
        mlflow.set_tracking_uri(before)


def test_every_page_has_an_example():
    for name in ocmlflow.__all__:
        assert f"ocmlflow.{name}(" in "\n".join(examples(getattr(ocmlflow, name)))


def test_prepare_gives_chips(shown):
    chips = shown["chips"]
    assert isinstance(chips, ChipSet)
    assert isinstance(chips.index, gpd.GeoDataFrame)
    assert dict(chips.index.groupby("split").size()) == {"train": 8, "validation": 2}
    assert chips.rules["validation"] == "kam"
    assert (Path(chips.folder) / "chips.json").exists()
    assert mlflow.get_run(chips.run).data.tags["ocmlflow.verb"] == "prepare"


def test_train_gives_a_registered_model(shown):
    model = shown["model"]
    assert isinstance(model, Model)
    assert isinstance(model.keras, keras.Model)
    assert (model.name, model.version, model.threshold) == ("open-cities-buildings", "1", 50)
    assert (model.facts.gsd, model.facts.chips) == (0.1, shown["chips"].run)
    assert "mlflow.parentRunId" in mlflow.get_run(model.facts.run).data.tags
    assert mlflow.active_run() is None


def test_evaluate_gives_scores_and_makes_a_champion(shown):
    scores = shown["scores"]
    assert isinstance(scores, Scorecard)
    assert scores.counts.pixels == 2 * 512**2
    assert list(scores.table("place").place) == ["kam"]
    champion = shown["champion"]
    assert champion.pinned == shown["model"].pinned
    assert champion.threshold == scores.threshold


def test_compare_gives_differences(shown):
    table = shown["table"]
    assert isinstance(table, pd.DataFrame)
    assert set(table.name) == {str(shown["model"])}
    assert (table.difference == 0).all()  # it is the champion itself


def test_predict_gives_the_files_of_each_scene(shown):
    (scene,) = shown["maps"]
    assert isinstance(scene, SceneMap)
    assert (scene.scene, scene.status, scene.unreadable) == ("one", "predicted", ())
    assert scene.buildings == len(gpd.read_parquet(scene.footprints))
    for raster in (scene.probability, scene.mask):
        with rasterio.open(raster) as file:
            assert (file.height, file.width) == (300, 420)


def test_predict_array_gives_what_predict_writes(shown):
    """Where the scene's grid is the model's; predict writes percent, but for some rounding, and 255 for no imagery."""
    found, valid = ocmlflow.predict_array(shown["champion"], shown["image"], tta="flips")
    assert (found.dtype, valid.dtype) == (np.float32, bool)
    (scene,) = ocmlflow.predict("scenes/", "own", tta="flips", engine="keras")
    with rasterio.open(scene.probability) as file:
        written = file.read(1)
    np.testing.assert_array_equal(valid, hole(300, 420))
    np.testing.assert_array_equal(written == 255, ~valid)
    difference = written[valid].astype(int) - probability.to_percent(found)[valid]
    assert set(np.unique(difference)) <= {0, 1}
    assert difference.mean() < 0.01
    assert shown["building"].dtype == bool


FAILURES = {
    "prepare": lambda shown: ocmlflow.prepare("catalog.json", validation="nowhere"),
    "train": lambda shown: ocmlflow.train(shown["chips"], batch_size=100),
    "evaluate": lambda shown: ocmlflow.evaluate(shown["model"], shown["chips"], split="test"),
    "compare": lambda shown: ocmlflow.compare([shown["model"], "models:/nobody/1"]),
    "predict": lambda shown: ocmlflow.predict("nowhere/", "out"),
}
SUCCESSES = {
    "prepare": lambda shown: [ocmlflow.prepare("catalog.json", validation="kam") for _ in range(2)],  # found again
    "evaluate": lambda shown: ocmlflow.evaluate(shown["model"], shown["chips"]),
    "predict": lambda shown: ocmlflow.predict("scenes/", "nested", shown["model"]),
}


@pytest.mark.parametrize("step", [*FAILURES.values(), *SUCCESSES.values()], ids=[*FAILURES, *SUCCESSES])
def test_a_step_is_a_nested_run_of_the_callers(shown, step, request):
    """Which is open and active afterwards, whether the step works or fails."""
    own = mlflow.create_experiment(request.node.name)
    fails = step in FAILURES.values()
    with mlflow.start_run(experiment_id=own) as mine:
        if fails:
            with pytest.raises(InputError):
                step(shown)
        else:
            step(shown)
        assert mlflow.active_run().info.run_id == mine.info.run_id
        mlflow.log_metric("still", 1)
        children = mlflow.search_runs([own], f"tags.mlflow.parentRunId = '{mine.info.run_id}'", output_format="list")
        assert [child.info.status for child in children] == ["FAILED" if fails else "FINISHED"]
    assert mlflow.active_run() is None
    assert MlflowClient().get_run(mine.info.run_id).info.status == "FINISHED"


def test_a_script_without_a_guard_cuts_on_several_workers(shown):
    Path("script.py").write_text(
        "import ocmlflow\n"
        "chips = ocmlflow.prepare('catalog.json', validation='kam', workers=2, min_valid=0.2)\n"
        "print(len(chips.index))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(ocmlflow.__file__).parents[1])}
    done = subprocess.run([sys.executable, "script.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "10\n"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ocmlflow.prepare("c", siz=64), "siz: prepare has no such option; did you mean size?"),
        (lambda: ocmlflow.prepare("c", size="64"), "size: must be a whole number, got '64'"),
        (lambda: ocmlflow.prepare("c", size=100), "size: must be a multiple of 32, got 100"),
        (lambda: ocmlflow.prepare("c", dry_run=True), "dry_run: makes no chips that"),
        (lambda: ocmlflow.prepare(7), "catalog: must be a path or an address, got 7"),
        (lambda: ocmlflow.train(epochs=0), "epochs: must be at least 1, got 0"),
        (lambda: ocmlflow.train(chips=7), "chips: must be a path or an address, got 7"),
        (lambda: ocmlflow.evaluate(promote="yes"), "promote: must be true or false, got 'yes'"),
        (lambda: ocmlflow.evaluate(7), "model: must be text, got 7"),
        (lambda: ocmlflow.compare("models:/one/1"), "models: must be two or more"),
        (lambda: ocmlflow.predict("s", "o", treshold=0.5), "treshold: predict has no such option; did you mean thre"),
        (lambda: ocmlflow.predict("s", "o", tta="all"), "tta: must be none, flips or d4, got all"),
        (lambda: ocmlflow.predict_array("models:/x/1", np.zeros((9, 9, 3), np.uint8), tta="all"), "tta: must be none"),
    ],
)
def test_a_wrong_option_is_refused_by_name(call: Callable[[], Any], message):
    with pytest.raises(InputError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("function", STEP_FUNCTIONS, ids=lambda function: function.__name__)
def test_help_has_every_option_and_its_default(function):
    page = " ".join(pydoc.plain(pydoc.render_doc(function)).split())
    parameters = inspect.signature(function).parameters
    for field in option_fields(STEPS[function.__name__]):
        parameter = parameters[field.name]
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert parameter.default == field.default
            assert f" {field.name}: {' '.join(field.about.help.split())}" in page
        else:  # the function's own, which its first paragraph explains
            assert f"`{field.name}` " in page


def test_the_import_is_fast_and_loads_nothing_heavy():
    code = (
        "import sys, time; import ocmlflow; "
        "print(time.process_time(), sorted({'mlflow', 'keras', 'tensorflow', 'rasterio', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    seconds, heavy = done.stdout.split(maxsplit=1)
    assert heavy.strip() == "[]"
    assert float(seconds) < 0.5
