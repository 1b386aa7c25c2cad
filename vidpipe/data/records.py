"""Encodes a clip as a tf.train.SequenceExample, and decodes it.

The keys follow DMVR and the TensorFlow Model Garden, so their readers can read these records: one encoded
frame per step under `image/encoded`, the label and the file name in the context. Keys that only vidpipe reads
begin with `vidpipe/`.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

SCHEMA_VERSION = 1
_FRAMES = "image/encoded"
_LABEL = "clip/label/index"
_LABEL_NAME = "clip/label/text"
_FILE_NAME = "video/filename"
_HEIGHT, _WIDTH = "image/height", "image/width"
_FORMAT = "image/format"
_FRAME_INDICES = "vidpipe/frame_index"
_SCHEMA_VERSION = "vidpipe/schema_version"


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
    example = tf.train.SequenceExample()
    context = example.context.feature
    for key, text in ((_LABEL_NAME, label_name), (_FILE_NAME, video_id), (_FORMAT, encoding)):
        context[key].bytes_list.value.append(text.encode())
    for key, number in (
        (_LABEL, label), (_HEIGHT, height), (_WIDTH, width), (_SCHEMA_VERSION, SCHEMA_VERSION)
    ):  # fmt: skip
        context[key].int64_list.value.append(number)
    # Appended in place: a message that is built from other messages copies every frame once per level.
    steps = example.feature_lists.feature_list
    for frame in encoded_frames:
        steps[_FRAMES].feature.add().bytes_list.value.append(frame)
    for index in frame_indices.tolist():
        steps[_FRAME_INDICES].feature.add().int64_list.value.append(index)
    return example.SerializeToString(deterministic=True)


def parse_clip(example: tf.Tensor) -> dict[str, tf.Tensor]:
    """Parses a serialized clip; its frames stay encoded.

    Args:
      example: string [], made by `encode_clip`.

    Returns:
      `encoded_frames` string [n], `frame_indices` int64 [n], `height`, `width` and `label` int32 [],
      `label_name` and `video_id` string [].
    """
    context, steps = tf.io.parse_single_sequence_example(
        example,
        context_features={
            _LABEL: tf.io.FixedLenFeature([], tf.int64),
            _LABEL_NAME: tf.io.FixedLenFeature([], tf.string),
            _FILE_NAME: tf.io.FixedLenFeature([], tf.string),
            _HEIGHT: tf.io.FixedLenFeature([], tf.int64),
            _WIDTH: tf.io.FixedLenFeature([], tf.int64),
        },
        sequence_features={
            _FRAMES: tf.io.FixedLenSequenceFeature([], tf.string),
            _FRAME_INDICES: tf.io.FixedLenSequenceFeature([], tf.int64),
        },
    )
    return {
        "encoded_frames": steps[_FRAMES],
        "frame_indices": steps[_FRAME_INDICES],
        "height": tf.cast(context[_HEIGHT], tf.int32),
        "width": tf.cast(context[_WIDTH], tf.int32),
        "label": tf.cast(context[_LABEL], tf.int32),
        "label_name": context[_LABEL_NAME],
        "video_id": context[_FILE_NAME],
    }


def decode_frames(
    encoded_frames: tf.Tensor, encoding: str, height: tf.Tensor | int, width: tf.Tensor | int
) -> tf.Tensor:
    """Decodes the frames of one clip.

    Args:
      encoded_frames: string [n], n >= 1.
      encoding: one of `config.ENCODINGS`.
      height: int32 [], height of each frame according to the record, pixels.
      width: int32 [], width of each frame according to the record, pixels.

    Returns:
      uint8 [n, height, width, 3], RGB, 0..255; bit-identical to what OpenCV decodes.

    Raises:
      tf.errors.InvalidArgumentError: a frame is corrupt or has another size.
    """
    if encoding == "raw":
        shape = tf.stack([tf.size(encoded_frames), height, width, 3])
        return tf.reshape(tf.io.decode_raw(encoded_frames, tf.uint8), shape)

    @tf.autograph.experimental.do_not_convert  # with autograph, errors begin with a source location
    def decode(frame: tf.Tensor) -> tf.Tensor:
        if encoding == "jpeg":
            # INTEGER_ACCURATE is bit-identical to OpenCV's decoder; TensorFlow's default is not.
            image = tf.io.decode_jpeg(frame, channels=3, dct_method="INTEGER_ACCURATE")
        else:
            image = tf.io.decode_png(frame, channels=3)
        tf.debugging.assert_equal(tf.shape(image)[:2], tf.stack([height, width]), "a frame of another size")
        return image

    return tf.map_fn(decode, encoded_frames, fn_output_signature=tf.TensorSpec([None, None, 3], tf.uint8))
