"""Video files to class probabilities, with the converter's reader and the model's own preprocessing.

Videos are decoded in processes of their own while the model runs. It sees batches of one size, filled up as
evaluation fills its last: on a CPU what it says of a video depends on the video and that size alone, to the
bit, and not on the videos beside it.
"""

import glob
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from vidpipe import report, shards, video, worker
from vidpipe.config import ClipConfig, ConversionConfig
from vidpipe.input_pipeline import centre_view
from vidpipe.manifest import VIDEO_SUFFIXES
from vidpipe.model import ModelCard, load_model
from vidpipe.progress import Progress
from vidpipe.spec import VidpipeError

# That of `evaluate.evaluate`.
BATCH_SIZE = 8
_GIF_FRAME_MS = 150
# The least width of a GIF and the size of its letters, pixels.
_GIF_WIDTH, _GIF_FONT = 224, 15
_log = logging.getLogger(__name__)

ReadClip = Callable[[str, ClipConfig], video.VideoClip]
ReadWindows = Callable[[str, ClipConfig, float, float], Iterator[video.VideoWindow]]


class PredictError(VidpipeError):
    """What was asked for beside the prediction cannot be written."""


@dataclass(frozen=True)
class Classifier:
    """A trained model, ready for use.

    Attributes:
      card: its classes and clips.
      step: inputs of the fused model -> probabilities float32 [B, C].
    """

    card: ModelCard
    step: Callable[[dict[str, np.ndarray]], tf.Tensor]


@dataclass(frozen=True)
class Prediction:
    """What a model says of a video.

    Attributes:
      path: the video.
      probabilities: per class, most probable first. Empty where the video could not be read.
      error: why it could not be read; empty where it could.
      frames: uint8 [n, H, W, 3], RGB, those that the model saw.
    """

    path: str
    probabilities: dict[str, float]
    error: str = ""
    frames: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0, 3), np.uint8), compare=False)

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return next(iter(self.probabilities))


@dataclass(frozen=True)
class WindowPrediction:
    """What a model says of a stretch of a video.

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
    """What a model says of a video from window to window.

    Attributes:
      path: the video.
      windows: in order of time; those up to where reading failed.
      error: why the video could not be read, or not to its end; empty where it could.
      files: what was written, the table and the picture; none where there is no window.
    """

    path: str
    windows: list[WindowPrediction]
    error: str = ""
    files: tuple[Path, ...] = ()


def find_videos(arguments: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The videos that are meant by files, folders and patterns.

    A file is taken whatever its ending; of a folder, and of what matches a pattern such as `clips/**/cam1*`,
    the files with a video's ending, sorted. Hidden files are left out. Each video comes once.

    Returns:
      The paths, in the order of the arguments; and for each argument without any, why.
    """
    found: dict[str, None] = {}
    missed: dict[str, str] = {}
    for argument in arguments:
        if Path(argument).is_file():
            found[argument] = None
            continue
        is_folder = Path(argument).is_dir()
        pattern = os.path.join(glob.escape(argument), "**") if is_folder else argument  # noqa: PTH118
        matches = glob.glob(pattern, recursive=True)  # noqa: PTH207
        videos = sorted(path for path in matches if _is_video(Path(path)))
        if videos:
            found |= dict.fromkeys(videos)
        elif is_folder:
            missed[argument] = "no video in this folder"
        else:
            missed[argument] = "matches no video" if glob.has_magic(argument) else "no such file"
    return list(found), missed


def load_classifier(run_dir: str) -> Classifier:
    """Reads a run's model.

    Raises:
      ModelError: the run has no readable model.
    """
    model, card = load_model(Path(run_dir) / "model.keras")
    return Classifier(card, tf.function(lambda inputs: tf.nn.softmax(model(inputs, training=False))))


def classify(classifier: Classifier, clips: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
    """Runs one batch.

    Args:
      classifier: the model.
      clips: up to `batch_size`, each of uint8 [n, H, W, 3] as `seen_frames` gives them.
      batch_size: what is missing is filled up by clips of one black frame.

    Returns:
      float32 [len(clips), C], probabilities.
    """
    if not clips:
        return np.empty((0, len(classifier.card.classes)), np.float32)
    spec = classifier.card.spec
    frames = np.zeros((batch_size, spec.num_frames, spec.height, spec.width, 3), np.uint8)
    mask = np.zeros((batch_size, spec.num_frames), bool)
    mask[:, 0] = True
    for row, clip in enumerate(clips):
        frames[row, : len(clip)] = clip
        mask[row, : len(clip)] = True
    return classifier.step({"frames": frames, "mask": mask}).numpy()[: len(clips)]


def seen_frames(frames: np.ndarray, card: ModelCard) -> np.ndarray:
    """Those frames of a clip, and that part of them, that the model sees; uint8 [n, H, W, 3] both."""
    return centre_view(tf.constant(frames), card.spec).numpy()


def predict(
    run_dir: str,
    paths: Sequence[str],
    batch_size: int = BATCH_SIZE,
    timeout_sec: float = ConversionConfig.timeout_sec,
    gif_dir: str | None = None,
    read: ReadClip = video.read_clip,
) -> Iterator[Prediction]:
    """Yields a prediction per video, in order; a video that cannot be read does not stop the others.

    Args:
      run_dir: a run with a model.keras.
      paths: the videos.
      batch_size: videos per step of the model.
      timeout_sec: a video that takes longer to decode, twice, is given up.
      gif_dir: gets NAME.gif of each video, by `unique_names`; None for none.
      read: what a worker calls for each video; importable by name.

    Raises:
      ModelError: the run has no readable model.
      PredictError: a GIF cannot be written.
    """
    if gif_dir is not None:
        _make_folder(Path(gif_dir))
    num_workers = max(1, min(len(paths), os.cpu_count() or 1))
    with worker.Workers(num_workers, timeout_sec, ConversionConfig.worker_memory_mb) as workers:
        classifier = load_classifier(run_dir)  # while the workers start
        outcomes = workers.read_in_order(read, ((path, classifier.card.clip) for path in paths))
        named = zip(paths, unique_names(paths), outcomes, strict=True)
        while batch := list(itertools.islice(named, batch_size)):
            clips = [
                None if outcome.value is None else seen_frames(outcome.value.frames, classifier.card)
                for _, _, outcome in batch
            ]
            scores = iter(classify(classifier, [clip for clip in clips if clip is not None], batch_size))
            for (path, name, outcome), clip in zip(batch, clips, strict=True):
                if clip is None:
                    yield Prediction(path, {}, outcome.reason)
                    continue
                prediction = Prediction(path, ranked(next(scores), classifier.card.classes), frames=clip)
                if gif_dir is not None:
                    write_gif(prediction, Path(gif_dir) / f"{name}.gif")
                yield prediction


def predict_windows(
    classifier: Classifier,
    path: str,
    window_sec: float,
    hop_sec: float,
    batch_size: int = BATCH_SIZE,
    timeout_sec: float = ConversionConfig.timeout_sec,
    read: ReadWindows = video.read_windows,
) -> tuple[list[WindowPrediction], str]:
    """Looks at each window of a long video as if it were a video of its own.

    The video is decoded once, in a process that waits where it gets ahead of the model.

    Args:
      classifier: the model.
      path: the video.
      window_sec: as in `sampling.windows_at`.
      hop_sec: as in `sampling.windows_at`.
      batch_size: windows per step of the model.
      timeout_sec: a window that takes longer to decode ends the reading.
      read: what the process calls; importable by name.

    Returns:
      The windows, in order of time; and why the video could not be read, or not to its end, or "".
    """
    arguments = (path, classifier.card.clip, window_sec, hop_sec)
    stream = worker.stream(read, arguments, timeout_sec, ConversionConfig.worker_memory_mb)
    first = next(stream)
    expected = 0
    if first.value is not None:
        expected = math.ceil(max(0, first.value.video_sec - window_sec) / hop_sec) + 1
        if not first.value.times_known:
            _log.warning(
                "%s does not tell how fast it is: taken as %d frames a second.", path, video.ASSUMED_FPS
            )
    outcomes = itertools.chain([first], stream)
    windows: list[WindowPrediction] = []
    error = ""
    with Progress(path, expected, "windows", closing_line=False) as progress:
        while batch := list(itertools.islice(outcomes, batch_size)):
            error = batch[-1].reason
            read_ones = [outcome.value for outcome in batch if outcome.value is not None]
            clips = [seen_frames(window.frames, classifier.card) for window in read_ones]
            for window, scores in zip(read_ones, classify(classifier, clips, batch_size), strict=True):
                probabilities = ranked(scores, classifier.card.classes)
                windows.append(WindowPrediction(window.start_sec, window.end_sec, probabilities))
            progress.advance(len(clips))
    return windows, error


def write_timelines(
    run_dir: str,
    paths: Sequence[str],
    output_dir: str,
    window_sec: float,
    hop_sec: float,
    batch_size: int = BATCH_SIZE,
    timeout_sec: float = ConversionConfig.timeout_sec,
) -> Iterator[Timeline]:
    """Yields a timeline per video, in order, its table and its picture written into `output_dir`.

    The table has a row per window, `start_sec, end_sec, predicted` and a column per class.

    Args:
      run_dir: a run with a model.keras.
      paths: the videos.
      output_dir: gets NAME.csv and NAME.png, by `unique_names`.
      window_sec: as in `sampling.windows_at`.
      hop_sec: as in `sampling.windows_at`.
      batch_size: windows per step of the model.
      timeout_sec: a window that takes longer to decode ends the reading of its video.

    Raises:
      ModelError: the run has no readable model.
      PredictError: the files cannot be written.
    """
    folder = Path(output_dir)
    _make_folder(folder)
    classifier = load_classifier(run_dir)
    classes = classifier.card.classes
    for path, name in zip(paths, unique_names(paths), strict=True):
        windows, error = predict_windows(classifier, path, window_sec, hop_sec, batch_size, timeout_sec)
        files = (folder / f"{name}.csv", folder / f"{name}.png") if windows else ()
        if files:
            scores = np.array([[window.probabilities[each] for each in classes] for window in windows])
            bounds = np.array([[window.start_sec, window.end_sec] for window in windows])
            with _told(folder):
                _write_table(files[0], windows, classes)
                report.timeline(bounds, scores, classes, path, files[1])
        yield Timeline(path, windows, error, files)


def write_gif(prediction: Prediction, path: Path) -> None:
    """Writes the frames that the model saw as an animation, with the class and its probability below them.

    Frames less than 224 pixels wide are magnified, by a whole number.

    Raises:
      PredictError: the file cannot be written.
    """
    text = f" {prediction.probabilities[prediction.predicted]:.0%}"
    font = ImageFont.load_default(_GIF_FONT)
    frames = [Image.fromarray(frame) for frame in prediction.frames]
    zoom = math.ceil(_GIF_WIDTH / frames[0].width)
    width, height = frames[0].width * zoom, frames[0].height * zoom
    name = prediction.predicted
    while font.getlength(name + text) > width - _GIF_FONT:
        name = name.rstrip("…")[:-1] + "…"
    pages = []
    for frame in frames:
        page = Image.new("RGB", (width, height + 2 * _GIF_FONT))
        page.paste(frame.resize((width, height), Image.Resampling.NEAREST))
        ImageDraw.Draw(page).text((width // 2, height + _GIF_FONT), name + text, "white", font, anchor="mm")
        pages.append(page)
    with _told(path.parent), shards.staged(path) as temporary:
        pages[0].save(
            temporary, "GIF", save_all=True, append_images=pages[1:], duration=_GIF_FRAME_MS, loop=0
        )


def unique_names(paths: Iterable[str]) -> list[str]:
    """A file name without ending for each video: its own, or with its folder's or a number if that is taken.

    >>> unique_names(["a/x.avi", "b/x.avi", "b/x.mp4", "y.avi"])
    ['x', 'b_x', 'x_2', 'y']
    """
    names: dict[str, None] = {}
    for path in map(Path, paths):
        with_folder = [f"{path.parent.name}_{path.stem}"] if path.parent.name else []
        numbered = (f"{path.stem}_{number}" for number in itertools.count(2))
        choices = itertools.chain([path.stem], with_folder, numbered)
        names[next(name for name in choices if name not in names)] = None
    return list(names)


def stretches(windows: Sequence[WindowPrediction]) -> list[tuple[float, float, str]]:
    """Which class leads when: (start_sec, end_sec, class), each up to where the next one starts.

    Args:
      windows: of a video, at least one.
    """
    leaders = [(name, next(group)) for name, group in itertools.groupby(windows, lambda each: each.predicted)]
    ends = [window.start_sec for _, window in leaders[1:]] + [windows[-1].end_sec]
    return [(first.start_sec, end, name) for (name, first), end in zip(leaders, ends, strict=True)]


def ranked(scores: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Float [C] by the classes' names, the most probable first."""
    return {classes[index]: float(scores[index]) for index in np.argsort(-scores, kind="stable")}


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def _write_table(path: Path, windows: Iterable[WindowPrediction], classes: Sequence[str]) -> None:
    with shards.committed_csv(path, ["start_sec", "end_sec", "predicted", *classes]) as writer:
        for window in windows:
            bounds = {"start_sec": window.start_sec, "end_sec": window.end_sec}
            writer.writerow(bounds | {"predicted": window.predicted} | window.probabilities)


def _make_folder(folder: Path) -> None:
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PredictError(
            f"Cannot write into {folder} ({error.strerror}). Make room, or it writable, or give another."
        ) from error
