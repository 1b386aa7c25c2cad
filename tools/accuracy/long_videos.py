"""Joins labelled clips to long videos, in which every event is known to the frame.

    python tools/accuracy/long_videos.py --video_dir=clips --train_manifest=train.csv \
        --test_manifest=test.csv --background_classes=walk,stand --output_dir=long

Clips of the background classes and of the others take turns; the former become time in which nothing is
labelled. A split's clips stay in its videos, and groups are not divided between train and val. Clips of one
size come together where there are enough: a video has the size of its first clip, and others are fitted into
it, with black bars. Where background clips run out, they are shown again.

OUTPUT_DIR gets the videos and moments.csv, which convert_videos takes:

    python tools/convert_videos.py --video_dir=long --train_manifest=long/moments.csv --background=none \
        --output_dir=records
"""

import csv
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from vidpipe import command_line
from vidpipe.config import SPLITS, ManifestConfig, check, setting
from vidpipe.data.manifest import read_manifest
from vidpipe.data.moment_reader import read_length
from vidpipe.data.packets import Damage
from vidpipe.data.video import check_frames
from vidpipe.data.video_file import open_video
from vidpipe.data.video_row import ManifestError, VideoRow
from vidpipe.progress import Progress

_MAIN = "Input and output"
_TIME_BASE = Fraction(1, 90_000)  # seconds; as in MPEG transport streams
_COMMAND = command_line.Command(__doc__)


@dataclass(frozen=True, kw_only=True)
class LongVideoConfig:
    """Which clips are joined, and how."""

    output_dir: str = setting(help="The videos and moments.csv are written here.", group=_MAIN)
    background_classes: tuple[str, ...] = setting(
        help="Classes whose clips are not labelled, separated by commas.", group=_MAIN
    )
    video_sec: float = setting(60, help="Approximate length of a video in seconds.", group=_MAIN, above=0)
    manifest: ManifestConfig

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Clip:
    """A clip to be joined.

    Attributes:
      path: the file.
      label: its class; empty for background.
      width, height: of its frames, pixels.
      duration_sec: in seconds.
    """

    path: str
    label: str
    width: int
    height: int
    duration_sec: float


_read_config = _COMMAND.settings(LongVideoConfig)


def main(arguments: list[str]) -> None:
    """Flags -> videos and the list of their moments."""
    del arguments
    config = _read_config()
    num_videos = join_clips(config)
    print(f"{config.output_dir}: {num_videos} videos, moments.csv")


def join_clips(config: LongVideoConfig) -> int:
    """Writes the long videos and moments.csv; returns the number of videos.

    Raises:
      ManifestError: a clip is missing, is a moment, or a split has no events or no background.
      VideoReadError: a clip cannot be read.
    """
    rows = read_manifest(config.manifest)
    unusable = [row.video_id for row in rows if not row.path or row.moment is not None]
    if unusable:
        raise ManifestError(
            f"{len(unusable)} of {len(rows)} rows are not whole videos under {config.manifest.video_dir}, "
            f"such as {unusable[0]}. Correct the lists, or --video_dir."
        )
    random = np.random.default_rng(config.manifest.seed)
    plans: dict[str, tuple[str, list[Clip]]] = {}
    for split in SPLITS:
        clips = [_measured(row, config) for row in rows if row.split == split]
        if len({bool(clip.label) for clip in clips}) == 1:
            raise ManifestError(f"The {split} split needs events, and clips of the background classes.")
        for number, joined in enumerate(plan_videos(clips, config.video_sec, random) if clips else []):
            plans[f"{split}_{number:02}.mp4"] = split, joined
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    moments = []
    with Progress("Joining", len(plans), "videos") as progress:
        for name, (split, joined) in plans.items():
            bounds = write_joined(folder / name, joined)
            for clip, (start, end) in zip(joined, itertools.pairwise(bounds), strict=True):
                if clip.label:
                    moments.append([name, clip.label, f"{start:.6f}", f"{end:.6f}", split])
            progress.advance()
    with (folder / "moments.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["video_name", "tag", "start", "end", "split"])
        writer.writerows(moments)
    return len(plans)


def plan_videos(clips: Sequence[Clip], video_sec: float, random: np.random.Generator) -> Iterator[list[Clip]]:
    """Distributes clips over videos, background before and after each event; there must be both."""
    shuffled = [clips[index] for index in random.permutation(len(clips))]
    by_size = sorted(shuffled, key=lambda clip: (clip.width, clip.height))
    events = [clip for clip in by_size if clip.label]
    background = [clip for clip in by_size if not clip.label]
    pair_sec = np.mean([clip.duration_sec for clip in events])
    pair_sec += np.mean([clip.duration_sec for clip in background])
    num_videos = max(1, round(len(events) * float(pair_sec) / video_sec))
    for number in range(num_videos):
        chosen, between = (_part(kind, number, num_videos) for kind in (events, background))
        between = between or background
        joined = [between[0]]
        for index, position in enumerate(random.permutation(len(chosen))):
            joined += [chosen[position], between[(index + 1) % len(between)]]
        yield joined


def _part(clips: Sequence[Clip], number: int, count: int) -> Sequence[Clip]:
    return clips[number * len(clips) // count : (number + 1) * len(clips) // count]


def _measured(row: VideoRow, config: LongVideoConfig) -> Clip:
    path = str(Path(config.manifest.video_dir, row.path))
    with open_video(path) as file:
        first = next(file.decode_in_order(Damage(file.packets, file.loss)), None)
        check_frames(file, int(first is not None))
    assert first is not None
    label = "" if row.label_name in config.background_classes else row.label_name
    return Clip(path, label, first.picture.width, first.picture.height, read_length(path).duration_sec)


def write_joined(path: Path, clips: Sequence[Clip]) -> list[float]:
    """Writes clips one after the other into one H.264 file.

    Returns:
      When each of them begins, and when the last one ends, seconds; multiples of 1/90000.
    """
    width, height = clips[0].width // 2 * 2, clips[0].height // 2 * 2
    bounds = [0]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = _TIME_BASE
        for clip in clips:
            start = bounds[-1]
            for seconds, image in _frames(clip.path):
                frame = av.VideoFrame.from_ndarray(_fitted(image, width, height), "rgb24")
                frame.pts, frame.time_base = round(start + seconds / _TIME_BASE), _TIME_BASE
                container.mux(stream.encode(frame))
            bounds.append(start + round(clip.duration_sec / _TIME_BASE))
        container.mux(stream.encode())
    return [float(bound * _TIME_BASE) for bound in bounds]


def _frames(path: str) -> Iterator[tuple[float, np.ndarray]]:
    """Yields when each frame is shown, in seconds from the first one, and its pixels."""
    with open_video(path) as file:
        frames = list(file.decode_in_order(Damage(file.packets, file.loss)))
        times, _ = file.frame_times(np.array([frame.packet for frame in frames]))
        for seconds, frame in zip(times.tolist(), frames, strict=True):
            yield seconds, frame.picture.to_ndarray(format="rgb24")


def _fitted(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resizes an image into the middle of a black one."""
    scale = min(width / image.shape[1], height / image.shape[0])
    inner_width, inner_height = round(image.shape[1] * scale), round(image.shape[0] * scale)
    fitted = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    inner = cv2.resize(image, (inner_width, inner_height), interpolation=interpolation)
    fitted[top : top + inner_height, left : left + inner_width] = inner
    return fitted


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    return _COMMAND.run(main, argv)


if __name__ == "__main__":
    command_line.leave(run(sys.argv))
