"""The features that enter a trained model's head, as files for other programs."""

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from vidpipe import evaluate, input_pipeline, remote, shards, verify
from vidpipe.export import ExportError, open_run
from vidpipe.model import feature_extractor
from vidpipe.progress import Progress


@dataclass(frozen=True)
class _Batch:
    """Some clips: their video_ids, label int32 [n], features float32 [n, T, D] and mask bool [n, T]."""

    video_ids: list[str]
    label: np.ndarray
    features: np.ndarray
    mask: np.ndarray


def export_features(
    run_dir: str, data_dir: str, split: str, path: str, batch_size: int = 8, cache_dir: str | None = None
) -> tuple[int, int, int]:
    """Runs the backbone of a run's `model.keras` over a split and writes what it gives.

    A path that ends in .npz gets the arrays `video_id` (str [N]), `label` (int32 [N]), `classes` (str [C]),
    `features` (float32 [N, T, D], zero where the mask is False) and `mask` (bool [N, T]), for `np.load`; one
    that ends in .csv a row for each real frame: its clip's video_id and label's name, its number in the clip
    and f0, f1 ..., which read back to the same float32. Clips come in the order of the records, and memory
    holds a batch of them.

    Args:
      run_dir: a run with a model.keras.
      data_dir: a committed dataset of the same classes and clip settings.
      split: train, val or test.
      path: a local file; it appears there when it is whole, and replaces an older one.
      batch_size: clips per step.
      cache_dir: a remote data_dir is copied here once; None reads it from where it lies.

    Returns:
      N, T and D.

    Raises:
      ExportError: the path has another ending or cannot be written.
      EvaluateError: the classes or the clips' shape are not those the model was trained on.
      ModelError, ShardError: the model or the dataset cannot be read, or the split has no clips.
    """
    if remote.is_remote(path) or Path(path).suffix not in _WRITERS:
        endings = " or ".join(_WRITERS)
        raise ExportError(f"Features cannot go to {path}. Give a local path that ends in {endings}.")
    run = open_run(run_dir, data_dir, split, cache_dir)
    folder, info, classes = run.folder, run.info, run.card.classes
    with verify.named_damage(data_dir):
        rows = shards.clip_rows(folder, split)
    extractor = feature_extractor(run.model)
    shape = (info.num_clips(split), *extractor.output_shape[1:])

    def batches() -> Iterator[_Batch]:
        dataset = input_pipeline.eval_dataset(folder, info, batch_size, split, run.card.num_frames)
        encode = tf.function(lambda inputs: tf.cast(extractor(inputs, training=False), tf.float32))
        start = 0
        with Progress(f"Features of {split}", len(rows), "clips") as progress:
            for inputs, label, weight in dataset:
                real = weight.numpy() > 0
                found = rows[start : start + int(real.sum())]
                evaluate.check_rows(found, label.numpy()[real], info, data_dir)
                video_ids = [row["video_id"] for row in found]
                features, mask = encode(inputs).numpy()[real], inputs["mask"].numpy()[real]
                yield _Batch(video_ids, label.numpy()[real], features, mask)
                progress.advance(len(found))
                start += len(found)
        evaluate.check_rows(rows[start:], np.array([]), info, data_dir)

    try:
        with verify.named_damage(folder, data_dir):
            _WRITERS[Path(path).suffix](path, classes, shape, batches())
    except OSError as error:
        raise ExportError(
            f"Cannot write {path} ({error.strerror}). Make room, or its folder writable, or give another."
        ) from error
    return shape


def _write_npz(
    path: str, classes: tuple[str, ...], shape: tuple[int, int, int], batches: Iterator[_Batch]
) -> None:
    video_ids: list[str] = []
    labels: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    with shards.staged(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        # np.savez would want all features at once.
        with archive.open("features.npy", "w", force_zip64=True) as member:
            header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            for batch in batches:
                member.write(batch.features.tobytes())
                video_ids += batch.video_ids
                labels.append(batch.label)
                masks.append(batch.mask)
        arrays = {
            "video_id": np.array(video_ids),
            "label": np.concatenate(labels),
            "classes": np.array(classes),
            "mask": np.concatenate(masks),
        }
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


def _write_csv(
    path: str, classes: tuple[str, ...], shape: tuple[int, int, int], batches: Iterator[_Batch]
) -> None:
    columns = ["video_id", "label", "frame", *(f"f{index}" for index in range(shape[-1]))]
    with shards.committed_csv(path, columns) as writer:
        for batch in batches:
            for video_id, label, features, mask in zip(
                batch.video_ids, batch.label, batch.features, batch.mask, strict=True
            ):
                for frame in np.flatnonzero(mask):
                    # str gives the fewest digits that read back to the same float32.
                    values = (video_id, classes[label], frame, *map(str, features[frame]))
                    writer.writerow(dict(zip(columns, values, strict=True)))


_WRITERS: dict[str, Callable[[str, tuple[str, ...], tuple[int, int, int], Iterator[_Batch]], None]] = {
    ".npz": _write_npz,
    ".csv": _write_csv,
}
