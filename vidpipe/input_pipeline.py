"""Shards to batches: `train_dataset` and `eval_dataset`, two functions so that neither can be the other.

Which clips come in which order is a function of (dataset, seed, epoch) and of nothing else, neither threads
nor machine, so a run resumes by skipping. Encoded records are shuffled and skipped, never decoded frames.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from vidpipe import records
from vidpipe.shards import DatasetInfo, shard_paths
from vidpipe.spec import ClipSpec

# Shards read side by side, which mixes them; fixed, since the order depends on it.
_INTERLEAVED_SHARDS = 16
# Encoded clips in the shuffle buffer: some 0.4 MB each as JPEG of 20 x 224 x 224.
_SHUFFLED_CLIPS = 2048
_PREFETCHED_BATCHES = 2


def train_dataset(
    data_dir: str,
    info: DatasetInfo,
    batch_size: int,
    seed: int,
    epoch: int,
    skip_batches: int = 0,
    split: str = "train",
) -> tf.data.Dataset:
    """One epoch of a split: every clip once, shuffled, in batches.

    Args:
      data_dir: a committed dataset.
      info: its dataset_info.
      batch_size: clips per batch (B); the last batch is filled up to it.
      seed: of the order.
      epoch: of the order; each has its own.
      skip_batches: leave out that many from the start, without decoding them.
      split: which clips.

    Returns:
      A finite dataset of ({"frames": uint8 [B, T, H, W, 3], "mask": bool [B, T]}, label int32 [B], weight
      float32 [B]). `mask` is True for a real frame, always first in its row; rows that only fill the last
      batch have weight 0, one real (black) frame and label 0.

    Raises:
      ShardError: a shard is missing or of another size, or the split is empty.
    """
    paths = tf.constant(shard_paths(data_dir, info, split))
    examples = in_epoch_order(
        lambda shard: tf.data.TFRecordDataset(paths[shard]),
        info,
        split,
        seed,
        epoch,
        skip_batches * batch_size,
    )
    return _batches(examples, info, batch_size)


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
    # Shuffle before skip and before decoding: what moves and what is dropped is bytes.
    clips = clips.shuffle(
        min(num_clips, _SHUFFLED_CLIPS), seed=int(random.integers(2**31)), reshuffle_each_iteration=False
    )
    return clips.apply(tf.data.experimental.assert_cardinality(num_clips)).skip(skip_clips)


def eval_dataset(data_dir: str, info: DatasetInfo, batch_size: int, split: str) -> tf.data.Dataset:
    """Every clip of a split once, in the order of its records.

    Args, batches and errors are those of `train_dataset`. Row i of the dataset is row i of
    `shards.clip_rows(data_dir, split)`.
    """
    examples = tf.data.TFRecordDataset(shard_paths(data_dir, info, split))
    examples = examples.apply(tf.data.experimental.assert_cardinality(info.num_clips(split)))
    return _batches(examples, info, batch_size)


def centre_crop(frames: tf.Tensor, spec: ClipSpec) -> tf.Tensor:
    """Cuts the middle of the stored frames, for training, evaluation and prediction alike.

    Args:
      frames: uint8 [n, H, W, 3], at least as high and wide as `spec` says.
      spec: the height and width that the model takes.

    Returns:
      uint8 [n, height, width, 3].
    """
    top = (tf.shape(frames)[1] - spec.height) // 2
    left = (tf.shape(frames)[2] - spec.width) // 2
    middle = frames[:, top : top + spec.height, left : left + spec.width]
    return tf.ensure_shape(middle, [None, spec.height, spec.width, 3])


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


def _batches(examples: tf.data.Dataset, info: DatasetInfo, batch_size: int) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    batches = examples.map(_clip_reader(info.encoding, info.clip.spec), num_parallel_calls=tf.data.AUTOTUNE)
    batches = batches.batch(batch_size).map(fill_batch(batch_size))
    return batches.prefetch(_PREFETCHED_BATCHES).with_options(options)


def _clip_reader(encoding: str, spec: ClipSpec) -> Callable:
    def read(example: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        clip = records.parse_clip(example)
        frames = records.decode_frames(clip["encoded_frames"], encoding, clip["height"], clip["width"])
        frames, mask = pad_clip(centre_crop(frames, spec), spec.num_frames)
        return {"frames": frames, "mask": mask}, clip["label"], tf.constant(1.0)

    return read


def fill_batch(batch_size: int) -> Callable:
    """A map function that fills a short batch to `batch_size`: one shape, so one traced step.

    It takes and gives (inputs with a "mask" [b, T], label [b], weight [b]); the rows it adds are zero but for
    the first step of their mask, which is True: cuDNN's LSTM fails on a row without one.
    """

    def fill(
        inputs: dict[str, tf.Tensor], label: tf.Tensor, weight: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        missing = batch_size - tf.shape(label)[0]

        def lengthen(values: tf.Tensor) -> tf.Tensor:
            padded = tf.pad(values, [[0, missing]] + [[0, 0]] * (values.shape.rank - 1))
            return tf.ensure_shape(padded, [batch_size, *values.shape[1:]])

        is_filler = tf.range(batch_size) >= tf.shape(label)[0]
        filled = {name: lengthen(values) for name, values in inputs.items()}
        first = tf.range(filled["mask"].shape[1]) == 0
        filled["mask"] |= is_filler[:, tf.newaxis] & first[tf.newaxis, :]
        return filled, lengthen(label), lengthen(weight)

    return fill
