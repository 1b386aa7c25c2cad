"""The input side's half of `benchmark.py`: decoding, conversion, batches; and what both halves share."""

import importlib
import multiprocessing
import os
import re
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeVar

import cv2
import numpy as np

import cli
from vidpipe import video
from vidpipe.config import ClipConfig, ConversionConfig, ManifestConfig

_QUALITY = ConversionConfig.jpeg_quality
_MANY = 10  # times the videos: to see whether memory grows, and for an epoch long enough
_BATCH_SIZE = 16
_ENCODINGS = ("jpeg", "raw")

_Result = TypeVar("_Result")
# Of each round what ours took, and what the other side.
Rounds = list[tuple[float, float]]

# Does the work that gave ours this clip; which frames, how many and how large it may take from the clip.
Peer = Callable[[str, video.VideoClip], object]


def benchmark_decode(paths: list[str], peers: dict[str, Peer], repeats: int) -> Iterator[dict[str, Any]]:
    """Ours against the floor and the peers for two samplings, and against the notebook's loader."""
    uniform, head = ClipConfig(sampling="uniform"), ClipConfig(sampling="head")
    paired = partial(_paired, repeats)
    for clip in (uniform, head):
        what = f"read and encode, {clip.sampling}"
        yield paired(what, "bare grab and encode", paths, clip, _read_and_encode, _floor)
    for clip in (uniform, head):
        for name, peer in peers.items():
            yield paired(f"read, {clip.sampling}", name, paths, clip, video.read_clip, peer)
    yield paired("read, head", "the notebook's loader", paths, head, video.read_clip, _notebook_loader)


def benchmark_convert(video_dir: str, paths: list[str], repeats: int) -> Iterator[dict[str, Any]]:
    """Time with two workers against one, CPU time against the floor, memory against ten times the videos."""
    few, many = len(paths), _MANY * len(paths)
    wall, clip, start_up, parent, worker = [], [], [], [], []
    with tempfile.TemporaryDirectory() as many_dir:
        link_many(paths, video_dir, many_dir, _MANY)
        for _ in range(repeats):
            two = in_fresh_process(_convert, video_dir, 2)
            floor_ms = mean(_floor_ms(path) for path in paths)
            ten, ten_by_one = (in_fresh_process(_convert, many_dir, workers) for workers in (2, 1))
            # They have the start-up in common; what the larger one took more, it took for its clips.
            clip_sec = (ten.cpu_sec - two.cpu_sec) / (many - few)
            wall.append((ten.wall_sec, ten_by_one.wall_sec))
            clip.append((1000 * clip_sec, floor_ms))
            start_up.append((two.cpu_sec - few * clip_sec, few * clip_sec))
            parent.append((ten.parent_mib, two.parent_mib))
            worker.append((ten.worker_mib, two.worker_mib))
    yield row(f"convert {many} videos, 2 workers", "wall s", "1 worker", wall)
    yield row("convert a clip", "CPU ms/clip", "bare grab and encode", clip)
    yield row("start-up of a conversion", "CPU s", f"its {few} clips", start_up)
    yield row(f"parent's memory, {many} videos", "MiB", f"{few} videos", parent)
    yield row(f"worker's memory, {many} videos", "MiB", f"{few} videos", worker)


def benchmark_input(
    video_dir: str, paths: list[str], loader: str | None, repeats: int
) -> Iterator[dict[str, Any]]:
    """CPU time against bare decoding; wall time: two cores against one and a loader, raw against JPEG."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    floor, by_one, by_loader, raw = [], [], [], []
    videos = _Videos(paths, [video.read_clip(path, ClipConfig()).frame_indices for path in paths])
    with tempfile.TemporaryDirectory() as records_dir:
        in_fresh_process(_make_records, video_dir, records_dir)
        jpeg_dir, raw_dir = (f"{records_dir}/{encoding}" for encoding in _ENCODINGS)
        for _ in range(repeats):
            one = in_fresh_process(_read_epoch, jpeg_dir, cores[:1])
            two = in_fresh_process(_read_epoch, jpeg_dir, cores)
            floor.append((one.frame_cpu_ms, one.floor_cpu_ms))
            by_one.append((two.clip_ms, one.clip_ms))
            raw.append((in_fresh_process(_read_epoch, raw_dir, cores).clip_ms, two.clip_ms))
            if loader is not None:
                by_loader.append((two.clip_ms, in_fresh_process(_load_epoch, videos, cores)))
    yield row("input, jpeg, 1 core", "CPU ms/frame", "bare decode_jpeg", floor)
    yield row("input, jpeg, 2 cores", "wall ms/clip", "1 core", by_one)
    if loader is not None:
        yield row("input, jpeg, 2 cores", "wall ms/clip", loader, by_loader)
    yield row("input, raw, 2 cores", "wall ms/clip", "jpeg", raw)


def installed_peers() -> dict[str, Peer]:
    """The peers of decode by name and version."""
    candidates = (_installed("PyAV", "av"), _pyav), (_installed("decord", "decord"), _decord)
    return {name: read for name, read in candidates if name is not None}


def installed_loader() -> str | None:
    """The peer of input by name and version; it needs PyAV too."""
    return _installed("PyTorch", "torch") if _installed("PyAV", "av") else None


def _installed(name: str, module: str) -> str | None:
    """The name with the version; None after a line that says how to have what is not installed."""
    try:
        return f"{name} {importlib.import_module(module).__version__}"
    except ImportError:
        print(f"{name} is not installed; its rows are left out. pip install '.[benchmark]' brings it.")
        return None


def processor() -> str:
    """The name of the CPU's model, where Linux knows it."""
    names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return names[0] if names else "unknown processor"


def make_videos(folder: Path, count: int) -> str:
    """Writes XviD files of UCF101's size and length, 320 x 240 and 180 frames, in two class folders.

    Each is a texture that drifts, with noise. One that is there already is kept.

    Returns:
      The folder of so many videos.
    """
    video_dir = folder / f"{count}_videos"
    for number in range(count):
        random = np.random.default_rng(number)
        texture = cv2.resize(random.integers(0, 256, (12, 16, 3), np.uint8), (320, 240))
        drift = random.integers(-3, 4, 2)
        frames = np.stack([np.roll(texture, frame * drift, (0, 1)) for frame in range(180)])
        noise = random.integers(-8, 9, frames.shape[1:])
        frames = np.clip(frames + noise, 0, 255).astype(np.uint8)
        path = video_dir / ("right" if drift[1] > 0 else "left") / f"{number}.avi"
        video.write_video(str(path), frames, fourcc="XVID")
    return str(video_dir)


def _read_and_encode(path: str, clip: ClipConfig) -> object:
    return video.read_encoded_clip(path, clip, "jpeg", _QUALITY)


def _floor(path: str, same: video.VideoClip) -> None:
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    for _ in range(int(same.frame_indices[-1]) + 1):
        capture.grab()
    capture.release()
    # Red and blue are exchanged: the time and the size are the same, and converting is not bare encoding.
    for frame in same.frames:
        cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])


def _pyav(path: str, same: video.VideoClip) -> np.ndarray:
    frames = np.empty_like(same.frames)
    _read_with_pyav(path, same.frame_indices, frames)
    return frames


def _read_with_pyav(path: str, frame_indices: np.ndarray, frames: np.ndarray) -> None:
    """Decodes in order up to the last wanted frame, and converts the wanted ones alone."""
    import av
    from av.video.reformatter import VideoReformatter

    # The fastest way found. One reformatter, on one thread: to_ndarray(format="rgb24") with its defaults
    # takes a third more. One array for the clip: a list and np.stack by themselves take as much more.
    reformatter = VideoReformatter()
    wanted, count = set(frame_indices.tolist()), 0
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "NONE", 1
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                image = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                _write_square(image, frames[count])
                count += 1
                if count == len(wanted):
                    break


def _decord(path: str, same: video.VideoClip) -> np.ndarray:
    """Asks for all wanted frames at once, which decord reads in order."""
    import decord

    images = decord.VideoReader(path, num_threads=1).get_batch(same.frame_indices).asnumpy()
    frames = np.empty_like(same.frames)
    for image, frame in zip(images, frames, strict=True):
        _write_square(image, frame)
    return frames


def _notebook_loader(path: str, same: video.VideoClip) -> np.ndarray:
    num_frames, image_size = same.frames.shape[:2]
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    return load_as_notebook(capture, image_size)[:num_frames]


def load_as_notebook(capture: cv2.VideoCapture, image_size: int) -> np.ndarray:
    """As the keras-io CNN-RNN example loads a video: every frame, of which it then keeps the first T.

    Args:
      capture: an opened video; released here.
      image_size: side of the frames, pixels.

    Returns:
      uint8 [video_num_frames, image_size, image_size, 3], RGB.
    """
    frames = []
    while True:
        readable, frame = capture.read()
        if not readable:
            break
        square = cv2.resize(_centre_square(frame), (image_size, image_size))
        frames.append(square[:, :, [2, 1, 0]])
    capture.release()
    return np.array(frames)


def _write_square(image: np.ndarray, frame: np.ndarray) -> None:
    """Writes the centre square of `image` into `frame`, resized as ours is."""
    square = _centre_square(image)
    interpolation = cv2.INTER_AREA if len(square) >= 2 * len(frame) else cv2.INTER_LINEAR
    cv2.resize(square, frame.shape[:2], dst=frame, interpolation=interpolation)


def _centre_square(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


@dataclass(frozen=True)
class _Conversion:
    """What a conversion took.

    Attributes:
      wall_sec: without Python's start and the import of TensorFlow.
      cpu_sec: of all its processes, from their start on.
      parent_mib, worker_mib: peak memory of the parent and of the largest worker.
    """

    wall_sec: float
    cpu_sec: float
    parent_mib: float
    worker_mib: float


def in_fresh_process(run: Callable[..., _Result], *arguments: object) -> _Result:
    """What `run` returns in a process that has done nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(run, *arguments).result()


def _convert(video_dir: str, num_workers: int) -> _Conversion:
    cli.load_tensorflow()
    from vidpipe import convert

    with tempfile.TemporaryDirectory() as records_dir, tempfile.TemporaryDirectory() as memory_dir:
        config = ConversionConfig(records_dir, ManifestConfig(video_dir), num_workers=num_workers)
        start = time.perf_counter()
        convert.convert(config, partial(_read_noting_memory, memory_dir))
        wall_sec = time.perf_counter() - start
        worker_mib = max(float(path.read_text()) for path in Path(memory_dir).iterdir())
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_sec = sum(usage.ru_utime + usage.ru_stime for usage in used)
    return _Conversion(wall_sec, cpu_sec, _peak_mib(), worker_mib)


def _read_noting_memory(
    memory_dir: str, path: str, clip: ClipConfig, encoding: str, quality: int
) -> video.EncodedClip:
    """Runs in a worker: reads as ever, and leaves the worker's peak memory in a file of its own."""
    encoded = video.read_encoded_clip(path, clip, encoding, quality)
    Path(memory_dir, str(os.getpid())).write_text(str(_peak_mib()))
    return encoded


def _peak_mib() -> float:
    # Not getrusage's ru_maxrss: a process begins with that of the one that spawned it, so that each worker
    # would seem to hold the parent's TensorFlow.
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kib) / 1024


def link_many(paths: list[str], video_dir: str, many_dir: str, copies: int) -> None:
    """The same class folders with every video under so many names."""
    for path in map(Path, paths):
        folder = many_dir / path.relative_to(video_dir).parent
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(copies):
            (folder / f"{number}_{path.name}").symlink_to(path.resolve())


def _make_records(video_dir: str, records_dir: str) -> None:
    cli.load_tensorflow()
    from vidpipe import convert

    manifest = ManifestConfig(video_dir, val_fraction=0)
    for encoding in _ENCODINGS:
        convert.convert(ConversionConfig(f"{records_dir}/{encoding}", manifest, encoding=encoding))


@dataclass(frozen=True)
class _Epoch:
    """What an epoch took.

    Attributes:
      clip_ms: wall time of a clip.
      frame_cpu_ms, floor_cpu_ms: CPU time of a frame, and of decoding its bytes and nothing else.
    """

    clip_ms: float
    frame_cpu_ms: float
    floor_cpu_ms: float


def _read_epoch(data_dir: str, cores: list[int]) -> _Epoch:
    os.sched_setaffinity(0, cores)  # first: TensorFlow starts as many threads as it then finds cores
    cli.load_tensorflow()
    import tensorflow as tf

    from vidpipe import input_pipeline, records, shards

    info = shards.read_info(data_dir)
    examples = tf.data.TFRecordDataset(shards.shard_paths(data_dir, info, "train"))
    encoded = [
        frame for example in examples for frame in tf.unstack(records.parse_clip(example)["encoded_frames"])
    ]
    many = replace(info, splits={"train": info.splits["train"] * _MANY})

    def read(info: shards.DatasetInfo, epoch: int) -> None:
        for _ in input_pipeline.train_dataset(data_dir, info, _BATCH_SIZE, seed=1, epoch=epoch):
            pass

    def decode() -> None:
        for frame in encoded:
            tf.io.decode_jpeg(frame, dct_method="INTEGER_ACCURATE")

    read(info, epoch=0)  # what TensorFlow does once only
    # The floor before and after: a machine that slows down slows both.
    floor_ms = [_cpu_ms(decode) for _ in range(_MANY // 2)] if info.encoding == "jpeg" else []
    start = time.perf_counter()
    ours_ms = _cpu_ms(partial(read, many, 1))
    clip_ms = 1000 * (time.perf_counter() - start) / many.num_clips("train")
    floor_ms += [_cpu_ms(decode) for _ in floor_ms]
    num_frames = len(encoded)
    return _Epoch(clip_ms, ours_ms / (_MANY * num_frames), sum(floor_ms) / (_MANY * num_frames))


@dataclass(frozen=True)
class _Videos:
    """The source videos as a dataset for PyTorch: a video is decoded when its clip is asked for."""

    paths: list[str]
    frame_indices: list[np.ndarray]

    def __len__(self) -> int:
        return _MANY * len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        number = index % len(self.paths)
        frame_indices, spec = self.frame_indices[number], ClipConfig().model_spec()
        frames = np.zeros([spec.num_frames, spec.height, spec.width, 3], np.uint8)
        _read_with_pyav(self.paths[number], frame_indices, frames)
        return frames, np.arange(spec.num_frames) < len(frame_indices)


def _load_epoch(videos: _Videos, cores: list[int]) -> float:
    """Wall time of a clip through PyTorch's DataLoader, ms."""
    os.sched_setaffinity(0, cores)
    import av  # noqa: F401  here, so that the workers, which are forks, need not
    from torch.utils.data import DataLoader

    start = time.perf_counter()
    for _ in DataLoader(videos, _BATCH_SIZE, shuffle=True, num_workers=len(cores)):
        pass
    return 1000 * (time.perf_counter() - start) / len(videos)


def _floor_ms(path: str) -> float:
    same = video.read_clip(path, ClipConfig())
    return _cpu_ms(partial(_floor, path, same))


def _paired(
    repeats: int,
    what: str,
    against: str,
    paths: list[str],
    clip: ClipConfig,
    ours: Callable[[str, ClipConfig], object],
    theirs: Peer,
) -> dict[str, Any]:
    """Both on each video in turn, so that a machine that slows down slows both."""
    rounds = []
    for repeat in range(repeats):
        spent = [0.0, 0.0]
        for number, path in enumerate(paths):
            sides = partial(ours, path, clip), partial(theirs, path, video.read_clip(path, clip))
            # Who goes second finds the file and the decoder's code in the caches.
            for side in (0, 1) if (number + repeat) % 2 else (1, 0):
                spent[side] += _cpu_ms(sides[side])
        rounds.append((spent[0] / len(paths), spent[1] / len(paths)))
    return row(what, "CPU ms/clip", against, rounds)


def _cpu_ms(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return 1000 * (time.process_time() - start)


def row(what: str, unit: str, against: str, rounds: Rounds) -> dict[str, Any]:
    """A row of the table: medians of both sides, and median and range of the rounds' ratios.

    A unit of ms/clip or ms/frame gives a rate too, in clips or frames a second.
    """
    ratios = [ours / theirs for ours, theirs in rounds]
    ours_typical = median(ours for ours, _ in rounds)
    return {
        "what": what, "unit": unit, "against": against,
        "ours": ours_typical, "per_sec": 1000 / ours_typical if "ms/" in unit and ours_typical > 0 else None,
        "theirs": median(theirs for _, theirs in rounds),
        "ratio": median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
    }  # fmt: skip
