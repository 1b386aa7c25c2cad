"""Which frames of a video make up a clip.

Counts go in and indices come out: no files, no tensors, no state, so every rule
here can be checked by hand.
"""

from collections.abc import Callable

import numpy as np


def uniform_indices(video_num_frames: int, num_frames: int) -> np.ndarray:
    """Picks the middle frame of `num_frames` equal segments.

    Args:
      video_num_frames: frames in the source video, at least 1.
      num_frames: frames wanted in the clip (T), at least 1.

    Returns:
      int64 [n], strictly ascending, each in [0, video_num_frames); n is T, or all
      of a video that is shorter than T. Padding is the reader's business.

    Raises:
      ValueError: either count is below 1.

    >>> uniform_indices(8, 4).tolist()
    [1, 3, 5, 7]
    """
    _check_counts(video_num_frames, num_frames)
    count = min(num_frames, video_num_frames)
    # Segment middles rather than starts: the first frame is often a fade-in. Integer arithmetic, because
    # (i + 0.5) * video_num_frames / count in floating point can land on the wrong side of a frame.
    return (2 * np.arange(count, dtype=np.int64) + 1) * video_num_frames // (2 * count)


def interval_indices(video_num_frames: int, num_frames: int, frame_stride: int | None = None) -> np.ndarray:
    """Picks every `frame_stride`-th frame from the first on.

    Args:
      video_num_frames: frames in the source video, at least 1.
      num_frames: frames wanted in the clip (T), at least 1.
      frame_stride: source frames between neighbours in the clip, at least 1. None takes the largest
        stride that still gives T frames, `max(1, video_num_frames // T)`.

    Returns:
      int64 [n], n <= T, strictly ascending, each in [0, video_num_frames).

    Raises:
      ValueError: a count or the stride is below 1.

    >>> interval_indices(9, 4).tolist(), interval_indices(9, 4, frame_stride=3).tolist()
    ([0, 2, 4, 6], [0, 3, 6])
    """
    _check_counts(video_num_frames, num_frames)
    if frame_stride is None:
        frame_stride = max(1, video_num_frames // num_frames)
    if frame_stride < 1:
        raise ValueError(f"frame_stride must be at least 1; got {frame_stride}.")
    return np.arange(0, video_num_frames, frame_stride, dtype=np.int64)[:num_frames]


def head_indices(video_num_frames: int, num_frames: int) -> np.ndarray:
    """Picks the first `num_frames` frames, as the keras-io CNN-RNN example does.

    Args and errors are those of `uniform_indices`.

    >>> head_indices(8, 4).tolist()
    [0, 1, 2, 3]
    """
    _check_counts(video_num_frames, num_frames)
    return np.arange(min(num_frames, video_num_frames), dtype=np.int64)


SAMPLERS: dict[str, Callable[..., np.ndarray]] = {
    "uniform": uniform_indices,
    "interval": interval_indices,
    "head": head_indices,
}


def sample_indices(
    sampling: str, video_num_frames: int, num_frames: int, frame_stride: int | None = None
) -> np.ndarray:
    """Calls the sampler of that name; `frame_stride` goes to `interval`, the only one that has it."""
    if sampling == "interval":
        return interval_indices(video_num_frames, num_frames, frame_stride)
    return SAMPLERS[sampling](video_num_frames, num_frames)


def depends_on_length(sampling: str, frame_stride: int | None = None) -> bool:
    """Whether the indices change with the video's length, beyond being cut off at its end."""
    return sampling == "uniform" or (sampling == "interval" and frame_stride is None)


def _check_counts(video_num_frames: int, num_frames: int) -> None:
    if video_num_frames < 1 or num_frames < 1:
        raise ValueError(
            "A clip needs at least one frame on each side; got "
            f"video_num_frames={video_num_frames}, num_frames={num_frames}."
        )
