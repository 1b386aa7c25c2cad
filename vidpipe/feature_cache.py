"""What the frozen part of a backbone gives, computed once per clip and read from disk in every epoch after.

The cache lies beside the shards, or with the run where those are remote, in a folder named by digests of all
that decides its numbers: the dataset, the frozen weights and the precision. It is computed in parts of some
clips, and `parts.json` holds the digests of those that are on the disk: a computation that is killed goes on
there, and a part that was damaged since is computed again. All stored frames are in it; which of them a run
draws, and in which order an epoch's clips come, is as `train_dataset` has it.
"""

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from filelock import FileLock

from vidpipe import augment
from vidpipe.config import fingerprint
from vidpipe.input_pipeline import eval_dataset, full_batches, places_in_epoch_order
from vidpipe.progress import Progress
from vidpipe.shards import DatasetInfo, write_text
from vidpipe.spec import VidpipeError

_FOLDER = "features"
_PARTS_NAME = "parts.json"
_PART_CLIPS = 64
_CHECKING_THREADS = 4
_PREFETCHED_BATCHES = 2
# A clip's place among those of the split, int64 [], and which of its stored frames, int32 [T].
_View = tuple[tf.Tensor, tf.Tensor]
_log = logging.getLogger(__name__)


class FeatureCacheError(VidpipeError):
    """The features cannot be kept on disk."""


@dataclass(frozen=True)
class FeatureTable:
    """What the frozen part gives for a split, in the order of its records; mapped from disk.

    Attributes:
      features: of all S stored frames, float32 [N, S, D], or float16 feature maps [N, S, ...]; zero where the
        mask is False.
      mask: bool [N, S].
      label: int32 [N].
    """

    features: np.ndarray
    mask: np.ndarray
    label: np.ndarray


def cached_features(
    frozen: keras.Model,
    data_dir: str,
    info: DatasetInfo,
    split: str,
    batch_size: int,
    kept_in: str | None = None,
) -> FeatureTable:
    """Reads what the frozen part gives for a split, after computing what of it is missing or damaged.

    Args:
      frozen: {"frames", "mask"} -> [B, S, ...], `FusedModel.frozen`.
      data_dir: a committed dataset.
      info: its dataset_info.
      split: which clips.
      batch_size: clips per call of the frozen part, a power of 2 up to 64.
      kept_in: a local folder, writable; None is `data_dir`.

    Raises:
      FeatureCacheError: the folder of the features cannot be written, or float16 cannot hold a feature map.
    """
    if _PART_CLIPS % batch_size:
        raise ValueError(f"Parts have {_PART_CLIPS} clips, which batches of {batch_size} do not fill.")
    folder = Path(data_dir if kept_in is None else kept_in) / _FOLDER / f"{split}-{_key(frozen, info)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two runs may start at once: the second waits, and reads what the first computed.
        with FileLock(f"{folder}.lock"):
            layout = _layout(frozen, info, split)
            files = {name: folder / f"{name}.npy" for name in layout}
            table = FeatureTable(**{name: _map(files[name], *layout[name]) for name in layout})
            digests = _sound_parts(folder, table)
            if None in digests:
                _compute(
                    frozen,
                    lambda start: eval_dataset(data_dir, info, batch_size, split, skip_clips=start),
                    split,
                    folder,
                    table,
                    digests,
                )
            table = FeatureTable(**{name: np.load(files[name], mmap_mode="r") for name in layout})
    except OSError as error:
        raise FeatureCacheError(
            f"Cannot write features to {folder.parent} ({error.strerror}). Make room, or the folder "
            "writable, or run the backbone in every epoch with --cache_features=off."
        ) from error
    shape = " x ".join(str(size) for size in table.features.shape[1:])
    _log.info(
        "Features of %s: %d clips of %s %s, %.1f MB in %s.",
        split, len(table.label), shape, table.features.dtype, size_bytes(frozen, info, [split]) / 1e6, folder,
    )  # fmt: skip
    return table


def size_bytes(frozen: keras.Model, info: DatasetInfo, splits: Iterable[str]) -> int:
    """The bytes that `cached_features` takes on disk for some splits, to within a few thousand.

    Args:
      frozen: as `cached_features` takes it.
      info: the dataset.
      splits: of it.
    """
    return sum(
        math.prod(shape) * dtype.itemsize
        for split in splits
        for shape, dtype in _layout(frozen, info, split).values()
    )


def train_feature_dataset(
    table: FeatureTable,
    info: DatasetInfo,
    video_ids: Sequence[str],
    batch_size: int,
    seed: int,
    epoch: int,
    skip_batches: int = 0,
    num_frames: int | None = None,
) -> tf.data.Dataset:
    """One epoch of cached features, clip for clip and frame for frame the epoch of `train_dataset`.

    Args:
      table: features of `train`.
      info: the dataset; an epoch mixes its clips by shards.
      video_ids: of the table's clips, by which frames are drawn.
      batch_size: B.
      seed: of the order and of the frames that are drawn.
      epoch: likewise.
      skip_batches: left out from the start.
      num_frames: T frames are drawn of each clip; None takes all that are stored.

    Returns:
      A finite dataset of ({"features": [B, T, ...] as in the table, "mask": bool [B, T]}, label int32 [B],
      weight float32 [B]), the last batch filled up.
    """
    places = places_in_epoch_order(info, "train", seed, epoch, skip_batches * batch_size)
    if num_frames is None:
        return _batches(_whole(places, table), table, len(table.label), batch_size, skip_batches)
    counts, names = tf.constant(_counts(table)), tf.constant(video_ids)

    def draw(place: tf.Tensor) -> _View:
        seeds = augment.clip_seeds(seed, epoch, names[place])
        positions = augment.segment_positions(counts[place], num_frames, seeds[0])
        return place, _padded(positions, counts[place], num_frames)

    drawn = places.map(draw, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return _batches(drawn, table, len(table.label), batch_size, skip_batches)


def eval_feature_dataset(
    table: FeatureTable, batch_size: int, num_frames: int | None = None, num_clips: int = 1
) -> tf.data.Dataset:
    """Cached features in the order of the records, the views of a clip in turn, as `eval_dataset` gives them.

    Args:
      table: of any split.
      batch_size: views per batch (B).
      num_frames: frames of each view (T), evenly spread; None takes all that are stored.
      num_clips: views of each clip in time.

    Returns:
      Batches as those of `train_feature_dataset`.
    """
    places = tf.data.Dataset.range(len(table.label))
    if num_frames is None and num_clips == 1:
        return _batches(_whole(places, table), table, len(table.label), batch_size)
    counts = tf.constant(_counts(table))
    view_frames = table.mask.shape[1] if num_frames is None else num_frames

    def view(number: tf.Tensor, place: tf.Tensor) -> _View:
        positions = augment.view_positions(counts[place], view_frames, tf.cast(number, tf.int32), num_clips)
        return place, _padded(positions, counts[place], view_frames)

    numbered = places.flat_map(
        lambda place: tf.data.Dataset.from_tensors(place).repeat(num_clips).enumerate()
    )
    return _batches(numbered.map(view), table, num_clips * len(table.label), batch_size)


def _whole(places: tf.data.Dataset, table: FeatureTable) -> tf.data.Dataset:
    """Each clip's place with all stored frames; quicker to trace, in every epoch, than a view that is all."""
    return places.map(lambda place: (place, tf.range(table.mask.shape[1])))


def _counts(table: FeatureTable) -> np.ndarray:
    """How many frames of each clip are real, int32 [N]."""
    return table.mask.sum(axis=1, dtype=np.int32)


def _padded(positions: tf.Tensor, count: tf.Tensor, num_frames: int) -> tf.Tensor:
    """Positions of a clip's frames, int32 [T]. Fewer than T are all, and the one behind them is padding."""
    missing = num_frames - tf.size(positions)
    return tf.ensure_shape(tf.concat([positions, tf.fill([missing], count)], axis=0), [num_frames])


def _batches(
    views: tf.data.Dataset, table: FeatureTable, num_views: int, batch_size: int, skip_batches: int = 0
) -> tf.data.Dataset:
    """Looks up batches of places and frames. A filler has the place -1, and weighs nothing."""
    num_frames = views.element_spec[1].shape[0]
    shape = (num_frames, *table.features.shape[2:])

    def take(
        chosen: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        real = chosen >= 0
        frames = chosen[:, np.newaxis], positions
        mask = np.where(real[:, np.newaxis], table.mask[frames], np.arange(num_frames) < 1)
        return table.features[frames], mask, table.label[chosen] * real, real.astype(np.float32)

    def look_up(chosen: tf.Tensor, positions: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        dtypes = (tf.as_dtype(table.features.dtype), tf.bool, tf.int32, tf.float32)
        found = tf.numpy_function(take, [chosen, positions], dtypes)
        shapes = (shape, shape[:1], (), ())
        features, mask, label, weight = (
            tf.ensure_shape(values, [batch_size, *rest]) for values, rest in zip(found, shapes, strict=True)
        )
        return {"features": features, "mask": mask}, label, weight

    filler = tf.constant(-1, tf.int64), tf.zeros([num_frames], tf.int32)
    num_batches = math.ceil(num_views / batch_size) - skip_batches
    return full_batches(views, filler, num_batches, batch_size).map(look_up).prefetch(_PREFETCHED_BATCHES)


def _layout(
    frozen: keras.Model, info: DatasetInfo, split: str
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of each field of the FeatureTable."""
    num_clips = info.num_clips(split)
    clip_shape = frozen.output.shape[1:]
    # Features are few and keep every bit; feature maps are many, and float16 is as fine as bfloat16 is.
    dtype = np.float32 if len(clip_shape) == 2 else np.float16
    return {
        "features": ((num_clips, *clip_shape), np.dtype(dtype)),
        "mask": ((num_clips, clip_shape[0]), np.dtype(bool)),
        "label": ((num_clips,), np.dtype(np.int32)),
    }


def _map(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Maps a file for writing; one that is missing, damaged or of another shape is made anew."""
    try:
        kept = np.lib.format.open_memmap(path, mode="r")
        if (kept.shape, kept.dtype) == (shape, dtype):
            return np.lib.format.open_memmap(path, mode="r+")
    except (FileNotFoundError, ValueError):  # the latter is what numpy calls a file cut short or damaged
        pass
    try:
        made = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        # The file has a hole for each page. A write there that finds the disk full would kill the process.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return made
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _sound_parts(folder: Path, table: FeatureTable) -> list[dict[str, str] | None]:
    """The digests of each part that is on the disk as it was written, None for the others."""
    num_parts = math.ceil(len(table.label) / _PART_CLIPS)
    try:
        written = json.loads((folder / _PARTS_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        written = []
    if not isinstance(written, list) or len(written) != num_parts:
        return [None] * num_parts
    with ThreadPoolExecutor(_CHECKING_THREADS) as threads:
        found = list(threads.map(lambda part: written[part] and _digests(table, part), range(num_parts)))
    for name in (field.name for field in fields(table)):
        damaged = sum(
            known != now and known.get(name) != now[name] for known, now in zip(written, found, strict=True)
        )
        if damaged:
            _log.warning(
                "%s is damaged in %d of its %d parts; these are computed again.",
                folder / f"{name}.npy", damaged, num_parts,
            )  # fmt: skip
    return [now if known == now else None for known, now in zip(written, found, strict=True)]


def _digests(table: FeatureTable, part: int) -> dict[str, str]:
    """The sha256 of a part of each field."""
    clips = slice(part * _PART_CLIPS, (part + 1) * _PART_CLIPS)
    return {
        field.name: hashlib.sha256(getattr(table, field.name)[clips]).hexdigest() for field in fields(table)
    }


def _compute(
    frozen: keras.Model,
    batches_from: Callable[[int], tf.data.Dataset],
    split: str,
    folder: Path,
    table: FeatureTable,
    digests: list[dict[str, str] | None],
) -> None:
    """Fills in the parts that have no digests; each is committed before the next is begun.

    `batches_from` gives the batches of `eval_dataset` behind so many clips.
    """
    num_clips, dtype = len(table.label), table.features.dtype

    @tf.function
    def encode(inputs: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        features = frozen(inputs, training=False)
        return tf.cast(features, dtype), tf.reduce_max(tf.abs(features))

    first = digests.index(None) * _PART_CLIPS
    start = first
    with Progress(f"Features of {split}", num_clips - first, "clips") as progress:
        for inputs, label, _ in batches_from(first):
            part, stop = start // _PART_CLIPS, min(start + len(label), num_clips)
            if digests[part] is None:
                features, largest = encode(inputs)
                if dtype == np.float16 and float(largest) > float(np.finfo(dtype).max):
                    shutil.rmtree(folder)
                    raise FeatureCacheError(
                        f"A feature map holds {float(largest):g}, more than the float16 it would be kept in "
                        "can. Run the backbone in every epoch with --cache_features=off."
                    )
                for values, array in (
                    (features, table.features), (inputs["mask"], table.mask), (label, table.label),
                ):  # fmt: skip
                    array[start:stop] = values.numpy()[: stop - start]
                if stop % _PART_CLIPS == 0 or stop == num_clips:
                    _commit(folder, table, part, digests)
            progress.advance(stop - start)
            start = stop
            if None not in digests:
                break


def _commit(folder: Path, table: FeatureTable, part: int, digests: list[dict[str, str] | None]) -> None:
    for field in fields(table):
        getattr(table, field.name).flush()
    digests[part] = _digests(table, part)
    write_text(folder / _PARTS_NAME, json.dumps(digests))


def _key(frozen: keras.Model, info: DatasetInfo) -> str:
    weights = hashlib.sha256()
    for weight in frozen.weights:
        weights.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return fingerprint([info.fingerprint, weights.hexdigest(), frozen.dtype_policy.name])[:16]
