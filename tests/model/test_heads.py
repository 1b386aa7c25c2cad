"""The layers of each head, its dropout rates and ensemble, and the parts of a model before and after it."""

import re
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from vidpipe.config import ConfigError, ModelConfig
from vidpipe.model import heads
from vidpipe.model.fused import FusedModel

Build = Callable[..., FusedModel]
Inputs = dict[str, np.ndarray]


def test_the_notebook_head_has_the_notebook_s_layers(build: Build) -> None:
    layers = [
        layer
        for layer in build("notebook", ensemble_size=None).fused.get_layer("head").layers
        if layer.count_params() or "dropout" in layer.name
    ]
    first, second, dropout, dense = layers
    assert (first.units, first.dropout, first.return_sequences) == (456, 0.5, True)
    assert first.recurrent_activation is keras.activations.hard_sigmoid
    assert (second.units, second.return_sequences) == (8, False)
    assert dropout.rate == 0.4
    assert (dense.units, dense.activation) == (8, keras.activations.relu)


@pytest.mark.parametrize(
    ("head", "default_rates"), [("notebook", [0.5, 0.0, 0.4]), ("motion", 5 * [0.0, 0.5, 0.5])]
)
def test_dropout_replaces_every_rate_of_a_head(build: Build, head: str, default_rates: list[float]) -> None:
    """The zeros belong to LSTMs without dropout, and stay."""

    def rates(dropout: float | None) -> list[float]:
        layers = build(head, dropout=dropout, ensemble_size=None).fused.get_layer("head").layers
        found = [getattr(layer, "dropout", getattr(layer, "rate", None)) for layer in layers]
        return [rate for rate in found if rate is not None]

    assert sorted(rates(None)) == sorted(default_rates)
    assert sorted(rates(0.25)) == sorted(0.25 if rate else 0.0 for rate in default_rates)
    assert rates(0.0) == [0.0] * len(default_rates)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ensemble_size": 0}, "ensemble_size must be at least 1; got 0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\); got -0.1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\); got 1.0"),
        ({"dropout": float("nan")}, r"dropout must be in \[0, 1\); got nan"),
        ({"head": "tail"}, "head must be one of motion, notebook; got tail"),
        ({"backbone": "alexnet"}, "backbone must be one of vgg16, .*; got alexnet"),
    ],
)
def test_invalid_model_settings_are_rejected(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**settings)


@pytest.mark.parametrize(
    ("head", "ensemble_size", "expected"), [("motion", None, 5), ("notebook", None, 1), ("notebook", 3, 3)]
)
def test_ensemble_members_start_differently_and_their_logits_are_averaged(
    build: Build, inputs: Inputs, head: str, ensemble_size: int | None, expected: int
) -> None:
    model = build(head, ensemble_size=ensemble_size).fused
    member_logits = heads.ensemble_logits(model)(inputs).numpy()
    assert member_logits.shape == (3, expected, 3)
    np.testing.assert_allclose(model(inputs), member_logits.mean(axis=1), atol=1e-6)
    assert len(np.unique(member_logits[0, :, 0])) == expected


@pytest.mark.parametrize("head", sorted(heads.HEADS))
def test_a_head_s_operations_have_the_same_names_in_every_build(head: str) -> None:
    """TensorFlow sums gradients in an order that depends on names: a second run must not differ."""

    def names() -> list[str]:
        features, mask = keras.Input((4, 512), name="features"), keras.Input((4,), dtype="bool", name="mask")
        logits = heads.build_head(ModelConfig(head=head, ensemble_size=2), mask, 3)(features)
        model = keras.Model({"features": features, "mask": mask}, logits, name="headed")
        example = {"features": tf.zeros([2, 4, 512]), "mask": tf.ones([2, 4], tf.bool)}
        graph = tf.function(lambda: model(example, training=True)).get_concrete_function().graph
        # Some constants end in a number that TensorFlow counts up in the whole process.
        return [re.sub(r"/\d+$", "", operation.name) for operation in graph.get_operations()]

    assert names() == names()


def test_each_member_s_matrix_is_initialized_like_that_of_a_dense_layer(build: Build) -> None:
    """Glorot's uniform distribution: between plus and minus sqrt(6 / (64 + 3))."""
    kernel = build("motion", ensemble_size=None).fused.get_layer("logits").kernel.numpy()
    assert kernel.shape == (5, 64, 3)
    np.testing.assert_allclose(np.abs(kernel).max(axis=(1, 2)), (6 / (64 + 3)) ** 0.5, rtol=0.05)


@pytest.mark.parametrize("head", sorted(heads.HEADS))
def test_the_classifier_on_extracted_features_is_the_model(build: Build, inputs: Inputs, head: str) -> None:
    model = build(head).fused
    features = heads.feature_extractor(model)(inputs)
    assert features.shape == (3, 4, 512)
    assert (features.numpy()[~inputs["mask"]] == 0).all()
    logits = heads.classifier(model)({"features": features, "mask": tf.constant(inputs["mask"])})
    assert (logits.numpy() == model(inputs).numpy()).all()


def test_a_model_of_a_version_without_linear_part_has_no_logits_of_it() -> None:
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    features = np.ones((2, 4), np.float32)
    logits, linear_logits = heads.with_linear_logits(model)(features)
    assert (logits.numpy() == model(features).numpy()).all()
    assert linear_logits.shape == (2, 0)
