"""A frozen backbone's features, computed once per clip and read from disk in every epoch and run after that.

The cache lies beside the shards, or with the run where those are remote, in a folder named by digests of all
that decides its numbers: the dataset, the backbone's weights and the precision. The order of an epoch is that
of `train_dataset`.
"""

import hashlib
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from filelock import FileLock

from vidpipe.config import fingerprint
from vidpipe.input_pipeline import eval_dataset, full_batches, in_epoch_order
from vidpipe.progress import Progress
from vidpipe.shards import DatasetInfo
from vidpipe.spec import VidpipeError

_FOLDER = "features"
_PREFETCHED_BATCHES = 2
_log = logging.getLogger(__name__)


class FeatureCacheError(VidpipeError):
    """The features cannot be kept beside the shards."""


@dataclass(frozen=True)
class FeatureTable:
    """The features of a split, in the order of its records.

    Attributes:
      features: float32 [N, T, D], zero where the mask is False; mapped from disk.
      mask: bool [N, T].
      label: int32 [N].
    """

    features: np.ndarray
    mask: np.ndarray
    label: np.ndarray


def cached_features(
    encoder: keras.Model,
    data_dir: str,
    info: DatasetInfo,
    split: str,
    batch_size: int,
    kept_in: str | None = None,
) -> FeatureTable:
    """Reads a split's features, after computing them if nobody has yet.

    Args:
      encoder: {"frames", "mask"} -> features [B, T, D], `FusedModel.encoder`; frozen.
      data_dir: a committed dataset.
      info: its dataset_info.
      split: which clips.
      batch_size: clips per call of the encoder.
      kept_in: a local folder, writable while features are missing; None is `data_dir`.

    Raises:
      FeatureCacheError: the folder of the features cannot be written.
    """
    folder = Path(data_dir if kept_in is None else kept_in) / _FOLDER / f"{split}-{_key(encoder, info)}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Two runs may start at once: the second waits, and reads what the first computed.
        with FileLock(f"{folder}.lock"):
            if folder.is_dir():
                _log.info("Features of %s: read from %s.", split, folder)
            else:
                _compute(encoder, data_dir, info, split, batch_size, folder)
    except OSError as error:
        raise FeatureCacheError(
            f"Cannot write features to {folder.parent} ({error.strerror}). Make room, or the folder "
            "writable, or run the backbone in every epoch with --cache_features=off."
        ) from error
    return FeatureTable(
        features=np.load(folder / "features.npy", mmap_mode="r"),
        mask=np.load(folder / "mask.npy"),
        label=np.load(folder / "label.npy"),
    )


def train_feature_dataset(
    table: FeatureTable, info: DatasetInfo, batch_size: int, seed: int, epoch: int, skip_batches: int = 0
) -> tf.data.Dataset:
    """One epoch of cached features, clip for clip the epoch of `train_dataset`.

    Returns:
      A finite dataset of ({"features": float32 [B, T, D], "mask": bool [B, T]}, label int32 [B], weight
      float32 [B]), the last batch filled up.
    """
    bounds = tf.constant(np.cumsum([0] + [shard.clips for shard in info.splits["train"]]), tf.int64)
    places = in_epoch_order(
        lambda shard: tf.data.Dataset.range(bounds[shard], bounds[shard + 1]),
        info, "train", seed, epoch, skip_batches * batch_size,
    )  # fmt: skip
    return _batches(places, table, math.ceil(len(table.label) / batch_size) - skip_batches, batch_size)


def eval_feature_dataset(table: FeatureTable, batch_size: int) -> tf.data.Dataset:
    """Cached features in the order of the records; batches as `train_feature_dataset` gives them."""
    places = tf.data.Dataset.range(len(table.label))
    return _batches(places, table, math.ceil(len(table.label) / batch_size), batch_size)


def _batches(
    places: tf.data.Dataset, table: FeatureTable, num_batches: int, batch_size: int
) -> tf.data.Dataset:
    """Looks up whole batches of places. A filler has the place -1, and weighs nothing."""
    _, num_frames, depth = table.features.shape

    def take(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        real = chosen >= 0
        mask = np.where(real[:, np.newaxis], table.mask[chosen], np.arange(num_frames) < 1)
        return table.features[chosen], mask, table.label[chosen] * real, real.astype(np.float32)

    def look_up(chosen: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        found = tf.numpy_function(take, [chosen], (tf.float32, tf.bool, tf.int32, tf.float32))
        shapes = ((num_frames, depth), (num_frames,), (), ())
        features, mask, label, weight = (
            tf.ensure_shape(values, [batch_size, *shape]) for values, shape in zip(found, shapes, strict=True)
        )
        return {"features": features, "mask": mask}, label, weight

    return full_batches(places, tf.constant(-1, tf.int64), num_batches, batch_size).map(look_up)


def _compute(
    encoder: keras.Model, data_dir: str, info: DatasetInfo, split: str, batch_size: int, folder: Path
) -> None:
    num_clips = info.num_clips(split)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _, num_frames, depth = encoder.output_shape
    features = np.lib.format.open_memmap(
        temporary / "features.npy", mode="w+", dtype=np.float32, shape=(num_clips, num_frames, depth)
    )
    masks: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    start = 0
    encode: Callable = tf.function(lambda inputs: tf.cast(encoder(inputs, training=False), tf.float32))
    with Progress(f"Features of {split}", num_clips, "clips") as progress:
        for inputs, label, weight in eval_dataset(data_dir, info, batch_size, split):
            real = weight.numpy() > 0
            stop = start + int(real.sum())
            features[start:stop] = encode(inputs).numpy()[real]
            masks.append(inputs["mask"].numpy()[real])
            labels.append(label.numpy()[real])
            progress.advance(stop - start)
            start = stop
    features.flush()
    np.save(temporary / "mask.npy", np.concatenate(masks))
    np.save(temporary / "label.npy", np.concatenate(labels))
    temporary.replace(folder)


def _key(encoder: keras.Model, info: DatasetInfo) -> str:
    weights = hashlib.sha256()
    for variable in encoder.variables:
        weights.update(np.ascontiguousarray(variable.numpy()).tobytes())
    precision = encoder.get_layer("backbone").dtype_policy.name
    return fingerprint([info.fingerprint, weights.hexdigest(), precision])[:16]
