"""The fused model by equivalence: padding, masking, folding and saving change no number."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from vidpipe import model as model_module
from vidpipe.backbone import BACKBONES
from vidpipe.config import FINE_TUNE, ClipConfig, ConfigError, ModelConfig
from vidpipe.model import HEADS, FusedModel, ModelCard, build_model, load_model, load_weights, save_model

CLIP = ClipConfig(num_frames=4, image_size=32)
CARD = ModelCard(("a", "b", "c"), CLIP)
MASK = np.array([[True, True, True, False], [True, False, False, False], [True] * 4])


def _build(head: str, num_frames: int = 4, seed: int = 1, **settings: object) -> FusedModel:
    keras.utils.set_random_seed(seed)
    clip = ClipConfig(num_frames=num_frames, image_size=32)
    config = ModelConfig(head=head, **({"backbone_weights": "none"} | settings))  # type: ignore[arg-type]
    return build_model(config, clip.model_spec(), 3)


def _halves(model: FusedModel) -> tuple[keras.Model, keras.Model]:
    assert model.frozen is not None and model.trained is not None
    return model.frozen, model.trained


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


def test_the_frozen_part_is_vgg16_over_each_time_step(fused: FusedModel, inputs: dict) -> None:
    backbone, preprocess = (fused.fused.get_layer(name) for name in ("backbone", "preprocess"))
    encoded = _halves(fused)[0](inputs).numpy()
    for clip in range(3):
        for step in range(4):
            alone = backbone(preprocess(inputs["frames"][clip, step][None])).numpy()[0]
            expected = alone if MASK[clip, step] else np.zeros_like(alone)
            np.testing.assert_allclose(encoded[clip, step], expected, atol=1e-5, rtol=1e-4)


def test_only_real_frames_pass_through_the_backbone(
    monkeypatch: pytest.MonkeyPatch, inputs: dict[str, np.ndarray]
) -> None:
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


def test_only_real_frames_pass_through_the_trained_blocks(inputs: dict) -> None:
    frozen, trained = _halves(_build("motion", fine_tune="block5"))
    maps = frozen(inputs).numpy()
    assert maps.shape == (3, 4, 2, 2, 512)
    assert (maps[~MASK] == 0).all() and (maps[MASK].reshape(8, -1).max(axis=1) > 0).all()
    garbage = np.where(MASK[..., None, None, None], maps, np.nan)
    expected = trained({"features": maps, "mask": MASK}).numpy()
    assert (trained({"features": garbage, "mask": MASK}).numpy() == expected).all()


@pytest.fixture(scope="module")
def every_backbone() -> dict[str, FusedModel]:
    """Trained from its fourth block on, without dropout."""
    return {name: _build("motion", backbone=name, fine_tune="block4", dropout=0.0) for name in BACKBONES}


@pytest.fixture(scope="module", params=BACKBONES)
def small(request: pytest.FixtureRequest, every_backbone: dict[str, FusedModel]) -> FusedModel:
    return every_backbone[request.param]


@pytest.mark.parametrize("fine_tune", FINE_TUNE)
def test_the_trained_part_on_the_frozen_part_is_the_fused_model(inputs: dict, fine_tune: str) -> None:
    model = _build("motion", fine_tune=fine_tune)
    if fine_tune in ("block1", "all"):
        assert (model.frozen, model.trained) == (None, None)
        return
    frozen, trained = _halves(model)
    features = frozen(inputs)
    logits = trained({"features": features, "mask": tf.constant(MASK)}).numpy()
    np.testing.assert_allclose(logits, model.fused(inputs).numpy(), atol=1e-6)
    _same_variables(model)


def _same_variables(model: FusedModel) -> None:
    frozen, trained = _halves(model)
    both = [id(weight) for weight in [*frozen.weights, *trained.weights]]
    assert [id(weight) for weight in model.fused.weights] == both
    assert [id(weight) for weight in model.fused.trainable_variables] == [
        id(weight) for weight in trained.trainable_variables
    ]
    assert frozen.trainable_variables == []


def test_every_backbone_can_be_cut(small: FusedModel, inputs: dict) -> None:
    frozen, trained = _halves(small)
    features = frozen(inputs)
    assert features.shape[:2] == (3, 4) and len(features.shape) == 5
    logits = trained({"features": features, "mask": tf.constant(MASK)}).numpy()
    np.testing.assert_allclose(logits, small.fused(inputs).numpy(), atol=1e-5)
    _same_variables(small)


def test_training_normalizes_every_backbone_s_batches_as_prediction_does(
    small: FusedModel, inputs: dict
) -> None:
    """Neither batch statistics nor stochastic depth; and what is trained has gradients."""
    before = [weight.numpy() for weight in small.fused.non_trainable_variables]
    with tf.GradientTape() as tape:
        logits = small.fused(inputs, training=True)
        loss = tf.reduce_sum(tf.square(logits))
    np.testing.assert_allclose(logits.numpy(), small.fused(inputs, training=False).numpy(), atol=1e-5)
    after = [weight.numpy() for weight in small.fused.non_trainable_variables]
    for old, new in zip(before, after, strict=True):
        assert (old == new).all()
    assert not any(gradient is None for gradient in tape.gradient(loss, small.fused.trainable_variables))


def test_save_and_load(fused: FusedModel, inputs: dict, tmp_path: Path, synced: set[int]) -> None:
    save_model(fused.fused, CARD, tmp_path / "model.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    assert {path.stat().st_ino for path in (tmp_path, tmp_path / "model.keras")} <= synced
    loaded, card = load_model(tmp_path / "model.keras")
    assert card == CARD
    assert (loaded(inputs).numpy() == fused.fused(inputs).numpy()).all()


def test_plain_keras_loads_every_backbone_and_head_without_vidpipe(
    every_backbone: dict[str, FusedModel], inputs: dict, tmp_path: Path
) -> None:
    models = every_backbone | {"notebook": _build("notebook")}
    for name, model in models.items():
        save_model(model.fused, CARD, tmp_path / f"{name}.keras")
    np.savez(tmp_path / "inputs.npz", **inputs)
    script = """
import sys, keras, numpy as np
inputs = dict(np.load("inputs.npz"))
for name in sys.argv[1:]:
    model = keras.saving.load_model(f"{name}.keras", safe_mode=True)
    np.save(f"{name}.npy", model(inputs, training=name != "notebook"))
assert "vidpipe" not in sys.modules
"""
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, "-c", script, *models], cwd=tmp_path, check=True, env=quiet)
    for name, model in models.items():
        logits = model.fused(inputs).numpy()
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), logits, atol=1e-5)
    with zipfile.ZipFile(tmp_path / "vgg16.keras") as archive:
        assert json.loads(archive.read("vidpipe.json"))["classes"] == ["a", "b", "c"]


def test_the_notebook_head_is_the_notebook_s() -> None:
    layers = [
        layer
        for layer in _build("notebook").fused.get_layer("head").layers
        if layer.count_params() or "dropout" in layer.name
    ]
    first, second, dropout, dense = layers
    assert (first.units, first.dropout, first.return_sequences) == (456, 0.5, True)
    assert first.recurrent_activation is keras.activations.hard_sigmoid
    assert (second.units, second.return_sequences) == (8, False)
    assert dropout.rate == 0.4
    assert (dense.units, dense.activation) == (8, keras.activations.relu)


def _dropout_rates(head: str, dropout: float | None) -> list[float]:
    layers = _build(head, dropout=dropout).fused.get_layer("head").layers
    rates = [getattr(layer, "dropout", getattr(layer, "rate", None)) for layer in layers]
    return [rate for rate in rates if rate is not None]


@pytest.mark.parametrize(
    ("head", "own"), [("notebook", [0.5, 0.0, 0.4]), ("motion", 5 * [0.0, 0.5, 0.5, 0.8])]
)
def test_dropout_replaces_every_rate_of_the_head(head: str, own: list[float]) -> None:
    """The zeros are of LSTMs without dropout of their own; they stay."""
    assert sorted(_dropout_rates(head, None)) == sorted(own)
    assert sorted(_dropout_rates(head, 0.25)) == sorted(0.25 if rate else 0.0 for rate in own)
    assert _dropout_rates(head, 0.0) == [0.0] * len(own)


def test_no_member_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="members must be at least 1; got 0"):
        ModelConfig(members=0)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_dropout_that_is_no_rate_is_refused(dropout: float) -> None:
    with pytest.raises(ConfigError, match=r"dropout must be in \[0, 1\); got"):
        ModelConfig(dropout=dropout)


def test_members_begin_differently_and_their_logits_are_averaged(inputs: dict) -> None:
    for head, wanted, num_members in (("motion", None, 5), ("notebook", None, 1), ("notebook", 3, 3)):
        model = _build(head, members=wanted).fused
        each = model_module.member_logits(model)(inputs).numpy()
        assert each.shape == (3, num_members, 3)
        np.testing.assert_allclose(model(inputs), each.mean(axis=1), atol=1e-6)
        assert len(np.unique(each[0, :, 0])) == num_members


@pytest.mark.parametrize("head", sorted(HEADS))
def test_a_head_s_graph_is_named_alike_whatever_was_built_before(head: str) -> None:
    """TensorFlow adds gradients up in an order that depends on names: a second run must not differ."""

    def names() -> list[str]:
        features, mask = keras.Input((4, 512), name="features"), keras.Input((4,), dtype="bool", name="mask")
        logits = model_module.build_head(ModelConfig(head=head), mask, 3)(features)
        model = keras.Model({"features": features, "mask": mask}, logits, name="headed")
        shown = {"features": tf.zeros([2, 4, 512]), "mask": tf.ones([2, 4], tf.bool)}
        graph = tf.function(lambda: model(shown, training=True)).get_concrete_function().graph
        # Some constants end in a number that TensorFlow counts through the process.
        return [re.sub(r"/\d+$", "", operation.name) for operation in graph.get_operations()]

    assert names() == names()


def test_each_member_s_matrix_begins_as_that_of_a_dense_layer() -> None:
    """Glorot's uniform rule: between plus and minus sqrt(6 / (576 + 3))."""
    kernel = _build("motion").fused.get_layer("logits").kernel.numpy()
    assert kernel.shape == (5, 576, 3)
    np.testing.assert_allclose(np.abs(kernel).max(axis=(1, 2)), (6 / (576 + 3)) ** 0.5, rtol=0.01)


def test_motion_head_standardizes_by_the_features_it_was_shown() -> None:
    model = _build("motion")
    random = np.random.default_rng(0)
    features = random.normal(5, [0.1] * 256 + [10] * 256, (16, 4, 512)).astype(np.float32)
    mask = np.ones((16, 4), bool)
    mask[:, 3] = False
    features[:, 3] = 1e6
    batches = [{"features": features[rows], "mask": mask[rows]} for rows in (slice(0, 9), slice(9, 16))]
    model_module.adapt_standardization(model.trained, batches)
    layer = model.fused.get_layer("head").get_layer("standardize")
    np.testing.assert_allclose(layer.adapt_mean, features[:, :3].mean((0, 1)), rtol=1e-4)
    shown = layer(features[:, :3]).numpy()
    np.testing.assert_allclose(shown[..., 256:].std(), 1, atol=0.02)


@pytest.mark.parametrize("fine_tune", ["none", "block5"])
def test_either_model_standardizes_alike(inputs: dict, fine_tune: str) -> None:
    """By the features behind the backbone, whatever comes in."""
    model = _build("motion", fine_tune=fine_tune)
    layer = model.fused.get_layer("head").get_layer("standardize")
    backbone, preprocess = (model.fused.get_layer(name) for name in ("backbone", "preprocess"))
    expected = backbone(preprocess(inputs["frames"][MASK])).numpy().mean(axis=0)
    frozen, trained = _halves(model)
    stored = {"features": frozen(inputs), "mask": tf.constant(MASK)}
    for part, batch in ((model.fused, inputs), (trained, stored)):
        layer.adapt_mean.assign(np.zeros(512))
        model_module.adapt_standardization(part, [batch])
        np.testing.assert_allclose(layer.adapt_mean, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("backbone", "head"), [("convnext_tiny", "motion"), ("vgg16", "notebook")])
def test_init_from_takes_over_every_weight(inputs: dict, tmp_path: Path, backbone: str, head: str) -> None:
    """Its own run was another process, so that Keras had numbered layers without a name otherwise."""
    path = tmp_path / "model.keras"
    theirs, ours = (_build(head, seed=seed, backbone=backbone) for seed in (1, 2))
    if head == "motion":
        model_module.adapt_standardization(theirs.fused, [inputs])
    save_model(theirs.fused, CARD, path)
    paths = [[weight.path for weight in fused.fused.weights] for fused in (theirs, ours)]
    assert (paths[0] != paths[1]) == (backbone == "convnext_tiny")
    expected = theirs.fused(inputs).numpy()
    assert not np.allclose(ours.fused(inputs).numpy(), expected, atol=1e-3)
    load_weights(ours, path, ("a", "b", "c"))
    assert (ours.fused(inputs).numpy() == expected).all()


@pytest.mark.parametrize(
    ("classes", "settings", "message"),
    [
        pytest.param(
            ("a", "c"), {}, "was trained on classes a, b, c; this dataset has a, c.", id="classes"
        ),
        pytest.param(
            ("a", "b", "c"), {"backbone": "mobilenet_v2"},
            r"has another backbone: block1_conv1/kernel \(3, 3, 3, 64\) where this run has "
            r"Conv1/kernel \(3, 3, 3, 32\)",
            id="backbone",
        ),
        pytest.param(
            ("a", "b", "c"), {"head": "notebook"},
            r"has another head: standardize/mean \(512,\) where this run has lstm_cell/kernel",
            id="head",
        ),
    ],
)  # fmt: skip
def test_init_from_another_model_is_refused_and_takes_nothing(
    tmp_path: Path, classes: tuple[str, ...], settings: dict, message: str
) -> None:
    save_model(_build("motion").fused, CARD, tmp_path / "model.keras")
    ours = _build(**({"head": "motion", "seed": 2} | settings))
    before = ours.fused.get_weights()
    with pytest.raises(model_module.ModelError, match="model.keras " + message):
        load_weights(ours, tmp_path / "model.keras", classes)
    for old, new in zip(before, ours.fused.get_weights(), strict=True):
        assert (old == new).all()


def test_init_from_a_model_of_other_shapes_is_refused(tmp_path: Path) -> None:
    """The card's classes are ours, the logits are not."""
    save_model(_build("motion").fused, ModelCard(("a", "b"), CLIP), tmp_path / "model.keras")
    spec = CLIP.model_spec()
    ours = build_model(ModelConfig(backbone_weights="none"), spec, 2)
    with pytest.raises(model_module.ModelError, match=r"logits/kernel \(5, 576, 3\) where this run"):
        load_weights(ours, tmp_path / "model.keras", ("a", "b"))


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
        model = _build("motion", fine_tune="block5")
    finally:
        keras.config.set_dtype_policy(before)
    assert model.fused.get_layer("backbone").output.dtype == "bfloat16"
    logits = model.fused(inputs)
    assert logits.dtype == tf.float32
    assert np.isfinite(logits.numpy()).all()
    frozen, trained = _halves(model)
    maps = frozen(inputs)
    assert maps.dtype == tf.bfloat16
    stored = {"features": tf.cast(maps, tf.float16), "mask": tf.constant(MASK)}
    assert (trained(stored).numpy() == logits.numpy()).all()
