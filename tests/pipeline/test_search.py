"""The search for good options in docs/search.md, as it stands there, on small chips."""

import re
from pathlib import Path

import mlflow
import pytest
from conftest import own_store

from ocmlflow.tracking import runs

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's libraries warn of one another
ROOT = Path(__file__).parents[2]
SMALL = {
    'ocmlflow.prepare("catalog.json", validation="kam")': "CHIPS",
    "epochs=30": "epochs=1",
    "patience=5": 'crop=32, batch_size=4, weights="none"',
    "n_trials=20": "n_trials=2",
}


def test_the_search_of_the_documents_runs_and_its_trainings_are_children_of_one_run(made, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "search.md").read_text(), re.DOTALL)
    for text, replacement in SMALL.items():
        assert text in code
        code = code.replace(text, replacement)
    monkeypatch.chdir(tmp_path)
    with own_store(tmp_path, "search") as store:
        with runs.run("prepare", {}) as prepared:
            mlflow.log_artifacts(str(made.folder), "chips")
        names = {"CHIPS": prepared.info.run_id}
        exec(code, names)
        (search,) = mlflow.search_runs([store.experiment], "run_name = 'search'", output_format="list")
        query = f"tags.mlflow.parentRunId = '{search.info.run_id}'"
        trainings = mlflow.search_runs([store.experiment], query, output_format="list")
        assert {one.data.tags[runs.VERB] for one in trainings} == {"train"}
        scores = [one.data.metrics["validation/best_iou"] for one in trainings]
        assert search.data.metrics["validation/best_iou"] == max(scores)
        assert len(scores) == 2
        assert names["scores"].name.startswith("search version ")
