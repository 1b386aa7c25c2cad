"""Preprocessing by its golden value, weights from files, and what is trained."""

from pathlib import Path

import keras
import numpy as np
import pytest

from vidpipe import backbone
from vidpipe.config import FINE_TUNE
from vidpipe.spec import ClipSpec

SPEC = ClipSpec(4, 32, 32)


@pytest.fixture(scope="module")
def vgg16() -> tuple[keras.Model, keras.Model]:
    keras.utils.set_random_seed(1)
    return backbone.build_backbone("vgg16", "none", SPEC)


def test_vgg16_preprocessing_golden_value(vgg16: tuple[keras.Model, keras.Model]) -> None:
    """RGB (255, 128, 0) becomes BGR minus ImageNet's mean, unscaled."""
    frame = np.broadcast_to(np.array([255, 128, 0], np.uint8), (1, 32, 32, 3))
    pixel = vgg16[0](frame).numpy()[0, 0, 0]
    np.testing.assert_allclose(pixel, [0 - 103.939, 128 - 116.779, 255 - 123.68], atol=1e-4)


def test_it_is_what_keras_applications_prescribes(vgg16: tuple[keras.Model, keras.Model]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    prescribed = keras.applications.vgg16.preprocess_input(frames.astype(np.float32))
    np.testing.assert_allclose(vgg16[0](frames).numpy(), prescribed, atol=1e-4)


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


@pytest.mark.parametrize("fine_tune", FINE_TUNE)
def test_what_is_trained(vgg16: tuple[keras.Model, keras.Model], fine_tune: str) -> None:
    backbone.set_trainable(vgg16[1], fine_tune)
    blocks = sorted({variable.path.split("/")[-2].split("_")[0] for variable in vgg16[1].trainable_variables})
    lowest = {"none": 6, "all": 1}.get(fine_tune) or int(fine_tune[-1])
    assert blocks == [f"block{number}" for number in range(lowest, 6)]
