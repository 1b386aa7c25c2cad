"""Metrics computed by hand and by scikit-learn."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from vidpipe.evaluation.metrics import calibration, compute_metrics, linear_baseline, precision_recall_curves
from vidpipe.evaluation.significance import paired_interval, wilson_interval

_COLUMNS = ("num_classes", "num_clips", "occurring", "levels")
_CASES = [
    (2, 30, 2, None), (5, 50, 5, None), (8, 200, 8, None), (101, 700, 101, None),
    (8, 90, 5, None), (8, 60, 2, None), (2, 9, 1, None), (3, 1, 1, None),
    (2, 40, 2, 2), (7, 200, 7, 3), (30, 100, 11, 2),
]  # fmt: skip


def _random_scores(
    seed: int, num_classes: int, num_clips: int, occurring: int, levels: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Makes labels of the first `occurring` classes, and probabilities; few `levels` give many ties."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, occurring, num_clips)
    scores = random.gamma(0.5, size=(num_clips, num_classes))
    if levels is not None:
        scores = random.integers(1, levels + 1, size=(num_clips, num_classes)).astype(float)
    scores[np.arange(num_clips), labels] += random.integers(0, 2, num_clips)
    return labels, scores / scores.sum(axis=1, keepdims=True)


def test_metrics_by_hand() -> None:
    labels = np.array([0, 0, 0, 1])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.7, 0.2]])
    metrics = compute_metrics(labels, probabilities, ("a", "b", "c"))
    assert (metrics["num_clips"], metrics["accuracy"], metrics["top_5_accuracy"]) == (4, 0.75, 1.0)
    # Wilson's interval for 3 of 4.
    np.testing.assert_allclose(metrics["accuracy_ci95"], [0.30064, 0.95441], atol=1e-4)
    assert metrics["mean_class_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert metrics["loss"] == pytest.approx(-np.log([0.8, 0.6, 0.2, 0.7]).mean())
    assert (metrics["majority_class"], metrics["majority_accuracy"]) == ("a", 0.75)
    assert metrics["confusion_matrix"] == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert metrics["classes"] == ["a", "b", "c"]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
@pytest.mark.parametrize(_COLUMNS, _CASES)
def test_metrics_equal_those_of_scikit_learn(
    num_classes: int, num_clips: int, occurring: int, levels: int | None
) -> None:
    labels, probabilities = _random_scores(num_clips, num_classes, num_clips, occurring, levels)
    classes = tuple(f"class {index}" for index in range(num_classes))
    metrics = compute_metrics(labels, probabilities, classes)
    indices, predicted = np.arange(num_classes), probabilities.argmax(axis=1)
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "mean_class_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "loss": sk.log_loss(labels, probabilities, labels=indices),
    }
    weighted = sk.precision_recall_fscore_support(
        labels, predicted, labels=indices, average="weighted", zero_division=0
    )
    expected |= dict(zip(("precision_weighted", "recall_weighted", "f1_weighted"), weighted, strict=False))
    if num_classes > 5:
        expected["top_5_accuracy"] = sk.top_k_accuracy_score(labels, probabilities, k=5, labels=indices)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-12), name
    assert metrics["confusion_matrix"] == sk.confusion_matrix(labels, predicted, labels=indices).tolist()
    columns = sk.precision_recall_fscore_support(labels, predicted, labels=indices, zero_division=0)
    for index, *row in zip(indices, *columns, strict=True):
        found = metrics["per_class"][index]
        assert [found[name] for name in ("precision", "recall", "f1", "num_clips")] == row
        of_class = labels == index
        if of_class.any():
            area = sk.average_precision_score(of_class, probabilities[:, index])
            assert found["average_precision"] == pytest.approx(area)
            low, high = found["recall_ci95"]
            assert low <= found["recall"] <= high
        else:
            assert (found["average_precision"], found["recall_ci95"]) == (None, None)
    if occurring == num_classes > 2:
        area = sk.average_precision_score(np.eye(num_classes)[labels], probabilities, average="macro")
        assert metrics["mean_average_precision"] == pytest.approx(area)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
@pytest.mark.parametrize(_COLUMNS, _CASES)
def test_calibration_equals_that_of_scikit_learn(
    num_classes: int, num_clips: int, occurring: int, levels: int | None
) -> None:
    labels, probabilities = _random_scores(num_clips, num_classes, num_clips, occurring, levels)
    error, bins = calibration(labels, probabilities)
    is_correct, confidence = probabilities.argmax(axis=1) == labels, probabilities.max(axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a single class
        accuracies, confidences = calibration_curve(is_correct, confidence, n_bins=15, pos_label=True)
    filled = [row for row in bins if row["num_clips"] > 0]
    np.testing.assert_allclose([row["accuracy"] for row in filled], accuracies)
    np.testing.assert_allclose([row["confidence"] for row in filled], confidences)
    clips = [row["num_clips"] for row in filled]
    expected = np.average(np.abs(accuracies - confidences), weights=clips)
    assert (sum(clips), error) == (num_clips, pytest.approx(expected))
    metrics = compute_metrics(labels, probabilities, tuple(map(str, range(num_classes))))
    assert (metrics["calibration_error"], metrics["calibration_bins"]) == (error, bins)


def test_calibration_by_hand() -> None:
    """Two clips of confidence 0.9, one correct; one of 0.6, correct; 0.6 is 9/15 and in the bin below it."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    error, bins = calibration(np.array([0, 1, 1]), probabilities)
    assert error == pytest.approx((2 * 0.4 + 1 * 0.4) / 3)
    assert [row["num_clips"] for row in bins] == [0] * 8 + [1] + [0] * 4 + [2, 0]
    assert bins[8] == {
        "low": pytest.approx(8 / 15), "high": pytest.approx(0.6), "num_clips": 1, "accuracy": 1.0,
        "accuracy_ci95": list(wilson_interval(1, 1)), "confidence": 0.6,
    }  # fmt: skip
    assert [bins[0][name] for name in ("accuracy", "accuracy_ci95", "confidence")] == [None] * 3


def test_confidence_equal_to_accuracy_has_no_calibration_error() -> None:
    probabilities = np.tile([0.75, 0.25], (4, 1))
    assert calibration(np.array([0, 0, 0, 1]), probabilities)[0] == 0
    assert calibration(np.array([0, 0, 0, 0]), probabilities)[0] == 0.25


def test_the_area_below_each_curve_is_the_average_precision() -> None:
    labels, probabilities = _random_scores(3, 6, 300, 5, 9)
    curves = precision_recall_curves(labels, probabilities)
    assert list(curves) == [0, 1, 2, 3, 4]
    for index, (recall, precision) in curves.items():
        area = sk.average_precision_score(labels == index, probabilities[:, index])
        assert -(np.diff(recall) * precision[:-1]).sum() == pytest.approx(area)
        assert (recall == 1).sum() == 1
        assert (recall[0], recall[-1], precision[-1]) == (1, 0, 1)
        assert len(recall) <= 2 * (labels == index).sum() + 1


def test_the_linear_part_is_compared_clip_by_clip() -> None:
    """Of ten clips the model alone has three, its linear part alone one, both five."""
    is_correct = np.array([1, 1, 1, 0, 1, 1, 1, 1, 1, 0], bool)
    is_correct_linear = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 0], bool)

    def probabilities(correct: np.ndarray) -> np.ndarray:
        return np.where(correct[:, np.newaxis], [0.75, 0.25], [0.25, 0.75])

    found = linear_baseline(np.zeros(10, int), probabilities(is_correct), probabilities(is_correct_linear))
    assert (found["accuracy"], found["difference"]) == (0.6, pytest.approx(0.2))
    assert found["loss"] == pytest.approx(-(6 * np.log(0.75) + 4 * np.log(0.25)) / 10)
    assert found["difference_ci95"] == list(paired_interval(5, 3, 1, 1))
