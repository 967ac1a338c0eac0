"""evaluate and compare on small chips, with networks of one layer that need no training."""

import json
import re
import shutil
from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace

import geopandas as gpd
import mlflow
import numpy as np
import pandas as pd
import pystac
import pytest
import rasterio
import shapely
from affine import Affine
from conftest import CRS, cut, one_layer, own_store, parsed, rules_with, town, write_catalog, write_image
from mlflow import MlflowClient

from ocmlflow.chips import chip_set, drawn_buildings
from ocmlflow.errors import InputError
from ocmlflow.evaluation import external_masks, predictions
from ocmlflow.pipeline import compare, evaluate, scoring
from ocmlflow.pipeline.options import CompareOptions, make
from ocmlflow.scenes import catalog
from ocmlflow.tracking import chip_artifacts, model_evaluation, registry, runs
from ocmlflow.tracking.model_facts import ChipSplit, ModelFacts

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's libraries warn of one another
NAME = "towns"
FAR_AWAY = Affine(0.1, 0, 505_000, 0, -0.1, 620_000)
BLANK = {"driver": "GTiff", "count": 1, "dtype": "uint8", "width": 32, "height": 32}


@pytest.fixture(scope="module")
def line(made, tmp_path_factory):
    """A store with the chips of `made` as a `prepare` run, and three versions: blurred, sharp and inverted."""
    with own_store(tmp_path_factory.mktemp("mlflow"), NAME) as store:
        with runs.run("prepare", {}) as prepared:
            mlflow.log_artifacts(str(made.folder), "chips")
        registry.register(NAME)
        for weight, bias in ((4, -1), (40, -20), (-40, 20)):
            with runs.run("train", {}) as trained:
                runs.log_model(one_layer(weight, bias), facts_of(trained, prepared.info.run_id), name=NAME)
        yield Namespace(chips=prepared.info.run_id, folder=store.folder)


def facts_of(trained, chips, *others) -> ModelFacts:
    """Facts of a model of that run, trained on the chips of these runs."""
    splits = tuple(ChipSplit(run_id, None) for run_id in (chips, *others))
    return ModelFacts(gsd=0.1, multiple=1, run=trained.info.run_id, chips=chips, trained_on=splits)


def last(verb):
    found = mlflow.search_runs(
        experiment_names=["towns"], filter_string=f"tags.`ocmlflow.verb` = '{verb}'", output_format="list"
    )
    return found[0]


def run(verb, module, **parameters):
    """The run of a verb, in this process."""
    given = {"min_area_m2": 1, **parameters}  # the towns' roofs have 1.4 m2
    module.run(parsed(verb, [word for name, value in given.items() for word in (f"--{name}", str(value))]))
    return last(verb)


def report(run, name="report"):
    uri = run.info.artifact_uri
    page = mlflow.artifacts.load_text(f"{uri}/{name}.html")
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # nothing loaded from outside
    assert "http" not in re.sub(r'"data:[^"]*"', "", page)
    return page, json.loads(mlflow.artifacts.load_text(f"{uri}/{name}.json"))


def champion():
    return str(MlflowClient().get_model_version_by_alias(NAME, "champion").version)


def test_promotion_follows_its_rule(line, caplog):
    client = MlflowClient()
    left_alone = run("evaluate", evaluate, model=f"models:/{NAME}/3", promote="false")
    assert "champion" not in client.get_registered_model(NAME).aliases
    assert "promote=false" in left_alone.data.tags["mlflow.note.content"]

    run("evaluate", evaluate, model=f"models:/{NAME}/3")  # the inverted one, for want of a better
    assert champion() == "3"
    strict = run("evaluate", evaluate, model=f"models:/{NAME}/2", margin=0.999)
    assert champion() == "3"
    assert "more than 0.999" in strict.data.tags["ocmlflow.promotion.rule"]
    caplog.set_level("INFO")
    better = run("evaluate", evaluate, model=f"models:/{NAME}/2", margin=0.1, bootstrap_block_m=5)
    assert re.search(r"towns version 2: Pooled IoU 1\.000 at threshold 0\.\d+ \(kam .* becomes champion", caplog.text)
    assert champion() == "2"
    figures = better.data.metrics
    assert figures["champion/difference"] == pytest.approx(figures["iou"] - figures["champion/iou"], abs=1e-9)
    assert figures["champion/difference_low"] <= figures["champion/difference"] <= figures["champion/difference_high"]
    assert "margin 0.1" in better.data.tags["mlflow.note.content"]
    assert better.info.run_name == "1.000 evaluate kam towns version 2"
    card = client.get_model_version(NAME, "2").description
    assert card.startswith("IoU 1.000. towns version 2 is better on these chips")
    assert "It becomes champion; no place of the champion's own validation ground loses." in card
    assert "| kam | 1.000 | " in card
    assert "models:/towns/2" in card
    assert client.get_registered_model(NAME).description == f"Champion: version 2. {card}"
    item = pystac.Item.from_dict(mlflow.artifacts.load_dict(f"models:/{NAME}/2/stac_item.json"))
    assert item.properties["ocmlflow:iou"] == 1
    assert item.properties["mlm:architecture"] == " on "  # neither was given
    assert shapely.box(*item.bbox).intersects(shapely.geometry.shape(item.geometry))
    logged = mlflow.get_logged_model(registry.load_model(f"models:/{NAME}/2").key)
    assert logged.tags["mlflow.note.content"] == card

    worse = run("evaluate", evaluate, model=f"models:/{NAME}/3", promotion="buildings")
    assert worse.data.tags["ocmlflow.promotion.rule"].startswith("F1 of buildings on ")
    assert re.search(
        r"Not promoted: F1 of buildings \d\.\d{4} against 1\.0000 of .*; IoU \d\.\d{4} against 1\.0000\.",
        worse.data.tags["mlflow.note.content"],
    )
    assert champion() == "2"


@pytest.fixture
def dark_roofs(tmp_path):
    """Run id of validation chips of another place, whose roofs are dark on bright ground."""
    footprints = town(tmp_path, "dar/ddd", transform=FAR_AWAY)
    file = tmp_path / "dar" / "ddd" / "ddd.tif"
    with rasterio.open(file) as image:
        pixels = image.read([1, 2, 3])
    write_image(file, 255 - pixels.transpose(1, 2, 0), np.ones(pixels.shape[1:], bool), transform=FAR_AWAY)
    (scene,) = catalog.read_scenes(write_catalog(tmp_path, {"dar/ddd": footprints}))
    rules = rules_with()
    index = cut(scene, tmp_path / "chips", rules=rules).assign(split="validation", fold=-1)
    kept = chip_set.rules_record(rules, catalog="dark", validation="dar", seed=0, empty_share=1.0)
    chip_set.save(tmp_path / "chips", index, kept, [], {})
    with runs.run("prepare", {}) as prepared:
        mlflow.log_artifacts(str(tmp_path / "chips"), "chips")
    return prepared.info.run_id


@pytest.fixture
def drawn(made, line, tmp_path):
    """The towns' chips with the footprints of their labels: `run`, the run id, and `footprints`."""
    shutil.copytree(made.folder, tmp_path / "chips")
    files = sorted(made.folder.parent.rglob("*.geojson"))
    frames = [gpd.read_file(file)[["geometry"]].assign(scene=file.stem.removesuffix("-labels")) for file in files]
    footprints = gpd.GeoDataFrame(pd.concat(frames, ignore_index=True), crs="EPSG:4326")
    footprints.to_parquet(tmp_path / "chips" / drawn_buildings.NAME)
    with runs.run("prepare", {}) as prepared:
        mlflow.log_artifacts(str(tmp_path / "chips"), "chips")
    return Namespace(run=prepared.info.run_id, footprints=footprints)


def test_polygons_of_another_tool_are_matched_with_the_drawn_ones(drawn, tmp_path):
    (tmp_path / "tool").mkdir()
    of_kkk = drawn.footprints[drawn.footprints.scene == "kkk"]
    of_kkk.iloc[:-1].to_file(tmp_path / "tool" / "kkk.geojson")
    scored = run("evaluate", evaluate, predictions=tmp_path / "tool", chips=drawn.run, bootstrap_block_m=5)
    figures = scored.data.metrics
    count = figures["object/drawn"]
    assert figures["object/predicted"] == figures["buildings_predicted/kkk"] == count - 1
    assert figures["object/recall"] == pytest.approx((count - 1) / count)
    assert (figures["object/precision"], figures["object/iou"]) == (1, pytest.approx(1))
    assert figures["object/boundary_m"] == pytest.approx(0, abs=1e-3)
    assert figures["object/recall_low"] < figures["object/recall"] <= figures["object/recall_high"]
    assert figures["iou"] > 0.9
    page, card = report(scored)
    assert "Mean distance of matched outlines" in page
    assert "Buildings by share of the block of ground that is drawn" in page
    assert [row["scene"] for row in card["buildings"]["tables"]["scene"]] == ["kkk"]
    assert card["sizes"][0]["fn"] == 1


def test_models_are_compared_by_buildings_too_with_paired_intervals(drawn):
    models = f"models:/{NAME}/2,models:/{NAME}/3"
    compared = run("compare", compare, models=models, chips=drawn.run, bootstrap_block_m=5)
    rows = json.loads(mlflow.artifacts.load_text(f"{compared.info.artifact_uri}/compare.json"))["differences"]
    (f1,) = [row for row in rows["towns version 3"] if row["place"] == "all" and row["score"] == "object_f1"]
    assert f1["difference"] == pytest.approx(f1["model"] - f1["base"])
    assert f1["low"] <= f1["difference"] <= f1["high"]
    assert f1["blocks"] > 1


def test_a_model_that_forgot_the_champions_ground_does_not_replace_it(line, dark_roofs, caplog):
    registry.register("cities")
    for weight, bias in ((40, -20), (-40, 20)):
        with runs.run("train", {}) as trained:
            facts = replace(
                facts_of(trained, line.chips), trained_on=(ChipSplit(dark_roofs, None),)
            )  # no training chips
            runs.log_model(one_layer(weight, bias), facts, name="cities")
    client = MlflowClient()

    def champion():
        return str(client.get_model_version_by_alias("cities", "champion").version)

    run("evaluate", evaluate, model="models:/cities/1")
    forgot = run("evaluate", evaluate, model="models:/cities/2", chips=dark_roofs)
    assert champion() == "1"
    note = forgot.data.tags["mlflow.note.content"]
    assert re.search(
        r"Not promoted, as on the champion's own validation ground IoU is lost: kam 0\.\d{4}, more than max_loss=0\.02"
        r"\. cities version 2 is better on these chips: IoU 1\.0000 against 0\.\d{4} of cities version 1",
        note,
    )
    assert forgot.data.metrics["champion/loss/kam"] > 0.5
    table = mlflow.artifacts.load_dict(f"{forgot.info.artifact_uri}/on_champions_ground.json")
    assert "place" in table["columns"]

    allowed = run("evaluate", evaluate, model="models:/cities/2", chips=dark_roofs, max_loss=1)
    assert champion() == "2"
    assert "IoU is lost: kam" in allowed.data.tags["mlflow.note.content"]


def test_a_model_that_was_trained_on_the_champions_ground_is_not_flattered_there(line, made, dark_roofs, tmp_path):
    shutil.copytree(made.folder, tmp_path / "swapped")
    swap = {"train": "validation", "validation": "train"}
    chip_set.save(tmp_path / "swapped", made.index.assign(split=made.index.split.replace(swap)), made.rules, [], {})
    with runs.run("prepare", {}) as swapped:
        mlflow.log_artifacts(str(tmp_path / "swapped"), "chips")
    registry.register("suburbs")
    for weight, bias, chips in ((40, -20, line.chips), (-40, 20, swapped.info.run_id)):
        with runs.run("train", {}) as trained:
            runs.log_model(one_layer(weight, bias), facts_of(trained, chips), name="suburbs")
    run("evaluate", evaluate, model="models:/suburbs/1")
    promoted = run("evaluate", evaluate, model="models:/suburbs/2", chips=dark_roofs)
    note = promoted.data.tags["mlflow.note.content"]
    assert "becomes champion" in note
    assert "on the champion's own validation ground is not known: suburbs version 2 was trained on all of it" in note


def test_the_report_is_one_page_and_the_same_as_json(line):
    evaluated = run("evaluate", evaluate, model=f"models:/{NAME}/1", promote="false", bootstrap_block_m=5)
    page, found = report(evaluated)
    figures = evaluated.data.metrics
    assert found["scores"]["iou"] == figures["iou"] == figures["object/f1"] == figures["boundary_iou"] == 1
    assert figures["iou_low"] <= figures["iou"] <= figures["iou_high"]
    for shown in ("By place", "Buildings by size", "Calibration", "Map of error", "Best chips", "Median chips", "kkk"):
        assert shown in page
    assert figures["area_error/kkk"] == 0
    assert figures["object/recall"] == 1
    assert found["tables"]["scene"][0]["labelled_m2"] == found["tables"]["scene"][0]["predicted_m2"]
    version = MlflowClient().get_model_version(NAME, "1")
    temperature = float(version.tags[model_evaluation.TEMPERATURE])
    assert temperature == pytest.approx(figures["temperature"], abs=1e-4)
    assert temperature != 1
    assert figures["calibration_error"] < figures["calibration_error_before"]
    assert float(version.tags["threshold"]) == figures["threshold"]


def test_models_are_compared_on_the_same_ground(line):
    models = ",".join(f"models:/{NAME}/{version}" for version in (3, 2, 1))
    compared = run("compare", compare, models=models, bootstrap_block_m=5)
    children = MlflowClient().search_runs(
        [compared.info.experiment_id], f"tags.mlflow.parentRunId = '{compared.info.run_id}'"
    )
    assert {child.data.params["model"] for child in children} == {f"{NAME} version {v}" for v in (1, 2, 3)}
    alone = run("evaluate", evaluate, model=f"models:/{NAME}/2", promote="false", bootstrap_block_m=5).data.metrics
    (same,) = [child for child in children if child.data.params["model"].endswith("2")]
    for name in ("iou", "f1", "object/f1", "boundary_iou", "place/kam", "iou_low"):
        assert same.data.metrics[name] == alone[name]
    page, found = report(compared, "compare")
    assert f"{NAME} version 2 against {NAME} version 3" in page
    rows = found["differences"][f"{NAME} version 2"]
    iou = next(row for row in rows if (row["place"], row["score"]) == ("kam", "iou"))
    assert iou["difference"] == pytest.approx(iou["model"] - iou["base"])
    assert 0 < iou["low"] <= iou["difference"] <= iou["high"]
    assert compared.data.metrics[f"difference/{NAME} version 2/iou"] == pytest.approx(iou["difference"])
    assert {data.dataset.name for data in same.inputs.dataset_inputs} == {"chips kam validation"}


def test_scores_are_those_of_the_model_on_the_chips(line):
    evaluated = run("evaluate", evaluate, model=f"models:/{NAME}/2", promote="false")
    model_id = registry.load_model(f"models:/{NAME}/2").key
    experiment = [evaluated.info.experiment_id]
    good = mlflow.search_logged_models(experiment, "metrics.iou > 0.7", output_format="list")
    assert model_id in {model.model_id for model in good}
    (shown,) = [model for model in good if model.model_id == model_id]
    assert not [metric.key for metric in shown.metrics if metric.key.startswith("system/")]
    (iou,) = [metric for metric in shown.metrics if metric.key == "iou" and metric.run_id == evaluated.info.run_id]
    assert (iou.value, iou.dataset_name) == (evaluated.data.metrics["iou"], "chips kam validation")
    (seen,) = evaluated.inputs.dataset_inputs
    assert (seen.dataset.name, seen.tags[0].value) == ("chips kam validation", "validation")
    assert [one.model_id for one in mlflow.get_run(evaluated.info.run_id).inputs.model_inputs] == [model_id]


def test_a_model_against_itself_differs_by_nothing(line):
    compared = run("compare", compare, models=f"models:/{NAME}/1,models:/{NAME}/2", bootstrap_block_m=5)
    _, found = report(compared, "compare")
    assert {row["difference"] for rows in found["differences"].values() for row in rows} == {0}
    rows = [row for rows in found["differences"].values() for row in rows]
    assert {row["low"] for row in rows if "object" not in row["score"]} == {0}
    assert {row["low"] for row in rows} <= {0, None}  # too few blocks of so small a town have buildings


def test_a_model_that_finds_nothing_gets_its_report_too(line, made, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "masks").mkdir()
    for row in made.select("validation").itertuples():
        with rasterio.open(tmp_path / "masks" / f"{row.id}.tif", "w", **BLANK) as file:
            file.write(np.zeros((32, 32), np.uint8), 1)
    scored = run("evaluate", evaluate, predictions=tmp_path / "masks", chips=line.chips)
    assert "masks: Pooled IoU 0.000 at threshold 0.50 (kam 0.000). Predictions of another tool" in caplog.text
    _, found = report(scored)
    assert scored.data.metrics["iou"] == scored.data.metrics["recall"] == 0
    assert found["scores"]["precision"] is None
    assert "precision" not in scored.data.metrics


def write_masks(folder, made, *, by: str) -> None:
    """The labels of the validation chips as masks, of whole scenes or of chips."""
    folder.mkdir()
    rows = made.select("validation")
    size = made.rules["size"]
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": rows.utm.iloc[0], "nodata": 255}
    whole = np.full((rows.row.max() + size, rows.col.max() + size), 255, np.uint8)
    first = rows.iloc[0]
    left, top = (
        first.x - (first.col + size / 2) * first.gsd,
        first.y + (first.row + size / 2) * first.gsd,
    )
    for row in rows.itertuples():
        coded = chip_set.read(made.folder, row).label
        whole[row.row : row.row + size, row.col : row.col + size] = coded
        if by == "chip":
            at = Affine(0.1, 0, left + row.col * 0.1, 0, -0.1, top - row.row * 0.1)
            with rasterio.open(folder / f"{row.id}.tif", "w", **profile, width=size, height=size, transform=at) as file:
                file.write(coded, 1)
    if by == "scene":
        shape = {"height": whole.shape[0], "width": whole.shape[1]}
        with rasterio.open(
            folder / f"{first.scene}.tif", "w", **profile, **shape, transform=Affine(0.1, 0, left, 0, -0.1, top)
        ) as file:
            file.write(whole, 1)


@pytest.mark.parametrize("by", ["scene", "chip"])
def test_masks_of_another_tool_enter_the_same_table(line, made, tmp_path, by):
    write_masks(tmp_path / "masks", made, by=by)
    scored = run("evaluate", evaluate, predictions=tmp_path / "masks", chips=line.chips)
    assert scored.data.metrics["iou"] == 1
    assert scored.data.metrics["object/f1"] == 1
    report(scored)
    compared = run("compare", compare, models=f"models:/{NAME}/3", predictions=tmp_path / "masks")
    _, found = report(compared, "compare")
    assert [model["scores"]["iou"] == 1 for model in found["models"]] == [False, True]


def test_masks_that_cannot_be_scored_are_refused(line, made, tmp_path):
    write_masks(tmp_path / "masks", made, by="chip")
    rows = made.select("validation")
    first, second = rows.id[0], rows.id[1]
    file = tmp_path / "masks" / f"{first}.tif"
    with rasterio.open(file, "r+") as mask:
        mask.write(np.full((32, 32), 200, np.uint8), 1)
    with pytest.raises(InputError, match=re.escape("holds [200]: a mask is 1 where there is building")):
        run("evaluate", evaluate, predictions=tmp_path / "masks", chips=line.chips)
    file.unlink()
    with pytest.raises(InputError, match=re.escape(f"no mask for 1 of {len(rows)} chips, such as {first}")):
        external_masks.reader(tmp_path / "masks", rows)
    shutil.copy(tmp_path / "masks" / f"{second}.tif", file)
    with rasterio.open(file, "w", driver="GTiff", count=1, dtype="uint8", width=30, height=32) as small:
        small.write(np.zeros((32, 30), np.uint8), 1)
    with pytest.raises(InputError, match="32 x 30 pixels, the chip 32 x 32"):
        run("evaluate", evaluate, predictions=tmp_path / "masks", chips=line.chips)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"transform": Affine(0.1, 0, 900_000, 0, -0.1, 900_000)}, "lies elsewhere than the"),
        ({"crs": "EPSG:32736"}, "lies elsewhere than the"),
        ({"transform": Affine.identity()}, "has no georeference"),
    ],
)
def test_masks_that_lie_elsewhere_are_refused(made, tmp_path, place, message):
    write_masks(tmp_path / "masks", made, by="scene")
    (file,) = (tmp_path / "masks").iterdir()
    with rasterio.open(file) as before:
        profile, values = {**before.profile, **place}, before.read()
    with rasterio.open(file, "w", **profile) as after:
        after.write(values)
    with pytest.raises(InputError, match=message):
        external_masks.reader(tmp_path / "masks", made.select("validation"))


def test_a_scene_smaller_than_its_chips_has_a_mask_too(tmp_path, caplog):
    """Chips reach beyond their scene: their middle may lie outside of its mask."""
    made = gpd.GeoDataFrame(
        {"id": ["a-0-0"], "scene": ["a"], "gsd": [0.1], "utm": [CRS], "x": [500_001.6], "y": [619_998.4]},
        geometry=gpd.GeoSeries([shapely.box(500_000, 619_996.8, 500_003.2, 620_000)], crs=CRS).to_crs("EPSG:4326"),
        crs="EPSG:4326",
    )
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": CRS, "width": 32, "height": 10}
    with rasterio.open(tmp_path / "a.tif", "w", **profile, transform=Affine(0.1, 0, 500_000, 0, -0.1, 620_000)) as file:
        file.write(np.ones((1, 10, 32), np.uint8))
    read = external_masks.reader(tmp_path, made)
    assert read(made.iloc[0], np.zeros((32, 32, 3))).sum() == 320
    assert not caplog.text


def test_masks_of_floats_may_hold_nan_where_they_are_incomplete_and_broken_ones_are_named(made, tmp_path, caplog):
    write_masks(tmp_path / "masks", made, by="scene")
    rows = made.select("validation")
    (file,) = (tmp_path / "masks").iterdir()
    with rasterio.open(file) as before:
        profile, values = before.profile, before.read(1)
    floats = np.where(values == 255, np.nan, values).astype(np.float32)[:, :64]
    with rasterio.open(file, "w", **{**profile, "dtype": "float32", "nodata": np.nan, "width": 64}) as after:
        after.write(floats, 1)
    read = external_masks.reader(tmp_path / "masks", rows)
    assert re.search(r"\d+ of \d+ chips lie outside it and count as no building", caplog.text)
    row = rows[rows.col == 0].iloc[0]
    np.testing.assert_array_equal(read(row, np.zeros((32, 32, 3)))[..., 0], floats[row.row : row.row + 32, :32] == 1)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match=rf"cannot read mask .*{file.name}"):
        read(row, np.zeros((32, 32, 3)))


def test_a_fold_is_that_of_the_chips_that_a_model_was_trained_on(line):
    known = registry.load_model(f"models:/{NAME}/1")
    model = replace(known, facts=replace(known.facts, fold=2, chips="theirs"))
    assert scoring.fold_of(model, "theirs") == 2
    assert scoring.fold_of(model, "others") is None


def test_a_disk_without_room_for_predictions_is_told(made, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    how = {"work": tmp_path, "block_m": 100, "progress": lambda items, _: items}
    with pytest.raises(InputError, match=r"predictions take 0 MB, and .* has 0 MB left: set TMPDIR"):
        predictions.collect(lambda row, image: image[..., :1], made.folder, made.select("validation"), **how)


def test_ground_that_a_model_trained_on_is_refused_by_outline_and_by_content(line, made, monkeypatch):
    model = registry.load_model(f"models:/{NAME}/1")
    scoring.check_fair(model, made, "validation")
    rows = made.select("validation")
    moved = rows.assign(geometry=rows.geometry.translate(1.0))  # the same pixels under another georeference
    for trained, count in ((rows.assign(hash="other"), len(rows)), (moved, int((rows.building_share > 0).sum()))):
        monkeypatch.setattr(chip_artifacts, "training_rows", lambda _, trained=trained: trained)
        with pytest.raises(InputError, match=f"{count} of the {len(rows)} validation chips lie on ground"):
            scoring.check_fair(model, made, "validation")


def test_chips_that_a_model_knows_and_that_are_gone_are_named(line):
    known = registry.load_model(f"models:/{NAME}/1")
    model = replace(known, facts=replace(known.facts, trained_on=(ChipSplit("0" * 32, None),)))
    with pytest.raises(InputError, match=r"the chips of run 0{32}, on which .* trained or validated, cannot be"):
        chip_artifacts.training_rows(model)


def test_one_contestant_is_no_comparison():
    with pytest.raises(
        InputError, match="models: must be two or more models, or folders of masks, got models:/towns/1"
    ):
        make(CompareOptions, models="models:/towns/1")


def test_test_chips_are_scored_at_what_was_chosen_elsewhere(line, made, tmp_path, caplog):
    shutil.copytree(made.folder, tmp_path / "chips")
    west, east = (made.index.col < 64), (made.index.col >= 96)
    kam = made.index.place == "kam"
    index = made.index[~kam | west | east].copy()
    index.loc[kam & east, "split"] = "test"
    chip_set.save(tmp_path / "chips", index, made.rules, [], {})
    with runs.run("prepare", {}) as prepared:
        mlflow.log_artifacts(str(tmp_path / "chips"), "chips")
    registry.register("hamlets")
    for validated_on in (prepared.info.run_id, line.chips):
        with runs.run("train", {}) as trained:
            runs.log_model(one_layer(4, -1), facts_of(trained, prepared.info.run_id, validated_on), name="hamlets")
    fair, seen = "models:/hamlets/1", "models:/hamlets/2"

    with pytest.raises(InputError, match="hamlets version 1 has no threshold yet: evaluate it on its validation chips"):
        run("evaluate", evaluate, model=fair, split="test")
    validated = run("evaluate", evaluate, model=fair, promote="false")
    tags = MlflowClient().get_model_version("hamlets", "1").tags
    caplog.set_level("INFO")
    tested = run("evaluate", evaluate, model=fair, split="test")
    said = f"hamlets version 1: Pooled IoU {tested.data.metrics['iou']:.3f} at threshold {tags['threshold']} (kam"
    assert said in caplog.text
    for name in ("threshold", "temperature"):
        assert tested.data.metrics[name] == pytest.approx(validated.data.metrics[name], abs=1e-4)
    assert MlflowClient().get_model_version("hamlets", "1").tags == tags
    assert "champion" not in MlflowClient().get_registered_model("hamlets").aliases
    page, found = report(tested)
    assert found["chips"] == (index.split == "test").sum()
    assert f"{found['chips']} test chips" in page
    assert "nothing was chosen" in page

    client = MlflowClient()
    for tag, value in (("threshold", "0.99"), (model_evaluation.TEMPERATURE, "1")):  # at which this model finds nothing
        client.set_model_version_tag("hamlets", "1", tag, value)
    assert run("evaluate", evaluate, model=fair, split="test").data.metrics["recall"] == 0
    client.set_model_version_tag("hamlets", "1", model_evaluation.EVALUATED_ON, line.chips)
    for model in (fair, seen):  # threshold chosen there; epoch chosen there
        with pytest.raises(
            InputError, match=r"of the \d+ test chips lie on ground that hamlets version \d was validated"
        ):
            run("evaluate", evaluate, model=model, split="test")
    with pytest.raises(InputError, match="split=test: these chips have none; `prepare` holds ground out for it with"):
        run("evaluate", evaluate, model=f"models:/{NAME}/1", split="test")
