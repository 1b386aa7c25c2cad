"""Folders of videos to measure on: generated videos, and many links to a few videos."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np

from vidpipe.data import video


def generate_videos(folder: Path, count: int) -> str:
    """Writes XviD files of UCF101's size and length, 320 x 240 and 180 frames, in two class folders.

    Each shows a noisy texture that drifts to the left or to the right. They are written once: a second call
    returns the same folder.

    Returns:
      The folder of the videos, in `folder`.
    """
    video_dir = folder / f"{count}_videos"
    if video_dir.is_dir():
        return str(video_dir)
    for number in range(count):
        random = np.random.default_rng(number)
        texture = cv2.resize(random.integers(0, 256, (12, 16, 3), np.uint8), (320, 240))
        drift = random.integers(-3, 4, 2)
        noise = random.integers(-8, 9, texture.shape)
        path = video_dir / ("right" if drift[1] > 0 else "left") / f"{number}.avi"
        frames = itertools.islice(_drifting(texture, drift, noise), 180)
        video.write_video(str(path), frames, fourcc="XVID")
    return str(video_dir)


def generate_long_video(folder: Path, seconds: int) -> str:
    """Writes an H.264 file of 640 x 360 pixels, 25 fps, with a keyframe every 10 seconds; returns its path.

    Ten seconds of a noisy texture that drifts are encoded once, and stored again and again.
    """
    path = str(folder / f"{seconds}.mp4")
    random = np.random.default_rng(0)
    texture = cv2.resize(random.integers(0, 256, (12, 16, 3), np.uint8), (640, 360))
    noise = random.integers(-8, 9, texture.shape)
    fps, group_sec = 25, min(10, seconds)
    with av.open(path, "w") as container:
        options = {"g": "250", "keyint_min": "250", "sc_threshold": "0", "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        encoded = []
        for frame in itertools.islice(_drifting(texture, np.array([1, 2]), noise), fps * group_sec):
            encoded += stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24"))
        encoded += stream.encode()
        for start_sec in range(0, seconds, group_sec):
            for packet in encoded:
                copy = av.Packet(bytes(packet))
                shift = round(start_sec / packet.time_base)
                copy.pts, copy.dts = packet.pts + shift, packet.dts + shift
                copy.time_base, copy.is_keyframe, copy.stream = packet.time_base, packet.is_keyframe, stream
                container.mux(copy)
    return path


def _drifting(texture: np.ndarray, drift: np.ndarray, noise: np.ndarray) -> Iterator[np.ndarray]:
    """Yields uint8 frames like the texture, each shifted by `drift` (rows, columns) from the last one."""
    for number in itertools.count():
        shifted = np.roll(texture, number * drift, (0, 1))
        yield np.clip(shifted + noise, 0, 255).astype(np.uint8)


def link_copies(paths: Iterable[str], video_dir: str, linked_dir: str, copies: int) -> None:
    """Makes the same class folders in `linked_dir`, with `copies` links to each video."""
    for path in map(Path, paths):
        folder = linked_dir / path.relative_to(video_dir).parent
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(copies):
            (folder / f"{number}_{path.name}").symlink_to(path.resolve())
