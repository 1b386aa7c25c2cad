"""Synthetic videos with known content (frame i has brightness 20 + 10 * i), and readers that fail."""

import dataclasses
import hashlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from vidpipe.config import ClipConfig, ClipSpec
from vidpipe.data import video
from vidpipe.data.process_pool import ReaderPool
from vidpipe.data.skip_reason import SkipReason

if TYPE_CHECKING:
    import keras

# The settings of the fixture `conversion` as flags of tools/convert_videos.py.
CONVERSION_FLAGS = (
    "--num_frames=4", "--image_size=32", "--encoding=png", "--shard_size_mb=0.03", "--val_fraction=0.2",
    "--num_workers=2",
)  # fmt: skip


def brightness_frames(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Makes frames of growing brightness: uint8 [n, H, W, 3], n at most 23."""
    levels = 20 + 10 * np.arange(num_frames)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)).astype(np.uint8)


def position_frames(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Makes uint8 [n, H, W, 3]; red grows from left to right, green from top to bottom, blue in time."""
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    frames[..., 0] = np.linspace(0, 255, width)
    frames[..., 1] = np.linspace(0, 255, height)[:, np.newaxis]
    frames[..., 2] = np.linspace(0, 255, num_frames)[:, np.newaxis, np.newaxis]
    return frames


def frame_indices_of(frames: np.ndarray) -> list[int]:
    """Returns the index of each frame of a brightness video, computed from its brightness."""
    return np.rint((frames.reshape(len(frames), -1).mean(axis=1) - 20) / 10).astype(int).tolist()


def write_brightness_video(path: Path, num_frames: int, height: int = 48, width: int = 64) -> Path:
    """Writes a brightness video; .avi is encoded as XviD, .mp4 as MPEG-4."""
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
    *,
    source_format: str = "rgb24",
    prepare: Callable[[Any], object] = lambda stream: None,
    container_options: dict[str, str] | None = None,
    **colours: int,
) -> None:
    """Writes a video with FFmpeg, which has more encoders than OpenCV; skips the test if this one is missing.

    Args:
      path: the suffix chooses the container.
      codec: FFmpeg's name of the encoder.
      pixel_format: FFmpeg's name of the pixel format.
      frames: uint8 [n, H, W, 3], RGB; or as `source_format` says.
      timestamps: time of each frame in 1/25 s, ascending; None for a constant rate.
      options: options of the encoder.
      source_format: FFmpeg's name of the format of `frames`.
      prepare: called with the stream of PyAV before the first frame.
      container_options: options of the container.
      colours: attributes of the stream and the frames, such as colorspace.
    """
    # Imported here: spawned decoding processes import this module and do not need it.
    import pytest

    try:
        av.codec.Codec(codec, "w")
    except ValueError:
        pytest.skip(f"PyAV {av.__version__} has no encoder {codec}")
    with av.open(f"file:{path}", "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = Fraction(1, 25)
        for name, value in colours.items():
            setattr(stream.codec_context, name, value)
        prepare(stream)
        for frame, timestamp in zip(frames, timestamps or range(len(frames)), strict=True):
            picture = av.VideoFrame.from_ndarray(frame, source_format)
            if source_format != pixel_format:
                picture = picture.reformat(format=pixel_format)
            for name, value in colours.items():
                setattr(picture, name, value)
            picture.pts, picture.time_base = timestamp, Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def write_colours(path: Path, colours: Sequence[tuple[int, int, int]], fps: float = 10) -> str:
    """Writes a video of 48 x 64 pixels with one frame per colour, encoded as MJPEG."""
    frames = np.broadcast_to(np.array(colours, np.uint8)[:, None, None], (len(colours), 48, 64, 3))
    video.write_video(str(path), frames, fps=fps, fourcc="MJPG")
    return str(path)


def pixel_model(
    clip_spec: ClipSpec, pool: Callable[["keras.KerasTensor"], "keras.KerasTensor"], logits: "keras.Layer"
) -> "keras.Model":
    """Builds a quick model with the parts of a real one: logits of the real frames' mean.

    Args:
      clip_spec: of its inputs.
      pool: pixels float32 [N, H, W, 3] in 0..1 -> [N, D], its backbone.
      logits: [B, D] -> [B, C], its head.
    """
    # Imported here: spawned decoding processes import this module and need no Keras.
    import keras
    from keras import layers

    shape = (clip_spec.num_frames, clip_spec.height, clip_spec.width, 3)
    image, pixels = keras.Input(shape[1:], dtype="uint8"), keras.Input(shape[1:])
    preprocess = keras.Model(image, layers.Rescaling(1 / 255)(image), name="preprocess")
    backbone = keras.Model(pixels, pool(pixels), name="backbone")
    frames = keras.Input(shape, dtype="uint8", name="frames")
    mask = keras.Input(shape[:1], dtype="bool", name="mask")
    encoded = backbone(preprocess(keras.ops.reshape(frames, [-1, *shape[1:]])))
    features = keras.ops.reshape(encoded, [-1, shape[0], encoded.shape[-1]])
    pooled = layers.Identity(name="pooled")(features)
    mean = layers.GlobalAveragePooling1D()(pooled, mask=mask)
    return keras.Model({"frames": frames, "mask": mask}, logits(mean))


def save_colour_model(run_dir: Path, clip: ClipConfig, classes: tuple[str, str, str]) -> None:
    """Saves a model that classifies clips by their mean colour: blue, a class that never wins, red.

    Its logits are 3 (blue - red) / 255, -9 and 3 (red - blue) / 255, computed from the real frames.
    """
    import keras
    from keras import layers

    from vidpipe.model.model_file import ModelMetadata, save_model

    kernel = keras.initializers.Constant(np.array([[-3, 0, 3], [0, 0, 0], [3, 0, -3]]))
    bias = keras.initializers.Constant(np.array([0, -9, 0]))
    logits = layers.Dense(3, kernel_initializer=kernel, bias_initializer=bias)
    model = pixel_model(clip.spec(clip.num_frames), layers.GlobalAveragePooling2D(), logits)
    run_dir.mkdir(parents=True, exist_ok=True)
    save_model(model, ModelMetadata(classes, clip, clip.num_frames), run_dir / "model.keras")


def edit_videos_csv(folder: Path, old: str, new: str) -> None:
    """Replaces text in videos.csv of a dataset, and writes its digest into dataset_info.json."""
    table, info = folder / "videos.csv", folder / "dataset_info.json"
    table.write_text(table.read_text().replace(old, new))
    values = json.loads(info.read_text())
    values["videos_sha256"] = hashlib.sha256(table.read_bytes()).hexdigest()
    info.write_text(json.dumps(values))


def touch(folder: Path, *names: str) -> None:
    """Makes empty files, and the folders that they are in."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write_class_folders(folder: Path, videos: dict[str, list[int]]) -> None:
    """Writes Class/video_MM.avi for each class and each number of frames."""
    for class_name, lengths in videos.items():
        for number, num_frames in enumerate(lengths):
            write_brightness_video(folder / class_name / f"video_{number:02d}.avi", num_frames)


def committed_bytes(folder: Path) -> dict[str, bytes]:
    """Reads every committed file of a dataset: shards, dataset_info.json, videos.csv."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


class InProcessPool(ReaderPool):
    """Reads videos in this process: starting decoding processes takes most of the time of a small test."""

    def __init__(self, *, num_workers: int = 1, timeout_sec: float = 60, memory_mb: int = 4096) -> None:
        del memory_mb
        self._num_workers, self._timeout_sec = num_workers, timeout_sec

    def __enter__(self) -> "InProcessPool":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _start(self, function: Callable[..., Any], arguments: Sequence[Any], num_videos: int = 1) -> Future:
        del num_videos
        future: Future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


def slow_read(path: str, clip: ClipConfig, encoding: str, quality: int) -> video.EncodedClip:
    """Runs in a decoding process: reads slowly, so that it can be killed while reading."""
    time.sleep(0.1)
    return video.read_encoded_clip(path, clip, encoding, quality)


def stuck_read(path: str, clip: ClipConfig, encoding: str, quality: int) -> video.EncodedClip:
    """Runs in a decoding process: takes a minute."""
    time.sleep(60)
    return video.read_encoded_clip(path, clip, encoding, quality)


def read_of_a_file_that_grows(path: str, clip: ClipConfig, encoding: str, quality: int) -> video.EncodedClip:
    """Runs in a decoding process: video_00.avi grows while it is read, as a file that is being copied."""
    clip_read = video.read_encoded_clip(path, clip, encoding, quality)
    if Path(path).name == "video_00.avi":
        with Path(path).open("ab") as file:
            file.write(bytes(8))
    return clip_read


def flaky_read(path: str, clip: ClipConfig, encoding: str, quality: int) -> video.EncodedClip:
    """Runs in a decoding process: kills the first process that reads a video_00.avi."""
    mark = Path(os.environ["FLAKY_READ_MARKS"]) / Path(path).name
    if mark.name == "video_00.avi" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return video.read_encoded_clip(path, clip, encoding, quality)


_HOARD: list[np.ndarray] = []


def greedy_read(path: str, clip: ClipConfig, encoding: str, quality: int) -> video.EncodedClip:
    """Runs in a decoding process: needs half a GiB for some videos."""
    if Path(path).parts[-2:] == ("long", "video_00.avi"):
        np.ones(2**29, np.uint8)
    return video.read_encoded_clip(path, clip, encoding, quality)


def hoarding_read(path: str, clip: ClipConfig) -> video.VideoClip:
    """Runs in a decoding process: keeps 200 MiB for ever, as libraries may."""
    _HOARD.append(np.ones(200 << 20, np.uint8))
    return video.read_clip(path, clip)


def faulty_read(path: str, clip: ClipConfig, encoding: str, quality: int) -> video.EncodedClip:
    """Runs in a decoding process: crashes for one video, hangs for one, and reports its modules for one."""
    name = "/".join(Path(path).parts[-2:])
    if name == "long/video_00.avi":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "long/video_01.avi":
        time.sleep(1000)
    if name == "long/video_02.avi":
        loaded = [module for module in ("tensorflow", "keras") if module in sys.modules]
        raise video.VideoReadError(path, SkipReason.CANNOT_OPEN, f"worker has {loaded}")
    return video.read_encoded_clip(path, clip, encoding, quality)


def content_read(path: str, clip: ClipConfig) -> video.VideoClip:
    """Runs in a decoding process: a file that contains only the name of a fault causes it."""
    _cause_fault(Path(path).read_bytes())
    return video.read_clip(path, clip)


def content_untrusted_read(path: str, clip: ClipConfig) -> video.VideoClip:
    """Runs in a decoding process: like `content_read`, for an untrusted file."""
    _cause_fault(Path(path).read_bytes())
    return video.read_untrusted_clip(path, clip)


def blocked_signals() -> Iterator[list[int]]:
    """Runs in a decoding process: yields the signals that do not reach it."""
    yield [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]


def failing_windows(
    path: str, clip: ClipConfig, window_sec: float, hop_sec: float
) -> Iterator[video.VideoWindow]:
    """Runs in a process: after two windows, causes the fault named in the file `<path>.fault`."""
    yield from itertools.islice(video.read_windows(path, clip, window_sec, hop_sec), 2)
    _cause_fault(Path(f"{path}.fault").read_bytes())


def timeless_windows(
    path: str, clip: ClipConfig, window_sec: float, hop_sec: float
) -> Iterator[video.VideoWindow]:
    """Runs in a process: reads the windows as if the file had no times."""
    for window in video.read_windows(path, clip, window_sec, hop_sec):
        yield dataclasses.replace(window, times_known=False)


def _cause_fault(name: bytes) -> None:
    if name == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif name == b"hang":
        time.sleep(1000)
    elif name == b"memory":
        np.ones(2**33, np.uint8)


def record_start(data: bytes | bytearray, position: int) -> int:
    """Returns the offset of a record in a TFRecord file.

    A record is 8 bytes of length and 4 of checksum, then the payload and 4 bytes of checksum.
    """
    start = 0
    for _ in range(position):
        start += 16 + int.from_bytes(data[start : start + 8], "little")
    return start


def flip_bit(path: Path, position: int = 0) -> None:
    """Flips a bit in the payload of a record of a TFRecord file."""
    data = bytearray(path.read_bytes())
    data[record_start(data, position) + 200] ^= 1
    path.write_bytes(data)


# Run in a page, it returns the number of texts, and (ratio, text) where the contrast to the background is
# below 4.5 (WCAG 2).
LOW_CONTRAST = """
const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const parse = (c) => {
  const n = c.match(/[\\d.]+/g).map(Number);
  const scale = c.startsWith("color(") ? 255 : 1;
  return [n[0] * scale, n[1] * scale, n[2] * scale, n[3] ?? 1];
};
const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
document.querySelectorAll("details").forEach((d) => { d.open = true; });
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const low = [];
let count = 0;
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
  let behind = element;
  while (parse(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const colours = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
  const both = colours.map((colour) => luminance(parse(colour)));
  const ratio = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
  count += 1;
  if (ratio < 4.5) low.push([ratio, walker.currentNode.data]);
}
return [count, low];
"""
