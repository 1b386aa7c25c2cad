"""The fused model with each real backbone: split, batch normalization, and model.keras without vidpipe."""

import json
import math
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from vidpipe.config import ClipConfig
from vidpipe.model import memory
from vidpipe.model.backbone import BACKBONES
from vidpipe.model.fused import FusedModel
from vidpipe.model.model_file import METADATA_NAME, ModelMetadata, load_weights, save_model
from vidpipe.model.standardization import adapt_standardization

pytestmark = pytest.mark.full_backbone

Build = Callable[..., FusedModel]
Inputs = dict[str, np.ndarray]
CLASSES = ("a", "b", "c")
METADATA = ModelMetadata(CLASSES, ClipConfig(num_frames=4, image_size=32), 4)


@pytest.fixture(scope="module")
def models(build: Build) -> dict[str, FusedModel]:
    """By backbone; trained from the fourth block on, without dropout."""
    return {name: build("motion", backbone=name, fine_tune="block4", dropout=0.0) for name in BACKBONES}


@pytest.fixture(scope="module", params=BACKBONES)
def model(request: pytest.FixtureRequest, models: dict[str, FusedModel]) -> FusedModel:
    return models[request.param]


def test_every_backbone_can_be_split(model: FusedModel, inputs: Inputs) -> None:
    assert model.frozen is not None and model.trained is not None
    features = model.frozen(inputs["frames"], inputs["mask"])
    assert features.shape[:2] == (3, 4) and len(features.shape) == 5
    logits = model.trained({"features": features, "mask": inputs["mask"]}).numpy()
    np.testing.assert_allclose(logits, model.fused(inputs).numpy(), atol=1e-5)
    assert [id(weight) for weight in model.fused.weights] == [
        id(weight) for weight in [*model.frozen.network.weights, *model.trained.weights]
    ]
    assert [id(weight) for weight in model.fused.trainable_variables] == [
        id(weight) for weight in model.trained.trainable_variables
    ]
    assert model.frozen.network.trainable_variables == []


def test_the_memory_of_every_backbone_is_estimated(model: FusedModel) -> None:
    """Also of those that contain models."""
    assert model.trained is not None
    for part in (model.fused, model.trained):
        estimate = memory.estimate(part, num_clips=2, slots_per_weight=2)
        num_weights = sum(math.prod(weight.shape) for weight in part.weights)
        assert estimate.weights == pytest.approx(4 * num_weights, rel=1e-4)  # and the states of dropout
        assert estimate.activations > 0
        assert memory.clips_per_call(part) > 1000


def test_training_normalizes_batches_as_prediction_does(model: FusedModel, inputs: Inputs) -> None:
    """Neither batch statistics nor stochastic depth; and each trained variable has a gradient."""
    before = [weight.numpy() for weight in model.fused.non_trainable_variables]
    with tf.GradientTape() as tape:
        logits = model.fused(inputs, training=True)
        loss = tf.reduce_sum(tf.square(logits))
    np.testing.assert_allclose(logits.numpy(), model.fused(inputs, training=False).numpy(), atol=1e-5)
    after = [weight.numpy() for weight in model.fused.non_trainable_variables]
    for old, new in zip(before, after, strict=True):
        assert (old == new).all()
    assert not any(gradient is None for gradient in tape.gradient(loss, model.fused.trainable_variables))


@pytest.mark.processes
def test_plain_keras_loads_every_backbone_and_head_without_vidpipe(
    build: Build, models: dict[str, FusedModel], inputs: Inputs, tmp_path: Path
) -> None:
    saved = models | {"notebook": build("notebook")}
    for name, model in saved.items():
        save_model(model.fused, METADATA, tmp_path / f"{name}.keras")
    np.savez(tmp_path / "inputs.npz", frames=inputs["frames"], mask=inputs["mask"])
    script = """
import sys, keras, numpy as np
inputs = dict(np.load("inputs.npz"))
for name in sys.argv[1:]:
    model = keras.saving.load_model(f"{name}.keras", safe_mode=True)
    np.save(f"{name}.npy", model(inputs, training=name != "notebook"))
assert "vidpipe" not in sys.modules
"""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, "-c", script, *saved], cwd=tmp_path, check=True, env=environment)
    for name, model in saved.items():
        logits = model.fused(inputs).numpy()
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), logits, atol=1e-5)
    with zipfile.ZipFile(tmp_path / "vgg16.keras") as archive:
        assert json.loads(archive.read(METADATA_NAME))["classes"] == ["a", "b", "c"]


def test_load_weights_fits_layers_that_keras_has_numbered_otherwise(
    build: Build, inputs: Inputs, tmp_path: Path
) -> None:
    """As in another process: ConvNeXt has layers without names, which Keras numbers per process."""
    source, model = (build("motion", seed=seed, backbone="convnext_tiny") for seed in (1, 2))
    adapt_standardization(source.fused, [inputs])
    save_model(source.fused, METADATA, tmp_path / "model.keras")
    assert [weight.path for weight in source.fused.weights] != [weight.path for weight in model.fused.weights]
    expected = source.fused(inputs).numpy()
    assert not np.allclose(model.fused(inputs).numpy(), expected, atol=1e-3)
    load_weights(model, tmp_path / "model.keras", CLASSES)
    assert (model.fused(inputs).numpy() == expected).all()
