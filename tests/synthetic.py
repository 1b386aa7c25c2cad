"""Test data that carries its own answer: frame i of a video has brightness 20 + 10 * i."""

import dataclasses
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from vidpipe import video
from vidpipe.config import ClipConfig

# What the fixture `conversion` asks for, as flags of tools/convert_videos.py.
CONVERSION_FLAGS = (
    "--num_frames=4", "--image_size=32", "--encoding=png", "--shard_size_mb=0.03", "--val_fraction=0.2",
    "--num_workers=2",
)  # fmt: skip


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


def write_coded_video(
    path: Path,
    codec: str,
    pixel_format: str,
    frames: np.ndarray,
    timestamps: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
) -> None:
    """Writes a video as FFmpeg would, which writes more kinds than OpenCV; skips the test where it cannot.

    Args:
      path: its ending chooses the container.
      codec: FFmpeg's name of the encoder.
      pixel_format: FFmpeg's name of how colours are stored.
      frames: uint8 [n, H, W, 3], RGB.
      timestamps: when each is shown, ascending, in 1/25 s; None shows one after the other.
      options: of the encoder.
    """
    # Here: spawned workers import this file, and need neither.
    import av
    import pytest

    try:
        av.codec.Codec(codec, "w")
    except ValueError:
        pytest.skip(f"PyAV {av.__version__} has no encoder {codec}")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = Fraction(1, 25)
        for frame, timestamp in zip(frames, timestamps or range(len(frames)), strict=True):
            picture = av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format=pixel_format)
            picture.pts, picture.time_base = timestamp, Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def write_colours(path: Path, colours: Sequence[tuple[int, int, int]], fps: float = 10) -> str:
    """Writes a video of 48 x 64 with a frame of each colour; an .avi as MJPEG, frame by frame."""
    frames = np.broadcast_to(np.array(colours, np.uint8)[:, None, None], (len(colours), 48, 64, 3))
    video.write_video(str(path), frames, fps, fourcc="MJPG")
    return str(path)


def save_colour_model(run_dir: Path, clip: ClipConfig, classes: tuple[str, str, str]) -> None:
    """A run's model that tells blue from red by the mean of the real frames; the class between is never seen.

    Its logits are 3 (blue - red) / 255, -9 and 3 (red - blue) / 255.
    """
    # Here: spawned workers import this file, and have no use for them.
    import keras
    from keras import layers

    from vidpipe.model import ModelCard, save_model

    spec = clip.model_spec()
    shape = (spec.num_frames, spec.height, spec.width, 3)
    frames = keras.Input(shape, dtype="uint8", name="frames")
    mask = keras.Input(shape[:1], dtype="bool", name="mask")
    scaled = layers.Reshape((spec.num_frames, -1))(layers.Rescaling(1 / 255)(frames))
    mean = layers.Reshape(shape[1:])(layers.GlobalAveragePooling1D()(scaled, mask=mask))
    kernel = keras.initializers.Constant(np.array([[-3, 0, 3], [0, 0, 0], [3, 0, -3]]))
    bias = keras.initializers.Constant(np.array([0, -9, 0]))
    logits = layers.Dense(3, kernel_initializer=kernel, bias_initializer=bias)(
        layers.GlobalAveragePooling2D()(mean)
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    model = keras.Model({"frames": frames, "mask": mask}, logits)
    save_model(model, ModelCard(classes, clip), run_dir / "model.keras")


def write_class_folders(folder: Path, videos: dict[str, list[int]]) -> None:
    """Writes Class/video_MM.avi for each class and each number of frames."""
    for class_name, lengths in videos.items():
        for number, num_frames in enumerate(lengths):
            write_brightness_video(folder / class_name / f"video_{number:02d}.avi", num_frames)


def committed_bytes(folder: Path) -> dict[str, bytes]:
    """Every committed file of a dataset: shards, dataset_info.json, videos.csv."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def slow_read(path: str, clip: ClipConfig, encoding: str, quality: int) -> video.EncodedClip:
    """Runs in a worker: reads as ever, but takes long enough to be killed at it."""
    time.sleep(0.1)
    return video.read_encoded_clip(path, clip, encoding, quality)


def read_of_a_file_that_grows(path: str, clip: ClipConfig, encoding: str, quality: int) -> video.EncodedClip:
    """Runs in a worker: whoever copies video_00.avi into place goes on while it is read."""
    read = video.read_encoded_clip(path, clip, encoding, quality)
    if Path(path).name == "video_00.avi":
        with Path(path).open("ab") as file:
            file.write(bytes(8))
    return read


def flaky_read(path: str, clip: ClipConfig, encoding: str, quality: int) -> video.EncodedClip:
    """Runs in a worker: the first to read a video_00.avi dies at it, and leaves a mark for the next."""
    mark = Path(os.environ["FLAKY_READ_MARKS"]) / Path(path).name
    if mark.name == "video_00.avi" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return video.read_encoded_clip(path, clip, encoding, quality)


def greedy_read(path: str, clip: ClipConfig, encoding: str, quality: int) -> video.EncodedClip:
    """Runs in a worker: needs half a GiB for some videos."""
    if Path(path).parts[-2:] == ("long", "video_00.avi"):
        np.ones(2**29, np.uint8)
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


def content_read(path: str, clip: ClipConfig) -> video.VideoClip:
    """Runs in a worker: a file that holds no more than a fault's name has it."""
    _have_fault(Path(path).read_bytes())
    return video.read_clip(path, clip)


def content_lone_read(path: str, clip: ClipConfig) -> video.VideoClip:
    """Runs in a worker: as `content_read`, of a stranger's file."""
    _have_fault(Path(path).read_bytes())
    return video.read_lone_clip(path, clip)


def failing_windows(
    path: str, clip: ClipConfig, window_sec: float, hop_sec: float
) -> Iterator[video.VideoWindow]:
    """Runs in a process: what lies beside the video under its name and `.fault` comes after two windows."""
    yield from itertools.islice(video.read_windows(path, clip, window_sec, hop_sec), 2)
    _have_fault(Path(f"{path}.fault").read_bytes())


def timeless_windows(
    path: str, clip: ClipConfig, window_sec: float, hop_sec: float
) -> Iterator[video.VideoWindow]:
    """Runs in a process: reads as ever, but as if nothing told of time."""
    for window in video.read_windows(path, clip, window_sec, hop_sec):
        yield dataclasses.replace(window, times_known=False)


def _have_fault(name: bytes) -> None:
    if name == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif name == b"hang":
        time.sleep(1000)
    elif name == b"memory":
        np.ones(2**33, np.uint8)
