"""Metrics of a split: a run's model and a dataset give metrics.json, predictions.csv and a report."""

import csv
import itertools
import json
import logging
import platform
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
import sklearn
import tensorflow as tf
from scipy.stats import binomtest
from sklearn import metrics as sk

import vidpipe
from vidpipe import input_pipeline, page, records, shard_cache, shards, verify
from vidpipe.model import ModelCard, load_model
from vidpipe.progress import Progress
from vidpipe.spec import ClipSpec, VidpipeError

_CALIBRATION_BINS = 15
_CLIPS_SHOWN = 12  # mistakes, and as many uncertain ones
_CLASSES_NAMED = 6
_HISTORY_COLUMNS = ("loss", "accuracy", "val_loss", "val_loss_error", "val_accuracy", "learning_rate")
_Paper = TypeVar("_Paper")
_log = logging.getLogger(__name__)


class EvaluateError(VidpipeError):
    """A run and a dataset do not belong together."""


@dataclass(frozen=True)
class Evaluation:
    """A split as a model sees it.

    Attributes:
      folder: where its files are.
      metrics: what metrics.json holds.
      text: precision, recall and F1 per class, as scikit-learn prints them.
      report: the page to open.
    """

    folder: Path
    metrics: dict[str, Any]
    text: str
    report: Path


def evaluate(
    run_dir: str,
    data_dir: str,
    split: str,
    batch_size: int = 8,
    num_clips: int = 1,
    num_crops: int = 1,
    cache_dir: str | None = None,
) -> Evaluation:
    """Runs `model.keras` of a run over a split and writes `eval_<split>/` into the run folder.

    Args:
      run_dir: a run with a model.keras.
      data_dir: a committed dataset of the same classes and clip settings.
      split: train, val or test.
      batch_size: views per step.
      num_clips: views of each video in time, as in `input_pipeline.eval_dataset`; their probabilities are
        averaged.
      num_crops: likewise in space.
      cache_dir: a remote data_dir is copied here once; None reads it from where it lies.

    Raises:
      EvaluateError: the classes or the clips' shape are not those the model was trained on, or the views
        would not differ.
      ModelError, ShardError: the model or the dataset cannot be read.
    """
    model, card = load_model(Path(run_dir) / "model.keras")
    with verify.named_damage(data_dir):
        folder = shard_cache.open_dataset(data_dir, cache_dir)
        info = shards.read_info(folder)
    check_dataset(card, info, data_dir)
    if num_crops > 1 and info.clip.resize == "crop":
        raise EvaluateError(
            f"{data_dir} holds square frames, so num_crops={num_crops} views would all be the same. "
            "Convert with --resize=short_side for more."
        )
    if num_clips > 1 and card.spec.num_frames == info.clip.num_frames:
        raise EvaluateError(
            f"The model takes all {info.clip.num_frames} stored frames, so num_clips={num_clips} views would "
            "all be the same. Train with --num_frames below that for more."
        )
    views = (card.num_frames, num_clips, num_crops)
    with verify.named_damage(data_dir):
        shard_cache.fetch_shards(data_dir, folder, info, split)
        rows = shards.clip_rows(folder, split)
    with verify.named_damage(folder, data_dir):
        labels, probabilities = _predict_split(model, folder, info, split, batch_size, views)
        check_rows(rows, labels, info, data_dir)
        mistakes, uncertain = clips_to_look_at(labels, probabilities, _CLIPS_SHOWN)
        frames = _read_frames(folder, info, split, [*mistakes, *uncertain], card.spec)
    output = Path(run_dir) / f"eval_{split}"
    output.mkdir(exist_ok=True)
    metrics = {
        "split": split,
        "views": num_clips * num_crops,
        "dataset_fingerprint": info.fingerprint,
    } | compute_metrics(labels, probabilities, card.classes)
    text = _classification_report(labels, probabilities, card.classes)
    _write_predictions(output / "predictions.csv", rows, probabilities, card.classes)
    shards.write_text(output / "classification_report.txt", text)
    report = page.EvaluationReport(
        name=Path(run_dir).resolve().name,
        metrics=metrics,
        video_ids=[row["video_id"] for row in rows],
        labels=labels,
        probabilities=probabilities,
        curves=precision_recall_curves(labels, probabilities),
        mistakes=mistakes,
        uncertain=uncertain,
        frames=frames,
        history=_paper(Path(run_dir) / "history.csv", _read_history, []),
        settings=_paper(Path(run_dir) / "config.json", _read_settings, {}),
        made=_how_made(
            {"run_dir": run_dir, "data_dir": data_dir, "split": split, "cache_dir": cache_dir}
            | {"num_clips": num_clips, "num_crops": num_crops},
            info,
        ),
    )
    shards.write_text(output / "report.html", page.evaluation_page(report))
    # Last: whoever waits for it finds the others.
    shards.write_text(output / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return Evaluation(output, metrics, text, output / "report.html")


def check_dataset(card: ModelCard, info: shards.DatasetInfo, data_dir: str) -> None:
    """Refuses a dataset that a model was not trained for.

    Raises:
      EvaluateError: its classes or its clips' shape are not the model's.
    """
    if info.classes != card.classes:
        odd = sorted(set(info.classes) ^ set(card.classes)) or ["the same ones in another order"]
        more = f" and {len(odd) - _CLASSES_NAMED} more" if len(odd) > _CLASSES_NAMED else ""
        raise EvaluateError(
            f"The model knows {len(card.classes)} classes and {data_dir} has {len(info.classes)}; "
            f"they differ in {', '.join(odd[:_CLASSES_NAMED])}{more}. Take a dataset of the training classes."
        )
    if info.clip.model_spec(card.num_frames) != card.spec:
        raise EvaluateError(f"The model takes {card.spec}; {data_dir} holds {info.clip.model_spec()}.")


def check_rows(
    rows: Sequence[Mapping[str, str]], labels: np.ndarray, info: shards.DatasetInfo, data_dir: str
) -> None:
    """Refuses rows of videos.csv that are not those of the clips that were read.

    Args:
      rows: of `shards.clip_rows`.
      labels: int [N], of the clips, in the order of the records.
      info: the dataset.
      data_dir: its name in the message.

    Raises:
      EvaluateError: their number or labels differ.
    """
    if [info.classes[label] for label in labels] != [row["label"] for row in rows]:
        raise EvaluateError(
            f"{data_dir}: {shards.VIDEOS_NAME} does not describe these shards. Convert the videos again."
        )


def compute_metrics(
    labels: np.ndarray, probabilities: np.ndarray, classes: tuple[str, ...]
) -> dict[str, Any]:
    """The headline numbers.

    Args:
      labels: int [N], N >= 1.
      probabilities: float [N, C], rows sum to 1.
      classes: the C names, in the order of the columns.

    Returns:
      `num_clips`; `accuracy` and `top_5_accuracy` (1 with 5 classes or fewer), each with its 95 % Wilson
      interval (Wilson, "Probable Inference", JASA 1927) under its name and `_ci95`; `mean_class_accuracy`,
      over classes that occur, with an interval by Zou, Huang and Zhang's method ("A note on confidence
      interval estimation for a linear function of binomial proportions", CSDA 2009); `precision_weighted`,
      `recall_weighted`, `f1_weighted`; `mean_average_precision`, over classes that occur; `loss` (mean
      cross-entropy, natural logarithm); `majority_accuracy`, of always answering the commonest class, and
      that `majority_class`; `calibration_error` and `calibration_bins` of `calibration`; `per_class`, a dict
      per class, whose `recall_ci95` and `average_precision` are None where it does not occur;
      `confusion_matrix` (rows are true classes) and `classes`. What scikit-learn has too is its number.
    """
    predicted = probabilities.argmax(axis=1)
    num_clips, indices = len(labels), np.arange(len(classes))
    confusion = sk.confusion_matrix(labels, predicted, labels=indices)
    num_right, clips_of = int(confusion.trace()), confusion.sum(axis=1)
    num_top_5 = num_clips
    if len(classes) > 5:
        num_top_5 = int(sk.top_k_accuracy_score(labels, probabilities, k=5, labels=indices, normalize=False))
    per_class = _per_class(labels, probabilities, classes)
    occurring = [row for row in per_class if row["num_clips"] > 0]
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, predicted, labels=indices, average="weighted", zero_division=0
    )
    of_label = probabilities[np.arange(num_clips), labels].astype(np.float64)
    calibration_error, calibration_bins = calibration(labels, probabilities)
    return {
        "num_clips": num_clips,
        "accuracy": num_right / num_clips,
        "accuracy_ci95": _interval(num_right, num_clips),
        "top_5_accuracy": num_top_5 / num_clips,
        "top_5_accuracy_ci95": _interval(num_top_5, num_clips),
        "mean_class_accuracy": float(np.mean([row["recall"] for row in occurring])),
        "mean_class_accuracy_ci95": _mean_interval(occurring),
        "precision_weighted": float(precision),
        "recall_weighted": float(recall),
        "f1_weighted": float(f1),
        "mean_average_precision": float(np.mean([row["average_precision"] for row in occurring])),
        "loss": float(-np.log(of_label.clip(np.finfo(np.float64).eps)).mean()),
        "majority_accuracy": int(clips_of.max()) / num_clips,
        "majority_class": classes[clips_of.argmax()],
        "calibration_error": calibration_error,
        "calibration_bins": calibration_bins,
        "per_class": per_class,
        "confusion_matrix": confusion.tolist(),
        "classes": list(classes),
    }


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> tuple[float, list[dict[str, Any]]]:
    """How far a model is as often right as it is sure.

    Clips fall into 15 bins of equal width by their confidence, the probability of the predicted class; the
    expected calibration error is the mean over clips of their bin's gap between accuracy and mean confidence
    (Naeini et al., AAAI 2015; Guo et al., ICML 2017).

    Args:
      labels: int [N], N >= 1.
      probabilities: float [N, C].

    Returns:
      The error, and per bin `low`, `high` (confidence in (low, high]), `num_clips`, and `accuracy`,
      `accuracy_ci95` and `confidence`, None where a bin is empty.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, _CALIBRATION_BINS + 1)
    bin_of = np.searchsorted(edges[1:-1], confidence)
    error, bins = 0.0, []
    for place, (low, high) in enumerate(itertools.pairwise(edges.tolist())):
        inside = bin_of == place
        num_clips, num_right = int(inside.sum()), int(right[inside].sum())
        row: dict[str, Any] = {"low": low, "high": high, "num_clips": num_clips}
        row |= {"accuracy": None, "accuracy_ci95": None, "confidence": None}
        if num_clips > 0:
            mean_confidence = float(confidence[inside].mean())
            error += abs(num_right - num_clips * mean_confidence) / len(labels)
            row |= {"accuracy": num_right / num_clips, "accuracy_ci95": _interval(num_right, num_clips)}
            row["confidence"] = mean_confidence
        bins.append(row)
    return error, bins


def precision_recall_curves(labels: np.ndarray, probabilities: np.ndarray) -> dict[int, np.ndarray]:
    """Each class against all others, by its column of scores.

    Args:
      labels: int [N].
      probabilities: float [N, C].

    Returns:
      Class to recall and precision, float [2, n], recall descending to 0, for classes that occur. n is at
      most some twice the clips of the class: only points where its recall changes, and of those with a recall
      of 1 the most precise, are there.
    """
    curves = {}
    for index in np.unique(labels).tolist():
        precision, recall, _ = sk.precision_recall_curve(
            labels == index, probabilities[:, index], drop_intermediate=True
        )
        # scikit-learn's curve begins with thresholds below the one that finds all of the class.
        curves[index] = np.stack([recall, precision])[:, np.flatnonzero(recall == 1)[-1] :]
    return curves


def clips_to_look_at(
    labels: np.ndarray, probabilities: np.ndarray, count: int
) -> tuple[list[int], list[int]]:
    """Places of up to `count` mistakes, most confident first, and of `count` others, least certain first.

    Args:
      labels: int [N].
      probabilities: float [N, C].
      count: at least 1.
    """
    confidence = probabilities.max(axis=1)
    wrong = probabilities.argmax(axis=1) != labels
    mistakes = [int(place) for place in np.argsort(-confidence, kind="stable") if wrong[place]][:count]
    others = [int(place) for place in np.argsort(confidence, kind="stable") if place not in mistakes]
    return mistakes, others[:count]


def _interval(num_right: int, num_clips: int) -> list[float]:
    found = binomtest(num_right, num_clips).proportion_ci(0.95, method="wilson")
    return [float(found.low), float(found.high)]


def _mean_interval(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The 95 % interval of the mean of the classes' recalls: their own intervals' arms, added in squares.

    A bootstrap would give an interval of no width where all classes are right.
    """
    recall = np.array([row["recall"] for row in rows])
    arms = np.array([row["recall_ci95"] for row in rows]).T - recall
    below, above = np.sqrt(np.square(arms).sum(axis=1)) / len(rows)
    return [float(recall.mean() - below), float(recall.mean() + above)]


def _per_class(
    labels: np.ndarray, probabilities: np.ndarray, classes: tuple[str, ...]
) -> list[dict[str, Any]]:
    predicted = probabilities.argmax(axis=1)
    columns = sk.precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(classes)), zero_division=0
    )
    rows = []
    for index, (name, precision, recall, f1, num_clips) in enumerate(zip(classes, *columns, strict=True)):
        mine = labels == index
        row = {"class": name, "num_clips": int(num_clips), "precision": float(precision)}
        row |= {"recall": float(recall), "recall_ci95": None, "f1": float(f1), "average_precision": None}
        if num_clips > 0:
            row["recall_ci95"] = _interval(int((predicted[mine] == index).sum()), int(num_clips))
            row["average_precision"] = float(sk.average_precision_score(mine, probabilities[:, index]))
        rows.append(row)
    return rows


def _classification_report(labels: np.ndarray, probabilities: np.ndarray, classes: tuple[str, ...]) -> str:
    return sk.classification_report(
        labels,
        probabilities.argmax(axis=1),
        labels=np.arange(len(classes)),
        target_names=classes,
        digits=4,
        zero_division=0,
    )


def _predict_split(
    model: keras.Model,
    data_dir: str,
    info: shards.DatasetInfo,
    split: str,
    batch_size: int,
    views: tuple[int | None, int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Labels int32 [N] and probabilities float32 [N, C], the mean of each video's views."""
    num_frames, num_clips, num_crops = views
    num_views = num_clips * num_crops
    total = info.num_clips(split) * num_views
    batch_size = min(batch_size, total or 1)
    dataset = input_pipeline.eval_dataset(data_dir, info, batch_size, split, num_frames, num_clips, num_crops)
    step = tf.function(lambda inputs: tf.nn.softmax(model(inputs, training=False)))
    with Progress(f"Evaluating {split}", total, "views" if num_views > 1 else "clips") as progress:

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for inputs, label, weight in dataset:
                real = weight.numpy() > 0
                yield label.numpy()[real], step(inputs).numpy()[real]
                progress.advance(int(real.sum()))

        labels, probabilities = zip(*batches(), strict=True)
    scores = np.concatenate(probabilities)
    averaged = scores.reshape(-1, num_views, scores.shape[1]).mean(axis=1)
    return np.concatenate(labels)[::num_views], averaged


def _write_predictions(
    path: Path, rows: Sequence[Mapping[str, str]], probabilities: np.ndarray, classes: tuple[str, ...]
) -> None:
    with shards.committed_csv(path, ["video_id", "label", "predicted", *classes]) as writer:
        for row, scores in zip(rows, probabilities, strict=True):
            fixed = {name: row[name] for name in ("video_id", "label")}
            fixed["predicted"] = classes[scores.argmax()]
            writer.writerow(fixed | dict(zip(classes, scores.tolist(), strict=True)))


def _read_frames(
    data_dir: str, info: shards.DatasetInfo, split: str, places: Sequence[int], spec: ClipSpec
) -> dict[int, np.ndarray]:
    """Place to real frames, uint8 [n, H, W, 3], of some clips of a split, as a model of `spec` sees them in
    its centre view. Records are read up to the last of these, and only these are decoded.
    """
    wanted = tf.constant(sorted(places), tf.int64)
    examples = tf.data.TFRecordDataset(shards.shard_paths(data_dir, info, split)).enumerate()
    examples = examples.filter(lambda place, _: tf.reduce_any(place == wanted)).take(len(places))
    frames = {}
    for place, example in examples:
        clip = records.parse_clip(example)
        stored = records.decode_frames(clip["encoded_frames"], info.encoding, clip["height"], clip["width"])
        frames[int(place)] = input_pipeline.centre_view(stored, spec).numpy()
    return frames


def _read_history(path: Path) -> list[dict[str, Any]]:
    """The epochs of a run's history.csv, as `report.learning_curves` takes them."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {"epoch": int(row["epoch"])}
            | {name: float(row[name]) if row[name] else None for name in _HISTORY_COLUMNS}
            for row in csv.DictReader(file)
        ]


def _read_settings(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _paper(path: Path, read: Callable[[Path], _Paper], without: _Paper) -> _Paper:
    """What a run's file says; a run without it, or with a damaged one, can be evaluated all the same."""
    try:
        return read(path)
    except FileNotFoundError:
        return without
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s cannot be read (%s); the report is without it.", path, shards.first_line(error))
        return without


def _how_made(flags: Mapping[str, Any], info: shards.DatasetInfo) -> dict[str, str]:
    """What the report tells of its making.

    Args:
      flags: of tools/evaluate.py; those with their default, None or one view, are not told.
      info: the dataset.
    """
    given = {name: value for name, value in flags.items() if value not in (None, 1)}
    command = ["python", "tools/evaluate.py", *(f"--{name}={value}" for name, value in given.items())]
    versions = {
        "vidpipe": vidpipe.__version__,
        "Python": platform.python_version(),
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "NumPy": np.__version__,
        "scikit-learn": sklearn.__version__,
    }
    return {
        "Command": shlex.join(command),
        "Views of each clip": f"{flags['num_clips']} in time x {flags['num_crops']} in space",
        "Model file, sha256": shards.sha256_of(f"{flags['run_dir']}/model.keras"),
        "Dataset, fingerprint": info.fingerprint,
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Date": datetime.now().astimezone().isoformat(" ", timespec="minutes"),
    }
