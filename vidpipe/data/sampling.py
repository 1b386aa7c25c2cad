"""Which frames of a video make up a clip, and how a long video is divided into time windows.

Counts go in and indices come out: no files, no tensors, no state, so every rule here can be checked by hand.
"""

from collections.abc import Callable

import numpy as np


def uniform_indices(video_num_frames: int, num_frames: int) -> np.ndarray:
    """Picks the middle frame of `num_frames` equal segments.

    Args:
      video_num_frames: frames in the source video, at least 1.
      num_frames: frames wanted in the clip (T), at least 1.

    Returns:
      int64 [n], strictly ascending, each in [0, video_num_frames); n = min(T, video_num_frames). A short
      clip is padded when it is read, not here.

    Raises:
      ValueError: either count is below 1.

    >>> uniform_indices(8, 4).tolist()
    [1, 3, 5, 7]
    """
    _check_counts(video_num_frames, num_frames)
    count = min(num_frames, video_num_frames)
    # Segment middles rather than starts: the first frame is often a fade-in. Integer arithmetic, because
    # (i + 0.5) * video_num_frames / count in floating point can be off by one frame.
    return (2 * np.arange(count, dtype=np.int64) + 1) * video_num_frames // (2 * count)


def interval_indices(video_num_frames: int, num_frames: int, frame_stride: int | None = None) -> np.ndarray:
    """Picks every `frame_stride`-th frame, beginning with the first.

    Args:
      video_num_frames: frames in the source video, at least 1.
      num_frames: frames wanted in the clip (T), at least 1.
      frame_stride: source frames between neighbours in the clip, at least 1. None uses the largest
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

    Arguments, return value and errors as in `uniform_indices`.

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
    sampling: str, *, video_num_frames: int, num_frames: int, frame_stride: int | None = None
) -> np.ndarray:
    """Picks frames by the sampler named `sampling`; `frame_stride` is used by `interval` only."""
    if sampling == "interval":
        return interval_indices(video_num_frames, num_frames, frame_stride)
    return SAMPLERS[sampling](video_num_frames, num_frames)


def depends_on_length(sampling: str, frame_stride: int | None = None) -> bool:
    """Whether a longer video changes the indices, instead of only adding some at the end."""
    return sampling == "uniform" or (sampling == "interval" and frame_stride is None)


def windows_at(time_sec: float, *, window_sec: float, hop_sec: float) -> range:
    """Lists the windows that contain a time: window k is [k * hop_sec, k * hop_sec + window_sec).

    Times are rounded to microseconds, so that 3 * 0.1 equals 0.3.

    Args:
      time_sec: seconds from the first frame, at least 0.
      window_sec: length of a window, above 0.
      hop_sec: time between the starts of two windows, above 0.

    Returns:
      The window numbers, ascending; empty if the time lies between two windows.

    Raises:
      ValueError: the time is below 0, or a length is not above 0.

    >>> list(windows_at(2.5, window_sec=2, hop_sec=1)), list(windows_at(1.5, window_sec=1, hop_sec=2))
    ([1, 2], [])
    """
    time, window, hop = (round(seconds * 1_000_000) for seconds in (time_sec, window_sec, hop_sec))
    if time < 0 or window < 1 or hop < 1:
        raise ValueError(
            "Windows need a time of at least 0 and lengths above 0; got "
            f"time_sec={time_sec:g}, window_sec={window_sec:g}, hop_sec={hop_sec:g}."
        )
    return range(max(0, (time - window) // hop + 1), time // hop + 1)


def window_ranges(times: np.ndarray, *, window_sec: float, hop_sec: float) -> list[tuple[int, int, int]]:
    """Lists the frames of each time window of `windows_at`.

    Args:
      times: float64 [n], seconds from the first frame, ascending; n >= 1.
      window_sec: as in `windows_at`.
      hop_sec: as in `windows_at`.

    Returns:
      (number of the window, its first frame, the frame after its last one). Windows without frames are left
      out. The first window that contains the last frame is the last one: later ones would repeat a part.

    >>> window_ranges(np.array([0, 1, 2]), window_sec=2, hop_sec=1)
    [(0, 0, 2), (1, 1, 3)]
    """
    last = windows_at(float(times[-1]), window_sec=window_sec, hop_sec=hop_sec).stop
    micros = np.rint(times * 1_000_000).astype(np.int64)
    window, hop = round(window_sec * 1_000_000), round(hop_sec * 1_000_000)
    starts = hop * np.arange(last, dtype=np.int64)
    ranges = []
    bounds = np.searchsorted(micros, starts), np.searchsorted(micros, starts + window)
    for number, (start, stop) in enumerate(zip(*(bound.tolist() for bound in bounds), strict=True)):
        if start < stop:
            ranges.append((number, start, stop))
        if stop == len(times) and start < stop:
            break
    return ranges


def clock(time_sec: float) -> str:
    """Formats a time as minutes:seconds, with tenths of a second unless they are 0.

    >>> clock(61), clock(4000.26)
    ('1:01', '66:40.3')
    """
    minutes, tenths = divmod(round(time_sec * 10), 600)
    return f"{minutes}:{tenths // 10:02d}" + (f".{tenths % 10}" if tenths % 10 else "")


def _check_counts(video_num_frames: int, num_frames: int) -> None:
    if video_num_frames < 1 or num_frames < 1:
        raise ValueError(
            "Sampling needs at least one source frame and one wanted frame; got "
            f"video_num_frames={video_num_frames}, num_frames={num_frames}."
        )
