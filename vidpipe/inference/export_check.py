"""Checks an export against its model on real clips: an export that does not agree is not kept."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from vidpipe.data.dataset import Dataset
from vidpipe.data.input_pipeline import eval_dataset
from vidpipe.evaluation.evaluate import check_dataset
from vidpipe.inference.export_files import ExportError
from vidpipe.model.model_file import ModelMetadata, load_model, precision_of
from vidpipe.progress import Progress
from vidpipe.training.run_folder import RunFolder

_CHECKED_CLIPS = 16
_BATCH_SIZE = 4
Batch = dict[str, np.ndarray]
Classify = Callable[[Batch], np.ndarray]


@dataclass(frozen=True)
class Check:
    """How closely an export agrees with the model, on real clips.

    Attributes:
      name: what was compared.
      largest_difference: largest absolute difference of a probability, over classes and clips.
      same_class: number of clips with the same predicted class.
      num_clips: number of clips that were compared.
    """

    name: str
    largest_difference: float
    same_class: int
    num_clips: int

    def __str__(self) -> str:
        return (
            f"{self.name}: largest difference of a probability {self.largest_difference:.1e}, same predicted "
            f"class for {self.same_class} of {self.num_clips} clips"
        )


def load_model_for(run_dir: str, dataset: Dataset) -> tuple[keras.Model, ModelMetadata]:
    """Loads a run's model, and checks that the dataset has its classes and clips.

    Raises:
      EvaluateError: the dataset does not.
      ModelError: the run has no readable model.
    """
    model, metadata = load_model(RunFolder(Path(run_dir)).model)
    check_dataset(metadata, dataset)
    return model, metadata


def first_clips(dataset: Dataset, split: str, num_frames: int) -> list[Batch]:
    """Reads the first 16 clips of a split as batches of the model's inputs."""
    batches = eval_dataset(dataset, batch_size=_BATCH_SIZE, split=split, num_frames=num_frames)
    return [
        {name: values.numpy()[weight.numpy() > 0] for name, values in inputs.items()}
        for inputs, _, weight in batches.take(_CHECKED_CLIPS // _BATCH_SIZE)
    ]


def by_model(model: keras.Model) -> Classify:
    """Returns a function that classifies a batch with a Keras model."""
    return tf.function(lambda batch: tf.nn.softmax(model(batch, training=False)), autograph=False)


def classify_all(name: str, classify: Classify, batches: Sequence[Batch]) -> np.ndarray:
    """Returns the probabilities [N, C] of all clips; `name` is what the progress shows."""
    with (
        _without_tf32(),
        Progress(f"Checking {name}", len(batches), "batches", closing_line=False) as progress,
    ):

        def outputs() -> Iterator[np.ndarray]:
            for batch in batches:
                yield np.asarray(classify(batch))
                progress.advance()

        return np.concatenate(list(outputs()))


def compare(name: str, *, expected: np.ndarray, found: np.ndarray) -> Check:
    """Compares probabilities [N, C]."""
    same_class = found.argmax(axis=1) == expected.argmax(axis=1)
    return Check(name, float(np.abs(found - expected).max()), int(same_class.sum()), len(expected))


def check(name: str, *, expected: np.ndarray, found: np.ndarray, tolerance: float) -> Check:
    """Compares probabilities [N, C] and rejects a difference above the tolerance.

    Raises:
      ExportError: a difference is larger, or non-finite (NaN or Inf).
    """
    result = compare(name, expected=expected, found=found)
    # Negated, so that NaN fails.
    if not result.largest_difference <= tolerance:
        raise ExportError(
            f"The export does not agree with the model and was not written. {result}; the tolerance is "
            f"{tolerance:g}."
        )
    return result


def check_half_precision(model: keras.Model, clips: Sequence[Batch], expected: np.ndarray) -> list[Check]:
    """Measures what float32 changes in a model that was trained in half precision; none for float32."""
    precision = precision_of(model)
    if precision == "float32":
        return []
    found = classify_all(precision, by_model(model), clips)
    return [compare(f"float32 and the run's {precision}", expected=expected, found=found)]


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Disables TF32, in which a GPU multiplies float32 with 10 of its 23 mantissa bits."""
    config = tf.config.experimental
    before = config.tensor_float_32_execution_enabled()
    config.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        config.enable_tensor_float_32_execution(before)
