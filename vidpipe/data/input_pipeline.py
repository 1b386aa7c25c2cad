"""Shards to batches: `train_dataset` shuffles and augments, `eval_dataset` reads in order.

The order of the clips and their augmentation are a function of (dataset, seed, epoch) only, not of threads or
the machine, so a run resumes by skipping clips. Encoded records are shuffled and skipped, not decoded frames.
"""

import math
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from vidpipe.config import ClipSpec
from vidpipe.data import augment, records
from vidpipe.data.dataset import Dataset
from vidpipe.errors import VidpipeError

# Shards that are read in parallel, which mixes them. Constant, since the order of the clips depends on it.
_INTERLEAVED_SHARDS = 16
# Limits of the shuffle buffer: encoded clips (about 0.4 MB each as JPEG of 20 x 224 x 224), and their bytes.
_SHUFFLE_CLIPS, _SHUFFLE_BYTES = 2048, 2**30
_PREFETCHED_BATCHES = 2
_CONNECT_TIMEOUT_SEC = 10

_Clip = tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]


class InputError(VidpipeError):
    """The tf.data service does not answer."""


def train_dataset(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    num_frames: int,
    skip_batches: int = 0,
    split: str = "train",
    augmentation: str = "none",
    mixup: float = 0.0,
    num_replicas: int = 1,
    replica: int = 0,
    data_service: str | None = None,
    ram_gb: float | None = None,
) -> tf.data.Dataset:
    """Builds one epoch of a split: every clip once, shuffled, in batches.

    Args:
      dataset: an open dataset.
      batch_size: clips per batch (B); the last batch is padded to this size.
      seed: seed of the order and the augmentation.
      epoch: counted from 0; order and augmentation change with it.
      num_frames: frames per clip (T), one sampled at random from each of T equal segments of the stored ones.
      skip_batches: number of batches to skip at the start, without decoding them.
      split: which clips.
      augmentation: one of `config.AUGMENT`.
      mixup: above 0, clips of a batch are mixed in pairs with weights from Beta(mixup, mixup), and the labels
        are float32 [B, C].
      num_replicas: number of replicas that share the epoch; each reads a batch of B clips per step.
      replica: index of this replica; all replicas have the same number of batches.
      data_service: `host:port` of the dispatcher of a tf.data service, whose workers decode and augment. They
        must see the shards under the same paths. Every clip is still read once, but the service decides
        the order, so nothing can be skipped.
      ram_gb: memory for tf.data's buffers in GiB; None lets tf.data decide. The shuffle buffer, at most 1
        GiB, is extra.

    Returns:
      A finite dataset of ({"frames": uint8 [B, T, H, W, 3], "mask": bool [B, T]}, label int32 [B], weight
      float32 [B]). `mask` is True for real frames, which come first in each row. Padding examples have weight
      0, one real (black) frame and label 0.

    Raises:
      ShardError: a shard is missing or has another size, or the split is empty.
      InputError: the tf.data service does not answer.
    """
    info = dataset.info
    paths = tf.constant(dataset.shard_paths(split))
    spec = info.clip.spec(num_frames)
    step_clips = batch_size * num_replicas
    if data_service is None:
        examples = in_epoch_order(
            lambda shard: tf.data.TFRecordDataset(paths[shard]),
            dataset,
            split=split,
            seed=seed,
            epoch=epoch,
            skip_clips=skip_batches * step_clips,
        )
    else:
        if skip_batches or num_replicas > 1:
            raise ValueError(
                "skip_batches and num_replicas are not supported with data_service, which decides the order."
            )
        # The service distributes the shards over its workers. If they were shuffled here, every worker would
        # read every shard.
        examples = tf.data.Dataset.from_tensor_slices(paths)
        examples = examples.interleave(tf.data.TFRecordDataset, cycle_length=_INTERLEAVED_SHARDS)
        examples = examples.shuffle(_shuffle_buffer(dataset, split), seed=seed + epoch)
    if num_replicas > 1:
        examples = _examples_of_replica(
            examples, batch_size=batch_size, num_replicas=num_replicas, replica=replica
        )
    changes = augmentation.split("_")

    def read(example: tf.Tensor) -> _Clip:
        clip = records.parse_clip(example)
        seeds = augment.clip_seeds(seed, epoch, clip["video_id"])
        encoded = clip["encoded_frames"]
        encoded = tf.gather(encoded, augment.segment_positions(tf.size(encoded), num_frames, seeds[0]))
        frames = records.decode_frames(encoded, info.encoding, clip["height"], clip["width"])
        if "crop" in changes:
            frames = _cropped(frames, augment.random_window(clip["height"], clip["width"], seeds[1]), spec)
        else:
            frames = _square(frames, spec)
        if "flip" in changes:
            frames = augment.flip(frames, seeds[2])
        if "colour" in changes:
            frames = augment.jitter_colours(frames, seeds[3])
        inputs, label, weight = _padded_clip(frames, clip["label"], spec)
        if mixup > 0:
            inputs["mixup_weight"] = augment.mixup_weight(mixup, seeds[4])
        return inputs, label, weight

    clips = _decoded(examples, read)
    if data_service is not None:
        _check_reachable(data_service)
        policy = tf.data.experimental.service.ShardingPolicy.DYNAMIC
        clips = clips.apply(tf.data.experimental.service.distribute(policy, f"grpc://{data_service}"))
        clips = clips.apply(tf.data.experimental.assert_cardinality(dataset.num_clips(split)))
    steps = math.ceil(dataset.num_clips(split) / step_clips) - skip_batches
    padding = _padding_example(spec)
    if mixup > 0:
        padding[0]["mixup_weight"] = tf.constant(1.0)
    batches = full_batches(clips, padding, num_batches=steps, batch_size=batch_size)
    if mixup > 0:
        batches = batches.map(_mixer(len(info.classes)))
    if ram_gb is not None:
        options = tf.data.Options()
        options.autotune.ram_budget = int(ram_gb * 2**30)
        batches = batches.with_options(options)
    return batches


def in_epoch_order(
    open_shard: Callable[[tf.Tensor], tf.data.Dataset],
    dataset: Dataset,
    *,
    split: str,
    seed: int,
    epoch: int,
    skip_clips: int,
) -> tf.data.Dataset:
    """Arranges one element per clip in the order of an epoch.

    Args:
      open_shard: maps the index of a shard in `info.splits[split]`, int64 [], to a dataset with one element
        per clip.
      dataset: an open dataset.
      split: which clips.
      seed: seed of the order.
      epoch: counted from 0; the order changes with it.
      skip_clips: number of clips to skip at the start.
    """
    # Philox gives the same numbers for a key on every platform.
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    shard_order = random.permutation(len(dataset.info.splits[split]))
    clips = tf.data.Dataset.from_tensor_slices(shard_order).interleave(
        open_shard, cycle_length=_INTERLEAVED_SHARDS, block_length=1
    )
    buffer, shuffle_seed = _shuffle_buffer(dataset, split), int(random.integers(2**31))

    def shuffled(_: tf.Tensor) -> tf.data.Dataset:
        # TensorFlow combines the seed of a shuffle with its global seed, which is local to this function.
        tf.random.set_seed(0)
        return clips.shuffle(buffer, seed=shuffle_seed, reshuffle_each_iteration=False)

    # Shuffle and skip before decoding: encoded clips are small.
    clips = tf.data.Dataset.from_tensors(0).flat_map(shuffled)
    return clips.apply(tf.data.experimental.assert_cardinality(dataset.num_clips(split))).skip(skip_clips)


def indices_in_epoch_order(
    dataset: Dataset, *, split: str, seed: int, epoch: int, skip_clips: int = 0
) -> tf.data.Dataset:
    """Builds the clip indices of a split, int64 [], in the order in which `train_dataset` reads them."""
    bounds = tf.constant(np.cumsum([0] + [shard.clips for shard in dataset.info.splits[split]]), tf.int64)
    return in_epoch_order(
        lambda shard: tf.data.Dataset.range(bounds[shard], bounds[shard + 1]),
        dataset, split=split, seed=seed, epoch=epoch, skip_clips=skip_clips,
    )  # fmt: skip


def eval_dataset(
    dataset: Dataset,
    *,
    batch_size: int,
    split: str,
    num_frames: int,
    temporal_crops: int = 1,
    spatial_crops: int = 1,
    skip_clips: int = 0,
) -> tf.data.Dataset:
    """Builds every clip of a split once, in the order of its records, or several crops of each clip.

    Args:
      dataset: an open dataset.
      batch_size: crops per batch (B); the last batch is padded to this size.
      split: which clips.
      num_frames: frames per crop (T), evenly spread over the stored frames.
      temporal_crops: number of subsets of the stored frames, interleaved in time.
      spatial_crops: number of squares per frame: 1 is the centre, 3 adds both ends of the long side.
      skip_clips: number of clips to skip at the start, without decoding them.

    Returns:
      Batches like those of `train_dataset`. With V = temporal_crops x spatial_crops, rows V i to V i + V - 1
      are the crops of row i of `dataset.clip_rows(split)[skip_clips:]`.

    Raises:
      ShardError: as in `train_dataset`.
    """
    examples = tf.data.TFRecordDataset(dataset.shard_paths(split))
    examples = examples.apply(tf.data.experimental.assert_cardinality(dataset.num_clips(split)))
    examples = examples.skip(skip_clips)
    num_crops = temporal_crops * spatial_crops
    crops = examples.flat_map(
        lambda example: tf.data.Dataset.from_tensors(example).repeat(num_crops).enumerate()
    )
    spec = dataset.clip.spec(num_frames)

    def read(crop: tf.Tensor, example: tf.Tensor) -> _Clip:
        clip = records.parse_clip(example)
        crop = tf.cast(crop, tf.int32)
        encoded = clip["encoded_frames"]
        positions = augment.crop_positions(
            tf.size(encoded), num_frames, crop // spatial_crops, temporal_crops
        )
        encoded = tf.gather(encoded, positions)
        frames = records.decode_frames(encoded, dataset.info.encoding, clip["height"], clip["width"])
        frames = _square(frames, spec, crop % spatial_crops, spatial_crops)
        return _padded_clip(frames, clip["label"], spec)

    steps = math.ceil((dataset.num_clips(split) - skip_clips) * num_crops / batch_size)
    padding = _padding_example(spec)
    return full_batches(_decoded(crops, read), padding, num_batches=steps, batch_size=batch_size)


def centre_view(frames: tf.Tensor, spec: ClipSpec) -> tf.Tensor:
    """Selects the frames and the centre square of a stored clip in the same way as `eval_dataset`.

    Args:
      frames: uint8 [n, H, W, 3], H and W at least the height and width of `spec`.
      spec: shape of the clips that the model takes.

    Returns:
      uint8 [n', height, width, 3], n' <= T.
    """
    positions = augment.crop_positions(tf.shape(frames)[0], spec.num_frames, 0, 1)
    return _square(tf.gather(frames, positions), spec)


def pad_clip(frames: tf.Tensor, num_frames: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Appends black frames to a clip, and makes its mask.

    Args:
      frames: uint8 [n, H, W, 3], n <= num_frames.
      num_frames: T.

    Returns:
      uint8 [T, H, W, 3], and bool [T], True for the n real frames.
    """
    count = tf.shape(frames)[0]
    padded = tf.pad(frames, [[0, num_frames - count], [0, 0], [0, 0], [0, 0]])
    return tf.ensure_shape(padded, [num_frames, *frames.shape[1:]]), tf.range(num_frames) < count


def full_batches(
    clips: tf.data.Dataset, padding: Any, *, num_batches: int, batch_size: int
) -> tf.data.Dataset:
    """Builds batches of equal shape, so that a step is traced once.

    Args:
      clips: a dataset of at most `num_batches * batch_size` elements.
      padding: the element that is repeated until the last batches are full.
      num_batches: number of batches to build.
      batch_size: elements per batch.
    """
    endless_padding = tf.data.Dataset.from_tensors(padding).repeat()
    examples = clips.concatenate(endless_padding).take(num_batches * batch_size)
    return examples.batch(batch_size, drop_remainder=True).prefetch(_PREFETCHED_BATCHES)


def _check_reachable(service: str) -> None:
    """Raises an error immediately; TensorFlow would wait forever for a service that does not answer."""
    host, _, port = service.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_SEC).close()
    except (OSError, ValueError) as error:
        reason = "expected host:port" if isinstance(error, ValueError) else error
        raise InputError(
            f"No tf.data service answers at {service} ({reason}). Start its dispatcher, or correct the "
            "address."
        ) from None


def _examples_of_replica(
    examples: tf.data.Dataset, *, batch_size: int, num_replicas: int, replica: int
) -> tf.data.Dataset:
    """Keeps the examples of one replica: `batch_size` consecutive ones of each step."""
    numbered = examples.enumerate().filter(lambda index, _: index // batch_size % num_replicas == replica)
    return numbered.map(lambda _, example: example)


def _decoded(examples: tf.data.Dataset, read: Callable) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    return examples.map(read, num_parallel_calls=tf.data.AUTOTUNE).with_options(options)


def _square(frames: tf.Tensor, spec: ClipSpec, crop: tf.Tensor | int = 0, num_crops: int = 1) -> tf.Tensor:
    """Crops all frames to `augment.side_window`; square frames are not copied."""
    height, width = tf.unstack(tf.shape(frames)[1:3])

    def crop_square() -> tf.Tensor:
        top, left, side, _ = tf.unstack(augment.side_window(height, width, spec.height, crop, num_crops))
        return frames[:, top : top + side, left : left + side]

    square = tf.cond((height == spec.height) & (width == spec.width), lambda: frames, crop_square)
    return tf.ensure_shape(square, [None, spec.height, spec.width, 3])


def _cropped(frames: tf.Tensor, window: tf.Tensor, spec: ClipSpec) -> tf.Tensor:
    """Crops and resizes all frames: uint8 [n, H, W, 3] to uint8 [n, spec.height, spec.width, 3]."""
    top, left, height, width = tf.unstack(window)
    cropped = frames[:, top : top + height, left : left + width]
    resized = tf.image.resize(cropped, (spec.height, spec.width))
    return tf.ensure_shape(tf.saturate_cast(tf.round(resized), tf.uint8), [None, spec.height, spec.width, 3])


def _mixer(num_classes: int) -> Callable:
    def mix(inputs: dict[str, tf.Tensor], label: tf.Tensor, weight: tf.Tensor) -> _Clip:
        frames, mask, mixed_label = augment.mix(
            inputs["frames"],
            inputs["mask"],
            tf.one_hot(label, num_classes),
            weight=weight,
            mixup_weight=inputs["mixup_weight"],
        )
        return {"frames": frames, "mask": mask}, mixed_label, weight

    return mix


def _padded_clip(frames: tf.Tensor, label: tf.Tensor, spec: ClipSpec) -> _Clip:
    frames, mask = pad_clip(frames, spec.num_frames)
    return {"frames": frames, "mask": mask}, label, tf.constant(1.0)


def _padding_example(spec: ClipSpec) -> _Clip:
    """Makes a clip of weight 0 with one real (black) frame: cuDNN's LSTM needs one in every row."""
    frames = tf.zeros([spec.num_frames, spec.height, spec.width, 3], tf.uint8)
    return {"frames": frames, "mask": tf.range(spec.num_frames) < 1}, tf.constant(0), tf.constant(0.0)


def _shuffle_buffer(dataset: Dataset, split: str) -> int:
    """Returns the size of the shuffle buffer in clips."""
    num_clips = dataset.num_clips(split)
    clip_bytes = max(1, sum(shard.bytes for shard in dataset.info.splits[split]) // num_clips)
    return min(num_clips, _SHUFFLE_CLIPS, max(64, _SHUFFLE_BYTES // clip_bytes))
