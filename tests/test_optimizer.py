"""Updates by hand: the learning rate of a step and of a layer, decay, and averages."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from vidpipe.config import OptimizerConfig
from vidpipe.optimizer import averaged, build_optimizer, layer_scales, learning_rate_at


@pytest.mark.parametrize(
    ("schedule", "warmup_steps", "expected"),
    [
        pytest.param("constant", 0, [2, 2, 2, 2, 2], id="constant"),
        pytest.param("constant", 4, [0.5, 1, 1.5, 2, 2], id="constant after a warm-up"),
        pytest.param("cosine", 0, [2, 1.8090, 1.3090, 0.6910, 0.1910], id="cosine"),
        pytest.param("cosine", 2, [1, 2, 2, 1.5, 0.5], id="cosine after a warm-up"),
        pytest.param("cosine", 5, [0.4, 0.8, 1.2, 1.6, 2], id="nothing but warm-up"),
    ],
)
def test_the_learning_rate_of_each_step(schedule: str, warmup_steps: int, expected: list[float]) -> None:
    config = OptimizerConfig(learning_rate=2.0, schedule=schedule)
    rates = [learning_rate_at(step, 5, warmup_steps, config) for step in range(5)]
    np.testing.assert_allclose(rates, expected, atol=1e-4)


def test_layers_of_a_backbone_learn_slower_the_lower_they_are() -> None:
    inputs = keras.Input((8, 8, 3))
    frozen, low, high = (keras.layers.Conv2D(2, 1, name=name) for name in ("frozen", "low", "high"))
    steady = keras.layers.BatchNormalization()
    backbone = keras.Model(inputs, high(keras.layers.MaxPooling2D()(steady(low(frozen(inputs))))))
    frozen.trainable = steady.trainable = False
    steady.gamma.trainable = steady.beta.trainable = True
    scales = layer_scales(backbone, backbone_lr_scale=0.1, layer_decay=0.5)
    assert scales == {
        id(variable): scale
        for layer, scale in ((high, 0.1), (steady, 0.05), (low, 0.025))
        for variable in layer.variables
        if variable.trainable
    }
    assert len(scales) == 6


def _variables() -> list[keras.Variable]:
    return [keras.Variable(np.full((2, 2), 3.0, np.float32)), keras.Variable(np.full(2, 3.0, np.float32))]


GRADIENTS = [np.full((2, 2), 0.5, np.float32), np.full(2, 0.5, np.float32)]


def _after(
    config: OptimizerConfig, num_steps: int, scale: float = 1.0
) -> tuple[list[np.ndarray], keras.Optimizer]:
    variables = _variables()
    optimizer = build_optimizer(config, variables, {id(variable): scale for variable in variables}, "float32")
    for _ in range(num_steps):
        optimizer.apply([tf.constant(gradient) for gradient in GRADIENTS])
    return [variable.numpy() for variable in variables], optimizer


@pytest.mark.parametrize(
    ("name", "plain"),
    [("adamw", keras.optimizers.Adam(0.1)), ("sgd", keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True))],
)
def test_without_extras_it_is_keras_s(name: str, plain: keras.Optimizer) -> None:
    variables = _variables()
    for _ in range(3):
        plain.apply([tf.constant(gradient) for gradient in GRADIENTS], variables)
    ours, _ = _after(OptimizerConfig(name, 0.1), 3)
    for our, theirs in zip(ours, variables, strict=True):
        np.testing.assert_allclose(our, theirs.numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_scale_is_a_smaller_learning_rate(name: str) -> None:
    scaled, _ = _after(OptimizerConfig(name, 0.1), 3, scale=0.25)
    smaller, _ = _after(OptimizerConfig(name, 0.025), 3)
    for ours, theirs in zip(scaled, smaller, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_shrinks_matrices_by_their_own_learning_rate(name: str) -> None:
    (matrix, bias), _ = _after(OptimizerConfig(name, 0.1, weight_decay=0.5), 1, scale=0.5)
    (plain_matrix, plain_bias), _ = _after(OptimizerConfig(name, 0.1), 1, scale=0.5)
    np.testing.assert_allclose(matrix, plain_matrix - 3.0 * 0.05 * 0.5, rtol=1e-6)
    np.testing.assert_allclose(bias, plain_bias, rtol=1e-6)


def test_averages_follow_the_weights_with_a_short_memory_at_first() -> None:
    config = OptimizerConfig("sgd", 0.1, ema=0.15)
    average = None
    for step in range(4):
        (matrix, _), optimizer = _after(config, step + 1)
        keep = min(0.15, step / (step + 9))
        average = matrix if average is None else keep * average + (1 - keep) * matrix
        np.testing.assert_allclose(optimizer.averages[0].numpy(), average, rtol=1e-6)
    assert [min(0.15, step / (step + 9)) for step in (0, 3)] == [0, 0.15]


def test_averages_are_in_force_inside_the_block_alone() -> None:
    variables = _variables()
    optimizer = build_optimizer(OptimizerConfig("sgd", 0.1, ema=0.9), variables, {}, "float32")
    for _ in range(2):
        optimizer.apply([tf.constant(gradient) for gradient in GRADIENTS])
    own = [variable.numpy() for variable in variables]
    with averaged(optimizer, variables):
        for variable, average, value in zip(variables, optimizer.averages, own, strict=True):
            assert (variable.numpy() == average.numpy()).all()
            assert (variable.numpy() != value).all()
    for variable, value in zip(variables, own, strict=True):
        assert (variable.numpy() == value).all()


def test_float16_has_its_loss_scaled_and_its_averages_kept() -> None:
    variables = _variables()
    optimizer = build_optimizer(OptimizerConfig("sgd", 0.1, ema=0.9), variables, {}, "mixed_float16")
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    scale = float(optimizer.scale_loss(1.0))
    assert scale > 1
    optimizer.apply([tf.constant(gradient * scale) for gradient in GRADIENTS])
    (expected, _), _ = _after(OptimizerConfig("sgd", 0.1), 1)
    np.testing.assert_allclose(variables[0].numpy(), expected, rtol=1e-5)
    with averaged(optimizer, variables):
        np.testing.assert_allclose(variables[0].numpy(), expected, rtol=1e-5)
    optimizer.apply([tf.constant(gradient * np.inf) for gradient in GRADIENTS])
    assert float(optimizer.scale_loss(1.0)) == scale / 2
    np.testing.assert_allclose(variables[0].numpy(), expected, rtol=1e-5)
