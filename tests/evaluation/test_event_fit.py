"""The search for a rule: its scores are those of the events that a rule makes; ties go to the simplest."""

import itertools

import numpy as np
import pytest

from vidpipe.evaluation import event_fit
from vidpipe.evaluation.event_fit import LabelledWindows, RuleFit, fit_rule, simplest_best
from vidpipe.evaluation.event_metrics import EventError, VideoEvents, average_f1
from vidpipe.evaluation.events import Event, EventRule, merge_windows, naive_events

_CLASSES = ["jump", "none", "run"]
_EVENTS = ["jump", "run"]


def _bounds(num_windows: int) -> np.ndarray:
    """Makes windows of 1 s side by side."""
    starts = np.arange(num_windows, dtype=float)
    return np.stack([starts, starts + 1], axis=1)


def _windows(num_windows: int, labelled: list[Event], noise: float, seed: int = 0) -> LabelledWindows:
    """Makes windows with a probability of 0.8 for the labelled class or the background, plus noise."""
    probabilities = np.tile([0.1, 0.8, 0.1], (num_windows, 1))
    for event in labelled:
        inside = slice(int(event.start_sec), int(event.end_sec))
        probabilities[inside] = 0.1
        probabilities[inside, _CLASSES.index(event.label)] = 0.8
    probabilities += noise * np.random.default_rng(seed).random(probabilities.shape)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return LabelledWindows(
        video=f"{seed}.mp4", bounds=_bounds(num_windows), probabilities=probabilities, labelled=labelled
    )


def _noisy() -> list[LabelledWindows]:
    return [
        _windows(60, [Event("jump", 10, 20), Event("run", 25, 33), Event("jump", 40, 52)], 1.5, seed=1),
        _windows(40, [Event("run", 5, 15)], 1.5, seed=2),
        LabelledWindows(
            video="unreadable.mp4", bounds=np.zeros((0, 2)), probabilities=np.zeros((0, 3)), labelled=[]
        ),
    ]


def _fit(videos: list[LabelledWindows], background: str | None = "none") -> RuleFit:
    durations = [event.end_sec - event.start_sec for video in videos for event in video.labelled]
    return fit_rule(videos, _CLASSES, background=background, hop_sec=1, durations_sec=durations)


def _score(videos: list[LabelledWindows], rule: EventRule | None) -> float:
    """Computes the score of the events that a rule makes; of naive events for None."""
    made = [
        VideoEvents(
            video=each.video,
            duration_sec=60,
            labelled=each.labelled,
            predicted=naive_events(each.bounds, each.probabilities, _CLASSES, "none")
            if rule is None
            else merge_windows(each.bounds, each.probabilities, _CLASSES, rule),
        )
        for each in videos
    ]
    return average_f1(made, _EVENTS)


def test_every_rule_gets_the_score_of_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[EventRule, float] = {}

    def choose(scores: dict[EventRule, float]) -> EventRule:
        found.update(scores)
        return simplest_best(scores)

    monkeypatch.setattr(event_fit, "simplest_best", choose)
    videos = _noisy()
    fit = _fit(videos)
    assert fit.num_rules == len(found) == 5 * 14 * 3 * 5
    assert fit.f1 == max(found.values()) > fit.naive_f1
    assert fit.naive_f1 == pytest.approx(_score(videos, None), abs=1e-12)
    for rule in [fit.rule, *list(found)[::23]]:
        assert found[rule] == pytest.approx(_score(videos, rule), abs=1e-12), rule


def test_flicker_is_smoothed() -> None:
    """Every third window of an event is lost, which cuts it into pieces."""
    labelled = [Event("jump", 20, 40)]
    video = _windows(80, labelled, 0)
    video.probabilities[21:40:3] = [0.1, 0.8, 0.1]
    fit = _fit([video])
    assert (fit.rule.smoothing_sec, fit.f1) == (2, 1)
    assert fit.naive_f1 == 0


def test_the_simplest_rule_of_a_perfect_prediction() -> None:
    """Thresholds from 0.3 to 0.8 are perfect; the middle one of these eleven is 0.55."""
    fit = _fit([_windows(40, [Event("jump", 10, 20), Event("run", 25, 33)], 0)])
    assert fit.rule == EventRule(smoothing_sec=0, high=0.55, low=0.55, min_sec=0, background="none")
    assert (fit.f1, fit.naive_f1) == (1, 1)


def test_of_equal_rules_the_simplest_is_chosen() -> None:
    def rule(smoothing_sec: float, min_sec: float, low: float, high: float) -> EventRule:
        return EventRule(smoothing_sec=smoothing_sec, high=high, low=low, min_sec=min_sec)

    order = [rule(0, 0, 0.6, 0.6), rule(0, 0, 0.3, 0.6), rule(0, 1, 0.9, 0.9), rule(2, 0, 0.9, 0.9)]
    for simple, other in itertools.pairwise(order):
        assert simplest_best({other: 0.5, simple: 0.5}) == simple
        assert simplest_best({other: 0.6, simple: 0.5}) == other
    plateau = {rule(0, 0, high / 10, high / 10): 0.5 for high in (9, 4, 5, 6, 3)}
    assert simplest_best(plateau) == rule(0, 0, 0.5, 0.5)


def test_short_events_are_left_out_where_labelled_ones_are_long() -> None:
    """A false event of 2 s is as probable as the true one of 10 s, the only duration in the grid."""
    labelled = [Event("jump", 10, 20)]
    video = _windows(40, labelled, 0)
    video.probabilities[30:32] = [0.8, 0.1, 0.1]
    fit = _fit([video])
    assert (fit.rule.smoothing_sec, fit.rule.min_sec, fit.f1) == (0, 10, 1)
    without = fit_rule([video], _CLASSES, background="none", hop_sec=1, durations_sec=[])
    assert without.num_rules == 5 * 14 * 3


def test_without_background_every_class_is_an_event() -> None:
    video = _windows(10, [Event("none", 0, 5), Event("jump", 5, 10)], 0)
    fit = _fit([video], background=None)
    assert (fit.f1, fit.naive_f1, fit.rule.background) == (1, 1, None)


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(EventError, match="There are no labelled events"):
        _fit([_windows(10, [], 0)])
    with pytest.raises(EventError, match="class 'none', which is none of the 2 classes"):
        _fit([_windows(10, [Event("none", 0, 5)], 0)])
