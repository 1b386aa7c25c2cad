"""Folders of videos to measure on: generated videos, and many links to a few videos."""

from collections.abc import Iterable, Iterator
from pathlib import Path

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
        video.write_video(str(path), _drifting(texture, drift, noise), fourcc="XVID")
    return str(video_dir)


def _drifting(texture: np.ndarray, drift: np.ndarray, noise: np.ndarray) -> Iterator[np.ndarray]:
    """Yields 180 frames uint8 [240, 320, 3], each shifted by `drift` (rows, columns) from the one before."""
    for number in range(180):
        shifted = np.roll(texture, number * drift, (0, 1))
        yield np.clip(shifted + noise, 0, 255).astype(np.uint8)


def link_copies(paths: Iterable[str], video_dir: str, linked_dir: str, copies: int) -> None:
    """Makes the same class folders in `linked_dir`, with `copies` links to each video."""
    for path in map(Path, paths):
        folder = linked_dir / path.relative_to(video_dir).parent
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(copies):
            (folder / f"{number}_{path.name}").symlink_to(path.resolve())
