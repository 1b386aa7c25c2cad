"""Measures vidpipe against floors and peers on the same work, in one run, as ratios.

    python tools/benchmark.py decode --video_dir=/data/some_of_UCF-101 --json=decode.json
    python tools/benchmark.py convert --video_dir=/data/some_of_UCF-101

decode: CPU time per clip. Reading and encoding, against the floor: the bare grabbing of the frames up to the
last wanted one plus the bare encoding of the kept ones. Reading alone, against PyAV and decord (which
`pip install '.[benchmark]'` brings), told which frames and held to one thread; and against the notebook's
loader, which decodes, crops and resizes every frame and keeps the first T.
convert: wall time of a conversion with two workers, against one.
"""

import importlib
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
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

# Does the work that gave ours this clip; which frames, how many and how large it may take from the clip.
Peer = Callable[[str, video.VideoClip], object]


def benchmark_decode(paths: list[str], peers: dict[str, Peer]) -> Iterator[dict[str, Any]]:
    """Ours against the floor and the peers for two samplings, and against the notebook's loader."""
    uniform, head = ClipConfig(sampling="uniform"), ClipConfig(sampling="head")
    for clip in (uniform, head):
        what = f"read and encode, {clip.sampling}"
        yield _paired(what, "bare grab and encode", paths, clip, _read_and_encode, _floor)
    for clip in (uniform, head):
        for name, peer in peers.items():
            yield _paired(f"read, {clip.sampling}", name, paths, clip, video.read_clip, peer)
    yield _paired("read, head", "the notebook's loader", paths, head, video.read_clip, _notebook_loader)


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


def installed_peers() -> dict[str, Peer]:
    """The peers by name and version; of one that is not installed a line says how to have it."""
    peers: dict[str, Peer] = {}
    for name, module, read in (("PyAV", "av", _pyav), ("decord", "decord", _decord)):
        try:
            peers[f"{name} {importlib.import_module(module).__version__}"] = read
        except ImportError:
            print(f"{name} is not installed; its rows are left out. pip install '.[benchmark]' brings it.")
    return peers


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
    """Decodes in order up to the last wanted frame, and converts the wanted ones alone."""
    import av
    from av.video.reformatter import VideoReformatter

    # The fastest way found. One reformatter, on one thread: to_ndarray(format="rgb24") with its defaults
    # takes a third more. One array for the clip: a list and np.stack by themselves take as much more.
    reformatter = VideoReformatter()
    frames = np.empty_like(same.frames)
    wanted, count = set(same.frame_indices.tolist()), 0
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "NONE", 1
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                image = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                _write_square(image, frames[count])
                count += 1
                if count == len(frames):
                    break
    return frames


def _decord(path: str, same: video.VideoClip) -> np.ndarray:
    """Asks for all wanted frames at once, which decord reads in order."""
    import decord

    images = decord.VideoReader(path, num_threads=1).get_batch(same.frame_indices).asnumpy()
    frames = np.empty_like(same.frames)
    for image, frame in zip(images, frames, strict=True):
        _write_square(image, frame)
    return frames


def _notebook_loader(path: str, same: video.VideoClip) -> np.ndarray:
    """As the keras-io CNN-RNN example loads a video: every frame, then the first T."""
    num_frames, image_size = same.frames.shape[:2]
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    frames = []
    while True:
        readable, frame = capture.read()
        if not readable:
            break
        square = cv2.resize(_centre_square(frame), (image_size, image_size))
        frames.append(square[:, :, [2, 1, 0]])
    capture.release()
    return np.array(frames)[:num_frames]


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


def _paired(
    what: str,
    against: str,
    paths: list[str],
    clip: ClipConfig,
    ours: Callable[[str, ClipConfig], object],
    theirs: Peer,
) -> dict[str, Any]:
    """Both on each video in turn, so that a machine that slows down slows both."""
    rounds = []
    for repeat in range(_REPEATS.value):
        spent = [0.0, 0.0]
        for number, path in enumerate(paths):
            sides = partial(ours, path, clip), partial(theirs, path, video.read_clip(path, clip))
            # Who goes second finds the file and the decoder's code in the caches.
            for side in (0, 1) if (number + repeat) % 2 else (1, 0):
                spent[side] += _cpu_ms(sides[side])
        rounds.append((spent[0] / len(paths), spent[1] / len(paths)))
    return _row(what, "CPU ms/clip", against, rounds)


def _cpu_ms(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return 1000 * (time.process_time() - start)


def _row(what: str, unit: str, against: str, rounds: list[tuple[float, float]]) -> dict[str, Any]:
    ratios = [ours / theirs for ours, theirs in rounds]
    return {
        "what": what, "unit": unit, "against": against,
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
    if arguments[0] == "decode":
        measured = benchmark_decode(paths, installed_peers())
    else:
        measured = benchmark_convert(_VIDEO_DIR.value)
    print(f"{'':28}  {'ours':>8}  {'theirs':>8}  {'ratio (min to max)':>22}  against", flush=True)
    rows = []
    for row in measured:
        rows.append(row)
        ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        print(
            f"{row['what']:28}  {row['ours']:8.2f}  {row['theirs']:8.2f}  {ratio:>22}  "
            f"{row['against']}, {row['unit']}",
            flush=True,
        )
    if _JSON.value is not None:
        Path(_JSON.value).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
