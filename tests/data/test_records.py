"""The round trip of a clip, and the keys that other readers expect."""

import tempfile
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from vidpipe.data import records, shards, video
from vidpipe.data.record_encoding import serialize_clip

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 32, 40, 3), np.uint8)


def _encode(encoding: str) -> bytes:
    return serialize_clip(
        [video.encode_frame(frame, encoding, 95) for frame in FRAMES],
        frame_indices=np.array([0, 4, 9]),
        label=1,
        label_name="run",
        video_id="run/a.avi",
        encoding=encoding,
        height=32,
        width=40,
    )


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_round_trip(encoding: str) -> None:
    clip = records.parse_clip(tf.constant(_encode(encoding)))
    frames = records.decode_frames(clip["encoded_frames"], encoding, clip["height"], clip["width"])
    assert (frames.numpy() == FRAMES).all()
    assert clip["frame_indices"].numpy().tolist() == [0, 4, 9]
    assert (clip["label"].numpy(), clip["label"].dtype) == (1, tf.int32)
    assert (clip["label_name"].numpy(), clip["video_id"].numpy()) == (b"run", b"run/a.avi")


@pytest.mark.parametrize("quality", [75, 95])
def test_decoded_jpeg_is_bit_identical_to_opencv(quality: int) -> None:
    smooth = cv2.GaussianBlur(FRAMES[0], (9, 9), 0)
    encoded = video.encode_frame(smooth, "jpeg", quality)
    opencv = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    assert opencv is not None
    decoded = records.decode_frames(tf.constant([encoded]), "jpeg", 32, 40)
    assert (decoded.numpy()[0] == opencv[..., ::-1]).all()


def test_a_record_has_the_keys_of_dmvr() -> None:
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
    """Also inside a tf.data dataset, where an assertion could be pruned."""
    encoded = tf.data.Dataset.from_tensors([video.encode_frame(FRAMES[0], encoding)])
    decoded = encoded.map(lambda frames: records.decode_frames(frames, encoding, height, width))
    with pytest.raises(tf.errors.InvalidArgumentError, match="of another size|reshape"):
        list(decoded)


_CLIPS = st.fixed_dictionaries(
    {
        "encoded_frames": st.lists(
            st.binary(max_size=40) | st.sampled_from([bytes(127), bytes(128), bytes(17_000)]),
            min_size=1,
            max_size=5,
        ),
        "label": st.integers(0, 2**31 - 1),
        "label_name": st.text(max_size=10),
        "video_id": st.text(min_size=1, max_size=20),
        "height": st.just(7),
        "width": st.integers(1, 65500),
    }
)


@settings(deadline=None, max_examples=20)
@given(st.lists(_CLIPS, min_size=1, max_size=6))
def test_round_trip_of_any_content(clips: list[dict[str, Any]]) -> None:
    """Frames of any bytes and names in any script, through a shard."""
    indices = [3 * np.arange(len(clip["encoded_frames"])) for clip in clips]
    examples = [
        serialize_clip(**clip, frame_indices=index, encoding="jpeg")
        for clip, index in zip(clips, indices, strict=True)
    ]
    for example in examples:
        parsed = tf.train.SequenceExample.FromString(example)
        assert parsed.SerializeToString(deterministic=True) == example
    with tempfile.TemporaryDirectory() as folder:
        shards.write_shard(f"{folder}/shard", examples)
        read = [record.numpy() for record in tf.data.TFRecordDataset(f"{folder}/shard")]
    assert read == examples
    for clip, index, example in zip(clips, indices, examples, strict=True):
        parsed = {name: value.numpy() for name, value in records.parse_clip(tf.constant(example)).items()}
        assert parsed["encoded_frames"].tolist() == clip["encoded_frames"]
        assert parsed["frame_indices"].tolist() == index.tolist()
        for name in ("label", "height", "width"):
            assert parsed[name] == clip[name]
        for name in ("label_name", "video_id"):
            assert parsed[name].decode() == clip[name]
