"""Events of a live stream, as they happen: the newest frames go to the model, whatever its speed."""

import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from vidpipe.config import ConversionConfig
from vidpipe.data import live_stream
from vidpipe.data.live_stream import LinkChange, LinkState, LiveFrame, LiveSource
from vidpipe.data.sampling import sample_indices, windows_at
from vidpipe.evaluation.event_stream import EventStream
from vidpipe.evaluation.events import Event, EventRule
from vidpipe.inference.predict import Classifier, classify, load_classifier, model_frames

# 1024 frames of 224 x 224 pixels take 150 MB.
MAX_WINDOW_FRAMES = 1024


@dataclass(frozen=True)
class LiveEvent:
    """An event that has ended.

    Attributes:
      event: its times are seconds from the start of the first predicted window.
      start, end: local time of the clock, with its time zone.
    """

    event: Event
    start: datetime
    end: datetime


@dataclass(frozen=True)
class LiveWindow:
    """A window of a stream.

    Attributes:
      start_sec, end_sec: its times by `time.monotonic`.
      images: uint8 [n, H, W, 3], RGB, all frames of the window that are in memory.
    """

    start_sec: float
    end_sec: float
    images: list[np.ndarray]


@dataclass
class LiveCounts:
    """What a session has done so far.

    Attributes:
      frames: that arrived.
      dropped_frames: those that are in no predicted window because the model was busy.
      windows: that were predicted.
      dropped_windows: those that were not because the model was busy.
      reconnects: attempts to connect again.
    """

    frames: int = 0
    dropped_frames: int = 0
    windows: int = 0
    dropped_windows: int = 0
    reconnects: int = 0

    def __str__(self) -> str:
        return (
            f"{self.windows} windows predicted, {self.dropped_windows} dropped; "
            f"{self.frames} frames received, {self.dropped_frames} dropped; {self.reconnects} reconnects"
        )


class WindowBuffer:
    """The frames of the newest windows of a stream.

    Window k of a run is [k * hop_sec, k * hop_sec + window_sec) from the run's first frame, as in a timeline.
    It is full when a frame behind it has come. Memory holds the newest full window and what came after it.

    Args:
      window_sec: length of a window.
      hop_sec: time between the starts of two windows.
      counts: gets the dropped frames and windows.
      max_frames: of one window; beyond, frames are left out evenly.
    """

    def __init__(
        self, window_sec: float, hop_sec: float, counts: LiveCounts, *, max_frames: int = MAX_WINDOW_FRAMES
    ) -> None:
        self._window_sec, self._hop_sec, self._counts = window_sec, hop_sec, counts
        self._step_sec = window_sec / max_frames
        self._frames: deque[tuple[float, np.ndarray]] = deque()  # (seconds from the start of the run, image)
        self._run_start_sec = 0.0
        self._clock_offset_sec = 0.0  # what the clock shows at the start of the run
        self._newest, self._next = -1, 0  # the newest full window; the oldest one that may still be taken
        self._seen_sec = 0.0  # the end of the latest window that was taken
        self._keep_from_sec = 0.0  # earlier frames are left out

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, frame: LiveFrame) -> None:
        """Takes the next frame of the stream."""
        if frame.is_first:
            if self._newest >= self._next:
                self._counts.dropped_windows += self._newest - self._next + 1
                self._drop_frames(self._start_of(self._newest) + self._window_sec)
            self._start_run(frame.sec)
        sec = round(frame.sec - self._run_start_sec, 6)
        self._clock_offset_sec = frame.clock_sec - sec
        windows = windows_at(sec, window_sec=self._window_sec, hop_sec=self._hop_sec)
        self._newest = windows.start - 1
        self._drop_frames(self._start_of(max(self._newest, self._next)))
        if windows and sec >= self._keep_from_sec:
            self._frames.append((sec, frame.image))
            self._keep_from_sec = (math.floor(sec / self._step_sec + 1e-6) + 1) * self._step_sec - 1e-6

    def take(self, after_sec: float) -> LiveWindow | None:
        """Returns the newest full window, once. Older ones are dropped.

        Args:
          after_sec: the window has to start later, by the clock. Where many old frames come at once, as after
            a connection was made, the first windows may not.

        Returns:
          The window; None if there is no new one.
        """
        if self._newest < self._next:
            return None
        start_sec = self._start_of(self._newest)
        end_sec = round(start_sec + self._window_sec, 6)
        self._counts.dropped_windows += self._newest - self._next
        self._next = self._newest + 1
        clock_sec = start_sec + self._clock_offset_sec
        images = [image for sec, image in self._frames if sec < end_sec]
        if clock_sec <= after_sec or not images:
            return None
        self._seen_sec = end_sec
        return LiveWindow(clock_sec, clock_sec + self._window_sec, images)

    def _start_run(self, sec: float) -> None:
        self._frames.clear()
        self._run_start_sec = sec
        self._newest, self._next = -1, 0
        self._seen_sec = self._keep_from_sec = 0.0

    def _start_of(self, number: int) -> float:
        return round(number * self._hop_sec, 6)

    def _drop_frames(self, before_sec: float) -> None:
        while self._frames and self._frames[0][0] < before_sec:
            sec, _ = self._frames.popleft()
            if sec >= self._seen_sec:
                self._counts.dropped_frames += 1


class LiveSession:
    """Predicts a stream until it is stopped; `open_session` makes it.

    Args:
      classifier: the model.
      rule: how windows become events.
      stream: frames and changes of the connection.
      buffer: keeps the newest frames.
      executor: runs the model beside this thread, which keeps reading.
      counts: is updated.
    """

    def __init__(
        self,
        classifier: Classifier,
        rule: EventRule,
        stream: Iterator[LiveFrame | LinkChange],
        buffer: WindowBuffer,
        executor: Executor,
        counts: LiveCounts,
    ) -> None:
        self._classifier, self._stream, self._buffer, self._executor = classifier, stream, buffer, executor
        self._events = EventStream(classifier.metadata.classes, rule)
        self._predicting: tuple[LiveWindow, Future[np.ndarray]] | None = None
        self._zero_sec: float | None = None  # the start of the first window
        self._after_sec = -math.inf  # all later windows start after it
        self._latest_sec = -math.inf  # when the latest frame was shown
        self.counts = counts

    def run(self) -> Iterator[LiveEvent | LinkChange]:
        """Yields events when they have ended, and changes of the connection.

        Raises:
          LiveStreamError: the first connection fails.
        """
        for item in self._stream:
            yield from self._collect()
            if isinstance(item, LinkChange):
                self.counts.reconnects += item.state is LinkState.RECONNECTING
                if item.state is not LinkState.CONNECTED:
                    self._after_sec = time.monotonic()
                yield item
            else:
                self._take(item)

    def close(self) -> list[LiveEvent]:
        """Returns the events that have not ended yet; they end with the latest predicted window."""
        return [*self._collect(), *self._local(self._events.advance(math.inf))]

    def _take(self, frame: LiveFrame) -> None:
        """Takes a frame, and gives the newest window to the model if it is free."""
        self.counts.frames += 1
        if frame.is_first:
            self._after_sec = max(self._after_sec, self._latest_sec)
        self._latest_sec = frame.clock_sec
        self._buffer.add(frame)
        if self._predicting is None and (window := self._buffer.take(self._after_sec)) is not None:
            self._after_sec = window.start_sec
            self._predicting = window, self._executor.submit(_predict_window, self._classifier, window)

    def _collect(self) -> Iterator[LiveEvent]:
        """Takes the probabilities of the window at the model, if they are there."""
        if self._predicting is not None:
            window, future = self._predicting
            if not future.done():
                return
            probabilities, self._predicting = future.result(), None
            self.counts.windows += 1
            if self._zero_sec is None:
                self._zero_sec = window.start_sec
            bounds = (window.start_sec - self._zero_sec, window.end_sec - self._zero_sec)
            yield from self._local(self._events.add(*bounds, probabilities))
        if self._zero_sec is not None:
            yield from self._local(self._events.advance(self._after_sec - self._zero_sec))

    def _local(self, events: list[Event]) -> list[LiveEvent]:
        if self._zero_sec is None:
            return []
        # Computed when it is needed: the clock of a small computer may be set while the session runs.
        zero = time.time() - time.monotonic() + self._zero_sec
        return [
            LiveEvent(event, local_time(zero + event.start_sec), local_time(zero + event.end_sec))
            for event in events
        ]


@contextmanager
def open_session(
    run_dir: str,
    source: LiveSource,
    rule: EventRule,
    *,
    window_sec: float,
    hop_sec: float,
    timeout_sec: float,
) -> Iterator[LiveSession]:
    """Loads the model of a run and makes a session for a stream, which is disconnected at the end.

    Args:
      run_dir: the run.
      source: the stream, from `live_stream.parse_source`.
      rule: how windows become events.
      window_sec: length of a window.
      hop_sec: shortest time between the starts of two windows; it is longer where the model is slower.
      timeout_sec: connect again if no frame has come for this time.

    Raises:
      ModelError: the run has no readable model.
    """
    classifier = load_classifier(run_dir)
    spec = classifier.metadata.spec
    blank = np.zeros((1, spec.height, spec.width, 3), np.uint8)
    classify(classifier, [blank], batch_size=1)  # the first call traces the model, which takes seconds
    counts = LiveCounts()
    executor = ThreadPoolExecutor(1)
    stream = live_stream.read_stream(
        source,
        classifier.metadata.clip,
        timeout_sec=timeout_sec,
        memory_mb=ConversionConfig.worker_memory_mb,
    )
    try:
        with closing(stream):
            buffer = WindowBuffer(window_sec, hop_sec, counts)
            yield LiveSession(classifier, rule, stream, buffer, executor, counts)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def local_time(epoch_sec: float) -> datetime:
    """Converts seconds since 1970 to local time with its time zone."""
    return datetime.fromtimestamp(epoch_sec).astimezone()


def _predict_window(classifier: Classifier, window: LiveWindow) -> np.ndarray:
    """Runs the model on a window like on a video; float32 [C]."""
    clip = classifier.metadata.clip
    indices = sample_indices(
        clip.sampling,
        video_num_frames=len(window.images),
        num_frames=clip.num_frames,
        frame_stride=clip.frame_stride,
    )
    frames = model_frames(np.stack([window.images[index] for index in indices.tolist()]), classifier.metadata)
    return classify(classifier, [frames], batch_size=1)[0]
