"""Reading videos, in one process: CPU time per clip.

read and encode, SAMPLING
    against OpenCV's bare calls: grabbing the frames up to the last one of the clip, and encoding its frames
read, SAMPLING
    against OpenCV, PyAV and decord, which are given the frame indices and run on one thread; OpenCV grabs up
    to the last frame and retrieves the wanted ones
read, head
    against the notebook's loader, which decodes, crops and resizes every frame and keeps the first T

read, N s of H.264
    the same against OpenCV, on a generated video of 640 x 360 pixels with a keyframe every 10 s
moments, N s of H.264
    reading and encoding moments of 2 s, one of them every 3.6 s: a thousand in an hour, against decoding each
    frame of the video once with PyAV and nothing else
timeline, N s of H.264
    reading every window of the video, against decoding each of its frames once with PyAV and nothing else

A round reads each video 25 times. A hundred videos are enough.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from measurement import Rounds, Row, Workload, cpu_ms, make_row
from references import (
    ReadSameClip,
    decode_everything,
    grab_and_encode,
    installed_readers,
    read_as_notebook,
    read_with_opencv,
)
from video_folders import generate_long_video
from vidpipe.config import ClipConfig, ConversionConfig
from vidpipe.data import moment_reader, video
from vidpipe.data.moment import Moment

_MOMENT_SEC, _MOMENT_EVERY_SEC = 2, 3.6
_ReadClip = Callable[[str, ClipConfig], object]


def measure(workload: Workload) -> Iterator[Row]:
    """Measures two samplings against the bare calls and the installed libraries, one against the notebook."""
    uniform, head = ClipConfig(sampling="uniform"), ClipConfig(sampling="head")
    readers = {"OpenCV": read_with_opencv} | installed_readers()

    def row(what: str, reference: str, clip: ClipConfig, read: _ReadClip, read_same: ReadSameClip) -> Row:
        rounds = _compare(workload.paths, clip, read, read_same, workload.repeats)
        return make_row(what, unit="CPU ms/clip", reference=reference, rounds=rounds)

    for clip in (uniform, head):
        what = f"read and encode, {clip.sampling}"
        yield row(what, "bare grab and encode", clip, _read_and_encode, grab_and_encode)
    for clip in (uniform, head):
        for name, read_same in readers.items():
            yield row(f"read, {clip.sampling}", name, clip, video.read_clip, read_same)
    yield row("read, head", "notebook's loader", head, video.read_clip, read_as_notebook)
    with tempfile.TemporaryDirectory() as folder:
        long_videos = {
            seconds: generate_long_video(Path(folder), seconds) for seconds in workload.video_seconds
        }
        for seconds, path in long_videos.items():
            rounds = _compare([path], uniform, video.read_clip, read_with_opencv, workload.repeats)
            what = f"read, {seconds} s of H.264"
            yield make_row(what, unit="CPU ms/clip", reference="OpenCV", rounds=rounds)
        seconds, path = list(long_videos.items())[-1]
        rounds = _compare([path], uniform, partial(_read_moments, seconds), decode_everything, 1)
        what = f"moments, {seconds} s of H.264"
        yield make_row(what, unit="CPU ms/video", reference="bare decoding", rounds=rounds)
        seconds, path = list(long_videos.items())[1]
        rounds = _compare([path], uniform, _read_windows, decode_everything, workload.repeats)
        what = f"timeline, {seconds} s of H.264"
        yield make_row(what, unit="CPU ms/video", reference="bare decoding", rounds=rounds)


def _read_windows(path: str, clip: ClipConfig) -> None:
    for _ in video.read_windows(path, clip, 2, 1):
        pass


def _read_moments(seconds: int, path: str, clip: ClipConfig) -> None:
    for number in range(int(seconds / _MOMENT_EVERY_SEC)):
        start = number * _MOMENT_EVERY_SEC
        moment = Moment(start, start + _MOMENT_SEC)
        moment_reader.read_encoded_clip(path, clip, "jpeg", ConversionConfig.jpeg_quality, moment)


def _read_and_encode(path: str, clip: ClipConfig) -> object:
    return video.read_encoded_clip(path, clip, "jpeg", ConversionConfig.jpeg_quality)


def _compare(
    paths: Sequence[str], clip: ClipConfig, read: _ReadClip, read_same: ReadSameClip, repeats: int
) -> Rounds:
    """Reads each video both ways in turn, so that a machine that slows down slows both; ms per clip."""
    rounds = []
    for repeat in range(repeats):
        spent = [0.0, 0.0]
        for number, path in enumerate(paths):
            sides = partial(read, path, clip), partial(read_same, path, video.read_clip(path, clip))
            # The second finds the file and the decoder's code in the caches.
            for side in (0, 1) if (number + repeat) % 2 else (1, 0):
                spent[side] += cpu_ms(sides[side])
        rounds.append((spent[0] / len(paths), spent[1] / len(paths)))
    return rounds
