"""Video files to RGB frames and back: the only importer of OpenCV. Outside this module colours are RGB.

Frames are decoded in order: `grab()` for each frame, `retrieve()` only for those wanted. OpenCV's seeking is
not frame-accurate, and its frame count comes from the file's header and can be wrong.
"""

import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

# FFmpeg and OpenCV report a corrupt file on stderr, once per frame; our callers name the file and the reason
# instead. OpenCV reads these variables when it is first imported.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
import cv2
import numpy as np

from vidpipe.config import ClipConfig, ConversionConfig
from vidpipe.data.sampling import depends_on_length, sample_indices, windowed, windows_at
from vidpipe.data.skip_reason import Failure, SkipReason
from vidpipe.errors import VidpipeError

# A container without an index (MPEG program streams, WebM) gives an estimate of its frame count, usually a
# few frames off. A file that gives less than this fraction of the claimed frames is truncated, unless its
# frames are spread over this fraction of its duration: a varying frame rate also makes the estimate wrong.
MIN_READABLE_FRACTION = 0.9
# 16384 x 16384: beyond any camera, and a frame of that size takes 800 MB.
MAX_FRAME_PIXELS = 2**28
# The longest side of a stored frame, pixels: the limit of JPEG.
MAX_FRAME_SIDE = 65500
# For files whose header and frames give neither a rate nor times.
ASSUMED_FPS = 25
OUT_OF_MEMORY = Failure(SkipReason.OUT_OF_MEMORY, "needs more memory than the limit")


class VideoReadError(VidpipeError):
    """A video cannot be read.

    Args:
      path: the video.
      reason: why, as a value that code can act on.
      message: why, in a few words without the path.
    """

    def __init__(self, path: str, reason: SkipReason, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.failure = Failure(reason, message)

    def __reduce__(self) -> tuple[type, tuple[str, SkipReason, str]]:
        return VideoReadError, (self.path, self.failure.reason, self.failure.message)


class VideoWriteError(VidpipeError):
    """A video cannot be written."""


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a video that are known after it was read.

    Attributes:
      frames_claimed: frame count according to the header; 0 or less if the header has none.
      frames_decoded: number of frames read; the true length of the video if `read_to_end`.
      read_to_end: False if reading stopped before the end, because all wanted frames were read.
      fps: frames per second according to the header; 0 if the header has none.
      height, width: size of the first wanted frame in pixels, after the rotation that the file asks for.
    """

    frames_claimed: int
    frames_decoded: int
    read_to_end: bool
    fps: float
    height: int
    width: int


@dataclass(frozen=True)
class VideoClip:
    """The sampled frames of a video.

    Attributes:
      frames: uint8 [n, H, W, 3], RGB, 0..255; n <= num_frames, H and W from `ClipConfig.frame_size`.
      frame_indices: int64 [n], index of each frame in the video, ascending.
      info: facts about the video.
    """

    frames: np.ndarray
    frame_indices: np.ndarray
    info: VideoInfo


@dataclass(frozen=True)
class EncodedClip:
    """A clip with encoded frames, small enough to be sent to another process.

    Attributes:
      encoded_frames: n frames, each encoded by `encode_frame`.
      height, width: size of these frames in pixels.
      frame_indices, info: as in `VideoClip`.
    """

    encoded_frames: list[bytes]
    height: int
    width: int
    frame_indices: np.ndarray
    info: VideoInfo


@dataclass(frozen=True)
class VideoWindow:
    """The sampled frames of one time window of a video.

    Attributes:
      start_sec, end_sec: seconds from the first frame of the video; the last window ends with the video.
      frames: uint8 [n, H, W, 3], RGB, as in `VideoClip`.
      video_sec: duration of the video according to its header; 0 if the header has none.
      times_known: False if the file gives no times, and `ASSUMED_FPS` frames per second were assumed.
    """

    start_sec: float
    end_sec: float
    frames: np.ndarray
    video_sec: float
    times_known: bool


def read_clip(path: str, clip: ClipConfig) -> VideoClip:
    """Decodes the frames selected by `clip`, cropped and resized.

    The indices are computed from the frame count in the header. Only if that count turns out to be wrong is
    the video read a second time, with indices computed from the true count.

    Args:
      path: a video file that OpenCV's FFmpeg can open.
      clip: which frames, and their size.

    Returns:
      The clip, with at least one frame.

    Raises:
      VideoReadError: the file does not open, has no frame, ends early, or a wanted frame cannot be decoded.
    """
    video_clip = _read_bgr(path, clip)
    for frame in video_clip.frames:
        cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, dst=frame)
    return video_clip


def read_untrusted_clip(path: str, clip: ClipConfig) -> VideoClip:
    """Reads the clip of an untrusted file: while it is open, the process cannot open any other file.

    To FFmpeg a playlist is a video too, and it would open the files and addresses that the playlist names.
    Call this in a worker process: the limit applies to all threads of the process.
    """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_descriptor = os.open(os.devnull, os.O_RDONLY)  # the video will get the same number
    os.close(next_descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_descriptor + 1, limits[1]))
    try:
        return read_clip(path, clip)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def read_windows(path: str, clip: ClipConfig, window_sec: float, hop_sec: float) -> Iterator[VideoWindow]:
    """Decodes a video once, in order, and samples each time window as if it were a video.

    A window holds the frames whose timestamps lie in it, so the frame rate may vary. Only the frames of one
    window are in memory, cropped and resized.

    Args:
      path: as in `read_clip`.
      clip: which frames of a window, and their size.
      window_sec: length of a window, as in `sampling.windows_at`.
      hop_sec: time between the starts of two windows, as in `sampling.windows_at`.

    Yields:
      The windows of `sampling.windowed`, at least one.

    Raises:
      VideoReadError: as in `read_clip`; if the file ends early, after the windows that could be read.
    """
    times: list[float] = []
    with _open(path) as capture:
        claimed, fps = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), float(capture.get(cv2.CAP_PROP_FPS))
        step = 1 / (fps if fps > 0 else ASSUMED_FPS)
        video_sec = max(0, claimed) * step
        times_known = True

        def timed_frames() -> Iterator[tuple[float, np.ndarray]]:
            nonlocal times_known
            image = size = None
            for time, has_timestamp in _grab_timed(capture, step):
                times.append(time)
                times_known &= has_timestamp or fps > 0
                if not windows_at(time, window_sec=window_sec, hop_sec=hop_sec):
                    continue
                is_readable, image = capture.retrieve(image)
                if not is_readable:
                    raise _corrupt_frame(path, len(times) - 1)
                size = size or clip.frame_size(*image.shape[:2])
                frame = np.empty((*size, 3), np.uint8)
                _write_frame(image, frame, clip.resize)
                yield time, frame

        for index, frames in windowed(timed_frames(), window_sec=window_sec, hop_sec=hop_sec):
            wanted = _wanted_indices(clip, len(frames))
            sampled = np.stack([cv2.cvtColor(frames[i], cv2.COLOR_BGR2RGB) for i in wanted])
            start = round(index * hop_sec, 6)
            end = round(min(start + window_sec, times[-1] + step), 6)
            yield VideoWindow(start, end, sampled, video_sec, times_known)
        if not times:
            raise _no_frames(path, capture)
    # Both the count and the time of the last frame are too small; unlike in `read_clip`, gaps are allowed.
    if len(times) < MIN_READABLE_FRACTION * claimed and times[-1] < MIN_READABLE_FRACTION * video_sec:
        raise VideoReadError(path, SkipReason.TRUNCATED, f"ended after {len(times)} of {claimed} frames")


def read_encoded_clip(path: str, clip: ClipConfig, encoding: str, jpeg_quality: int) -> EncodedClip:
    """Reads a clip as `read_clip` does and encodes its frames; a decoding process calls this."""
    video_clip = _read_bgr(path, clip)
    encoded = [_encode_bgr(frame, encoding, jpeg_quality) for frame in video_clip.frames]
    height, width = video_clip.frames.shape[1:3]
    return EncodedClip(encoded, height, width, video_clip.frame_indices, video_clip.info)


def encode_frame(
    frame: np.ndarray, encoding: str, jpeg_quality: int = ConversionConfig.jpeg_quality
) -> bytes:
    """Encodes one frame.

    Args:
      frame: uint8 [H, W, 3], RGB.
      encoding: one of `config.ENCODINGS`; `raw` is the uncompressed RGB bytes, row by row.
      jpeg_quality: 1 to 100; only used for `jpeg`.
    """
    return _encode_bgr(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), encoding, jpeg_quality)


def write_video(path: str, frames: Iterable[np.ndarray], *, fps: float = 25, fourcc: str = "XVID") -> None:
    """Writes frames as a video; the suffix of `path` chooses the container.

    Args:
      path: the file; its folder is created.
      frames: uint8 [H, W, 3], RGB, all of one size.
      fps: frames per second.
      fourcc: four-letter code of the encoder.

    Raises:
      VideoWriteError: OpenCV has no encoder `fourcc` for this container.
    """
    writer = None
    for frame in frames:
        if writer is None:
            height, width = frame.shape[:2]
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            code = cv2.VideoWriter.fourcc(*fourcc)
            writer = cv2.VideoWriter(path, cv2.CAP_FFMPEG, code, fps, (width, height))
            if not writer.isOpened():
                raise VideoWriteError(
                    f"{path} cannot be written: OpenCV has no encoder {fourcc} for this container."
                )
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    if writer is not None:
        writer.release()


def limit_memory(megabytes: int) -> None:
    """Limits the data memory of this process, in MiB; a decoding process calls this first.

    A video that needs more memory then fails alone, without affecting other processes.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (megabytes << 20, resource.RLIM_INFINITY))


class _Decoded(NamedTuple):
    """Result of one pass over a video.

    Attributes:
      frames: uint8 [n, H, W, 3], BGR: the wanted frames that the video has, cropped and resized.
      num_read: number of frames read, wanted or not.
      read_to_end: whether the video ended.
      height, width: size of the first wanted frame before it was cropped and resized, pixels.
    """

    frames: np.ndarray
    num_read: int
    read_to_end: bool
    height: int
    width: int


def _read_bgr(path: str, clip: ClipConfig) -> VideoClip:
    """Reads a clip as `read_clip` does, but with BGR frames, as OpenCV decodes and encodes them."""
    needs_length = depends_on_length(clip.sampling, clip.frame_stride)
    with _open(path) as capture:
        claimed = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        fps = float(capture.get(cv2.CAP_PROP_FPS))
        # For a rule that does not depend on the length, assume one that is long enough: the claim may be
        # too small.
        length = max(1, claimed) if needs_length else clip.num_frames * (clip.frame_stride or 1)
        wanted = _wanted_indices(clip, length)
        decoded = _decode(capture, path, wanted, clip, read_to_end=needs_length)
    num_read, read_to_end = decoded.num_read, decoded.read_to_end
    expected = claimed if needs_length else min(claimed, int(wanted[-1]) + 1)
    if num_read < MIN_READABLE_FRACTION * expected:
        duration_sec = claimed / fps if fps else 0
        if not _covers_duration(_frame_times(path), duration_sec):
            raise VideoReadError(path, SkipReason.TRUNCATED, f"ended after {num_read} of {expected} frames")
    if needs_length and num_read != length:
        wanted = _wanted_indices(clip, num_read)
        with _open(path) as capture:
            decoded = _decode(capture, path, wanted, clip, read_to_end=False)
        if len(decoded.frames) < len(wanted):
            raise VideoReadError(
                path, SkipReason.TRUNCATED, "has a different number of frames each time it is read"
            )
    info = VideoInfo(
        frames_claimed=claimed,
        frames_decoded=num_read,
        read_to_end=read_to_end,
        fps=fps,
        height=decoded.height,
        width=decoded.width,
    )
    return VideoClip(decoded.frames, wanted[: len(decoded.frames)], info)


def _wanted_indices(clip: ClipConfig, video_num_frames: int) -> np.ndarray:
    return sample_indices(
        clip.sampling,
        video_num_frames=video_num_frames,
        num_frames=clip.num_frames,
        frame_stride=clip.frame_stride,
    )


def _encode_bgr(frame: np.ndarray, encoding: str, jpeg_quality: int) -> bytes:
    if encoding == "raw":
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).tobytes()
    suffix, flags = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]) if encoding == "jpeg" else (".png", [])
    return cv2.imencode(suffix, frame, flags)[1].tobytes()


@contextmanager
def _open(path: str) -> Iterator[cv2.VideoCapture]:
    """Opens a video for a block; errors of OpenCV inside the block become a VideoReadError."""
    if not Path(path).is_file():
        raise VideoReadError(path, SkipReason.NOT_FOUND, "no such file")
    if path != path.encode(errors="replace").decode():  # OpenCV would crash
        raise VideoReadError(path, SkipReason.CANNOT_OPEN, "has a path that is not UTF-8")
    # CAP_FFMPEG: with its default backends OpenCV takes `img_01.png` for the start of an image sequence.
    # One thread: for many videos, one process per core is faster than threads within a video.
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    # Off by default: videos recorded on phones would be rotated by 90 degrees.
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    try:
        if not capture.isOpened():
            raise VideoReadError(path, SkipReason.CANNOT_OPEN, "does not open as a video")
        pixels = capture.get(cv2.CAP_PROP_FRAME_HEIGHT) * capture.get(cv2.CAP_PROP_FRAME_WIDTH)
        if pixels > MAX_FRAME_PIXELS:
            raise VideoReadError(
                path, SkipReason.TOO_LARGE, f"larger than the limit: {pixels:.0f} pixels in a frame"
            )
        yield capture
    except MemoryError as error:
        raise VideoReadError(path, OUT_OF_MEMORY.reason, OUT_OF_MEMORY.message) from error
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise VideoReadError(path, OUT_OF_MEMORY.reason, OUT_OF_MEMORY.message) from error
        raise VideoReadError(path, SkipReason.CORRUPT_FRAME, f"OpenCV failed: {error.err}") from error
    finally:
        capture.release()


def _grab_timed(capture: cv2.VideoCapture, step: float) -> Iterator[tuple[float, bool]]:
    """Grabs all frames in order.

    Yields:
      The time of a frame in seconds from the first one, and whether it is the frame's own timestamp. A frame
      whose timestamp is missing, or not later than the frame before it, follows after `step` seconds.
    """
    if not capture.grab():
        return
    first, time = capture.get(cv2.CAP_PROP_POS_MSEC), 0.0
    yield time, True
    while capture.grab():
        timestamp = (capture.get(cv2.CAP_PROP_POS_MSEC) - first) / 1000
        has_timestamp = timestamp > time
        time = timestamp if has_timestamp else time + step
        yield time, has_timestamp


def _frame_times(path: str) -> list[float]:
    """Reads the time of each frame in seconds; 0 for a frame without a timestamp."""
    times = []
    with _open(path) as capture:
        while capture.grab():
            times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    return times


def _covers_duration(times: list[float], duration_sec: float) -> bool:
    """Whether frames cover the duration without a long gap, at its end or before."""
    gaps = np.diff(sorted([*times, duration_sec]))
    return gaps.max() < (1 - MIN_READABLE_FRACTION) * duration_sec


def _no_frames(path: str, capture: cv2.VideoCapture) -> VideoReadError:
    code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    codec = code.to_bytes(4, "little").decode("latin-1").strip("\0 ")
    return VideoReadError(
        path, SkipReason.NO_FRAMES, f"opens but has no frame that OpenCV can decode (codec {codec})"
    )


def _corrupt_frame(path: str, index: int) -> VideoReadError:
    return VideoReadError(path, SkipReason.CORRUPT_FRAME, f"frame {index} of the video cannot be decoded")


def _decode(
    capture: cv2.VideoCapture, path: str, wanted: np.ndarray, clip: ClipConfig, *, read_to_end: bool
) -> _Decoded:
    """Decodes the wanted frames that the video has, cropped and resized.

    Args:
      capture: at the start of the video.
      path: names the video in errors.
      wanted: int64 [n], ascending.
      clip: the size of the frames.
      read_to_end: count all frames of the video, instead of stopping after the last wanted one.
    """
    frames = np.empty((0, 0, 0, 3), np.uint8)
    count, num_read, height, width = 0, 0, 0, 0
    image = None  # reused for every frame
    while read_to_end or count < len(wanted):
        if not capture.grab():
            if num_read == 0:
                raise _no_frames(path, capture)
            return _Decoded(frames[:count], num_read, True, height, width)
        if count < len(wanted) and num_read == wanted[count]:
            is_readable, image = capture.retrieve(image)
            if not is_readable:
                raise _corrupt_frame(path, num_read)
            if count == 0:
                height, width = image.shape[:2]
                frames = _allocate(path, len(wanted), clip.frame_size(height, width))
            _write_frame(image, frames[count], clip.resize)
            count += 1
        num_read += 1
    return _Decoded(frames[:count], num_read, False, height, width)


def _allocate(path: str, count: int, size: tuple[int, int]) -> np.ndarray:
    """Makes the array of a clip: uint8 [count, height, width, 3]."""
    height, width = size
    if max(height, width) > MAX_FRAME_SIDE:
        raise VideoReadError(
            path, SkipReason.TOO_LARGE, f"larger than the limit: {height} x {width} pixels to store"
        )
    return np.empty((count, height, width, 3), np.uint8)


def _write_frame(image: np.ndarray, frame: np.ndarray, resize: str) -> None:
    """Resizes `image`, or its centre square, into `frame`."""
    if resize == "crop":
        height, width = image.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    if image.shape != frame.shape:
        # Linear interpolation reads 2 x 2 pixels: from half size down it skips some and aliases. INTER_AREA
        # averages all of them at five times the cost, so it is used only where needed.
        is_halved = min(image.shape[:2]) >= 2 * min(frame.shape[:2])
        interpolation = cv2.INTER_AREA if is_halved else cv2.INTER_LINEAR
        cv2.resize(image, (frame.shape[1], frame.shape[0]), dst=frame, interpolation=interpolation)
    else:
        frame[:] = image
