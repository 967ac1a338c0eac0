"""The recipe on the other backends of Keras that are installed, and their models on this one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from ocmlflow.errors import InputError
from ocmlflow.training import fit

TRAIN = """
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
from test_augment import test_a_roof_moves_with_its_label
from test_callbacks import test_averages_come_and_go_and_the_best_weights_stay
from test_fit import NAMES, RECIPE, fit, test_a_frozen_encoder_learns_once_it_is_thawed

from ocmlflow.chips import chip_set
from ocmlflow.training import fit as fitting

made, devices = chip_set.load(Path(sys.argv[1])), int(sys.argv[2])
recipe, near = replace(RECIPE, epochs=5, ema=0.3), 0.02  # the last batch of validation is filled up
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    each = [tf.config.LogicalDeviceConfiguration()] * devices
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], each)
    recipe, near = replace(recipe, augment=0, zoom=1), 0.05  # each device draws for itself, if only symmetries
else:
    test_a_roof_moves_with_its_label()
    test_averages_come_and_go_and_the_best_weights_stay()
    test_a_frozen_encoder_learns_once_it_is_thawed(made, Path(), "float32")

*_, alone = fit(made, recipe=recipe)
fitting.distribute(devices, batch_size=4, precision="float32")
recipe, states = replace(recipe, devices=devices), []
network, *_, figures = fit(made, recipe=recipe, save=lambda path: states.append(path.read_bytes()))
assert figures[-1]["loss"] < figures[0]["loss"], figures
Path("state.npz").write_bytes(states[2])
*_, resumed = fit(made, recipe=recipe, resume=Path("state.npz"))
for name in NAMES:
    one, other, again = ([epoch[name] for epoch in told] for told in (alone, figures, resumed))
    np.testing.assert_allclose(other, one, rtol=near, atol=near, err_msg=name)
    np.testing.assert_allclose(again, other[3:], rtol=5e-3, atol=5e-3, err_msg=name)
images = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
network.save("trained.keras")
logits = network.predict_on_batch(images)[:2]  # TensorFlow gives all of them to each device
np.savez("trained.npz", images=images, logits=logits, epochs=len(figures))
"""


@pytest.mark.parametrize(("backend", "devices"), [("tensorflow", 2), ("jax", 2), ("torch", 1)])
def test_a_model_trained_on_one_backend_works_on_another(made, tmp_path, backend, devices):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(
            str(folder) for folder in (Path(__file__).parents[2], Path(__file__).parents[1], Path(__file__).parent)
        ),
    }
    command = [sys.executable, "-c", TRAIN, str(made.folder), str(devices)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(tmp_path / "trained.npz")
    assert found["epochs"] == 5
    network = keras.models.load_model(tmp_path / "trained.keras")
    np.testing.assert_allclose(network.predict_on_batch(found["images"]), found["logits"], atol=1e-4)


def test_devices_that_cannot_be_had_are_told():
    fit.distribute(1, batch_size=3, precision="float16")
    with pytest.raises(InputError, match=r"devices=2 is more than tensorflow sees: cpu:0"):
        fit.distribute(2, batch_size=4, precision="float32")
