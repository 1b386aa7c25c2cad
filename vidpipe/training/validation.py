"""The model's output for the validation split after an epoch, and its metrics."""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from vidpipe.training.step import Steps, clip_losses


@dataclass(frozen=True)
class Validation:
    """The model's output for the validation split, in the order of its records.

    Attributes:
      label: int32 [N].
      logits: float32 [N, C].
      linear_logits: those of the linear part alone, float32 [N, C]; [N, 0] of a model without one.
    """

    label: np.ndarray
    logits: np.ndarray
    linear_logits: np.ndarray

    @functools.cached_property
    def losses(self) -> np.ndarray:
        """The cross-entropy of each clip, float64 [N]."""
        return clip_losses(tf.constant(self.label), tf.constant(self.logits)).numpy().astype(np.float64)

    @property
    def loss(self) -> float:
        """The mean loss."""
        return float(self.losses.mean())

    @property
    def accuracy(self) -> float:
        """The fraction of correct predictions."""
        return float(np.mean(self.logits.argmax(axis=1) == self.label))

    @property
    def confusion(self) -> np.ndarray:
        """The confusion matrix, int64 [C, C]: rows are true classes, columns predicted ones."""
        num_classes = self.logits.shape[1]
        pairs = self.label * num_classes + self.logits.argmax(axis=1)
        return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)

    def metrics(self) -> dict[str, float | None]:
        """Returns val_loss, its standard error val_loss_error, val_accuracy and linear_val_accuracy."""
        losses = self.losses
        error = float(losses.std(ddof=1) / math.sqrt(len(losses))) if len(losses) > 1 else 0.0
        linear = None
        if self.linear_logits.size:
            linear = float(np.mean(self.linear_logits.argmax(axis=1) == self.label))
        return {
            "val_loss": self.loss,
            "val_loss_error": error,
            "val_accuracy": self.accuracy,
            "linear_val_accuracy": linear,
        }


def validate(steps: Steps, batches: Iterable[Any]) -> Validation:
    """Evaluates the model on the validation split.

    Args:
      steps: of the run.
      batches: (inputs, label, weight) of the split; rows of weight 0 are left out.
    """
    found = []
    for batch in batches:
        logits, linear_logits, label, weight = (values.numpy() for values in steps.evaluate(*batch))
        found.append([values[weight > 0] for values in (label, logits, linear_logits)])
    return Validation(*(np.concatenate(values) for values in zip(*found, strict=True)))
