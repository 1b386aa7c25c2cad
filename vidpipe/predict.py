"""Video files to class probabilities, with the converter's reader and the model's own preprocessing."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from vidpipe import video
from vidpipe.input_pipeline import centre_view, pad_clip
from vidpipe.model import ModelCard, load_model


@dataclass(frozen=True)
class Prediction:
    """What a model says of a video.

    Attributes:
      path: the video.
      probabilities: per class, most probable first. Empty where the video could not be read.
      error: why it could not be read; empty where it could.
    """

    path: str
    probabilities: dict[str, float]
    error: str = ""

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return next(iter(self.probabilities))


def predict(run_dir: str, paths: Iterable[str]) -> Iterator[Prediction]:
    """Yields a prediction per video, in order; a video that cannot be read does not stop the others.

    Raises:
      ModelError: the run has no readable model.
    """
    model, card = load_model(Path(run_dir) / "model.keras")
    step = tf.function(lambda inputs: tf.nn.softmax(model(inputs, training=False)))
    for path in paths:
        try:
            inputs = clip_inputs(path, card)
        except video.VideoReadError as error:
            yield Prediction(path, {}, error.reason)
            continue
        scores = step(inputs).numpy()[0]
        ranked = np.argsort(-scores, kind="stable")
        yield Prediction(path, {card.classes[index]: float(scores[index]) for index in ranked})


def clip_inputs(path: str, card: ModelCard) -> dict[str, tf.Tensor]:
    """One video as a batch of one for the fused model: frames uint8 [1, T, H, W, 3], mask bool [1, T].

    Raises:
      VideoReadError: the video cannot be read.
    """
    frames = centre_view(tf.constant(video.read_clip(path, card.clip).frames), card.spec)
    frames, mask = pad_clip(frames, card.spec.num_frames)
    return {"frames": frames[tf.newaxis], "mask": mask[tf.newaxis]}
