"""Fits the rule that merges windows into events to a split with labelled events."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from vidpipe.evaluation.event_metrics import (
    F1_TIOU,
    EventTable,
    VideoEvents,
    average_f1,
    event_table,
    mean_f1,
    pair_events,
)
from vidpipe.evaluation.events import Event, EventRule, Stretches, naive_events, smooth, stretches

# The grid. Smoothing over 0, 2, 4 ... hops is over 1, 3, 5 ... windows.
SMOOTHING_HOPS = (0, 2, 4, 8, 16)
HIGH = tuple(percent / 100 for percent in range(30, 100, 5))
LOW_FRACTIONS = (1.0, 0.75, 0.5)  # of `high`
MIN_QUANTILES = (0.02, 0.05, 0.1, 0.25)  # of the durations of labelled events; beside 0 s
_EQUAL = 1e-9  # scores that differ by less are equal


@dataclass(frozen=True, kw_only=True)
class LabelledWindows:
    """The windows of a video, and its labelled events.

    Attributes:
      video: its path or address.
      bounds: float64 [n, 2], start and end of each window in seconds, as `events.merge_windows` takes them.
      probabilities: float [n, C], 0 to 1.
      labelled: the events, in any order.
    """

    video: str
    bounds: np.ndarray
    probabilities: np.ndarray
    labelled: Sequence[Event]


@dataclass(frozen=True, kw_only=True)
class RuleFit:
    """A fitted rule.

    Attributes:
      rule: the rule.
      f1: its `average_f1` on the videos of the fit, and so an optimistic estimate for others.
      naive_f1: that of `events.naive_events`.
      num_rules: the number of rules of the grid.
    """

    rule: EventRule
    f1: float
    naive_f1: float
    num_rules: int


def fit_rule(
    videos: Sequence[LabelledWindows],
    classes: Sequence[str],
    *,
    background: str | None,
    hop_sec: float,
    durations_sec: Sequence[float],
) -> RuleFit:
    """Searches a grid for the rule with the highest `average_f1` at tIoU 0.3, 0.5 and 0.7.

    The grid has all combinations of `SMOOTHING_HOPS`, `HIGH`, `LOW_FRACTIONS`, and a shortest length of 0 or
    of a quantile of `durations_sec`. If several rules have the highest score, the simplest one is chosen:
    the one with the least smoothing, then with the smallest `min_sec`, then with `low` closest to `high`. Of
    rules that differ in `high` alone it is the middle one, where the score is least likely to change.

    Args:
      videos: at least one, with labelled events in some.
      classes: the C names, in the order of the probabilities.
      background: the class that is no event; None if all are.
      hop_sec: time between the starts of two windows, above 0.
      durations_sec: of labelled events, such as those of the training split; empty for no shortest length.

    Raises:
      EventError: there are no labelled events, or one is of another class or of the background class.
    """
    event_classes = [name for name in classes if name != background]
    columns = [classes.index(name) for name in event_classes]
    labelled = event_table([video.labelled for video in videos], event_classes)
    min_secs = _shortest_lengths(durations_sec)
    scores: dict[EventRule, float] = {}
    for hops in SMOOTHING_HOPS:
        smoothing_sec = hops * hop_sec
        smoothed = [smooth(each.bounds, each.probabilities[:, columns], smoothing_sec) for each in videos]
        for low, highs in _highs_of_low().items():
            # The stretches depend on `low` alone; the other thresholds select among them.
            found, predicted = _candidates(videos, smoothed, low)
            pairs = pair_events(labelled, predicted, min(F1_TIOU))
            for high, min_sec in itertools.product(highs, min_secs):
                is_event = found.are_events(high=high, min_sec=min_sec)
                rule = EventRule(
                    smoothing_sec=smoothing_sec, high=high, low=low, min_sec=min_sec, background=background
                )
                scores[rule] = mean_f1(
                    pairs.where(is_event[pairs.predicted]),
                    labelled.class_index,
                    predicted.class_index[is_event],
                    F1_TIOU,
                )
    rule = simplest_best(scores)
    naive_f1 = _naive_f1(videos, classes, event_classes, background)
    return RuleFit(rule=rule, f1=scores[rule], naive_f1=naive_f1, num_rules=len(scores))


def simplest_best(scores: Mapping[EventRule, float]) -> EventRule:
    """Chooses the simplest of the rules with the highest score, by the order that `fit_rule` states."""
    best = max(scores.values())
    tied = [rule for rule, score in scores.items() if score >= best - _EQUAL]
    least = min(map(_complexity, tied))
    plateau = sorted((rule for rule in tied if _complexity(rule) == least), key=lambda rule: rule.high)
    return plateau[len(plateau) // 2]


def _complexity(rule: EventRule) -> tuple[float, float, float]:
    return rule.smoothing_sec, rule.min_sec, round(1 - rule.low / rule.high, 6)


def _highs_of_low() -> dict[float, list[float]]:
    """Lists the values of `high` that are combined with each value of `low`."""
    highs: dict[float, list[float]] = {}
    for high, fraction in itertools.product(HIGH, LOW_FRACTIONS):
        highs.setdefault(round(high * fraction, 4), []).append(high)
    return highs


def _shortest_lengths(durations_sec: Sequence[float]) -> list[float]:
    """Lists 0 and the quantiles, in milliseconds."""
    if not durations_sec:
        return [0.0]
    return sorted({0.0, *np.quantile(durations_sec, MIN_QUANTILES).round(3).tolist()})


def _candidates(
    videos: Sequence[LabelledWindows], smoothed: Sequence[np.ndarray], low: float
) -> tuple[Stretches, EventTable]:
    """Finds the stretches of all videos, also as a table of events."""
    found = [
        stretches(video.bounds, scores, scores >= low) for video, scores in zip(videos, smoothed, strict=True)
    ]
    joined = Stretches(
        *(np.concatenate([getattr(each, field.name) for each in found]) for field in fields(Stretches))
    )
    video = np.repeat(np.arange(len(found)), [len(each.mean) for each in found])
    return joined, EventTable(video, joined.class_index, joined.start_sec, joined.end_sec, joined.mean)


def _naive_f1(
    videos: Sequence[LabelledWindows],
    classes: Sequence[str],
    event_classes: Sequence[str],
    background: str | None,
) -> float:
    events = [
        VideoEvents(
            video=each.video,
            duration_sec=float(each.bounds[:, 1].max(initial=0)),
            labelled=each.labelled,
            predicted=naive_events(each.bounds, each.probabilities, classes, background),
        )
        for each in videos
    ]
    return average_f1(events, event_classes)
