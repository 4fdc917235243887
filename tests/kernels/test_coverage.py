import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreset.kernels.coverage import coverage, l2_normalised


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def coverage_by_loops(chosen, chosen_labels, real, real_labels, n_classes):
    """The four definitions, pair by pair."""
    rows = {"r1": [], "d1": [], "r2": [], "d2": []}
    for c in range(n_classes):
        s_rows, v_rows = chosen[chosen_labels == c], real[real_labels == c]
        pairs = [cosine(a, b) for i, a in enumerate(s_rows) for j, b in enumerate(s_rows) if i != j]
        rows["r1"].append(min(max(cosine(s, v) for v in v_rows) for s in s_rows))
        rows["r2"].append(np.mean([max(cosine(v, s) for s in s_rows) for v in v_rows]))
        rows["d1"].append(1 - max(pairs) if pairs else math.nan)
        rows["d2"].append(1 - np.mean(pairs) if pairs else math.nan)
    return rows


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
    for name, values in expected.items():
        got = getattr(measured, name)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, values, atol=2e-6)
        numbers = np.array([v for v in values if not math.isnan(v)])
        mean = numbers.mean() if numbers.size else math.nan
        assert measured.means()[name] == pytest.approx(mean, abs=2e-6, nan_ok=True)
    assert (np.abs(measured.r1) <= 1).all()
    assert (np.abs(measured.r2) <= 1).all()
    assert ((measured.d1 >= 0) & (measured.d1 <= 2) | np.isnan(measured.d1)).all()


def test_a_set_inside_its_reference_is_fully_representative():
    features, labels = sample(0, [20, 20], 8)
    chosen = np.arange(0, 40, 4)
    measured = coverage(features[chosen], labels[chosen], features, labels, 2)
    np.testing.assert_allclose(measured.r1, 1, atol=1e-6)
    assert (measured.r2 < 1).all()


def test_copies_have_no_diversity():
    features = np.tile(np.array([[1.0, 2.0, -3.0]], dtype=np.float32), (6, 1))
    labels = np.zeros(6, dtype=np.int64)
    measured = coverage(features, labels, features, labels, 1)
    np.testing.assert_allclose([measured.d1[0], measured.d2[0]], 0, atol=1e-6)


def test_one_repeated_image_takes_the_nearest_pair_diversity_to_zero():
    axes = np.eye(5, dtype=np.float32)[[0, 1, 2, 3, 3]]
    labels = np.zeros(5, dtype=np.int64)
    measured = coverage(axes, labels, axes, labels, 1)
    assert measured.d1[0] == pytest.approx(0)
    # 1 pair of 10 has cosine 1, the others 0.
    assert measured.d2[0] == pytest.approx(0.9)


def test_single_images_are_left_out_of_the_mean_diversity():
    features = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    labels = np.array([0, 1, 1])
    measured = coverage(features, labels, features, labels, 2)
    assert np.isnan([measured.d1[0], measured.d2[0]]).all()
    assert measured.means() == pytest.approx({"r1": 1, "r2": 1, "d1": 1, "d2": 1})
    alone = coverage(features[:1], labels[:1], features[:1], labels[:1], 1).means()
    assert math.isnan(alone["d1"])


def test_classes_do_not_see_one_another():
    chosen = np.array([[1, 0], [0, 1]], dtype=np.float32)
    crossed = coverage(chosen, np.array([0, 1]), chosen, np.array([1, 0]), 2)
    assert crossed.r1.tolist() == [0, 0]
    assert crossed.r2.tolist() == [0, 0]


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
    for name in ("r1", "d1", "r2", "d2"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(together, name))


def test_normalised_rows_keep_their_direction_and_have_length_one():
    features, _ = sample(0, [30], 7)
    rows = l2_normalised(features * np.float32(1e25))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    assert rows.dtype == np.float32
    assert min(cosine(a, b) for a, b in zip(rows, features, strict=True)) > 1 - 1e-6


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_row_without_direction_is_refused_with_its_position(bad):
    features = np.ones((4, 3), dtype=np.float32)
    features[2] = bad
    with pytest.raises(ValueError, match=r"length (0.0|nan|inf) at position 2 \(1 in all\)"):
        l2_normalised(features)


def test_an_absent_class_is_refused_by_number_and_side():
    features, labels = np.eye(3, dtype=np.float32), np.array([0, 1, 2])
    with pytest.raises(ValueError, match="in the reference, got none of class 1"):
        coverage(features, labels, features[[0, 2]], labels[[0, 2]], 3)
    with pytest.raises(ValueError, match="in the set, got none of class 2"):
        coverage(features[:2], labels[:2], features, labels, 3)


def test_features_of_different_backbones_are_refused():
    labels = np.zeros(2, dtype=np.int64)
    with pytest.raises(ValueError, match="one width, got 3 in the set and 4 in the reference"):
        coverage(np.ones((2, 3)), labels, np.ones((2, 4)), labels, 1)


def test_labels_that_do_not_fit_the_features_are_refused():
    labels = np.zeros(2, dtype=np.int64)
    with pytest.raises(ValueError, match="the set must have one label per feature row, got 3 rows"):
        coverage(np.ones((3, 3)), labels, np.ones((2, 3)), labels, 1)
