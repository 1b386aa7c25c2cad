"""The round trip, and that others' readers find what they look for."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from vidpipe import records, video

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 32, 40, 3), np.uint8)


def _encode(encoding: str) -> bytes:
    return records.encode_clip(
        [video.encode_frame(frame, encoding, 95) for frame in FRAMES],
        np.array([0, 4, 9]), 1, "run", "run/a.avi", encoding, 32, 40,
    )  # fmt: skip


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_round_trip(encoding: str) -> None:
    clip = records.parse_clip(tf.constant(_encode(encoding)))
    frames = records.decode_frames(clip["encoded_frames"], encoding, clip["height"], clip["width"])
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
    decoded = records.decode_frames(tf.constant([encoded]), "jpeg", 32, 40)
    assert (decoded.numpy()[0] == opencv[..., ::-1]).all()


def test_the_conventional_keys_are_there() -> None:
    example = tf.train.SequenceExample.FromString(_encode("jpeg"))
    context, steps = example.context.feature, example.feature_lists.feature_list
    assert context["clip/label/index"].int64_list.value == [1]
    assert context["clip/label/text"].bytes_list.value == [b"run"]
    assert context["video/filename"].bytes_list.value == [b"run/a.avi"]
    assert (context["image/height"].int64_list.value, context["image/width"].int64_list.value) == ([32], [40])
    images = [feature.bytes_list.value[0] for feature in steps["image/encoded"].feature]
    assert len(images) == 3
    assert all(image[:2] == b"\xff\xd8" for image in images)


def test_the_same_clip_gives_the_same_bytes() -> None:
    assert _encode("jpeg") == _encode("jpeg")


@pytest.mark.parametrize("encoding", ["jpeg", "png", "raw"])
@pytest.mark.parametrize(("height", "width"), [(16, 40), (32, 20), (40, 64)])
def test_a_frame_of_another_size_is_an_error(encoding: str, height: int, width: int) -> None:
    """In a dataset too, where an assertion could be pruned."""
    encoded = tf.data.Dataset.from_tensors([video.encode_frame(FRAMES[0], encoding)])
    decoded = encoded.map(lambda frames: records.decode_frames(frames, encoding, height, width))
    with pytest.raises(tf.errors.InvalidArgumentError, match="of another size|reshape"):
        list(decoded)
