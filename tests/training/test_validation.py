"""Metrics of a validation split, computed by hand."""

from types import SimpleNamespace

import numpy as np
import tensorflow as tf

from vidpipe.training.validation import Validation, validate

PROBABILITIES = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.6, 0.2], [0.3, 0.4, 0.3]])


def test_metrics_by_hand() -> None:
    logits = np.log(PROBABILITIES.astype(np.float32))
    linear_logits = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]], np.float32)
    validation = Validation(np.array([0, 0, 1, 2], np.int32), logits, linear_logits)
    losses = -np.log([0.5, 0.1, 0.6, 0.3])
    np.testing.assert_allclose(validation.losses, losses, rtol=1e-6)
    assert validation.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    metrics = validation.metrics()
    np.testing.assert_allclose(
        np.array(list(metrics.values()), np.float64),
        [losses.mean(), losses.std(ddof=1) / 2, 0.5, 0.75],
        rtol=1e-6,
    )
    assert list(metrics) == ["val_loss", "val_loss_error", "val_accuracy", "linear_val_accuracy"]


def test_a_model_without_linear_part_has_no_accuracy_of_it() -> None:
    validation = Validation(np.array([0], np.int32), np.zeros((1, 2), np.float32), np.zeros((1, 0)))
    assert validation.metrics()["linear_val_accuracy"] is None


def test_one_clip_has_no_standard_error() -> None:
    logits = np.zeros((1, 2), np.float32)
    validation = Validation(np.array([0], np.int32), logits, logits)
    assert validation.metrics()["val_loss_error"] == 0.0


def test_rows_that_fill_a_batch_are_left_out_and_the_order_is_kept() -> None:
    batches = [
        (tf.constant([[1.0, 0.0], [0.0, 2.0]]), tf.constant([0, 1]), tf.constant([1.0, 1.0])),
        (tf.constant([[3.0, 0.0], [0.0, 9.0]]), tf.constant([1, 0]), tf.constant([1.0, 0.0])),
    ]
    # A model whose logits are its inputs, and those of its linear part their negatives.
    steps = SimpleNamespace(evaluate=lambda inputs, label, weight: (inputs, -inputs, label, weight))
    validation = validate(steps, batches)  # type: ignore[arg-type]
    assert validation.label.tolist() == [0, 1, 1]
    assert validation.logits.tolist() == [[1, 0], [0, 2], [3, 0]]
    assert validation.linear_logits.tolist() == [[-1, 0], [0, -2], [-3, 0]]
