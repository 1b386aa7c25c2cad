"""Evaluates a run's model on a split: writes metrics.json, predictions.csv and report.html."""

import dataclasses
import logging
import platform
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
import sklearn
import tensorflow as tf

import vidpipe
from vidpipe.config import ClipSpec, EvaluationConfig
from vidpipe.data import input_pipeline, records, shards
from vidpipe.data.dataset import Dataset, open_dataset
from vidpipe.errors import VidpipeError
from vidpipe.evaluation.metrics import (
    classification_report,
    compute_metrics,
    linear_baseline,
    precision_recall_curves,
)
from vidpipe.evaluation.report import EvaluationReport, evaluation_page
from vidpipe.model import heads
from vidpipe.model.feature_cache import cache_dirs, cached_features
from vidpipe.model.feature_dataset import eval_feature_dataset
from vidpipe.model.fused import feature_encoder
from vidpipe.model.model_file import ModelMetadata, for_this_machine, load_model
from vidpipe.progress import Progress
from vidpipe.storage import files
from vidpipe.training.run_folder import EvaluationFolder, RunFolder, RunFolderError

_log = logging.getLogger(__name__)
_CLIPS_SHOWN = 12  # mistakes, and as many uncertain clips
_HEAD_BATCH = 64  # clips per forward pass of a head alone
_NAMED_CLASSES = 6
_Content = TypeVar("_Content")
# The inputs of a head, labels and weights; rows of weight 0 only fill a batch.
_Batch = tuple[Mapping[str, Any], tf.Tensor, tf.Tensor]


class EvaluateError(VidpipeError):
    """A run and a dataset do not match, or crops would be identical."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
      folder: its files.
      metrics: the content of metrics.json.
      classification_report: precision, recall and F1 per class, as scikit-learn formats them.
    """

    folder: EvaluationFolder
    metrics: dict[str, Any]
    classification_report: str


def evaluate(config: EvaluationConfig) -> Evaluation:
    """Runs `model.keras` of a run on a split and writes `eval_SPLIT/` into the run folder.

    Raises:
      EvaluateError: the classes or the clips' shape are not those that the model was trained on, or the crops
        of test-time augmentation would be identical.
      ModelError, ShardError: the model or the dataset cannot be read.
    """
    run = RunFolder(Path(config.run_dir))
    loaded, metadata = load_model(run.model)
    model = for_this_machine(loaded)
    with open_dataset(config.data_dir, config.cache_dir) as dataset:
        check_dataset(metadata, dataset)
        _check_crops(config, metadata, dataset)
        dataset.fetch(config.split)
        rows = dataset.clip_rows(config.split)
        settings: dict[str, Any] = _read_or(run.read_settings, {})
        if _caches_features(config, metadata, dataset, settings):
            batches = _cached_batches(model, dataset, config)
        else:
            batches = _encoded_batches(model, dataset, config)
        labels, probabilities, linear = _predict(model, batches, dataset, config)
        check_rows(rows, labels, dataset)
        mistakes, uncertain = clips_to_show(labels, probabilities, _CLIPS_SHOWN)
        frames = _read_frames(dataset, config.split, [*mistakes, *uncertain], metadata.spec)
    metrics = {
        "split": config.split,
        "temporal_crops": config.temporal_crops,
        "spatial_crops": config.spatial_crops,
        "dataset_fingerprint": dataset.info.fingerprint,
    } | compute_metrics(labels, probabilities, metadata.classes)
    # A model of an earlier version has no linear part.
    metrics["linear_part"] = linear_baseline(labels, probabilities, linear) if linear.size else None
    report = EvaluationReport(
        name=run.path.resolve().name,
        metrics=metrics,
        video_ids=[row["video_id"] for row in rows],
        labels=labels,
        probabilities=probabilities,
        curves=precision_recall_curves(labels, probabilities),
        mistakes=mistakes,
        uncertain=uncertain,
        frames=frames,
        history=_read_or(run.read_history, []),
        settings=settings,
        provenance=_provenance(config, run, dataset),
    )
    text = classification_report(labels, probabilities, metadata.classes)
    folder = run.evaluation(config.split)
    folder.path.mkdir(exist_ok=True)
    folder.write_predictions(
        report.video_ids,
        [row["label"] for row in rows],
        [dict(zip(metadata.classes, scores, strict=True)) for scores in probabilities.tolist()],
    )
    files.write_text(folder.classification_report, text)
    files.write_text(folder.report, evaluation_page(report))
    metrics["sha256"] = {
        path.name: files.sha256_of(path)
        for path in (run.model, run.settings, folder.predictions)
        if path.exists()
    }
    # Last: a program that waits for it finds the other files.
    folder.write_metrics(metrics)
    return Evaluation(folder=folder, metrics=metrics, classification_report=text)


def check_dataset(metadata: ModelMetadata, dataset: Dataset) -> None:
    """Checks that a model can classify the clips of a dataset.

    Raises:
      EvaluateError: the classes or the clips' shape are not those of the model.
    """
    if dataset.classes != metadata.classes:
        names = sorted(set(dataset.classes) ^ set(metadata.classes)) or ["their order only"]
        more = f" and {len(names) - _NAMED_CLASSES} more" if len(names) > _NAMED_CLASSES else ""
        raise EvaluateError(
            f"The model has {len(metadata.classes)} classes and {dataset.data_dir} has "
            f"{len(dataset.classes)}; they differ in {', '.join(names[:_NAMED_CLASSES])}{more}. Use a "
            "dataset with the classes that the model was trained on."
        )
    stored = dataset.clip.num_frames
    takes_all = metadata.num_frames == metadata.clip.num_frames
    num_frames = stored if takes_all else metadata.num_frames
    if num_frames > stored or dataset.clip.spec(num_frames) != metadata.spec:
        raise EvaluateError(
            f"The model takes clips of {metadata.spec}; {dataset.data_dir} has clips of "
            f"{dataset.clip.spec(stored)}. Convert the videos with the settings that the model "
            "was trained on."
        )


def check_rows(rows: Sequence[Mapping[str, str]], labels: np.ndarray, dataset: Dataset) -> None:
    """Checks that rows of videos.csv describe the clips that were read.

    Args:
      rows: of `dataset.clip_rows`.
      labels: int [N], of the clips, in the order of the records.
      dataset: the dataset.

    Raises:
      EvaluateError: their number or labels differ.
    """
    if [dataset.classes[label] for label in labels] != [row["label"] for row in rows]:
        raise EvaluateError(
            f"{dataset.data_dir}: the labels in {shards.VIDEOS_NAME} are not those of the shards. Convert "
            "the videos again."
        )


def clips_to_show(labels: np.ndarray, probabilities: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """Selects `count` mistakes, the most confident first, and `count` others, the least confident first.

    Args:
      labels: int [N].
      probabilities: float [N, C].
      count: at least 1.

    Returns:
      The indices of the mistakes, and those of the other clips; fewer than `count` where there are no more.
    """
    confidence = probabilities.max(axis=1)
    is_wrong = probabilities.argmax(axis=1) != labels
    mistakes = [int(index) for index in np.argsort(-confidence, kind="stable") if is_wrong[index]][:count]
    others = [int(index) for index in np.argsort(confidence, kind="stable") if index not in mistakes]
    return mistakes, others[:count]


def _check_crops(config: EvaluationConfig, metadata: ModelMetadata, dataset: Dataset) -> None:
    if config.spatial_crops > 1 and dataset.clip.resize == "crop":
        raise EvaluateError(
            f"spatial_crops={config.spatial_crops} needs whole frames, and {config.data_dir} has square "
            "ones: all crops would be identical. Convert the videos with --resize=short_side."
        )
    if config.temporal_crops > 1 and metadata.num_frames == dataset.clip.num_frames:
        raise EvaluateError(
            f"temporal_crops={config.temporal_crops} needs a model that takes fewer frames than are stored, "
            f"and this one takes all {metadata.num_frames}: all crops would be identical. Train with a "
            "smaller --num_frames."
        )


def _caches_features(
    config: EvaluationConfig, metadata: ModelMetadata, dataset: Dataset, settings: Mapping[str, Any]
) -> bool:
    """Whether the features of the clips are worth keeping: those of a frozen backbone serve all runs."""
    model_settings = settings.get("model")
    is_frozen = isinstance(model_settings, dict) and model_settings.get("fine_tune") == "none"
    takes_whole_clips = metadata.num_frames == dataset.clip.num_frames and config.spatial_crops == 1
    return config.cache_features != "off" and is_frozen and takes_whole_clips


def _cached_batches(model: keras.Model, dataset: Dataset, config: EvaluationConfig) -> Iterable[_Batch]:
    table = cached_features(
        feature_encoder(model),
        dataset,
        split=config.split,
        cache_dirs=cache_dirs(dataset, config.run_dir),
        cache_gb=config.cache_gb,
    )
    return eval_feature_dataset(table, batch_size=_HEAD_BATCH, num_frames=dataset.clip.num_frames)


def _encoded_batches(model: keras.Model, dataset: Dataset, config: EvaluationConfig) -> Iterator[_Batch]:
    encode = feature_encoder(model)
    batches = input_pipeline.eval_dataset(
        dataset,
        batch_size=min(config.batch_size, _num_crops(config) * dataset.num_clips(config.split)),
        split=config.split,
        num_frames=encode.clip_shape[0],
        temporal_crops=config.temporal_crops,
        spatial_crops=config.spatial_crops,
    )
    for inputs, label, weight in batches:
        real, mask = weight.numpy() > 0, inputs["mask"].numpy()
        encoded = encode(inputs["frames"].numpy()[real], mask[real])
        features = np.zeros_like(encoded, shape=(len(real), *encoded.shape[1:]))
        features[real] = encoded
        yield {"features": features, "mask": mask}, label, weight


def _num_crops(config: EvaluationConfig) -> int:
    """Returns the number of crops of a clip."""
    return config.temporal_crops * config.spatial_crops


def _predict(
    model: keras.Model, batches: Iterable[_Batch], dataset: Dataset, config: EvaluationConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns labels int32 [N], probabilities float32 [N, C], and those of the linear part alone.

    Probabilities are the mean over the crops of each video. Without a linear part the last are [N, 0].

    Args:
      model: whose head gives the logits, and those of its linear part.
      batches: features, labels and weights of all crops.
      dataset: of the clips.
      config: of the evaluation.
    """
    num_crops = _num_crops(config)
    total = dataset.num_clips(config.split) * num_crops
    answers = heads.classifier(heads.with_linear_logits(model))
    step = tf.function(lambda inputs: [tf.nn.softmax(each) for each in answers(inputs, training=False)])
    labels: list[np.ndarray] = []
    scores: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    with Progress(f"Evaluating {config.split}", total, "crops" if num_crops > 1 else "clips") as progress:
        for inputs, label, weight in batches:
            real = weight.numpy() > 0
            labels.append(label.numpy()[real])
            for of_all, of_batch in zip(scores, step(inputs), strict=True):
                of_all.append(of_batch.numpy()[real])
            progress.advance(int(real.sum()))
    probabilities, linear = (
        np.concatenate(per_crop).reshape(total // num_crops, num_crops, -1).mean(axis=1)
        if per_crop[0].size
        else np.zeros((total // num_crops, 0), np.float32)
        for per_crop in scores
    )
    return np.concatenate(labels)[::num_crops], probabilities, linear


def _read_frames(
    dataset: Dataset, split: str, indices: Sequence[int], spec: ClipSpec
) -> dict[int, np.ndarray]:
    """Reads the frames of some clips as a model of `spec` receives them in the central crop.

    Records are read up to the last of these clips, and only these are decoded.

    Returns:
      Clip index to real frames, uint8 [n, H, W, 3].
    """
    wanted = tf.constant(sorted(indices), tf.int64)
    examples = tf.data.TFRecordDataset(dataset.shard_paths(split)).enumerate()
    examples = examples.filter(lambda index, _: tf.reduce_any(index == wanted)).take(len(indices))
    frames = {}
    for index, example in examples:
        clip = records.parse_clip(example)
        stored = records.decode_frames(
            clip["encoded_frames"], dataset.info.encoding, clip["height"], clip["width"]
        )
        frames[int(index)] = input_pipeline.centre_view(stored, spec).numpy()
    return frames


def _read_or(read: Callable[[], _Content], default: _Content) -> _Content:
    """Reads a file of a run that an evaluation can do without."""
    try:
        return read()
    except FileNotFoundError:
        return default
    except RunFolderError as error:
        _log.warning("%s The report leaves it out.", error)
        return default


def _provenance(config: EvaluationConfig, run: RunFolder, dataset: Dataset) -> dict[str, str]:
    """Returns what is needed to repeat an evaluation, name to text."""
    flags = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name == "split" or getattr(config, field.name) != field.default
    }
    command = ["python", "tools/evaluate.py", *(f"--{name}={value}" for name, value in flags.items())]
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
        "Crops per video": f"{config.temporal_crops} temporal x {config.spatial_crops} spatial",
        "SHA-256 of model.keras": files.sha256_of(run.model),
        "Dataset fingerprint": dataset.info.fingerprint,
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Date": datetime.now().astimezone().isoformat(" ", timespec="minutes"),
    }
