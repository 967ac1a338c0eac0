import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from ocmlflow.chips import chip_set
from ocmlflow.chips.zarr_store import RemoteFolder
from ocmlflow.errors import InputError
from ocmlflow.training import dataset, losses, optimizer
from ocmlflow.training import fit as fitting
from ocmlflow.training.augment import context_side
from ocmlflow.training.dataset import Crops, WholeChips
from ocmlflow.training.train_step import Recipe

RECIPE = Recipe(
    epochs=3,
    crop=16,
    augment=1,
    zoom=1.1,
    learning_rate=0.05,
    weight_decay=1e-4,
    warmup=0.1,
    ema=0,
    freeze=0,
    precision="float32",
    devices=1,
    patience=None,
    seed=3,
)
NAMES = {f"{part}{name}" for part in ("", "val_") for name in ("loss", "iou", "precision", "recall")}


def fit(
    made, loss=None, recipe=RECIPE, save=lambda path: None, resume=None
) -> tuple[keras.Model, int, float, list[dict[str, float]]]:
    """A tiny network trained to find white roofs; with the best epoch, its IoU, and the figures of each epoch."""
    keras.utils.set_random_seed(RECIPE.seed)
    image = keras.Input((None, None, 3), dtype="uint8")
    x = layers.Conv2D(4, 3, padding="same", activation="elu")(layers.Rescaling(1 / 255)(image))
    network = keras.Model(image, layers.Conv2D(1, 1, name="logits")(x))
    reports: list[tuple[int, dict[str, float]]] = []

    def report(epoch: int, figures: dict[str, float]) -> None:
        reports.append((epoch, figures))
        if epoch == recipe.epochs:  # whatever the last weights are, it is the best that are kept
            network.set_weights([0 * array for array in network.get_weights()])

    best_epoch, best = fitting.fit(
        network,
        Crops(
            made,
            side=context_side(RECIPE.crop, strength=RECIPE.augment, zoom=RECIPE.zoom),
            inner=RECIPE.crop,
            batch_size=4,
            seed=RECIPE.seed,
            workers=1,
            building_crops=0.5,
        ),
        WholeChips(made.folder, made.select("validation"), batch_size=4, devices=recipe.devices),
        recipe=recipe,
        loss=loss or losses.named("bce+dice"),
        report=report,
        save=save,
        resume=resume,
        progress=False,
    )
    first = reports[0][0]
    assert [epoch for epoch, _ in reports] == list(range(first, first + len(reports)))
    return network, best_epoch, best, [figures for _, figures in reports]


@pytest.fixture(scope="module", params=[0, 0.3])
def recipe(request):
    return replace(RECIPE, ema=request.param)


@pytest.fixture(scope="module")
def fitted(made, recipe):
    return fit(made, recipe=recipe)


def test_the_loss_falls_and_every_epoch_is_reported(fitted):
    *_, figures = fitted
    assert len(figures) == RECIPE.epochs
    assert figures[-1]["loss"] < figures[0]["loss"]
    for epoch in figures:
        assert epoch.keys() == NAMES | {"learning_rate", "chips_per_second", "seconds"}
        assert all(np.isfinite(value) for value in epoch.values())
        assert 0 < epoch["learning_rate"] <= RECIPE.learning_rate
        assert epoch["chips_per_second"] > 0


def test_the_weights_are_those_of_the_best_epoch_and_its_iou_is_pooled(fitted, made):
    network, best_epoch, best, figures = fitted
    assert best == max(epoch["val_iou"] for epoch in figures) == figures[best_epoch - 1]["val_iou"]
    images, coded = dataset.stack([chip_set.read(made.folder, row) for row in made.select("validation").itertuples()])
    predicted = network.predict_on_batch(images)[..., 0] >= 0
    label, valid = coded[..., 0] == 1, coded[..., 0] != 255
    iou = (predicted & label).sum() / ((predicted | label) & valid).sum()
    assert best == pytest.approx(iou, abs=1e-4)
    assert best > 0.5


def test_the_seed_decides(fitted, made, recipe):
    _, best_epoch, best, figures = fitted
    _, again_epoch, again, others = fit(made, recipe=recipe)
    assert (again_epoch, again) == (best_epoch, pytest.approx(best, abs=1e-3))
    np.testing.assert_allclose([f["loss"] for f in others], [f["loss"] for f in figures], rtol=1e-3)


def test_an_interrupted_training_goes_on_where_it_was(fitted, made, recipe, tmp_path):
    states = []

    def save(path):
        states.append(shutil.copy(path, tmp_path / f"{len(states)}.npz"))

    fit(made, recipe=recipe, save=save)
    assert len(states) == RECIPE.epochs - 1
    network, best_epoch, best, figures = fitted
    for done, state in enumerate(states, 1):
        keras.utils.set_random_seed(9)
        again, again_epoch, again_best, others = fit(made, recipe=recipe, resume=state)
        assert (again_epoch, again_best) == (best_epoch, pytest.approx(best, abs=1e-3))
        np.testing.assert_allclose([f["loss"] for f in others], [f["loss"] for f in figures[done:]], rtol=1e-3)
        for one, other in zip(again.get_weights(), network.get_weights(), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-3)


ENDED = """
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

from test_fit import RECIPE, fit

from ocmlflow.chips import chip_set
from ocmlflow.training.callbacks import EpochReporter, StateCheckpoint

at, after_step = (int(sys.argv[3]), int(sys.argv[4])), StateCheckpoint.on_train_batch_end
steps = []


def with_signal(keeper, batch, logs=None):
    steps.append((keeper.epochs + 1, batch))
    if steps[-1] == at:
        os.kill(os.getpid(), signal.SIGTERM)
    after_step(keeper, batch, logs)


def in_validation(keeper, batch, logs=None):
    if at == (keeper.epochs + 1, -2):
        os.kill(os.getpid(), signal.SIGTERM)
    after_batch(keeper, batch, logs)


def after_epoch(reporter, epoch, logs=None):
    told(reporter, epoch, logs)
    if at == (epoch + 1, -1):
        os.kill(os.getpid(), signal.SIGTERM)


told, after_batch = EpochReporter.on_epoch_end, StateCheckpoint.on_test_batch_end
StateCheckpoint.on_test_batch_end = in_validation
StateCheckpoint.on_train_batch_end, EpochReporter.on_epoch_end = with_signal, after_epoch
recipe = replace(RECIPE, ema=float(sys.argv[2]))
try:
    fit(chip_set.load(Path(sys.argv[1])), recipe=recipe, save=lambda path: shutil.copy(path, "state.npz"))
except SystemExit as ended:
    assert at[1] < 0 or steps[-1] == at, steps
    os._exit(ended.code)  # nothing is tidied up: TensorFlow still fetches batches
"""


@pytest.mark.parametrize(("ema", "at"), [(0, (1, 0)), (0.3, (2, 2)), (0.3, (2, 3)), (0.3, (3, -2)), (0.3, (1, -1))])
def test_a_training_that_is_asked_to_end_goes_on_after_that_step_or_epoch(made, tmp_path, ema, at):
    folders = (str(folder) for folder in (Path(__file__).parents[2], Path(__file__).parents[1], Path(__file__).parent))
    command = [sys.executable, "-c", ENDED, str(made.folder), str(ema), *(str(number) for number in at)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr[-3000:]
    recipe = replace(RECIPE, ema=ema)
    network, best_epoch, best, figures = fit(made, recipe=recipe)
    states: list[Path] = []

    def save(path: Path) -> None:
        states.append(Path(shutil.copy(path, tmp_path / f"{len(states)}.npz")))

    again, again_epoch, again_best, others = fit(made, recipe=recipe, save=save, resume=tmp_path / "state.npz")
    assert (again_epoch, again_best) == (best_epoch, pytest.approx(best, abs=1e-3))
    whole = at[1] == -1  # -2 is in the validation, from which it goes back before the last step
    for name in NAMES:
        expected = [f[name] for f in figures[at[0] - (not whole) :]]
        np.testing.assert_allclose([f[name] for f in others], expected, rtol=1e-2, err_msg=name)
    for one, other in zip(again.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
    kept = [(int(state["epoch"]), int(state["steps"])) for state in map(np.load, states)]
    assert kept == [(epoch, 0) for epoch in range(at[0] + whole, RECIPE.epochs)]
    for state in states[:1]:  # of the epoch whose end was made above
        _, again_epoch, again_best, others = fit(made, recipe=recipe, resume=state)
        assert (again_epoch, again_best) == (best_epoch, pytest.approx(best, abs=1e-3))
        assert others[-1]["loss"] == pytest.approx(figures[-1]["loss"], rel=1e-2)


def test_a_state_that_a_full_disk_cuts_short_is_left_out(made, monkeypatch, caplog):
    whole, written, sent = np.savez, [], []

    def savez(path: Path, **state) -> None:
        written.append(path)
        if len(written) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        whole(path, **state)

    monkeypatch.setattr(np, "savez", savez)
    fit(made, save=lambda path: sent.append([file.name for file in path.parent.iterdir()]))
    assert "is not kept: [Errno 28]" in caplog.text
    assert sent == [["state.npz"]] * (RECIPE.epochs - 1)


def test_a_state_of_another_network_is_refused(made, tmp_path):
    np.savez(tmp_path / "state.npz", **{"now-0": np.zeros(3), "epoch": 1, "steps": 0, "best": 0, "best_epoch": 0})
    with pytest.raises(InputError, match=r"state\.npz is that of another network"):
        fit(made, resume=tmp_path / "state.npz")


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_frozen_encoder_learns_once_it_is_thawed(made, tmp_path, precision):
    states = []

    def save(path):
        states.append(shutil.copy(path, tmp_path / f"{len(states)}.npz"))

    recipe = replace(RECIPE, freeze=1, precision=precision)
    start, *_ = fit(made, recipe=replace(recipe, learning_rate=0, epochs=1))
    *_, figures = fit(made, recipe=recipe, save=save)
    names = [variable.path for variable in start.trainable_variables]
    after = [[np.load(state)[f"now-{n}"] for n in range(len(names))] for state in states]
    for name, *seen in zip(names, start.get_weights(), *after, strict=True):
        moved = [float(np.abs(one - other).max()) for one, other in pairwise(seen)]
        assert moved[1] > 1e-3
        assert (moved[0] == 0) == (not name.startswith("logits"))
    *_, again = fit(made, recipe=recipe, resume=states[0])  # which thaws where it would have
    np.testing.assert_allclose([f["loss"] for f in again], [f["loss"] for f in figures[1:]], rtol=1e-3)


def test_what_thaws_makes_no_longer_steps_than_the_rest():
    image = keras.Input((None, None, 3))
    network = keras.Model(image, layers.Conv2D(8, 3, name="logits")(layers.Conv2D(8, 3, name="stem")(image)))
    recipe = replace(RECIPE, epochs=2, freeze=1, warmup=0, weight_decay=0)
    adam = optimizer.build(network, recipe, 200)
    adam.build(network.trainable_variables)
    draw = np.random.default_rng(0)
    for step in range(150):
        before = [variable.numpy() for variable in network.trainable_variables]
        grads = [keras.ops.convert_to_tensor(draw.normal(size=v.shape).astype("float32")) for v in before]
        adam.apply(grads, network.trainable_variables)
        after = [variable.numpy() for variable in network.trainable_variables]
        frozen, other = (np.abs(after[n] - before[n]).mean() for n in (0, 2))
        assert frozen == 0 if step < 100 else 0.5 * other < frozen < 1.5 * other


def test_averaged_weights_lag_behind(made):
    plain, averaged = (fit(made, recipe=replace(RECIPE, ema=ema))[-1] for ema in (0, 1))
    # The same training; over as many steps as there are, its start still counts at the end.
    assert averaged[-1]["loss"] == pytest.approx(plain[-1]["loss"], rel=1e-3)
    assert averaged[-1]["val_loss"] > 1.1 * plain[-1]["val_loss"]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_floats_learn_much_the_same_and_leave_whole_ones(made, fitted, precision):
    network, _, best, figures = fit(made, recipe=replace(RECIPE, precision=precision))
    assert {variable.dtype for variable in network.variables} == {"float32"}
    assert {layer.compute_dtype for layer in network.layers[1:]} == {"float32"}
    assert best > 0.5
    assert figures[-1]["loss"] == pytest.approx(fitted[-1][-1]["loss"], rel=0.1)
    halved = fitting.training_copy(network, precision)
    assert {layer.compute_dtype for layer in halved.layers[1:-1]} == {precision}
    assert halved.layers[-1].compute_dtype == "float32"


def test_training_that_gets_no_better_ends_early(made):
    *_, figures = fit(made, recipe=replace(RECIPE, learning_rate=1e-12, patience=1))
    assert len(figures) == 2


def test_a_loss_that_is_no_number_ends_the_training(made):
    with pytest.raises(InputError, match="loss of epoch 1 is nan: a lower learning_rate"):
        fit(made, lambda logits, label, valid: losses.bce(logits, label, valid) * float("nan"))


def test_a_gpu_makes_its_steps_on_tensorflow(made, monkeypatch):
    """Where there is one, Keras hands steps to XLA, which cannot move pixels as TensorFlow does."""
    import tensorflow as tf

    there = [*tf.config.list_physical_devices(), tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")]
    listed = tf.config.list_physical_devices
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: listed(kind) if kind else there)
    *_, figures = fit(made, recipe=replace(RECIPE, epochs=1))
    assert np.isfinite(figures[0]["loss"])


@pytest.mark.parametrize("asked_before", range(60, 67))  # whichever part of a chip it is
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_chip_that_cannot_be_read_is_named(made, split, asked_before):
    """As it is read far away, in a thread: TensorFlow makes an error of its own of that."""
    scene, asked = made.select(split).scene[0], []

    def fetch(name: str, first: int, count: int | None) -> bytes:
        asked.append(name.startswith(scene))
        if asked[-1] and sum(asked) > asked_before:  # not in the first two batches, which Keras looks at itself
            raise InputError(f"cannot read {name}: the server is away")
        with (made.folder / name).open("rb") as file:
            file.seek(first, os.SEEK_END if first < 0 else os.SEEK_SET)
            return file.read(-1 if count is None else count)

    with pytest.raises(InputError, match=f"^cannot read {scene}.zarr/.*: the server is away$"):
        fit(replace(made, folder=RemoteFolder("s3://away/chips", fetch, made.folder)))
