"""Opens a video with PyAV, counts its frames by packets, and decodes those that are wanted.

A pass over the packets, without decoding, gives the number of frames, their times and the keyframes. Headers
are not believed: durations and frame counts are wrong in many healthy files.
"""

import itertools
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

# PyAV imports these at the first file that it opens; no other file may be opened during an untrusted one.
import av.audio.codeccontext
import av.audio.stream
import av.subtitles.codeccontext
import av.subtitles.stream
import numpy as np
from av.stream import Discard, Disposition

from vidpipe.data import forward_decoder
from vidpipe.data.forward_decoder import ContradictionError, ForwardDecoder
from vidpipe.data.packets import (
    ASSUMED_FPS,
    VOP_HEADER_BYTES,
    Damage,
    Loss,
    Packets,
    is_b_vop,
    loss_by_index,
    loss_by_time,
    order_of_vops,
)
from vidpipe.data.skip_reason import OUT_OF_MEMORY, SkipReason, VideoReadError

# 16384 x 16384: beyond any camera, and a frame of that size takes 800 MB.
MAX_FRAME_PIXELS = 2**28

# Containers that hold their video in one file. Playlists and lists of files (HLS, DASH, concat, image
# sequences) are not among them: they make FFmpeg open other files and addresses.
_VIDEO_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,gif,apng,mxf,dv,nut,rm,ivf,obu,"
    "av1,h261,h263,h264,hevc,vvc,m4v,mjpeg,vc1,vc1test,yuv4mpegpipe,wtv,nsv,swf"
)
# Opened only to say that they hold no video.
_SOUND_FORMATS = "mp3,flac,wav,aac,aiff,w64,caf,amr"
_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": f"{_VIDEO_FORMATS},{_SOUND_FORMATS}",
}
# PyAV before 19 fails at metadata that is not UTF-8, unless it is told to replace it.
METADATA_OPTIONS: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)
# They store when each frame is shown, and mark keyframes reliably. Elsewhere (MPEG streams, most AVI files) a
# seek gives neighbouring frames.
_SEEKABLE_FORMATS = frozenset({"mov", "matroska"})
# They have an index of all packets.
_INDEXED_FORMATS = frozenset({"mov", "avi"})
# Their times start again where recordings were joined.
_JUMPING_FORMATS = frozenset({"mpeg", "mpegts", "mpegvideo"})
# Streams that show one picture beside the video.
_NOT_A_VIDEO = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
# The packets of a smaller video stay in memory, bytes; those of a larger one are read again.
_MAX_KEPT_BYTES = 32 << 20

# FFmpeg reports damage in its log only. Nothing of it is printed: our callers name the file and the reason.
av.logging.set_level(av.logging.ERROR)
av.logging.set_skip_repeated(False)  # the same damage in two files is two reports
_ffmpeg_log = logging.getLogger("libav")
_ffmpeg_log.addHandler(logging.NullHandler())
_ffmpeg_log.propagate = False

_Log = list[tuple[int, str, str]]


@dataclass(frozen=True)
class DecodedFrame:
    """A decoded frame.

    Attributes:
      index: its number in the video, in the order of presentation.
      packet: the number of the packet that holds it, in the order of the file.
      picture: the frame as PyAV gives it.
      is_damaged: whether it, or a frame that it may refer to, could not be decoded completely.
    """

    index: int
    packet: int
    picture: av.VideoFrame
    is_damaged: bool


class VideoFile:
    """An open video whose packets were counted; `open_video` makes it.

    Attributes:
      path: the file.
      fps: frames per second on average; 0 if unknown.
      sample_aspect_ratio: width of a pixel divided by its height.
      packets: what the pass over the packets found.
      loss: packets that the container names and the file does not have.
      num_frames: number of frames that the packets promise.
      order: int64 [num_frames], the packet of each frame in the order of presentation; None if only decoding
        in order tells it.
    """

    def __init__(
        self,
        path: str,
        container: Any,
        stream: av.VideoStream,
        log: _Log,
        *,
        is_cut_riff: bool,
        max_pixels: int,
    ) -> None:
        self.path, self._max_pixels = path, max_pixels
        self._is_cut_riff = is_cut_riff
        self.fps = float(stream.average_rate or stream.guessed_rate or 0)
        self.sample_aspect_ratio = Fraction(stream.sample_aspect_ratio or 1)
        self._container, self._stream, self._log = container, stream, log
        self._decoder = stream.codec_context
        self._decoder.thread_type, self._decoder.thread_count = "NONE", 1
        self._decoder.options = {"max_pixels": str(max_pixels)}
        self._format = container.format.name.split(",")[0]
        self._time_base = float(stream.time_base)
        self._kept: list[av.Packet] | None = None
        self._forward: ForwardDecoder | None = None
        self.packets, self.order, self.loss = self._read_packets()
        self.num_frames = int(self.packets.is_shown.sum())

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec."""
        return self._decoder.name

    @property
    def step_sec(self) -> float:
        """The time between two frames on average, in seconds."""
        return 1 / (self.fps or ASSUMED_FPS)

    def frame_times(self, packet_numbers: np.ndarray) -> tuple[np.ndarray, bool]:
        """Returns the time of each frame, given the packet that holds it, see `Packets.frame_times`."""
        may_jump = self._format in _JUMPING_FORMATS
        times, all_known = self.packets.frame_times(packet_numbers, self.step_sec, may_jump=may_jump)
        return times, all_known or self.fps > 0

    def decode(self, indices: np.ndarray, *, stay: bool = False) -> Iterator[DecodedFrame]:
        """Decodes the wanted frames, and of the others only those that they may refer to.

        Args:
          indices: int64 [n], ascending.
          stay: whether the decoder stays at the last frame, so that a next call for later frames of the same
            keyframe goes on from there. This decodes a few frames more.

        Raises:
          ContradictionError: a frame is damaged, or not where the packets say.
        """
        assert self.order is not None
        index_of = dict(zip(self.order[indices].tolist(), indices.tolist(), strict=True))
        forward, self._forward = self._forward, None
        for keyframe, numbers in self._by_keyframe(index_of).items():
            if forward is None or not forward.can_reach(keyframe, numbers):
                forward = ForwardDecoder(self._decoder, keyframe, self._packets_from(keyframe))
            for picture in forward.decode(set(numbers), stay=stay):
                yield DecodedFrame(index_of[picture.pts], picture.pts, picture, is_damaged=False)
        self._forward = forward if stay else None

    def decode_in_order(self, damage: Damage) -> Iterator[DecodedFrame]:
        """Decodes every frame: the reference for what is in the file.

        Args:
          damage: records what cannot be decoded.
        """
        self._forward = None
        forward_decoder.start(self._decoder)
        index = 0
        end = [(len(self.packets.pts) - 1, None)]  # makes the decoder give the frames that it still holds
        for number, packet in itertools.chain(self._all_packets(), end):
            try:
                pictures = forward_decoder.decode_packet(self._decoder, packet, number)
            except ContradictionError:
                damage.add_lost(number)
                continue
            for picture in pictures:
                yield _judged(index, picture, number, damage)
                index += 1

    def _by_keyframe(self, numbers: Iterable[int]) -> dict[int, list[int]]:
        """Groups packets by the keyframe that decoding has to start from."""
        assert self.order is not None
        keyframes = np.flatnonzero(self.packets.is_keyframe)
        shown_at = self.packets.pts
        if self._format not in _SEEKABLE_FORMATS:  # AVI has no times of presentation
            shown_at = np.argsort(self.order)
        groups: dict[int, list[int]] = {}
        for number in numbers:
            nearest = int(np.searchsorted(keyframes, number, side="right")) - 1
            # A frame that is shown before a keyframe but stored after it may refer to frames before it.
            while nearest >= 0 and shown_at[keyframes[nearest]] > shown_at[number]:
                nearest -= 1
            if nearest < 0:
                raise ContradictionError
            groups.setdefault(int(keyframes[nearest]), []).append(number)
        return groups

    def _all_packets(self) -> Iterator[tuple[int, av.Packet]]:
        if self._kept is not None:
            yield from enumerate(self._kept)
        else:
            # Not a seek to the start: not every container comes back to its first packet.
            self._container.close()
            with _open_stream(self.path, self._max_pixels) as (container, stream):
                yield from enumerate(_demux(container, stream))

    def _packets_from(self, keyframe: int) -> Iterator[tuple[int, av.Packet]]:
        if self._kept is not None:
            yield from enumerate(self._kept[keyframe:], keyframe)
            return
        number, packets = self._seek(keyframe)
        position = self.packets.position
        for packet in packets:
            if number >= len(position) or position[number] != packet.pos:
                raise ContradictionError
            yield number, packet
            number += 1

    def _seek(self, keyframe: int) -> tuple[int, Iterator[av.Packet]]:
        """Seeks to a keyframe, or to one before it; returns the first packet's number, and the packets."""
        # By the time of presentation first: by that of decoding, MP4 often gives the keyframe before. Where
        # B-frames follow a keyframe closely, it gives the one after.
        for times in (self.packets.pts, self.packets.dts):
            if np.isnan(times[keyframe]):
                continue
            try:
                self._container.seek(round(times[keyframe] / self._time_base), stream=self._stream)
            except av.error.FFmpegError as error:
                raise ContradictionError from error
            packets = _demux(self._container, self._stream)
            first = next(packets, None)
            if first is None:
                continue
            (landed,) = np.nonzero(self.packets.position[: keyframe + 1] == first.pos)
            if len(landed) and self.packets.is_keyframe[landed[-1]]:
                return int(landed[-1]), itertools.chain([first], packets)
        raise ContradictionError

    def _read_packets(self) -> tuple[Packets, np.ndarray | None, Loss]:
        """Passes over all packets; those of a small video stay in memory."""
        num_listed, num_reports = len(self._stream.index_entries), len(self._log)
        is_vp8 = self.codec == "vp8"
        has_vops = self._format == "avi" and self.codec == "mpeg4"
        columns, is_b_frame = [], []
        kept, kept_bytes, log = [], 0, self._log
        for packet in _demux(self._container, self._stream):
            # VP8 stores frames that are only referred to as packets; the bit tells (RFC 6386, 9.1).
            is_shown = not packet.is_discard and not (is_vp8 and not memoryview(packet)[0] & 0x10)
            is_suspect = packet.is_corrupt
            if len(log) > num_reports:
                is_suspect |= self._reports_damage(num_reports)
                num_reports = len(log)
            columns.append((packet.pts, packet.dts, packet.is_keyframe, is_shown, packet.pos, is_suspect))
            if has_vops:
                is_b_frame.append(is_b_vop(bytes(memoryview(packet)[:VOP_HEADER_BYTES])))
            kept_bytes += packet.size
            if kept_bytes <= _MAX_KEPT_BYTES:
                kept.append(packet)
            else:
                kept.clear()
        if not columns:
            raise VideoReadError(self.path, SkipReason.NO_FRAMES, "has a video stream without frames")
        self._kept = kept or None
        pts, dts, keyframes, shown, positions, suspects = zip(*columns, strict=True)
        packets = Packets(
            pts=np.array(pts, np.float64) * self._time_base,
            dts=np.array(dts, np.float64) * self._time_base,
            is_keyframe=np.array(keyframes),
            is_shown=np.array(shown),
            position=np.array([-1 if position is None else position for position in positions]),
            is_suspect=np.array(suspects),
        )
        order = None
        if self._format in _SEEKABLE_FORMATS:
            order = packets.presentation_order()
        elif has_vops and keyframes[0] and None not in is_b_frame:
            order = order_of_vops(np.array(is_b_frame))
        loss = self._find_loss(packets, num_listed, ended_early=self._reports_damage(num_reports))
        # What follows a gap may refer to what is missing, which only decoding in order takes into account.
        return packets, None if loss.before else order, loss

    def _find_loss(self, packets: Packets, num_listed: int, *, ended_early: bool) -> Loss:
        num_packets = len(packets.pts)
        if self._format in _INDEXED_FORMATS:
            if num_listed > num_packets:
                return loss_by_index(
                    packets, [entry.pos for entry in self._stream.index_entries if entry.size > 0]
                )
            # AVI's index is at the end of the file. If it is missing, the header tells how much there was.
            if num_listed < num_packets < self._stream.frames and self._is_cut_riff:
                return Loss(self._stream.frames - num_packets, is_at_end=True)
            return Loss()
        return loss_by_time(
            packets,
            duration_sec=self._claimed_sec(),
            ended_early=ended_early or bool(packets.is_suspect[-1]),
            may_jump=self._format in _JUMPING_FORMATS,
        )

    def _claimed_sec(self) -> float:
        """Returns the duration that the container gives for the video stream; 0 if it gives none."""
        # A tag of mkvmerge and FFmpeg, such as 00:00:06.023000000.
        tag = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", self._stream.metadata.get("DURATION", ""))
        if tag is not None:
            return 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3])
        # The container's own duration may be that of its sound.
        is_alone = len(self._container.streams) == 1
        return (self._container.duration or 0) / av.time_base if is_alone else 0.0

    def _reports_damage(self, since: int) -> bool:
        """Whether the container's reader has reported damage in the log entries from `since` on."""
        return any(name == self._container.format.name for _, name, _ in self._log[since:])


@contextmanager
def open_video(path: str, *, max_pixels: int = MAX_FRAME_PIXELS) -> Iterator[VideoFile]:
    """Opens a video for a block, and counts its packets.

    Args:
      path: the video.
      max_pixels: of a frame; a video with larger ones is not read.

    Raises:
      VideoReadError: it cannot be opened, has no video, or was changed in the meantime. Errors of FFmpeg in
        the block become one, too.
    """
    state = file_state(path)
    is_cut_riff = _is_cut_riff(
        path, state[0]
    )  # before: an untrusted file is opened under a limit of one file
    with (
        ffmpeg_errors(path),
        av.logging.Capture() as log,
        _open_stream(path, max_pixels) as (container, stream),
    ):
        yield VideoFile(path, container, stream, log, is_cut_riff=is_cut_riff, max_pixels=max_pixels)
    if file_state(path) != state:
        raise VideoReadError(path, SkipReason.CHANGED, "was changed while it was read")


@contextmanager
def _open_stream(path: str, max_pixels: int) -> Iterator[tuple[Any, av.VideoStream]]:
    # With "file:", a colon in the name is no address and a dash at its start no option.
    with av.open(f"file:{path}", options=_OPTIONS, **METADATA_OPTIONS) as container:
        stream = _choose_stream(path, container, max_pixels)
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        yield container, stream


def _choose_stream(path: str, container: Any, max_pixels: int) -> av.VideoStream:
    """Returns the default video stream; of several ones the largest, as the ffmpeg command does."""
    pictures = [stream for stream in container.streams.video if stream.disposition & _NOT_A_VIDEO]
    videos = [stream for stream in container.streams.video if stream not in pictures]
    if not videos:
        kinds = [("audio", container.streams.audio), ("cover art", pictures)]
        found = " with ".join(kind for kind, streams in kinds if streams) or "nothing known"
        raise VideoReadError(path, SkipReason.NO_FRAMES, f"no video stream ({found})")
    decodable = [stream for stream in videos if stream.codec_context is not None]
    if not decodable:
        raise VideoReadError(
            path, SkipReason.NO_DECODER, f"{_codec_name(container, videos[0])}: decoder missing"
        )

    def rank(stream: av.VideoStream) -> tuple[bool, int]:
        return bool(stream.disposition & Disposition.default), stream.width * stream.height

    stream = max(decodable, key=rank)
    width = round(stream.width * (stream.sample_aspect_ratio or 1))
    if max(width, stream.width) * stream.height > max_pixels:
        raise VideoReadError(
            path, SkipReason.TOO_LARGE, f"larger than the limit: {width} x {stream.height} pixels"
        )
    return stream


def _demux(container: Any, stream: av.VideoStream) -> Iterator[av.Packet]:
    """Yields the packets that hold a frame; an error that ends them is an entry in FFmpeg's log."""
    try:
        for packet in container.demux(stream):
            if packet.size > 0:
                yield packet
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError as error:
        av.logging.log(av.logging.ERROR, container.format.name, str(error))


def _judged(index: int, picture: av.VideoFrame, fed: int, damage: Damage) -> DecodedFrame:
    """Makes the result for a picture; `fed` is the last packet, for pictures that do not name theirs."""
    number = fed if picture.pts is None else picture.pts
    return DecodedFrame(index, number, picture, damage.affects(number, is_corrupt=picture.is_corrupt))


def _seconds(time: int | None, time_base: float) -> float:
    return float("nan") if time is None else time * time_base


def _codec_name(container: Any, stream: av.VideoStream) -> str:
    """Returns FFmpeg's name of a codec that it cannot decode, which only its description of the file has."""
    av.logging.set_level(av.logging.INFO)
    try:
        named = re.search(rf"Stream #0:{stream.index}\b.*?Video: (\w+)", container.dumps_format())
    finally:
        av.logging.set_level(av.logging.ERROR)
    return named[1].upper() if named else "unknown codec"


def file_state(path: str) -> tuple[int, int]:
    """Returns size in bytes and modification time in ns; raises a VideoReadError if there is no file."""
    if not Path(path).is_file():
        raise VideoReadError(path, SkipReason.NOT_FOUND, "no such file")
    state = Path(path).stat()
    return state.st_size, state.st_mtime_ns


def _is_cut_riff(path: str, num_bytes: int) -> bool:
    """Whether an AVI file is shorter than it says at its start."""
    with Path(path).open("rb") as file:
        header = file.read(8)
    size = int.from_bytes(header[4:], "little")
    was_piped = size == 2**32 - 1  # a writer that could not go back to fill in the size
    return header[:4] == b"RIFF" and not was_piped and size + 8 > num_bytes


@contextmanager
def ffmpeg_errors(path: str) -> Iterator[None]:
    """Raises errors of FFmpeg in the block, and a lack of memory, as a VideoReadError."""
    try:
        yield
    except MemoryError as error:
        raise VideoReadError(path, OUT_OF_MEMORY.reason, OUT_OF_MEMORY.message) from error
    except av.error.FFmpegError as error:
        raise VideoReadError(
            path, SkipReason.CANNOT_OPEN, f"does not open as a video{_why(error)}"
        ) from error


def _why(error: av.error.FFmpegError) -> str:
    """Returns FFmpeg's own reason in brackets, if it has one."""
    if error.log and "not on whitelist" in error.log[2]:
        return " (this container format is not allowed)"
    if error.log:
        return f" ({error.log[2].strip()})"
    return "" if isinstance(error, av.error.InvalidDataError) else f" ({error.strerror})"
