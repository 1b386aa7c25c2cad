"""Metrics of a split, computed from labels and probabilities."""

import itertools
from typing import Any

import numpy as np
from sklearn import metrics as sk

from vidpipe.evaluation.significance import interval_of_mean, paired_interval, wilson_interval

_CALIBRATION_BINS = 15


def compute_metrics(
    labels: np.ndarray, probabilities: np.ndarray, classes: tuple[str, ...]
) -> dict[str, Any]:
    """Computes all metrics of a split.

    Args:
      labels: int [N], N >= 1.
      probabilities: float [N, C], rows sum to 1.
      classes: the C names, in the order of the columns.

    Returns:
      `num_clips`; `accuracy` and `top_5_accuracy` (1 with 5 classes or fewer), each with its 95 % interval
      under its name and `_ci95`; `mean_class_accuracy`, over the classes that occur, also with an interval;
      `precision_weighted`, `recall_weighted`, `f1_weighted`; `mean_average_precision`, over the classes that
      occur; `loss` (mean cross-entropy, natural logarithm); `majority_class`, and `majority_accuracy` of
      always predicting it; `calibration_error` and `calibration_bins` of `calibration`; `per_class`, a dict
      per class, whose `recall_ci95` and `average_precision` are None for a class that does not occur;
      `confusion_matrix` (rows are true classes) and `classes`. Values equal those of scikit-learn
      where it has the metric.
    """
    predicted = probabilities.argmax(axis=1)
    num_clips, indices = len(labels), np.arange(len(classes))
    confusion = sk.confusion_matrix(labels, predicted, labels=indices)
    num_correct, clips_of_class = int(confusion.trace()), confusion.sum(axis=1)
    num_top_5 = num_clips
    if len(classes) > 5:
        num_top_5 = int(sk.top_k_accuracy_score(labels, probabilities, k=5, labels=indices, normalize=False))
    per_class = _per_class(labels, probabilities, classes)
    occurring = [row for row in per_class if row["num_clips"] > 0]
    recalls, intervals = [row["recall"] for row in occurring], [row["recall_ci95"] for row in occurring]
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, predicted, labels=indices, average="weighted", zero_division=0
    )
    calibration_error, calibration_bins = calibration(labels, probabilities)
    return {
        "num_clips": num_clips,
        "accuracy": num_correct / num_clips,
        "accuracy_ci95": list(wilson_interval(num_correct, num_clips)),
        "top_5_accuracy": num_top_5 / num_clips,
        "top_5_accuracy_ci95": list(wilson_interval(num_top_5, num_clips)),
        "mean_class_accuracy": float(np.mean(recalls)),
        "mean_class_accuracy_ci95": list(interval_of_mean(recalls, intervals)),
        "precision_weighted": float(precision),
        "recall_weighted": float(recall),
        "f1_weighted": float(f1),
        "mean_average_precision": float(np.mean([row["average_precision"] for row in occurring])),
        "loss": _mean_loss(labels, probabilities),
        "majority_accuracy": int(clips_of_class.max()) / num_clips,
        "majority_class": classes[clips_of_class.argmax()],
        "calibration_error": calibration_error,
        "calibration_bins": calibration_bins,
        "per_class": per_class,
        "confusion_matrix": confusion.tolist(),
        "classes": list(classes),
    }


def linear_baseline(
    labels: np.ndarray, probabilities: np.ndarray, linear_probabilities: np.ndarray
) -> dict[str, Any]:
    """Compares a model with its linear part alone, on the same clips.

    Args:
      labels: int [N], N >= 1.
      probabilities: float [N, C].
      linear_probabilities: of the linear part alone, float [N, C].

    Returns:
      `accuracy` and `loss` of the linear part; `difference`, the model's accuracy minus that, and
      `difference_ci95`, its paired 95 % interval.
    """
    is_correct = probabilities.argmax(axis=1) == labels
    is_correct_linear = linear_probabilities.argmax(axis=1) == labels
    counts = [
        int((ours & theirs).sum())
        for ours, theirs in itertools.product(
            (is_correct, ~is_correct), (is_correct_linear, ~is_correct_linear)
        )
    ]
    both, only_model, only_linear, neither = counts
    return {
        "accuracy": float(is_correct_linear.mean()),
        "loss": _mean_loss(labels, linear_probabilities),
        "difference": float(is_correct.mean() - is_correct_linear.mean()),
        "difference_ci95": list(paired_interval(both, only_model, only_linear, neither)),
    }


def _mean_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(of_label.clip(np.finfo(np.float64).eps)).mean())


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> tuple[float, list[dict[str, Any]]]:
    """Computes the expected calibration error: how far confidence and accuracy are apart.

    A clip's confidence is the probability of its predicted class. Clips are put into 15 bins of equal width
    by confidence; the error is the mean over clips of the gap between the accuracy and the mean confidence of
    their bin (Naeini et al., AAAI 2015; Guo et al., ICML 2017).

    Args:
      labels: int [N], N >= 1.
      probabilities: float [N, C].

    Returns:
      The error, and per bin `low`, `high` (confidence in (low, high]), `num_clips`, and `accuracy`,
      `accuracy_ci95` and `confidence`, which are None where a bin is empty.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    is_correct = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, _CALIBRATION_BINS + 1)
    bin_of_clip = np.searchsorted(edges[1:-1], confidence)
    error, bins = 0.0, []
    for index, (low, high) in enumerate(itertools.pairwise(edges.tolist())):
        inside = bin_of_clip == index
        num_clips, num_correct = int(inside.sum()), int(is_correct[inside].sum())
        row: dict[str, Any] = {"low": low, "high": high, "num_clips": num_clips}
        row |= {"accuracy": None, "accuracy_ci95": None, "confidence": None}
        if num_clips > 0:
            mean_confidence = float(confidence[inside].mean())
            error += abs(num_correct - num_clips * mean_confidence) / len(labels)
            row["accuracy"] = num_correct / num_clips
            row["accuracy_ci95"] = list(wilson_interval(num_correct, num_clips))
            row["confidence"] = mean_confidence
        bins.append(row)
    return error, bins


def precision_recall_curves(labels: np.ndarray, probabilities: np.ndarray) -> dict[int, np.ndarray]:
    """Computes the curve of each class against all others, from the probabilities of the class.

    Args:
      labels: int [N].
      probabilities: float [N, C].

    Returns:
      Class index to recall and precision, float [2, n], recall descending to 0, for the classes that occur.
      n is at most about twice the number of clips of the class: points that do not change recall are left
      out, and of the points with recall 1 only the one of the highest precision is kept.
    """
    curves = {}
    for index in np.unique(labels).tolist():
        precision, recall, _ = sk.precision_recall_curve(
            labels == index, probabilities[:, index], drop_intermediate=True
        )
        # scikit-learn's curve begins with thresholds below the highest one of recall 1.
        curves[index] = np.stack([recall, precision])[:, np.flatnonzero(recall == 1)[-1] :]
    return curves


def classification_report(labels: np.ndarray, probabilities: np.ndarray, classes: tuple[str, ...]) -> str:
    """Formats precision, recall and F1 per class as scikit-learn does.

    Args:
      labels: int [N].
      probabilities: float [N, C].
      classes: the C names.
    """
    return sk.classification_report(
        labels,
        probabilities.argmax(axis=1),
        labels=np.arange(len(classes)),
        target_names=classes,
        digits=4,
        zero_division=0,
    )


def _per_class(
    labels: np.ndarray, probabilities: np.ndarray, classes: tuple[str, ...]
) -> list[dict[str, Any]]:
    predicted = probabilities.argmax(axis=1)
    columns = sk.precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(classes)), zero_division=0
    )
    rows = []
    for index, (name, precision, recall, f1, num_clips) in enumerate(zip(classes, *columns, strict=True)):
        of_class = labels == index
        row = {"class": name, "num_clips": int(num_clips), "precision": float(precision)}
        row |= {"recall": float(recall), "recall_ci95": None, "f1": float(f1), "average_precision": None}
        if num_clips > 0:
            num_correct = int((predicted[of_class] == index).sum())
            row["recall_ci95"] = list(wilson_interval(num_correct, int(num_clips)))
            row["average_precision"] = float(sk.average_precision_score(of_class, probabilities[:, index]))
        rows.append(row)
    return rows
