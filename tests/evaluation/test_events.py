"""Windows merged into events, by cases that follow from the rule by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidpipe.config import ConfigError
from vidpipe.evaluation.events import Event, EventRule, merge_windows, naive_events, smooth

# Five windows of 2 s, one per second. Each speaks for the second around its centre, the first and the last
# also for what is before and after: 0 to 1.5, to 2.5, to 3.5, to 4.5, to 6.
_BOUNDS = np.array([[0, 2], [1, 3], [2, 4], [3, 5], [4, 6]], float)


def _rule(**changes: Any) -> EventRule:
    settings: dict = {"smoothing_sec": 0, "high": 0.5, "low": 0.5, "min_sec": 0, "background": None}
    return EventRule(**(settings | changes))


def _merge(scores: list[float], bounds: np.ndarray = _BOUNDS, **changes: Any) -> list[Event]:
    return merge_windows(bounds, np.array(scores)[:, np.newaxis], ["jump"], _rule(**changes))


def _times(events: list[Event]) -> list[tuple[float, float]]:
    return [(event.start_sec, event.end_sec) for event in events]


@pytest.mark.parametrize(
    ("scores", "changes", "expected"),
    [
        pytest.param([0, 0.5, 0.75, 0, 0], {}, [(1.5, 3.5)], id="at the threshold"),
        pytest.param([0.5, 0, 0.5, 0, 0.5], {}, [(0, 1.5), (2.5, 3.5), (4.5, 6)], id="borders of the video"),
        pytest.param([0.5] * 5, {}, [(0, 6)], id="all of the video"),
        pytest.param([0.4] * 5, {}, [], id="nothing"),
        pytest.param([0.3, 0.6, 0.3, 0.1, 0.3], {"low": 0.3}, [(0, 3.5)], id="two thresholds"),
        pytest.param(
            [0.6, 0.2, 0.6, 0, 0], {"low": 0.3}, [(0, 1.5), (2.5, 3.5)], id="ends below the low one"
        ),
        pytest.param([0, 0.5, 0, 0.5, 0.5], {"min_sec": 2.5}, [(3.5, 6)], id="as long as the shortest"),
        pytest.param([0, 0.5, 0, 0.5, 0.5], {"min_sec": 2.6}, [], id="shorter"),
        # Of means of two or three: 1/2, 1/3, 2/3, 1/3, 1/2.
        pytest.param([1, 0, 0, 1, 0], {"smoothing_sec": 2}, [(0, 1.5), (4.5, 6)], id="smoothing"),
        pytest.param([1, 0, 0, 1, 0], {"smoothing_sec": 1.9}, [(0, 1.5), (3.5, 4.5)], id="no neighbours"),
    ],
)
def test_merged_windows(
    scores: list[float], changes: dict[str, Any], expected: list[tuple[float, float]]
) -> None:
    assert _times(_merge(scores, **changes)) == expected


def test_the_score_is_the_mean_over_time() -> None:
    """0.6 for 1.5 s and 0.9 for 1 s."""
    (event,) = _merge([0.6, 0.9, 0, 0, 0])
    assert (event.start_sec, event.end_sec, event.score) == pytest.approx((0, 2.5, 0.72), abs=1e-12)


def test_a_gap_in_time_ends_an_event() -> None:
    """Between 2 and 5 s nothing could be decoded."""
    bounds = np.array([[0, 2], [5, 7], [6, 8]], float)
    assert _times(_merge([1, 1, 1], bounds)) == [(0, 2), (5, 8)]


@pytest.mark.parametrize("hop_micros", [333_333, 500_000, 1_100_000, 2_000_001])
def test_windows_side_by_side_are_one_event_however_times_are_rounded(hop_micros: int) -> None:
    starts = np.arange(1000) * hop_micros
    bounds = np.stack([starts, starts + hop_micros], axis=1) / 1e6
    assert _times(_merge([1] * 1000, bounds)) == [(0, bounds[-1, 1])]


def test_a_score_reaches_the_threshold_that_it_equals() -> None:
    """Sums of many probabilities are rounded, which must not put 0.9 below 0.9."""
    starts = np.arange(500, dtype=float)
    scores = np.random.default_rng(0).random(500) * 0.8
    scores[100:110] = 0.9
    bounds = np.stack([starts, starts + 1], axis=1)
    assert _times(_merge(scores.tolist(), bounds, high=0.9, low=0.9)) == [(100, 110)]
    smoothed = _merge(scores.tolist(), bounds, high=0.9, low=0.9, smoothing_sec=2)
    assert _times(smoothed) == [(101, 109)]


def test_no_smoothing_leaves_probabilities_as_they_are() -> None:
    probabilities = np.array([[1, 2, 4, 5, 6]]).T / 7
    np.testing.assert_array_equal(smooth(_BOUNDS, probabilities, 0), probabilities)


def test_events_of_classes_may_overlap_and_the_background_is_none() -> None:
    probabilities = np.array([[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0.5, 0.5], [0, 0, 1]])
    names = ["jump", "run", "none"]
    events = merge_windows(_BOUNDS, probabilities, names, _rule(background="none"))
    assert events == [Event("run", 0, 1.5, 0.5), Event("jump", 0, 2.5, 0.5), Event("run", 2.5, 4.5, 0.5)]
    labels = {event.label for event in merge_windows(_BOUNDS, probabilities, names, _rule())}
    assert labels == {"jump", "run", "none"}


def test_naive_events_join_windows_of_one_class() -> None:
    """The fourth window is a tie, which the first class wins. The mean of 0.6 and 0.5, 1 s each, is 0.55."""
    probabilities = np.array(
        [[0.1, 0.2, 0.7], [0.3, 0.5, 0.2], [0.6, 0.3, 0.1], [0.5, 0.5, 0], [0, 0.9, 0.1]]
    )
    events = naive_events(_BOUNDS, probabilities, ["jump", "run", "none"], "none")
    assert [event.label for event in events] == ["run", "jump", "run"]
    assert _times(events) == [(1.5, 2.5), (2.5, 4.5), (4.5, 6)]
    assert [event.score for event in events] == pytest.approx([0.5, 0.55, 0.9], abs=1e-12)
    assert naive_events(_BOUNDS, probabilities, ["jump", "run", "none"], None)[0].label == "none"


def test_no_windows_are_no_events() -> None:
    bounds, probabilities = np.zeros((0, 2)), np.zeros((0, 1))
    assert merge_windows(bounds, probabilities, ["jump"], _rule(smoothing_sec=2)) == []
    assert naive_events(bounds, probabilities, ["jump"], None) == []


@given(
    st.lists(st.integers(0, 10), min_size=1, max_size=30),
    st.integers(0, 10),
    st.integers(0, 10),
    st.sampled_from([0.0, 2.0, 4.0]),
)
def test_events_obey_the_rule_window_by_window(
    tenths: list[int], first: int, second: int, smoothing_sec: float
) -> None:
    """Applies the thresholds to the smoothed scores one window after the other."""
    low, high = sorted([first / 10, second / 10])
    starts = np.arange(len(tenths), dtype=float)
    bounds, scores = np.stack([starts, starts + 1], axis=1), np.array(tenths)[:, np.newaxis] / 10
    events = merge_windows(bounds, scores, ["a"], _rule(smoothing_sec=smoothing_sec, low=low, high=high))
    smoothed = smooth(bounds, scores, smoothing_sec)[:, 0].tolist()
    runs: list[list[int]] = []
    for index, score in enumerate(smoothed):
        if score >= low and runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        elif score >= low:
            runs.append([index])
    kept = [run for run in runs if max(smoothed[index] for index in run) >= high]
    assert _times(events) == [(run[0], run[-1] + 1) for run in kept]


@pytest.mark.parametrize(
    "changes", [{"low": 0.6}, {"low": -0.1}, {"high": 1.1}, {"smoothing_sec": -1}, {"min_sec": -1}]
)
def test_an_invalid_rule(changes: dict[str, float]) -> None:
    ((name, value),) = changes.items()
    with pytest.raises(ConfigError, match=f"{name}={value:g}"):
        _rule(**changes)
