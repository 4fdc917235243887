import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata

from coreset.kernels.rank_correlation import (
    overlap,
    shuffled_within_classes,
    spearman,
    spearman_by_class,
)

# Few distinct values, so that ties are everywhere; both zeros; the ends of the number line.
VALUES = st.sampled_from([-math.inf, -3.5, -1.0, -0.0, 0.0, 1e-30, 0.25, 7.0, math.inf])


close_to = partial(pytest.approx, abs=1e-12, nan_ok=True)


@st.composite
def two_scorings(draw, n_classes=3):
    n = draw(st.integers(2, 40))
    first, second = (draw(arrays(np.float32, n, elements=VALUES)) for _ in range(2))
    return first, second, draw(arrays(np.int64, n, elements=st.integers(0, n_classes - 1)))


def by_definition(first, second):
    """Pearson's correlation of mean ranks; NaN for a constant scoring or a single number."""
    if len(first) < 2 or np.ptp(rankdata(first)) == 0 or np.ptp(rankdata(second)) == 0:
        return math.nan
    return np.corrcoef(rankdata(first), rankdata(second))[0, 1]


@given(two_scorings())
def test_rank_correlation_is_that_of_mean_ranks_over_all_and_within_each_class(scorings):
    first, second, labels = scorings
    assert spearman(first, second) == close_to(by_definition(first, second))
    by_class = spearman_by_class(first, second, labels, 4)  # no sample is of class 3
    for label in range(4):
        expected = by_definition(first[labels == label], second[labels == label])
        assert by_class[label] == close_to(expected)


def test_classes_of_different_difficulty_agree_over_all_and_not_within():
    labels = np.repeat([0, 1], 4)
    first = np.array([1.0, 2, 3, 4, 11, 12, 13, 14])
    second = np.array([4.0, 3, 2, 1, 14, 13, 12, 11])
    assert spearman(first, second) > 0.5
    np.testing.assert_allclose(spearman_by_class(first, second, labels, 2), [-1, -1])


def test_a_million_ranks_lose_nothing_to_rounding():
    values = np.arange(1_000_000, dtype=np.float64)
    assert spearman(values, values**3) == pytest.approx(1, abs=1e-12)
    assert spearman(values, -values) == pytest.approx(-1, abs=1e-12)


def test_a_label_outside_the_classes_is_refused():
    with pytest.raises(ValueError, match=r"labels must be in 0 .. 1, got 2 at position 1"):
        spearman_by_class(np.zeros(2), np.zeros(2), np.array([0, 2]), 2)


def test_the_overlap_is_the_share_of_the_first_ids():
    assert overlap(np.array([1, 2, 3, 4]), np.array([4, 9, 2])) == 0.5
    assert overlap(np.array([4, 9, 2]), np.array([1, 2, 3, 4])) == pytest.approx(2 / 3)
    assert overlap(np.array([1]), np.empty(0, np.int64)) == 0
    with pytest.raises(ValueError, match="ids must not be empty"):
        overlap(np.empty(0, int), np.zeros(1, int))


@given(two_scorings(), st.integers(0, 5))
def test_shuffling_keeps_the_values_of_each_class(scorings, seed):
    values, _, labels = scorings
    shuffled = shuffled_within_classes(values, labels, seed)
    for label in set(labels.tolist()):
        assert sorted(shuffled[labels == label]) == sorted(values[labels == label])


def test_shuffling_leaves_no_order_and_depends_on_the_seed_alone():
    labels = np.arange(20_000) % 2
    values = np.arange(20_000, dtype=np.float32)
    first, again, second = (shuffled_within_classes(values, labels, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    # Four standard errors of a correlation of 10,000 unrelated pairs.
    assert np.abs(spearman_by_class(values, first, labels, 2)).max() < 0.04
    assert np.abs(spearman_by_class(first, second, labels, 2)).max() < 0.04
