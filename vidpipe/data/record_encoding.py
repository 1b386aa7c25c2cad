"""Encodes a clip as a tf.train.SequenceExample, in decoding processes: without TensorFlow.

The keys follow DMVR and the TensorFlow Model Garden, so their readers can read these records: one encoded
frame per step under `image/encoded`, the label and the file name in the context. Keys that only vidpipe reads
begin with `vidpipe/`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from vidpipe.config import ClipConfig
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

ReadEncodedClip = Callable[[str, ClipConfig, str, int], EncodedClip]


@dataclass(frozen=True)
class ClipRecord:
    """A video as it is stored.

    Attributes:
      example: a serialized tf.train.SequenceExample.
      frames_kept: number of frames in it.
      info: facts about the video.
    """

    example: bytes
    frames_kept: int
    info: VideoInfo


def read_record(
    read: ReadEncodedClip,
    path: str,
    clip: ClipConfig,
    encoding: str,
    jpeg_quality: int,
    label: int,
    label_name: str,
    video_id: str,
) -> ClipRecord:
    """Reads a video and serializes its clip; a decoding process calls this.

    Args:
      read: reads and encodes the clip, such as `video.read_encoded_clip`.
      path: the video.
      clip: which frames, and their size.
      encoding: one of `config.ENCODINGS`.
      jpeg_quality: 1 to 100; only used for `jpeg`.
      label: index in the class list of the dataset.
      label_name: name of the class.
      video_id: name of the video in the manifest.
    """
    encoded = read(path, clip, encoding, jpeg_quality)
    example = encode_clip(
        encoded.encoded_frames,
        frame_indices=encoded.frame_indices,
        label=label,
        label_name=label_name,
        video_id=video_id,
        encoding=encoding,
        height=encoded.height,
        width=encoded.width,
    )
    return ClipRecord(example, len(encoded.encoded_frames), encoded.info)


def encode_clip(
    encoded_frames: Sequence[bytes],
    *,
    frame_indices: np.ndarray,
    label: int,
    label_name: str,
    video_id: str,
    encoding: str,
    height: int,
    width: int,
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

    Returns:
      A serialized tf.train.SequenceExample; the same input gives the same bytes.
    """
    example = _SequenceExample()
    context = example.context.feature
    for key, text in ((LABEL_NAME, label_name), (FILE_NAME, video_id), (FORMAT, encoding)):
        context[key].bytes_list.value.append(text.encode())
    for key, number in ((LABEL, label), (HEIGHT, height), (WIDTH, width), (SCHEMA, SCHEMA_VERSION)):
        context[key].int64_list.value.append(number)
    # Appended in place: a message that is built from other messages copies every frame once per level.
    steps = example.feature_lists.feature_list
    for frame in encoded_frames:
        steps[FRAMES].feature.add().bytes_list.value.append(frame)
    for index in frame_indices.tolist():
        steps[FRAME_INDICES].feature.add().int64_list.value.append(index)
    return example.SerializeToString(deterministic=True)


def _make_sequence_example() -> type[Any]:
    """Makes the message class, with the fields of tensorflow/core/example/{feature,example}.proto."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="vidpipe", syntax="proto3")

    def add(message: Any, name: str, number: int, kind: Any, *, repeated: bool = False) -> None:
        added = message.field.add(name=name, number=number)
        added.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
        if isinstance(kind, str):
            added.type, added.type_name = field.TYPE_MESSAGE, f".vidpipe.{kind}"
        else:
            added.type = kind

    def add_map(message: Any, name: str, value: str) -> None:
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        add(entry, "key", 1, field.TYPE_STRING)
        add(entry, "value", 2, value)
        add(message, name, 1, f"{message.name}.{entry.name}", repeated=True)

    add(file.message_type.add(name="BytesList"), "value", 1, field.TYPE_BYTES, repeated=True)
    add(file.message_type.add(name="Int64List"), "value", 1, field.TYPE_INT64, repeated=True)
    feature = file.message_type.add(name="Feature")
    add(feature, "bytes_list", 1, "BytesList")
    add(feature, "int64_list", 3, "Int64List")
    add_map(file.message_type.add(name="Features"), "feature", "Feature")
    add(file.message_type.add(name="FeatureList"), "feature", 1, "Feature", repeated=True)
    add_map(file.message_type.add(name="FeatureLists"), "feature_list", "FeatureList")
    example = file.message_type.add(name="SequenceExample")
    add(example, "context", 1, "Features")
    add(example, "feature_lists", 2, "FeatureLists")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("vidpipe.SequenceExample"))


_SequenceExample = _make_sequence_example()
