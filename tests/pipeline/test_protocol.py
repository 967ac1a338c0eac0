"""Protocols on small scenes, through the steps' own processes, and the table that they leave."""

import contextlib
import os
import re
from argparse import Namespace
from collections import Counter
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from affine import Affine
from conftest import TRANSFORM, own_store, parsed, town, write_catalog
from mlflow import MlflowClient

from ocmlflow.chips import chip_set
from ocmlflow.errors import InputError
from ocmlflow.pipeline import protocol
from ocmlflow.scenes import catalog
from ocmlflow.tracking import chip_artifacts, runs

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's libraries warn of one another


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The catalogue of ten scenes of one chip each, a kilometre apart, half of them of another place."""
    folder = tmp_path_factory.mktemp("towns")
    drawn = {}
    for number in range(10):
        name, at = f"{('acc', 'kam')[number % 2]}/s{number}", TRANSFORM @ Affine.translation(10_000 * number, 0)
        drawn[name] = town(folder, name, transform=at, height=200, width=300, seed=number)
    return write_catalog(folder, drawn)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """An MLflow store of this module's own."""
    with own_store(tmp_path_factory.mktemp("mlflow"), "protocols") as made:
        yield made


def words_of(**parameters):
    return [word for name, value in parameters.items() if value is not None for word in (f"--{name}", str(value))]


def run(store, scenes, **parameters):
    """The run of a protocol, its steps by title, and its table by part; paths are those of another folder than ours."""
    with contextlib.chdir(store.folder):
        given = {"catalog": os.path.relpath(scenes), "work": "work", "epochs": 1, "train": "batch_size=1,crop=64"}
        protocol.run(parsed("protocol", words_of(**given, **parameters)))
    (found,) = MlflowClient().search_runs(
        [store.experiment],
        f"tags.`{runs.VERB}` = 'protocol'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    steps = MlflowClient().search_runs([store.experiment], f"tags.mlflow.parentRunId = '{found.info.run_id}'")
    table = mlflow.load_table("protocol.json", run_ids=[found.info.run_id]).set_index("part")
    # Names begin with the score, where there is one.
    return found, {re.sub(r"^(0\.\d+|no score) ", "", step.info.run_name): step for step in steps}, table


def test_blocks_scores_test_ground_and_goes_on_where_it_was(store, scenes):
    found, steps, table = run(store, scenes, name="blocks")
    assert set(steps) == {"prepare blocks", "train blocks", "evaluate blocks, validation", "evaluate blocks, test"}
    index = chip_set.load(chip_artifacts.open_folder(steps["prepare blocks"].info.run_id)).index
    assert Counter(index.split) == {"train": 6, "validation": 2, "test": 2}  # each place gives some
    row, tested = table.loc["blocks"], steps["evaluate blocks, test"].data.metrics
    for name in ("iou", "iou_at_half", "precision", "recall", "object/f1"):
        assert row[name.replace("/", "_")] == pytest.approx(tested[name], nan_ok=True)
    assert row.held_out == "validation=0.1, test=0.2"
    assert row.chips == 2
    assert row.building_share == pytest.approx(steps["prepare blocks"].data.metrics["test/building_share"])
    trained = steps["train blocks"].info
    assert row.minutes == pytest.approx((trained.end_time - trained.start_time) / 60_000)
    for name in ("blocks/iou", "mean/iou", "pooled/iou"):
        assert found.data.metrics[name] == pytest.approx(row.iou)
    assert (
        f"| blocks | validation=0.1, test=0.2 | 2 | {row.building_share:.3f} |"
        in found.data.tags["mlflow.note.content"]
    )
    assert set(MlflowClient().get_registered_model("blocks").aliases) == {"candidate"}

    MlflowClient().delete_run(steps["evaluate blocks, test"].info.run_id)  # as if killed before it
    _, again, same = run(store, scenes, name="blocks")
    assert set(again) == {"evaluate blocks, test"}
    pd.testing.assert_frame_equal(same, table)


def test_leave_one_place_out_holds_out_each_place_in_turn(scenes):
    found = catalog.read_scenes(scenes)
    for places, parts in ((None, ["acc", "kam"]), ("kam", ["kam"])):
        args = parsed("protocol", words_of(catalog=scenes, name="leave-one-place-out", places=places))
        assert protocol.PROTOCOLS[args.name](found, args) == [protocol.Part(p, {"validation": p}) for p in parts]


def test_parts_are_averaged_and_pooled():
    def report(chips, counts, half, buildings):
        names = ("tp", "fp", "fn", "tn")
        sizes = [{"size": size, **dict(zip(names, buildings, strict=False))} for size in ("below 25 m²", "all")]
        return {
            "chips": chips,
            "counts": dict(zip(names, counts, strict=True)),
            "counts_at_half": dict(zip(names, half, strict=True)),
            "sizes": sizes,
        }

    parts = [protocol.Part(place, {"validation": place}) for place in ("acc", "kam", "znz")]
    reports = [
        report(3, (10, 0, 10, 80), (5, 5, 15, 75), (1, 1, 0)),
        report(1, (90, 10, 0, 0), (80, 0, 10, 10), (3, 0, 1)),
    ]
    table = protocol.tabulate(parts, reports, [2.0, 4.0]).set_index("part")
    assert table.index.tolist() == ["acc", "kam", "mean", "pooled"]  # znz is still to come
    assert table.iou.tolist() == pytest.approx([0.5, 0.9, 0.7, 100 / 120])
    assert table.iou_at_half.tolist() == pytest.approx([0.2, 80 / 90, (0.2 + 80 / 90) / 2, 85 / 115])
    assert table.building_share.tolist() == pytest.approx([0.2, 0.9, 0.55, 110 / 200])
    assert table.object_f1.tolist() == pytest.approx([2 / 3, 6 / 7, (2 / 3 + 6 / 7) / 2, 8 / 10])
    assert table.chips.tolist() == [3, 1, 2, 4]
    assert table.minutes.tolist() == [2, 4, 3, 6]


def test_a_catalogue_that_does_not_carry_a_protocol_is_refused_by_name(store, scenes):
    with pytest.raises(InputError, match=r"lacks, with labels, acc/d41d81, .*znz/aee7fd; all eight are in tier 1"):
        run(store, scenes, name="first-benchmark")
    with pytest.raises(InputError, match=r"places=ban: there is no ban"):
        run(store, scenes, name="leave-one-place-out", places="ban")
    one = str(Path(scenes).parent / "kam" / "collection.json")
    with pytest.raises(InputError, match=r"leave-one-place-out: needs two places with labels; .* has 1"):
        run(store, one, name="leave-one-place-out")


def test_first_benchmark_takes_its_eight_scenes(scenes):
    wanted = [*protocol.BENCHMARK_TRAIN, *protocol.BENCHMARK_VALIDATION]
    others = [Namespace(id="other", place="acc")]
    found = [Namespace(id=name.split("/")[1], place=name.split("/")[0]) for name in wanted]
    args = Namespace(name="first-benchmark", catalog="c")
    (part,) = protocol.PROTOCOLS["first-benchmark"](found + others, args)
    assert part.cut == {
        "scenes": "d41d81,401175,a017f9,75cdfa,a42435,f15272,353093,aee7fd",
        "validation": "a42435,f15272,353093,aee7fd",
    }
    with pytest.raises(InputError, match="lacks, with labels, dar/353093;"):
        protocol.PROTOCOLS["first-benchmark"]([scene for scene in found if scene.id != "353093"], args)
