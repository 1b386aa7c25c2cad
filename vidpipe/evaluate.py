"""Metrics of a split: a run's model and a dataset give metrics.json, predictions.csv and a report."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy.stats import binomtest
from sklearn import metrics as sk

from vidpipe import input_pipeline, shard_cache, shards, verify
from vidpipe.model import ModelCard, load_model
from vidpipe.progress import Progress
from vidpipe.spec import VidpipeError


class EvaluateError(VidpipeError):
    """A run and a dataset do not belong together."""


@dataclass(frozen=True)
class Evaluation:
    """A split as a model sees it.

    Attributes:
      folder: where its files are.
      metrics: what metrics.json holds.
      text: precision, recall and F1 per class, as scikit-learn prints them.
    """

    folder: Path
    metrics: dict[str, Any]
    text: str


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
    output = Path(run_dir) / f"eval_{split}"
    output.mkdir(exist_ok=True)
    metrics = {"split": split, "views": num_clips * num_crops} | compute_metrics(
        labels, probabilities, card.classes
    )
    text = _classification_report(labels, probabilities, card.classes)
    predicted = probabilities.argmax(axis=1)
    with shards.committed_csv(
        output / "predictions.csv", ["video_id", "label", "predicted", *card.classes]
    ) as writer:
        for row, best, scores in zip(rows, predicted, probabilities, strict=True):
            fixed = {"video_id": row["video_id"], "label": row["label"], "predicted": card.classes[best]}
            writer.writerow(fixed | dict(zip(card.classes, scores.tolist(), strict=True)))
    shards.write_text(output / "classification_report.txt", text)
    shards.write_text(output / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return Evaluation(output, metrics, text)


def check_dataset(card: ModelCard, info: shards.DatasetInfo, data_dir: str) -> None:
    """Refuses a dataset that a model was not trained for.

    Raises:
      EvaluateError: its classes or its clips' shape are not the model's.
    """
    if info.classes != card.classes:
        odd = sorted(set(info.classes) ^ set(card.classes)) or ["the same ones in another order"]
        raise EvaluateError(
            f"The model knows {len(card.classes)} classes and {data_dir} has {len(info.classes)}; "
            f"they differ in {', '.join(odd)}. Take a dataset of the training classes."
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
      `num_clips`, `accuracy` with its 95 % Wilson interval `accuracy_ci95` (Wilson, "Probable Inference",
      JASA 1927), `top_5_accuracy` (1 with 5 classes or fewer), `mean_class_accuracy` (over classes that
      occur), `precision_weighted`, `recall_weighted`, `f1_weighted` as scikit-learn defines them, `loss`
      (mean cross-entropy, natural logarithm), `majority_accuracy` (always answering the commonest class),
      `confusion_matrix` (rows are true classes) and `classes`.
    """
    predicted = probabilities.argmax(axis=1)
    num_clips, indices = len(labels), np.arange(len(classes))
    num_right = int((predicted == labels).sum())
    interval = binomtest(num_right, num_clips).proportion_ci(0.95, method="wilson")
    top_5 = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, predicted, labels=indices, average="weighted", zero_division=0
    )
    confusion = sk.confusion_matrix(labels, predicted, labels=indices)
    occurring = confusion.sum(axis=1) > 0
    of_label = probabilities[np.arange(num_clips), labels].astype(np.float64)
    return {
        "num_clips": num_clips,
        "accuracy": num_right / num_clips,
        "accuracy_ci95": [float(interval.low), float(interval.high)],
        "top_5_accuracy": float((top_5 == labels[:, np.newaxis]).any(axis=1).mean()),
        "mean_class_accuracy": float(
            (confusion.diagonal() / confusion.sum(axis=1).clip(1))[occurring].mean()
        ),
        "precision_weighted": float(precision),
        "recall_weighted": float(recall),
        "f1_weighted": float(f1),
        "loss": float(-np.log(of_label.clip(1e-12)).mean()),
        "majority_accuracy": int(confusion.sum(axis=1).max()) / num_clips,
        "confusion_matrix": confusion.tolist(),
        "classes": list(classes),
    }


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
