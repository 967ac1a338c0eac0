"""What `train` is told and finds, on small chips, with networks of one layer that need no training."""

import re
import shutil
from argparse import Namespace
from dataclasses import replace

import mlflow
import pytest
from conftest import one_layer, own_store, parsed, rules_with, two_towns
from mlflow import MlflowClient

from ocmlflow.chips import chip_set, splits
from ocmlflow.errors import InputError
from ocmlflow.pipeline import scoring, train
from ocmlflow.tracking import chip_artifacts, registry, runs
from ocmlflow.tracking.model_facts import ChipSplit, ModelFacts

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's libraries warn of one another
BASE = "models:/towns@base"


@pytest.fixture(scope="module")
def line(made, tmp_path_factory):
    """A store with the chips of `made` as a `prepare` run, and two versions of `towns`."""
    with own_store(tmp_path_factory.mktemp("mlflow"), "towns"):
        prepared = keep(made)
        registry.register("towns")
        for number in (1, 2):
            with runs.run("train", {}) as trained:
                facts = ModelFacts(
                    gsd=0.1,
                    multiple=1,
                    run=trained.info.run_id,
                    chips=prepared,
                    trained_on=(ChipSplit(prepared, None),),
                    architecture=f"architecture{number}",
                    encoder=f"encoder{number}",
                )
                runs.log_model(one_layer(4, -2), facts, name="towns")
        yield Namespace(chips=prepared)


def keep(made) -> str:
    """Run id of a `prepare` run with these chips."""
    with runs.run("prepare", {}) as prepared:
        mlflow.log_artifacts(str(made.folder), "chips")
    return prepared.info.run_id


def name_base(version: int) -> None:
    MlflowClient().set_registered_model_alias("towns", "base", str(version))


def words(line, **parameters) -> list[str]:
    given = {"chips": line.chips, "crop": 32, "batch_size": 4, "epochs": 2, "name": "trained", **parameters}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def last():
    (found,) = mlflow.search_runs(
        experiment_names=["towns"],
        filter_string="tags.`ocmlflow.verb` = 'train'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
        output_format="list",
    )
    return found


@pytest.fixture(scope="module")
def broken_off(line):
    """The run of a training that ended with its second epoch, begun when `base` was the first version."""
    name_base(1)
    tell = runs.log_metrics

    def break_off(values, *, step=0):
        if step == 2:
            raise KeyboardInterrupt
        tell(values, step=step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "log_metrics", break_off)
        with pytest.raises(KeyboardInterrupt):
            train.run(parsed("train", words(line, init=BASE)))
    return last()


def test_with_a_version_to_go_on_from_no_other_network_is_named(line, broken_off, capsys):
    assert not {"architecture", "encoder", "weights"} & broken_off.data.params.keys()
    with pytest.raises(SystemExit):
        parsed("train", words(line, init=BASE, encoder="resnet50", weights="none"))
    assert "--init: the network of that version is trained, leave out encoder, weights" in capsys.readouterr().err


def test_a_frozen_encoder_of_random_weights_is_refused(capsys):
    with pytest.raises(SystemExit):
        parsed("train", ["--freeze", "1", "--weights", "none"])
    assert "argument --freeze: an encoder of random weights has to learn" in capsys.readouterr().err


def test_a_training_is_not_resumed_on_another_backend(broken_off, monkeypatch):
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    with pytest.raises(InputError, match="was begun on tensorflow, this is jax: set KERAS_BACKEND=tensorflow"):
        train.run(parsed("train", ["--resume", broken_off.info.run_id]))


def test_a_training_is_resumed_from_the_version_that_it_took_though_the_alias_moved(broken_off):
    name_base(2)
    train.run(parsed("train", ["--resume", broken_off.info.run_id]))
    found = mlflow.get_run(broken_off.info.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["init"] == BASE
    facts = registry.load_model("models:/trained@candidate").facts
    assert (facts.init, facts.encoder) == ("towns version 1", "encoder1")


def test_the_model_of_a_training_shows_its_scores_and_not_those_of_the_machine(broken_off):
    run = mlflow.get_run(broken_off.info.run_id)
    logged = mlflow.get_logged_model(registry.load_model("models:/trained@candidate").key)
    assert logged.name == "architecture1-encoder1-kam"
    assert {metric.key: metric.value for metric in logged.metrics} == {
        name: run.data.metrics[name] for name in ("best_epoch", "validation/best_iou")
    }
    assert {metric.dataset_name for metric in logged.metrics} == {"chips kam validation"}
    inputs = {(one.dataset.name, one.tags[0].value) for one in run.inputs.dataset_inputs}
    assert inputs == {("chips acc train", "training"), ("chips kam validation", "validation")}
    version = MlflowClient().get_model_version_by_alias("trained", "candidate")
    assert "pooled validation IoU" in version.description
    assert version.tags.keys() == {"architecture", "encoder", "gsd", "init", "validation"}
    assert logged.tags["mlflow.note.content"] == version.description
    for text in ("Chips of acc (", "licences: not stated", "models:/trained@candidate", "going on from"):
        assert text in version.description
    item = mlflow.artifacts.load_dict(f"models:/trained/{version.version}/stac_item.json")
    assert item["properties"]["mlm:architecture"] == "architecture1 on encoder1"
    assert re.fullmatch(r"\d\.\d{3} train kam encoder1", run.info.run_name)


def test_a_training_that_ended_before_it_had_chips_is_begun_anew(line):
    with pytest.raises(InputError, match="there is no encoder nobody"):
        train.run(parsed("train", words(line, encoder="nobody")))
    with pytest.raises(InputError, match=r"left no state: .*; start a new one"):
        train.run(parsed("train", ["--resume", last().info.run_id]))


def test_a_key_names_the_version_and_not_the_alias(line):
    keys = []
    for version in (1, 2, 1):
        name_base(version)
        keys.append(train.key(parsed("train", words(line, init=BASE)), "digest"))
    assert keys[0] == keys[2] != keys[1]
    assert keys[0] == train.key(parsed("train", words(line, init="models:/towns/1")), "digest")


def test_what_evaluate_would_refuse_is_not_trained(line, made, tmp_path):
    """Pixels of training chips under another georeference, those of the version's training and of this one's."""
    rows = made.index
    roof = rows[(rows.split == "train") & (rows.building_share > 0)].iloc[0].hash
    held = rows.index[(rows.split == "validation") & (rows.building_share > 0)][0]
    index = rows.assign(hash=rows.hash.where(rows.index != held, roof))
    other = saved(made, index, tmp_path / "same")
    with pytest.raises(InputError, match="1 validation chips of kkk show the pixels of training chips"):
        train.run(parsed("train", words(line, chips=other)))
    index = index.assign(split=index.split.where(index.hash != roof, "unused"))
    index.loc[held, "split"] = "validation"
    other = saved(made, index, tmp_path / "ancestors")
    with pytest.raises(InputError, match=r"1 of the \d+ validation chips lie on ground that towns version 1"):
        train.run(parsed("train", words(line, chips=other, init="models:/towns/1")))


def test_a_model_of_a_fold_was_not_trained_on_what_touched_it(line, made, tmp_path):
    kam = made.index.place == "kam"
    folded = made.index[kam].assign(fold=made.index.col[kam] // 64 % 2)
    run_id = saved(made, folded, tmp_path / "folds")
    held = chip_set.load(tmp_path / "folds", fold=1)
    assert splits.touches(held.select("validation"), folded[folded.fold == 0]).any()
    with runs.run("train", {}) as trained:
        split = ChipSplit(run_id, 1)
        facts = ModelFacts(
            gsd=0.1, multiple=1, run=trained.info.run_id, chips=run_id, trained_on=(split,), fold=split.fold
        )
        runs.log_model(one_layer(4, -2), facts, name="towns")
    model = registry.load_model("models:/towns/3")
    scoring.check_fair(model, held, "validation")
    for rows, split in (
        (chip_artifacts.training_rows(model), "train"),
        (chip_artifacts.validation_rows(model), "validation"),
    ):
        assert set(rows.id) == set(held.select(split).id) > set()


def test_chips_that_leave_nothing_to_learn_are_refused(line, tmp_path):
    ringed = keep(two_towns(tmp_path, rules_with(buffer_m=10.0)))
    with pytest.raises(InputError, match="nothing to learn from: buffer_m=10 leaves out all of their buildings"):
        train.run(parsed("train", words(line, chips=ringed)))


def test_training_ends_with_the_name_of_a_damaged_chip(line, made, tmp_path, capfd):
    """A byte of one training chip was altered: the error is that of the chip set, not TensorFlow's."""
    run_id = keep(made)
    shard = chip_artifacts.open_folder(run_id) / "aaa.zarr" / "image" / "c.0.0.0.0"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"aaa\.zarr/image/c\.0\.0\.0\.0 is damaged: .*; prepare the chips again"):
        train.run(parsed("train", words(line, chips=run_id, weights="none")))
    assert capfd.readouterr().err.count("\n") < 20


def test_the_chips_of_another_run_are_not_taken_for_those_of_this_one(line, made):
    with runs.run("prepare", {}) as prepared:
        runs.identify({chip_artifacts.DIGEST: "0" * 32})
        mlflow.log_artifacts(str(made.folder), "chips")
    with pytest.raises(InputError, match=r"index\.parquet is damaged: it does not give the digest 0{32} of run"):
        chip_artifacts.open_chips(prepared.info.run_id)


def saved(made, index, folder) -> str:
    shutil.copytree(made.folder, folder)
    chip_set.save(folder, index, made.rules, [], {})
    return keep(replace(made, folder=folder))
