"""What of a head is fitted, not trained by steps: standardization, linear part, the network's share."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from vidpipe.model import heads, standardization
from vidpipe.progress import Progress
from vidpipe.training.linear_part import FOLDS, LinearPart, fit_linear_part, folds_of, log_losses
from vidpipe.training.run_folder import TrainError

# Factors of the network's logits: from few clips it learns to be too sure.
_SCALES = np.array([0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.3, 1.7, 2.2])
_SHARES = np.linspace(0.0, 1.0, 21)
# Until the network's share is known, and where it cannot be cross-validated.
_EQUAL = (0.5, 0.5)
_NETWORK_ONLY = (0.0, 1.0)
_log = logging.getLogger(__name__)


class CrossValidation(NamedTuple):
    """How good the whole model is on training clips that each of its parts has not seen.

    Attributes:
      loss, error: mean log loss and its standard error.
      accuracy, linear_accuracy: of the whole model and of its linear part alone, on the same clips.
      network_share: 0 if the model answers as its linear part does, 1 if as its network does.
    """

    loss: float
    error: float
    accuracy: float
    linear_accuracy: float
    network_share: float

    def metrics(self) -> dict[str, float]:
        """Returns the columns of history.csv."""
        return {
            "cv_loss": self.loss,
            "cv_loss_error": self.error,
            "cv_accuracy": self.accuracy,
            "linear_cv_accuracy": self.linear_accuracy,
            "network_share": self.network_share,
        }


@dataclass(frozen=True, kw_only=True)
class TrainingClips:
    """The training clips in the order of their records.

    Attributes:
      batches: (inputs, label, weight) of all of them; rows of weight 0 are no clips.
      video_ids: of the clips.
      group: the group of each clip.
      class_weights: float32 [C].
    """

    batches: Callable[[], tf.data.Dataset]
    video_ids: Sequence[str]
    group: Sequence[str]
    class_weights: np.ndarray


class HeadFit:
    """Fits the linear part of a run, and after each epoch the network's share.

    In a cross-fitted run each ensemble member is trained on the clips outside of one fold. Its answers to the
    clips inside of it, beside those of a linear part that has not seen them either, tell how much the network
    adds: stacking (Wolpert, "Stacked Generalization", Neural Networks 1992) by log loss, at the cost of one
    training.

    Args:
      model: what is trained, `FusedModel.fused` or `FusedModel.trained`.
      head: name of the head.
      clips: the training clips.
      fold: int [N], see `cross_fitting_folds`; None if the run is not cross-fitted.
    """

    def __init__(self, model: keras.Model, head: str, clips: TrainingClips, fold: np.ndarray | None) -> None:
        self._model, self._head, self._clips, self._fold = model, head, clips, fold
        network = heads.network_logits(model)
        self._answer = tf.function(lambda inputs: network(inputs, training=False))
        self._batches: tf.data.Dataset | None = None  # kept: building it takes as long as reading it
        self._linear: LinearPart | None = None
        self._label = np.zeros(0, np.int32)

    def start(self, first_inputs: Iterator[Mapping[str, Any]]) -> None:
        """Sets standardization and linear part of a new run, and logs how good the latter is.

        Raises:
          TrainError: features are non-finite, or see `fit_linear_part`.
        """
        standardization.adapt_standardization(self._model, first_inputs)
        fitted = self._fit()
        layer = self._model.get_layer(heads.LINEAR)
        layer.kernel.assign(fitted.kernel)
        layer.bias.assign(fitted.bias)
        self._set_shares(_EQUAL if heads.HEADS[self._head].adds_linear_part else _NETWORK_ONLY)
        is_held_out = fitted.fold >= 0
        if is_held_out.any():
            correct = fitted.held_out_logits.argmax(axis=1) == self._label
            losses = log_losses(fitted.held_out_logits, self._label)
            _log.info(
                "Linear part: accuracy %.3f, loss %.4f in cross-validation on %d training clips "
                "(strength %g, %s the mean frame).",
                correct[is_held_out].mean(), losses[is_held_out].mean(), is_held_out.sum(), fitted.strength,
                "with" if fitted.uses_mean_frame else "without",
            )  # fmt: skip
        else:
            _log.warning(
                "The clips of each class are of one group: without cross-validation nothing tells how good "
                "the linear part is. It has the strength %g.", fitted.strength,
            )  # fmt: skip

    def resume(self) -> None:
        """Fits the linear part again if its answers to held-out clips are needed; no variable changes."""
        if self._fold is not None:
            self._fit()

    def update(self) -> CrossValidation | None:
        """Sets the network's share by what the present weights are worth.

        Returns:
          None if the run is not cross-fitted.
        """
        if self._fold is None or self._linear is None or self._batches is None:
            return None
        by_member = np.concatenate(
            [self._answer(inputs).numpy()[weight.numpy() > 0] for inputs, _, weight in self._batches]
        )
        of_network, is_held_out = held_out_logits(by_member, self._fold)
        label, linear = self._label[is_held_out], self._linear.held_out_logits[is_held_out]
        weight = self._clips.class_weights[label]
        shares = choose_shares(linear, of_network[is_held_out], label, weight)
        self._set_shares(shares)
        both = shares[0] * linear + shares[1] * of_network[is_held_out]
        losses = log_losses(both, label)
        return CrossValidation(
            loss=float(losses.mean()),
            error=float(losses.std(ddof=min(1, len(losses) - 1)) / np.sqrt(len(losses))),
            accuracy=float((both.argmax(axis=1) == label).mean()),
            linear_accuracy=float((linear.argmax(axis=1) == label).mean()),
            network_share=1 - shares[0],
        )

    def _fit(self) -> LinearPart:
        extract = heads.statistics_extractor(self._model)
        step = tf.function(lambda inputs: extract(inputs, training=False)[1])
        self._batches = self._clips.batches()
        statistics, label = [], []
        with Progress("Features of the linear part", len(self._clips.group), "clips") as progress:
            for inputs, of_batch, weight in self._batches:
                real = weight.numpy() > 0
                statistics.append(step(inputs).numpy()[real])
                label.append(of_batch.numpy()[real])
                progress.advance(int(real.sum()))
        self._label, of_clips = np.concatenate(label), np.concatenate(statistics)
        is_bad = ~np.isfinite(of_clips).all(axis=1)
        if is_bad.any():
            first = self._clips.video_ids[int(is_bad.argmax())]
            raise TrainError(
                f"The features of {is_bad.sum()} training clips are NaN or Inf; the first is {first}. Check "
                "the weights of the backbone, or try --precision=float32."
            )
        fold = folds_of(self._label, self._clips.group) if self._fold is None else self._fold
        self._linear = fit_linear_part(of_clips, self._label, fold, self._clips.class_weights)
        return self._linear

    def _set_shares(self, shares: tuple[float, float]) -> None:
        self._model.get_layer(heads.SHARES).kernel.assign(shares)


def cross_fitting_folds(label: np.ndarray, group: Sequence[str], ensemble_size: int) -> np.ndarray | None:
    """Distributes clips over folds, one for each ensemble member; None if the clips cannot be distributed.

    Args:
      label: int [N].
      group: of each clip; a group is in one fold.
      ensemble_size: members (M).

    Returns:
      int [N]; -1 for clips that every member is trained on.
    """
    fold = folds_of(label, group, max(FOLDS, ensemble_size))
    return fold if (fold >= 0).any() else None


def member_weights(fold: np.ndarray, ensemble_size: int) -> np.ndarray:
    """Returns whether each member is trained on each clip: float32 [N, M], 0 or 1.

    >>> member_weights(np.array([0, 1, 2, -1]), 2).tolist()
    [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    """
    return (fold[:, np.newaxis] != _held_out_fold(fold, ensemble_size)).astype(np.float32)


def held_out_logits(by_member: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Averages the logits of the members that were not trained on a clip.

    Args:
      by_member: float [N, M, C].
      fold: int [N].

    Returns:
      float64 [N, C], and bool [N], whether there is such a member.
    """
    is_unseen = member_weights(fold, by_member.shape[1]) == 0
    count = is_unseen.sum(axis=1)
    total = (by_member.astype(np.float64) * is_unseen[..., np.newaxis]).sum(axis=1)
    return total / np.maximum(count, 1)[:, np.newaxis], count > 0


def choose_shares(
    linear: np.ndarray, network: np.ndarray, label: np.ndarray, weight: np.ndarray
) -> tuple[float, float]:
    """Chooses how much of the answer is the linear part's and how much the network's.

    The network's logits are scaled first, to the lowest log loss (temperature scaling: Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017). Then it gets the smallest share whose log loss is
    within one standard error, paired by clip, of the lowest. On few clips a small gain is luck, and the
    linear part answers alone.

    Args:
      linear: logits of clips that it has not seen, float [n, C].
      network: likewise.
      label: int [n].
      weight: of the clips, float [n].

    Returns:
      The factors of the linear part's and of the network's logits.
    """
    of_scales = (weight * log_losses(_SCALES[:, np.newaxis, np.newaxis] * network, label)).mean(axis=1)
    scale = float(_SCALES[of_scales.argmin()])
    losses = np.stack(
        [weight * log_losses((1 - share) * linear + share * scale * network, label) for share in _SHARES]
    )
    excess = losses - losses[losses.mean(axis=1).argmin()]
    error = excess.std(axis=1, ddof=min(1, len(label) - 1)) / np.sqrt(len(label))
    share = float(_SHARES[int((excess.mean(axis=1) <= error).argmax())])
    return 1 - share, share * scale


def _held_out_fold(fold: np.ndarray, ensemble_size: int) -> np.ndarray:
    """Returns the fold that each member is not trained on, int [M]."""
    return np.arange(ensemble_size) % (fold.max() + 1)
