"""One step by arithmetic: what is added up, divided, weighed and clipped."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from vidpipe.config import OptimizerConfig, TrainConfig
from vidpipe.optimizer import build_optimizer
from vidpipe.step import Steps, balanced_class_weights, clip_losses

FEATURES = np.array([[1.0, 2.0], [-1.0, 0.5], [0.3, -2.0], [4.0, 1.0]], np.float32)
LABEL = np.array([0, 1, 1, 0], np.int32)


def _steps(
    class_weights: tuple[float, ...] = (1.0, 1.0),
    clip_norm: float | None = None,
    num_members: int = 1,
    **settings: object,
) -> tuple[Steps, keras.Model]:
    """A linear model of zeros under plain SGD: its first step moves by minus the gradient."""
    inputs = keras.Input((2,), name="features")
    logits = keras.layers.Dense(2 * num_members, kernel_initializer="zeros")(inputs)
    members = keras.layers.Reshape((num_members, 2), name="members")(logits)
    model = keras.Model({"features": inputs}, keras.layers.GlobalAveragePooling1D()(members))
    optimizer = OptimizerConfig("sgd", learning_rate=1.0, clip_norm=clip_norm)
    config = TrainConfig("d", "r", optimizer=optimizer, batch_size=None, **settings)  # type: ignore[arg-type]
    built = build_optimizer(optimizer, model.trainable_variables, {}, "float32")
    built.momentum = 0.0
    strategy = tf.distribute.get_strategy()
    return Steps(config, model, built, strategy, np.array(class_weights, np.float32)), model


def _train(steps: Steps, weight: tuple[float, ...] = (1, 1, 1, 1), label: np.ndarray = LABEL) -> np.ndarray:
    return steps.train(
        {"features": tf.constant(FEATURES)},
        tf.constant(label),
        tf.constant(weight, tf.float32),
        tf.constant(0.25),
    ).numpy()


def _minus_gradient(rows: list[int], scale: float = 1.0) -> np.ndarray:
    """Of the mean cross-entropy of a model that says 1/2 to each of two classes."""
    error = np.eye(2)[LABEL] - 0.5
    return scale * np.einsum("nf,nc->fc", FEATURES[rows], error[rows]) / len(rows)


def test_a_step_s_sums_and_update() -> None:
    steps, model = _steps()
    # All logits are 0: the first class is said, which is right for two clips.
    np.testing.assert_allclose(_train(steps), [4 * np.log(2), 2, 4, 0.25], rtol=1e-6)
    np.testing.assert_allclose(model.get_weights()[0], _minus_gradient([0, 1, 2, 3]), rtol=1e-5)


def test_each_member_follows_its_own_loss() -> None:
    steps, model = _steps(num_members=2)
    model.layers[1].bias.assign([np.log(3), 0, 0, 0])
    of_first, of_second = -np.log([[0.75, 0.25], [0.5, 0.5]])
    # The average of the two says the first class.
    expected = [2 * (of_first + of_second).sum() / 2, 2, 4, 0.25]
    np.testing.assert_allclose(_train(steps), expected, rtol=1e-6)
    first, second = np.split(model.layers[1].kernel.numpy(), 2, axis=1)
    error = np.eye(2)[LABEL] - [0.75, 0.25]
    np.testing.assert_allclose(first, FEATURES.T @ error / 4 / 2, rtol=1e-5)
    np.testing.assert_allclose(second, _minus_gradient([0, 1, 2, 3]) / 2, rtol=1e-5)


def test_rows_that_fill_a_batch_count_for_nothing() -> None:
    steps, model = _steps()
    np.testing.assert_allclose(_train(steps, (1, 1, 1, 0)), [3 * np.log(2), 1, 3, 0.25], rtol=1e-6)
    np.testing.assert_allclose(model.get_weights()[0], _minus_gradient([0, 1, 2]), rtol=1e-5)


@pytest.mark.parametrize("weight", [(1, 1, 1, 1), (1, 1, 1, 0)], ids=["full", "filled up"])
def test_parts_add_up_to_the_whole_step(weight: tuple[float, ...]) -> None:
    (whole, whole_model), (parts, parts_model) = _steps(), _steps(accumulate=4)
    np.testing.assert_allclose(_train(parts, weight), _train(whole, weight), rtol=1e-6)
    for ours, theirs in zip(parts_model.get_weights(), whole_model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_long_gradient_is_cut_to_the_norm_and_a_short_one_left(accumulate: int) -> None:
    _, free = (_train((made := _steps())[0]), made[1])
    norm = np.sqrt(sum(np.square(weights).sum() for weights in free.get_weights()))
    for clip_norm, shrink in ((norm / 2, 0.5), (norm * 2, 1.0)):
        steps, model = _steps(clip_norm=float(clip_norm), accumulate=accumulate)
        _train(steps)
        np.testing.assert_allclose(model.get_weights()[0], shrink * free.get_weights()[0], rtol=1e-5)


def test_class_weights_weigh_loss_and_gradient() -> None:
    steps, model = _steps(class_weights=(3.0, 1.0))
    np.testing.assert_allclose(_train(steps), [8 * np.log(2), 2, 4, 0.25], rtol=1e-6)
    expected = 3 * _minus_gradient([0, 3], 0.5) + _minus_gradient([1, 2], 0.5)
    np.testing.assert_allclose(model.get_weights()[0], expected, rtol=1e-5)


def test_balanced_classes_weigh_the_same() -> None:
    counts = np.array([2, 6, 4])
    np.testing.assert_allclose(balanced_class_weights(counts) * counts, [4, 4, 4], rtol=1e-6)


def test_mixed_labels_share_class_weights_and_are_right_by_their_larger_part() -> None:
    steps, _ = _steps(class_weights=(3.0, 1.0))
    mixed = np.array([[0.75, 0.25], [0.25, 0.75], [0, 1], [1, 0]], np.float32)
    expected = (2.5 + 1.5 + 1 + 3) * np.log(2)
    np.testing.assert_allclose(_train(steps, label=mixed), [expected, 2, 4, 0.25], rtol=1e-6)


def test_label_smoothing_spreads_a_share_over_all_classes() -> None:
    logits = tf.constant([[2.0, 0.0, -1.0]])
    of_class = -np.log(tf.nn.softmax(logits).numpy()[0])
    smoothed = clip_losses(tf.constant([0]), logits, label_smoothing=0.3).numpy()
    np.testing.assert_allclose(
        smoothed, [0.8 * of_class[0] + 0.1 * of_class[1] + 0.1 * of_class[2]], rtol=1e-6
    )
    steps, model = _steps(label_smoothing=0.3)
    _train(steps)
    np.testing.assert_allclose(model.get_weights()[0], _minus_gradient([0, 1, 2, 3], 0.7), rtol=1e-5)


def test_the_loss_of_a_mixed_clip_is_shared_by_its_classes() -> None:
    logits = tf.constant([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    of_class = -np.log(tf.nn.softmax(logits).numpy())
    hard = clip_losses(tf.constant([0, 2]), logits).numpy()
    np.testing.assert_allclose(hard, [of_class[0, 0], of_class[1, 2]], rtol=1e-6)
    mixed = clip_losses(tf.constant([[0.3, 0.0, 0.7], [0.0, 1.0, 0.0]]), logits).numpy()
    np.testing.assert_allclose(
        mixed, [0.3 * of_class[0, 0] + 0.7 * of_class[0, 2], of_class[1, 1]], rtol=1e-6
    )
