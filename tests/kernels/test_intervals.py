"""Intervals of differences against SciPy's tests, and how often they hold the truth."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from coreset.kernels.intervals import paired_interval, welch_interval

numbers = st.integers(0, 100)
samples = st.lists(numbers, min_size=2, max_size=8).map(lambda values: np.array(values, np.float64))
pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8).map(
    lambda values: np.array(values, np.float64).T
)
pytestmark = pytest.mark.filterwarnings("ignore:Precision loss")  # SciPy's, of constant samples


def scipy_interval(test: Any, confidence: float = 0.95) -> tuple[float, float]:
    interval: Any = test.confidence_interval(confidence)
    return float(interval.low), float(interval.high)


@given(samples, samples)
def test_welch_is_that_of_scipy(first, second):
    if first.std() + second.std() == 0:
        expected = (first.mean() - second.mean(),) * 2
    else:
        expected = scipy_interval(stats.ttest_ind(first, second, equal_var=False))
    assert welch_interval(first, second) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(pairs)
def test_paired_is_that_of_scipy(both):
    first, second = both
    if np.ptp(first - second) == 0:
        expected = (first[0] - second[0],) * 2
    else:
        expected = scipy_interval(stats.ttest_rel(first, second))
    assert paired_interval(first, second) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_another_confidence_is_another_interval():
    first, second = np.array([1.0, 2.0, 4.0]), np.array([0.5, 2.5, 2.0])
    expected = scipy_interval(stats.ttest_rel(first, second), 0.8)
    assert paired_interval(first, second, 0.8) == pytest.approx(expected)
    assert welch_interval(first, second, 0.8)[0] > welch_interval(first, second)[0]


def test_equal_values_have_an_interval_without_width():
    assert welch_interval(np.full(3, 2.0), np.full(4, 1.0)) == (1, 1)
    assert paired_interval(np.array([1.0, 2.0]), np.array([0.0, 1.0])) == (1, 1)


def test_equal_means_are_told_apart_in_few_of_many_draws():
    rng = np.random.default_rng(0)
    draws = rng.normal(0, [1, 1, 1, 3, 3, 3], (2000, 6))
    for interval in (welch_interval, paired_interval):
        ends = np.array([interval(draw[:3], draw[3:]) for draw in draws])
        missed = ((ends[:, 0] > 0) | (ends[:, 1] < 0)).mean()
        assert missed < 0.07


def test_a_single_value_has_no_interval():
    first, two = np.array([1.0]), np.array([1.0, 2.0])
    with pytest.raises(ValueError, match="at least two values of each, got 1"):
        welch_interval(first, two)
    with pytest.raises(ValueError, match="at least two values of each, got 1"):
        paired_interval(first, first)
    with pytest.raises(ValueError, match="as many values in both, got 1 and 2"):
        paired_interval(first, two)
