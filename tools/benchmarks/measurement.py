"""What the benchmarks share: the workload, the rows of the table, fresh processes and clocks."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TypeVar

from vidpipe.config import ClipConfig
from vidpipe.data.video_row import VideoRow

_Result = TypeVar("_Result")
# What each round measured: vidpipe's value and the reference's.
Rounds = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a benchmark works on.

    Attributes:
      repeats: rounds; each gives one ratio.
      clip: of model and train: `num_frames` and `image_size`. The other benchmarks use the defaults.
      batch_size: of model: clips per training step.
      on_gpu: whether TensorFlow sees a GPU.
      video_seconds: of decode: lengths of the generated H.264 videos, seconds.
      video_dir: folder of the source videos; model needs none.
      videos: the videos in it.
    """

    repeats: int
    clip: ClipConfig = field(default_factory=ClipConfig)
    batch_size: int = 2
    on_gpu: bool = False
    video_seconds: tuple[int, ...] = (2, 600, 3600)
    video_dir: str = ""
    videos: tuple[VideoRow, ...] = ()

    @property
    def paths(self) -> list[str]:
        """The paths of the videos."""
        return [str(Path(self.video_dir, video.path)) for video in self.videos]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table.

    Attributes:
      what: what is measured.
      unit: of both values, such as "CPU ms/clip".
      reference: what vidpipe is compared with.
      vidpipe: the median over the rounds.
      per_sec: the same as a rate, clips or frames per second; None unless the unit is ms/clip or ms/frame.
      reference_value: the median over the rounds.
      ratio: vidpipe divided by the reference, the median over the rounds.
      ratio_min, ratio_max: the range of the ratios.
    """

    what: str
    unit: str
    reference: str
    vidpipe: float
    per_sec: float | None
    reference_value: float
    ratio: float
    ratio_min: float
    ratio_max: float


def make_row(what: str, *, unit: str, reference: str, rounds: Rounds) -> Row:
    """Makes a row from what the rounds measured."""
    ratios = [vidpipe / other for vidpipe, other in rounds]
    typical = median(vidpipe for vidpipe, _ in rounds)
    return Row(
        what=what,
        unit=unit,
        reference=reference,
        vidpipe=typical,
        per_sec=1000 / typical if "ms/" in unit and typical > 0 else None,
        reference_value=median(other for _, other in rounds),
        ratio=median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
    )


def in_fresh_process(function: Callable[..., _Result], *arguments: object) -> _Result:
    """Calls a function in a new Python process and returns its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def in_turn(
    repeat: int, vidpipe: Callable[..., _Result], reference: Callable[..., _Result], *arguments: object
) -> tuple[_Result, _Result]:
    """Calls both, each in a fresh process; returns vidpipe's result and the reference's.

    Which of them comes first alternates between the rounds: the second finds files in the system's caches.
    """
    if repeat % 2:
        first = in_fresh_process(vidpipe, *arguments)
        return first, in_fresh_process(reference, *arguments)
    first = in_fresh_process(reference, *arguments)
    return in_fresh_process(vidpipe, *arguments), first


def cpu_ms(function: Callable[[], object]) -> float:
    """Calls a function; returns the CPU time of this process meanwhile, ms."""
    start = time.process_time()
    function()
    return 1000 * (time.process_time() - start)
