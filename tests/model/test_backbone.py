"""The real backbones: their preprocessing, weights from files, and the blocks that are trained."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from vidpipe.config import FINE_TUNE, ClipSpec
from vidpipe.model import backbone

pytestmark = pytest.mark.full_backbone
SPEC = ClipSpec(num_frames=4, height=32, width=32)


@pytest.fixture(scope="module", params=backbone.BACKBONES)
def built(request: pytest.FixtureRequest) -> tuple[str, keras.Model, keras.Model]:
    keras.utils.set_random_seed(1)
    return request.param, *backbone.build_backbone(request.param, "none", SPEC)


@pytest.fixture(scope="module")
def vgg16() -> tuple[keras.Model, keras.Model]:
    keras.utils.set_random_seed(1)
    return backbone.build_backbone("vgg16", "none", SPEC)


def test_vgg16_preprocessing_golden_value(vgg16: tuple[keras.Model, keras.Model]) -> None:
    """RGB (255, 128, 0) becomes BGR minus ImageNet's mean, unscaled."""
    frame = np.broadcast_to(np.array([255, 128, 0], np.uint8), (1, 32, 32, 3))
    pixel = vgg16[0](frame).numpy()[0, 0, 0]
    np.testing.assert_allclose(pixel, [0 - 103.939, 128 - 116.779, 255 - 123.68], atol=1e-4)


PRESCRIBED = {
    "vgg16": keras.applications.vgg16,
    "resnet50": keras.applications.resnet50,
    "mobilenet_v2": keras.applications.mobilenet_v2,
    "efficientnet_v2_b0": keras.applications.efficientnet_v2,
    "convnext_tiny": keras.applications.convnext,
}


def test_preprocessing_is_that_of_keras_applications(
    built: tuple[str, keras.Model, keras.Model],
) -> None:
    name, preprocess, _ = built
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    prescribed = PRESCRIBED[name].preprocess_input(frames.astype(np.float32))
    np.testing.assert_allclose(preprocess(frames).numpy(), prescribed, atol=1e-4)
    assert preprocess.output.dtype == "float32"


def test_frames_are_normalized_once(built: tuple[str, keras.Model, keras.Model]) -> None:
    """Either by `preprocess`, or by the network's own first layers."""
    name, preprocess, network = built
    inside = [layer for layer in network.layers if isinstance(layer, keras.layers.Normalization)]
    assert len(inside) == (name in ("efficientnet_v2_b0", "convnext_tiny"))
    assert len(preprocess.layers) + len(inside) > 1


def test_a_frame_has_num_features_that_do_not_depend_on_its_batch(
    built: tuple[str, keras.Model, keras.Model],
) -> None:
    name, preprocess, network = built
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    features = network(preprocess(frames), training=False).numpy()
    assert features.shape == (3, backbone.BACKBONES[name].num_features)
    assert features.std(axis=0).max() > 0
    alone = network(preprocess(frames[:1]), training=False).numpy()
    np.testing.assert_allclose(alone, features[:1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5"])
def test_weights_from_a_file(vgg16: tuple[keras.Model, keras.Model], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"vgg16{suffix}"
    (vgg16[1].save_weights if suffix == ".weights.h5" else vgg16[1].save)(path)
    _, loaded = backbone.build_backbone("vgg16", str(path), SPEC)
    for ours, theirs in zip(loaded.get_weights(), vgg16[1].get_weights(), strict=True):
        assert (ours == theirs).all()


@pytest.mark.parametrize("content", ["other_weights", "text"])
def test_a_file_without_the_backbone_s_weights_is_rejected(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.weights.h5"
    if content == "text":
        path.write_text("hello")
    else:
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(path)
    with pytest.raises(
        backbone.BackboneError,
        match=r"other.weights.h5 does not contain the weights of vgg16 .*include_top=False",
    ):
        backbone.build_backbone("vgg16", str(path), SPEC)


def test_a_missing_weights_file_is_named() -> None:
    with pytest.raises(backbone.BackboneError, match=r"imagenet, none or an existing file.*nowhere\.h5"):
        backbone.build_backbone("vgg16", "nowhere.h5", SPEC)


def test_weights_that_cannot_be_downloaded_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never random weights instead."""

    def fail(*_: object, **__: object) -> None:
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.utils, "get_file", fail)
    monkeypatch.setattr("keras.src.applications.vgg16.file_utils.get_file", fail)
    with pytest.raises(backbone.BackboneError, match="cannot be downloaded .*--backbone_weights=FILE"):
        backbone.build_backbone("vgg16", "imagenet", SPEC)


def test_frames_that_are_too_small_are_rejected() -> None:
    small = ClipSpec(num_frames=4, height=16, width=32)
    with pytest.raises(
        backbone.BackboneError, match="at least 32 x 32 pixels; the dataset has 16 x 32.*--image_size"
    ):
        backbone.build_backbone("vgg16", "none", small)


# Side and channels of the feature maps after blocks 1 to 4, for a frame of 32 x 32 pixels.
FEATURE_MAPS = {
    "vgg16": ((16, 64), (8, 128), (4, 256), (2, 512)),
    "resnet50": ((8, 64), (8, 256), (4, 512), (2, 1024)),
    "mobilenet_v2": ((16, 16), (8, 24), (4, 32), (2, 96)),
    "efficientnet_v2_b0": ((16, 16), (8, 32), (4, 48), (2, 112)),
    "convnext_tiny": ((8, 96), (4, 192), (2, 384), (1, 768)),
}


@pytest.mark.parametrize("fine_tune", FINE_TUNE)
def test_the_trained_blocks(built: tuple[str, keras.Model, keras.Model], fine_tune: str) -> None:
    name, _, network = built
    frozen, trained = backbone.freeze_blocks(name, network, fine_tune)
    frozen_weights, trained_weights = (part.weights if part is not None else [] for part in (frozen, trained))
    all_weights = [id(weight) for weight in network.weights]
    assert all_weights == [id(weight) for weight in [*frozen_weights, *trained_weights]]
    # The statistics of batch normalization are not trained.
    expected = [weight for weight in trained_weights if "moving_" not in weight.path]
    assert [weight.path for weight in network.trainable_variables] == [weight.path for weight in expected]
    if fine_tune in ("none", "all", "block1"):
        assert (frozen, trained) == ((network, None) if fine_tune == "none" else (None, network))
    else:
        side, channels = FEATURE_MAPS[name][int(fine_tune[-1]) - 2]
        assert frozen is not None and frozen.output.shape[1:] == (side, side, channels)


def test_vgg16_s_blocks_are_those_of_the_paper(vgg16: tuple[keras.Model, keras.Model]) -> None:
    for number in range(2, 6):
        backbone.freeze_blocks("vgg16", vgg16[1], f"block{number}")
        trained = {variable.path.split("_")[0] for variable in vgg16[1].trainable_variables}
        assert trained == {f"block{upper}" for upper in range(number, 6)}


def test_each_trained_variable_has_a_gradient(built: tuple[str, keras.Model, keras.Model]) -> None:
    name, preprocess, network = built
    _, trained = backbone.freeze_blocks(name, network, "block2")
    frames = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(network(preprocess(frames), training=False)))
    gradients = tape.gradient(loss, network.trainable_variables)
    assert trained is not None and len(gradients) == len(trained.trainable_variables) > 0
    assert not any(gradient is None for gradient in gradients)


def test_the_log_has_the_cost_of_the_frozen_blocks(
    vgg16: tuple[keras.Model, keras.Model], caplog: pytest.LogCaptureFixture
) -> None:
    """VGG16's 13 convolutions by hand; block 5 has the last three, at 2 x 2 positions of a 32 x 32 frame."""
    with caplog.at_level("INFO"):
        backbone.freeze_blocks("vgg16", vgg16[1], "block5")
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    sides = [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2]
    multiply_adds = [9 * widths[i] * widths[i + 1] * sides[i] ** 2 for i in range(13)]
    percentage = 100 * sum(multiply_adds[:10]) / sum(multiply_adds)
    assert f"Blocks 1 to 4 of vgg16 are frozen: {percentage:.0f} % of its multiply-adds." in caplog.text
    assert "Backbone: 7,079,424 trainable and 7,635,264 frozen parameters." in caplog.text
