"""Self-contained HTML pages: the only importer of Jinja2; the templates lie in templates/.

A page opens from disk, asks the network for nothing and follows the reader's colour scheme. What a child of
base.html.j2 fills in is escaped; values never stand in a script.
"""

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from vidpipe import report, video

_MISSING = "–"
_TABLED_CLASSES = 20  # a confusion matrix of more is a picture
_NAMED_CURVES, _BEST_CURVES = 8, 3
_PAIRS = 15
_STRIP_FRAMES, _STRIP_SIDE, _STRIP_QUALITY = 20, 112, 75


@dataclass(frozen=True)
class Strip:
    """A clip that a page plays.

    Attributes:
      jpeg: its frames side by side.
      num_frames: how many.
      height, width: of one, pixels.
    """

    jpeg: bytes
    num_frames: int
    height: int
    width: int


@dataclass(frozen=True)
class EvaluationReport:
    """What the report of an evaluation shows.

    Attributes:
      name: of the run.
      metrics: what metrics.json holds.
      video_ids: of the N clips.
      labels: int [N].
      probabilities: float [N, C].
      curves: as `evaluate.precision_recall_curves` gives them.
      mistakes: places of mistakes to show, and
      uncertain: of clips of which the model is unsure.
      frames: of each of those, uint8 [n, H, W, 3], n >= 1.
      history: a row per epoch of the run, as `report.learning_curves` takes them; may be empty.
      settings: of the run, nested as in its config.json; may be empty.
      made: what else to know of how it was made, name to text.
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
    made: Mapping[str, str]


def render(template: str, **values: Any) -> str:
    """Fills in a template.

    Args:
      template: a file of templates/, such as "report.html.j2".
      values: the names it uses; one that is missing is an error.

    Returns:
      The page. Templates have the filters `data_uri`, `sha256`, `fixed` and `percent` beside Jinja's own, and
      `schemes`, the colours.
    """
    return _environment.get_template(template).render(values)


def strip(frames: np.ndarray) -> Strip:
    """Makes a clip playable: at most 20 of its frames, evenly spread, at most 112 pixels a side.

    Args:
      frames: uint8 [n, H, W, 3], RGB, n >= 1.
    """
    count = min(len(frames), _STRIP_FRAMES)
    chosen = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    scale = min(1.0, _STRIP_SIDE / max(frames.shape[1:3]))
    height, width = (max(1, round(side * scale)) for side in frames.shape[1:3])
    if scale < 1:
        chosen = tf.cast(tf.round(tf.image.resize(chosen, (height, width), "area")), tf.uint8).numpy()
    jpeg = video.encode_frame(np.concatenate(chosen, axis=1), "jpeg", _STRIP_QUALITY)
    return Strip(jpeg, count, height, width)


def evaluation_page(evaluated: EvaluationReport) -> str:
    """The report of an evaluation, one page of HTML; some 5 MB for 101 classes and 4000 clips."""
    metrics, classes = evaluated.metrics, evaluated.metrics["classes"]
    counts = np.array(metrics["confusion_matrix"])
    return render(
        "report.html.j2",
        name=evaluated.name,
        metrics=metrics,
        num_right=int(counts.trace()),
        chance_loss=float(np.log(len(classes))),
        absent=[row["class"] for row in metrics["per_class"] if row["num_clips"] == 0],
        learning=_learning(evaluated.history),
        history=evaluated.history,
        confusion=_confusion(counts, classes),
        precision_recall=_precision_recall(metrics, evaluated.curves),
        reliability=(report.reliability_picture(metrics["calibration_bins"]), _sureness(evaluated)),
        mistakes=[_shown(evaluated, place) for place in evaluated.mistakes],
        uncertain=[_shown(evaluated, place) for place in evaluated.uncertain],
        clips=[_clip(evaluated, place) for place in range(len(evaluated.labels))],
        settings=list(_flattened(evaluated.settings)),
        made=evaluated.made,
    )


def _learning(history: Sequence[Mapping[str, Any]]) -> tuple[report.Picture, str] | None:
    """The figure, and in words what it shows; None for a run that left no history."""
    if not history:
        return None
    kept = report.kept_epoch(history)
    finding = (
        f"Without validation clips, the last of {len(history)} epochs counts: "
        f"training loss {kept['loss']:.3f}, accuracy {_percent(kept['accuracy'])}."
    )
    if kept["val_loss"] is not None:
        finding = (
            f"Kept is epoch {kept['epoch']} of {len(history)}, the last whose validation loss is within a "
            f"standard error of the lowest: {kept['val_loss']:.3f}, accuracy "
            f"{_percent(kept['val_accuracy'])}."
        )
    return report.learning_curves_picture(history), finding


def _confusion(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """The matrix as a table of cells or as a picture, the most confused pairs, and the finding."""
    clips_of = counts.sum(axis=1)
    pairs = [
        {"true": classes[i], "predicted": classes[j], "count": int(counts[i, j]), "of": int(clips_of[i])}
        for i, j in np.argwhere(counts)
        if i != j
    ]
    pairs.sort(key=lambda pair: (-pair["count"], pair["of"]))
    finding = f"{counts.trace()} of {counts.sum()} clips are on the diagonal."
    if pairs:
        worst = pairs[0]
        finding += (
            f" Most often, {worst['true']} is taken for {worst['predicted']}: "
            f"{worst['count']} of its {worst['of']} clips."
        )
    # The root, as in the picture: one clip of many is to be seen.
    shades = 100 * np.sqrt(counts / clips_of[:, np.newaxis].clip(1))
    shown: dict[str, Any] = {"picture": None, "cells": None, "pairs": pairs[:_PAIRS], "finding": finding}
    if len(classes) > _TABLED_CLASSES:
        return shown | {"picture": report.confusion_matrix_picture(counts, classes)}
    cells = [[*zip(*rows, strict=True)] for rows in zip(counts.tolist(), shades.tolist(), strict=True)]
    return shown | {"cells": cells}


def _precision_recall(metrics: Mapping[str, Any], curves: Mapping[int, np.ndarray]) -> dict[str, Any]:
    """The figure, the classes it names and the finding. Of many, the worst and some of the best are named."""
    rows = metrics["per_class"]
    order = sorted(curves, key=lambda place: rows[place]["average_precision"])
    named = order
    if len(order) > _NAMED_CURVES:
        named = order[: _NAMED_CURVES - _BEST_CURVES] + order[-_BEST_CURVES:]
    (lowest, worst), (highest, best) = (
        (rows[place]["average_precision"], rows[place]["class"]) for place in (order[0], order[-1])
    )
    finding = (
        f"Average precision is lowest for {worst} ({lowest:.3f}) and highest for {best} ({highest:.3f})."
    )
    if lowest == 1:
        finding = "Average precision is 1 for every class."
    return {
        "picture": report.precision_recall_picture(curves, named),
        "named": [rows[place] for place in named],
        "num_others": len(order) - len(named),
        "finding": finding,
    }


def _sureness(evaluated: EvaluationReport) -> str:
    """In words what the reliability diagram shows."""
    confidence = float(evaluated.probabilities.max(axis=1).mean())
    accuracy = evaluated.metrics["accuracy"]
    lean = "surer than it is right" if confidence > accuracy else "more often right than it is sure"
    return (
        f"On average the model is {lean}: mean confidence {_percent(confidence)}, accuracy "
        f"{_percent(accuracy)}; the calibration error is {evaluated.metrics['calibration_error']:.3f}."
    )


def _clip(evaluated: EvaluationReport, place: int) -> dict[str, Any]:
    classes, scores = evaluated.metrics["classes"], evaluated.probabilities[place]
    label, predicted = int(evaluated.labels[place]), int(scores.argmax())
    return {
        "video_id": evaluated.video_ids[place],
        "true": classes[label],
        "predicted": classes[predicted],
        "confidence": float(scores[predicted]),
        "of_true": float(scores[label]),
        "is_right": label == predicted,
    }


def _shown(evaluated: EvaluationReport, place: int) -> dict[str, Any]:
    """A clip to look at, with the class to compare: the true one, or where it was predicted the next one."""
    clip, scores = _clip(evaluated, place), evaluated.probabilities[place]
    ranked = np.argsort(-scores, kind="stable")
    other = int(ranked[:2][-1] if clip["is_right"] else evaluated.labels[place])
    return clip | {
        "other": evaluated.metrics["classes"][other],
        "of_other": float(scores[other]),
        "strip": strip(evaluated.frames[place]),
    }


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as `model.backbone`, `vgg16`."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _sha256(text: str) -> str:
    """As a content security policy names a script."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _fixed(number: float | None, digits: int = 3) -> str:
    return _MISSING if number is None else f"{number:.{digits}f}"


def _percent(share: float | None, digits: int = 1) -> str:
    """With a space that no line breaks at."""
    return _MISSING if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def _breakable(text: str) -> Markup:
    """A file's name that may be broken where its parts end."""
    return Markup(re.sub("([/_])", r"\1<wbr>", str(escape(text))))


def _new_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vidpipe"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"data_uri": _data_uri, "sha256": _sha256, "zip": zip}
    environment.filters |= {"fixed": _fixed, "percent": _percent, "breakable": _breakable}
    environment.globals["schemes"] = report.SCHEMES
    return environment


_environment = _new_environment()
