"""The fused model by equivalence: padding, masking, folding time and splitting change no logit."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from vidpipe import config
from vidpipe.config import FINE_TUNE, ClipSpec, ConfigError, ModelConfig
from vidpipe.model.backbone import BACKBONES
from vidpipe.model.fused import FusedModel, build_model, feature_encoder
from vidpipe.model.heads import HEADS, feature_extractor

Build = Callable[..., FusedModel]
Inputs = dict[str, np.ndarray]


@pytest.fixture(scope="module", params=sorted(HEADS))
def head(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(build: Build, head: str) -> FusedModel:
    return build(head)


def with_garbage(frames: np.ndarray, mask: np.ndarray, garbage: float) -> np.ndarray:
    """Replaces padding frames, of images or feature maps."""
    real = mask.reshape(*mask.shape, *(1 for _ in frames.shape[2:]))
    return np.where(real, frames, garbage).astype(frames.dtype)


@pytest.mark.parametrize(
    ("choices", "registry"), [(config.BACKBONES, BACKBONES), (config.HEADS, HEADS)], ids=["backbone", "head"]
)
def test_the_choices_of_a_flag_are_what_can_be_built(choices: tuple[str, ...], registry: dict) -> None:
    assert choices == tuple(registry)


def test_the_layers_have_their_names(model: FusedModel) -> None:
    names = [layer.name for layer in model.fused.layers]
    for name in ("frames", "mask", "preprocess", "backbone", "head", "logits"):
        assert name in names
    assert model.fused.output.dtype == "float32"


def test_garbage_in_padding_frames_changes_no_logit(model: FusedModel, inputs: Inputs) -> None:
    mask = inputs["mask"]
    garbage = with_garbage(inputs["frames"], mask, 255)
    expected = model.fused(inputs).numpy()
    assert (model.fused({"frames": garbage, "mask": mask}).numpy() == expected).all()
    unmasked = model.fused({"frames": garbage, "mask": np.ones_like(mask)}).numpy()
    assert not np.allclose(unmasked[:2], expected[:2], atol=1e-6)


def test_a_padded_clip_equals_the_truncated_clip(
    build: Build, head: str, model: FusedModel, inputs: Inputs
) -> None:
    short = build(head, num_frames=2)
    short.fused.set_weights(model.fused.get_weights())
    frames, mask = inputs["frames"][2:], np.array([[True, True, False, False]])
    padded = model.fused({"frames": frames, "mask": mask}).numpy()
    truncated = short.fused({"frames": frames[:, :2], "mask": mask[:, :2]}).numpy()
    np.testing.assert_allclose(padded, truncated, atol=1e-5)


def test_the_frozen_part_applies_the_backbone_to_each_time_step(model: FusedModel, inputs: Inputs) -> None:
    backbone, preprocess = (model.fused.get_layer(name) for name in ("backbone", "preprocess"))
    assert model.frozen is not None
    encoded = model.frozen(inputs["frames"], inputs["mask"])
    for clip in range(3):
        for step in range(4):
            alone = backbone(preprocess(inputs["frames"][clip, step][None])).numpy()[0]
            expected = alone if inputs["mask"][clip, step] else np.zeros_like(alone)
            np.testing.assert_allclose(encoded[clip, step], expected, atol=1e-5, rtol=1e-4)


def test_the_backbone_is_in_the_graph_once(model: FusedModel, inputs: Inputs) -> None:
    graph = tf.function(lambda frames, mask: model.fused({"frames": frames, "mask": mask}))
    operations = graph.get_concrete_function(inputs["frames"], inputs["mask"]).graph.get_operations()
    layers = model.fused.get_layer("backbone").layers
    num_convolutions = sum(isinstance(layer, keras.layers.Conv2D) for layer in layers)
    assert sum(operation.type == "Conv2D" for operation in operations) == num_convolutions > 0


def test_padding_frames_of_feature_maps_change_no_logit(build: Build, inputs: Inputs) -> None:
    model, mask = build(fine_tune="block5"), inputs["mask"]
    assert model.frozen is not None and model.trained is not None
    maps = model.frozen(inputs["frames"], mask)
    assert maps.shape == (3, 4, 2, 2, 512)
    assert (maps[~mask] == 0).all() and (maps[mask].reshape(8, -1).max(axis=1) > 0).all()
    expected = model.trained({"features": maps, "mask": mask}).numpy()
    garbage = with_garbage(maps, mask, 1e3)
    assert (model.trained({"features": garbage, "mask": mask}).numpy() == expected).all()


def test_every_call_of_the_backbone_has_all_frames(build: Build, inputs: Inputs) -> None:
    """So that it has one shape, whatever the mask: cuDNN chooses its kernels once."""
    model = build(fine_tune="all").fused
    graph = tf.function(lambda batch: model(batch)).get_concrete_function(inputs).graph
    convolutions = [operation for operation in graph.get_operations() if operation.type == "Conv2D"]
    assert {operation.inputs[0].shape[0] for operation in convolutions} == {3 * 4}


@pytest.mark.parametrize("pixel_differences", [False, True])
@pytest.mark.parametrize("fine_tune", FINE_TUNE)
def test_the_trained_part_on_the_frozen_part_is_the_fused_model(
    build: Build, inputs: Inputs, fine_tune: str, pixel_differences: bool
) -> None:
    model = build(fine_tune=fine_tune, pixel_differences=pixel_differences)
    if fine_tune in ("block1", "all"):
        assert (model.frozen, model.trained) == (None, None)
        return
    assert model.frozen is not None and model.trained is not None
    logits = model.trained(
        {"features": model.frozen(inputs["frames"], inputs["mask"]), "mask": inputs["mask"]}
    )
    np.testing.assert_allclose(logits.numpy(), model.fused(inputs).numpy(), atol=1e-6)
    assert [id(weight) for weight in model.fused.weights] == [
        id(weight) for weight in [*model.frozen.network.weights, *model.trained.weights]
    ]
    assert [id(weight) for weight in model.fused.trainable_variables] == [
        id(weight) for weight in model.trained.trainable_variables
    ]
    assert model.frozen.network.trainable_variables == []


def test_mixed_precision_keeps_logits_in_float32(build: Build, inputs: Inputs) -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build(fine_tune="block5")
    finally:
        keras.config.set_dtype_policy(before)
    assert model.frozen is not None and model.trained is not None
    assert model.fused.get_layer("backbone").output.dtype == "bfloat16"
    logits = model.fused(inputs)
    assert logits.dtype == tf.float32
    assert np.isfinite(logits.numpy()).all()
    maps = model.frozen(inputs["frames"], inputs["mask"])
    assert tf.constant(maps).dtype == tf.bfloat16
    cached = {"features": tf.cast(maps, tf.float16), "mask": tf.constant(inputs["mask"])}
    assert (model.trained(cached).numpy() == logits.numpy()).all()


@pytest.mark.parametrize("backbone", ["vgg16", "mobilenet_v2"])
def test_pixel_differences_pass_through_the_same_backbone(
    build: Build, inputs: Inputs, backbone: str
) -> None:
    model = build(backbone=backbone, pixel_differences=True)
    network, preprocess = (model.fused.get_layer(name) for name in ("backbone", "preprocess"))
    assert model.frozen is not None
    features = model.frozen(inputs["frames"], inputs["mask"])
    depth = network.output.shape[-1]
    assert features.shape == (3, 4, 2 * depth)
    extracted = feature_extractor(model.fused)(inputs).numpy()
    np.testing.assert_allclose(extracted, features, atol=1e-5, rtol=1e-4)
    for clip, step in zip(*np.nonzero(inputs["mask"]), strict=True):
        image, before = (
            preprocess(inputs["frames"][clip, index][None]).numpy() for index in (step, max(step - 1, 0))
        )
        expected = np.concatenate([network(image)[0], network(image - before)[0]])
        np.testing.assert_allclose(features[clip, step], expected, atol=1e-5, rtol=1e-4)


def test_the_feature_encoder_is_the_model_before_its_head(build: Build, inputs: Inputs) -> None:
    for settings in ({}, {"pixel_differences": True}, {"fine_tune": "block5"}):
        model = build(**settings).fused
        encode = feature_encoder(model)
        features = encode(inputs["frames"], inputs["mask"])
        np.testing.assert_allclose(features, feature_extractor(model)(inputs).numpy(), atol=1e-5, rtol=1e-4)


def test_pixel_differences_need_all_stored_frames() -> None:
    with pytest.raises(ConfigError, match="needs all 4 stored frames; got num_frames=3"):
        build_model(
            ModelConfig(backbone_weights="none", pixel_differences=True),
            spec=ClipSpec(num_frames=3, height=32, width=32),
            num_classes=2,
            stored_frames=4,
        )
