"""One step by arithmetic: what is summed, divided, weighted and clipped."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from vidpipe.config import OptimizerConfig, TrainConfig
from vidpipe.training.optimizer import build_optimizer
from vidpipe.training.step import StepResult, Steps, StepSums, balanced_class_weights, clip_losses

FEATURES = np.array([[1.0, 2.0], [-1.0, 0.5], [0.3, -2.0], [4.0, 1.0]], np.float32)
LABEL = np.array([0, 1, 1, 0], np.int32)


def _steps(
    class_weights: tuple[float, ...] = (1.0, 1.0),
    clip_norm: float | None = None,
    ensemble_size: int = 1,
    accumulate: int = 1,
    label_smoothing: float = 0.0,
    clips_per_call: int = 4,
) -> tuple[Steps, keras.Model]:
    """A linear model of zeros under plain SGD: its first step moves by minus the gradient."""
    inputs = keras.Input((2,), name="features")
    logits = keras.layers.Dense(2 * ensemble_size, kernel_initializer="zeros")(inputs)
    members = keras.layers.Reshape((ensemble_size, 2))(logits)
    model = keras.Model({"features": inputs}, keras.layers.GlobalAveragePooling1D()(members))
    optimizer = OptimizerConfig(name="sgd", learning_rate=1.0, clip_norm=clip_norm, ema=0.0)
    config = TrainConfig(
        data_dir="d",
        run_dir="r",
        optimizer=optimizer,
        batch_size=4,
        accumulate=accumulate,
        label_smoothing=label_smoothing,
    )
    built = build_optimizer(optimizer, model.trainable_variables, scales={}, precision="float32")
    built.momentum = 0.0
    steps = Steps(
        config,
        model=model,
        ensemble=keras.Model({"features": inputs}, members),
        answers=keras.Model({"features": inputs}, [model.output, model.output]),
        optimizer=built,
        strategy=tf.distribute.get_strategy(),
        class_weights=np.array(class_weights, np.float32),
        clips_per_call=clips_per_call,
    )
    return steps, model


def _train(steps: Steps, weight: tuple[float, ...] = (1, 1, 1, 1), label: np.ndarray = LABEL) -> StepSums:
    pending = steps.train(
        {"features": tf.constant(FEATURES)},
        tf.constant(label),
        tf.constant(weight, tf.float32),
        stop_requested=False,
    )
    return pending.read().sums


def _minus_gradient(rows: list[int], scale: float = 1.0) -> np.ndarray:
    """Of the mean cross-entropy of a model that gives 1/2 to each of two classes."""
    error = np.eye(2)[LABEL] - 0.5
    return scale * np.einsum("nf,nc->fc", FEATURES[rows], error[rows]) / len(rows)


def test_the_sums_and_the_update_of_a_step() -> None:
    steps, model = _steps()
    sums = _train(steps)
    # All logits are 0, so the first class is predicted, which is correct for two clips.
    np.testing.assert_allclose(sums, [4 * np.log(2), 2, 4], rtol=1e-6)
    assert (sums.mean_loss, sums.accuracy) == (sums.loss / 4, 0.5)
    np.testing.assert_allclose(model.get_weights()[0], _minus_gradient([0, 1, 2, 3]), rtol=1e-5)


def test_sums_add_up() -> None:
    assert StepSums(1.0, 2.0, 3.0).plus(StepSums(10.0, 20.0, 30.0)) == StepSums(11.0, 22.0, 33.0)


@pytest.mark.parametrize("stop_requested", [False, True])
def test_a_step_carries_the_request_to_stop(stop_requested: bool) -> None:
    steps, _ = _steps()
    batch = {"features": tf.constant(FEATURES)}, tf.constant(LABEL), tf.ones(4)
    result = steps.train(*batch, stop_requested=stop_requested).read()
    assert isinstance(result, StepResult)
    assert result.stop_requested is stop_requested


def test_each_ensemble_member_follows_its_own_loss() -> None:
    steps, model = _steps(ensemble_size=2)
    model.layers[1].bias.assign([np.log(3), 0, 0, 0])
    of_first, of_second = -np.log([[0.75, 0.25], [0.5, 0.5]])
    # The average of the two predicts the first class.
    expected = [2 * (of_first + of_second).sum() / 2, 2, 4]
    np.testing.assert_allclose(_train(steps), expected, rtol=1e-6)
    first, second = np.split(model.layers[1].kernel.numpy(), 2, axis=1)
    error = np.eye(2)[LABEL] - [0.75, 0.25]
    np.testing.assert_allclose(first, FEATURES.T @ error / 4 / 2, rtol=1e-5)
    np.testing.assert_allclose(second, _minus_gradient([0, 1, 2, 3]) / 2, rtol=1e-5)


def test_rows_that_fill_a_batch_count_for_nothing() -> None:
    steps, model = _steps()
    np.testing.assert_allclose(_train(steps, (1, 1, 1, 0)), [3 * np.log(2), 1, 3], rtol=1e-6)
    np.testing.assert_allclose(model.get_weights()[0], _minus_gradient([0, 1, 2]), rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_member_is_trained_on_the_clips_in_which_it_has_weight(accumulate: int) -> None:
    """The last row is a filler; the second member does not see the first clip."""
    steps, model = _steps(ensemble_size=2, accumulate=accumulate)
    weight = np.array([[1, 0], [1, 1], [1, 1], [0, 0]], np.float32)
    sums = _train(steps, weight)  # type: ignore[arg-type]
    np.testing.assert_allclose(sums, [2.5 * np.log(2), _correct([1, 2, 2], [0, 1, 2]), 2.5], rtol=1e-6)
    first, second = np.split(model.layers[1].kernel.numpy(), 2, axis=1)
    np.testing.assert_allclose(first, _minus_gradient([0, 1, 2]) * 3 / 5, rtol=1e-5)
    np.testing.assert_allclose(second, _minus_gradient([1, 2]) * 2 / 5, rtol=1e-5)


def _correct(half_weights: list[int], rows: list[int]) -> float:
    """The weight of the clips of the first class, which is predicted where all logits are 0."""
    return sum(half / 2 for half, row in zip(half_weights, rows, strict=True) if LABEL[row] == 0)


@pytest.mark.parametrize("weight", [(1, 1, 1, 1), (1, 1, 1, 0)], ids=["full", "with a filler"])
def test_microbatches_add_up_to_the_step(weight: tuple[float, ...]) -> None:
    (one, one_model), (four, four_model) = _steps(), _steps(accumulate=4)
    np.testing.assert_allclose(_train(four, weight), _train(one, weight), rtol=1e-6)
    for ours, theirs in zip(four_model.get_weights(), one_model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def _loops(function: Any, *arguments: Any) -> int:
    """The number of loops in a traced function."""
    graph = function.get_concrete_function(*arguments).graph
    return sum(operation.type in ("While", "StatelessWhile") for operation in graph.get_operations())


@pytest.mark.parametrize(
    ("accumulate", "clips_per_call", "num_microbatches"), [(1, 4, 1), (1, 3, 2), (2, 1, 4), (1, 1, 4)]
)
def test_a_batch_larger_than_a_call_is_divided(
    accumulate: int, clips_per_call: int, num_microbatches: int
) -> None:
    (one, one_model), (steps, model) = _steps(), _steps(accumulate=accumulate, clips_per_call=clips_per_call)
    assert steps._num_microbatches(4, at_least=accumulate) == num_microbatches
    np.testing.assert_allclose(_train(steps), _train(one), rtol=1e-6)
    for ours, theirs in zip(model.get_weights(), one_model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    batch = {"features": tf.constant(FEATURES)}, tf.constant(LABEL), tf.ones(4)
    for ours, theirs in zip(steps.evaluate(*batch), one.evaluate(*batch), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert _loops(steps.evaluate, *batch) == (clips_per_call < 4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_long_gradient_is_clipped_to_the_norm_and_a_short_one_is_not(accumulate: int) -> None:
    _, free = (_train((made := _steps())[0]), made[1])
    norm = np.sqrt(sum(np.square(weights).sum() for weights in free.get_weights()))
    for clip_norm, factor in ((norm / 2, 0.5), (norm * 2, 1.0)):
        steps, model = _steps(clip_norm=float(clip_norm), accumulate=accumulate)
        _train(steps)
        np.testing.assert_allclose(model.get_weights()[0], factor * free.get_weights()[0], rtol=1e-5)


def test_a_non_finite_gradient_shows_in_the_loss() -> None:
    """A loss alone may stay finite: TensorFlow's ReLU turns NaN into 0."""
    steps, _ = _steps()
    original = steps._gradients

    def spoiled(*arguments: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        gradients, sums = original(*arguments)
        return [gradient * np.inf for gradient in gradients], sums

    steps._gradients = spoiled  # type: ignore[method-assign, assignment]
    assert not np.isfinite(_train(steps).loss)


def test_class_weights_scale_loss_and_gradient() -> None:
    steps, model = _steps(class_weights=(3.0, 1.0))
    np.testing.assert_allclose(_train(steps), [8 * np.log(2), 2, 4], rtol=1e-6)
    expected = 3 * _minus_gradient([0, 3], 0.5) + _minus_gradient([1, 2], 0.5)
    np.testing.assert_allclose(model.get_weights()[0], expected, rtol=1e-5)


def test_balanced_classes_have_the_same_total_weight() -> None:
    counts = np.array([2, 6, 4])
    np.testing.assert_allclose(balanced_class_weights(counts) * counts, [4, 4, 4], rtol=1e-6)


def test_a_class_without_clips_has_a_finite_weight() -> None:
    assert np.isfinite(balanced_class_weights(np.array([3, 0]))).all()


def test_mixed_labels_mix_class_weights_and_are_correct_by_their_larger_weight() -> None:
    steps, _ = _steps(class_weights=(3.0, 1.0))
    mixed = np.array([[0.75, 0.25], [0.25, 0.75], [0, 1], [1, 0]], np.float32)
    expected = (2.5 + 1.5 + 1 + 3) * np.log(2)
    np.testing.assert_allclose(_train(steps, label=mixed), [expected, 2, 4], rtol=1e-6)


def test_label_smoothing_spreads_a_fraction_over_all_classes() -> None:
    logits = tf.constant([[2.0, 0.0, -1.0]])
    of_class = -np.log(tf.nn.softmax(logits).numpy()[0])
    smoothed = clip_losses(tf.constant([0]), logits, label_smoothing=0.3).numpy()
    np.testing.assert_allclose(
        smoothed, [0.8 * of_class[0] + 0.1 * of_class[1] + 0.1 * of_class[2]], rtol=1e-6
    )
    steps, model = _steps(label_smoothing=0.3)
    _train(steps)
    np.testing.assert_allclose(model.get_weights()[0], _minus_gradient([0, 1, 2, 3], 0.7), rtol=1e-5)


def test_the_loss_of_a_mixed_clip_is_that_of_its_classes() -> None:
    logits = tf.constant([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    of_class = -np.log(tf.nn.softmax(logits).numpy())
    hard = clip_losses(tf.constant([0, 2]), logits).numpy()
    np.testing.assert_allclose(hard, [of_class[0, 0], of_class[1, 2]], rtol=1e-6)
    mixed = clip_losses(tf.constant([[0.3, 0.0, 0.7], [0.0, 1.0, 0.0]]), logits).numpy()
    np.testing.assert_allclose(
        mixed, [0.3 * of_class[0, 0] + 0.7 * of_class[0, 2], of_class[1, 1]], rtol=1e-6
    )
