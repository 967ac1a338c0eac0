"""The whole line through `mlflow run`, on the built-in sample and on real scenes, and what stops each step."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tarfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import distributed
import geopandas as gpd
import mlflow
import numpy as np
import pystac
import pytest
import rasterio
import rasterio.warp
from conftest import parsed
from mlflow import MlflowClient
from PIL import Image
from rasterio.windows import Window
from rio_cogeo import cog_validate
from skimage import measure

from ocmlflow.errors import InputError
from ocmlflow.pipeline import evaluate, predict, prepare, train, work_folder
from ocmlflow.prediction import inference, scene_map
from ocmlflow.prediction.engine import Ensemble
from ocmlflow.scenes import geobox, raster, resample, windows
from ocmlflow.tracking import model_evaluation, registry

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"
NAME = "open-cities-buildings"

# In this process MLflow's libraries warn of one another; the verbs' own warnings are errors in the other tests.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """An MLflow store of this module's own, and the environment of the processes that use it."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    for name in ("sample", "real", "empty", "finer", "killed"):
        mlflow.create_experiment(name, artifact_location=(folder / "artifacts").as_uri())
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # MLflow keeps the experiment of other tests in a variable.
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_EXPERIMENT_ID"}
    return Namespace(folder=folder, environment={**inherited, "MLFLOW_TRACKING_URI": uri, "PATH": path})


def run(store, verb, experiment, **parameters):
    """The finished run of a verb, started as a user starts it."""
    words = [word for name, value in parameters.items() for word in ("-P", f"{name}={value}")]
    command = [sys.executable, "-m", "mlflow", "run", ".", "-e", verb, "--env-manager", "local"]
    done = subprocess.run(
        [*command, "--experiment-name", experiment, *words],
        cwd=ROOT,
        env=store.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return mlflow.get_run(re.findall(r"in run with ID '(\w+)'", done.stderr)[0])


def artifacts(run, path=""):
    return {file.path for file in MlflowClient().list_artifacts(run.info.run_id, path)}


@pytest.fixture(scope="module")
def sample_line(store):
    output, work = store.folder / "output", store.folder / "work"
    parent = run(store, "main", "sample", epochs=2, output=output, work=work)
    found = MlflowClient().search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    steps = {child.data.tags["ocmlflow.verb"]: child for child in found}
    return Namespace(parent=parent, steps=steps, output=output, work=work)


def test_main_runs_four_steps_under_one_parent(sample_line):
    assert set(sample_line.steps) == {"prepare", "train", "evaluate", "predict"}
    assert {child.info.status for child in sample_line.steps.values()} == {"FINISHED"}
    for child in sample_line.steps.values():
        assert child.data.tags["ocmlflow.git.dirty"] in ("true", "false")
        assert len(child.data.tags["ocmlflow.code"]) == 32


def test_main_is_named_by_its_score_logs_its_scenes_and_measures_no_machine(sample_line):
    parent = mlflow.get_run(sample_line.parent.info.run_id)
    assert parent.info.run_name == f"{sample_line.steps['evaluate'].data.metrics['iou']:.3f} main hil"
    inputs = {(one.dataset.name, one.tags[0].value) for one in parent.inputs.dataset_inputs}
    assert inputs == {("scenes bay hil", "preparation"), ("scenes hil", "inference")}
    assert not [name for name in parent.data.metrics if name.startswith("system/")]
    prepared = mlflow.get_run(sample_line.steps["prepare"].info.run_id)
    assert [one.dataset.name for one in prepared.inputs.dataset_inputs] == ["scenes bay hil"]


def test_prepare_leaves_chips_previews_and_a_table(sample_line):
    prepared = sample_line.steps["prepare"]
    scenes = json.loads(mlflow.artifacts.load_text(f"{prepared.info.artifact_uri}/scenes.json"))
    assert [dict(zip(scenes["columns"], row, strict=True))["status"] for row in scenes["data"]] == ["cut"] * 4
    assert len(artifacts(prepared, "previews")) == 4
    assert {"chips/index.parquet", "chips/chips.json"} < artifacts(prepared, "chips")
    assert prepared.data.metrics["train/chips"] > 0 < prepared.data.metrics["validation/chips"]
    assert {path.suffix for path in (sample_line.work / "prepare").iterdir()} == {".lock"}  # no chips left behind


def test_train_logs_every_epoch_dataset_pictures_and_model(sample_line):
    trained = sample_line.steps["train"]
    client = MlflowClient()
    for split in ("train", "validation"):
        for figure in ("loss", "iou", "precision", "recall"):
            history = client.get_metric_history(trained.info.run_id, f"{split}/{figure}")
            assert [point.step for point in history] == [1, 2]
    assert {"learning_rate", "chips_per_second", "best_epoch"} <= trained.data.metrics.keys()
    assert trained.data.params["epochs"] == "2"
    assert trained.data.params["encoder"] == "efficientnet-lite0"
    datasets = [one.dataset for one in trained.inputs.dataset_inputs]
    assert all(one.name.startswith("chips ") for one in datasets)
    assert len({one.digest for one in datasets}) == len(datasets) > 0
    assert all("train_tier_1/catalog.json" in one.source for one in datasets)
    assert [name for name in artifacts(trained, "images") if "validation" in name]
    assert {"augmented.jpg", "validation.jpg"} < artifacts(trained, None)
    version = client.get_model_version_by_alias(NAME, "candidate")
    assert version.run_id == trained.info.run_id
    assert version.tags["gsd"] == "0.1"


def test_training_goes_on_from_a_version(sample_line, store, monkeypatch):
    use_experiment("finer", monkeypatch)
    chips_run = sample_line.steps["prepare"].info.run_id
    words = ["--init", f"models:/{NAME}@champion", "--chips", chips_run, "--name", "finer", "--epochs", "1"]
    train.run(parsed("train", [*words, "--learning_rate", "1e-8", "--ema", "0"]))
    version = MlflowClient().get_model_version_by_alias("finer", "candidate")
    found = mlflow.get_run(version.run_id).data.metrics["validation/best_iou"]
    assert found == pytest.approx(sample_line.steps["train"].data.metrics["validation/best_iou"], abs=0.1)
    steps = mlflow.models.get_model_info("models:/finer@candidate").metadata["trained_on"]
    assert [step["chips"] for step in steps] == [chips_run, chips_run]


def test_a_killed_training_goes_on_to_the_same_end(sample_line, store, monkeypatch):
    use_experiment("killed", monkeypatch)
    chips_run = sample_line.steps["prepare"].info.run_id
    words = ["--chips", chips_run, "--epochs", "2", "--name", "killed"]
    environment = {**store.environment, "MLFLOW_EXPERIMENT_NAME": "killed", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "entrypoints.train", *words]
    process = subprocess.Popen(command, cwd=store.folder, env=environment, stderr=subprocess.DEVNULL)
    client = MlflowClient()
    experiment = mlflow.get_experiment_by_name("killed").experiment_id

    def states() -> list[str]:
        ids = [found.info.run_id for found in client.search_runs([experiment])]
        return [run_id for run_id in ids if client.list_artifacts(run_id, "state")]

    while process.poll() is None and not states():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    (killed,) = states()
    process.kill()
    process.wait()
    done = run(store, "train", "killed", resume=killed)
    assert done.data.tags["mlflow.note.content"] == f"Goes on in run {killed}."
    found, whole = client.get_run(killed), sample_line.steps["train"]
    assert found.info.status == "FINISHED"
    for name in ("train/loss", "validation/loss", "validation/iou"):
        history, expected = (client.get_metric_history(r.info.run_id, name) for r in (found, whole))
        assert [point.step for point in history] == [1, 2]
        assert [p.value for p in history] == pytest.approx([p.value for p in expected], rel=0.02)
    assert client.get_model_version_by_alias("killed", "candidate").run_id == killed
    assert not client.list_artifacts(killed, "state")
    for run_id, message in ((killed, "that one is a FINISHED `train` run"), ("0" * 32, "names no run")):
        with pytest.raises(InputError, match=message):
            train.run(parsed("train", ["--resume", run_id]))
    with pytest.raises(SystemExit):
        parsed("train", ["--resume", killed, "--epochs", "3"])


def test_model_loads_without_the_package(sample_line, store):
    code = (
        "import sys, mlflow, numpy as np\n"
        f"model = mlflow.keras.load_model('models:/{NAME}@champion')\n"
        "p = model.predict(np.full((1, 90, 61, 3), 120, np.uint8), verbose=0)\n"
        "assert p.shape == (1, 90, 61, 4) and p.dtype == np.float32 and 0 <= p.min() <= p.max() <= 1\n"
        "assert not any(name.startswith('ocmlflow') for name in sys.modules)\n"
    )
    isolated = [sys.executable, "-P", "-c", code]  # -P: not even the working directory
    done = subprocess.run(isolated, cwd=store.folder, env=store.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_evaluate_scores_reports_and_promotes(sample_line):
    evaluated = sample_line.steps["evaluate"]
    figures = evaluated.data.metrics
    assert figures["iou"] >= figures["iou_at_half"] > 0
    assert figures["place/hil"] == pytest.approx(figures["iou"])  # the one place held out
    names = artifacts(evaluated)
    assert {"report.html", "scores_by_scene.json", "scores_by_place.json", "threshold_sweep.json"} <= names
    page = mlflow.artifacts.load_text(f"{evaluated.info.artifact_uri}/report.html")
    assert f"{figures['iou']:.3f}" in page
    assert "becomes champion: there was none" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # nothing loaded from outside
    champion = MlflowClient().get_model_version_by_alias(NAME, "champion")
    assert float(champion.tags["threshold"]) == pytest.approx(figures["threshold"])


def test_predict_packs_the_samples_chips_and_maps_its_scenes(sample_line):
    with tarfile.open(sample_line.output / "submission.tgz") as archive:
        names = archive.getnames()
    chips = sorted(path.name for path in sample_line.work.glob("sample-*/test/*/*.tif"))
    assert names == chips
    scenes = sorted(path.name for path in sample_line.work.glob("sample-*/train_tier_1/hil/*/*.tif"))
    assert sorted(path.name for path in (sample_line.output / "masks").iterdir()) == sorted(chips + scenes)
    assert len(list((sample_line.output / "footprints").glob("*.geojson"))) == len(scenes)


def test_main_reuses_chips_and_model(sample_line, store):
    again = run(store, "main", "sample", epochs=2, output=sample_line.output, work=sample_line.work)
    found = MlflowClient().search_runs([again.info.experiment_id], f"tags.mlflow.parentRunId = '{again.info.run_id}'")
    assert {child.data.tags["ocmlflow.verb"] for child in found} == {"evaluate", "predict"}


@pytest.fixture(scope="module")
def real_line(store):
    if not REAL.exists():
        pytest.skip("no real scenes here")
    catalog = REAL / "train_tier_1" / "catalog.json"
    prepared = run(store, "prepare", "real", catalog=catalog, validation="kam", work=store.folder / "work")
    recipe = {"epochs": 1, "crop": 128, "batch_size": 4, "name": "real"}
    trained = run(store, "train", "real", **recipe)
    evaluated = run(store, "evaluate", "real", model="models:/real@candidate")
    return Namespace(prepared=prepared, trained=trained, evaluated=evaluated)


def test_real_scenes_are_cut_and_learnt(real_line):
    assert real_line.prepared.data.metrics["validation/chips"] == 15
    # Everything called building would score .24 on kam.
    assert real_line.evaluated.data.metrics["place/kam"] > 0.4


def test_real_scene_becomes_cogs_and_footprints(real_line, store):
    output = store.folder / "kam"
    image = REAL / "train_tier_1" / "kam" / "kam01" / "kam01.tif"
    run(store, "predict", "real", model="models:/real@champion", images=image, output=output)
    with rasterio.open(image) as scene, rasterio.open(output / "masks" / "kam01.tif") as mask:
        assert (mask.crs, mask.transform, mask.shape) == (scene.crs, scene.transform, scene.shape)
        valid, building = scene.read(4) > 127, mask.read(1)
        pixel_m2 = abs(mask.transform.determinant)
    assert set(np.unique(building)) == {0, 1, 255}
    np.testing.assert_array_equal(building != 255, valid)
    for name in ("masks", "probabilities"):
        valid_cog, faults, warned = cog_validate(output / name / "kam01.tif", strict=True)
        assert valid_cog, (faults, warned)
    footprints = gpd.read_parquet(output / "footprints" / "kam01.parquet")
    in_degrees = gpd.read_file(output / "footprints" / "kam01.geojson")
    assert len(footprints) == len(in_degrees) > 50
    assert in_degrees.crs.to_epsg() == 4326
    found_m2 = np.bincount(measure.label(building == 1, connectivity=1).ravel())[1:] * pixel_m2
    assert footprints.area_m2.sum() == pytest.approx(found_m2[found_m2 >= 2].sum(), rel=0.05)  # specks: mask alone


def test_a_real_scene_shows_no_seam(real_line):
    """99.9 % of the pixels differ by less than 0.02 from one whole window; after one epoch it takes this margin."""
    model = registry.load_model("models:/real@champion")
    predict_any = inference.padded(model.keras.predict_on_batch, model.facts.multiple)
    with raster.open_scene(str(REAL / "train_tier_1" / "kam" / "kam01" / "kam01.tif")) as (dataset, own):
        ground = geobox.utm_grid(own, gsd=model.facts.gsd)
        with resample.window_reader(dataset, own, ground) as read:
            whole = predict_any(read(Window(0, 0, ground.width, ground.height)).image[np.newaxis])[0, ..., 0]
            tiles = windows.tiles(ground.height, ground.width, size=1024, margin=256, multiple=model.facts.multiple)
            assert len(tiles) > 4
            parts = np.zeros_like(whole)
            for core in inference.predict_tiles(predict_any, read, tiles, batch_size=1):
                parts[core.tile.core.toslices()] = core.probability
    assert whole.max() - whole.min() > 0.5
    assert (np.abs(parts - whole) < 0.02).mean() > 0.999


def test_real_chips_become_a_checked_submission(real_line, store):
    output = store.folder / "chips"
    run(store, "predict", "real", model="models:/real@champion", images=REAL / "test/catalog.json", output=output)
    with tarfile.open(output / "submission.tgz") as archive:
        assert len(archive.getnames()) == 25
    for path in (output / "masks").iterdir():
        with rasterio.open(path) as mask, rasterio.open(REAL / "test" / path.stem / path.name) as chip:
            assert (mask.count, mask.dtypes[0], mask.shape) == (1, "uint8", chip.shape)
            assert set(np.unique(mask.read(1))) <= {0, 1}


def test_a_worse_candidate_does_not_become_champion(real_line, store):
    client = MlflowClient()
    before = client.get_model_version_by_alias("real", "champion").version
    run(store, "train", "real", epochs=1, weights="none", crop=32, batch_size=32, name="real")
    assert client.get_model_version_by_alias("real", "candidate").version != before
    evaluated = run(store, "evaluate", "real", model="models:/real@candidate")
    verdict = evaluated.data.tags["mlflow.note.content"]
    assert re.search(r"Not promoted: IoU 0\.\d{4} against 0\.\d{4} of .* on the same chips", verdict)
    assert client.get_model_version_by_alias("real", "champion").version == before


def use_experiment(name, monkeypatch):
    """Make an experiment the current one."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")  # set_experiment sets it: restored at the end
    mlflow.set_experiment(name)


@pytest.fixture
def empty(store, monkeypatch):
    """An experiment without runs, for verbs called in this process."""
    use_experiment("empty", monkeypatch)
    monkeypatch.chdir(store.folder)


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        (train, "", "no finished `prepare` run"),
        (train, "--chips 0123456789abcdef0123456789abcdef", "names no run"),
        (evaluate, "--model models:/nobody@champion", "no model models:/nobody@champion"),
        (evaluate, "--model models:/open-cities-buildings@nobody", "@candidate"),
        (prepare, "--catalog nowhere/catalog.json", "no STAC catalogue at nowhere/catalog.json"),
        (predict, "--images nowhere.tif --output out", "no image at nowhere.tif"),
    ],
)
def test_a_step_that_cannot_work_says_so_first(verb, words, message, sample_line):
    with pytest.raises(InputError, match=re.escape(message)):
        verb.run(parsed(verb.__name__.rpartition(".")[2], words.split()))


@pytest.mark.usefixtures("empty")
def test_chips_of_a_run_that_failed_are_refused(sample_line, tmp_path):
    with pytest.raises(InputError, match="no STAC catalogue"):
        prepare.run(parsed("prepare", ["--catalog", str(tmp_path / "none.json"), "--work", str(tmp_path)]))
    (failed,) = MlflowClient().search_runs(
        [mlflow.get_experiment_by_name("empty").experiment_id],
        "tags.`ocmlflow.verb` = 'prepare'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    assert failed.data.tags["mlflow.note.content"].startswith("**Failed**: InputError: no STAC catalogue")
    with pytest.raises(InputError, match="a finished `prepare` run is needed, that one is a FAILED"):
        train.run(parsed("train", ["--chips", failed.info.run_id]))


@pytest.mark.usefixtures("empty")
def test_signatures_are_not_logged(store):
    signed = "https://127.0.0.1:9/catalog.json?X-Amz-Signature=s3cr3t"
    with pytest.raises(InputError):
        prepare.run(parsed("prepare", ["--catalog", signed]))
    assert b"s3cr3t" not in (store.folder / "mlflow.db").read_bytes()


def test_two_processes_cannot_make_the_same_chips(tmp_path):
    with pytest.raises(InputError, match="another process is doing the same work"):  # noqa: SIM117
        with work_folder.hold(tmp_path / "chips"), work_folder.hold(tmp_path / "chips"):
            pass


@pytest.mark.usefixtures("empty")
def test_an_output_that_cannot_be_written_stops_predict_before_work(sample_line, tmp_path):
    (tmp_path / "file").write_text("no folder")
    images = next(sample_line.work.glob("sample-*/test/*/*.tif"))
    with pytest.raises(InputError, match="cannot write to"):
        predict.run(parsed("predict", ["--images", str(images), "--output", str(tmp_path / "file")]))


@pytest.fixture(scope="module")
def hil(sample_line, tmp_path_factory):
    """The middles of two scenes of the sample, as `images=`."""
    folder, side = tmp_path_factory.mktemp("hil"), 640
    scenes = sorted(sample_line.work.glob("sample-*/train_tier_1/hil/*/*.tif"))[:2]
    for path in scenes:
        with rasterio.open(path) as scene:
            middle = Window((scene.width - side) // 2, (scene.height - side) // 2, side, side)
            place = {"height": side, "width": side, "transform": scene.window_transform(middle)}
            with rasterio.open(folder / path.name, "w", **{**scene.profile, **place}) as part:
                part.write(scene.read(window=middle))
                part.colorinterp = scene.colorinterp
    parts = sorted(folder.iterdir())
    assert len(parts) == 2
    return parts


def collection(output) -> list[pystac.Item]:
    found = pystac.Collection.from_file(str(output / "collection.json"))
    found.validate_all()
    return list(found.get_items())


@pytest.mark.usefixtures("empty")
def test_results_are_a_stac_collection_that_grows(sample_line, hil, tmp_path):
    for count, image in enumerate(hil, 1):
        words = ["--images", str(image), "--output", str(tmp_path / "out"), "--work", str(sample_line.work)]
        (row,) = predict.run(
            parsed("predict", [*words, "--threshold", "0.55"])
        )  # its own takes nearly all for building
        assert row.status == "predicted"
        items = collection(tmp_path / "out")
        assert [item.id for item in items] == [path.stem for path in hil[:count]]
    item = items[-1]
    assert row.buildings > 1
    assert item.get_single_link("derived_from").href == str(hil[1])
    assert item.properties["ocmlflow:model"] == f"{NAME} version 1"
    assert item.properties["ocmlflow:buildings"] == row.buildings
    for name in ("footprints", "flatgeobuf", "geojson"):
        read = gpd.read_parquet if name == "footprints" else gpd.read_file
        found = read(item.assets[name].get_absolute_href())
        assert len(found) == row.buildings
        assert found.area_m2.sum() == pytest.approx(row.building_area_m2, abs=0.1)
    with Image.open(item.assets["overview"].get_absolute_href()) as picture:
        assert picture.width > picture.height
    (newest,) = MlflowClient().search_runs(
        [mlflow.get_experiment_by_name("empty").experiment_id], "tags.`ocmlflow.verb` = 'predict'", max_results=1
    )
    assert artifacts(newest, "pictures") == {f"pictures/{item.id}.jpg"}
    for name in ("mask", "probability"):
        assert cog_validate(item.assets[name].get_absolute_href(), strict=True)[0]
    assert {path.suffix for path in (sample_line.work / "predict").iterdir()} == {".lock"}


@pytest.mark.usefixtures("empty")
def test_an_ensemble_that_sees_eight_views_goes_on_after_an_interruption(sample_line, hil, tmp_path, monkeypatch):
    words = ["--images", ",".join(map(str, hil)), "--model", f"models:/{NAME}/1,models:/{NAME}@champion"]
    words += ["--tta", "flips", "--work", str(sample_line.work)]
    whole = predict.run(parsed("predict", [*words, "--output", str(tmp_path / "whole")]))
    draw, calls = scene_map.map_scene, []

    def breaking(scene, *rest, **more):
        calls.append(scene.id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw(scene, *rest, **more)

    monkeypatch.setattr(scene_map, "map_scene", breaking)
    with pytest.raises(KeyboardInterrupt):
        predict.run(parsed("predict", [*words, "--output", str(tmp_path / "out")]))
    again = predict.run(parsed("predict", [*words, "--output", str(tmp_path / "out")]))
    assert calls == [hil[0].stem, hil[1].stem, hil[1].stem]
    assert figures(again) == figures(whole)
    for file in (tmp_path / "whole").rglob("*.tif"):
        assert file.read_bytes() == (tmp_path / "out" / file.relative_to(tmp_path / "whole")).read_bytes()


def figures(maps):
    """What maps in different outputs have in common."""
    return [replace(one, seconds=0, probability=None, mask=None, footprints=None) for one in maps]


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as found:
        yield found.scheduler_address


@pytest.mark.usefixtures("empty")
def test_workers_a_cluster_and_shares_give_the_same_files(sample_line, hil, cluster, tmp_path, monkeypatch):
    """A scene of many windows and chips of one; what two shares have predicted is not predicted again."""
    images = [hil[0], *sorted(sample_line.work.glob("sample-*/test/*/*.tif"))[:2]]
    words = ["--images", ",".join(map(str, images)), "--work", str(sample_line.work), "--size", "256"]
    words += ["--margin", "32", "--threshold", "0.55"]
    whole = predict.run(parsed("predict", [*words, "--output", str(tmp_path / "whole")]))
    assert whole[0].buildings > 1
    ways = {"processes": ["--workers", "2"], "dask": ["--scheduler", cluster], "shares": []}
    for way, more in ways.items():
        there = [*words, "--output", str(tmp_path / way)]
        if way == "shares":
            for share in ("1/2", "0/2"):
                assert predict.run(parsed("predict", [*there, "--share", share])) == []
            assert not list((tmp_path / way).rglob("*.*"))
            monkeypatch.setattr(Ensemble, "__call__", None)
        maps = predict.run(parsed("predict", [*there, *more]))
        assert figures(maps) == figures(whole)
        files = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.*")}
        assert files == {path.relative_to(tmp_path / way) for path in (tmp_path / way).rglob("*.*")}
        for file in files:
            assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / way / file).read_bytes(), file


def test_predict_with_openvino_never_loads_keras(sample_line, hil, store, tmp_path):
    """It costs half a gigabyte, and seconds."""
    words = ["--images", str(hil[0]), "--output", str(tmp_path / "out"), "--work", str(sample_line.work)]
    code = (
        "import sys; from ocmlflow.pipeline import predict; from ocmlflow.pipeline.options import PredictOptions\n"
        "from ocmlflow.cli import arguments\n"
        "maps = predict.run(arguments.parse(PredictOptions, sys.argv[1:], prog='predict'))\n"
        "assert [one.status for one in maps] == ['predicted']\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)\n"
    )
    environment = {**store.environment, "MLFLOW_EXPERIMENT_NAME": "empty", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.usefixtures("empty")
def test_calibration_changes_probabilities(sample_line, hil, tmp_path):
    client = MlflowClient()
    own = client.get_model_version(NAME, "1").tags[model_evaluation.TEMPERATURE]
    try:
        for folder, temperature in (("out", "2"), ("plain", "1")):
            client.set_model_version_tag(NAME, "1", model_evaluation.TEMPERATURE, temperature)
            words = ["--images", str(hil[0]), "--output", str(tmp_path / folder), "--work", str(sample_line.work)]
            predict.run(parsed("predict", [*words, "--grid", "model"]))
    finally:
        client.set_model_version_tag(NAME, "1", model_evaluation.TEMPERATURE, own)
    hot, plain = (
        rasterio.open(tmp_path / name / "probabilities" / f"{hil[0].stem}.tif").read(1) for name in ("out", "plain")
    )
    seen = (plain != 255) & (plain > 2) & (plain < 97)
    odds = plain[seen] / (100 - plain[seen])
    np.testing.assert_allclose(hot[seen], 100 * odds**0.5 / (1 + odds**0.5), atol=5)


@pytest.mark.usefixtures("empty")
def test_what_cannot_be_opened_and_what_lies_elsewhere_is_listed(sample_line, hil, tmp_path):
    (tmp_path / "broken.tif").write_bytes(b"II*\0 and no more")
    with rasterio.open(hil[0]) as scene:
        left, bottom, right, top = rasterio.warp.transform_bounds(scene.crs, "EPSG:4326", *scene.bounds)
    middle = (left + right) / 2
    corners = [[left, bottom], [middle, bottom], [middle, top], [left, top], [left, bottom]]
    aoi = tmp_path / "aoi.geojson"
    aoi.write_text(json.dumps({"type": "Polygon", "coordinates": [corners]}))
    words = ["--images", f"{hil[0]},{tmp_path / 'broken.tif'}", "--output", str(tmp_path / "out")]
    words += ["--work", str(sample_line.work), "--aoi", str(aoi), "--grid", "model"]
    with pytest.raises(InputError, match=r"cannot open image .*broken\.tif"):
        predict.run(parsed("predict", words))
    good, bad = predict.run(parsed("predict", [*words, "--skip_unreadable", "true"]))
    assert good.status == "predicted"
    assert bad.status.startswith("unreadable: cannot open image")
    with rasterio.open(tmp_path / "out" / "masks" / f"{hil[0].stem}.tif") as mask:
        found = mask.read(1)
    assert (found[:, mask.width * 3 // 4 :] == 255).all()
    assert (found[:, : mask.width // 3] == 1).any()
    aoi.write_text(json.dumps({"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}))
    with pytest.raises(InputError, match=f"no scene can be predicted: {hil[0].stem} is outside aoi"):
        predict.run(parsed("predict", [*words, "--skip_unreadable", "true"]))
