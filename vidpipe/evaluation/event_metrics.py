"""Compares predicted events with labelled ones, as in temporal action detection.

The rules are those of ActivityNet's public evaluation (Caba Heilbron et al., "ActivityNet", CVPR 2015):

1. The predicted events of a class in all videos are sorted by descending score.
2. Each is matched with a labelled event of its class and video: of those with a temporal intersection over
   union (tIoU) of at least the threshold that are not yet matched, the one with the highest tIoU. A predicted
   event without a match is false, even if it repeats a true one.
3. Average precision is interpolated: the precision at a recall is the highest one at that or a higher recall.
4. Classes without labelled events are left out of means; one without predicted events has a precision of 0.

The public code sorts with an unstable sort. Here, of equal scores the later event comes first, and of equal
tIoUs the later labelled event, which is how that sort orders short lists. Two events of no length have a tIoU
of 0; there, 0/0 counts as a match.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidpipe.errors import VidpipeError
from vidpipe.evaluation.events import Event
from vidpipe.evaluation.significance import BOOTSTRAP_SAMPLES

# Decimals, so that a tIoU of 3/10 reaches 0.3; np.linspace gives 0.30000000000000004.
ACTIVITYNET_TIOU = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
THUMOS_TIOU = (0.1, 0.2, 0.3, 0.4, 0.5)  # Jiang et al., THUMOS challenge, 2014
MATCH_TIOU = 0.5  # of counts, of matched events and of the errors of their borders
F1_TIOU = (0.3, 0.5, 0.7)  # of `average_f1`
_TIOU = THUMOS_TIOU[:-1] + ACTIVITYNET_TIOU
_COUNTS = ("labelled", "predicted", "matched")
_BATCH = 2500  # resamples that are computed at once, to limit memory


class EventError(VidpipeError):
    """Events cannot be compared, or a report of them cannot be written."""


@dataclass(frozen=True, kw_only=True)
class VideoEvents:
    """The labelled and the predicted events of a video.

    Attributes:
      video: its path or address.
      duration_sec: its length.
      labelled, predicted: the events, in any order; none is of the background class.
    """

    video: str
    duration_sec: float
    labelled: Sequence[Event]
    predicted: Sequence[Event]


@dataclass(frozen=True)
class EventTable:
    """Events of several videos as columns, each with one element per event.

    Attributes:
      video: int64 [n], index of the video.
      class_index: int64 [n].
      start_sec, end_sec: float64 [n].
      score: float64 [n].
    """

    video: np.ndarray
    class_index: np.ndarray
    start_sec: np.ndarray
    end_sec: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """Predicted and labelled events of the same class and video that overlap, in the order of matching.

    Attributes:
      predicted, labelled: int64 [n], rows of the two tables.
      tiou: float64 [n].
    """

    predicted: np.ndarray
    labelled: np.ndarray
    tiou: np.ndarray

    def where(self, is_selected: np.ndarray) -> "Pairs":
        """Selects pairs by a mask, bool [n]."""
        return Pairs(self.predicted[is_selected], self.labelled[is_selected], self.tiou[is_selected])


def compute_event_metrics(videos: Sequence[VideoEvents], classes: Sequence[str]) -> dict[str, Any]:
    """Computes all metrics of the events of a split.

    Args:
      videos: at least one.
      classes: the C names, without the background class.

    Returns:
      `num_videos`, `num_labelled`, `num_predicted`, `num_matched`;
      `map`, mean average precision per tIoU (a dict of "0.10" to "0.95"), over the classes with labelled
      events; `map_50_95`, its mean over ActivityNet's thresholds, and `map_10_50`, over those of THUMOS;
      `precision`, `recall` and `f1` of all events, matched at a tIoU of 0.5; `start_error_sec` and
      `end_error_sec`, mean absolute errors of matched events;
      `per_class`, a dict per class with `class`, the same counts and values, and `ap` per tIoU, `ap_50_95`
      and `ap_10_50` instead of those that begin with `map`;
      `classes`.
      Each value has a 95 % interval under its name and `_ci95`: percentiles of a bootstrap over videos, since
      the events of a video are alike. A video that is drawn twice counts as two videos. A class without
      labelled events in a resample is left out of the means of that resample. With one video, intervals are
      None. A value is None where it is undefined, such as the precision of a class without predicted events.

    Raises:
      EventError: there is no video, or an event is of another class.
    """
    if not videos:
        raise EventError("There are no videos to compare events in; give at least one.")
    comparison = _compare(videos, classes)
    value_of = {name: each[0] for name, each in _estimates(comparison, np.ones((1, len(videos)))).items()}
    found = _with_intervals(value_of, _bootstrap(comparison, len(videos)))
    counts = {f"num_{name}": comparison.sums[name].sum(axis=0).astype(int).tolist() for name in _COUNTS}
    rows = [
        {"class": name}
        | {count: numbers[index] for count, numbers in counts.items()}
        | {key.removeprefix("class_"): each[index] for key, each in found.items() if key.startswith("class_")}
        for index, name in enumerate(classes)
    ]
    return (
        {"num_videos": len(videos)}
        | {count: sum(numbers) for count, numbers in counts.items()}
        | {key: each for key, each in found.items() if not key.startswith("class_")}
        | {"per_class": rows, "classes": list(classes)}
    )


def average_f1(
    videos: Sequence[VideoEvents], classes: Sequence[str], thresholds: Sequence[float] = F1_TIOU
) -> float:
    """Computes the mean F1 over the classes with labelled events and over tIoU thresholds.

    Args:
      videos: at least one.
      classes: the names, without the background class.
      thresholds: of tIoU, above 0.

    Raises:
      EventError: there are no labelled events, or an event is of another class.
    """
    labelled = event_table([video.labelled for video in videos], classes)
    predicted = event_table([video.predicted for video in videos], classes)
    pairs = pair_events(labelled, predicted, min(thresholds))
    return mean_f1(pairs, labelled.class_index, predicted.class_index, thresholds)


def mean_f1(
    pairs: Pairs, labelled_class: np.ndarray, predicted_class: np.ndarray, thresholds: Sequence[float]
) -> float:
    """Computes `average_f1` of tables.

    Args:
      pairs: of the tables.
      labelled_class: int64 [L], class indices of the labelled events.
      predicted_class: int64 [P], those of the predicted events that count.
      thresholds: of tIoU, above 0.

    Raises:
      EventError: there are no labelled events.
    """
    if not len(labelled_class):
        raise EventError("There are no labelled events, so F1 is undefined; label events in some video.")
    num_classes = 1 + max(labelled_class.max(), predicted_class.max(initial=0))
    num_labelled = np.bincount(labelled_class, minlength=num_classes)
    num_events = num_labelled + np.bincount(predicted_class, minlength=num_classes)
    occurs = num_labelled > 0
    scores = []
    for threshold in thresholds:
        matched = [row for row, _, _ in match(pairs, threshold)]
        num_matched = np.bincount(labelled_class[matched], minlength=num_classes)
        scores.append((2 * num_matched[occurs] / num_events[occurs]).mean())
    return float(np.mean(scores))


def match_events(
    labelled: Sequence[Event], predicted: Sequence[Event], threshold: float = MATCH_TIOU
) -> list[tuple[int, int, float]]:
    """Matches the events of one video.

    Args:
      labelled: the L labelled events.
      predicted: the P predicted events.
      threshold: of tIoU, above 0.

    Returns:
      (index of the labelled event, index of the predicted event, tIoU) per match.
    """
    classes = sorted({event.label for event in (*labelled, *predicted)})
    tables = event_table([labelled], classes), event_table([predicted], classes)
    return match(pair_events(*tables, threshold), threshold)


def event_table(events: Sequence[Sequence[Event]], classes: Sequence[str]) -> EventTable:
    """Makes a table of the events of each video.

    Raises:
      EventError: an event is of another class.
    """
    index_of = {name: index for index, name in enumerate(classes)}
    for event in (event for of_video in events for event in of_video):
        if event.label not in index_of:
            raise EventError(
                f"The event at {event.start_sec:g} to {event.end_sec:g} s is of the class {event.label!r}, "
                f"which is none of the {len(classes)} classes. Correct its name or leave it out."
            )
    rows = [
        (video, index_of[event.label], event.start_sec, event.end_sec, event.score)
        for video, of_video in enumerate(events)
        for event in of_video
    ]
    columns = np.array(rows, dtype=np.float64).reshape(-1, 5).T
    return EventTable(columns[0].astype(np.int64), columns[1].astype(np.int64), *columns[2:])


def pair_events(labelled: EventTable, predicted: EventTable, min_tiou: float) -> Pairs:
    """Lists the pairs of at least `min_tiou`, above 0; two events of no length have a tIoU of 0."""
    num_classes = 1 + max(labelled.class_index.max(initial=0), predicted.class_index.max(initial=0))
    group_of_labelled = labelled.video * num_classes + labelled.class_index
    group_of_predicted = predicted.video * num_classes + predicted.class_index
    by_group = np.argsort(group_of_labelled, kind="stable")
    first, stop = (
        np.searchsorted(group_of_labelled[by_group], group_of_predicted, side=side)
        for side in ("left", "right")
    )
    sizes = stop - first
    row = np.repeat(np.arange(len(sizes)), sizes)
    position = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    other = by_group[first[row] + position]
    starts = labelled.start_sec[other], predicted.start_sec[row]
    ends = labelled.end_sec[other], predicted.end_sec[row]
    overlap = (np.minimum(*ends) - np.maximum(*starts)).clip(0)
    union = (ends[0] - starts[0]) + (ends[1] - starts[1]) - overlap
    pairs = Pairs(row, other, _ratio(overlap, union))
    pairs = pairs.where(pairs.tiou >= min_tiou)  # NaN is not
    keys = (-pairs.labelled, -pairs.tiou, -pairs.predicted, -predicted.score[pairs.predicted])
    return pairs.where(np.lexsort(keys))


def match(pairs: Pairs, threshold: float) -> list[tuple[int, int, float]]:
    """Gives each predicted event the first labelled event that is not yet taken.

    Args:
      pairs: in the order of matching.
      threshold: of tIoU.

    Returns:
      (row of the labelled event, row of the predicted event, tIoU) per match.
    """
    left = pairs.where(pairs.tiou >= threshold)
    taken: set[int] = set()
    served: set[int] = set()
    matched = []
    rows = zip(left.labelled.tolist(), left.predicted.tolist(), left.tiou.tolist(), strict=True)
    for labelled, predicted, tiou in rows:
        if labelled not in taken and predicted not in served:
            taken.add(labelled)
            served.add(predicted)
            matched.append((labelled, predicted, tiou))
    return matched


@dataclass(frozen=True)
class _Ranking:
    """The predicted events of a class by descending score.

    Attributes:
      video: int64 [D], index of the video.
      is_true: bool [T, D], whether the event is matched, per threshold of `_TIOU`.
    """

    video: np.ndarray
    is_true: np.ndarray


@dataclass(frozen=True)
class _Comparison:
    """What a resample of the videos weights and adds up.

    Attributes:
      rankings: per class.
      sums: counts, and sums of errors in seconds, by name: float64 [V, C].
    """

    rankings: Sequence[_Ranking]
    sums: Mapping[str, np.ndarray]


def _compare(videos: Sequence[VideoEvents], classes: Sequence[str]) -> _Comparison:
    labelled = event_table([video.labelled for video in videos], classes)
    predicted = event_table([video.predicted for video in videos], classes)
    pairs = pair_events(labelled, predicted, min(_TIOU))
    is_true = np.zeros((len(_TIOU), len(predicted.video)), bool)
    for of_threshold, threshold in zip(is_true, _TIOU, strict=True):
        of_threshold[[row for _, row, _ in match(pairs, threshold)]] = True
    # Later events first, of equal scores.
    by_score = np.lexsort((-np.arange(len(predicted.score)), -predicted.score))
    rankings = []
    for index in range(len(classes)):
        of_class = by_score[predicted.class_index[by_score] == index]
        rankings.append(_Ranking(predicted.video[of_class], is_true[:, of_class]))
    shape = (len(videos), len(classes))
    return _Comparison(rankings, _sums(labelled, predicted, match(pairs, MATCH_TIOU), shape))


def _sums(
    labelled: EventTable,
    predicted: EventTable,
    matches: Sequence[tuple[int, int, float]],
    shape: tuple[int, int],
) -> dict[str, np.ndarray]:
    """Adds up counts and errors per video and class: float64 [V, C] by name."""

    def per_video(table: EventTable, selected: np.ndarray, values: np.ndarray | float) -> np.ndarray:
        sums = np.zeros(shape)
        np.add.at(sums, (table.video[selected], table.class_index[selected]), values)
        return sums

    rows, others = (np.array([each[side] for each in matches], np.int64) for side in (0, 1))
    start_errors = np.abs(predicted.start_sec[others] - labelled.start_sec[rows])
    end_errors = np.abs(predicted.end_sec[others] - labelled.end_sec[rows])
    return {
        "labelled": per_video(labelled, np.arange(len(labelled.video)), 1),
        "predicted": per_video(predicted, np.arange(len(predicted.video)), 1),
        "matched": per_video(labelled, rows, 1),
        "start_error_sec": per_video(labelled, rows, start_errors),
        "end_error_sec": per_video(labelled, rows, end_errors),
    }


def _bootstrap(comparison: _Comparison, num_videos: int) -> dict[str, np.ndarray] | None:
    """Computes the estimates of each resample, [R, ...] by name; None for a single video."""
    if num_videos < 2:
        return None
    random = np.random.default_rng(0)
    shares = np.full(num_videos, 1 / num_videos)
    weights = random.multinomial(num_videos, shares, size=BOOTSTRAP_SAMPLES).astype(np.float64)
    batches = [
        _estimates(comparison, weights[start : start + _BATCH]) for start in range(0, len(weights), _BATCH)
    ]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _estimates(comparison: _Comparison, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Computes metrics for R weightings of the videos, float64 [R, V]; NaN where one is undefined.

    Returns:
      By name, [R, C] or [R, C, T] for those that begin with `class_`, and [R] or [R, T] for the others.
    """
    of_class = {name: weights @ per_video for name, per_video in comparison.sums.items()}
    ap = np.stack(
        [
            _average_precision(ranking, weights, of_class["labelled"][:, index])
            for index, ranking in enumerate(comparison.rankings)
        ],
        axis=1,
    )
    found = {"class_ap": ap, "map": _mean_of_known(ap)}
    for name, thresholds in (("50_95", ACTIVITYNET_TIOU), ("10_50", THUMOS_TIOU)):
        mean = ap[..., [_TIOU.index(threshold) for threshold in thresholds]].mean(axis=-1)
        found |= {f"class_ap_{name}": mean, f"map_{name}": _mean_of_known(mean)}
    overall = {name: each.sum(axis=1) for name, each in of_class.items()}
    for prefix, sums in (("class_", of_class), ("", overall)):
        labelled, predicted, matched = (sums[name] for name in _COUNTS)
        found[f"{prefix}precision"] = _ratio(matched, predicted)
        found[f"{prefix}recall"] = _ratio(matched, labelled)
        found[f"{prefix}f1"] = _ratio(2 * matched, labelled + predicted)
        for name in ("start_error_sec", "end_error_sec"):
            found[f"{prefix}{name}"] = _ratio(sums[name], matched)
    return found


def _average_precision(ranking: _Ranking, weights: np.ndarray, num_labelled: np.ndarray) -> np.ndarray:
    """Computes interpolated average precision for R weightings of the videos.

    The highest precision is reached at a true event, so it is computed there only. If a video was drawn
    several times, the copies of an event follow each other in the ranking. The precision after the last copy
    of a true event is the highest of theirs, and so applies to the recall of all of them.

    Args:
      ranking: of D events.
      weights: float64 [R, V], how often each video was drawn.
      num_labelled: float64 [R], labelled events of the class, weighted.

    Returns:
      float64 [R, T], NaN without labelled events.
    """
    of_event = weights.T[ranking.video]
    num_ranked = of_event.cumsum(axis=0).clip(1)  # at least 1: no event before the first that was drawn
    areas = np.zeros((len(_TIOU), len(weights)))
    for index, is_true in enumerate(ranking.is_true):
        if index > 0 and np.array_equal(is_true, ranking.is_true[index - 1]):
            areas[index] = areas[index - 1]  # low thresholds often match the same events
            continue
        gained, ranked = of_event[is_true], num_ranked[is_true]
        num_true, highest = gained.sum(axis=0), np.zeros(len(weights))
        # A loop over events is faster here than np.maximum.accumulate over all resamples.
        for of_true, up_to_here in zip(gained[::-1], ranked[::-1], strict=True):
            np.maximum(highest, num_true / up_to_here, out=highest)
            areas[index] += of_true * highest
            num_true -= of_true
    return _ratio(areas.T, num_labelled[:, np.newaxis])


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Averages over the classes, axis 1, that are not NaN."""
    is_known = ~np.isnan(values)
    return _ratio(np.where(is_known, values, 0).sum(axis=1), is_known.sum(axis=1))


def _ratio(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Divides; NaN where the total is 0."""
    shape = np.broadcast_shapes(part.shape, total.shape)
    return np.divide(part, total, out=np.full(shape, np.nan), where=np.broadcast_to(total > 0, shape))


def _with_intervals(
    value_of: Mapping[str, np.ndarray], resampled: Mapping[str, np.ndarray] | None
) -> dict[str, Any]:
    """Returns each value as JSON has it, and its 95 % interval under its name and `_ci95`."""
    found: dict[str, Any] = {}
    for name, value in value_of.items():
        has_thresholds = name in ("class_ap", "map")
        found[name] = _as_json(value, has_thresholds=has_thresholds)
        interval = np.full((*value.shape, 2), np.nan)
        if resampled is not None:
            interval = np.moveaxis(_percentiles(resampled[name]), 0, -1)
        found[f"{name}_ci95"] = _as_json(interval, has_thresholds=has_thresholds, is_interval=True)
    return found


def _percentiles(resampled: np.ndarray) -> np.ndarray:
    """Computes the 2.5th and the 97.5th percentile over the resamples, without NaN: float64 [2, ...]."""
    is_known = ~np.isnan(resampled)
    # A column without any value would give a warning.
    filled = np.where(is_known.any(axis=0), resampled, 0)
    return np.where(is_known.any(axis=0), np.nanpercentile(filled, [2.5, 97.5], axis=0), np.nan)


def _as_json(values: np.ndarray, *, has_thresholds: bool, is_interval: bool = False) -> Any:
    """Turns an array into nested lists, NaN into None, and the axis of thresholds into a dict."""
    if is_interval and values.ndim == 1:
        return None if np.isnan(values).any() else values.tolist()
    if values.ndim == 0:
        return None if np.isnan(values) else float(values)
    nested = [_as_json(each, has_thresholds=has_thresholds, is_interval=is_interval) for each in values]
    if has_thresholds and values.ndim == 1 + is_interval:
        return {f"{threshold:.2f}": each for threshold, each in zip(_TIOU, nested, strict=True)}
    return nested
