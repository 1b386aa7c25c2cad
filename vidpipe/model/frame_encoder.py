"""Runs a network on the frames of clips outside of a training step, in calls of few and fixed sizes."""

import logging
import math

import keras
import numpy as np
import tensorflow as tf

from vidpipe.config import ClipSpec

# Pixels of a call, at most: 83 frames of 224 x 224. The largest tensor of VGG16 has 64 numbers per pixel,
# 1 GiB of float32. TensorFlow's kernels for GPUs fail at 2^31 numbers.
_PIXELS = 2**22
_FRAMES = 256  # of a call, at most: more gain nothing
_log = logging.getLogger(__name__)


class FrameEncoder:
    """A network on the real frames of clips of one shape.

    A call takes a multiple of T frames, or of as many as fit where T are too many: cuDNN chooses its kernels
    for few sizes, and clips without padding frames cost nothing extra. Calls become smaller where the memory
    does not suffice.

    Args:
      network: frames uint8 [N, H, W, 3] -> [N, ...]. With a second input, that is the frame before each.
      spec: T, H and W.
    """

    def __init__(self, network: keras.Model, spec: ClipSpec) -> None:
        self.network = network
        at_most = min(_FRAMES, max(1, _PIXELS // (spec.height * spec.width)))
        self._unit = min(spec.num_frames, at_most)
        self._largest_call = at_most // self._unit * self._unit
        self._num_frames = spec.num_frames
        frames = tf.TensorSpec([None, spec.height, spec.width, 3], tf.uint8)
        self._step = tf.function(
            lambda inputs: network(inputs, training=False),
            input_signature=[[frames for _ in network.inputs]],  # one trace for calls of all sizes
        )

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """The shape of a clip's result, (T, ...)."""
        return (self._num_frames, *self.network.output.shape[1:])

    @property
    def clips_per_call(self) -> int:
        """How many whole clips a call takes, at least 1."""
        return max(1, self._largest_call // self._num_frames)

    def __call__(self, frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Encodes the frames uint8 [B, T, H, W, 3] whose mask bool [B, T] is True.

        Returns:
          [B, T, ...] in the network's dtype, zero where the mask is False.

        Raises:
          tf.errors.ResourceExhaustedError: the memory does not suffice for a single frame.
        """
        while True:
            try:
                return self._encode(frames, mask)
            except tf.errors.ResourceExhaustedError:
                if self._largest_call == 1:
                    raise
                self._largest_call = self._unit if self._largest_call > self._unit else self._unit // 2
                self._unit = min(self._unit, self._largest_call)
                _log.warning(
                    "Out of memory: from here on the backbone takes %d frames at once.", self._largest_call
                )

    def _encode(self, frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
        clip, position = np.nonzero(mask)
        positions = [position, np.maximum(position - 1, 0)][: len(self.network.inputs)]
        calls = []
        for start in range(0, len(clip), self._largest_call):
            rows = slice(start, start + self._largest_call)
            calls.append(self._step([self._filled(frames[clip[rows], each[rows]]) for each in positions]))
        encoded = np.zeros((*mask.shape, *self.network.output.shape[1:]), calls[0].dtype.as_numpy_dtype)
        # After the last call was made: a GPU still runs the calls before it.
        encoded[mask] = np.concatenate([values.numpy() for values in calls])[: len(clip)]
        return encoded

    def _filled(self, frames: np.ndarray) -> np.ndarray:
        """Adds black frames up to the next multiple of the unit."""
        missing = math.ceil(len(frames) / self._unit) * self._unit - len(frames)
        return np.concatenate([frames, np.zeros((missing, *frames.shape[1:]), np.uint8)])
