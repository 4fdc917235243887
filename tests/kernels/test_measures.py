import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from coreset.kernels.measures import (
    coverage,
    difference_interval,
    shuffled_within_classes,
    spearman,
    spearman_by_class,
)
from coreset.kernels.neighbours import nearest, search_device

# Few distinct values, so that ties are everywhere; both zeros; the ends of the number line.
VALUES = st.sampled_from([-math.inf, -3.5, -1.0, -0.0, 0.0, 1e-30, 0.25, 7.0, math.inf])
NAMES = ("r1", "d1", "r2", "d2")
close_to = partial(pytest.approx, abs=1e-12, nan_ok=True)
numbers = st.integers(0, 100)


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def coverage_by_loops(chosen, chosen_labels, real, real_labels, n_classes):
    """The four definitions, pair by pair, and their means over the classes that have them."""
    rows = {name: [] for name in NAMES}
    for c in range(n_classes):
        s_rows, v_rows = chosen[chosen_labels == c], real[real_labels == c]
        pairs = [cosine(a, b) for i, a in enumerate(s_rows) for j, b in enumerate(s_rows) if i != j]
        rows["r1"].append(min(max(cosine(s, v) for v in v_rows) for s in s_rows))
        rows["r2"].append(np.mean([max(cosine(v, s) for s in s_rows) for v in v_rows]))
        if pairs:
            rows["d1"].append(1 - max(pairs))
            rows["d2"].append(1 - np.mean(pairs))
    return {name: np.mean(values) if values else math.nan for name, values in rows.items()}


def sample(seed, sizes, width, dtype=np.float32):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return (generator.normal(size=(labels.size, width)) * 5).astype(dtype), labels


@settings(max_examples=40)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=1, max_size=4),
    width=st.integers(1, 20),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    seed=st.integers(0, 2**32),
)
def test_coverage_equals_double_loops_and_keeps_its_bounds(sizes, width, dtype, seed):
    chosen = sample(seed, [m for m, _ in sizes], width, dtype)
    real = sample(seed + 1, [n for _, n in sizes], width, dtype)
    measured = coverage(*chosen, *real, len(sizes))
    expected = coverage_by_loops(*chosen, *real, len(sizes))
    assert measured == pytest.approx(expected, abs=2e-6, nan_ok=True)
    assert max(abs(measured["r1"]), abs(measured["r2"])) <= 1
    assert 0 <= measured["d1"] <= 2 or math.isnan(measured["d1"])


def test_a_repeated_image_takes_the_nearest_pair_diversity_to_zero():
    axes = np.eye(5, dtype=np.float32)[[0, 1, 2, 3, 3]] * np.float32(1e25)
    labels = np.zeros(5, dtype=np.int64)
    # 1 pair of 10 has cosine 1, the others 0.
    assert coverage(axes, labels, axes, labels, 1) == pytest.approx(
        {"r1": 1, "d1": 0, "r2": 1, "d2": 0.9}
    )


def test_the_number_of_threads_does_not_show():
    import faiss

    chosen, real = sample(0, [50] * 3, 512), sample(1, [700] * 3, 512)
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(1)
        alone = coverage(*chosen, *real, 3)
        faiss.omp_set_num_threads(4)
        together = coverage(*chosen, *real, 3)
    finally:
        faiss.omp_set_num_threads(before)
    assert alone == together


def test_a_gpu_searches_with_the_same_metric_and_gives_the_same_measures(monkeypatch):
    import faiss

    chosen, real, asked = sample(0, [5] * 3, 64), sample(1, [70] * 3, 64), []
    expected = coverage(*chosen, *real, 3)
    assert coverage(*chosen, *real, 3, device="cuda") == expected, "FAISS sees no GPU here"

    def knn_gpu(memory, queries, base, k, *, metric, device):
        asked.append((memory, device))
        return faiss.knn(queries, base, k, metric=metric)

    monkeypatch.setattr("coreset.kernels.neighbours._gpu_memory", lambda: "memory")
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu)
    assert (search_device("cuda:1"), search_device("cpu")) == ("cuda:1", "cpu")
    assert coverage(*chosen, *real, 3, device="cuda:1") == expected
    assert asked == [("memory", 1)] * 9
    queries, base = chosen[0], real[0]
    sums = queries.astype(np.float64) @ base.T.astype(np.float64)
    np.testing.assert_array_equal(nearest(queries, base, 4), np.argsort(-sums)[:, :4])


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_row_without_direction_is_refused_with_its_position(bad):
    features, labels = np.ones((4, 3), dtype=np.float32), np.zeros(4, np.int64)
    features[2] = bad
    with pytest.raises(ValueError, match=r"length (0.0|nan|inf) at position 2 \(1 in all\)"):
        coverage(features, labels, features, labels, 1)


def test_an_absent_class_is_refused_by_number_and_side():
    features, labels = np.eye(3, dtype=np.float32), np.array([0, 1, 2])
    with pytest.raises(ValueError, match="in the reference, got none of class 1"):
        coverage(features, labels, features[[0, 2]], labels[[0, 2]], 3)
    with pytest.raises(ValueError, match="in the set, got none of class 2"):
        coverage(features[:2], labels[:2], features, labels, 3)


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
