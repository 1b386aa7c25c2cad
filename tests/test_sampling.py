"""Indices by hand, and what holds for every sampler whatever the counts."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidpipe.sampling import SAMPLERS, clock, depends_on_length, sample_indices, windowed, windows_at


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
    indices = sample_indices(sampling, video_num_frames, num_frames, frame_stride)
    assert indices.tolist() == expected
    assert indices.dtype == np.int64


@given(st.sampled_from(sorted(SAMPLERS)), st.integers(1, 10**7), st.integers(1, 300))
def test_every_sampler_gives_as_many_distinct_frames_as_there_are(
    sampling: str, video_num_frames: int, num_frames: int
) -> None:
    indices = sample_indices(sampling, video_num_frames, num_frames)
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
def test_what_does_not_depend_on_length_is_only_cut_off_by_it(
    rule: tuple[str, int | None], shorter: int, num_frames: int, more: int
) -> None:
    sampling, frame_stride = rule
    assert not depends_on_length(sampling, frame_stride)
    cut = sample_indices(sampling, shorter, num_frames, frame_stride)
    whole = sample_indices(sampling, shorter + more, num_frames, frame_stride)
    assert cut.tolist() == [index for index in whole.tolist() if index < shorter]


@pytest.mark.parametrize("sampling", sorted(SAMPLERS))
def test_zero_counts_are_refused(sampling: str) -> None:
    with pytest.raises(ValueError, match="video_num_frames=0"):
        sample_indices(sampling, 0, 4)
    with pytest.raises(ValueError, match="num_frames=0"):
        sample_indices(sampling, 4, 0)


def test_a_stride_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="frame_stride must be at least 1"):
        sample_indices("interval", 4, 4, 0)


@pytest.mark.parametrize(
    ("time_sec", "window_sec", "hop_sec", "expected"),
    [
        pytest.param(0, 2, 1, [0], id="the first frame"),
        pytest.param(1, 2, 1, [0, 1], id="a window holds its start"),
        pytest.param(2, 2, 1, [1, 2], id="and not its end"),
        pytest.param(1.9999996, 2, 1, [1, 2], id="what is nearer than a microsecond is there"),
        pytest.param(2.5, 2, 2, [1], id="side by side"),
        pytest.param(1.5, 1, 2, [], id="between two"),
        pytest.param(3, 1, 2, [], id="at the end of one with a gap behind it"),
        pytest.param(3 * 0.1, 0.1, 0.1, [3], id="tenths add up"),
        pytest.param(7200, 2, 0.5, [14397, 14398, 14399, 14400], id="after two hours"),
    ],
)
def test_windows_at(time_sec: float, window_sec: float, hop_sec: float, expected: list[int]) -> None:
    assert list(windows_at(time_sec, window_sec, hop_sec)) == expected


@pytest.mark.parametrize("arguments", [(-1, 2, 1), (0, 0, 1), (0, 2, 0)])
def test_windows_of_no_length_are_refused(arguments: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match=f"time_sec={arguments[0]}, window_sec={arguments[1]}"):
        windows_at(*arguments)


@pytest.mark.parametrize(
    ("times", "window_sec", "hop_sec", "expected"),
    [
        pytest.param([], 2, 1, [], id="nothing"),
        pytest.param([0], 2, 1, [(0, [0])], id="shorter than a window"),
        pytest.param([0, 1, 2, 3], 2, 1, [(0, [0, 1]), (1, [1, 2]), (2, [2, 3])], id="overlapping"),
        pytest.param([0, 1, 2, 3, 4], 2, 2, [(0, [0, 1]), (1, [2, 3]), (2, [4])], id="a short one last"),
        pytest.param([0, 1, 2, 3, 4], 1, 3, [(0, [0]), (1, [3])], id="with gaps, ending in one"),
        pytest.param([0, 0.5, 5.5, 6], 2, 1, [(0, [0, 0.5]), (4, [5.5]), (5, [5.5, 6])], id="a still scene"),
    ],
)
def test_windowed(
    times: list[float], window_sec: float, hop_sec: float, expected: list[tuple[int, list[float]]]
) -> None:
    assert list(windowed(((time, time) for time in times), window_sec, hop_sec)) == expected


@given(
    st.sets(st.integers(0, 400)).map(lambda times: sorted(times | {0})),
    st.integers(1, 60),
    st.integers(1, 60),
)
def test_windowed_is_what_a_look_at_all_times_gives(times: list[int], window: int, hop: int) -> None:
    """Times in tenths of a second."""
    given_ones = list(windowed(((time / 10, time) for time in times), window / 10, hop / 10))
    every_one = [[time for time in times if start <= time < start + window] for start in range(0, 401, hop)]
    filled = [(index, held) for index, held in enumerate(every_one) if held]
    # Windows are done when one holds the last of what any of them holds.
    last = next(place for place, (_, held) in enumerate(filled) if held[-1] == filled[-1][1][-1])
    assert given_ones == filled[: last + 1]


def test_windowed_holds_one_window() -> None:
    taken = 0

    def items() -> Iterator[tuple[float, int]]:
        nonlocal taken
        for index in range(1000):
            taken += 1
            yield index / 10, index

    for index, held in windowed(items(), 2, 1):
        assert len(held) == 20
        assert taken <= 10 * index + 21


@pytest.mark.parametrize(
    ("moment_sec", "expected"),
    [(0, "0:00"), (59.96, "1:00"), (61, "1:01"), (0.25, "0:00.2"), (7200, "120:00")],
)
def test_clock(moment_sec: float, expected: str) -> None:
    assert clock(moment_sec) == expected
