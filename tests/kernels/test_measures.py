import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from coreset.kernels.measures import (
    difference_interval,
    shuffled_within_classes,
    spearman,
    spearman_by_class,
)

# Few distinct values, so that ties are everywhere; both zeros; the ends of the number line.
VALUES = st.sampled_from([-math.inf, -3.5, -1.0, -0.0, 0.0, 1e-30, 0.25, 7.0, math.inf])
close_to = partial(pytest.approx, abs=1e-12, nan_ok=True)
numbers = st.integers(0, 100)


@st.composite
def two_scorings(draw, n_classes=3):
    n = draw(st.integers(2, 40))
    first, second = (draw(arrays(np.float32, n, elements=VALUES)) for _ in range(2))
    return first, second, draw(arrays(np.int64, n, elements=st.integers(0, n_classes - 1)))


def by_definition(first, second):
    """Pearson's correlation of mean ranks; NaN for a constant scoring or a single number."""
    ranks = stats.rankdata(first), stats.rankdata(second)
    if len(first) < 2 or np.ptp(ranks[0]) == 0 or np.ptp(ranks[1]) == 0:
        return math.nan
    return np.corrcoef(*ranks)[0, 1]


@given(two_scorings(), st.integers(0, 5))
def test_scorings_agree_by_mean_ranks_over_all_and_within_each_class(scorings, seed):
    first, second, labels = scorings
    assert spearman(first, second) == close_to(by_definition(first, second))
    by_class = spearman_by_class(first, second, labels, 4)  # no sample is of class 3
    shuffled = shuffled_within_classes(first, labels, seed)
    for label in range(4):
        own = labels == label
        assert by_class[label] == close_to(by_definition(first[own], second[own]))
        assert sorted(shuffled[own]) == sorted(first[own])


def test_shuffling_leaves_no_order_and_depends_on_the_seed_alone():
    labels = np.arange(20_000) % 2
    values = np.arange(20_000, dtype=np.float32)
    first, again, second = (shuffled_within_classes(values, labels, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    # Four standard errors of a correlation of 10,000 unrelated pairs.
    assert np.abs(spearman_by_class(values, first, labels, 2)).max() < 0.04
    assert np.abs(spearman_by_class(first, second, labels, 2)).max() < 0.04


def scipy_interval(test: Any, confidence: float) -> tuple[float, float]:
    interval: Any = test.confidence_interval(confidence)
    return float(interval.low), float(interval.high)


@pytest.mark.filterwarnings("ignore:Precision loss")  # SciPy's, of constant samples
@given(
    st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8),
    st.lists(numbers, min_size=2, max_size=8),
    st.sampled_from([0.8, 0.95]),
)
def test_intervals_are_those_of_scipy(pairs, more, confidence):
    first, second = np.array(pairs, np.float64).T
    third = np.array(more, np.float64)
    welch, paired = (first[0] - third[0],) * 2, (first[0] - second[0],) * 2
    if first.std() + third.std() > 0:
        welch = scipy_interval(stats.ttest_ind(first, third, equal_var=False), confidence)
    if np.ptp(first - second) > 0:
        paired = scipy_interval(stats.ttest_rel(first, second), confidence)
    close = partial(pytest.approx, rel=1e-6, abs=1e-6)
    assert difference_interval(first, third, confidence, paired=False) == close(welch)
    assert difference_interval(first, second, confidence, paired=True) == close(paired)
