"""Video files to RGB frames and back: the only importer of OpenCV. Colours are RGB from here on.

Frames are decoded in order, `grab()` for each and `retrieve()` only for the wanted ones: OpenCV's seeking is
not frame-accurate, and its frame count comes from the file's header and can be wrong.
"""

import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# FFmpeg and OpenCV describe a damaged file on stderr, once per frame; our callers name the file and the
# reason instead. Read by OpenCV when it is first imported.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

import cv2
import numpy as np

from vidpipe.config import ClipConfig
from vidpipe.sampling import depends_on_length, sample_indices, windowed, windows_at
from vidpipe.spec import VidpipeError

# Containers without an index (MPEG program streams, WebM) give an estimate of their frame count, usually
# a few frames off. A file that gives less than this share of its claim was cut or damaged, unless its frames
# are spread over this share of its duration: then its rate varies, which the estimate does not know.
MIN_READABLE_SHARE = 0.9
# 16384 x 16384: beyond any camera, and a frame of it is 800 MB.
MAX_FRAME_PIXELS = 2**28
# Where neither the header nor the frames tell of time.
ASSUMED_FPS = 25
OUT_OF_MEMORY = "larger than the limit of memory"
# Of a stored frame; JPEG's own limit.
MAX_FRAME_SIDE = 65500


class VideoReadError(VidpipeError):
    """A video cannot give its clip; `reason` says why in a few words, without the path."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return VideoReadError, (self.path, self.reason)


@dataclass(frozen=True)
class VideoInfo:
    """What reading a video showed.

    Attributes:
      frames_claimed: the header's frame count; 0 or less where it has none.
      frames_decoded: frames read; the video's true length where `read_to_end`.
      read_to_end: False where the wanted frames were complete before the end.
      fps: frames per second by the header; 0 where it has none.
      height, width: of the first wanted frame, rotated as the file asks, pixels.
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
      frames: uint8 [n, H, W, 3], RGB, 0..255; n <= num_frames, H and W as `ClipConfig.frame_size` says.
      frame_indices: int64 [n], each frame's place in the video, ascending.
      info: what reading the video showed.
    """

    frames: np.ndarray
    frame_indices: np.ndarray
    info: VideoInfo


@dataclass(frozen=True)
class EncodedClip:
    """A clip with each frame as bytes, small enough to cross a process border.

    Attributes:
      encoded_frames: as `encode_frame` gives them.
      height, width: of these frames, pixels.
      frame_indices, info: those of the `VideoClip`.
    """

    encoded_frames: list[bytes]
    height: int
    width: int
    frame_indices: np.ndarray
    info: VideoInfo


@dataclass(frozen=True)
class VideoWindow:
    """The sampled frames of a stretch of a video.

    Attributes:
      start_sec, end_sec: from the video's first frame; the last window of a video ends with it.
      frames: uint8 [n, H, W, 3], RGB, as `VideoClip` has them.
      video_sec: the whole video's length by its header; 0 where it has none.
      times_known: False where frames had to be counted as if there were `ASSUMED_FPS` of them in a second.
    """

    start_sec: float
    end_sec: float
    frames: np.ndarray
    video_sec: float
    times_known: bool


def read_clip(path: str, clip: ClipConfig) -> VideoClip:
    """Decodes the frames that `clip` asks for, cropped and resized as it says.

    One pass: the indices come from the header's frame count, and only where that turns out wrong is the
    video read again with indices from the true count.

    Args:
      path: a video file that OpenCV's FFmpeg can open.
      clip: which frames, and their size.

    Returns:
      The clip; at least one frame.

    Raises:
      VideoReadError: the file does not open, has no frame, ends early, or a wanted frame is unreadable.
    """
    read = _read_bgr(path, clip)
    for frame in read.frames:
        cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, dst=frame)
    return read


def read_lone_clip(path: str, clip: ClipConfig) -> VideoClip:
    """`read_clip` of a file that a stranger made: while it is open, the process can open no other.

    A playlist is a video to FFmpeg, and names files and addresses to read, none of which it gets. For a
    worker: all threads of the process are held to it.
    """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)  # what the next file would be
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, limits[1]))
    try:
        return read_clip(path, clip)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def read_windows(path: str, clip: ClipConfig, window_sec: float, hop_sec: float) -> Iterator[VideoWindow]:
    """Decodes a video once, in order, and samples each of its windows as if it were a video of its own.

    A window holds the frames shown within it, by their own times: the rate may vary. In memory are the frames
    of one window, cropped and resized.

    Args:
      path: as in `read_clip`.
      clip: which frames of a window, and their size.
      window_sec: as in `sampling.windows_at`.
      hop_sec: as in `sampling.windows_at`.

    Yields:
      The windows of `sampling.windowed`, at least one.

    Raises:
      VideoReadError: as `read_clip`. Where the file ends early, after the windows that it gave.
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
            for time, is_own in _timed(capture, step):
                times.append(time)
                times_known &= is_own or fps > 0
                if not windows_at(time, window_sec, hop_sec):
                    continue
                readable, image = capture.retrieve(image)
                if not readable:
                    raise VideoReadError(path, f"frame {len(times) - 1} of the video is unreadable")
                size = size or clip.frame_size(*image.shape[:2])
                frame = np.empty((*size, 3), np.uint8)
                _write_frame(image, frame, clip.resize)
                yield time, frame

        for index, frames in windowed(timed_frames(), window_sec, hop_sec):
            wanted = sample_indices(clip.sampling, len(frames), clip.num_frames, clip.frame_stride)
            sampled = np.stack([cv2.cvtColor(frames[i], cv2.COLOR_BGR2RGB) for i in wanted])
            start = round(index * hop_sec, 6)
            end = round(min(start + window_sec, times[-1] + step), 6)
            yield VideoWindow(start, end, sampled, video_sec, times_known)
        if not times:
            raise _no_frame(path, capture)
    # By both, as in `read_clip`; but a long still scene is none of our business here.
    if len(times) < MIN_READABLE_SHARE * claimed and times[-1] < MIN_READABLE_SHARE * video_sec:
        raise VideoReadError(path, f"ended after {len(times)} of {claimed} frames")


def read_encoded_clip(path: str, clip: ClipConfig, encoding: str, jpeg_quality: int) -> EncodedClip:
    """`read_clip`, then `encode_frame` for each frame: what a decoding worker does."""
    read = _read_bgr(path, clip)
    encoded = [_encode_bgr(frame, encoding, jpeg_quality) for frame in read.frames]
    height, width = read.frames.shape[1:3]
    return EncodedClip(encoded, height, width, read.frame_indices, read.info)


def encode_frame(frame: np.ndarray, encoding: str, jpeg_quality: int = 95) -> bytes:
    """Encodes one frame.

    Args:
      frame: uint8 [H, W, 3], RGB.
      encoding: `jpeg`, `png`, or `raw` for the bytes as they lie, row by row.
      jpeg_quality: 1 to 100.
    """
    return _encode_bgr(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), encoding, jpeg_quality)


def write_video(path: str, frames: Iterable[np.ndarray], fps: float = 25, fourcc: str = "XVID") -> None:
    """Writes uint8 [H, W, 3] RGB frames of one size; the ending of `path` chooses the container.

    Raises:
      VideoReadError: OpenCV has no encoder `fourcc` for this container.
    """
    writer = None
    for frame in frames:
        if writer is None:
            height, width = frame.shape[:2]
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            code = cv2.VideoWriter.fourcc(*fourcc)
            writer = cv2.VideoWriter(path, cv2.CAP_FFMPEG, code, fps, (width, height))
            if not writer.isOpened():
                raise VideoReadError(path, f"cannot be written: no encoder {fourcc} for it")
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    if writer is not None:
        writer.release()


def limit_memory(megabytes: int) -> None:
    """Lets this process have no more than that of its own memory, in 2**20 bytes: a worker's first call.

    A video that needs more then fails by itself, and takes nothing else with it.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (megabytes << 20, resource.RLIM_INFINITY))


def _read_bgr(path: str, clip: ClipConfig) -> VideoClip:
    """What `read_clip` gives, in the order of colours that OpenCV decodes and encodes."""
    needs_length = depends_on_length(clip.sampling, clip.frame_stride)
    with _open(path) as capture:
        claimed = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        fps = float(capture.get(cv2.CAP_PROP_FPS))
        # Where the length only cuts off, any that is large enough does; the claim may be too small.
        length = max(1, claimed) if needs_length else clip.num_frames * (clip.frame_stride or 1)
        wanted = sample_indices(clip.sampling, length, clip.num_frames, clip.frame_stride)
        frames, decoded, at_end, shape = _decode(capture, path, wanted, clip, needs_length)
    needed = claimed if needs_length else min(claimed, int(wanted[-1]) + 1)
    if decoded < MIN_READABLE_SHARE * needed and not _fills(_frame_times(path), claimed / fps if fps else 0):
        raise VideoReadError(path, f"ended after {decoded} of {needed} frames")
    if needs_length and decoded != length:
        wanted = sample_indices(clip.sampling, decoded, clip.num_frames, clip.frame_stride)
        with _open(path) as capture:
            frames, _, _, shape = _decode(capture, path, wanted, clip, read_on=False)
        if len(frames) < len(wanted):
            raise VideoReadError(path, "gives another number of frames each time it is read")
    info = VideoInfo(claimed, decoded, at_end, fps, *shape)
    return VideoClip(frames, wanted[: len(frames)], info)


def _encode_bgr(frame: np.ndarray, encoding: str, jpeg_quality: int) -> bytes:
    if encoding == "raw":
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).tobytes()
    suffix, flags = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]) if encoding == "jpeg" else (".png", [])
    return cv2.imencode(suffix, frame, flags)[1].tobytes()


@contextmanager
def _open(path: str) -> Iterator[cv2.VideoCapture]:
    if not Path(path).is_file():
        raise VideoReadError(path, "no such file")
    if path != path.encode(errors="replace").decode():
        raise VideoReadError(path, "has a path that is not UTF-8")  # OpenCV would crash
    # FFmpeg by name: left to choose, OpenCV would also take `img_01.png` for the start of an image sequence.
    # One thread: in bulk a process per core beats threads within a video.
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    # Off unless asked for: phones' videos would lie on their side.
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    try:
        if not capture.isOpened():
            raise VideoReadError(path, "does not open as a video")
        pixels = capture.get(cv2.CAP_PROP_FRAME_HEIGHT) * capture.get(cv2.CAP_PROP_FRAME_WIDTH)
        if pixels > MAX_FRAME_PIXELS:
            raise VideoReadError(path, f"larger than the limit: {pixels:.0f} pixels in a frame")
        yield capture
    except MemoryError as error:
        raise VideoReadError(path, OUT_OF_MEMORY) from error
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise VideoReadError(path, OUT_OF_MEMORY) from error
        raise VideoReadError(path, f"OpenCV failed: {error.err}") from error
    finally:
        capture.release()


def _timed(capture: cv2.VideoCapture, step: float) -> Iterator[tuple[float, bool]]:
    """Grabs frame after frame; yields when each is shown, seconds from the first, and whether it says so.

    One that does not, or is shown before the last one, is taken for `step` seconds later than that.
    """
    if not capture.grab():
        return
    first, time = capture.get(cv2.CAP_PROP_POS_MSEC), 0.0
    yield time, True
    while capture.grab():
        stamp = (capture.get(cv2.CAP_PROP_POS_MSEC) - first) / 1000
        is_own = stamp > time
        time = stamp if is_own else time + step
        yield time, is_own


def _frame_times(path: str) -> list[float]:
    """When each frame is shown, seconds from the first; 0 where the file does not say."""
    times = []
    with _open(path) as capture:
        while capture.grab():
            times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    return times


def _no_frame(path: str, capture: cv2.VideoCapture) -> VideoReadError:
    code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    codec = code.to_bytes(4, "little").decode("latin-1").strip("\0 ")
    return VideoReadError(path, f"opens but has no frame that OpenCV can decode (codec {codec})")


def _fills(times: list[float], duration_sec: float) -> bool:
    """Whether no long part of the duration, at its end or before, is without a frame."""
    gaps = np.diff(sorted([*times, duration_sec]))
    return gaps.max() < (1 - MIN_READABLE_SHARE) * duration_sec


def _decode(
    capture: cv2.VideoCapture, path: str, wanted: np.ndarray, clip: ClipConfig, read_on: bool
) -> tuple[np.ndarray, int, bool, tuple[int, int]]:
    """Gives the wanted frames that are there, how many were read, whether to the end, and (height, width)."""
    frames = np.empty((0, 0, 0, 3), np.uint8)
    count, position, shape = 0, 0, (0, 0)
    image = None  # its memory is used again for every frame
    while read_on or count < len(wanted):
        if not capture.grab():
            if position == 0:
                raise _no_frame(path, capture)
            return frames[:count], position, True, shape
        if count < len(wanted) and position == wanted[count]:
            readable, image = capture.retrieve(image)
            if not readable:
                raise VideoReadError(
                    path, f"1 of {len(wanted)} frames unreadable: frame {position} of the video"
                )
            if count == 0:
                shape = image.shape[:2]
                height, width = clip.frame_size(*shape)
                if max(height, width) > MAX_FRAME_SIDE:
                    raise VideoReadError(path, f"larger than the limit: {height} x {width} pixels to store")
                frames = np.empty((len(wanted), height, width, 3), np.uint8)
            _write_frame(image, frames[count], clip.resize)
            count += 1
        position += 1
    return frames[:count], position, False, shape


def _write_frame(image: np.ndarray, frame: np.ndarray, resize: str) -> None:
    """Writes `image`, or its centre square, into `frame`, resized to it."""
    if resize == "crop":
        height, width = image.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    if image.shape != frame.shape:
        # Linear interpolation looks at 2 x 2 pixels: from half size down it skips some and aliases. Averaging
        # does not, at five times the cost and more, so it is left to where it is needed.
        halves = min(image.shape[:2]) >= 2 * min(frame.shape[:2])
        interpolation = cv2.INTER_AREA if halves else cv2.INTER_LINEAR
        cv2.resize(image, (frame.shape[1], frame.shape[0]), dst=frame, interpolation=interpolation)
    else:
        frame[:] = image
