"""Epochs of training batches, each in a fresh process.

input, JPEG, 1 core
    CPU time per frame of all threads, against bare decode_jpeg of the same bytes
input, JPEG, 2 cores
    wall time per clip, against one core; and against PyTorch's DataLoader with two workers on the same two
    cores, which decodes the source videos with PyAV and is given the frame indices
input, raw, 2 cores
    wall time per clip of raw frames, against JPEG

The records are made first, in a temporary folder (4 MB per clip). An epoch has every clip ten times, so
that the start of the epoch weighs little. A round reads each clip 40 times from records and ten times from
its video. A hundred videos are enough; with far fewer, the start weighs too much.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from measurement import Row, Workload, cpu_ms, in_fresh_process, make_row
from references import decode_with_pyav, installed_version
from vidpipe import command_line
from vidpipe.config import ClipConfig, ConversionConfig, ManifestConfig
from vidpipe.data import video

if TYPE_CHECKING:
    from vidpipe.data.dataset import Dataset

_COPIES = 10
_BATCH_SIZE = 16
_ENCODINGS = ("jpeg", "raw")


@dataclass(frozen=True)
class _Epoch:
    """What an epoch took.

    Attributes:
      clip_ms: wall time per clip.
      frame_cpu_ms: CPU time per frame.
      bare_cpu_ms: CPU time per frame of decode_jpeg alone; 0 for raw frames.
    """

    clip_ms: float
    frame_cpu_ms: float
    bare_cpu_ms: float


@dataclass(frozen=True)
class SourceVideos:
    """The source videos as a dataset for PyTorch; a video is decoded when its clip is read."""

    paths: list[str]
    frame_indices: list[np.ndarray]

    def __len__(self) -> int:
        return _COPIES * len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        number, clip = index % len(self.paths), ClipConfig()
        frame_indices = self.frame_indices[number]
        frames = np.zeros([clip.num_frames, clip.image_size, clip.image_size, 3], np.uint8)
        decode_with_pyav(self.paths[number], frame_indices, frames)
        return frames, np.arange(clip.num_frames) < len(frame_indices)


def measure(workload: Workload) -> Iterator[Row]:
    """Measures CPU time on one core, and wall time on two cores."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    pytorch = installed_pytorch()
    bare, one_core, loader, raw = [], [], [], []
    videos = source_videos(workload.paths)
    with tempfile.TemporaryDirectory() as records_dir:
        in_fresh_process(_make_records, workload.video_dir, records_dir)
        jpeg_dir, raw_dir = (f"{records_dir}/{encoding}" for encoding in _ENCODINGS)
        for _ in range(workload.repeats):
            one = in_fresh_process(_read_epoch, jpeg_dir, cores[:1])
            two = in_fresh_process(_read_epoch, jpeg_dir, cores)
            bare.append((one.frame_cpu_ms, one.bare_cpu_ms))
            one_core.append((two.clip_ms, one.clip_ms))
            raw.append((in_fresh_process(_read_epoch, raw_dir, cores).clip_ms, two.clip_ms))
            if pytorch is not None:
                loader.append((two.clip_ms, in_fresh_process(load_epoch, videos, cores)))
    yield make_row("input, JPEG, 1 core", unit="CPU ms/frame", reference="bare decode_jpeg", rounds=bare)
    yield make_row("input, JPEG, 2 cores", unit="wall ms/clip", reference="1 core", rounds=one_core)
    if pytorch is not None:
        yield make_row("input, JPEG, 2 cores", unit="wall ms/clip", reference=pytorch, rounds=loader)
    yield make_row("input, raw, 2 cores", unit="wall ms/clip", reference="JPEG", rounds=raw)


def installed_pytorch() -> str | None:
    """Returns PyTorch's name and version; None, after a notice, where it or PyAV is not installed."""
    return installed_version("PyTorch", "torch") if installed_version("PyAV", "av") else None


def source_videos(paths: list[str]) -> SourceVideos:
    """Reads the frame indices of vidpipe's clips, which PyTorch's loader is given."""
    return SourceVideos(paths, [video.read_clip(path, ClipConfig()).frame_indices for path in paths])


def load_epoch(videos: SourceVideos, cores: list[int]) -> float:
    """Reads an epoch with PyTorch's DataLoader; returns wall time per clip, ms."""
    os.sched_setaffinity(0, cores)
    import av  # noqa: F401  here: the workers are forks and inherit it
    from torch.utils.data import DataLoader

    start = time.perf_counter()
    for _ in DataLoader(videos, _BATCH_SIZE, shuffle=True, num_workers=len(cores)):
        pass
    return 1000 * (time.perf_counter() - start) / len(videos)


def _make_records(video_dir: str, records_dir: str) -> None:
    command_line.load_tensorflow()
    from vidpipe.data import convert

    manifest = ManifestConfig(video_dir=video_dir, val_fraction=0)
    for encoding in _ENCODINGS:
        output_dir = f"{records_dir}/{encoding}"
        convert.convert(ConversionConfig(output_dir=output_dir, manifest=manifest, encoding=encoding))


def _read_epoch(data_dir: str, cores: list[int]) -> _Epoch:
    os.sched_setaffinity(0, cores)  # first: TensorFlow starts as many threads as there are cores
    command_line.load_tensorflow()
    import tensorflow as tf

    from vidpipe.data.dataset import open_dataset

    with open_dataset(data_dir) as dataset:
        encoded = _encoded_frames(dataset)
        repeated = {"train": dataset.info.splits["train"] * _COPIES}
        many = replace(dataset, info=replace(dataset.info, splits=repeated))

        def decode() -> None:
            for frame in encoded:
                tf.io.decode_jpeg(frame, dct_method="INTEGER_ACCURATE")

        _read_all(dataset, epoch=0)  # includes what TensorFlow does only once
        # Bare decoding before and after: a machine that slows down slows both.
        is_jpeg = dataset.info.encoding == "jpeg"
        bare_ms = [cpu_ms(decode) for _ in range(_COPIES // 2)] if is_jpeg else []
        start = time.perf_counter()
        epoch_cpu_ms = cpu_ms(partial(_read_all, many, epoch=1))
        clip_ms = 1000 * (time.perf_counter() - start) / many.num_clips("train")
        bare_ms += [cpu_ms(decode) for _ in bare_ms]
    num_frames = _COPIES * len(encoded)
    return _Epoch(clip_ms, epoch_cpu_ms / num_frames, sum(bare_ms) / num_frames)


def _encoded_frames(dataset: "Dataset") -> list:
    """Reads the encoded frames of all training clips, string tensors."""
    import tensorflow as tf

    from vidpipe.data import records

    examples = tf.data.TFRecordDataset(dataset.shard_paths("train"))
    return [
        frame for example in examples for frame in tf.unstack(records.parse_clip(example)["encoded_frames"])
    ]


def _read_all(dataset: "Dataset", epoch: int) -> None:
    from vidpipe.data import input_pipeline

    num_frames = dataset.clip.num_frames
    for _ in input_pipeline.train_dataset(
        dataset, batch_size=_BATCH_SIZE, seed=1, epoch=epoch, num_frames=num_frames
    ):
        pass
