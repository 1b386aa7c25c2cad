"""Fits the linear part of a model to its optimum: logistic regression on statistics of clips.

It is convex, so its answer depends on the clips alone, and not on a seed, an order or a number of epochs.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from vidpipe.model.heads import NUM_STATISTICS
from vidpipe.training.run_folder import TrainError

# Inverse strengths of the L2 regularization, as scikit-learn counts them. The default measured well on small
# datasets.
_STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
_DEFAULT_STRENGTH = 1e-2
# Changes between frames without and with the mean frame; where it is not shown to help, it is left out: it
# tells where a video was filmed.
_NUM_USED = (NUM_STATISTICS - 1, NUM_STATISTICS)
FOLDS = 5
# With more clips than this, the strength is chosen on one fold: it would take minutes on all.
_MANY_CLIPS = 2000
_MAX_ITERATIONS = 1000
# Below so many multiply-adds in a matrix product, several threads cost more than they save; on a busy machine
# they wait for each other, and 148 clips took 9.2 s instead of 0.9 (2026-11-28, script not kept).
_FEW_MULTIPLY_ADDS = 1e7
# A gain counts from this many standard errors on: clips of a group are alike, so one is too few.
_STANDARD_ERRORS = 2
_ABSENT = -30.0  # the logit of a class without a training clip


@dataclass(frozen=True)
class LinearPart:
    """A linear part at its optimum, and its answers in cross-validation.

    Attributes:
      kernel: float32 [P, C].
      bias: float32 [C].
      strength: inverse strength of the regularization.
      uses_mean_frame: whether the mean frame is among the statistics used.
      fold: int [N], the fold in which a clip was held out, see `folds_of`.
      held_out_logits: float64 [N, C], the answers of linear parts that were fitted to the other folds.
    """

    kernel: np.ndarray
    bias: np.ndarray
    strength: float
    uses_mean_frame: bool
    fold: np.ndarray
    held_out_logits: np.ndarray


def fit_linear_part(
    statistics: np.ndarray,
    label: np.ndarray,
    fold: np.ndarray,
    class_weights: np.ndarray,
) -> LinearPart:
    """Fits multinomial logistic regression with L2 regularization, on standardized statistics.

    Its strength, and whether the mean frame is used, are chosen by the log loss in cross-validation: another
    strength than the default, and the mean frame, have to lower it by more than two standard errors.

    Args:
      statistics: float [N, P], see `heads.statistics_of_clip`.
      label: int [N].
      fold: int [N], see `folds_of`.
      class_weights: float [C].

    Raises:
      TrainError: there is only one class, or the statistics of all clips are the same.
    """
    _check(statistics, label)
    num_clips, num_statistics = statistics.shape
    is_small = num_clips * min(num_clips, num_statistics) * len(class_weights) < _FEW_MULTIPLY_ADDS
    with threadpool_limits(1 if is_small else None, user_api="blas"):
        return _fit_linear_part(statistics, label, fold, class_weights)


def _fit_linear_part(
    statistics: np.ndarray, label: np.ndarray, fold: np.ndarray, class_weights: np.ndarray
) -> LinearPart:
    num_classes = len(class_weights)
    scored = np.flatnonzero(fold >= 0)
    candidates = []
    for num_used in _NUM_USED:
        num_columns = statistics.shape[1] * num_used // NUM_STATISTICS
        candidates.append(_Fits(statistics[:, :num_columns], label, class_weights[label], num_classes))
    if not len(scored):
        fits, strength, held_out = candidates[0], _DEFAULT_STRENGTH, np.zeros((len(label), num_classes))
    else:
        tried = fold[scored] == fold[scored][0] if len(label) > _MANY_CLIPS else np.ones(len(scored), bool)
        chosen = [_best_strength(fits, fold, scored[tried]) for fits in candidates]
        (_, losses), (_, more_losses) = chosen
        number = int(_is_gain(losses - more_losses))
        fits, strength = candidates[number], chosen[number][0]
        held_out = fits.held_out_logits(strength, fold)
    kernel, bias = fits.fit(strength)
    padded = np.zeros((statistics.shape[1], num_classes), np.float32)
    padded[: len(kernel)] = kernel
    uses_mean_frame = len(kernel) == len(padded)
    return LinearPart(padded, bias.astype(np.float32), strength, uses_mean_frame, fold, held_out)


def log_losses(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Computes the cross-entropy of each clip.

    Args:
      logits: float [..., N, C].
      label: int [N].

    Returns:
      float64 [..., N].
    """
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    of_label = np.take_along_axis(
        shifted, np.broadcast_to(label[:, np.newaxis], (*shifted.shape[:-1], 1)), -1
    )
    losses: np.ndarray = np.log(np.exp(shifted).sum(axis=-1)) - of_label[..., 0]
    return losses


def _check(statistics: np.ndarray, label: np.ndarray) -> None:
    if len(np.unique(label)) < 2:
        raise TrainError("All training clips have the same class; a classifier needs at least two.")
    if (statistics == statistics[0]).all():
        raise TrainError(
            "All training clips have the same features, so nothing can be learned from them. Look at the "
            "videos, and at the weights of the backbone."
        )


def folds_of(label: np.ndarray, group: Sequence[str], num_folds: int = FOLDS) -> np.ndarray:
    """Distributes clips over the folds of a cross-validation, stratified by class, whole groups at a time.

    Args:
      label: int [N].
      group: of each clip.
      num_folds: fewer if no class has as many groups.

    Returns:
      int [N], the fold in which a clip is held out, from 0 without gaps; -1 if in none, as all clips of a
        class in one group.
    """
    groups = np.asarray(group)
    groups_of_class = [len(np.unique(groups[label == index])) for index in np.unique(label)]
    num_folds = min(num_folds, max(groups_of_class))
    fold = np.full(len(label), -1)
    if num_folds < 2:
        return fold
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about small classes
        for number, (trained, held_out) in enumerate(splitter.split(label, label, groups)):
            # A clip whose class is in no other fold says nothing about what was learned.
            known = np.isin(label[held_out], label[trained])
            if len(np.unique(label[trained])) > 1:
                fold[held_out[known]] = number
    used = np.unique(fold[fold >= 0])
    return np.where(fold >= 0, np.searchsorted(used, fold), -1)


class _Fits:
    """Fits of several strengths to one set of statistics.

    Args:
      statistics: float [N, P].
      label: int [N].
      weight: float [N], of the clips.
      num_classes: C.
    """

    def __init__(
        self, statistics: np.ndarray, label: np.ndarray, weight: np.ndarray, num_classes: int
    ) -> None:
        self.label, self.weight, self._num_classes = label, weight, num_classes
        statistics = statistics.astype(np.float64)
        self._mean, deviation = statistics.mean(axis=0), statistics.std(axis=0)
        # A statistic that is (almost) always the same is left out.
        self._scale = np.where(deviation > 1e-6 * deviation.max(), 1 / np.maximum(deviation, 1e-300), 0.0)
        standardized = (statistics - self._mean) * self._scale
        # With fewer clips than statistics the optimum lies in the span of the clips: a smaller problem.
        self._basis = None
        if len(label) < standardized.shape[1]:
            values, vectors = np.linalg.eigh(standardized @ standardized.T)
            large = values > 1e-10 * values.max()
            self._basis = standardized.T @ (vectors[:, large] / np.sqrt(values[large]))
            standardized = standardized @ self._basis
        self._inputs = standardized

    def fit(self, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the kernel [P, C] and the bias [C] for all clips."""
        kernel, bias = self._fit_to(np.arange(len(self.label)), strength)
        if self._basis is not None:
            kernel = self._basis @ kernel
        kernel = kernel * self._scale[:, np.newaxis]
        return kernel, bias - self._mean @ kernel

    def held_out_logits(
        self, strength: float, fold: np.ndarray, clips: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the logits of each clip from the fit to the other folds, float64 [N, C].

        Args:
          strength: inverse strength of the regularization.
          fold: int [N].
          clips: only those of the folds of these clips; zeros elsewhere.
        """
        logits = np.zeros((len(fold), self._num_classes))
        for number in np.unique(fold if clips is None else fold[clips]):
            if number >= 0:
                kernel, bias = self._fit_to(np.flatnonzero(fold != number), strength)
                held_out = fold == number
                logits[held_out] = self._inputs[held_out] @ kernel + bias
        return logits

    def _fit_to(self, clips: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
        regression = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS, tol=1e-6)
        regression.fit(self._inputs[clips], self.label[clips], self.weight[clips])
        weights, intercept = regression.coef_, regression.intercept_
        if len(weights) == 1:  # two classes: scikit-learn gives the logit of the second
            weights, intercept = np.concatenate([-weights, weights]) / 2, np.append(-intercept, intercept) / 2
        kernel = np.zeros((self._inputs.shape[1], self._num_classes))
        bias = np.full(self._num_classes, _ABSENT)
        kernel[:, regression.classes_], bias[regression.classes_] = weights.T, intercept
        return kernel, bias


def _best_strength(fits: _Fits, fold: np.ndarray, clips: np.ndarray) -> tuple[float, np.ndarray]:
    """Chooses a strength by the log loss on held-out clips.

    On few clips the lowest loss is luck: another strength than the default has to be better than it by more
    than two standard errors, paired by clip.

    Returns:
      The strength, and the losses of the held-out clips, float64 [n].
    """

    def tried() -> Iterator[tuple[float, np.ndarray]]:
        lowest = np.inf
        for strength in _STRENGTHS:
            logits = fits.held_out_logits(strength, fold, clips)
            losses = fits.weight[clips] * log_losses(logits[clips], fits.label[clips])
            yield strength, losses
            # The loss has one minimum over the strength.
            if strength >= _DEFAULT_STRENGTH and losses.mean() > 1.05 * lowest:
                return
            lowest = min(lowest, losses.mean())

    found = dict(tried())
    best = min(found, key=lambda strength: found[strength].mean())
    chosen = best if _is_gain(found[_DEFAULT_STRENGTH] - found[best]) else _DEFAULT_STRENGTH
    return chosen, found[chosen]


def _is_gain(of_clips: np.ndarray) -> bool:
    """Whether the mean of differences, paired by clip, is above zero beyond doubt."""
    return bool(of_clips.mean() > _STANDARD_ERRORS * of_clips.std() / np.sqrt(len(of_clips)))
