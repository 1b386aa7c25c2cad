"""Exports the features that enter a trained model's head, as files for other programs."""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidpipe.config import ExportConfig
from vidpipe.data.dataset import Dataset, open_dataset
from vidpipe.data.input_pipeline import eval_dataset
from vidpipe.evaluation.evaluate import check_rows
from vidpipe.inference.export_check import load_model_for
from vidpipe.inference.export_files import ExportError, report_write_errors
from vidpipe.model.frame_encoder import FrameEncoder
from vidpipe.model.fused import feature_encoder
from vidpipe.model.model_file import for_this_machine
from vidpipe.progress import Progress
from vidpipe.storage import files, remote


@dataclass(frozen=True)
class _Batch:
    """Some clips: their video_ids, label int32 [n], features float32 [n, T, D] and mask bool [n, T]."""

    video_ids: list[str]
    label: np.ndarray
    features: np.ndarray
    mask: np.ndarray


def export_features(config: ExportConfig) -> tuple[int, int, int]:
    """Runs the backbone of a run's model over a split and writes its features.

    A .npz file holds the arrays `video_id` (str [N]), `label` (int32 [N]), `classes` (str [C]), `features`
    (float32 [N, T, D], zero where the mask is False) and `mask` (bool [N, T]), for `np.load`. A .csv file has
    a row per real frame: the video_id and class name of its clip, its index in the clip, and f0, f1 ... that
    read back to the same float32. Clips come in the order of the records. Memory holds one batch of them.

    Args:
      config: `output` is a local file, which appears there when it is complete and replaces an older one.

    Returns:
      N, T and D.

    Raises:
      ExportError: the output has another suffix or cannot be written.
      EvaluateError, ModelError, ShardError: the dataset and the model do not belong together or cannot be
        read, or the split has no clips.
    """
    suffix = Path(config.output).suffix
    if remote.is_remote(config.output) or suffix not in _WRITERS:
        raise ExportError(
            f"Features cannot be written to {config.output}. Choose a local path with the suffix "
            f"{' or '.join(_WRITERS)}."
        )
    with report_write_errors(config.output):
        Path(config.output).parent.mkdir(parents=True, exist_ok=True)
    with (
        report_write_errors(config.output),
        open_dataset(config.data_dir, config.cache_dir) as dataset,
    ):
        model, metadata = load_model_for(config.run_dir, dataset)
        dataset.fetch(config.split)
        encode = feature_encoder(for_this_machine(model))
        num_frames, depth = encode.clip_shape
        shape = (dataset.num_clips(config.split), num_frames, depth)
        batches = _extract(encode, dataset, config.split, num_frames=num_frames)
        _WRITERS[suffix](config.output, metadata.classes, shape, batches)
    return shape


def _extract(encode: FrameEncoder, dataset: Dataset, split: str, *, num_frames: int) -> Iterator[_Batch]:
    rows = dataset.clip_rows(split)
    batches = eval_dataset(dataset, batch_size=encode.clips_per_call, split=split, num_frames=num_frames)
    num_read = 0
    with Progress(f"Features of {split}", len(rows), "clips") as progress:
        for inputs, label, weight in batches:
            real = weight.numpy() > 0
            frames, mask = (inputs[name].numpy()[real] for name in ("frames", "mask"))
            of_batch = rows[num_read : num_read + int(real.sum())]
            check_rows(of_batch, label.numpy()[real], dataset)
            yield _Batch(
                video_ids=[row["video_id"] for row in of_batch],
                label=label.numpy()[real],
                features=encode(frames, mask).astype(np.float32),
                mask=mask,
            )
            progress.advance(len(of_batch))
            num_read += len(of_batch)
    check_rows(rows[num_read:], np.array([]), dataset)


def _write_npz(
    path: str, classes: tuple[str, ...], shape: tuple[int, int, int], batches: Iterator[_Batch]
) -> None:
    video_ids: list[str] = []
    labels: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    with files.staged(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        # Written batch by batch: np.savez needs all features in memory.
        with archive.open("features.npy", "w", force_zip64=True) as entry:
            header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(entry, header)
            for batch in batches:
                entry.write(batch.features.tobytes())
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
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, values, allow_pickle=False)


def _write_csv(
    path: str, classes: tuple[str, ...], shape: tuple[int, int, int], batches: Iterator[_Batch]
) -> None:
    columns = ["video_id", "label", "frame", *(f"f{index}" for index in range(shape[-1]))]
    with files.staged_csv(path, columns) as writer:
        for batch in batches:
            for video_id, label, features, mask in zip(
                batch.video_ids, batch.label, batch.features, batch.mask, strict=True
            ):
                for frame in np.flatnonzero(mask):
                    # str gives the fewest digits that read back to the same float32.
                    values = (video_id, classes[label], frame, *map(str, features[frame]))
                    writer.writerow(dict(zip(columns, values, strict=True)))


_WRITERS: Mapping[str, Callable[[str, tuple[str, ...], tuple[int, int, int], Iterator[_Batch]], None]] = {
    ".npz": _write_npz,
    ".csv": _write_csv,
}
