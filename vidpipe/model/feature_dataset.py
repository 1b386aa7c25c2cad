"""Batches of cached features, with the same clips, frames and order as `vidpipe.data.input_pipeline`."""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from vidpipe.data import augment
from vidpipe.data.dataset import Dataset
from vidpipe.data.input_pipeline import full_batches, indices_in_epoch_order
from vidpipe.model.feature_cache import FeatureTable

_PREFETCHED_BATCHES = 2
# The index of a clip in the table, int64 [], and the positions of T of its stored frames, int32 [T].
_Crop = tuple[tf.Tensor, tf.Tensor]


def train_feature_dataset(
    table: FeatureTable,
    dataset: Dataset,
    *,
    video_ids: Sequence[str],
    batch_size: int,
    seed: int,
    epoch: int,
    num_frames: int,
    skip_batches: int = 0,
    weight: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Builds one epoch of cached features: the same clips and frames in the same order as `train_dataset`.

    Args:
      table: features of `train`.
      dataset: an open dataset; its shards determine the order.
      video_ids: of the table's clips; they determine which frames are sampled.
      batch_size: clips per batch (B).
      seed: of the order and of the sampled frames.
      epoch: likewise; each has its own.
      num_frames: frames sampled from each clip (T).
      skip_batches: batches to leave out from the start.
      weight: float32 [clips, ...], of the clips; None for 1.

    Returns:
      A finite dataset of ({"features": [B, T, ...] with the table's dtype, "mask": bool [B, T]}, label int32
      [B], weight float32 [B, ...]); rows that only fill the last batch have weight 0.
    """
    indices = indices_in_epoch_order(
        dataset, split="train", seed=seed, epoch=epoch, skip_clips=skip_batches * batch_size
    )
    num_clips = len(table.label)
    if num_frames == table.mask.shape[1]:
        crops = _all_frames(indices, table)
        return _batches(crops, table, num_clips, batch_size, skip_batches, weight)
    counts, names = tf.constant(_counts(table)), tf.constant(video_ids)

    def sample(index: tf.Tensor) -> _Crop:
        seeds = augment.clip_seeds(seed, epoch, names[index])
        positions = augment.segment_positions(counts[index], num_frames, seeds[0])
        return index, _pad_positions(positions, counts[index], num_frames)

    sampled = indices.map(sample, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return _batches(sampled, table, num_clips, batch_size, skip_batches, weight)


def eval_feature_dataset(
    table: FeatureTable, *, batch_size: int, num_frames: int, temporal_crops: int = 1
) -> tf.data.Dataset:
    """Builds cached features in the order of the records: the same crops in the same order as `eval_dataset`.

    Args:
      table: features of any split.
      batch_size: crops per batch (B).
      num_frames: frames of each crop (T), evenly spread.
      temporal_crops: subsets of the stored frames per clip.

    Returns:
      Batches as those of `train_feature_dataset`.
    """
    indices = tf.data.Dataset.range(len(table.label))
    if num_frames == table.mask.shape[1] and temporal_crops == 1:
        return _batches(_all_frames(indices, table), table, len(table.label), batch_size)
    counts = tf.constant(_counts(table))

    def take_crop(crop: tf.Tensor, index: tf.Tensor) -> _Crop:
        positions = augment.crop_positions(counts[index], num_frames, tf.cast(crop, tf.int32), temporal_crops)
        return index, _pad_positions(positions, counts[index], num_frames)

    numbered = indices.flat_map(
        lambda index: tf.data.Dataset.from_tensors(index).repeat(temporal_crops).enumerate()
    )
    return _batches(numbered.map(take_crop), table, temporal_crops * len(table.label), batch_size)


def _all_frames(indices: tf.data.Dataset, table: FeatureTable) -> tf.data.Dataset:
    """Pairs each clip's index with all stored frames; faster to trace than sampling, in every epoch."""
    return indices.map(lambda index: (index, tf.range(table.mask.shape[1])))


def _counts(table: FeatureTable) -> np.ndarray:
    """Counts the real frames of each clip, int32 [clips]."""
    return table.mask.sum(axis=1, dtype=np.int32)


def _pad_positions(positions: tf.Tensor, count: tf.Tensor, num_frames: int) -> tf.Tensor:
    """Pads positions to int32 [T] by `count`, the position after the last real frame."""
    missing = num_frames - tf.size(positions)
    return tf.ensure_shape(tf.concat([positions, tf.fill([missing], count)], axis=0), [num_frames])


def _batches(
    crops: tf.data.Dataset,
    table: FeatureTable,
    num_crops: int,
    batch_size: int,
    skip_batches: int = 0,
    weight: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Looks up the features of crops in batches. A filler has the index -1 and weight 0."""
    num_frames = crops.element_spec[1].shape[0]
    shape = (num_frames, *table.features.shape[2:])
    weight = np.ones(len(table.label), np.float32) if weight is None else weight

    def take(
        indices: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        real = indices >= 0
        frames = indices[:, np.newaxis], positions
        mask = np.where(real[:, np.newaxis], table.mask[frames], np.arange(num_frames) < 1)
        weights = weight[indices] * real.reshape(-1, *(1 for _ in weight.shape[1:]))
        return table.features[frames], mask, table.label[indices] * real, weights

    def look_up(
        indices: tf.Tensor, positions: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        dtypes = (tf.as_dtype(table.features.dtype), tf.bool, tf.int32, tf.float32)
        found = tf.numpy_function(take, [indices, positions], dtypes)
        shapes = (shape, shape[:1], (), weight.shape[1:])
        features, mask, label, weights = (
            tf.ensure_shape(values, [batch_size, *rest]) for values, rest in zip(found, shapes, strict=True)
        )
        return {"features": features, "mask": mask}, label, weights

    filler = tf.constant(-1, tf.int64), tf.zeros([num_frames], tf.int32)
    num_batches = math.ceil(num_crops / batch_size) - skip_batches
    batches = full_batches(crops, filler, num_batches=num_batches, batch_size=batch_size)
    return batches.map(look_up).prefetch(_PREFETCHED_BATCHES)
