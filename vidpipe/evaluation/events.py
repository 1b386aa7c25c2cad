"""Events: what happens in a long video, and when. Merges the predictions of windows into events.

The rule, for each class but the background:

1. *Smoothing.* Each window speaks for the time around its centre, half way to its neighbours. The score of
   the class there is its mean probability in all windows whose centres are at most `smoothing_sec` / 2 away.
2. *Two thresholds* (hysteresis, Canny, PAMI 1986). An event is a stretch of time in which the score is at
   least `low` throughout and at least `high` somewhere.
3. *Shortest length.* Events shorter than `min_sec` are left out.

The score of an event is the mean score over its time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vidpipe.config import ConfigError

_MICROSECOND = 1e-6  # times are rounded to it


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens in a video.

    Attributes:
      label: name of the class.
      start_sec, end_sec: seconds from the first frame of the video, start_sec < end_sec.
      score: how sure it is, 0 to 1; 1 for labelled events.
    """

    label: str
    start_sec: float
    end_sec: float
    score: float = 1.0


@dataclass(frozen=True, kw_only=True)
class EventRule:
    """How windows become events.

    Attributes:
      smoothing_sec: length of the moving average; 0 for none.
      high: an event reaches this score somewhere, 0 to 1.
      low: an event has at least this score everywhere, at most `high`.
      min_sec: shorter events are left out.
      background: the class that is no event; None if all are.
    """

    smoothing_sec: float
    high: float
    low: float
    min_sec: float
    background: str | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.low <= self.high <= 1 and self.smoothing_sec >= 0 and self.min_sec >= 0):
            raise ConfigError(
                "An event rule needs 0 <= low <= high <= 1 and lengths of at least 0 s; got "
                f"low={self.low:g}, high={self.high:g}, smoothing_sec={self.smoothing_sec:g}, "
                f"min_sec={self.min_sec:g}."
            )


def default_rule(hop_sec: float) -> EventRule:
    """Returns a rule for windows every `hop_sec` seconds: each is averaged with its two neighbours."""
    return EventRule(smoothing_sec=2 * hop_sec, high=0.5, low=0.5, min_sec=0)


@dataclass(frozen=True)
class Stretches:
    """Stretches of time, sorted by class and then by start. Each attribute has one element per stretch.

    Attributes:
      class_index: int64 [n].
      start_sec, end_sec: float64 [n].
      peak, mean: float64 [n], the highest score of the class in the stretch, and the mean over its time.
    """

    class_index: np.ndarray
    start_sec: np.ndarray
    end_sec: np.ndarray
    peak: np.ndarray
    mean: np.ndarray

    def are_events(self, *, high: float, min_sec: float) -> np.ndarray:
        """Selects those that reach `high` and last `min_sec`, to the microsecond: bool [n]."""
        return (self.peak >= high) & (self.end_sec - self.start_sec >= min_sec - _MICROSECOND)


def merge_windows(
    bounds: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], rule: EventRule
) -> list[Event]:
    """Merges the predictions of the windows of a video into events.

    Args:
      bounds: float64 [n, 2], start and end of each window in seconds, the starts and centres ascending.
      probabilities: float [n, C], 0 to 1.
      classes: the C names.
      rule: the rule.

    Returns:
      The events by start time. Events of one class do not overlap; those of two classes may.
    """
    if not len(bounds):
        return []
    scores = smooth(bounds, probabilities, rule.smoothing_sec)
    found = stretches(bounds, scores, scores >= rule.low)
    return _events(found, found.are_events(high=rule.high, min_sec=rule.min_sec), classes, rule.background)


def naive_events(
    bounds: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], background: str | None
) -> list[Event]:
    """Joins adjacent windows that have the same most probable class: the baseline of any rule.

    Args:
      bounds: as in `merge_windows`.
      probabilities: as in `merge_windows`; of equal ones the first class counts.
      classes: the C names.
      background: the class that is no event; None if all are.

    Returns:
      As `merge_windows`; no two events overlap. The score is the mean probability of the class.
    """
    if not len(bounds):
        return []
    is_predicted = probabilities.argmax(axis=1)[:, np.newaxis] == np.arange(len(classes))
    found = stretches(bounds, probabilities, is_predicted)
    return _events(found, np.full(len(found.mean), True), classes, background)


def smooth(bounds: np.ndarray, probabilities: np.ndarray, smoothing_sec: float) -> np.ndarray:
    """Averages over the windows whose centres are at most `smoothing_sec` / 2 away.

    Args:
      bounds: as in `merge_windows`.
      probabilities: as in `merge_windows`.
      smoothing_sec: 0 returns the probabilities.

    Returns:
      float64 [n, C], rounded to 9 decimals: a mean of windows of 0.9 is 0.9, and reaches that threshold.
    """
    if smoothing_sec == 0:
        return probabilities.astype(np.float64)
    centres = bounds.mean(axis=1)
    reach = smoothing_sec / 2 + _MICROSECOND
    first = np.searchsorted(centres, centres - reach, side="left")
    stop = np.searchsorted(centres, centres + reach, side="right")
    sums = np.concatenate(
        [np.zeros((1, probabilities.shape[1])), np.cumsum(probabilities, axis=0, dtype=float)]
    )
    return ((sums[stop] - sums[first]) / (stop - first)[:, np.newaxis]).round(9)


def borders(earlier: np.ndarray, later: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the time of each earlier window ends, and that of the window after it starts.

    Windows that overlap or touch share a border, half way between their centres if both reach that far. Time
    in no window, such as where nothing could be decoded, belongs to neither.

    Args:
      earlier: float64 [..., 2], start and end in seconds.
      later: float64 [..., 2].

    Returns:
      float64 [...] each, seconds.
    """
    between = (earlier.mean(axis=-1) + later.mean(axis=-1)) / 2
    end_sec = np.minimum(np.maximum(between, later[..., 0]), earlier[..., 1])
    start_sec = np.maximum(np.minimum(between, earlier[..., 1]), later[..., 0])
    return end_sec, start_sec


def stretches(bounds: np.ndarray, scores: np.ndarray, is_inside: np.ndarray) -> Stretches:
    """Finds, for each class, the longest stretches of time in which all windows are inside.

    Args:
      bounds: as in `merge_windows`.
      scores: float [n, C].
      is_inside: bool [n, C].
    """
    cells = _cells(bounds)
    durations = cells[:, 1] - cells[:, 0]
    is_joined = cells[1:, 0] <= cells[:-1, 1] + _MICROSECOND
    inside = is_inside.T  # [C, n], so that the windows of a class are side by side
    goes_on = inside[:, 1:] & inside[:, :-1] & is_joined
    begins, finishes = inside.copy(), inside.copy()
    begins[:, 1:] &= ~goes_on
    finishes[:, :-1] &= ~goes_on
    class_index, first = np.nonzero(begins)
    last = np.nonzero(finishes)[1]
    if not len(first):
        return Stretches(class_index, *np.zeros((4, 0)))
    # reduceat reduces between each two of these positions; every second result is that of a stretch. The
    # appended 0 is after the last stretch.
    edges = (np.stack([first, last + 1], axis=1) + class_index[:, np.newaxis] * len(bounds)).ravel()
    flat = np.append(scores.T, 0)
    weights = np.append(np.tile(durations, len(inside)), 0)
    weighted = np.add.reduceat(flat * weights, edges)[::2]
    return Stretches(
        class_index,
        start_sec=cells[first, 0],
        end_sec=cells[last, 1],
        peak=np.maximum.reduceat(flat, edges)[::2],
        mean=weighted / np.add.reduceat(weights, edges)[::2],
    )


def _events(
    found: Stretches, is_event: np.ndarray, classes: Sequence[str], background: str | None
) -> list[Event]:
    """Lists the stretches that are events, by start time."""
    columns = (found.class_index, found.start_sec, found.end_sec, found.mean)
    rows = zip(*(column[is_event].tolist() for column in columns), strict=True)
    events = [
        Event(classes[index], start_sec, end_sec, score)
        for index, start_sec, end_sec, score in rows
        if classes[index] != background
    ]
    return sorted(events, key=lambda event: (event.start_sec, event.end_sec, event.label))


def _cells(bounds: np.ndarray) -> np.ndarray:
    """Divides the time among the windows at `borders`: float64 [n, 2], seconds."""
    cells = bounds.astype(np.float64)
    cells[:-1, 1], cells[1:, 0] = borders(bounds[:-1], bounds[1:])
    return cells
