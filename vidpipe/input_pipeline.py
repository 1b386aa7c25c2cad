"""Shards to batches: `train_dataset` and `eval_dataset`, two functions so that neither can be the other.

Which clips come in which order, with which augmentation, is a function of (dataset, seed, epoch) and of
nothing else, neither threads nor machine, so a run resumes by skipping. Encoded records are shuffled and
skipped, never decoded frames.
"""

import math
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from vidpipe import augment, records
from vidpipe.shards import DatasetInfo, shard_paths
from vidpipe.spec import ClipSpec, VidpipeError

# Shards read side by side, which mixes them; fixed, since the order depends on it.
_INTERLEAVED_SHARDS = 16
# The shuffle buffer: encoded clips, some 0.4 MB each as JPEG of 20 x 224 x 224, and the bytes they may take.
_SHUFFLED_CLIPS, _SHUFFLED_BYTES = 2048, 2**30
_PREFETCHED_BATCHES = 2

_REACH_SEC = 10

_Clip = tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]


class InputError(VidpipeError):
    """Clips cannot be had from where they were asked for."""


def train_dataset(
    data_dir: str,
    info: DatasetInfo,
    batch_size: int,
    seed: int,
    epoch: int,
    skip_batches: int = 0,
    split: str = "train",
    num_frames: int | None = None,
    augmentation: str = "none",
    mixup: float = 0.0,
    num_replicas: int = 1,
    replica: int = 0,
    service: str | None = None,
    ram_gb: float | None = None,
) -> tf.data.Dataset:
    """One epoch of a split: every clip once, shuffled, in batches.

    Args:
      data_dir: a committed dataset.
      info: its dataset_info.
      batch_size: clips per batch (B); the last batch is filled up to it.
      seed: of the order and the augmentation.
      epoch: likewise; each has its own.
      skip_batches: leave out that many from the start, without decoding them.
      split: which clips.
      num_frames: frames of each clip (T), one at random from each of T equal segments of the stored ones;
        None takes all that are stored.
      augmentation: one of `config.AUGMENT`.
      mixup: above 0, clips of a batch are mixed in pairs with shares of Beta(mixup, mixup), and the labels
        are float32 [B, C].
      num_replicas: how many share the epoch, a batch of B each per step; together they see every clip once.
      replica: which of them this is, from 0; all have the same number of batches.
      service: `host:port` of a tf.data service's dispatcher, whose workers decode and augment; they read the
        same paths. Every clip still comes once, but the order is the service's: nothing can be skipped.
      ram_gb: what tf.data's buffers may take, in 2**30 bytes; None leaves it to tf.data. The shuffle buffer,
        at most 1, comes on top.

    Returns:
      A finite dataset of ({"frames": uint8 [B, T, H, W, 3], "mask": bool [B, T]}, label int32 [B], weight
      float32 [B]). `mask` is True for a real frame, always first in its row; rows that only fill a batch have
      weight 0, one real (black) frame and label 0.

    Raises:
      ShardError: a shard is missing or of another size, or the split is empty.
      InputError: nobody answers at the service's address.
    """
    paths = tf.constant(shard_paths(data_dir, info, split))
    spec = info.clip.model_spec(num_frames)
    step_clips = batch_size * num_replicas
    if service is None:
        examples = in_epoch_order(
            lambda shard: tf.data.TFRecordDataset(paths[shard]),
            info,
            split,
            seed,
            epoch,
            skip_batches * step_clips,
        )
    else:
        if skip_batches or num_replicas > 1:
            raise ValueError("The order of a tf.data service is its own: nothing to skip or to share by.")
        # Shards are what its workers deal among each other. A shuffle of them here would give each to both.
        examples = tf.data.Dataset.from_tensor_slices(paths)
        examples = examples.interleave(tf.data.TFRecordDataset, cycle_length=_INTERLEAVED_SHARDS)
        examples = examples.shuffle(_shuffled_clips(info, split), seed=seed + epoch)
    if num_replicas > 1:
        examples = _share(examples, batch_size, num_replicas, replica)
    parts = augmentation.split("_")

    def read(example: tf.Tensor) -> _Clip:
        clip = records.parse_clip(example)
        seeds = augment.clip_seeds(seed, epoch, clip["video_id"])
        encoded = clip["encoded_frames"]
        if num_frames is not None:
            encoded = tf.gather(encoded, augment.segment_positions(tf.size(encoded), num_frames, seeds[0]))
        frames = records.decode_frames(encoded, info.encoding, clip["height"], clip["width"])
        if "crop" in parts:
            frames = _cut(frames, augment.random_window(clip["height"], clip["width"], seeds[1]), spec)
        else:
            frames = _square(frames, spec)
        if "flip" in parts:
            frames = augment.flip(frames, seeds[2])
        if "colour" in parts:
            frames = augment.jitter_colours(frames, seeds[3])
        inputs, label, weight = _padded_clip(frames, clip["label"], spec)
        if mixup > 0:
            inputs["share"] = augment.mixup_share(mixup, seeds[4])
        return inputs, label, weight

    clips = _decoded(examples, read)
    if service is not None:
        _reach(service)
        policy = tf.data.experimental.service.ShardingPolicy.DYNAMIC
        clips = clips.apply(tf.data.experimental.service.distribute(policy, f"grpc://{service}"))
        clips = clips.apply(tf.data.experimental.assert_cardinality(info.num_clips(split)))
    steps = math.ceil(info.num_clips(split) / step_clips) - skip_batches
    filler = _filler(spec)
    if mixup > 0:
        filler[0]["share"] = tf.constant(1.0)
    batches = full_batches(clips, filler, steps, batch_size)
    if mixup > 0:
        batches = batches.map(_mixer(len(info.classes)))
    if ram_gb is not None:
        options = tf.data.Options()
        options.autotune.ram_budget = int(ram_gb * 2**30)
        batches = batches.with_options(options)
    return batches


def in_epoch_order(
    open_shard: Callable[[tf.Tensor], tf.data.Dataset],
    info: DatasetInfo,
    split: str,
    seed: int,
    epoch: int,
    skip_clips: int,
) -> tf.data.Dataset:
    """What `open_shard` gives for each clip, in the order of that epoch.

    Args:
      open_shard: a shard's place in `info.splits[split]`, int64 [], to a dataset of one element per clip.
      info: the dataset.
      split: which clips.
      seed: of the order.
      epoch: of the order; each has its own.
      skip_clips: leave out that many from the start.
    """
    # Philox with this key: the same stream wherever numpy runs.
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    shard_order = random.permutation(len(info.splits[split]))
    clips = tf.data.Dataset.from_tensor_slices(shard_order).interleave(
        open_shard, cycle_length=_INTERLEAVED_SHARDS, block_length=1
    )
    num_clips = info.num_clips(split)
    buffer, shuffle_seed = _shuffled_clips(info, split), int(random.integers(2**31))

    def shuffled(_: tf.Tensor) -> tf.data.Dataset:
        # TensorFlow mixes its global seed into a shuffle's. In here that is this function's own.
        tf.random.set_seed(0)
        return clips.shuffle(buffer, seed=shuffle_seed, reshuffle_each_iteration=False)

    # Shuffle before skip and before decoding: what moves and what is dropped is bytes.
    clips = tf.data.Dataset.from_tensors(0).flat_map(shuffled)
    return clips.apply(tf.data.experimental.assert_cardinality(num_clips)).skip(skip_clips)


def places_in_epoch_order(
    info: DatasetInfo, split: str, seed: int, epoch: int, skip_clips: int = 0
) -> tf.data.Dataset:
    """The places of an epoch's clips among those of the split, int64 [], in the order of `train_dataset`."""
    bounds = tf.constant(np.cumsum([0] + [shard.clips for shard in info.splits[split]]), tf.int64)
    return in_epoch_order(
        lambda shard: tf.data.Dataset.range(bounds[shard], bounds[shard + 1]),
        info, split, seed, epoch, skip_clips,
    )  # fmt: skip


def eval_dataset(
    data_dir: str,
    info: DatasetInfo,
    batch_size: int,
    split: str,
    num_frames: int | None = None,
    num_clips: int = 1,
    num_crops: int = 1,
    skip_clips: int = 0,
) -> tf.data.Dataset:
    """Every clip of a split once, in the order of its records, or several views of each.

    Args:
      data_dir: a committed dataset.
      info: its dataset_info.
      batch_size: views per batch (B); the last batch is filled up to it.
      split: which clips.
      num_frames: frames of each view (T), evenly spread over the stored ones; None takes all that are stored.
      num_clips: views of each video in time: other frames of the stored ones, in between.
      num_crops: views of each of those in space: 1 the centre, 3 both ends of the long side too.
      skip_clips: leave out that many from the start, without decoding them.

    Returns:
      Batches as those of `train_dataset`. With V = num_clips x num_crops, rows V i to V i + V - 1 are the
      views of row i of `shards.clip_rows(data_dir, split)`, counted from the first that is not skipped.

    Raises:
      ShardError: as `train_dataset`.
    """
    examples = tf.data.TFRecordDataset(shard_paths(data_dir, info, split))
    examples = examples.apply(tf.data.experimental.assert_cardinality(info.num_clips(split)))
    examples = examples.skip(skip_clips)
    num_views = num_clips * num_crops
    views = examples.flat_map(
        lambda example: tf.data.Dataset.from_tensors(example).repeat(num_views).enumerate()
    )
    spec = info.clip.model_spec(num_frames)

    def read(view: tf.Tensor, example: tf.Tensor) -> _Clip:
        clip = records.parse_clip(example)
        view = tf.cast(view, tf.int32)
        encoded = clip["encoded_frames"]
        positions = augment.view_positions(tf.size(encoded), spec.num_frames, view // num_crops, num_clips)
        encoded = tf.gather(encoded, positions)
        frames = records.decode_frames(encoded, info.encoding, clip["height"], clip["width"])
        frames = _square(frames, spec, view % num_crops, num_crops)
        return _padded_clip(frames, clip["label"], spec)

    steps = math.ceil((info.num_clips(split) - skip_clips) * num_views / batch_size)
    return full_batches(_decoded(views, read), _filler(spec), steps, batch_size)


def centre_view(frames: tf.Tensor, spec: ClipSpec) -> tf.Tensor:
    """What `eval_dataset` makes of a clip's stored frames, for prediction.

    Args:
      frames: uint8 [n, H, W, 3], at least as high and wide as `spec` says.
      spec: the clips that the model takes.

    Returns:
      uint8 [n', height, width, 3], n' <= T, the centre of each frame.
    """
    positions = augment.view_positions(tf.shape(frames)[0], spec.num_frames, 0, 1)
    return _square(tf.gather(frames, positions), spec)


def pad_clip(frames: tf.Tensor, num_frames: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Zeros behind the real frames, and the mask that tells them apart.

    Args:
      frames: uint8 [n, H, W, 3], n <= num_frames.
      num_frames: T.

    Returns:
      uint8 [T, H, W, 3], and bool [T], True for the first n.
    """
    count = tf.shape(frames)[0]
    padded = tf.pad(frames, [[0, num_frames - count], [0, 0], [0, 0], [0, 0]])
    return tf.ensure_shape(padded, [num_frames, *frames.shape[1:]]), tf.range(num_frames) < count


def full_batches(clips: tf.data.Dataset, filler: Any, num_batches: int, batch_size: int) -> tf.data.Dataset:
    """Batches of one shape, so that a step is traced once: what is missing in the last ones is `filler`."""
    fillers = tf.data.Dataset.from_tensors(filler).repeat()
    filled = clips.concatenate(fillers).take(num_batches * batch_size)
    return filled.batch(batch_size, drop_remainder=True).prefetch(_PREFETCHED_BATCHES)


def _reach(service: str) -> None:
    """Fails where TensorFlow would wait for ever."""
    host, _, port = service.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _REACH_SEC).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"No tf.data service at {service} ({error}). Start its dispatcher, or correct the host:port."
        ) from None


def _share(examples: tf.data.Dataset, batch_size: int, num_replicas: int, replica: int) -> tf.data.Dataset:
    """Of each step's clips, `batch_size` for each replica, those of this one."""
    numbered = examples.enumerate().filter(lambda place, _: place // batch_size % num_replicas == replica)
    return numbered.map(lambda _, example: example)


def _decoded(examples: tf.data.Dataset, read: Callable) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    return examples.map(read, num_parallel_calls=tf.data.AUTOTUNE).with_options(options)


def _square(frames: tf.Tensor, spec: ClipSpec, crop: tf.Tensor | int = 0, num_crops: int = 1) -> tf.Tensor:
    """`augment.side_window` of all frames; nothing is copied of frames that are square already."""
    height, width = tf.unstack(tf.shape(frames)[1:3])

    def cut() -> tf.Tensor:
        top, left, side, _ = tf.unstack(augment.side_window(height, width, spec.height, crop, num_crops))
        return frames[:, top : top + side, left : left + side]

    part = tf.cond((height == spec.height) & (width == spec.width), lambda: frames, cut)
    return tf.ensure_shape(part, [None, spec.height, spec.width, 3])


def _cut(frames: tf.Tensor, window: tf.Tensor, spec: ClipSpec) -> tf.Tensor:
    """The window of all frames, in the model's size: uint8 [n, H, W, 3] to [n, height, width, 3]."""
    top, left, height, width = tf.unstack(window)
    part = frames[:, top : top + height, left : left + width]
    resized = tf.image.resize(part, (spec.height, spec.width))
    return tf.ensure_shape(tf.saturate_cast(tf.round(resized), tf.uint8), [None, spec.height, spec.width, 3])


def _mixer(num_classes: int) -> Callable:
    def mix(inputs: dict[str, tf.Tensor], label: tf.Tensor, weight: tf.Tensor) -> _Clip:
        frames, mask, mixed = augment.mix(
            inputs["frames"], inputs["mask"], tf.one_hot(label, num_classes), weight, inputs["share"]
        )
        return {"frames": frames, "mask": mask}, mixed, weight

    return mix


def _padded_clip(frames: tf.Tensor, label: tf.Tensor, spec: ClipSpec) -> _Clip:
    frames, mask = pad_clip(frames, spec.num_frames)
    return {"frames": frames, "mask": mask}, label, tf.constant(1.0)


def _filler(spec: ClipSpec) -> _Clip:
    """A clip of weight 0 with one real frame, black: cuDNN's LSTM fails on a row without one."""
    frames = tf.zeros([spec.num_frames, spec.height, spec.width, 3], tf.uint8)
    return {"frames": frames, "mask": tf.range(spec.num_frames) < 1}, tf.constant(0), tf.constant(0.0)


def _shuffled_clips(info: DatasetInfo, split: str) -> int:
    num_clips = info.num_clips(split)
    clip_bytes = max(1, sum(shard.bytes for shard in info.splits[split]) // num_clips)
    return min(num_clips, _SHUFFLED_CLIPS, max(64, _SHUFFLED_BYTES // clip_bytes))
