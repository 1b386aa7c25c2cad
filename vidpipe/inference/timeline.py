"""Class probabilities over the time of a long video: a table and a picture for each."""

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
from vidpipe.progress import Progress
from vidpipe.storage.files import probability_column, staged_csv

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
      failure: why the video could not be read, or not to its end; None where it could.
      files: the table and the picture that were written; empty where there is no window.
    """

    path: str
    windows: list[WindowPrediction]
    failure: Failure | None = None
    files: tuple[Path, ...] = ()


def predict_windows(
    classifier: Classifier, path: str, config: PredictionConfig, *, read: ReadWindows = video.read_windows
) -> tuple[list[WindowPrediction], Failure | None]:
    """Predicts each window of a long video as if it were a video of its own.

    The video is decoded once, in a separate process that pauses where it gets ahead of the model.

    Args:
      classifier: the model.
      path: the video.
      config: length and spacing of the windows, batch size and timeout; a window that takes longer to decode
        than the timeout ends the reading.
      read: what the process calls; importable by name.

    Returns:
      The windows in order of time, and why the video could not be read, or not to its end.
    """
    metadata = classifier.metadata
    stream = process_pool.stream(
        read,
        (path, metadata.clip, config.window_sec, config.hop_sec),
        timeout_sec=config.timeout_sec,
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
        while batch := list(itertools.islice(items, config.batch_size)):
            failure = next((item for item in batch if isinstance(item, Failure)), None)
            windows = [item for item in batch if not isinstance(item, Failure)]
            clips = [model_frames(window.frames, metadata) for window in windows]
            scores = classify(classifier, clips, batch_size=config.batch_size)
            predictions += [
                WindowPrediction(window.start_sec, window.end_sec, rank(of_window, metadata.classes))
                for window, of_window in zip(windows, scores, strict=True)
            ]
            progress.advance(len(windows))
    return predictions, failure


def write_timelines(config: PredictionConfig, paths: Sequence[str]) -> Iterator[Timeline]:
    """Yields a timeline per video, in order, after its table and picture were written.

    The table has a row per window: `start_sec, end_sec, predicted` and a column per class.

    Args:
      config: the folder `timeline` gets NAME.csv and NAME.png per video, named by `unique_names`.
      paths: the videos.

    Raises:
      ConfigError: `timeline` is None.
      ModelError: the run has no readable model.
      PredictError: the files cannot be written.
    """
    if config.timeline is None:
        raise ConfigError("timeline must name the folder for the tables and pictures; got None.")
    folder = Path(config.timeline)
    make_output_dir(folder)
    classifier = load_classifier(config.run_dir)
    for path, name in zip(paths, unique_names(paths), strict=True):
        windows, failure = predict_windows(classifier, path, config)
        written: tuple[Path, ...] = ()
        if windows:
            written = (folder / f"{name}.csv", folder / f"{name}.png")
            with report_write_errors(folder):
                _write_table(written[0], windows, classifier.metadata.classes)
                _draw(written[1], windows, classifier.metadata.classes, path)
        yield Timeline(path, windows, failure, written)


def leading_spans(windows: Sequence[WindowPrediction]) -> list[tuple[float, float, str]]:
    """Lists which class is the most probable when: (start_sec, end_sec, class).

    A span ends where the next one starts, though windows may overlap.

    Args:
      windows: of one video, at least one, in order of time.
    """
    leaders = [(name, next(group)) for name, group in itertools.groupby(windows, lambda each: each.predicted)]
    ends = [window.start_sec for _, window in leaders[1:]] + [windows[-1].end_sec]
    return [(first.start_sec, end, name) for (name, first), end in zip(leaders, ends, strict=True)]


def _write_table(path: Path, windows: Sequence[WindowPrediction], classes: Sequence[str]) -> None:
    columns = ["start_sec", "end_sec", "predicted", *map(probability_column, classes)]
    with staged_csv(path, columns) as writer:
        for window in windows:
            bounds = {"start_sec": window.start_sec, "end_sec": window.end_sec}
            scores = {probability_column(name): score for name, score in window.probabilities.items()}
            writer.writerow(bounds | {"predicted": window.predicted} | scores)


def _draw(path: Path, windows: Sequence[WindowPrediction], classes: Sequence[str], title: str) -> None:
    bounds = np.array([[window.start_sec, window.end_sec] for window in windows])
    probabilities = np.array([[window.probabilities[name] for name in classes] for window in windows])
    figures.timeline(bounds, probabilities, classes, title, path)
