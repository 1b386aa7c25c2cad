"""Video files to class probabilities, with the converter's reader and the model's own preprocessing.

Videos are decoded in separate processes while the model runs. It runs as in an evaluation: on a CPU the
same videos in the same batches have the same probabilities, bit for bit. Another video in a batch may change
the last bit.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorflow as tf

from vidpipe.config import ClipConfig, ConversionConfig, PredictionConfig
from vidpipe.data import process_pool, video
from vidpipe.data.input_pipeline import centre_view
from vidpipe.data.skip_reason import Failure
from vidpipe.errors import VidpipeError
from vidpipe.inference import gif
from vidpipe.inference.video_files import unique_names
from vidpipe.model import heads
from vidpipe.model.frame_encoder import FrameEncoder
from vidpipe.model.fused import feature_encoder
from vidpipe.model.model_file import ModelMetadata, for_this_machine, load_model
from vidpipe.training.run_folder import RunFolder

ReadClip = Callable[[str, ClipConfig], video.VideoClip]


class PredictError(VidpipeError):
    """An output folder cannot be written."""


@dataclass(frozen=True)
class Classifier:
    """A trained model, ready for use.

    Attributes:
      metadata: its classes and clip settings.
      encode: frames and mask -> features [B, T, D].
      classify: {"features", "mask"} -> probabilities float32 [B, C].
    """

    metadata: ModelMetadata
    encode: FrameEncoder
    classify: Callable[[dict[str, np.ndarray]], tf.Tensor]


@dataclass(frozen=True)
class Prediction:
    """The prediction for a video.

    Attributes:
      path: the video.
      probabilities: per class, most probable first; empty where the video could not be read.
      failure: why it could not be read; None where it could.
      frames: uint8 [n, H, W, 3], RGB, the frames that the model saw.
    """

    path: str
    probabilities: dict[str, float]
    failure: Failure | None = None
    frames: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0, 3), np.uint8), compare=False)

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return next(iter(self.probabilities))


def load_classifier(run_dir: str) -> Classifier:
    """Loads the model of a run.

    Raises:
      ModelError: the run has no readable model.
    """
    loaded, metadata = load_model(RunFolder(Path(run_dir)).model)
    model = for_this_machine(loaded)
    head = heads.classifier(model)
    classify = tf.function(lambda inputs: tf.nn.softmax(head(inputs, training=False)))
    return Classifier(metadata, feature_encoder(model), classify)


def model_frames(frames: np.ndarray, metadata: ModelMetadata) -> np.ndarray:
    """Takes the frames and the square that the model sees of a clip; uint8 [n, H, W, 3] both."""
    return centre_view(tf.constant(frames), metadata.spec).numpy()


def classify(classifier: Classifier, clips: Sequence[np.ndarray], *, batch_size: int) -> np.ndarray:
    """Runs the model on one batch.

    Args:
      classifier: the model.
      clips: at most `batch_size` clips, each uint8 [n, H, W, 3] as `model_frames` returns it.
      batch_size: the head's batch is filled up to it.

    Returns:
      float32 [len(clips), C], probabilities.
    """
    if not clips:
        return np.empty((0, len(classifier.metadata.classes)), np.float32)
    spec = classifier.metadata.spec
    frames = np.zeros((len(clips), spec.num_frames, spec.height, spec.width, 3), np.uint8)
    mask = np.zeros((batch_size, spec.num_frames), bool)
    mask[:, 0] = True
    for row, clip in enumerate(clips):
        frames[row, : len(clip)] = clip
        mask[row, : len(clip)] = True
    encoded = classifier.encode(frames, mask[: len(clips)])
    features = np.concatenate(
        [encoded, np.zeros_like(encoded, shape=(len(mask) - len(clips), *encoded.shape[1:]))]
    )
    return classifier.classify({"features": features, "mask": mask}).numpy()[: len(clips)]


def rank(scores: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Maps class names to their scores, float [C], the highest first."""
    return {classes[index]: float(scores[index]) for index in np.argsort(-scores, kind="stable")}


def predict(
    config: PredictionConfig, paths: Sequence[str], *, read: ReadClip = video.read_clip
) -> Iterator[Prediction]:
    """Yields a prediction per video, in order; a video that cannot be read does not stop the others.

    Args:
      config: with `gif`, that folder gets an animation NAME.gif per video, named by `unique_names`.
      paths: the videos.
      read: what a process calls for each video; importable by name.

    Raises:
      ModelError: the run has no readable model.
      PredictError: a GIF cannot be written.
    """
    gif_dir = None if config.gif is None else Path(config.gif)
    if gif_dir is not None:
        make_output_dir(gif_dir)
    num_workers = max(1, min(len(paths), os.cpu_count() or 1))
    with process_pool.ReaderPool(
        num_workers=num_workers, timeout_sec=config.timeout_sec, memory_mb=ConversionConfig.worker_memory_mb
    ) as pool:
        classifier = load_classifier(config.run_dir)  # while the processes start
        results = pool.read_in_order(read, paths, lambda path: (path, classifier.metadata.clip))
        names = iter(unique_names(paths))
        while batch := list(itertools.islice(results, config.batch_size)):
            for prediction in _predict_batch(classifier, batch, config.batch_size):
                name = next(names)
                if gif_dir is not None and prediction.failure is None:
                    with report_write_errors(gif_dir):
                        gif.write(gif_dir / f"{name}.gif", prediction.frames, prediction.probabilities)
                yield prediction


def make_output_dir(folder: Path) -> None:
    """Makes a folder before the work starts.

    Raises:
      PredictError: it cannot be made.
    """
    with report_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def report_write_errors(folder: Path) -> Iterator[None]:
    """Raises an OSError of the block as a PredictError that names the output folder."""
    try:
        yield
    except OSError as error:
        raise PredictError(
            f"Cannot write into {folder} ({error.strerror}). It must be a writable folder with free space; "
            "or choose another one."
        ) from error


def _predict_batch(
    classifier: Classifier, results: Sequence[process_pool.Result[str, video.VideoClip]], batch_size: int
) -> Iterator[Prediction]:
    clips = [
        None if result.value is None else model_frames(result.value.frames, classifier.metadata)
        for result in results
    ]
    scores = iter(classify(classifier, [clip for clip in clips if clip is not None], batch_size=batch_size))
    for result, clip in zip(results, clips, strict=True):
        if clip is None:
            yield Prediction(result.request, {}, failure=result.failure)
        else:
            probabilities = rank(next(scores), classifier.metadata.classes)
            yield Prediction(result.request, probabilities, frames=clip)
