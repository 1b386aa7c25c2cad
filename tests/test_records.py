"""The round trip, and that others' readers find what they look for."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from vidpipe import records, video
from vidpipe.spec import ClipSpec

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def _encode(encoding: str) -> bytes:
    return records.encode_clip(
        [video.encode_frame(frame, encoding, 95) for frame in FRAMES],
        np.array([0, 4, 9]), 1, "run", "run/a.avi", encoding, 32,
    )  # fmt: skip


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_round_trip(encoding: str) -> None:
    clip = records.parse_clip(tf.constant(_encode(encoding)))
    frames = records.decode_frames(clip["encoded_frames"], encoding, ClipSpec(4, 32, 32))
    assert (frames.numpy() == FRAMES).all()
    assert clip["frame_indices"].numpy().tolist() == [0, 4, 9]
    assert (clip["label"].numpy(), clip["label"].dtype) == (1, tf.int32)
    assert (clip["label_name"].numpy(), clip["video_id"].numpy()) == (b"run", b"run/a.avi")


@pytest.mark.parametrize("quality", [75, 95])
def test_jpeg_read_back_equals_what_opencv_decodes(quality: int) -> None:
    smooth = cv2.GaussianBlur(FRAMES[0], (9, 9), 0)
    encoded = video.encode_frame(smooth, "jpeg", quality)
    opencv = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    assert opencv is not None
    decoded = records.decode_frames(tf.constant([encoded]), "jpeg", ClipSpec(1, 32, 32))
    assert (decoded.numpy()[0] == opencv[..., ::-1]).all()


def test_the_conventional_keys_are_there() -> None:
    example = tf.train.SequenceExample.FromString(_encode("jpeg"))
    context, steps = example.context.feature, example.feature_lists.feature_list
    assert context["clip/label/index"].int64_list.value == [1]
    assert context["clip/label/text"].bytes_list.value == [b"run"]
    assert context["video/filename"].bytes_list.value == [b"run/a.avi"]
    images = [feature.bytes_list.value[0] for feature in steps["image/encoded"].feature]
    assert len(images) == 3
    assert all(image[:2] == b"\xff\xd8" for image in images)


def test_the_same_clip_gives_the_same_bytes() -> None:
    assert _encode("jpeg") == _encode("jpeg")


def test_a_frame_of_another_size_is_an_error() -> None:
    encoded = tf.constant([video.encode_frame(FRAMES[0], "png")])
    with pytest.raises(tf.errors.InvalidArgumentError, match="not compatible with"):
        records.decode_frames(encoded, "png", ClipSpec(1, 16, 16))
