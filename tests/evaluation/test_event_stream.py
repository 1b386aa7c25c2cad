"""Events that are merged window by window are those of all windows together."""

import math

import numpy as np
import pytest

from vidpipe.evaluation.event_stream import EventStream
from vidpipe.evaluation.events import Event, EventRule, merge_windows

CLASSES = ("run", "jump", "nothing")
RULE = EventRule(smoothing_sec=2, high=0.5, low=0.3, min_sec=0)


def _random_windows(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Windows of two seconds about every second, with gaps; probabilities that change slowly."""
    starts = np.cumsum(rng.choice([0.5, 1, 1, 1, 1.3, 4, 9], 120)).round(6)
    noise = 2 * rng.normal(size=(len(starts) + 5, len(CLASSES)))
    odds = np.exp(np.lib.stride_tricks.sliding_window_view(noise, 6, axis=0).sum(axis=2))
    return np.stack([starts, starts + 2], axis=1), odds / odds.sum(axis=1, keepdims=True)


def _sorted(events: list[Event]) -> list[Event]:
    return sorted(events, key=lambda event: (event.start_sec, event.end_sec, event.label))


def _assert_equal(found: list[Event], expected: list[Event]) -> None:
    found = _sorted(found)
    assert [event.label for event in found] == [event.label for event in expected]
    for name in ("start_sec", "end_sec", "score"):
        values = [getattr(event, name) for event in found]
        assert values == pytest.approx([getattr(event, name) for event in expected], abs=1e-9)


def test_windows_of_unequal_length() -> None:
    """The last window of a recording is often shorter: its time starts later than half way to the centre."""
    bounds = np.array([[0, 2], [1, 3], [2, 4], [4, 4.4], [4.4, 6], [7, 8]])
    probabilities = np.tile([0.9, 0.1, 0], (6, 1))
    stream, found = EventStream(CLASSES, RULE), []
    for (start_sec, end_sec), scores in zip(bounds.tolist(), probabilities, strict=True):
        found += stream.add(start_sec, end_sec, scores)
    found += stream.advance(math.inf)
    _assert_equal(found, merge_windows(bounds, probabilities, CLASSES, RULE))
    assert [(event.start_sec, event.end_sec) for event in found] == [(0, 6), (7, 8)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "rule",
    [
        RULE,
        EventRule(smoothing_sec=0, high=0.5, low=0.3, min_sec=0),
        EventRule(smoothing_sec=7.5, high=0.6, low=0.4, min_sec=3, background="nothing"),
        EventRule(smoothing_sec=2, high=0, low=0, min_sec=0),
    ],
    ids=["neighbours", "no smoothing", "background", "everything"],
)
def test_events_equal_those_of_all_windows(seed: int, rule: EventRule) -> None:
    rng = np.random.default_rng(seed)
    bounds, probabilities = _random_windows(rng)
    stream, found = EventStream(CLASSES, rule), []
    for (start_sec, end_sec), scores in zip(bounds.tolist(), probabilities, strict=True):
        if rng.random() < 0.3:
            found += stream.advance(rng.uniform(start_sec - 5, start_sec))
        found += stream.add(start_sec, end_sec, scores)
    found += stream.advance(math.inf)
    expected = merge_windows(bounds, probabilities, CLASSES, rule)
    assert expected
    _assert_equal(found, expected)


def _add_all(stream: EventStream, scores: list[float], *, first: int = 0) -> list[list[Event]]:
    """Adds windows of two seconds, one per second, with these scores of the first class."""
    return [
        stream.add(number, number + 2, np.array([score, 0.0, 1 - score]))
        for number, score in enumerate(scores, first)
    ]


def test_an_event_is_returned_as_soon_as_no_window_can_change_it() -> None:
    """The smoothed scores are 0.8, 0.8, 0.533, 0.267, 0: window 3 ends it, once window 5 is known."""
    rule = EventRule(smoothing_sec=2, high=0.5, low=0.3, min_sec=0, background="nothing")
    ended = _add_all(EventStream(CLASSES, rule), [0.8, 0.8, 0.8, 0, 0, 0, 0])
    assert [len(events) for events in ended] == [0, 0, 0, 0, 0, 1, 0]
    ((event,),) = [events for events in ended if events]
    assert (event.label, event.start_sec, event.end_sec) == ("run", 0, 3.5)
    assert event.score == pytest.approx((1.5 * 0.8 + 0.8 + 1.6 / 3) / 3.5)


def test_time_ends_an_event_without_another_window() -> None:
    rule = EventRule(smoothing_sec=2, high=0.5, low=0.3, min_sec=0, background="nothing")
    stream = EventStream(CLASSES, rule)
    _add_all(stream, [0.8, 0.8])
    assert stream.advance(3.9) == []  # a window with its centre there would take a part of the time
    (event,) = stream.advance(4.1)
    assert (event.label, event.start_sec, event.end_sec) == ("run", 0, 3)
    assert event.score == pytest.approx(0.8)
    assert stream.advance(math.inf) == []


def test_memory_does_not_grow_with_an_open_event() -> None:
    stream = EventStream(CLASSES, RULE)
    _add_all(stream, [0.9] * 50)
    size = len(stream._windows)
    _add_all(stream, [0.9] * 5000, first=50)
    assert len(stream._windows) == size <= 5
    (event,) = stream.advance(math.inf)
    assert (event.label, event.start_sec, event.end_sec) == ("run", 0, 5051)
    assert event.score == pytest.approx(0.9)
