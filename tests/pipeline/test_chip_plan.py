from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import TRANSFORM, parsed, town, write_catalog, write_labels

from ocmlflow.errors import InputError
from ocmlflow.pipeline import chip_plan


@pytest.mark.parametrize("labels", ["of the item", "for all"])
def test_an_item_that_cannot_be_read_is_left_out_and_listed_with_its_reason(tmp_path, labels, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    roofs = town(tmp_path, "acc/aaa", transform=TRANSFORM)
    source = write_catalog(tmp_path, {"acc/aaa": roofs, "acc/bbb": None})
    write_labels(tmp_path / "stray.geojson", roofs)  # in the working folder, of no scene
    broken = tmp_path / "acc/bbb/bbb.json"
    broken.write_text("no JSON")
    words = ["--catalog", source, "--work", tmp_path / "work", "--size", 64, "--folds", 2, "--block_m", 10]
    words += ["--labels", tmp_path / "stray.geojson"] if labels == "for all" else []
    with pytest.raises(InputError, match=r"acc/bbb/bbb\.json of .* cannot be read: it is not JSON"):
        chip_plan.labelled_scenes(parsed("prepare", words))
    options = parsed("prepare", [*words, "--skip_unreadable", "true"])
    with ThreadPoolExecutor(1) as executor:
        plan = chip_plan.make(chip_plan.labelled_scenes(options), options, executor)
    assert [survey.scene.id for survey in plan.surveys] == ["aaa"]
    assert plan.table["aaa"]["status"] == "found"
    assert plan.table[str(broken)]["status"].startswith("unreadable: it is not JSON")
    assert f"scene {broken} left out: unreadable: it is not JSON" in caplog.text
    assert "no labels" not in caplog.text
    assert "stray" not in caplog.text
