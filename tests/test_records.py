"""The round trip, and that others' readers find what they look for."""

import tempfile

import cv2
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from vidpipe import records, shards, video

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


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.binary(max_size=40), min_size=1, max_size=5),
    st.integers(0, 2**31 - 1),
    st.text(max_size=10),
    st.text(min_size=1, max_size=20),
    st.integers(1, 65500),
)
def test_whatever_a_clip_holds_comes_back(
    frames: list[bytes], label: int, label_name: str, video_id: str, width: int
) -> None:
    """Frames of any bytes, names in any script; through a shard too, byte for byte."""
    indices = np.arange(len(frames)) * 3
    example = records.encode_clip(frames, indices, label, label_name, video_id, "jpeg", 7, width)
    with tempfile.TemporaryDirectory() as folder:
        shards.write_shard(f"{folder}/shard", [example, example])
        read = [record.numpy() for record in tf.data.TFRecordDataset(f"{folder}/shard")]
    assert read == [example, example]
    clip = records.parse_clip(tf.constant(example))
    assert clip["encoded_frames"].numpy().tolist() == frames
    assert clip["frame_indices"].numpy().tolist() == indices.tolist()
    assert (int(clip["label"]), int(clip["height"]), int(clip["width"])) == (label, 7, width)
    assert clip["label_name"].numpy().decode() == label_name
    assert clip["video_id"].numpy().decode() == video_id
