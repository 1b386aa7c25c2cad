"""The feature cache: the output of the frozen blocks, computed once per clip and read from disk afterwards.

The cache is a folder beside the shards, or in the run's folder if these are remote or read-only. Its name
contains a digest of everything that determines its numbers: the dataset, the frozen weights and the
precision. Clips are computed in chunks, and `chunks.json` holds the digests of the chunks on disk: an
interrupted computation resumes after the last complete chunk, and a chunk that has become corrupt is computed
again.

All stored frames are cached; `vidpipe.model.feature_dataset` samples frames and orders clips in each epoch.
"""

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

import keras
import numpy as np
from filelock import FileLock, Timeout

from vidpipe.config import TrainConfig, fingerprint
from vidpipe.data.dataset import Dataset
from vidpipe.data.input_pipeline import eval_dataset
from vidpipe.errors import VidpipeError
from vidpipe.model.frame_encoder import FrameEncoder
from vidpipe.progress import Progress
from vidpipe.storage import remote
from vidpipe.storage.files import write_text

_log = logging.getLogger(__name__)
_FOLDER = "features"
_CHUNKS_NAME = "chunks.json"
_IN_USE_NAME = "in_use"
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
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
    frozen: FrameEncoder,
    dataset: Dataset,
    *,
    split: str,
    cache_dirs: Sequence[str],
    cache_gb: float = TrainConfig.cache_gb,
) -> FeatureTable:
    """Reads the cached features of a split, after computing the chunks that are missing or corrupt.

    Args:
      frozen: `FusedModel.frozen`, or `fused.feature_encoder` of a model that takes all stored frames.
      dataset: an open dataset.
      split: which clips.
      cache_dirs: local folders for the cache; a later one is used where those before it are read-only and do
        not have the features.
      cache_gb: disk space in GiB that the features of all runs may take in that folder. The features that
        were not used for the longest time are deleted first.

    Raises:
      FeatureCacheError: the cache cannot be written, features in use take too much space, a feature is
        non-finite, or float16 cannot hold a value of a feature map.
    """
    name, layout = f"{split}-{_key(frozen, dataset)}", _layout(frozen, dataset, split)

    def fill(folder: Path) -> FeatureTable:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # If two runs start at the same time, the second waits here and reads what the first has computed.
        with FileLock(f"{folder}.lock"):
            folder.mkdir(exist_ok=True)  # under the lock: another run may delete it to make room
            in_use = _hold(folder)
            _make_room(folder, _num_bytes(layout), cache_gb=cache_gb)
            chunks = _Chunks(folder, layout)
            if chunks.first_missing is not None:
                try:
                    _compute(frozen, dataset, chunks, split=split)
                except FeatureCacheError:
                    shutil.rmtree(folder)
                    raise
            table = _open_table(folder, layout)
            weakref.finalize(table.features, in_use.close)
            return table

    folder, table = _first_writable([Path(each) / _FOLDER / name for each in cache_dirs], layout, fill)
    shape = " x ".join(str(size) for size in table.features.shape[1:])
    _log.info(
        "Features of %s: %d clips of %s %s, %.1f MB in %s.",
        split, len(table.label), shape, table.features.dtype, _num_bytes(layout) / 1e6, folder,
    )  # fmt: skip
    return table


def cache_dirs(dataset: Dataset, run_dir: str) -> list[str]:
    """Returns the folders for features of a run: beside the shards unless they are remote, and in its own."""
    beside_shards = [] if remote.is_remote(dataset.read_dir) else [dataset.read_dir]
    return [*beside_shards, run_dir]


def _first_writable(
    folders: Sequence[Path], layout: _Layout, fill: Callable[[Path], FeatureTable]
) -> tuple[Path, FeatureTable]:
    """Fills a table in the first folder that can be written; one before it may have a complete table."""
    folder, *others = folders
    try:
        return folder, fill(folder)
    except OSError as error:
        is_read_only = error.errno in _READ_ONLY
        table = _read_only_table(folder, layout) if is_read_only else None
        if table is not None:
            return folder, table
        if not (is_read_only and others):
            raise FeatureCacheError(
                f"Cannot write features to {folder.parent} ({error.strerror}). Free disk space or make the "
                "folder writable, or run the backbone in every epoch with --cache_features=off."
            ) from error
    _log.info("%s is read-only: features are kept in %s.", folder.parent, others[0].parent)
    return _first_writable(others, layout, fill)


def _read_only_table(folder: Path, layout: _Layout) -> FeatureTable | None:
    """Opens a table in a folder that cannot be written; None where it is missing, incomplete or corrupt."""
    try:
        chunks = _Chunks(folder, layout, table=_open_table(folder, layout))
    except (OSError, ValueError):
        return None
    fits = all((array.shape, array.dtype) == layout[name] for name, array in vars(chunks.table).items())
    return chunks.table if fits and chunks.first_missing is None else None


def _open_table(folder: Path, layout: _Layout) -> FeatureTable:
    return FeatureTable(**{name: np.load(_path(folder, name), mmap_mode="r") for name in layout})


def _hold(folder: Path) -> BinaryIO:
    """Marks features as in use until the file is closed, also by the end of the process."""
    file = (folder / _IN_USE_NAME).open("ab")
    os.utime(file.fileno())
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def _make_room(folder: Path, needed_bytes: int, *, cache_gb: float) -> None:
    """Deletes the features that were not used for the longest time until `folder` may have its size.

    Raises:
      FeatureCacheError: the others are in use.
    """
    key = folder.name.partition("-")[2]
    sizes = {
        other: sum(path.stat().st_size for path in other.glob("*"))
        for other in folder.parent.iterdir()
        if other.is_dir() and other != folder
    }
    excess = sum(sizes.values()) + needed_bytes - int(cache_gb * 2**30)
    for other in sorted(sizes, key=_last_used):
        if excess > 0 and other.name.partition("-")[2] != key and _delete_unless_in_use(other):
            _log.info(
                "Deleted the features %s, the oldest of %s: together they may take %g GiB (cache_gb).",
                other.name, folder.parent, cache_gb,
            )  # fmt: skip
            excess -= sizes[other]
    if excess > 0:
        raise FeatureCacheError(
            f"The features need {needed_bytes / 2**30:.1f} GiB, and other trainings use "
            f"{(sum(sizes.values())) / 2**30:.1f} GiB of features in {folder.parent}; cache_gb is "
            f"{cache_gb:g}. Wait for them, give a larger --cache_gb, or --cache_features=off."
        )


def _last_used(folder: Path) -> float:
    mark = folder / _IN_USE_NAME
    return (mark if mark.exists() else folder).stat().st_mtime


def _delete_unless_in_use(folder: Path) -> bool:
    try:
        with FileLock(f"{folder}.lock", timeout=0), (folder / _IN_USE_NAME).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    except (Timeout, BlockingIOError):
        return False
    return True


def size_bytes(frozen: FrameEncoder, dataset: Dataset, splits: Iterable[str]) -> int:
    """Returns the disk space of the cached features of some splits, except for a few kilobytes.

    Args:
      frozen: `FusedModel.frozen`.
      dataset: an open dataset.
      splits: which clips.
    """
    return sum(_num_bytes(_layout(frozen, dataset, split)) for split in splits)


class _Chunks:
    """The files of a FeatureTable, as chunks of clips that are committed one by one.

    Args:
      folder: of the files.
      layout: of the table.
      table: None opens it for writing, and makes it where it is missing.
    """

    def __init__(self, folder: Path, layout: _Layout, table: FeatureTable | None = None) -> None:
        self.folder = folder
        self.table = table or FeatureTable(
            **{name: _open_array(_path(folder, name), *layout[name]) for name in layout}
        )
        self.num_clips = len(self.table.label)
        # By chunk; None if the chunk is missing or corrupt.
        self._digests = self._verified_digests()

    @property
    def first_missing(self) -> int | None:
        """The index of the first clip whose chunk is missing or corrupt; None if all chunks are intact."""
        return self._digests.index(None) * _CHUNK_CLIPS if None in self._digests else None

    @property
    def end_of_missing(self) -> int:
        """The index of the clip after the last chunk that is missing or corrupt."""
        missing = [number for number, digests in enumerate(self._digests) if digests is None]
        return min(self.num_clips, (max(missing, default=-1) + 1) * _CHUNK_CLIPS)

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


def _compute(frozen: FrameEncoder, dataset: Dataset, chunks: _Chunks, *, split: str) -> None:
    """Computes and writes all chunks that are missing or corrupt."""
    # Clips of a batch: as many as a call takes, and a divisor of a chunk, which is a power of two.
    batch_size = min(_CHUNK_CLIPS, 1 << frozen.clips_per_call.bit_length() - 1)
    start, stop = chunks.first_missing or 0, chunks.end_of_missing
    batches = eval_dataset(
        dataset, batch_size=batch_size, split=split, num_frames=dataset.clip.num_frames, skip_clips=start
    )
    written: Future[None] | None = None
    # Written and hashed in a thread: feature maps take a GPU less time than their digests a processor.
    with (
        Progress(f"Features of {split}", chunks.num_clips - start, "clips") as progress,
        ThreadPoolExecutor(1) as writer,
    ):
        for inputs, label, _ in batches:
            # The last batch is filled up to batch_size.
            num_clips = min(batch_size, chunks.num_clips - start)
            if not chunks.has(start):
                frames, mask = (inputs[name].numpy()[:num_clips] for name in ("frames", "mask"))
                features = frozen(frames, mask)
                if written is not None:
                    written.result()
                _check_range(features, chunks.table.features.dtype, dataset.video_ids(split)[start:])
                written = writer.submit(chunks.write, start, features, mask, label.numpy()[:num_clips])
            progress.advance(num_clips)
            start += num_clips
            if start >= stop:
                break
        if written is not None:
            written.result()


def _check_range(features: np.ndarray, dtype: np.dtype, video_ids: Sequence[str]) -> None:
    """Checks the features of consecutive clips, of which the first `video_ids` are the names."""
    largest = np.abs(features).reshape(len(features), -1).max(axis=1).astype(np.float64)
    clip = int((largest if np.isfinite(largest).all() else ~np.isfinite(largest)).argmax())
    if not np.isfinite(largest[clip]):
        raise FeatureCacheError(
            f"The features of {video_ids[clip]} are NaN or Inf. Check the weights of the backbone, or try "
            "--precision=float32."
        )
    if dtype == np.float16 and largest[clip] > np.finfo(dtype).max:
        raise FeatureCacheError(
            f"A feature map of {video_ids[clip]} contains the value {largest[clip]:g}, but the cache stores "
            f"float16, at most {np.finfo(dtype).max:g}. Run the backbone in every epoch with "
            "--cache_features=off."
        )


def _layout(frozen: FrameEncoder, dataset: Dataset, split: str) -> _Layout:
    num_clips = dataset.num_clips(split)
    clip_shape = frozen.clip_shape
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


def _key(frozen: FrameEncoder, dataset: Dataset) -> str:
    """Returns the digest of everything that determines the features, besides the split."""
    weights = hashlib.sha256()
    for weight in frozen.network.weights:
        weights.update(np.ascontiguousarray(weight.numpy()).tobytes())
    # Of the layers: a model.keras has the precision that it was trained in, whatever the policy in force.
    policies = {layer.dtype_policy.name for layer in _layers_with_weights(frozen.network)}
    settings = [dataset.info.fingerprint, weights.hexdigest(), "+".join(sorted(policies))]
    if len(frozen.network.inputs) > 1:
        settings.append("pixel differences")
    return fingerprint(settings)[:16]


def _layers_with_weights(model: keras.Model) -> Iterator[keras.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers_with_weights(layer)
        elif layer.weights:
            yield layer
