"""The fused model by equivalence: padding, masking, folding and saving change no number."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from vidpipe import model as model_module
from vidpipe.config import ClipConfig, ModelConfig
from vidpipe.model import HEADS, FusedModel, ModelCard, build_model, load_model, save_model

CLIP = ClipConfig(num_frames=4, image_size=32)
CARD = ModelCard(("a", "b", "c"), CLIP)
MASK = np.array([[True, True, True, False], [True, False, False, False], [True] * 4])


def _build(head: str, num_frames: int = 4) -> FusedModel:
    keras.utils.set_random_seed(1)
    clip = ClipConfig(num_frames=num_frames, image_size=32)
    return build_model(ModelConfig(backbone_weights="none", head=head), clip.model_spec(), 3)


@pytest.fixture(scope="module", params=sorted(HEADS))
def head(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def fused(head: str) -> FusedModel:
    return _build(head)


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 32, 32, 3), np.uint8)
    return {"frames": frames * MASK[..., None, None, None], "mask": MASK}


def test_the_parts_have_their_names(fused: FusedModel) -> None:
    names = [layer.name for layer in fused.fused.layers]
    for name in ("frames", "mask", "preprocess", "backbone", "head", "logits"):
        assert name in names
    assert fused.fused.output.dtype == "float32"


def test_garbage_in_masked_frames_changes_no_logit(fused: FusedModel, inputs: dict) -> None:
    garbage = np.where(MASK[..., None, None, None], inputs["frames"], 255).astype(np.uint8)
    expected = fused.fused(inputs).numpy()
    assert (fused.fused({"frames": garbage, "mask": MASK}).numpy() == expected).all()
    unmasked = fused.fused({"frames": garbage, "mask": np.ones_like(MASK)}).numpy()
    assert not np.allclose(unmasked[:2], expected[:2], atol=1e-6)


def test_a_padded_clip_equals_the_truncated_clip(head: str, fused: FusedModel, inputs: dict) -> None:
    short = _build(head, num_frames=2)
    short.fused.set_weights(fused.fused.get_weights())
    mask = np.array([[True, True, False, False]])
    padded = fused.fused({"frames": inputs["frames"][2:], "mask": mask}).numpy()
    truncated = short.fused({"frames": inputs["frames"][2:, :2], "mask": mask[:, :2]}).numpy()
    np.testing.assert_allclose(padded, truncated, atol=1e-5)


def test_the_encoder_is_vgg16_over_each_time_step(fused: FusedModel, inputs: dict) -> None:
    backbone, preprocess = (fused.fused.get_layer(name) for name in ("backbone", "preprocess"))
    encoded = fused.encoder(inputs).numpy()
    for clip in range(3):
        for step in range(4):
            alone = backbone(preprocess(inputs["frames"][clip, step][None])).numpy()[0]
            expected = alone if MASK[clip, step] else np.zeros_like(alone)
            np.testing.assert_allclose(encoded[clip, step], expected, atol=1e-5, rtol=1e-4)


def test_only_real_frames_pass_through_the_backbone(monkeypatch: pytest.MonkeyPatch, inputs: dict) -> None:
    seen: list[int] = []
    original = model_module.build_backbone

    def counting(*arguments: object) -> tuple[keras.Model, keras.Model]:
        preprocess, backbone = original(*arguments)  # type: ignore[arg-type]

        class Counter(keras.layers.Layer):
            def call(self, frames: tf.Tensor) -> tf.Tensor:
                seen.append(frames.shape[0])
                return frames

        frames = keras.Input((32, 32, 3), dtype="uint8")
        return keras.Model(frames, preprocess(Counter(dtype="uint8")(frames)), name="preprocess"), backbone

    monkeypatch.setattr(model_module, "build_backbone", counting)
    model = _build("motion")
    seen.clear()
    model.fused(inputs)
    assert seen == [MASK.sum()] == [8]


def test_the_backbone_is_in_the_graph_once(fused: FusedModel, inputs: dict) -> None:
    graph = tf.function(lambda frames, mask: fused.fused({"frames": frames, "mask": mask}))
    operations = graph.get_concrete_function(inputs["frames"], inputs["mask"]).graph.get_operations()
    assert sum(operation.type == "Conv2D" for operation in operations) == 13


def test_the_classifier_on_the_encoder_is_the_fused_model(fused: FusedModel, inputs: dict) -> None:
    features = fused.encoder(inputs)
    halves = fused.classifier({"features": features, "mask": tf.constant(MASK)}).numpy()
    np.testing.assert_allclose(halves, fused.fused(inputs).numpy(), atol=1e-6)


def test_save_and_load(fused: FusedModel, inputs: dict, tmp_path: Path) -> None:
    save_model(fused.fused, CARD, tmp_path / "model.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    loaded, card = load_model(tmp_path / "model.keras")
    assert card == CARD
    assert (loaded(inputs).numpy() == fused.fused(inputs).numpy()).all()


def test_plain_keras_loads_it_without_vidpipe(fused: FusedModel, inputs: dict, tmp_path: Path) -> None:
    save_model(fused.fused, CARD, tmp_path / "model.keras")
    np.savez(tmp_path / "inputs.npz", **inputs)
    script = """
import sys, keras, numpy as np
model = keras.saving.load_model("model.keras", safe_mode=True)
np.save("logits.npy", model(dict(np.load("inputs.npz"))))
assert "vidpipe" not in sys.modules
"""
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, env=quiet)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), fused.fused(inputs).numpy(), atol=1e-6)
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert json.loads(archive.read("vidpipe.json"))["classes"] == ["a", "b", "c"]


def test_the_notebook_head_is_the_notebook_s() -> None:
    layers = [
        layer
        for layer in _build("notebook").classifier.get_layer("head").layers
        if layer.count_params() or "dropout" in layer.name
    ]
    first, second, dropout, dense = layers
    assert (first.units, first.dropout, first.return_sequences) == (456, 0.5, True)
    assert first.recurrent_activation is keras.activations.hard_sigmoid
    assert (second.units, second.return_sequences) == (8, False)
    assert dropout.rate == 0.4
    assert (dense.units, dense.activation) == (8, keras.activations.relu)


def test_motion_head_standardizes_by_the_features_it_was_shown() -> None:
    model = _build("motion")
    random = np.random.default_rng(0)
    features = random.normal(5, [0.1] * 256 + [10] * 256, (16, 4, 512)).astype(np.float32)
    mask = np.ones((16, 4), bool)
    mask[:, 3] = False
    features[:, 3] = 1e6
    model_module.adapt_standardization(model, [(features[:9], mask[:9]), (features[9:], mask[9:])])
    layer = model.classifier.get_layer("head").get_layer("standardize")
    np.testing.assert_allclose(layer.adapt_mean, features[:, :3].mean((0, 1)), rtol=1e-4)
    shown = layer(features[:, :3]).numpy()
    np.testing.assert_allclose(shown[..., 256:].std(), 1, atol=0.02)


def test_unknown_heads_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(model_module.ModelError, match="no head tail; there are motion, notebook"):
        _build("tail")
    with pytest.raises(model_module.ModelError, match="There is no trained model"):
        load_model(tmp_path / "model.keras")
    (tmp_path / "model.keras").write_text("hello")
    with pytest.raises(model_module.ModelError, match="damaged or not a model of vidpipe's"):
        load_model(tmp_path / "model.keras")


def test_mixed_precision_keeps_logits_in_float32(inputs: dict) -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = _build("motion")
    finally:
        keras.config.set_dtype_policy(before)
    assert model.fused.get_layer("backbone").output.dtype == "bfloat16"
    logits = model.fused(inputs)
    assert logits.dtype == tf.float32
    assert np.isfinite(logits.numpy()).all()
