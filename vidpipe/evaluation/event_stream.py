"""Merges windows into events while the windows come in; the events are those of `merge_windows`."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vidpipe.evaluation.events import Event, EventRule, borders, smooth

_MICROSECOND = 1e-6  # as in `events`


class _Window(NamedTuple):
    start_sec: float
    end_sec: float
    probabilities: np.ndarray

    @property
    def bounds(self) -> np.ndarray:
        return np.array([self.start_sec, self.end_sec])

    @property
    def centre(self) -> float:
        return (self.start_sec + self.end_sec) / 2


class EventStream:
    """The events of a sequence of windows that has no known end.

    A window is settled when no later window can change its score or its time. Memory holds the windows that
    are not settled and those in whose smoothing they take part; of an open event only sums are kept,
    however long it lasts.

    Args:
      classes: the C names.
      rule: as for `merge_windows`.
    """

    def __init__(self, classes: Sequence[str], rule: EventRule) -> None:
        self._classes, self._rule = classes, rule
        self._reach = rule.smoothing_sec / 2 + _MICROSECOND
        self._windows: deque[_Window] = deque()
        self._num_settled = 0  # of `_windows`
        self._last: _Window | None = None  # of those that are settled
        self._end_sec = -np.inf  # of their time
        # For each class, the event that was open at `_end_sec`.
        self._is_event = np.array([name != rule.background for name in classes])
        self._is_open = np.zeros(len(classes), bool)
        self._start_sec, self._weighted, self._duration, self._peak = np.zeros((4, len(classes)))

    def add(self, start_sec: float, end_sec: float, probabilities: np.ndarray) -> list[Event]:
        """Takes the next window.

        Args:
          start_sec: from the first frame; it and the centre of the window do not descend.
          end_sec: above `start_sec`.
          probabilities: float [C], 0 to 1.

        Returns:
          The events that have ended: those that no later window can change.
        """
        window = _Window(start_sec, end_sec, probabilities)
        self._windows.append(window)
        return self._settle(window.centre)

    def advance(self, sec: float) -> list[Event]:
        """Returns the events that have ended, if no later window starts before `sec`; inf closes all."""
        ended = self._settle(sec)
        if self._num_settled == len(self._windows) and sec > self._end_sec + _MICROSECOND:
            ended += self._close(self._is_open)
            self._is_open[:] = False
        return ended

    def _settle(self, horizon_sec: float) -> list[Event]:
        """Settles windows, if no later window has a centre before `horizon_sec`."""
        ended: list[Event] = []
        while self._num_settled < len(self._windows):
            window = self._windows[self._num_settled]
            is_last = self._num_settled + 1 == len(self._windows)
            if horizon_sec <= window.centre + self._reach:
                break
            if is_last and (window.centre + horizon_sec) / 2 < window.end_sec:
                break
            start_sec, end_sec = window.start_sec, window.end_sec
            if self._last is not None:
                start_sec = float(borders(self._last.bounds, window.bounds)[1])
            if not is_last:
                end_sec = float(borders(window.bounds, self._windows[self._num_settled + 1].bounds)[0])
            ended += self._extend(start_sec, end_sec, self._smoothed())
            self._last = window
            self._num_settled += 1
        self._forget(horizon_sec)
        return ended

    def _smoothed(self) -> np.ndarray:
        """Smooths the first window that is not settled; float64 [C]."""
        bounds = np.stack([window.bounds for window in self._windows])
        probabilities = np.stack([window.probabilities for window in self._windows])
        return smooth(bounds, probabilities, self._rule.smoothing_sec)[self._num_settled]

    def _extend(self, start_sec: float, end_sec: float, score: np.ndarray) -> list[Event]:
        """Takes the time of a window and its scores, float64 [C]; returns the events that end before it."""
        is_inside = (score >= self._rule.low) & self._is_event
        is_joined = start_sec <= self._end_sec + _MICROSECOND
        goes_on = self._is_open & is_inside & is_joined
        ended = self._close(self._is_open & ~goes_on)
        begins = is_inside & ~goes_on
        self._start_sec[begins] = start_sec
        for sums in (self._weighted, self._duration, self._peak):
            sums[begins] = 0
        self._weighted += score * (end_sec - start_sec)
        self._duration += end_sec - start_sec
        self._peak = np.maximum(self._peak, score)
        self._is_open, self._end_sec = is_inside, end_sec
        return ended

    def _close(self, is_ended: np.ndarray) -> list[Event]:
        """Lists the open events of these classes, bool [C], that the rule keeps; they end at `_end_sec`."""
        is_kept = (
            is_ended
            & (self._peak >= self._rule.high)
            & (self._end_sec - self._start_sec >= self._rule.min_sec - _MICROSECOND)
        )
        return [
            Event(
                self._classes[index],
                float(self._start_sec[index]),
                float(self._end_sec),
                float(self._weighted[index] / self._duration[index]),
            )
            for index in np.flatnonzero(is_kept).tolist()
        ]

    def _forget(self, horizon_sec: float) -> None:
        """Drops the settled windows that take part in the smoothing of no later one."""
        is_all = self._num_settled == len(self._windows)
        next_centre = horizon_sec if is_all else self._windows[self._num_settled].centre
        while self._num_settled and self._windows[0].centre < next_centre - self._reach:
            self._windows.popleft()
            self._num_settled -= 1
