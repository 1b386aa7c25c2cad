"""What happens in long videos, and when: class probabilities over time, and the events that they make."""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidpipe.config import ClipConfig, ConfigError, ConversionConfig, PredictionConfig
from vidpipe.data import process_pool, video
from vidpipe.data.packets import ASSUMED_FPS
from vidpipe.data.skip_reason import Failure
from vidpipe.display import figures
from vidpipe.evaluation.detection import Detection, choose_detection
from vidpipe.evaluation.events import Event, EventRule, merge_windows
from vidpipe.inference.event_files import write_event_tables, write_subtitles
from vidpipe.inference.predict import (
    Classifier,
    classify,
    load_classifier,
    make_output_dir,
    model_frames,
    rank,
    report_write_errors,
)
from vidpipe.inference.video_files import unique_names
from vidpipe.model.model_file import read_metadata
from vidpipe.progress import Progress
from vidpipe.storage.files import probability_column, staged_csv
from vidpipe.training.run_folder import RunFolder

_ALL_EVENTS = "events"  # the files of all videos
_log = logging.getLogger(__name__)
ReadWindows = Callable[[str, ClipConfig, float, float], Iterator[video.VideoWindow]]


@dataclass(frozen=True)
class WindowPrediction:
    """The prediction for a window of a video.

    Attributes:
      start_sec, end_sec: from the video's first frame.
      probabilities: per class, most probable first.
    """

    start_sec: float
    end_sec: float
    probabilities: dict[str, float]

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return next(iter(self.probabilities))


@dataclass(frozen=True)
class Timeline:
    """The predictions for the windows of a video.

    Attributes:
      path: the video.
      windows: in order of time, up to where reading failed.
      events: what the windows were merged into, by start time.
      failure: why the video could not be read, or not to its end; None where it could.
      files: the table, the picture and the subtitles that were written; empty where there is no window.
    """

    path: str
    windows: list[WindowPrediction]
    events: list[Event]
    failure: Failure | None = None
    files: tuple[Path, ...] = ()


def predict_windows(
    classifier: Classifier,
    path: str,
    *,
    window_sec: float,
    hop_sec: float,
    batch_size: int = PredictionConfig.batch_size,
    timeout_sec: float = PredictionConfig.timeout_sec,
    read: ReadWindows = video.read_windows,
) -> tuple[list[WindowPrediction], Failure | None]:
    """Predicts each window of a long video as if it were a video of its own.

    The video is decoded once, in a separate process that pauses where it gets ahead of the model.

    Args:
      classifier: the model.
      path: the video.
      window_sec: length of a window, seconds.
      hop_sec: seconds from the start of one window to the next.
      batch_size: windows per forward pass.
      timeout_sec: a window that takes longer to decode ends the reading.
      read: what the process calls; importable by name.

    Returns:
      The windows in order of time, and why the video could not be read, or not to its end.
    """
    metadata = classifier.metadata
    stream = process_pool.stream(
        read,
        (path, metadata.clip, window_sec, hop_sec),
        timeout_sec=timeout_sec,
        memory_mb=ConversionConfig.worker_memory_mb,
    )
    first = next(stream)
    if isinstance(first, video.VideoWindow) and not first.times_known:
        _log.warning(
            "%s has no frame rate and no timestamps; assuming %d frames per second.", path, ASSUMED_FPS
        )
    items = itertools.chain([first], stream)
    predictions: list[WindowPrediction] = []
    failure = None
    with Progress(
        path, 0 if isinstance(first, Failure) else first.num_windows, "windows", closing_line=False
    ) as progress:
        while batch := list(itertools.islice(items, batch_size)):
            failure = next((item for item in batch if isinstance(item, Failure)), None)
            windows = [item for item in batch if not isinstance(item, Failure)]
            clips = [model_frames(window.frames, metadata) for window in windows]
            scores = classify(classifier, clips, batch_size=batch_size)
            predictions += [
                WindowPrediction(window.start_sec, window.end_sec, rank(of_window, metadata.classes))
                for window, of_window in zip(windows, scores, strict=True)
            ]
            progress.advance(len(windows))
    return predictions, failure


def predict_events(
    windows: Sequence[WindowPrediction], classes: Sequence[str], rule: EventRule
) -> list[Event]:
    """Merges the windows of a video into events."""
    return merge_windows(*as_arrays(windows, classes), classes, rule)


def as_arrays(windows: Sequence[WindowPrediction], classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bounds of windows, float64 [n, 2], and their probabilities, float64 [n, C]."""
    bounds = np.array([[window.start_sec, window.end_sec] for window in windows]).reshape(-1, 2)
    probabilities = [[window.probabilities[name] for name in classes] for window in windows]
    return bounds, np.array(probabilities).reshape(-1, len(classes))


def detection_of(config: PredictionConfig) -> Detection:
    """Returns the windows and the event rule of a run, see `detection.choose_detection`."""
    folder = RunFolder(Path(config.run_dir))
    metadata = read_metadata(folder.model)
    return choose_detection(folder, metadata, window_sec=config.window_sec, hop_sec=config.hop_sec)


def write_timelines(config: PredictionConfig, paths: Sequence[str]) -> Iterator[Timeline]:
    """Yields a timeline per video, in order, after its table, picture and subtitles were written.

    The table has a row per window: `start_sec, end_sec, predicted` and a column per class. At the end, also
    of an interrupted job, the events of all videos are written to events.csv and events.json.

    Args:
      config: the folder `timeline` gets NAME.csv, NAME.png and NAME.vtt per video, named by `unique_names`.
      paths: the videos.

    Raises:
      ConfigError: `timeline` is None.
      ModelError, RuleFileError: the run has no readable model, or an unreadable event rule.
      PredictError: the files cannot be written.
    """
    if config.timeline is None:
        raise ConfigError("timeline must name the folder for the tables and pictures; got None.")
    folder = Path(config.timeline)
    make_output_dir(folder)
    detection = detection_of(config)
    classifier = load_classifier(config.run_dir)
    classes = classifier.metadata.classes
    events: dict[str, list[Event]] = {}
    try:
        for path, name in zip(paths, unique_names(paths, taken=(_ALL_EVENTS,)), strict=True):
            windows, failure = predict_windows(
                classifier,
                path,
                window_sec=detection.window_sec,
                hop_sec=detection.hop_sec,
                batch_size=config.batch_size,
                timeout_sec=config.timeout_sec,
            )
            events[path] = predict_events(windows, classes, detection.rule)
            written: tuple[Path, ...] = ()
            if windows:
                table, picture, subtitles = (folder / f"{name}.{kind}" for kind in ("csv", "png", "vtt"))
                with report_write_errors(folder):
                    _write_table(table, windows, classes)
                    figures.timeline(*as_arrays(windows, classes), classes, path, picture)
                    write_subtitles(subtitles, events[path])
                written = (table, picture, subtitles)
            yield Timeline(path, windows, events[path], failure, written)
    finally:
        with report_write_errors(folder):
            write_event_tables(folder, events)


def _write_table(path: Path, windows: Sequence[WindowPrediction], classes: Sequence[str]) -> None:
    columns = ["start_sec", "end_sec", "predicted", *map(probability_column, classes)]
    with staged_csv(path, columns) as writer:
        for window in windows:
            bounds = {"start_sec": window.start_sec, "end_sec": window.end_sec}
            scores = {probability_column(name): score for name, score in window.probabilities.items()}
            writer.writerow(bounds | {"predicted": window.predicted} | scores)
