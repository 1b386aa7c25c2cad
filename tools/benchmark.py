"""Measures vidpipe against floors and peers on the same work, in one run, as ratios.

    python tools/benchmark.py decode --video_dir=/data/UCF-101 --json=decode.json
    python tools/benchmark.py convert --video_dir=/data/UCF-101

decode: CPU time per clip. Reading and encoding, against the bare grabbing of the frames up to the last wanted
one plus the bare encoding of the kept ones; reading, against the notebook's loader, which decodes, crops and
resizes every frame and keeps the first T.
convert: wall time of a conversion with two workers, against one.
"""

import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
from absl import flags

import cli
from vidpipe import video
from vidpipe.config import ClipConfig, ConversionConfig, ManifestConfig
from vidpipe.manifest import read_manifest

_VIDEO_DIR = flags.DEFINE_string("video_dir", None, "Videos in class folders.", required=True)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds over the videos; each gives one ratio.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "Write the table here too.")

_QUALITY = ConversionConfig.jpeg_quality


def benchmark_decode(paths: list[str]) -> Iterator[dict[str, Any]]:
    """Ours against the floor for two samplings, and against the notebook's loader for the first frames."""
    for sampling in ("uniform", "head"):
        clip = ClipConfig(sampling=sampling)
        floors = {path: _floor(path, video.read_clip(path, clip)) for path in paths}
        yield _paired(
            f"read and encode, {sampling}", "CPU ms/clip", "bare grab and encode", paths,
            lambda path, clip=clip: video.read_encoded_clip(path, clip, "jpeg", _QUALITY),  # type: ignore[misc]
            lambda path, floors=floors: floors[path](),  # type: ignore[misc]
        )  # fmt: skip
    clip = ClipConfig(sampling="head")
    yield _paired(
        "read the first frames", "CPU ms/clip", "the notebook's loader", paths,
        lambda path: video.read_clip(path, clip), lambda path: _notebook_loader(path, clip),
    )  # fmt: skip


def benchmark_convert(video_dir: str) -> Iterator[dict[str, Any]]:
    """One row: wall time of the whole conversion with two workers, against one."""
    cli.load_tensorflow()
    from vidpipe import convert

    def seconds(num_workers: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            convert.convert(ConversionConfig(folder, ManifestConfig(video_dir), num_workers=num_workers))
            return time.perf_counter() - start

    rounds = [(seconds(2), seconds(1)) for _ in range(_REPEATS.value)]
    yield _row("convert with 2 workers", "wall s", "1 worker", rounds)


def _floor(path: str, clip: video.VideoClip) -> Callable[[], None]:
    frames = [cv2.cvtColor(frame, cv2.COLOR_RGB2BGR) for frame in clip.frames]
    last = int(clip.frame_indices[-1])

    def run() -> None:
        capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        for _ in range(last + 1):
            capture.grab()
        capture.release()
        for frame in frames:
            cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])

    return run


def _notebook_loader(path: str, clip: ClipConfig) -> np.ndarray:
    """As the keras-io CNN-RNN example loads a video: every frame, then the first T."""
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    frames = []
    while True:
        readable, frame = capture.read()
        if not readable:
            break
        height, width = frame.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = cv2.resize(frame[top : top + side, left : left + side], (clip.image_size, clip.image_size))
        frames.append(square[:, :, [2, 1, 0]])
    capture.release()
    return np.array(frames)[: clip.num_frames]


def _paired(
    name: str,
    unit: str,
    against: str,
    paths: list[str],
    ours: Callable[[str], object],
    theirs: Callable[[str], object],
) -> dict[str, Any]:
    """Both on each video in turn, so that a machine that slows down slows both."""
    rounds = []
    for repeat in range(_REPEATS.value):
        spent = [0.0, 0.0]
        for number, path in enumerate(paths):
            # Who goes second finds the file and the decoder's code in the caches.
            for side in (0, 1) if (number + repeat) % 2 else (1, 0):
                start = time.process_time()
                (ours, theirs)[side](path)
                spent[side] += time.process_time() - start
        rounds.append((1000 * spent[0] / len(paths), 1000 * spent[1] / len(paths)))
    return _row(name, unit, against, rounds)


def _row(name: str, unit: str, against: str, rounds: list[tuple[float, float]]) -> dict[str, Any]:
    ratios = [ours / theirs for ours, theirs in rounds]
    return {
        "what": name, "unit": unit, "against": against,
        "ours": median(ours for ours, _ in rounds), "theirs": median(theirs for _, theirs in rounds),
        "ratio": median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    """Prints a row per measurement, as it is made."""
    if len(arguments) != 1 or arguments[0] not in ("decode", "convert"):
        cli.usage_error("name one benchmark: decode or convert")
    manifest = read_manifest(ManifestConfig(_VIDEO_DIR.value, val_fraction=0))
    paths = [str(Path(_VIDEO_DIR.value) / row.path) for row in manifest]
    print(f"{len(paths)} videos, Python {platform.python_version()}, OpenCV {cv2.__version__}")
    print(f"{'':28}  {'ours':>9}  {'theirs':>9}  {'ratio (min to max)':>24}  against")
    rows = []
    for row in benchmark_decode(paths) if arguments[0] == "decode" else benchmark_convert(_VIDEO_DIR.value):
        rows.append(row)
        ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        print(
            f"{row['what']:28}  {row['ours']:9.2f}  {row['theirs']:9.2f}  {ratio:>24}  "
            f"{row['against']}, {row['unit']}",
            flush=True,
        )
    if _JSON.value is not None:
        Path(_JSON.value).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
