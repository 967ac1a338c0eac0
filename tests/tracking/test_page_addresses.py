import mlflow
import pytest
from conftest import own_store
from mlflow.entities import Run, RunData, RunInfo

from ocmlflow import redaction
from ocmlflow.tracking import page_addresses

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's libraries warn of one another


def run(run_id: str, experiment: str) -> Run:
    return Run(RunInfo(run_id, experiment, "me", "FINISHED", 0, 1, "active"), RunData())


@pytest.fixture
def server():
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("https://me:secret@mlflow.example.org/base/")
    yield
    mlflow.set_tracking_uri(before)


@pytest.mark.usefixtures("server")
def test_pages_open_in_the_view_of_models_and_are_logged_whole_without_the_password():
    page = page_addresses.run_page(run("r1", "7"))
    assert page == "https://mlflow.example.org/base/#/experiments/7/runs/r1?workflowType=machine_learning"
    both = page_addresses.comparison_page(run("r1", "7"), run("r2", "7"))
    assert both.startswith("https://mlflow.example.org/base/#/compare-runs?runs=%5B%22r1%22")
    assert both.endswith("%22r2%22%5D&experiments=%5B%227%22%5D&workflowType=machine_learning")
    assert redaction.redact(f"this run: {page}") == f"this run: {page}"
    assert redaction.redact(f"{both} and") == f"{both} and"


def test_a_database_has_no_pages(tmp_path):
    with own_store(tmp_path, "none"):
        assert page_addresses.run_page(run("r1", "7")) == ""
        assert page_addresses.comparison_page(run("r1", "7")) == ""
