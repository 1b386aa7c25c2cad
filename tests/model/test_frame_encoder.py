"""Frames of clips pass through a network in calls of few sizes, and come back to their places."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from vidpipe.config import ClipSpec
from vidpipe.model import frame_encoder
from vidpipe.model.frame_encoder import FrameEncoder

SIDE = 2


class Recorder(keras.layers.Layer):
    """Returns its input, and keeps how many frames each call had. Only `fitting` frames fit the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.fitting = 2**31

    def call(self, frames: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(self._keep, [frames], tf.float32), frames.shape)

    def _keep(self, frames: np.ndarray) -> np.ndarray:
        self.calls.append(len(frames))
        if len(frames) > self.fitting:
            raise MemoryError("OOM")  # which TensorFlow reports as ResourceExhaustedError
        return frames


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def first_pixels(recorder: Recorder, num_frames: int) -> FrameEncoder:
    """An encoder whose feature is the red value of the first pixel."""
    frames = keras.Input((SIDE, SIDE, 3), dtype="uint8")
    red = recorder(keras.ops.cast(frames, "float32"))[:, 0, 0, :1]
    return FrameEncoder(keras.Model([frames], red), ClipSpec(num_frames=num_frames, height=SIDE, width=SIDE))


def clips(mask: np.ndarray) -> np.ndarray:
    """Frames whose pixels are 1, 2, 3 ... in the order of the batch; padding frames have values too."""
    values = 1 + np.arange(mask.size, dtype=np.uint8).reshape(mask.shape)
    return np.broadcast_to(values[..., None, None, None], (*mask.shape, SIDE, SIDE, 3))


def first_n(*counts: int, num_frames: int) -> np.ndarray:
    return np.arange(num_frames) < np.array(counts)[:, None]


@pytest.mark.parametrize(
    ("limit", "counts", "num_frames", "calls", "clips_per_call"),
    [
        pytest.param(100, (3, 3, 3), 3, [9], 33, id="all in one call"),
        pytest.param(7, (3, 3, 3), 3, [6, 3], 2, id="whole clips, below the limit"),
        pytest.param(7, (3, 1, 3), 3, [6, 3], 2, id="filled up to a whole clip"),
        pytest.param(100, (1, 1), 3, [3], 33, id="real frames of two clips in the place of one"),
        pytest.param(4, (6, 3), 6, [4, 4, 4], 1, id="more frames in a clip than in a call"),
        pytest.param(0, (2,), 3, [1, 1], 1, id="frames that are larger than the limit"),
    ],
)
def test_calls_have_few_sizes_and_results_their_places(
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    counts: tuple[int, ...],
    num_frames: int,
    calls: list[int],
    clips_per_call: int,
) -> None:
    monkeypatch.setattr(frame_encoder, "_PIXELS", limit * SIDE**2)
    encode = first_pixels(recorder, num_frames)
    recorder.calls.clear()
    mask = first_n(*counts, num_frames=num_frames)
    frames = clips(mask)
    encoded = encode(frames, mask)
    assert recorder.calls == calls
    assert (encode.clip_shape, encoded.dtype) == ((num_frames, 1), np.float32)
    assert (encoded[..., 0] == frames[:, :, 0, 0, 0] * mask).all()
    assert encode.clips_per_call == clips_per_call


@pytest.mark.parametrize(
    ("fitting", "calls"),
    [(9, [9]), (5, [9, 3, 3, 3]), (2, [9, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1]), (0, [9, 3, 1])],
)
def test_calls_become_smaller_where_the_memory_does_not_suffice(
    recorder: Recorder, caplog: pytest.LogCaptureFixture, fitting: int, calls: list[int]
) -> None:
    recorder.fitting = fitting
    encode = first_pixels(recorder, 3)
    mask = first_n(3, 3, 3, num_frames=3)
    frames = clips(mask)
    if fitting == 0:
        with pytest.raises(tf.errors.ResourceExhaustedError):
            encode(frames, mask)
    else:
        for _ in range(2):
            recorder.calls.clear()
            assert (encode(frames, mask)[..., 0] == frames[:, :, 0, 0, 0]).all()
            assert recorder.calls == calls
            calls = [call for call in calls if call <= fitting]
    assert (
        caplog.text.count("Out of memory: from here on the backbone takes")
        == {9: 0, 5: 1, 2: 2, 0: 2}[fitting]
    )


def test_a_call_of_the_default_size_stays_below_2_to_the_31_elements() -> None:
    """The largest tensor of VGG16 has 64 channels of the frame's size."""
    for side in (32, 224, 1000):
        frames = keras.Input((side, side, 3), dtype="uint8")
        network = keras.Model([frames], keras.layers.Flatten()(frames))
        for num_frames in (1, 20, 1000):
            encode = FrameEncoder(network, ClipSpec(num_frames=num_frames, height=side, width=side))
            assert 0 < encode._largest_call * side**2 * 64 <= 2**28


def test_a_second_input_is_the_frame_before() -> None:
    frame, before = (keras.Input((SIDE, SIDE, 3), dtype="uint8") for _ in range(2))
    red, red_before = (keras.ops.cast(each, "float32")[:, 0, 0, :1] for each in (frame, before))
    network = keras.Model([frame, before], keras.ops.concatenate([red, red_before], axis=-1))
    encode = FrameEncoder(network, ClipSpec(num_frames=3, height=SIDE, width=SIDE))
    mask = first_n(3, 2, num_frames=3)
    encoded = encode(clips(mask), mask)
    assert encoded.tolist() == [[[1, 1], [2, 1], [3, 2]], [[4, 4], [5, 4], [0, 0]]]


def test_half_precision_is_kept() -> None:
    frames = keras.Input((SIDE, SIDE, 3), dtype="uint8")
    network = keras.Model([frames], keras.ops.cast(frames, "bfloat16")[:, 0, 0, :1])
    encode = FrameEncoder(network, ClipSpec(num_frames=2, height=SIDE, width=SIDE))
    mask = first_n(2, num_frames=2)
    encoded = encode(clips(mask), mask)
    assert tf.constant(encoded).dtype == tf.bfloat16
    assert encoded.astype(np.float32).ravel().tolist() == [1, 2]
