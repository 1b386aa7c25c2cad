"""Whole conversions, each in a fresh process.

convert N videos, 2 workers
    wall time, against one worker
convert a clip
    CPU time of all processes without their start-up, with one worker, against OpenCV's bare calls as in
    decode, which another core makes at the same time: a shared machine's speed changes within a minute
start-up of a conversion
    CPU time of starting Python, TensorFlow and a worker, against the time of all clips
parent's memory, worker's memory, N videos
    peak memory of the parent and of the largest worker, against that for a tenth of the videos: it should
    not grow

N is ten times the number of videos: each has ten links to it. A round converts each video 31 times. With far
fewer than a hundred videos, the time of a converted clip is smaller than the noise of the start-up.
"""

import multiprocessing
import os
import re
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

from measurement import Row, Workload, cpu_ms, in_fresh_process, make_row
from references import grab_and_encode
from video_folders import link_copies
from vidpipe import command_line
from vidpipe.config import ClipConfig, ConversionConfig, ManifestConfig
from vidpipe.data import video

_COPIES, _RECORD_EVERY = 10, 16
_num_read = 0


@dataclass(frozen=True)
class _Conversion:
    """What a conversion took.

    Attributes:
      wall_sec: without Python's start and the import of TensorFlow.
      cpu_sec: of all its processes, including their start.
      parent_mib, worker_mib: peak memory of the parent and of the largest worker.
    """

    wall_sec: float
    cpu_sec: float
    parent_mib: float
    worker_mib: float


def measure(workload: Workload) -> Iterator[Row]:
    """Measures conversions of the videos, and of ten links to each of them."""
    num_few, num_many = len(workload.paths), _COPIES * len(workload.paths)
    clips = {path: video.read_clip(path, ClipConfig()) for path in workload.paths}
    wall, clip, start_up, parent, worker = [], [], [], [], []
    with tempfile.TemporaryDirectory() as many_dir:
        link_copies(workload.paths, workload.video_dir, many_dir, _COPIES)
        for _ in range(workload.repeats):
            few, _ = _convert_beside_bare_calls(workload.video_dir, clips)
            many, bare_ms = _convert_beside_bare_calls(many_dir, clips)
            many_by_one, many_by_two = (in_fresh_process(_convert, many_dir, workers) for workers in (1, 2))
            # Both include one start-up, so the difference is the time of the additional clips.
            clip_sec = (many.cpu_sec - few.cpu_sec) / (num_many - num_few)
            wall.append((many_by_two.wall_sec, many_by_one.wall_sec))
            clip.append((1000 * clip_sec, bare_ms))
            start_up.append((few.cpu_sec - num_few * clip_sec, num_few * clip_sec))
            parent.append((many.parent_mib, few.parent_mib))
            worker.append((many.worker_mib, few.worker_mib))
    yield make_row(f"convert {num_many} videos, 2 workers", unit="wall s", reference="1 worker", rounds=wall)
    yield make_row("convert a clip", unit="CPU ms/clip", reference="bare grab and encode", rounds=clip)
    yield make_row(
        "start-up of a conversion", unit="CPU s", reference=f"its {num_few} clips", rounds=start_up
    )
    for what, rounds in (("parent", parent), ("worker", worker)):
        yield make_row(
            f"{what}'s memory, {num_many} videos", unit="MiB", reference=f"{num_few} videos", rounds=rounds
        )


def _convert_beside_bare_calls(
    video_dir: str, clips: Mapping[str, video.VideoClip]
) -> tuple[_Conversion, float]:
    """Converts with one worker; returns the CPU time of the bare calls meanwhile, too, ms per clip."""
    times: list[float] = []
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        conversion = executor.submit(_convert, video_dir, 1)
        while not conversion.done():
            times += [cpu_ms(partial(grab_and_encode, path, clip)) for path, clip in clips.items()]
        return conversion.result(), mean(times)


def _convert(video_dir: str, num_workers: int) -> _Conversion:
    command_line.load_tensorflow()
    from vidpipe.data import convert

    with tempfile.TemporaryDirectory() as data_dir, tempfile.TemporaryDirectory() as memory_dir:
        config = ConversionConfig(
            output_dir=data_dir, manifest=ManifestConfig(video_dir=video_dir), num_workers=num_workers
        )
        start = time.perf_counter()
        convert.convert(config, read=partial(_read_and_record_memory, memory_dir))
        wall_sec = time.perf_counter() - start
        worker_mib = max(float(path.read_text()) for path in Path(memory_dir).iterdir())
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_sec = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return _Conversion(wall_sec, cpu_sec, _peak_mib(), worker_mib)


def _read_and_record_memory(
    memory_dir: str, path: str, clip: ClipConfig, encoding: str, jpeg_quality: int
) -> video.EncodedClip:
    """Reads a clip in a worker, and writes the worker's peak memory to a file of its own."""
    encoded = video.read_encoded_clip(path, clip, encoding, jpeg_quality)
    global _num_read
    _num_read += 1
    if _num_read % _RECORD_EVERY == 1:  # it takes a hundredth of a clip's time
        Path(memory_dir, str(os.getpid())).write_text(str(_peak_mib()))
    return encoded


def _peak_mib() -> float:
    # Not getrusage's ru_maxrss: a process starts with the value of the process that spawned it, so that each
    # worker would seem to hold the parent's TensorFlow.
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kib) / 1024
