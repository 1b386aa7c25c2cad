"""Reads moments of videos in a decoding process, which keeps the last video open.

A video is passed over once, however many of its moments are read, and only what they need is decoded.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from vidpipe.config import ClipConfig
from vidpipe.data import video
from vidpipe.data.forward_decoder import ContradictionError
from vidpipe.data.moment import Moment
from vidpipe.data.packets import Damage
from vidpipe.data.skip_reason import SkipReason, VideoReadError
from vidpipe.data.video_file import DecodedFrame, VideoFile, file_state, open_video

# After these the open video can still be read.
_OF_THE_MOMENT = (SkipReason.OUTSIDE, SkipReason.TRUNCATED, SkipReason.NO_FRAMES, SkipReason.DAMAGED)


@dataclass(frozen=True)
class VideoLength:
    """How long a video is: its number of frames, and its duration in seconds."""

    num_frames: int
    duration_sec: float


def read_encoded_clip(
    path: str, clip: ClipConfig, encoding: str, jpeg_quality: int, moment: Moment | None = None
) -> video.EncodedClip:
    """Reads a video, or a moment of it, and encodes its frames; a decoding process calls this.

    Args:
      path: a video file.
      clip: which frames, and their size.
      encoding: one of `config.ENCODINGS`.
      jpeg_quality: 1 to 100; only used for `jpeg`.
      moment: the clip is sampled from the frames that are shown in it; None for the whole video.

    Raises:
      VideoReadError: as in `video.read_clip`. Of a moment only its own frames count: more than
        `video.MAX_DAMAGED_FRACTION` of them is damaged, or of its time is outside the video.
    """
    if moment is None:
        _kept.close()
        return video.read_encoded_clip(path, clip, encoding, jpeg_quality)
    with _kept.opened(path) as reader:
        return reader.read(moment, clip, encoding, jpeg_quality)


def read_length(path: str) -> VideoLength:
    """Measures a video by its packets, without decoding; a decoding process calls this.

    Raises:
      VideoReadError: it cannot be read.
    """
    _kept.close()
    with open_video(path) as file:
        packets = np.flatnonzero(file.packets.is_shown) if file.order is None else file.order
        video.check_frames(file, len(packets))
        times, _ = file.frame_times(packets)
        return VideoLength(len(times), video.end_sec(file, times))


class _MomentReader:
    """An open video whose moments are read.

    Args:
      path: the video.
      file: the open video.
    """

    def __init__(self, path: str, file: VideoFile) -> None:
        self._path, self._file = path, file
        self._is_exact = file.order is not None
        self.frames = _frames_of(file)
        self._passing: Iterator[DecodedFrame] | None = None
        self._num_passed = 0

    def read(self, moment: Moment, clip: ClipConfig, encoding: str, jpeg_quality: int) -> video.EncodedClip:
        """Reads a moment, see `read_encoded_clip`."""
        try:
            return self._read(moment, clip, encoding, jpeg_quality)
        except ContradictionError:
            self._is_exact = False
            self.frames = _frames_of(self._file, in_order=True)
            return self._read(moment, clip, encoding, jpeg_quality)

    def _read(self, moment: Moment, clip: ClipConfig, encoding: str, jpeg_quality: int) -> video.EncodedClip:
        first, stop = self._range(moment)
        num_outside = self._num_outside(moment)
        num_damaged = num_outside + int(self.frames.is_damaged[first:stop].sum())
        num_expected = stop - first + num_outside
        if num_damaged > video.MAX_DAMAGED_FRACTION * num_expected:
            message = f"{num_damaged} of the {num_expected} frames of the moment are missing or damaged"
            raise VideoReadError(self._path, SkipReason.DAMAGED, message)
        wanted = first + video.wanted_indices(clip, stop - first)
        buffer = video.FrameBuffer(self._file, wanted, clip, video.encoder(encoding, jpeg_quality))
        for frame in (
            self._file.decode(wanted, stay=True) if self._is_exact else self._decode_in_order(wanted)
        ):
            buffer.add(frame)
        buffer.finish(stop - first, num_damaged)
        span = self.frames.times_of(first, stop) if moment.in_frames else (moment.start, moment.end)
        return buffer.encoded_clip(span)

    def _range(self, moment: Moment) -> tuple[int, int]:
        """Returns the first frame of a moment, and the frame after its last one."""
        frames = self.frames
        length, unit = (len(frames.times), "frames") if moment.in_frames else (frames.end_sec, "s")
        outside = moment.length - max(0.0, min(moment.end, length) - moment.start)
        if outside > video.MAX_DAMAGED_FRACTION * moment.length:
            ended = "was cut: it ends" if self._file.loss.is_at_end else "ends"
            reason = SkipReason.TRUNCATED if self._file.loss.is_at_end else SkipReason.OUTSIDE
            message = f"the moment is {moment.span}, but the video {ended} after {length:.10g} {unit}"
            raise VideoReadError(self._path, reason, message)
        if moment.in_frames:
            first, stop = int(moment.start), min(int(moment.end), len(frames.times))
        else:
            micros = np.rint(frames.times * 1e6).astype(np.int64)
            bounds = np.rint(np.array([moment.start, moment.end]) * 1e6)
            first, stop = np.searchsorted(micros, bounds).tolist()
        if first == stop:
            message = f"no frame begins in the moment, {moment.span}"
            raise VideoReadError(self._path, SkipReason.NO_FRAMES, message)
        return first, stop

    def _num_outside(self, moment: Moment) -> int:
        """Returns how many frames the moment would have after the end of the video."""
        if moment.in_frames:
            return max(0, int(moment.end) - len(self.frames.times))
        step_sec = self.frames.end_sec / len(self.frames.times)
        return max(0, round((moment.end - self.frames.end_sec) / step_sec))

    def _decode_in_order(self, wanted: np.ndarray) -> Iterator[DecodedFrame]:
        """Decodes from where the last moment ended, or from the start if that is too far."""
        if self._passing is None or self._num_passed > wanted[0]:
            self._passing = self._file.decode_in_order(Damage(self._file.packets, self._file.loss))
            self._num_passed = 0
        for frame in self._passing:
            self._num_passed = frame.index + 1
            yield frame
            if frame.index == wanted[-1]:
                return


@dataclass(frozen=True)
class _Frames:
    """The n frames of a video, in the order of presentation.

    Attributes:
      times: float64 [n], when each is shown, seconds from the first one.
      is_damaged: bool [n], as far as it is known.
      end_sec: when the last one ends.
    """

    times: np.ndarray
    is_damaged: np.ndarray
    end_sec: float

    def times_of(self, first: int, stop: int) -> tuple[float, float]:
        """Returns when frames from `first` up to, but without, `stop` are shown."""
        end = self.times[stop] if stop < len(self.times) else self.end_sec
        return round(float(self.times[first]), 6), round(float(end), 6)


def _frames_of(file: VideoFile, *, in_order: bool = False) -> _Frames:
    """Finds the frames of a video by its packets where these are reliable, otherwise by decoding all."""
    if file.order is not None and not in_order:
        packets, is_damaged = file.order, np.zeros(len(file.order), bool)
    else:
        decoded = [
            (frame.packet, frame.is_damaged)
            for frame in file.decode_in_order(Damage(file.packets, file.loss))
        ]
        video.check_frames(file, len(decoded))
        packets, is_damaged = (np.array(column) for column in zip(*decoded, strict=True))
    times, _ = file.frame_times(packets)
    return _Frames(times, is_damaged, video.end_sec(file, times))


class _Kept:
    """The video that was opened last, and its state then."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._path, self._state = "", (0, 0)
        self._reader: _MomentReader | None = None

    @contextmanager
    def opened(self, path: str) -> Iterator[_MomentReader]:
        """Opens a video, unless it is open already; errors close it.

        Raises:
          VideoReadError: it cannot be read, or was changed in the meantime.
        """
        try:
            with video.read_errors(path):
                if self._reader is None or (path, file_state(path)) != (self._path, self._state):
                    self.close()
                    self._path, self._state = path, file_state(path)
                    self._reader = _MomentReader(path, self._stack.enter_context(open_video(path)))
                yield self._reader
            if file_state(path) != self._state:
                raise VideoReadError(path, SkipReason.CHANGED, "was changed while it was read")
        except BaseException as error:
            if not (isinstance(error, VideoReadError) and error.failure.reason in _OF_THE_MOMENT):
                self.close()
            raise

    def close(self) -> None:
        self._reader = None
        with suppress(VideoReadError):  # it was changed after its last moment was read
            self._stack.close()


_kept = _Kept()
