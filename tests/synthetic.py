"""Test data that carries its own answer: frame i of a video has brightness 20 + 10 * i."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from vidpipe import video
from vidpipe.config import ClipConfig


def brightness_frames(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 [n, H, W, 3]; n at most 23, so that the brightness stays in range."""
    levels = 20 + 10 * np.arange(num_frames)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)).astype(np.uint8)


def position_frames(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 [n, H, W, 3]: red grows from left to right, green from top to bottom, blue with the frame."""
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    frames[..., 0] = np.linspace(0, 255, width)
    frames[..., 1] = np.linspace(0, 255, height)[:, np.newaxis]
    frames[..., 2] = np.linspace(0, 255, num_frames)[:, np.newaxis, np.newaxis]
    return frames


def frame_indices_of(frames: np.ndarray) -> list[int]:
    """The index that each frame of a brightness video tells by its brightness."""
    return np.rint((frames.reshape(len(frames), -1).mean(axis=1) - 20) / 10).astype(int).tolist()


def write_brightness_video(path: Path, num_frames: int, height: int = 48, width: int = 64) -> Path:
    """Writes a brightness video; .avi as XviD, .mp4 as MPEG-4."""
    fourcc = "XVID" if path.suffix == ".avi" else "mp4v"
    video.write_video(str(path), brightness_frames(num_frames, height, width), fourcc=fourcc)
    return path


def write_class_folders(folder: Path, videos: dict[str, list[int]]) -> None:
    """Writes Class/video_MM.avi for each class and each number of frames."""
    for class_name, lengths in videos.items():
        for number, num_frames in enumerate(lengths):
            write_brightness_video(folder / class_name / f"video_{number:02d}.avi", num_frames)


def slow_read(path: str, clip: ClipConfig, encoding: str, quality: int) -> video.EncodedClip:
    """Runs in a worker: reads as ever, but takes long enough to be killed at it."""
    time.sleep(0.1)
    return video.read_encoded_clip(path, clip, encoding, quality)


def faulty_read(path: str, clip: ClipConfig, encoding: str, quality: int) -> video.EncodedClip:
    """Runs in a worker: one video kills it, one never returns, one is reported with the worker's modules."""
    name = "/".join(Path(path).parts[-2:])
    if name == "long/video_00.avi":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "long/video_01.avi":
        time.sleep(1000)
    if name == "long/video_02.avi":
        loaded = [module for module in ("tensorflow", "keras") if module in sys.modules]
        raise video.VideoReadError(path, f"worker has {loaded}")
    return video.read_encoded_clip(path, clip, encoding, quality)
