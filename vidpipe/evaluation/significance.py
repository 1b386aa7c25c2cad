"""Confidence intervals of accuracies, and tests of the difference between two models on the same clips."""

from collections.abc import Sequence
from math import sqrt

import numpy as np
from scipy.stats import binomtest, bootstrap

Interval = tuple[float, float]
BOOTSTRAP_SAMPLES = 9999


def wilson_interval(num_correct: int, num_clips: int) -> Interval:
    """Computes the 95 % interval of a proportion (Wilson, "Probable Inference", JASA 1927).

    >>> low, high = wilson_interval(3, 4)
    >>> round(low, 3), round(high, 3)
    (0.301, 0.954)
    """
    found = binomtest(num_correct, num_clips).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def interval_of_mean(proportions: Sequence[float], intervals: Sequence[Sequence[float]]) -> Interval:
    """Computes the 95 % interval of the mean of independent proportions.

    The distances from each proportion to its bounds are added in squares (Zou, Huang and Zhang, "A note on
    confidence interval estimation for a linear function of binomial proportions", CSDA 2009). A bootstrap
    would give an interval of width 0 where every proportion is 1.

    Args:
      proportions: K of them, at least one.
      intervals: their own 95 % intervals.
    """
    estimates = np.array(proportions)
    distances = np.array(intervals).T - estimates
    below, above = np.sqrt(np.square(distances).sum(axis=1)) / len(estimates)
    return float(estimates.mean() - below), float(estimates.mean() + above)


def mcnemar(only_first: int, only_second: int) -> float:
    """Computes the exact two-sided p-value of McNemar's test, from the binomial distribution.

    If both models were equally good, each clip that exactly one of them classifies correctly would belong to
    either with equal probability. Dietterich ("Approximate Statistical Tests for Comparing Supervised
    Classification Learning Algorithms", Neural Computation 1998) recommends it for models that are trained
    once. It applies to the trained models, and does not account for the variation between seeds.

    Args:
      only_first: clips that only the first model classifies correctly.
      only_second: clips that only the second does.
    """
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for multiple comparisons, which limits the family-wise error rate.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 1979.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(scaled).clip(max=1)
    return corrected.tolist()


def paired_interval(both: int, only_first: int, only_second: int, neither: int) -> Interval:
    """Computes the 95 % interval of the difference of two accuracies on the same clips, first minus second.

    Newcombe, "Improved Confidence Intervals for the Difference between Binomial Proportions Based on Paired
    Data", Statistics in Medicine 1998, method 10: both Wilson intervals, combined by their correlation.

    Args:
      both: clips that both models classify correctly.
      only_first: clips that only the first does.
      only_second: clips that only the second does.
      neither: clips that neither does.
    """
    num_clips = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    below_first, above_first = _wilson_distances(first, num_clips)
    below_second, above_second = _wilson_distances(second, num_clips)
    spread = first * (num_clips - first) * second * (num_clips - second)
    product = both * neither - only_first * only_second
    # A positive correlation is corrected for continuity.
    corrected = max(product - num_clips / 2, 0) if product > 0 else product
    phi = corrected / sqrt(spread) if spread else 0.0
    difference = (only_first - only_second) / num_clips
    below = below_first**2 - 2 * phi * below_first * above_second + above_second**2
    above = above_first**2 - 2 * phi * above_first * below_second + below_second**2
    return difference - sqrt(max(below, 0)), difference + sqrt(max(above, 0))


def bootstrap_interval(first: np.ndarray, second: np.ndarray) -> Interval:
    """Computes the 95 % interval of the mean of `first - second`: percentiles of resampled clips.

    It accounts for the choice of clips, which it assumes to be independent. It does not account for the
    variation between seeds: the runs are fixed.

    Args:
      first: float [N], the fraction of a method's runs that classify each clip correctly.
      second: the same of another method, on the same clips.
    """
    found = bootstrap(
        (first, second),
        lambda one, other, axis: (one - other).mean(axis=axis),
        n_resamples=BOOTSTRAP_SAMPLES,
        paired=True,
        method="percentile",
        batch=100,
        random_state=0,
    ).confidence_interval
    return float(found.low), float(found.high)


def _wilson_distances(num_correct: int, num_clips: int) -> Interval:
    """Computes how far the Wilson interval reaches below and above the accuracy."""
    low, high = wilson_interval(num_correct, num_clips)
    return num_correct / num_clips - low, high - num_correct / num_clips
