"""Expected indices as tables, and properties that hold for every sampler and all counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidpipe.data.sampling import (
    SAMPLERS,
    clock,
    depends_on_length,
    sample_indices,
    window_ranges,
    windows_at,
)


@pytest.mark.parametrize(
    ("sampling", "video_num_frames", "num_frames", "frame_stride", "expected"),
    [
        pytest.param("uniform", 8, 4, None, [1, 3, 5, 7], id="uniform longer"),
        pytest.param("uniform", 4, 4, None, [0, 1, 2, 3], id="uniform equal"),
        pytest.param("uniform", 3, 4, None, [0, 1, 2], id="uniform shorter"),
        pytest.param("uniform", 1, 3, None, [0], id="uniform single frame"),
        pytest.param("uniform", 10, 4, None, [1, 3, 6, 8], id="uniform uneven"),
        pytest.param("interval", 9, 4, None, [0, 2, 4, 6], id="interval spread"),
        pytest.param("interval", 3, 4, None, [0, 1, 2], id="interval shorter"),
        pytest.param("interval", 9, 4, 3, [0, 3, 6], id="interval cut off by the end"),
        pytest.param("interval", 100, 4, 3, [0, 3, 6, 9], id="interval stride given"),
        pytest.param("head", 8, 4, None, [0, 1, 2, 3], id="head longer"),
        pytest.param("head", 2, 4, None, [0, 1], id="head shorter"),
    ],
)
def test_indices(
    sampling: str, video_num_frames: int, num_frames: int, frame_stride: int | None, expected: list[int]
) -> None:
    indices = sample_indices(
        sampling, video_num_frames=video_num_frames, num_frames=num_frames, frame_stride=frame_stride
    )
    assert indices.tolist() == expected
    assert indices.dtype == np.int64


@given(st.sampled_from(sorted(SAMPLERS)), st.integers(1, 10**7), st.integers(1, 300))
def test_every_sampler_returns_distinct_frames_up_to_the_length_of_the_video(
    sampling: str, video_num_frames: int, num_frames: int
) -> None:
    indices = sample_indices(sampling, video_num_frames=video_num_frames, num_frames=num_frames)
    assert len(indices) == min(num_frames, video_num_frames)
    assert (np.diff(indices) > 0).all()
    assert indices[0] >= 0
    assert indices[-1] < video_num_frames


@given(
    st.sampled_from([("head", None), ("interval", 3)]),
    st.integers(1, 200),
    st.integers(1, 50),
    st.integers(1, 200),
)
def test_indices_that_do_not_depend_on_the_length_are_a_prefix_of_those_of_a_longer_video(
    rule: tuple[str, int | None], length: int, num_frames: int, more: int
) -> None:
    sampling, frame_stride = rule
    assert not depends_on_length(sampling, frame_stride)
    shorter, longer = (
        sample_indices(sampling, video_num_frames=n, num_frames=num_frames, frame_stride=frame_stride)
        for n in (length, length + more)
    )
    assert shorter.tolist() == [index for index in longer.tolist() if index < length]


@pytest.mark.parametrize("sampling", sorted(SAMPLERS))
def test_counts_of_zero_are_rejected(sampling: str) -> None:
    with pytest.raises(ValueError, match="video_num_frames=0"):
        sample_indices(sampling, video_num_frames=0, num_frames=4)
    with pytest.raises(ValueError, match=" num_frames=0"):
        sample_indices(sampling, video_num_frames=4, num_frames=0)


def test_a_stride_of_zero_is_rejected() -> None:
    with pytest.raises(ValueError, match="frame_stride must be at least 1"):
        sample_indices("interval", video_num_frames=4, num_frames=4, frame_stride=0)


@pytest.mark.parametrize(
    ("time_sec", "window_sec", "hop_sec", "expected"),
    [
        pytest.param(0, 2, 1, [0], id="the first frame"),
        pytest.param(1, 2, 1, [0, 1], id="a window includes its start"),
        pytest.param(2, 2, 1, [1, 2], id="a window excludes its end"),
        pytest.param(1.9999996, 2, 1, [1, 2], id="rounded to microseconds"),
        pytest.param(2.5, 2, 2, [1], id="adjacent windows"),
        pytest.param(1.5, 1, 2, [], id="between two windows"),
        pytest.param(3, 1, 2, [], id="at the end of a window before a gap"),
        pytest.param(3 * 0.1, 0.1, 0.1, [3], id="tenths of a second"),
        pytest.param(7200, 2, 0.5, [14397, 14398, 14399, 14400], id="after two hours"),
    ],
)
def test_windows_at(time_sec: float, window_sec: float, hop_sec: float, expected: list[int]) -> None:
    assert list(windows_at(time_sec, window_sec=window_sec, hop_sec=hop_sec)) == expected


@pytest.mark.parametrize(("time_sec", "window_sec", "hop_sec"), [(-1, 2, 1), (0, 0, 1), (0, 2, 0)])
def test_windows_of_invalid_length_are_rejected(time_sec: float, window_sec: float, hop_sec: float) -> None:
    message = f"time_sec={time_sec}, window_sec={window_sec}, hop_sec={hop_sec}"
    with pytest.raises(ValueError, match=message):
        windows_at(time_sec, window_sec=window_sec, hop_sec=hop_sec)


@pytest.mark.parametrize(
    ("times", "window_sec", "hop_sec", "expected"),
    [
        pytest.param([0], 2, 1, [(0, 0, 1)], id="shorter than a window"),
        pytest.param([0, 1, 2, 3], 2, 1, [(0, 0, 2), (1, 1, 3), (2, 2, 4)], id="overlapping"),
        pytest.param([0, 1, 2, 3, 4], 2, 2, [(0, 0, 2), (1, 2, 4), (2, 4, 5)], id="a shorter last window"),
        pytest.param([0, 1, 2, 3, 4], 1, 3, [(0, 0, 1), (1, 3, 4)], id="with gaps, ending in a gap"),
        pytest.param([0, 0.5, 5.5, 6], 2, 1, [(0, 0, 2), (4, 2, 3), (5, 2, 4)], id="a still scene"),
    ],
)
def test_window_ranges(
    times: list[float], window_sec: float, hop_sec: float, expected: list[tuple[int, int, int]]
) -> None:
    assert window_ranges(np.array(times), window_sec=window_sec, hop_sec=hop_sec) == expected


@given(
    st.sets(st.integers(0, 400)).map(lambda times: sorted(times | {0})),
    st.integers(1, 60),
    st.integers(1, 60),
)
def test_window_ranges_agree_with_a_search_in_all_times(times: list[int], window: int, hop: int) -> None:
    """Times are in tenths of a second."""
    found = window_ranges(np.array(times) / 10, window_sec=window / 10, hop_sec=hop / 10)
    all_windows = [[time for time in times if start <= time < start + window] for start in range(0, 401, hop)]
    filled = [(number, held) for number, held in enumerate(all_windows) if held]
    # The first window that contains the last frame is the last one.
    last = next(index for index, (_, held) in enumerate(filled) if held[-1] == filled[-1][1][-1])
    assert [(number, times[start:stop]) for number, start, stop in found] == filled[: last + 1]


@pytest.mark.parametrize(
    ("time_sec", "expected"),
    [(0, "0:00"), (59.96, "1:00"), (61, "1:01"), (0.25, "0:00.2"), (7200, "120:00")],
)
def test_clock(time_sec: float, expected: str) -> None:
    assert clock(time_sec) == expected
