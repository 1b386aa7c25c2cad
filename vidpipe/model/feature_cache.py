"""The feature cache: the output of the frozen blocks, computed once per clip and read from disk afterwards.

The cache is a folder beside the shards, or in the run's folder if the shards are remote. Its name contains a
digest of everything that determines its numbers: the dataset, the frozen weights and the precision. Clips are
computed in chunks, and `chunks.json` holds the digests of the chunks on disk: an interrupted computation
resumes after the last complete chunk, and a chunk that has become corrupt is computed again.

All stored frames are cached; `vidpipe.model.feature_dataset` samples frames and orders clips in each epoch.
"""

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from filelock import FileLock

from vidpipe.config import fingerprint
from vidpipe.data.dataset import Dataset
from vidpipe.data.input_pipeline import eval_dataset
from vidpipe.errors import VidpipeError
from vidpipe.progress import Progress
from vidpipe.storage.files import write_text

_log = logging.getLogger(__name__)
_FOLDER = "features"
_CHUNKS_NAME = "chunks.json"
_CHUNK_CLIPS = 64
_VERIFYING_THREADS = 4
# Shape and dtype of each field of a FeatureTable.
_Layout = dict[str, tuple[tuple[int, ...], np.dtype]]


class FeatureCacheError(VidpipeError):
    """The features cannot be stored on disk."""


@dataclass(frozen=True)
class FeatureTable:
    """The output of the frozen blocks for a split, in the order of its records; memory-mapped files.

    Attributes:
      features: float32 [clips, S, D], or float16 feature maps [clips, S, h, w, c]; zero for padding frames.
      mask: bool [clips, S].
      label: int32 [clips].
    """

    features: np.ndarray
    mask: np.ndarray
    label: np.ndarray


def cached_features(
    frozen: keras.Model, dataset: Dataset, *, split: str, batch_size: int, cache_dir: str | None = None
) -> FeatureTable:
    """Reads the cached features of a split, after computing the chunks that are missing or corrupt.

    Args:
      frozen: `FusedModel.frozen`.
      dataset: an open dataset.
      split: which clips.
      batch_size: clips per forward pass, a divisor of 64.
      cache_dir: a local folder for the cache; None takes the dataset's own.

    Raises:
      FeatureCacheError: the cache cannot be written, or float16 cannot hold a value of a feature map.
    """
    if _CHUNK_CLIPS % batch_size:
        raise ValueError(f"batch_size must be a divisor of {_CHUNK_CLIPS}; got {batch_size}.")
    parent = Path(dataset.read_dir if cache_dir is None else cache_dir) / _FOLDER
    folder = parent / f"{split}-{_key(frozen, dataset)}"
    layout = _layout(frozen, dataset, split)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # If two runs start at the same time, the second waits here and reads what the first has computed.
        with FileLock(f"{folder}.lock"):
            chunks = _Chunks(folder, layout)
            if chunks.first_missing is not None:
                _compute(frozen, dataset, chunks, split=split, batch_size=batch_size)
            table = FeatureTable(**{name: np.load(_path(folder, name), mmap_mode="r") for name in layout})
    except OSError as error:
        raise FeatureCacheError(
            f"Cannot write features to {parent} ({error.strerror}). Free disk space or make the folder "
            "writable, or run the backbone in every epoch with --cache_features=off."
        ) from error
    shape = " x ".join(str(size) for size in table.features.shape[1:])
    _log.info(
        "Features of %s: %d clips of %s %s, %.1f MB in %s.",
        split, len(table.label), shape, table.features.dtype, _num_bytes(layout) / 1e6, folder,
    )  # fmt: skip
    return table


def size_bytes(frozen: keras.Model, dataset: Dataset, splits: Iterable[str]) -> int:
    """Returns the disk space of the cached features of some splits, except for a few kilobytes.

    Args:
      frozen: `FusedModel.frozen`.
      dataset: an open dataset.
      splits: which clips.
    """
    return sum(_num_bytes(_layout(frozen, dataset, split)) for split in splits)


class _Chunks:
    """The files of a FeatureTable, open for writing, as chunks of clips that are committed one by one."""

    def __init__(self, folder: Path, layout: _Layout) -> None:
        self.folder = folder
        self.table = FeatureTable(
            **{name: _open_array(_path(folder, name), *layout[name]) for name in layout}
        )
        self.num_clips = len(self.table.label)
        # By chunk; None if the chunk is missing or corrupt.
        self._digests = self._verified_digests()

    @property
    def first_missing(self) -> int | None:
        """The index of the first clip whose chunk is missing or corrupt; None if all chunks are intact."""
        return self._digests.index(None) * _CHUNK_CLIPS if None in self._digests else None

    def has(self, clip: int) -> bool:
        """Whether the chunk of a clip is on disk and intact."""
        return self._digests[clip // _CHUNK_CLIPS] is not None

    def write(self, start: int, features: np.ndarray, mask: np.ndarray, label: np.ndarray) -> None:
        """Writes consecutive clips of one chunk, and commits the chunk with its last clip."""
        stop = start + len(label)
        self.table.features[start:stop] = features
        self.table.mask[start:stop] = mask
        self.table.label[start:stop] = label
        if stop % _CHUNK_CLIPS == 0 or stop == self.num_clips:
            for field in fields(self.table):
                getattr(self.table, field.name).flush()
            chunk = start // _CHUNK_CLIPS
            self._digests[chunk] = self._compute_digests(chunk)
            write_text(self.folder / _CHUNKS_NAME, json.dumps(self._digests))

    def _verified_digests(self) -> list[dict[str, str] | None]:
        num_chunks = math.ceil(self.num_clips / _CHUNK_CLIPS)
        try:
            recorded = json.loads((self.folder / _CHUNKS_NAME).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            recorded = []
        if not isinstance(recorded, list) or len(recorded) != num_chunks:
            return [None] * num_chunks
        with ThreadPoolExecutor(_VERIFYING_THREADS) as threads:
            found = list(
                threads.map(lambda chunk: recorded[chunk] and self._compute_digests(chunk), range(num_chunks))
            )
        for name in (field.name for field in fields(self.table)):
            num_corrupt = sum(
                old != new and old.get(name) != new[name] for old, new in zip(recorded, found, strict=True)
            )
            if num_corrupt:
                _log.warning(
                    "%s: %d of %d chunks are corrupt and will be computed again.",
                    _path(self.folder, name), num_corrupt, num_chunks,
                )  # fmt: skip
        return [new if old == new else None for old, new in zip(recorded, found, strict=True)]

    def _compute_digests(self, chunk: int) -> dict[str, str]:
        """Computes the sha256 of a chunk, for each field."""
        clips = slice(chunk * _CHUNK_CLIPS, (chunk + 1) * _CHUNK_CLIPS)
        return {
            field.name: hashlib.sha256(getattr(self.table, field.name)[clips]).hexdigest()
            for field in fields(self.table)
        }


def _compute(frozen: keras.Model, dataset: Dataset, chunks: _Chunks, *, split: str, batch_size: int) -> None:
    """Computes and writes all chunks that are missing or corrupt."""
    dtype = chunks.table.features.dtype

    @tf.function
    def encode(inputs: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        features = frozen(inputs, training=False)
        return tf.cast(features, dtype), tf.reduce_max(tf.abs(features))

    start = chunks.first_missing or 0
    batches = eval_dataset(
        dataset, batch_size=batch_size, split=split, num_frames=dataset.clip.num_frames, skip_clips=start
    )
    with Progress(f"Features of {split}", chunks.num_clips - start, "clips") as progress:
        for inputs, label, _ in batches:
            # The last batch is filled up to batch_size.
            num_clips = min(batch_size, chunks.num_clips - start)
            if not chunks.has(start):
                features, largest = encode(inputs)
                if dtype == np.float16 and float(largest) > float(np.finfo(dtype).max):
                    shutil.rmtree(chunks.folder)
                    raise FeatureCacheError(
                        f"A feature map contains the value {float(largest):g}, but the cache stores float16, "
                        f"at most {np.finfo(dtype).max:g}. Run the backbone in every epoch with "
                        "--cache_features=off."
                    )
                chunks.write(
                    start, *(values.numpy()[:num_clips] for values in (features, inputs["mask"], label))
                )
            progress.advance(num_clips)
            start += num_clips
            if chunks.first_missing is None:
                break


def _layout(frozen: keras.Model, dataset: Dataset, split: str) -> _Layout:
    num_clips = dataset.num_clips(split)
    clip_shape = frozen.output.shape[1:]
    # Features are small and stay exact. Feature maps are large; float16 is more precise than bfloat16.
    dtype = np.float32 if len(clip_shape) == 2 else np.float16
    return {
        "features": ((num_clips, *clip_shape), np.dtype(dtype)),
        "mask": ((num_clips, clip_shape[0]), np.dtype(bool)),
        "label": ((num_clips,), np.dtype(np.int32)),
    }


def _num_bytes(layout: _Layout) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())


def _path(folder: Path, field: str) -> Path:
    return folder / f"{field}.npy"


def _open_array(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Maps a file for writing; creates it if it is missing, corrupt or of another shape."""
    try:
        found = np.lib.format.open_memmap(path, mode="r")
        if (found.shape, found.dtype) == (shape, dtype):
            return np.lib.format.open_memmap(path, mode="r+")
    except (FileNotFoundError, ValueError):  # NumPy raises the latter for a corrupt or truncated file
        pass
    try:
        created = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        # Allocate the disk space now: the file is sparse, and a write on a full disk kills the process.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return created
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _key(frozen: keras.Model, dataset: Dataset) -> str:
    """Returns the digest of everything that determines the features, besides the split."""
    weights = hashlib.sha256()
    for weight in frozen.weights:
        weights.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return fingerprint([dataset.info.fingerprint, weights.hexdigest(), frozen.dtype_policy.name])[:16]
