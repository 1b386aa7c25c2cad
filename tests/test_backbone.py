"""Preprocessing by its golden value, weights from files, and what is trained."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from vidpipe import backbone
from vidpipe.config import FINE_TUNE
from vidpipe.spec import ClipSpec

SPEC = ClipSpec(4, 32, 32)


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


def test_every_backbone_s_preprocessing_is_what_keras_applications_prescribes(
    built: tuple[str, keras.Model, keras.Model],
) -> None:
    name, preprocess, _ = built
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    prescribed = PRESCRIBED[name].preprocess_input(frames.astype(np.float32))
    np.testing.assert_allclose(preprocess(frames).numpy(), prescribed, atol=1e-4)
    assert preprocess.output.dtype == "float32"


def test_raw_frames_go_to_networks_that_preprocess_them(built: tuple[str, keras.Model, keras.Model]) -> None:
    name, preprocess, network = built
    inside = [layer for layer in network.layers if isinstance(layer, keras.layers.Normalization)]
    assert len(inside) == (name in ("efficientnet_v2_b0", "convnext_tiny"))
    assert len(preprocess.layers) + len(inside) > 1


def test_a_frame_s_features(built: tuple[str, keras.Model, keras.Model]) -> None:
    """As many as announced, and the same whatever else is in the batch."""
    name, preprocess, network = built
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    features = network(preprocess(frames), training=False).numpy()
    assert features.shape == (3, backbone.BACKBONES[name].features)
    assert features.std(axis=0).max() > 0
    alone = network(preprocess(frames[:1]), training=False).numpy()
    np.testing.assert_allclose(alone, features[:1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5"])
def test_weights_from_a_file(
    vgg16: tuple[keras.Model, keras.Model], tmp_path: Path, suffix: str, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / f"vgg16{suffix}"
    (vgg16[1].save_weights if suffix == ".weights.h5" else vgg16[1].save)(path)
    _, loaded = backbone.build_backbone("vgg16", str(path), SPEC)
    for ours, theirs in zip(loaded.get_weights(), vgg16[1].get_weights(), strict=True):
        assert (ours == theirs).all()


def test_a_file_of_other_weights_is_refused(tmp_path: Path) -> None:
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(backbone.BackboneError, match="other.weights.h5 does not hold vgg16's weights"):
        backbone.build_backbone("vgg16", str(tmp_path / "other.weights.h5"), SPEC)


def test_a_file_that_is_no_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("hello")
    with pytest.raises(backbone.BackboneError, match="a.h5 does not hold vgg16's weights"):
        backbone.build_backbone("vgg16", str(tmp_path / "a.h5"), SPEC)


def test_a_missing_weights_file_is_named() -> None:
    with pytest.raises(backbone.BackboneError, match="no weights file nowhere.h5"):
        backbone.build_backbone("vgg16", "nowhere.h5", SPEC)


def test_weights_that_cannot_be_downloaded_never_become_random(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.utils, "get_file", refuse)
    monkeypatch.setattr("keras.src.applications.vgg16.file_utils.get_file", refuse)
    with pytest.raises(backbone.BackboneError, match="cannot be downloaded .*--backbone_weights=FILE"):
        backbone.build_backbone("vgg16", "imagenet", SPEC)


def test_unknown_backbones_and_small_frames_are_refused() -> None:
    with pytest.raises(backbone.BackboneError, match="no backbone alexnet; there is vgg16"):
        backbone.build_backbone("alexnet", "none", SPEC)
    with pytest.raises(backbone.BackboneError, match="at least 32 pixels; the clips have 16 x 32"):
        backbone.build_backbone("vgg16", "none", ClipSpec(4, 16, 32))


# Side and channels of the maps that blocks 1 to 4 give for a frame of 32 x 32.
MAPS = {
    "vgg16": ((16, 64), (8, 128), (4, 256), (2, 512)),
    "resnet50": ((8, 64), (8, 256), (4, 512), (2, 1024)),
    "mobilenet_v2": ((16, 16), (8, 24), (4, 32), (2, 96)),
    "efficientnet_v2_b0": ((16, 16), (8, 32), (4, 48), (2, 112)),
    "convnext_tiny": ((8, 96), (4, 192), (2, 384), (1, 768)),
}


@pytest.mark.parametrize("fine_tune", FINE_TUNE)
def test_what_is_trained(built: tuple[str, keras.Model, keras.Model], fine_tune: str) -> None:
    name, _, network = built
    frozen, trained = backbone.freeze_blocks(name, network, fine_tune)
    frozen_weights, trained_weights = (part.weights if part is not None else [] for part in (frozen, trained))
    whole = [id(weight) for weight in network.weights]
    assert whole == [id(weight) for weight in [*frozen_weights, *trained_weights]]
    # All but the statistics of batch normalization.
    expected = [weight for weight in trained_weights if "moving_" not in weight.path]
    assert [weight.path for weight in network.trainable_variables] == [weight.path for weight in expected]
    if fine_tune in ("none", "all", "block1"):
        assert (frozen, trained) == ((network, None) if fine_tune == "none" else (None, network))
    else:
        side, channels = MAPS[name][int(fine_tune[-1]) - 2]
        assert frozen is not None and frozen.output.shape[1:] == (side, side, channels)


def test_vgg16_s_blocks_are_the_paper_s(vgg16: tuple[keras.Model, keras.Model]) -> None:
    for number in range(2, 6):
        backbone.freeze_blocks("vgg16", vgg16[1], f"block{number}")
        trained = {variable.path.split("_")[0] for variable in vgg16[1].trainable_variables}
        assert trained == {f"block{upper}" for upper in range(number, 6)}


def test_each_variable_that_is_trained_has_a_gradient(built: tuple[str, keras.Model, keras.Model]) -> None:
    name, preprocess, network = built
    _, trained = backbone.freeze_blocks(name, network, "block2")
    frames = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(network(preprocess(frames), training=False)))
    gradients = tape.gradient(loss, network.trainable_variables)
    assert trained is not None and len(gradients) == len(trained.trainable_variables) > 0
    assert not any(gradient is None for gradient in gradients)


def test_the_log_says_what_the_frozen_blocks_cost(
    vgg16: tuple[keras.Model, keras.Model], caplog: pytest.LogCaptureFixture
) -> None:
    """VGG16's fifth block by hand: 3 convolutions of 3 x 3 x 512 x 512 at 2 x 2 places of 32 x 32 pixels."""
    with caplog.at_level("INFO"):
        backbone.freeze_blocks("vgg16", vgg16[1], "block5")
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    places = [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2]
    work = [9 * widths[i] * widths[i + 1] * places[i] ** 2 for i in range(13)]
    share = 100 * sum(work[:10]) / sum(work)
    assert f"Blocks 1 to 4 of vgg16, frozen, are {share:.0f} % of its multiply-adds." in caplog.text
    assert "Backbone: 7,079,424 parameters trained, 7,635,264 frozen." in caplog.text
