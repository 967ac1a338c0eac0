import mlflow
import pandas as pd
import pytest
from conftest import own_store
from mlflow import MlflowClient

from ocmlflow.tracking import child_runs, limits, run_artifacts, run_pages, runs

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's libraries warn of one another


@pytest.mark.parametrize("name", ["place/kam", "../masks/iou", "/tmp/masks/iou", "a//b", "it's @ 5 %", "x" * 999])
def test_mlflow_takes_every_metric_name(tmp_path, name):
    with own_store(tmp_path, "names"), runs.run("evaluate", {}) as active:
        run_artifacts.log_scores({name: 1.0})
        assert limits.metric_name(name) in mlflow.get_run(active.info.run_id).data.metrics


def test_texts_that_are_too_long_are_cut_and_that_is_logged(tmp_path, caplog):
    with own_store(tmp_path, "long"):
        with runs.run("train", {"note": "p" * 9000}) as active:
            run_pages.name_run("train", "n" * 279)
            runs.describe("d" * 9000)
            runs.identify({"ocmlflow.model": "m" * 9000})
            run_artifacts.log_input(
                pd.DataFrame({"scene": ["a"]}), "scenes", source="s," * 60_000, digest="0" * 32, context="inference"
            )
            child = child_runs.create_child("train", "c" * 279)
            with child_runs.child("compared", "c" * 279, {}) as second:
                pass
        run = mlflow.get_run(active.info.run_id)
        assert len(run.info.run_name) == 250
        assert run.info.run_name.startswith("train nnn")
        assert run.info.run_name.endswith("…")
        assert {len(run.data.tags[name]) for name in ("mlflow.note.content", "ocmlflow.model")} == {8000}
        assert len(run.data.params["note"]) == 6000
        for other in (child, second.info.run_id):
            assert len(MlflowClient().get_run(other).info.run_name) == 250
    for what in ("the tag mlflow.runName", "the tag mlflow.note.content", "the name of a run"):
        assert f"{what} is cut" in caplog.text


def test_texts_that_fit_are_left_alone(caplog):
    assert limits.clip("x" * 250, 250, "it") == "x" * 250
    assert limits.model_title("fpn", "efficientnet-lite0", "kam, a/b: 50%") == "fpn-efficientnet-lite0-kam_a_b_50_"
    assert limits.model_title("", "", "") == "model"
    assert not caplog.text
