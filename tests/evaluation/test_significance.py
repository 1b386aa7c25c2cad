"""Intervals and tests against published figures, other formulas and simulations."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from vidpipe.evaluation.significance import (
    bootstrap_interval,
    holm,
    interval_of_mean,
    mcnemar,
    paired_interval,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"),
    [
        (6, 1, 2 * (1 + 7) / 2**7),
        (1, 6, 0.125),
        (5, 0, 2 / 2**5),
        (1, 9, 2 * (1 + 10) / 2**10),
        (4, 4, 1.0),
        (0, 0, 1.0),
        (30, 15, 2 * sum(math.comb(45, k) for k in range(16)) / 2**45),
    ],
)
def test_mcnemar_is_twice_the_tail_of_the_binomial_distribution(
    only_first: int, only_second: int, expected: float
) -> None:
    assert mcnemar(only_first, only_second) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.04], [0.5, 0.08]),
        ([0.9, 0.6], [1.0, 1.0]),
        ([0.03], [0.03]),
        ([], []),
    ],
)
def test_holm(p_values: list[float], expected: list[float]) -> None:
    assert holm(p_values) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # Newcombe 1998, table II
        ((2, 6, 1, 1), (0.0215, 0.7636)),  # by hand: a negative correlation is not corrected
        ((30, 0, 0, 20), (-0.0404, 0.0404)),
        ((10, 0, 0, 0), (-0.2775, 0.2775)),  # the correlation is undefined
    ],
)
def test_paired_interval(table: tuple[int, int, int, int], expected: tuple[float, float]) -> None:
    assert paired_interval(*table) == pytest.approx(expected, abs=1e-4)
    both, only_first, only_second, neither = table
    low, high = paired_interval(both, only_second, only_first, neither)
    assert (-high, -low) == pytest.approx(expected, abs=1e-4)


def test_the_bootstrap_resamples_pairs() -> None:
    """With many clips it equals the normal approximation for the paired difference."""
    random = np.random.default_rng(0)
    second = random.integers(0, 4, 2000) / 3
    first = np.where(random.random(2000) < 0.1, 1 - second, second)
    difference = first - second
    reach = 1.96 * difference.std(ddof=1) / math.sqrt(2000)
    interval = bootstrap_interval(first, second)
    assert interval == pytest.approx((difference.mean() - reach, difference.mean() + reach), abs=0.05 * reach)
    assert interval == bootstrap_interval(first, second)
    assert bootstrap_interval(second + 0.25, second) == (0.25, 0.25)


def test_the_interval_of_a_mean_by_hand() -> None:
    assert interval_of_mean([7 / 9], [wilson_interval(7, 9)]) == pytest.approx(wilson_interval(7, 9))
    low, high = interval_of_mean([1, 1], [wilson_interval(12, 12)] * 2)
    assert (low, high) == (pytest.approx(1 - (1 - wilson_interval(12, 12)[0]) / 2**0.5), 1)


def test_the_interval_of_a_mean_contains_it_in_95_of_100_samples() -> None:
    """3000 samples of classes of known accuracy."""
    accuracies, clips = np.array([0.95, 0.8, 0.5, 0.99]), np.array([12, 7, 30, 15])
    intervals = [[wilson_interval(k, n) for k in range(n + 1)] for n in clips]
    samples = binom.rvs(clips, accuracies, size=(3000, 4), random_state=1)
    contained = 0
    for sample in samples:
        of_classes = [of_class[k] for k, of_class in zip(sample, intervals, strict=True)]
        low, high = interval_of_mean(sample / clips, of_classes)
        contained += low <= accuracies.mean() <= high
    assert 0.94 < contained / len(samples) < 0.97
