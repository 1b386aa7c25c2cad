"""Video files to clips, and frames to bytes. Outside of this module and `pixels`, colours are RGB."""

import os
import re
import resource
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

# OpenCV reads these variables when it is first imported; our callers name the file and the reason instead.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
import cv2
import numpy as np

from vidpipe.config import ClipConfig, ConversionConfig
from vidpipe.data.forward_decoder import ContradictionError
from vidpipe.data.packets import Damage
from vidpipe.data.pixels import PixelConverter, PixelError, unconverted, write_resized
from vidpipe.data.sampling import depends_on_length, sample_indices, window_ranges
from vidpipe.data.skip_reason import OUT_OF_MEMORY, SkipReason, VideoReadError
from vidpipe.data.video_file import (
    MAX_FRAME_PIXELS,
    DecodedFrame,
    VideoFile,
    ffmpeg_errors,
    open_video,
)
from vidpipe.errors import VidpipeError

# A video is unusable if more than this fraction of its frames, or of the wanted ones, is missing or damaged.
MAX_DAMAGED_FRACTION = 0.1
# The longest side of a stored frame, pixels: the limit of JPEG.
MAX_FRAME_SIDE = 65500
_MAX_UNTRUSTED_PIXELS = 2**25  # 8K, which is 7680 x 4320
# Changes when the same file may give other frames or pixels than before.
DECODER = "PyAV 2"
_Encode = Callable[[np.ndarray], bytes]


class VideoWriteError(VidpipeError):
    """A video cannot be written."""


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a video, or a moment of it, that are known after it was read.

    Attributes:
      frames_shown: number of frames that it shows.
      frames_damaged: number of frames that are missing or damaged, of those that were looked at.
      fps: frames per second on average; 0 if unknown.
      height, width: size in pixels as it is shown: with square pixels, and rotated as the file asks for.
      unconverted: what was left as it is, see `pixels.unconverted`.
      start_sec, end_sec: of a moment, seconds from the first frame of the video; None for a whole video.
    """

    frames_shown: int
    frames_damaged: int
    fps: float
    height: int
    width: int
    unconverted: str
    start_sec: float | None = None
    end_sec: float | None = None

    @property
    def span(self) -> tuple[float, float] | None:
        """Start and end of a moment."""
        return None if self.start_sec is None or self.end_sec is None else (self.start_sec, self.end_sec)


@dataclass(frozen=True)
class VideoClip:
    """The sampled frames of a video.

    Attributes:
      frames: uint8 [n, H, W, 3], RGB, 0..255; n <= num_frames; H and W from `ClipConfig.frame_size`.
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
      num_windows: number of windows of the video.
      times_known: False if the file gives no times, and `packets.ASSUMED_FPS` frames per second were assumed.
    """

    start_sec: float
    end_sec: float
    frames: np.ndarray
    num_windows: int
    times_known: bool


def read_clip(path: str, clip: ClipConfig, *, max_pixels: int = MAX_FRAME_PIXELS) -> VideoClip:
    """Decodes the frames selected by `clip`, cropped and resized.

    Args:
      path: a video file.
      clip: which frames, and their size.
      max_pixels: of a frame of the video.

    Returns:
      The clip, with at least one frame. Damaged frames are left out.

    Raises:
      VideoReadError: the file cannot be opened, has no video or no frame, is too large, or more than
        `MAX_DAMAGED_FRACTION` of its frames or of the wanted ones is missing or damaged.
    """
    buffer = _read_frames(path, clip, max_pixels=max_pixels)
    frames = buffer.frames[: len(buffer.indices)]
    for frame in frames:
        cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, dst=frame)
    return VideoClip(frames, np.array(buffer.indices, np.int64), buffer.info)


def read_untrusted_clip(path: str, clip: ClipConfig) -> VideoClip:
    """Reads the clip of an untrusted file: while it is open, the process cannot open any other file.

    Frames may be as large as 8K: decoding a larger one keeps a processor core busy for long.

    To FFmpeg a playlist is a video too, and it would open the files and addresses that the playlist names.
    Call this in a worker process: the limit applies to all threads of the process.
    """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_descriptor = os.open(os.devnull, os.O_RDONLY)  # the video will get the same number
    os.close(next_descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_descriptor + 1, limits[1]))
    try:
        return read_clip(path, clip, max_pixels=_MAX_UNTRUSTED_PIXELS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def read_windows(path: str, clip: ClipConfig, window_sec: float, hop_sec: float) -> Iterator[VideoWindow]:
    """Samples each time window of a video as if it were a video.

    A window holds the frames whose times lie in it, so the frame rate may vary. Only the wanted frames of one
    window are in memory, cropped and resized.

    Args:
      path: as in `read_clip`.
      clip: which frames of a window, and their size.
      window_sec: length of a window, as in `sampling.window_ranges`.
      hop_sec: time between the starts of two windows, as in `sampling.window_ranges`.

    Yields:
      The windows of `sampling.window_ranges`; those without a frame that can be decoded are left out.

    Raises:
      VideoReadError: as in `read_clip`; after the windows that could be read.
    """
    with open_video(path) as file, _pixel_errors(path):
        start_sec = -1.0
        if file.order is not None:
            try:
                windows = _Windows(file, file.order, clip, window_sec, hop_sec)
                for window in windows.sample(file.decode(windows.wanted)):
                    yield window
                    start_sec = window.start_sec
                _check_loss(file)
                return
            except ContradictionError:
                pass
        damage = Damage(file.packets, file.loss)
        packet_numbers = np.array([frame.packet for frame in file.decode_in_order(damage)], np.int64)
        check_frames(file, len(packet_numbers))
        windows = _Windows(file, packet_numbers, clip, window_sec, hop_sec)
        frames = file.decode_in_order(Damage(file.packets, file.loss))
        yield from (window for window in windows.sample(frames) if window.start_sec > start_sec)
        _check_loss(file)
        _check_damage(file, len(packet_numbers), damage)


def read_encoded_clip(path: str, clip: ClipConfig, encoding: str, jpeg_quality: int) -> EncodedClip:
    """Reads a clip as `read_clip` does and encodes its frames; a decoding process calls this."""
    return _read_frames(path, clip, encode=encoder(encoding, jpeg_quality)).encoded_clip()


def encoder(encoding: str, jpeg_quality: int) -> _Encode:
    """Returns what encodes a frame, uint8 [H, W, 3], BGR."""
    return lambda frame: _encode_bgr(frame, encoding, jpeg_quality)


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
    """Limits the data memory that this process may add to what it has, in MiB.

    A decoding process calls this before each video, which then has the same room whatever was read before it.
    A video that needs more fails alone, without affecting other processes.
    """
    (kib,) = re.findall(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    resource.setrlimit(resource.RLIMIT_DATA, ((int(kib) << 10) + (megabytes << 20), resource.RLIM_INFINITY))


def _read_frames(
    path: str, clip: ClipConfig, *, encode: _Encode | None = None, max_pixels: int = MAX_FRAME_PIXELS
) -> "FrameBuffer":
    """Reads a clip as `read_clip` does."""
    with open_video(path, max_pixels=max_pixels) as file, _pixel_errors(path):
        _check_loss(file)
        if file.order is not None:
            try:
                return _read_exact(file, clip, encode)
            except ContradictionError:
                pass
        return _read_in_order(file, clip, encode)


def _read_exact(file: VideoFile, clip: ClipConfig, encode: _Encode | None) -> "FrameBuffer":
    wanted = wanted_indices(clip, file.num_frames)
    buffer = FrameBuffer(file, wanted, clip, encode)
    for frame in file.decode(wanted):
        buffer.add(frame)
    buffer.finish(file.num_frames, file.loss.num_missing)
    return buffer


def _read_in_order(file: VideoFile, clip: ClipConfig, encode: _Encode | None) -> "FrameBuffer":
    needs_length = depends_on_length(clip.sampling, clip.frame_stride)
    # For a rule that does not depend on the length, assume one that is long enough.
    length = file.num_frames if needs_length else clip.num_frames * (clip.frame_stride or 1)
    while True:
        damage = Damage(file.packets, file.loss)
        wanted = wanted_indices(clip, max(1, length))
        buffer = FrameBuffer(file, wanted, clip, encode)
        num_frames, stopped = 0, False
        for frame in file.decode_in_order(damage):
            num_frames += 1
            buffer.add(frame)
            stopped = not needs_length and frame.index == wanted[-1]
            if stopped:
                break
        num_frames = max(num_frames, file.num_frames) if stopped else num_frames
        check_frames(file, num_frames)
        _check_damage(file, num_frames, damage)
        if not needs_length or num_frames == length:
            buffer.finish(num_frames, damage.num_missing + damage.num_damaged)
            return buffer
        length = num_frames


class FrameBuffer:
    """The wanted frames of a clip, cropped, resized and perhaps encoded as they come.

    Args:
      file: the video.
      wanted: int64 [n], ascending.
      clip: the size of the frames.
      encode: applied to each frame, uint8 [H, W, 3], BGR. One array is used for all frames then: new memory
        costs time.

    Attributes:
      indices: index of each frame in the video, ascending.
      frames: uint8 [n, H, W, 3], BGR, of which the first len(indices) are set; [1, H, W, 3] with `encode`.
      encoded: what `encode` returned.
      info: facts about the video, once it is finished.
    """

    info: VideoInfo

    def __init__(self, file: VideoFile, wanted: np.ndarray, clip: ClipConfig, encode: _Encode | None) -> None:
        self._file, self._wanted, self._clip, self._encode = file, wanted, clip, encode
        self._converter = PixelConverter(file.sample_aspect_ratio)
        self._is_wanted = frozenset(wanted.tolist())
        self._num_damaged = 0
        self._height, self._width = 0, 0
        self._unconverted = ""
        self.indices: list[int] = []
        self.frames = np.empty((0, 0, 0, 3), np.uint8)
        self.encoded: list[bytes] = []

    def add(self, frame: DecodedFrame) -> None:
        """Takes a frame if it is wanted and not damaged."""
        if frame.index not in self._is_wanted:
            return
        if frame.is_damaged:
            self._num_damaged += 1
            return
        image = self._converter.convert(frame.picture)
        if not self.indices:
            self._height, self._width = image.shape[:2]
            self._unconverted = unconverted(frame.picture)
            length = len(self._wanted) if self._encode is None else 1
            self.frames = np.empty((length, *_stored_size(self._file.path, image, self._clip), 3), np.uint8)
        resized = self.frames[len(self.indices) % len(self.frames)]
        write_resized(image, resized, self._clip.resize)
        if self._encode is not None:
            self.encoded.append(self._encode(resized))
        self.indices.append(frame.index)

    def finish(self, num_frames: int, num_damaged: int) -> None:
        """Sets `info`, of a video of `num_frames` frames, of which `num_damaged` are missing or damaged.

        Raises:
          VideoReadError: too many wanted frames are damaged.
        """
        num_wanted = len(self.indices) + self._num_damaged
        if self._num_damaged > MAX_DAMAGED_FRACTION * num_wanted:
            raise VideoReadError(
                self._file.path,
                SkipReason.DAMAGED,
                f"{self._num_damaged} of the {num_wanted} wanted frames are damaged",
            )
        self.info = VideoInfo(
            frames_shown=num_frames,
            frames_damaged=num_damaged,
            fps=self._file.fps,
            height=self._height,
            width=self._width,
            unconverted=self._unconverted,
        )

    def encoded_clip(self, span: tuple[float, float] | None = None) -> EncodedClip:
        """Returns the finished clip, of a moment that is shown in `span`, seconds."""
        info = self.info if span is None else replace(self.info, start_sec=span[0], end_sec=span[1])
        height, width = self.frames.shape[1:3]
        return EncodedClip(self.encoded, height, width, np.array(self.indices, np.int64), info)


class _Windows:
    """The time windows of a video.

    Args:
      file: the video.
      packet_numbers: the packet of each frame, in the order of presentation.
      clip, window_sec, hop_sec: as in `read_windows`.
    """

    def __init__(
        self, file: VideoFile, packet_numbers: np.ndarray, clip: ClipConfig, window_sec: float, hop_sec: float
    ) -> None:
        self._file, self._clip, self._window_sec, self._hop_sec = file, clip, window_sec, hop_sec
        times, self._times_known = file.frame_times(packet_numbers)
        self._end_sec = end_sec(file, times)
        self._indices = {
            number: start + wanted_indices(clip, stop - start)
            for number, start, stop in window_ranges(times, window_sec=window_sec, hop_sec=hop_sec)
        }
        self.wanted = np.unique(np.concatenate(list(self._indices.values())))

    def sample(self, decoded: Iterable[DecodedFrame]) -> Iterator[VideoWindow]:
        """Yields each window as soon as its last wanted frame is decoded."""
        converter = PixelConverter(self._file.sample_aspect_ratio)
        is_wanted = frozenset(self.wanted.tolist())
        pending = deque(self._indices.items())
        frames: dict[int, np.ndarray] = {}
        size = None
        for decoded_frame in decoded:
            index = decoded_frame.index
            if index in is_wanted and not decoded_frame.is_damaged:
                image = converter.convert(decoded_frame.picture)
                size = size or _stored_size(self._file.path, image, self._clip)
                frame = np.empty((*size, 3), np.uint8)
                write_resized(image, frame, self._clip.resize)
                frames[index] = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            while pending and pending[0][1][-1] <= index:
                number, indices = pending.popleft()
                readable = [frames[index] for index in indices.tolist() if index in frames]
                first_needed = pending[0][1][0] if pending else index + 1
                frames = {index: frame for index, frame in frames.items() if index >= first_needed}
                if readable:
                    start = round(number * self._hop_sec, 6)
                    end = round(min(start + self._window_sec, self._end_sec), 6)
                    yield VideoWindow(start, end, np.stack(readable), len(self._indices), self._times_known)


def end_sec(file: VideoFile, times: np.ndarray) -> float:
    """Returns when the last frame ends, given when each is shown: float64 [n], n >= 1, seconds."""
    return float(times[-1] + (np.median(np.diff(times)) if len(times) > 1 else file.step_sec))


@contextmanager
def read_errors(path: str) -> Iterator[None]:
    """Raises errors of FFmpeg and OpenCV in the block, and a lack of memory, as a VideoReadError."""
    with ffmpeg_errors(path), _pixel_errors(path):
        yield


def _check_loss(file: VideoFile) -> None:
    """Raises a VideoReadError if too many packets are missing."""
    found, missing = len(file.packets.pts), file.loss.num_missing
    if missing > MAX_DAMAGED_FRACTION * (found + missing):
        total = found + missing
        if file.loss.is_at_end:
            raise VideoReadError(file.path, SkipReason.TRUNCATED, f"ended after {found} of {total} packets")
        raise VideoReadError(file.path, SkipReason.DAMAGED, f"{missing} of {total} packets are missing")


def check_frames(file: VideoFile, num_frames: int) -> None:
    """Raises a VideoReadError if a video has no frames."""
    if num_frames == 0:
        raise VideoReadError(
            file.path, SkipReason.NO_FRAMES, f"opens but has no frame that can be decoded ({file.codec})"
        )


def _check_damage(file: VideoFile, num_frames: int, damage: Damage) -> None:
    """Raises a VideoReadError if too many frames are missing or damaged."""
    bad, total = damage.num_missing + damage.num_damaged, num_frames + damage.num_missing
    if bad > MAX_DAMAGED_FRACTION * total:
        raise VideoReadError(file.path, SkipReason.DAMAGED, f"{bad} of {total} frames are missing or damaged")


@contextmanager
def _pixel_errors(path: str) -> Iterator[None]:
    """Raises errors of OpenCV and of FFmpeg's filters in the block as a VideoReadError."""
    try:
        yield
    except PixelError as error:
        raise VideoReadError(path, SkipReason.DAMAGED, str(error)) from error
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise VideoReadError(path, OUT_OF_MEMORY.reason, OUT_OF_MEMORY.message) from error
        raise VideoReadError(path, SkipReason.DAMAGED, f"OpenCV failed: {error.err}") from error


def wanted_indices(clip: ClipConfig, video_num_frames: int) -> np.ndarray:
    """Picks the frames of a clip, see `sampling.sample_indices`."""
    return sample_indices(
        clip.sampling,
        video_num_frames=video_num_frames,
        num_frames=clip.num_frames,
        frame_stride=clip.frame_stride,
    )


def _stored_size(path: str, image: np.ndarray, clip: ClipConfig) -> tuple[int, int]:
    """Returns the (height, width) of the stored frames of a video, given its first frame."""
    height, width = clip.frame_size(*image.shape[:2])
    if max(height, width) > MAX_FRAME_SIDE:
        raise VideoReadError(
            path, SkipReason.TOO_LARGE, f"larger than the limit: {height} x {width} pixels to store"
        )
    return height, width


def _encode_bgr(frame: np.ndarray, encoding: str, jpeg_quality: int) -> bytes:
    if encoding == "raw":
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).tobytes()
    suffix, flags = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]) if encoding == "jpeg" else (".png", [])
    return cv2.imencode(suffix, frame, flags)[1].tobytes()
