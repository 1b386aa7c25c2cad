"""What a run shows after each epoch: a row of history.csv, a log line, TensorBoard events and pictures."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vidpipe.display import figures
from vidpipe.training.epoch_selection import History, selected_epoch
from vidpipe.training.epoch_steps import EpochTime
from vidpipe.training.head_fit import CrossValidation
from vidpipe.training.run_folder import HISTORY_COLUMNS, RunFolder
from vidpipe.training.step import StepSums
from vidpipe.training.validation import Validation

# The first epochs of a short run are not worth a second each for their pictures.
_DRAW_EVERY_SEC = 60
SHOWN_CLIPS = 4
_log = logging.getLogger(__name__)


def history_row(
    epoch: int,
    sums: StepSums,
    validation: Validation | None,
    cross_validation: CrossValidation | None,
    *,
    learning_rate: float,
    spent: EpochTime,
) -> dict[str, Any]:
    """Makes an epoch's row of history.csv, with the columns `run_folder.HISTORY_COLUMNS`.

    Args:
      epoch: from 1.
      sums: over its steps.
      validation: of the model after it; None without a validation split.
      cross_validation: likewise; None if the run is not cross-fitted.
      learning_rate: of its last step.
      spent: the time of its steps.
    """
    return {
        **dict.fromkeys(HISTORY_COLUMNS),
        "epoch": epoch,
        "loss": sums.mean_loss,
        "accuracy": sums.accuracy,
        **(validation.metrics() if validation is not None else {}),
        **(cross_validation.metrics() if cross_validation is not None else {}),
        "learning_rate": learning_rate,
        "seconds": spent.seconds,
        "data_wait": spent.waiting / spent.seconds,
    }


def log_epoch(
    row: Mapping[str, Any], *, epochs: int, clips_per_sec: float, optimizer: keras.Optimizer, num_steps: int
) -> None:
    """Logs an epoch in one line.

    Args:
      row: of history.csv.
      epochs: of the run.
      clips_per_sec: in its training steps.
      optimizer: float16's loss scaling is in it.
      num_steps: steps of the run so far.
    """
    validated = ""
    if row["val_loss"] is not None:
        validated = f", val_loss {row['val_loss']:.4f}, val_accuracy {row['val_accuracy']:.3f}"
    if row["cv_loss"] is not None:
        validated += (
            f", cv_loss {row['cv_loss']:.4f}, cv_accuracy {row['cv_accuracy']:.3f}, network's share "
            f"{row['network_share']:.2f}"
        )
    scaled, scale = "", loss_scale(optimizer)
    if scale is not None:
        # The optimizer does not count the steps that it skips.
        skipped = num_steps - int(optimizer.iterations)
        scaled = f"; loss scale {scale:g}, {skipped} steps skipped so far"
    _log.info(
        "Epoch %d/%d: loss %.4f, accuracy %.3f%s; learning rate %.2g, %.1f clips/s, %.0f %% of the time "
        "waiting for data%s.",
        row["epoch"], epochs, row["loss"], row["accuracy"], validated, row["learning_rate"], clips_per_sec,
        100 * row["data_wait"], scaled,
    )  # fmt: skip


def loss_scale(optimizer: keras.Optimizer) -> float | None:
    """Returns the present factor of float16's loss scaling; None without it."""
    is_scaling = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return float(optimizer.dynamic_scale) if is_scaling else None


class RunLog:
    """Writes a run's history, TensorBoard events and pictures.

    Args:
      folder: of the run.
      classes: the C class names.
      shown_clips: gives (inputs with frames and mask, label) of the first clips of the validation split.
    """

    def __init__(
        self, folder: RunFolder, classes: Sequence[str], shown_clips: Callable[[], tuple[Any, Any]]
    ) -> None:
        self._folder, self._classes, self._shown_clips = folder, classes, shown_clips
        self._events = tf.summary.create_file_writer(str(folder.tensorboard))
        self._drawn = time.monotonic()

    def write(
        self, history: History, validation: Validation | None, *, is_last: bool, loss_scale: float | None
    ) -> None:
        """Writes history.csv and the events of an epoch; the pictures once a minute.

        Args:
          history: a row per epoch, the newest last.
          validation: of the model after the newest epoch.
          is_last: whether the run ends with it; the pictures are drawn then too.
          loss_scale: of float16; None without it.
        """
        self._folder.write_history(history)
        scalars = dict(history[-1])
        step = scalars.pop("epoch")
        if loss_scale is not None:
            scalars["loss_scale"] = loss_scale
        with self._events.as_default(step=step):
            for name, value in scalars.items():
                if value is not None:
                    tf.summary.scalar(name, value)
            if is_last or time.monotonic() - self._drawn > _DRAW_EVERY_SEC:
                self._drawn = time.monotonic()
                selected = selected_epoch(history)["epoch"]
                figures.learning_curves(history, selected, self._folder.learning_curves)
                if validation is not None:
                    self._draw_validation(validation)
        self._events.flush()

    def _draw_validation(self, validation: Validation) -> None:
        matrix = figures.confusion_matrix_image(validation.confusion, self._classes)
        tf.summary.image("validation/confusion", matrix[np.newaxis])
        inputs, label = self._shown_clips()
        probabilities = tf.nn.softmax(validation.logits[: len(label)]).numpy()
        predicted, names = probabilities.argmax(axis=1), self._classes
        image = figures.predicted_clips_image(
            inputs["frames"].numpy(),
            inputs["mask"].numpy(),
            [
                f"{names[true]}, predicted\n{names[guess]} {scores.max():.2f}"
                for true, guess, scores in zip(label, predicted, probabilities, strict=True)
            ],
            [bool(true != guess) for true, guess in zip(label, predicted, strict=True)],
        )
        tf.summary.image("validation/clips", image[np.newaxis])
