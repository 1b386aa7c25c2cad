"""Updates by hand: the learning rate of a step and of a layer, weight decay, and averages."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from vidpipe.config import OptimizerConfig
from vidpipe.training.optimizer import LearningRate, averaged, build_optimizer, layer_scales


def _config(name: str = "sgd", learning_rate: float = 0.1, **settings: float) -> OptimizerConfig:
    return OptimizerConfig(name=name, learning_rate=learning_rate, **({"ema": 0.0} | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schedule", "warmup_epochs", "expected"),
    [
        pytest.param("constant", 0.0, [2, 2, 2, 2, 2], id="constant"),
        pytest.param("constant", 0.8, [0.5, 1, 1.5, 2, 2], id="constant after a warm-up"),
        pytest.param("cosine", 0.0, [2, 1.8090, 1.3090, 0.6910, 0.1910], id="cosine"),
        pytest.param("cosine", 0.4, [1, 2, 2, 1.5, 0.5], id="cosine after a warm-up"),
        pytest.param("cosine", 1.0, [0.4, 0.8, 1.2, 1.6, 2], id="nothing but warm-up"),
    ],
)
def test_the_learning_rate_of_each_step(schedule: str, warmup_epochs: float, expected: list[float]) -> None:
    config = OptimizerConfig(learning_rate=2.0, schedule=schedule, warmup_epochs=warmup_epochs)
    rate = LearningRate(config, epochs=1, steps_per_epoch=5)
    np.testing.assert_allclose([rate.at(step) for step in range(5)], expected, atol=1e-4)


def test_a_schedule_spans_all_epochs() -> None:
    config = OptimizerConfig(learning_rate=2.0, schedule="cosine", warmup_epochs=1.0)
    rate = LearningRate(config, epochs=3, steps_per_epoch=2)
    np.testing.assert_allclose([rate.at(step) for step in range(6)], [1, 2, 2, 1.7071, 1, 0.2929], atol=1e-4)


def test_lower_layers_of_a_backbone_have_a_smaller_learning_rate() -> None:
    inputs = keras.Input((8, 8, 3))
    frozen, low, high = (keras.layers.Conv2D(2, 1, name=name) for name in ("frozen", "low", "high"))
    normalization = keras.layers.BatchNormalization()
    pooled = keras.layers.MaxPooling2D()(normalization(low(frozen(inputs))))
    backbone = keras.Model(inputs, high(pooled))
    # Batch normalization that keeps its statistics is frozen as a layer; its scale and offset are trained.
    frozen.trainable = normalization.trainable = False
    normalization.gamma.trainable = normalization.beta.trainable = True
    scales = layer_scales(backbone, backbone_lr_scale=0.1, layer_decay=0.5)
    assert scales == {
        id(variable): scale
        for layer, scale in ((high, 0.1), (normalization, 0.05), (low, 0.025))
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
    scales = {id(variable): scale for variable in variables}
    optimizer = build_optimizer(config, variables, scales=scales, precision="float32")
    for _ in range(num_steps):
        optimizer.apply([tf.constant(gradient) for gradient in GRADIENTS])
    return [variable.numpy() for variable in variables], optimizer


@pytest.mark.parametrize(
    ("name", "plain"),
    [("adamw", keras.optimizers.Adam(0.1)), ("sgd", keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True))],
)
def test_without_extensions_it_is_the_optimizer_of_keras(name: str, plain: keras.Optimizer) -> None:
    variables = _variables()
    for _ in range(3):
        plain.apply([tf.constant(gradient) for gradient in GRADIENTS], variables)
    ours, _ = _after(_config(name), 3)
    for our, theirs in zip(ours, variables, strict=True):
        np.testing.assert_allclose(our, theirs.numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_scale_is_a_smaller_learning_rate(name: str) -> None:
    scaled, _ = _after(_config(name), 3, scale=0.25)
    smaller, _ = _after(_config(name, learning_rate=0.025), 3)
    for ours, theirs in zip(scaled, smaller, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_shrinks_matrices_by_their_own_learning_rate(name: str) -> None:
    (matrix, bias), _ = _after(_config(name, weight_decay=0.5), 1, scale=0.5)
    (plain_matrix, plain_bias), _ = _after(_config(name), 1, scale=0.5)
    np.testing.assert_allclose(matrix, plain_matrix - 3.0 * 0.05 * 0.5, rtol=1e-6)
    np.testing.assert_allclose(bias, plain_bias, rtol=1e-6)


def test_averages_follow_the_weights_with_a_smaller_decay_at_first() -> None:
    config = _config(ema=0.15)
    average = None
    for step in range(4):
        (matrix, _), optimizer = _after(config, step + 1)
        decay = min(0.15, step / (step + 9))
        average = matrix if average is None else decay * average + (1 - decay) * matrix
        np.testing.assert_allclose(optimizer.averages[0].numpy(), average, rtol=1e-6)
    assert [min(0.15, step / (step + 9)) for step in (0, 3)] == [0, 0.15]


def test_averages_are_in_force_inside_the_block_only() -> None:
    variables = _variables()
    optimizer = build_optimizer(_config(ema=0.9), variables, scales={}, precision="float32")
    for _ in range(2):
        optimizer.apply([tf.constant(gradient) for gradient in GRADIENTS])
    own = [variable.numpy() for variable in variables]
    with averaged(optimizer, variables):
        for variable, average, value in zip(variables, optimizer.averages, own, strict=True):
            assert (variable.numpy() == average.numpy()).all()
            assert (variable.numpy() != value).all()
    for variable, value in zip(variables, own, strict=True):
        assert (variable.numpy() == value).all()


def test_without_averages_the_block_changes_nothing() -> None:
    variables = _variables()
    optimizer = build_optimizer(_config(), variables, scales={}, precision="float32")
    with averaged(optimizer, variables):
        assert all((variable.numpy() == 3.0).all() for variable in variables)


def test_float16_scales_the_loss_and_keeps_averages() -> None:
    variables = _variables()
    optimizer = build_optimizer(_config(ema=0.9), variables, scales={}, precision="mixed_float16")
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    scale = float(optimizer.scale_loss(1.0))
    assert scale > 1
    optimizer.apply([tf.constant(gradient * scale) for gradient in GRADIENTS])
    (expected, _), _ = _after(_config(), 1)
    np.testing.assert_allclose(variables[0].numpy(), expected, rtol=1e-5)
    with averaged(optimizer, variables):
        np.testing.assert_allclose(variables[0].numpy(), expected, rtol=1e-5)
    optimizer.apply([tf.constant(gradient * np.inf) for gradient in GRADIENTS])
    assert float(optimizer.scale_loss(1.0)) == scale / 2
    np.testing.assert_allclose(variables[0].numpy(), expected, rtol=1e-5)
