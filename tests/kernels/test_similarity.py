"""Coverage beside its definitions pair by pair, and beside the search by FAISS."""

import math
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from coreset.kernels import similarity
from coreset.kernels.neighbours import nearest, search_device, unit_rows
from coreset.kernels.similarity import (
    coverage_by_class,
    coverage_curve,
    pooled_coverage,
)

NAMES = ("r1", "d1", "r2", "d2")
SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=1, max_size=4)
DTYPES = st.sampled_from([np.float16, np.float32, np.float64])
seeds, widths = st.integers(0, 2**32), st.integers(1, 20)


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def four_numbers(s_rows, v_rows):
    """The definitions, pair by pair."""
    pairs = [cosine(a, b) for i, a in enumerate(s_rows) for j, b in enumerate(s_rows) if i != j]
    return {
        "r1": min(max(cosine(s, v) for v in v_rows) for s in s_rows),
        "d1": 1 - max(pairs) if pairs else math.nan,
        "r2": np.mean([max(cosine(v, s) for s in s_rows) for v in v_rows]),
        "d2": 1 - np.mean(pairs) if pairs else math.nan,
    }


def by_loops(chosen, chosen_labels, real, real_labels, n_classes):
    classes = [
        four_numbers(chosen[chosen_labels == c], real[real_labels == c]) for c in range(n_classes)
    ]
    return {name: np.array([numbers[name] for numbers in classes]) for name in NAMES}


def sample(seed, sizes, width, dtype=np.float32):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return (generator.normal(size=(labels.size, width)) * 5).astype(dtype), labels


def two_samples(seed, sizes, width, dtype=np.float32):
    chosen = sample(seed, [m for m, _ in sizes], width, dtype)
    return *chosen, *sample(seed + 1, [n for _, n in sizes], width, dtype)


@contextmanager
def always_searching(rows_at_once=7):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "_LARGEST_PRODUCT", 0)
        patch.setattr(similarity, "_ROWS_AT_ONCE", rows_at_once)
        yield


@settings(max_examples=40)
@given(sizes=SIZES, width=widths, dtype=DTYPES, seed=seeds)
def test_coverage_equals_double_loops_and_keeps_its_bounds(sizes, width, dtype, seed):
    columns = two_samples(seed, sizes, width, dtype)
    measured, expected = coverage_by_class(*columns, len(sizes)), by_loops(*columns, len(sizes))
    for name in NAMES:
        assert measured[name].shape == (len(sizes),)
        assert measured[name].dtype == np.float64
        np.testing.assert_allclose(measured[name], expected[name], atol=2e-6)
    assert max(np.abs(measured["r1"]).max(), np.abs(measured["r2"]).max()) <= 1
    for c, (n_chosen, _) in enumerate(sizes):
        assert math.isnan(measured["d1"][c]) == math.isnan(measured["d2"][c]) == (n_chosen == 1)
        assert n_chosen == 1 or 0 <= measured["d1"][c] <= 2


@settings(max_examples=20)
@given(sizes=SIZES, width=widths, seed=seeds)
def test_pooled_coverage_is_that_of_one_class(sizes, width, seed):
    chosen, _, real, _ = two_samples(seed, sizes, width)
    expected = pytest.approx(four_numbers(chosen, real), abs=2e-6, nan_ok=True)
    assert pooled_coverage(chosen, real) == expected
    with always_searching():
        assert pooled_coverage(chosen, real) == expected


def test_a_search_and_tiled_and_whole_products_agree(monkeypatch):
    columns = two_samples(0, [(40, 70), (150, 37), (1, 5), (65, 64)], 300)
    expected = coverage_by_class(*columns, 4)
    monkeypatch.setattr(similarity, "_SMALL_PRODUCT", 0)
    whole = coverage_by_class(*columns, 4)
    monkeypatch.setattr(similarity, "_SMALL_PRODUCT", 1 << 28)
    monkeypatch.setattr(similarity, "_ONE_THREAD", 1)
    single = coverage_by_class(*columns, 4)
    with always_searching():
        searched = coverage_by_class(*columns, 4)
    for name in NAMES:
        for other in (whole, single, searched):
            np.testing.assert_allclose(other[name], expected[name], rtol=0, atol=1e-9)


def test_cosines_are_those_of_float64_in_blocks(monkeypatch):
    monkeypatch.setattr(similarity, "_ROWS_AT_ONCE", 7)
    chosen, _, real, _ = two_samples(3, [(20, 45)], 600)
    s, v = (unit_rows(rows).astype(np.float64) for rows in (chosen, real))
    cosines = s @ v.T
    measured = pooled_coverage(chosen, real)
    assert measured["r1"] == pytest.approx(cosines.max(axis=1).min(), abs=1e-13)
    assert measured["r2"] == pytest.approx(cosines.max(axis=0).mean(), abs=1e-13)


@given(seed=seeds, width=st.integers(2, 20), n=st.integers(2, 20))
def test_a_set_equal_to_its_reference_covers_it_and_a_copy_has_no_diversity(seed, width, n):
    rows, labels = sample(seed, [n, n], width)
    measured = coverage_by_class(rows, labels, rows[::-1], labels[::-1], 2)
    np.testing.assert_allclose(measured["r1"], 1, atol=1e-6)
    np.testing.assert_allclose(measured["r2"], 1, atol=1e-6)
    twice = np.append(rows, rows[labels == 1][:1], axis=0), np.append(labels, 1)
    copied = coverage_by_class(*twice, rows, labels, 2)["d1"]
    assert copied[0] == measured["d1"][0]
    assert copied[1] == pytest.approx(0, abs=1e-6)


@settings(max_examples=40)
@given(sizes=SIZES, width=widths, seed=seeds, steps=st.sets(st.integers(1, 12), min_size=1))
def test_the_curve_is_r2_of_the_first_images_of_every_class(sizes, width, seed, steps):
    chosen, labels, real, real_labels = two_samples(seed, sizes, width)
    ranks = np.random.default_rng(seed).permutation(labels.size) * 3  # their order alone counts
    expected = []
    for step in sorted(steps):
        first = [
            position
            for c in range(len(sizes))
            for position in sorted(np.flatnonzero(labels == c), key=ranks.__getitem__)[:step]
        ]
        of_first = by_loops(chosen[first], labels[first], real, real_labels, len(sizes))
        expected.append(of_first["r2"].mean())
    columns, counts = (chosen, labels, ranks, real, real_labels), sorted(steps)
    curve = coverage_curve(*columns, n_classes=len(sizes), steps=counts)
    np.testing.assert_allclose(curve, expected, atol=2e-6)
    assert (np.diff(curve) >= 0).all()
    with always_searching():
        searched = coverage_curve(*columns, n_classes=len(sizes), steps=counts)
    np.testing.assert_allclose(searched, curve, atol=1e-6)


@pytest.mark.parametrize("steps", [[], [0, 1], [2, 1], [1, 1]])
def test_steps_that_do_not_ascend_from_one_are_refused(steps):
    rows, labels = sample(0, [3], 4)
    with pytest.raises(ValueError, match="steps must ascend from 1"):
        coverage_curve(rows, labels, np.arange(3), rows, labels, n_classes=1, steps=steps)


def test_pooled_coverage_of_nothing_is_refused():
    rows = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match="must have samples, got 3 and 0"):
        pooled_coverage(rows, rows[:0])


def test_a_repeated_image_takes_the_nearest_pair_diversity_to_zero():
    axes = np.eye(5, dtype=np.float32)[[0, 1, 2, 3, 3]] * np.float32(1e25)
    labels = np.zeros(5, dtype=np.int64)
    # 1 pair of 10 has cosine 1, the others 0.
    measured = coverage_by_class(axes, labels, axes, labels, 1)
    expected = {"r1": 1, "d1": 0, "r2": 1, "d2": 0.9}
    assert {name: values.item() for name, values in measured.items()} == pytest.approx(expected)


def test_the_number_of_threads_does_not_show(monkeypatch):
    chosen, real, searches = sample(0, [50] * 3, 512), sample(1, [700] * 3, 512), []
    expected = coverage_by_class(*chosen, *real, 3)
    monkeypatch.setattr(similarity, "_SMALL_PRODUCT", 0)
    for n_threads in (1, 4):
        with threadpool_limits(n_threads), always_searching(rows_at_once=300):
            searches.append(coverage_by_class(*chosen, *real, 3))
    np.testing.assert_equal(searches, [expected] * 2)


def test_a_gpu_searches_with_the_same_metric_and_gives_the_same_measures(monkeypatch):
    import faiss

    chosen, real, asked = sample(0, [5] * 3, 64), sample(1, [70] * 3, 64), []
    expected = coverage_by_class(*chosen, *real, 3)
    unseen = coverage_by_class(*chosen, *real, 3, device="cuda")
    np.testing.assert_equal(unseen, expected, "FAISS sees no GPU here")

    def knn_gpu(memory, queries, base, k, *, metric, device):
        asked.append((memory, device))
        return faiss.knn(queries, base, k, metric=metric)

    monkeypatch.setattr("coreset.kernels.neighbours._gpu_memory", lambda: "memory")
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu)
    assert (search_device("cuda:1"), search_device("cpu")) == ("cuda:1", "cpu")
    np.testing.assert_equal(coverage_by_class(*chosen, *real, 3, device="cuda:1"), expected)
    assert not asked, "classes this small are one product"
    with always_searching():
        measured = coverage_by_class(*chosen, *real, 3, device="cuda:1")
    for name in NAMES:
        np.testing.assert_allclose(measured[name], expected[name], rtol=0, atol=1e-9)
    assert asked == [("memory", 1)] * 9
    queries, base = chosen[0], real[0]
    sums = queries.astype(np.float64) @ base.T.astype(np.float64)
    np.testing.assert_array_equal(nearest(queries, base, 4), np.argsort(-sums)[:, :4])


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, 1e200])
def test_a_row_without_direction_is_refused_with_its_position(bad):
    dtype = np.float64 if bad == 1e200 else np.float32  # its square is infinite
    features, labels = np.ones((4, 3), dtype), np.zeros(4, np.int64)
    features[2] = bad
    with pytest.raises(ValueError, match=r"length (0.0|nan|inf) at position 2 \(1 in all\)"):
        coverage_by_class(features, labels, features, labels, 1)


def test_an_absent_class_is_refused_by_number_and_side():
    features, labels = np.eye(3, dtype=np.float32), np.array([0, 1, 2])
    with pytest.raises(ValueError, match="in the reference, got none of class 1"):
        coverage_by_class(features, labels, features[[0, 2]], labels[[0, 2]], 3)
    with pytest.raises(ValueError, match="in the set, got none of class 2"):
        coverage_by_class(features[:2], labels[:2], features, labels, 3)
