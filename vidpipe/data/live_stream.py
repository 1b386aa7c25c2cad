"""Cameras and network streams: decodes them in a separate process, and connects again when they are cut."""

import re
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import Any
from urllib.parse import urlsplit

import av
import cv2
import numpy as np
from av.format import Flags
from av.stream import Discard

from vidpipe.config import ClipConfig, ConfigError
from vidpipe.data import process_pool
from vidpipe.data.pixels import PixelConverter, PixelError, write_resized
from vidpipe.data.skip_reason import Failure, SkipReason, VideoReadError
from vidpipe.data.video_file import MAX_FRAME_PIXELS, METADATA_OPTIONS
from vidpipe.errors import VidpipeError

# A pause of the stream, or a jump of its timestamps, that no window may span.
MAX_GAP_SEC = 2.0
_FIRST_WAIT_SEC, _MAX_WAIT_SEC = 1.0, 30.0
# FFmpeg gives up a little earlier than the watchdog of the process, since it knows the reason.
_IO_TIMEOUT_FRACTION = 0.9
# What each scheme of an address needs, and nothing that opens files. A redirect or a playlist (HLS) of a web
# server may lead to http or https.
_WEB = "http,https,tls,tcp,crypto"
_PROTOCOLS = {
    "rtsp": "rtsp,rtp,udp,tcp",
    "rtsps": "rtsp,rtp,udp,tcp,tls",
    "http": _WEB,
    "https": _WEB,
    "tcp": "tcp",
    "udp": "udp",
    "rtmp": "rtmp,tcp",
    "srt": "srt",
}
# The option for the longest wait for data, in microseconds (FFmpeg 5 or later). To rtmp, `timeout` is another
# one: it makes FFmpeg wait for a caller.
_TIMEOUT_OPTIONS = {"http": "rw_timeout", "https": "rw_timeout", "tcp": "rw_timeout", "rtmp": "rw_timeout"}
_FORMATS = "rtsp,hls,mpegts,flv,mpjpeg,mjpeg,h264,hevc,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,ogg,asf"


class LiveStreamError(VidpipeError):
    """A stream cannot be opened."""


@dataclass(frozen=True)
class LiveSource:
    """A camera or an address.

    Attributes:
      url: what FFmpeg opens.
      scheme: of the address; empty for a camera.
      name: the address without user, password and query, for messages.
    """

    url: str
    scheme: str
    name: str


@dataclass(frozen=True)
class LiveFrame:
    """A frame of a stream.

    Attributes:
      sec: its time by the stream's own timestamps, seconds; ascending within a run.
      clock_sec: its time by `time.monotonic`, never descending.
      is_first: whether it starts a run: a part of the stream without a gap.
      image: uint8 [H, W, 3], RGB, cropped and resized like the frames of a clip.
    """

    sec: float
    clock_sec: float
    is_first: bool
    image: np.ndarray


class LinkState(Enum):
    """What happened to the connection; the value is its name in the output."""

    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    RECONNECTING = "reconnecting"


@dataclass(frozen=True)
class LinkChange:
    """A change of the connection.

    Attributes:
      state: what happened.
      reason: why the stream or the latest attempt ended, in a few words; empty for CONNECTED.
      wait_sec: seconds until the next attempt, for RECONNECTING.
    """

    state: LinkState
    reason: str = ""
    wait_sec: float = 0.0

    def __str__(self) -> str:
        wait = f" in {self.wait_sec:g} s" if self.wait_sec else ""
        return f"{self.state.value}{wait}" + (f" ({self.reason})" if self.reason else "")


Decode = Callable[[LiveSource, ClipConfig, float], Iterator[LiveFrame]]


def parse_source(address: str) -> LiveSource:
    """Checks the address of a stream.

    Args:
      address: the number of a camera, such as 0 for /dev/video0, or an address with one of the schemes rtsp,
        rtsps, http, https, tcp, udp, rtmp and srt.

    Raises:
      ConfigError: it is neither; the message names no password.
    """
    if address.isdecimal():
        device = f"/dev/video{int(address)}"
        return LiveSource(device, "", device)
    scheme = address.partition("://")[0].lower() if "://" in address else ""
    if scheme not in _PROTOCOLS or not urlsplit(address).netloc:
        raise ConfigError(
            "live must be the number of a camera, or an address that starts with "
            f"{', '.join(f'{name}://' for name in _PROTOCOLS)}; got {without_secrets(address)}. "
            "For a video file use timeline."
        )
    return LiveSource(address, scheme, without_secrets(address))


def without_secrets(text: str) -> str:
    """Replaces user, password and query of the addresses in a text.

    >>> without_secrets("rtsp://me:a@b@cam/1?token=2 does not open")
    'rtsp://***@cam/1?*** does not open'
    """
    # Up to the last @: a password may have one, too.
    masked = re.sub(r"://[^\s'\"]*@", "://***@", text)
    return re.sub(r"(://[^\s'\"?]*)\?[^\s'\"]+", r"\1?***", masked)


class StreamClock:
    """Maps the timestamps of a stream to the clock of this machine, and divides them into runs.

    The frame with the smallest delay sets the clock. So frames that come at once after the connection was
    made, because the server or FFmpeg had buffered them, count as old.
    """

    def __init__(self) -> None:
        self._last_sec: float | None = None
        self._offset_sec = 0.0

    def lead(self, sec: float, now_sec: float) -> float:
        """Returns how much too early a frame comes, in seconds; 0 if it starts a run."""
        if self._starts_run(sec, now_sec):
            return 0.0
        return max(0.0, sec + self._offset_sec - now_sec)

    def place(self, sec: float, now_sec: float) -> tuple[float, bool]:
        """Places the next frame in time.

        Args:
          sec: its timestamp, seconds.
          now_sec: when it came, seconds; never descending.

        Returns:
          Its time by the clock of `now_sec`, never descending, and whether it starts a run: the timestamps
          jumped back, or by more than `MAX_GAP_SEC`, or the stream has fallen behind by more than that.
        """
        is_first = self._starts_run(sec, now_sec)
        self._offset_sec = now_sec - sec if is_first else min(self._offset_sec, now_sec - sec)
        self._last_sec = sec
        return sec + self._offset_sec, is_first

    def _starts_run(self, sec: float, now_sec: float) -> bool:
        if self._last_sec is None or not 0 <= sec - self._last_sec <= MAX_GAP_SEC:
            return True
        return now_sec - (sec + self._offset_sec) > MAX_GAP_SEC


def decode_stream(source: LiveSource, clip: ClipConfig, timeout_sec: float) -> Iterator[LiveFrame]:
    """Decodes a stream until it ends; runs in a separate process.

    Recordings and HLS, which come faster than they are shown, are read at their own speed.

    Args:
      source: the stream.
      clip: the size of the frames.
      timeout_sec: longest wait for data.

    Raises:
      VideoReadError: it cannot be opened, has no video, or is cut; the message names no password.
    """
    try:
        with av.open(
            source.url,
            format=None if source.scheme else "v4l2",
            options=_options(source.scheme, timeout_sec),
            **METADATA_OPTIONS,
        ) as container:
            yield from _frames(source, container, clip)
    except av.error.MemoryError:
        raise
    except (PixelError, cv2.error) as error:
        raise VideoReadError(source.name, SkipReason.DAMAGED, str(error)) from error
    except av.error.FFmpegError as error:
        raise VideoReadError(
            source.name, SkipReason.CANNOT_OPEN, without_secrets(error.strerror or str(error))
        ) from error


def read_stream(
    source: LiveSource,
    clip: ClipConfig,
    *,
    timeout_sec: float,
    memory_mb: int,
    decode: Decode = decode_stream,
    sleep: Callable[[float], None] = time.sleep,
) -> Generator[LiveFrame | LinkChange, None, None]:
    """Yields the frames of a stream without end; once it was up, it connects again whenever it is cut.

    Each connection is decoded in a process of its own, which is killed if it gives no frame for
    `timeout_sec`. The waits between attempts are 1, 2, 4 and so on up to 30 seconds.

    Args:
      source: the stream.
      clip: the size of the frames.
      timeout_sec: longest wait for a frame.
      memory_mb: memory that decoding may take, in MiB.
      decode: called in the process; importable by name.
      sleep: waits for some seconds.

    Raises:
      LiveStreamError: the first connection fails.
    """
    wait_sec, was_up = _FIRST_WAIT_SEC, False
    while True:
        is_up, reason = False, "the stream ended"
        for item in process_pool.stream(
            decode, (source, clip, timeout_sec), timeout_sec=timeout_sec, memory_mb=memory_mb
        ):
            if isinstance(item, Failure):
                reason = item.message
                break
            if not is_up:
                is_up, was_up, wait_sec = True, True, _FIRST_WAIT_SEC
                yield LinkChange(LinkState.CONNECTED)
            yield item
        if not was_up:
            raise LiveStreamError(
                f"{source.name} cannot be read ({reason}). Check the address, and that the camera or server "
                "is running."
            )
        if is_up:
            yield LinkChange(LinkState.DISCONNECTED, reason)
        yield LinkChange(LinkState.RECONNECTING, reason, wait_sec)
        sleep(wait_sec)
        wait_sec = min(2 * wait_sec, _MAX_WAIT_SEC)


def _options(scheme: str, timeout_sec: float) -> dict[str, str]:
    """The options of FFmpeg for a stream; a camera needs none."""
    if not scheme:
        return {}
    timeout = str(round(timeout_sec * _IO_TIMEOUT_FRACTION * 1_000_000))
    options = {
        "protocol_whitelist": _PROTOCOLS[scheme],
        "format_whitelist": _FORMATS,
        _TIMEOUT_OPTIONS.get(scheme, "timeout"): timeout,
    }
    if scheme.startswith("rtsp"):
        options["rtsp_flags"] = "prefer_tcp"  # UDP loses packets, which damages frames
    return options


def _frames(source: LiveSource, container: Any, clip: ClipConfig) -> Iterator[LiveFrame]:
    """Yields the frames of an open stream."""
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        raise VideoReadError(source.name, SkipReason.NO_FRAMES, "no video stream that can be decoded")
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all
    stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    stream.thread_type = "SLICE"  # decoding several frames at a time would delay each of them
    # JPEG files one after the other and bare H.264 give no times: FFmpeg assumes 25 frames per second.
    has_times = not container.format.flags & Flags.no_timestamps.value
    is_paced = has_times and (container.format.name == "hls" or bool(container.duration))
    converter = PixelConverter(Fraction(stream.sample_aspect_ratio or 1))
    clock = StreamClock()
    size: tuple[int, int] | None = None
    for picture in _pictures(container, stream):
        now_sec = time.monotonic()  # on Linux, the same clock in all processes
        sec = picture.time if has_times and picture.time is not None else now_sec
        if is_paced and (lead_sec := clock.lead(sec, now_sec)) > 0:
            time.sleep(lead_sec)
            now_sec = time.monotonic()
        image = converter.convert(picture)
        if size is None or size != clip.frame_size(*image.shape[:2]):
            clock, size = StreamClock(), clip.frame_size(*image.shape[:2])
        frame = np.empty((*size, 3), np.uint8)
        write_resized(image, frame, clip.resize)
        clock_sec, is_first = clock.place(sec, now_sec)
        yield LiveFrame(sec, clock_sec, is_first, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))


def _pictures(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
    """Yields the decoded frames; what cannot be decoded, as before the first keyframe, is left out."""
    for packet in container.demux(stream):
        try:
            pictures = packet.decode()
        except av.error.InvalidDataError:
            continue
        yield from (picture for picture in pictures if not picture.is_corrupt)
