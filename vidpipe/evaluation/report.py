"""The HTML report of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidpipe.config import flatten
from vidpipe.display import figures, page
from vidpipe.training.epoch_selection import selected_epoch, selecting_loss

# A confusion matrix of up to this many classes is a table; a larger one is a figure.
_MAX_TABLE_CLASSES = 20
# Of more than _NAMED_CURVES classes, the figure names the worst and the _BEST_CURVES best.
_NAMED_CURVES, _BEST_CURVES = 8, 3
_CONFUSED_PAIRS = 15


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The content of the report.

    Attributes:
      name: of the run.
      metrics: the content of metrics.json.
      video_ids: of the N clips.
      labels: int [N].
      probabilities: float [N, C].
      curves: the result of `metrics.precision_recall_curves`.
      mistakes: indices of misclassified clips to show.
      uncertain: indices of clips of low confidence to show.
      frames: clip index to frames, uint8 [n, H, W, 3], n >= 1, for each clip to show.
      history: a row per epoch of the run, as `figures.learning_curves` takes them; may be empty.
      settings: of the run, nested as in its config.json; may be empty.
      provenance: what is needed to repeat the evaluation, name to text.
    """

    name: str
    metrics: Mapping[str, Any]
    video_ids: Sequence[str]
    labels: np.ndarray
    probabilities: np.ndarray
    curves: Mapping[int, np.ndarray]
    mistakes: Sequence[int]
    uncertain: Sequence[int]
    frames: Mapping[int, np.ndarray]
    history: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    provenance: Mapping[str, str]


def evaluation_page(report: EvaluationReport) -> str:
    """Renders the report as one HTML page, about 5 MB for 101 classes and 4000 clips."""
    metrics, classes = report.metrics, report.metrics["classes"]
    counts = np.array(metrics["confusion_matrix"])
    return page.render(
        "report.html.j2",
        name=report.name,
        metrics=metrics,
        num_correct=int(counts.trace()),
        uniform_loss=float(np.log(len(classes))),
        absent=[row["class"] for row in metrics["per_class"] if row["num_clips"] == 0],
        learning=_learning(report.history),
        history=report.history,
        confusion=_confusion(counts, classes),
        precision_recall=_precision_recall(metrics, report.curves),
        reliability=(figures.reliability_picture(metrics["calibration_bins"]), _calibration(report)),
        mistakes=[_example(report, index) for index in report.mistakes],
        uncertain=[_example(report, index) for index in report.uncertain],
        clips=[_clip(report, index) for index in range(len(report.labels))],
        settings=flatten(report.settings),
        provenance=report.provenance,
    )


def _learning(history: Sequence[Mapping[str, Any]]) -> tuple[figures.Picture, str] | None:
    """Returns the learning curves and their caption; None for a run without a history."""
    if not history:
        return None
    selected = selected_epoch(history)
    caption = (
        f"Without a validation split, the last of {len(history)} epochs was selected: training loss "
        f"{selected['loss']:.3f}, accuracy {page.percent(selected['accuracy'])}."
    )
    name = selecting_loss(history)
    if name is not None:
        where = "cross-validation" if name == "cv_loss" else "validation"
        accuracy = f"accuracy {page.percent(selected[name.replace('loss', 'accuracy')])}"
        if name == "cv_loss":
            accuracy += f"; its linear part alone {page.percent(selected['linear_cv_accuracy'])}"
        caption = (
            f"Epoch {selected['epoch']} of {len(history)} was selected, the last whose loss in {where} is "
            f"within one standard error of the lowest: loss {selected[name]:.3f}, {accuracy}."
        )
    return figures.learning_curves_picture(history, selected["epoch"]), caption


def _confusion(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Returns the matrix as the cells of a table or as a picture, the most confused pairs, and a caption."""
    clips_of_class = counts.sum(axis=1)
    pairs = [
        {
            "true": classes[i],
            "predicted": classes[j],
            "count": int(counts[i, j]),
            "class_clips": int(clips_of_class[i]),
        }
        for i, j in np.argwhere(counts)
        if i != j
    ]
    pairs.sort(key=lambda pair: (-pair["count"], pair["class_clips"]))
    caption = f"{counts.trace()} of {counts.sum()} clips are on the diagonal."
    if pairs:
        worst = pairs[0]
        caption += (
            f" The most frequent confusion: {worst['true']} is predicted as {worst['predicted']} in "
            f"{worst['count']} of {worst['class_clips']} clips."
        )
    # The square root, as in the picture: it makes one clip of many visible.
    shades = 100 * np.sqrt(counts / clips_of_class[:, np.newaxis].clip(1))
    shown: dict[str, Any] = {
        "picture": None,
        "cells": None,
        "pairs": pairs[:_CONFUSED_PAIRS],
        "caption": caption,
    }
    if len(classes) > _MAX_TABLE_CLASSES:
        return shown | {"picture": figures.confusion_matrix_picture(counts, classes)}
    cells = [[*zip(*rows, strict=True)] for rows in zip(counts.tolist(), shades.tolist(), strict=True)]
    return shown | {"cells": cells}


def _precision_recall(metrics: Mapping[str, Any], curves: Mapping[int, np.ndarray]) -> dict[str, Any]:
    """Returns the curves, the classes that the legend names, how many it does not, and a caption."""
    rows = metrics["per_class"]
    order = sorted(curves, key=lambda index: rows[index]["average_precision"])
    named = order
    if len(order) > _NAMED_CURVES:
        named = order[: _NAMED_CURVES - _BEST_CURVES] + order[-_BEST_CURVES:]
    worst, best = rows[order[0]], rows[order[-1]]
    caption = (
        f"Average precision is lowest for {worst['class']} ({worst['average_precision']:.3f}) and highest "
        f"for {best['class']} ({best['average_precision']:.3f})."
    )
    if worst["average_precision"] == 1:
        caption = "Average precision is 1 for every class."
    return {
        "picture": figures.precision_recall_picture(curves, named),
        "named": [rows[index] for index in named],
        "num_others": len(order) - len(named),
        "caption": caption,
    }


def _calibration(report: EvaluationReport) -> str:
    """Returns the caption of the reliability diagram."""
    confidence = float(report.probabilities.max(axis=1).mean())
    accuracy = report.metrics["accuracy"]
    tendency = "neither over-confident nor under-confident"
    if confidence != accuracy:
        tendency = "over-confident" if confidence > accuracy else "under-confident"
    return (
        f"On average the model is {tendency}: mean confidence {page.percent(confidence)}, accuracy "
        f"{page.percent(accuracy)}, expected calibration error {report.metrics['calibration_error']:.3f}."
    )


def _clip(report: EvaluationReport, index: int) -> dict[str, Any]:
    classes, scores = report.metrics["classes"], report.probabilities[index]
    label, predicted = int(report.labels[index]), int(scores.argmax())
    return {
        "video_id": report.video_ids[index],
        "true": classes[label],
        "predicted": classes[predicted],
        "predicted_probability": float(scores[predicted]),
        "true_probability": float(scores[label]),
        "is_correct": label == predicted,
    }


def _example(report: EvaluationReport, index: int) -> dict[str, Any]:
    """Returns a clip to show, with the true class to compare or, if it is predicted, the second class."""
    clip, scores = _clip(report, index), report.probabilities[index]
    ranked = np.argsort(-scores, kind="stable")
    other = int(ranked[:2][-1] if clip["is_correct"] else report.labels[index])
    return clip | {
        "other": report.metrics["classes"][other],
        "other_probability": float(scores[other]),
        "strip": page.strip(report.frames[index]),
    }
