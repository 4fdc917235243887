"""Agreement of scores, against SciPy, scikit-learn and counting by hand."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata, spearmanr

from coreset.kernels.rank_correlation import (
    overlap,
    ranks,
    roc_area,
    shuffled_within_classes,
    spearman,
    spearman_by_class,
)

# Few distinct values, so that ties are everywhere; both zeros; the ends of the number line.
VALUES = st.sampled_from([-math.inf, -3.5, -1.0, -0.0, 0.0, 1e-30, 0.25, 7.0, math.inf])


@st.composite
def two_scorings(draw, n_classes=3):
    n = draw(st.integers(2, 40))
    one, other = (draw(arrays(np.float32, n, elements=VALUES)) for _ in range(2))
    return one, other, draw(arrays(np.int64, n, elements=st.integers(0, n_classes - 1)))


def scipy_spearman(one, other):
    """NaN instead of a warning for a scoring that is constant or a single number."""
    if len(one) < 2:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant input
        ranked: Any = spearmanr(rankdata(one), rankdata(other))
        return float(ranked.statistic)


@given(two_scorings())
def test_ranks_are_those_of_scipy_over_all_and_within_classes(scorings):
    values, _, labels = scorings
    np.testing.assert_array_equal(ranks(values), rankdata(values))
    within = ranks(values, labels)
    for label in set(labels.tolist()):
        members = labels == label
        np.testing.assert_array_equal(within[members], rankdata(values[members]))


def test_there_are_no_ranks_of_nothing():
    assert ranks(np.empty(0, np.float32)).tolist() == []


@given(two_scorings())
def test_the_rank_correlation_is_that_of_scipy(scorings):
    one, other, _ = scorings
    expected = scipy_spearman(one, other)
    assert spearman(one, other) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@given(two_scorings())
def test_each_class_has_the_rank_correlation_that_it_has_alone(scorings):
    one, other, labels = scorings
    by_class = spearman_by_class(one, other, labels, 4)  # nothing is of class 3
    for label in range(4):
        expected = scipy_spearman(one[labels == label], other[labels == label])
        assert by_class[label] == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_classes_of_different_difficulty_agree_over_all_and_not_within():
    labels = np.repeat([0, 1], 4)
    one = np.array([1.0, 2, 3, 4, 11, 12, 13, 14])
    other = np.array([4.0, 3, 2, 1, 14, 13, 12, 11])
    assert spearman(one, other) > 0.5
    np.testing.assert_allclose(spearman_by_class(one, other, labels, 2), [-1, -1])


def test_a_million_ranks_lose_nothing_to_rounding():
    values = np.arange(1_000_000, dtype=np.float64)
    assert spearman(values, values**3) == 1
    assert spearman(values, -values) == -1


@given(two_scorings(n_classes=2))
def test_the_area_under_the_roc_is_that_of_scikit_learn(scorings):
    from sklearn.metrics import roc_auc_score

    scores, _, labels = scorings
    finite, marked = np.clip(scores, -1e6, 1e6), labels == 1  # scikit-learn takes no infinity
    if marked.all() or not marked.any():
        with pytest.raises(ValueError, match="marked must hold some samples and not all"):
            roc_area(scores, marked)
    else:
        assert roc_area(scores, marked) == pytest.approx(roc_auc_score(marked, finite), abs=1e-12)


def test_the_overlap_is_the_share_of_the_first_ids():
    assert overlap(np.array([1, 2, 3, 4]), np.array([4, 9, 2])) == 0.5
    assert overlap(np.array([4, 9, 2]), np.array([1, 2, 3, 4])) == pytest.approx(2 / 3)
    assert overlap(np.array([1]), np.empty(0, np.int64)) == 0


@given(two_scorings(), st.integers(0, 5))
def test_dealing_anew_keeps_the_values_of_each_class(scorings, seed):
    values, _, labels = scorings
    dealt = shuffled_within_classes(values, labels, seed)
    for label in set(labels.tolist()):
        assert sorted(dealt[labels == label]) == sorted(values[labels == label])


def test_dealing_anew_leaves_no_order_and_depends_on_the_seed_alone():
    labels = np.arange(20_000) % 2
    values = np.arange(20_000, dtype=np.float32)
    deals = [shuffled_within_classes(values, labels, seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(deals[0], deals[1])
    # Four standard errors of a correlation of 10,000 unrelated pairs.
    assert np.abs(spearman_by_class(values, deals[0], labels, 2)).max() < 0.04
    assert np.abs(spearman_by_class(deals[0], deals[2], labels, 2)).max() < 0.04


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ranks(np.array([0, math.nan])), "values must be numbers, got nan at position 1"),
        (lambda: ranks(np.zeros(2), np.zeros(3, int)), "labels must be as many as values, got 3"),
        (lambda: spearman(np.zeros(2), np.zeros(3)), "other must be as many as one, got 3 and 2"),
        (
            lambda: spearman_by_class(np.zeros(2), np.zeros(2), np.array([0, 2]), 2),
            "labels must be in 0 .. 1, got 0 to 2; check the class list",
        ),
        (
            lambda: spearman_by_class(np.zeros(2), np.zeros(2), np.array([-1, 0]), 2),
            "labels must be in 0 .. 1, got -1 to 0",
        ),
        (
            lambda: roc_area(np.zeros(2), np.zeros(3, bool)),
            "marked must be as many as scores, got 3 and 2",
        ),
        (lambda: overlap(np.empty(0, int), np.zeros(1, int)), "ids must not be empty"),
    ],
)
def test_what_has_no_answer_is_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
