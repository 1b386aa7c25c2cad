"""Decodes the clips of records; `record_encoding.py` encodes them."""

import tensorflow as tf

from vidpipe.data import record_encoding as keys


def parse_clip(example: tf.Tensor) -> dict[str, tf.Tensor]:
    """Parses a serialized clip; its frames stay encoded.

    Args:
      example: string [], made by `record_encoding.serialize_clip`.

    Returns:
      `encoded_frames` string [n], `frame_indices` int64 [n], `height`, `width` and `label` int32 [],
      `label_name` and `video_id` string [].
    """
    context, steps = tf.io.parse_single_sequence_example(
        example,
        context_features={
            keys.LABEL: tf.io.FixedLenFeature([], tf.int64),
            keys.LABEL_NAME: tf.io.FixedLenFeature([], tf.string),
            keys.FILE_NAME: tf.io.FixedLenFeature([], tf.string),
            keys.HEIGHT: tf.io.FixedLenFeature([], tf.int64),
            keys.WIDTH: tf.io.FixedLenFeature([], tf.int64),
        },
        sequence_features={
            keys.FRAMES: tf.io.FixedLenSequenceFeature([], tf.string),
            keys.FRAME_INDICES: tf.io.FixedLenSequenceFeature([], tf.int64),
        },
    )
    return {
        "encoded_frames": steps[keys.FRAMES],
        "frame_indices": steps[keys.FRAME_INDICES],
        "height": tf.cast(context[keys.HEIGHT], tf.int32),
        "width": tf.cast(context[keys.WIDTH], tf.int32),
        "label": tf.cast(context[keys.LABEL], tf.int32),
        "label_name": context[keys.LABEL_NAME],
        "video_id": context[keys.FILE_NAME],
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
