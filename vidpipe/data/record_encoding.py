"""Encodes a clip as a tf.train.SequenceExample, in decoding processes: without TensorFlow.

The keys follow DMVR and the TensorFlow Model Garden, so their readers can read these records: one encoded
frame per step under `image/encoded`, the label and the file name in the context. Keys that only vidpipe reads
begin with `vidpipe/`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidpipe.config import ClipConfig
from vidpipe.data.moment import Moment
from vidpipe.data.video import EncodedClip, VideoInfo

SCHEMA_VERSION = 1
FRAMES = "image/encoded"
LABEL = "clip/label/index"
LABEL_NAME = "clip/label/text"
FILE_NAME = "video/filename"
HEIGHT, WIDTH = "image/height", "image/width"
FORMAT = "image/format"
FRAME_INDICES = "vidpipe/frame_index"
SCHEMA = "vidpipe/schema_version"
# Of moments only: when they begin and end in their video, microseconds.
START, END = "clip/start/timestamp", "clip/end/timestamp"

# Takes the path, how to sample, encoding and quality; and the moment, where only that is read.
ReadEncodedClip = Callable[..., EncodedClip]


class TemporaryFileError(Exception):
    """A decoding process cannot pass its clip on: no fault of the video, so not an OSError."""


@dataclass(frozen=True)
class ClipRecord:
    """A video as it is stored.

    Attributes:
      path: a temporary file that begins with the serialized tf.train.SequenceExample.
      num_bytes: length of the example.
      frames_kept: number of frames in it.
      info: facts about the video.
    """

    path: str
    num_bytes: int
    frames_kept: int
    info: VideoInfo

    def read(self) -> bytes:
        """Reads the example."""
        with Path(self.path).open("rb") as file:
            return file.read(self.num_bytes)


def read_record(
    read: ReadEncodedClip,
    path: str,
    clip: ClipConfig,
    encoding: str,
    jpeg_quality: int,
    label: int,
    label_name: str,
    video_id: str,
    moment: Moment | None,
    temporary_path: str,
) -> ClipRecord:
    """Reads a video and serializes its clip; a decoding process calls this.

    The bytes go through a file, which many clips share, one after the other: on one core that takes a
    twentieth of the time of a pipe between the processes, and a sixth of that of a new file.

    Args:
      read: reads and encodes the clip, such as `moment_reader.read_encoded_clip`.
      path: the video.
      clip: which frames, and their size.
      encoding: one of `config.ENCODINGS`.
      jpeg_quality: 1 to 100; only used for `jpeg`.
      label: index in the class list of the dataset.
      label_name: name of the class.
      video_id: name of the video in the manifest.
      moment: the part of the video that is read; None for all of it.
      temporary_path: the file; its old content is overwritten, but not cut off.

    Raises:
      TemporaryFileError: it cannot be written.
      VideoReadError, OSError, MemoryError: as `read` raises them.
    """
    encoded = read(path, clip, encoding, jpeg_quality, *([] if moment is None else [moment]))
    example = serialize_clip(
        encoded.encoded_frames,
        frame_indices=encoded.frame_indices,
        label=label,
        label_name=label_name,
        video_id=video_id,
        encoding=encoding,
        height=encoded.height,
        width=encoded.width,
        span=encoded.info.span,
    )
    try:
        # Not truncated: its pages would be given back, and taken again.
        with os.fdopen(os.open(temporary_path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(example)
    except OSError as error:
        folder = Path(temporary_path).parent
        raise TemporaryFileError(f"Cannot write to {folder}: {error.strerror}") from None
    return ClipRecord(temporary_path, len(example), len(encoded.encoded_frames), encoded.info)


def serialize_clip(
    encoded_frames: Sequence[bytes],
    *,
    frame_indices: np.ndarray,
    label: int,
    label_name: str,
    video_id: str,
    encoding: str,
    height: int,
    width: int,
    span: tuple[float, float] | None = None,
) -> bytes:
    """Serializes one clip.

    Args:
      encoded_frames: n frames, each encoded by `video.encode_frame`; no padding.
      frame_indices: int64 [n], index of each frame in its video.
      label: index in the class list of the dataset.
      label_name: name of the class.
      video_id: name of the video in the manifest.
      encoding: one of `config.ENCODINGS`.
      height: height of each frame in pixels.
      width: width of each frame in pixels.
      span: start and end of a moment in its video, seconds.

    Returns:
      A serialized tf.train.SequenceExample; the same input gives the same bytes.
    """
    texts = {LABEL_NAME: label_name, FILE_NAME: video_id, FORMAT: encoding}
    numbers = {LABEL: label, HEIGHT: height, WIDTH: width, SCHEMA: SCHEMA_VERSION}
    if span is not None:
        numbers |= {START: round(span[0] * 1e6), END: round(span[1] * 1e6)}
    context = {key: _bytes_feature(text.encode()) for key, text in texts.items()}
    context |= {key: _int64_feature(number) for key, number in numbers.items()}
    indices = b"".join(_field(1, _int64_feature(index)) for index in frame_indices.tolist())
    frames = [part for frame in encoded_frames for part in (_frame_header(len(frame)), frame)]
    num_bytes = sum(map(len, frames))
    key, other = _field(1, FRAMES.encode()), _map({FRAME_INDICES: indices})
    value_header = _header(2, num_bytes)
    entry_header = _header(1, len(key) + len(value_header) + num_bytes)
    start = entry_header + key + value_header
    steps_header = _header(2, len(start) + num_bytes + len(other))
    return b"".join([_field(1, _map(context)), steps_header, start, *frames, other])


# The wire format of tensorflow/core/example/{feature,example}.proto, written here: the protobuf library
# copies a clip's frames as often as its buffer grows, which takes three times as long. See
# https://protobuf.dev/programming-guides/encoding/.


def _frame_header(num_bytes: int) -> bytes:
    """Encodes what comes before a frame of `num_bytes` in FeatureList{feature: [Feature{...}]}."""
    headers = b""
    for _ in range(3):
        headers = _header(1, len(headers) + num_bytes) + headers
    return headers


def _bytes_feature(value: bytes) -> bytes:
    """Encodes Feature{bytes_list: BytesList{value: [value]}}."""
    return _field(1, _field(1, value))


def _int64_feature(value: int) -> bytes:
    """Encodes Feature{int64_list: Int64List{value: [value]}}; `value` is not negative."""
    return _field(3, _field(1, _varint(value)))


def _map(entries: Mapping[str, bytes]) -> bytes:
    """Encodes a map field of number 1, in the order of its keys, as protobuf's deterministic output."""
    return b"".join(_field(1, _field(1, key.encode()) + _field(2, entries[key])) for key in sorted(entries))


def _field(number: int, value: bytes) -> bytes:
    """Encodes a field of bytes, a submessage or packed numbers."""
    return _header(number, len(value)) + value


def _header(number: int, num_bytes: int) -> bytes:
    """Encodes what comes before the value of such a field."""
    return bytes([number << 3 | 2]) + _varint(num_bytes)


def _varint(number: int) -> bytes:
    groups = [number >> shift & 0x7F for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])
