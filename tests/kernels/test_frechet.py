"""Distances of sets of features, beside SciPy's matrix root, closed forms and torch-fidelity."""

import math
from functools import partial, reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from coreset.kernels import frechet
from coreset.kernels.frechet import Moments, frechet_distance, frechet_of_few, kernel_distance

WIDTH = 24
close_to = partial(pytest.approx, rel=1e-6)


def sample(n, seed, *, rank=WIDTH, dtype: Any = np.float64):
    """Features of a Gaussian whose covariance has this rank and is the same for no two seeds."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, WIDTH)) + rng.normal(size=WIDTH)
    return rows.astype(dtype)


def distance(a, b):
    return frechet_distance(Moments.of(a), Moments.of(b))


def distance_by_sqrtm(a, b):
    apart = a.mean(axis=0) - b.mean(axis=0)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.trace(sqrtm(first @ second)).real
    return apart @ apart + np.trace(first) + np.trace(second) - 2 * root


def gaussian(mean, covariance, n=101):
    return Moments(n=n, mean=np.array(mean), scatter=np.array(covariance) * (n - 1))


def same_moments(found, expected):
    """Compare to 1e-12 of the largest value: what cancels within an entry has no more digits."""
    assert found.n == expected.n
    for values, others in ((found.mean, expected.mean), (found.scatter, expected.scatter)):
        np.testing.assert_allclose(values, others, rtol=0, atol=1e-12 * np.abs(others).max())


@given(st.integers(WIDTH + 2, 90), st.integers(WIDTH + 2, 90), st.integers(0, 2**32))
@settings(max_examples=30)
def test_the_distance_is_that_of_the_matrix_root(m, n, seed):
    a, b = sample(m, seed), sample(n, seed + 1)
    assert distance(a, b) == close_to(distance_by_sqrtm(a, b))


@pytest.mark.parametrize(
    ("m", "n", "ranks"),
    [(10, 60, (24, 24)), (60, 10, (24, 24)), (10, 12, (24, 24)), (60, 70, (5, 24)),
     (60, 70, (24, 5)), (60, 70, (5, 9)), (2, 2, (24, 24)), (60, 60, (1, 1))],
)  # fmt: skip
def test_covariances_may_be_singular(m, n, ranks):
    a, b = (sample(k, seed, rank=r) for seed, (k, r) in enumerate(zip((m, n), ranks, strict=True)))
    assert distance(a, b) == close_to(distance_by_sqrtm(a, b))


def test_gaussians_with_diagonal_covariances_have_a_closed_form():
    a = gaussian([1.0, 2.0, 3.0], np.diag([4.0, 9.0, 0.0]))
    b = gaussian([1.0, 0.0, 6.0], np.diag([1.0, 25.0, 49.0]), n=7)
    expected = (4 + 9) + (2 - 1) ** 2 + (3 - 5) ** 2 + (0 - 7) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_constant_features_are_apart_by_their_means():
    a, b = np.full((5, 3), 2.0), np.full((4, 3), 5.0)
    assert distance(a, b) == pytest.approx(27)
    assert frechet_of_few(a, b) == pytest.approx(27)


@pytest.mark.parametrize(("m", "n"), [(40, 300), (15, 40), (12, 9)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_torch_fidelity_has_the_same_distance(m, n, dtype):
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("torch_fidelity.metric_fid")
    a, b = sample(m, 3, dtype=dtype), sample(n, 4, dtype=dtype)
    # Of float64: it takes the mean of float32 in float32.
    statistics = (
        peer.fid_features_to_statistics(torch.from_numpy(each.astype(float))) for each in (a, b)
    )
    expected = peer.fid_statistics_to_metric(*statistics, verbose=False)[peer.KEY_METRIC_FID]
    assert distance(a, b) == close_to(expected)
    assert frechet_of_few(a, b) == close_to(expected)


@given(
    n=st.integers(1, 60),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_any_blocks_merged_in_any_order_have_the_moments_of_the_whole(n, cuts, seed, data):
    rows = sample(n, seed)
    parts = np.split(rows, sorted(min(cut, n) for cut in cuts))
    blocks = Moments.of(parts[0])
    for part in parts[1:]:
        blocks.add(part)

    def merged(first, second):
        first.merge(second)
        return first

    merges = reduce(merged, map(Moments.of, data.draw(st.permutations(parts))))
    expected = Moments(n=n, mean=rows.mean(axis=0), scatter=np.zeros((WIDTH, WIDTH)))
    for row in rows:
        expected.scatter += np.outer(row - expected.mean, row - expected.mean)
    same_moments(blocks, expected)
    same_moments(merges, expected)


def test_one_array_is_taken_in_blocks(monkeypatch):
    rows = sample(50, 8)
    whole = Moments.of(rows)
    monkeypatch.setattr(frechet, "_BLOCK_ROWS", 7)
    same_moments(Moments.of(rows), whole)
    np.testing.assert_allclose(whole.scatter / 49, np.cov(rows, rowvar=False), rtol=1e-12)


def test_a_large_offset_of_all_features_does_not_matter(monkeypatch):
    monkeypatch.setattr(frechet, "_BLOCK_ROWS", 16)
    a, b = sample(80, 5), sample(90, 6)
    scatter, shifted = Moments.of(a).scatter, Moments.of(a + 1e6).scatter
    np.testing.assert_allclose(shifted, scatter, rtol=0, atol=1e-9 * scatter.max())
    assert distance(a + 1e6, b + 1e6) == close_to(distance(a, b))
    assert frechet_of_few(a[:9] + 1e6, b + 1e6) == close_to(frechet_of_few(a[:9], b))


@pytest.mark.parametrize(("n", "rank"), [(200, WIDTH), (200, 3), (8, WIDTH)])
def test_identical_sets_have_no_distance(n, rank):
    rows = sample(n, 9, rank=rank)
    scale = np.var(rows, axis=0).sum()
    for found in (distance(rows, rows), frechet_of_few(rows, rows)):
        assert 0 <= found <= 1e-9 * scale


@given(st.integers(2, 40), st.integers(2, 90), st.integers(0, 2**32))
def test_few_images_need_no_covariances(m, n, seed):
    a, b = sample(m, seed), sample(n, seed + 1)
    assert frechet_of_few(a, b) == close_to(distance(a, b))
    assert frechet_of_few(b, a) == close_to(distance(a, b))


def test_moments_of_few_images_lose_nothing_to_rounded_zeros():
    few, many = sample(8, 1), sample(60, 2)
    expected = pytest.approx(frechet_of_few(few, many), rel=1e-11)
    assert distance(few, many) == expected
    assert distance(many, few) == expected


def test_few_images_take_no_moments_and_many_do(monkeypatch):
    few, many = sample(WIDTH, 1), sample(WIDTH + 1, 2)
    monkeypatch.setattr(Moments, "of", lambda _: pytest.fail("takes moments"))
    frechet_of_few(few, many)
    with pytest.raises(pytest.fail.Exception, match="takes moments"):
        frechet_of_few(many, many)


def kid_by_loops(a, b):
    """The unbiased estimate of the squared distance of kernel means, pair by pair."""

    def kernel(x, y):
        return (x @ y / len(x) + 1) ** 3

    def within(rows):
        pairs = [kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
        return np.mean(pairs)

    return within(a) + within(b) - 2 * np.mean([kernel(x, y) for x in a for y in b])


@pytest.mark.parametrize(("m", "n"), [(30, 30), (2, 2)])
def test_kid_of_sets_as_large_as_a_subset_is_its_definition(m, n):
    pytest.importorskip("torch_fidelity")
    a, b = sample(m, 1) / 9, sample(n, 2) / 9
    assert kernel_distance(a, b, seed=0) == pytest.approx(kid_by_loops(a, b), rel=1e-4)


def test_kid_is_the_mean_of_subsets_that_the_seed_draws(monkeypatch):
    pytest.importorskip("torch_fidelity")
    monkeypatch.setattr(frechet, "_SUBSET_SIZE", 20)
    a, b = sample(25, 1) / 9, sample(60, 2) / 9
    rng = np.random.RandomState(7)  # torch-fidelity's
    drawn = [[rng.choice(n, 20, replace=False) for n in (25, 60)] for _ in range(100)]
    expected = np.mean([kid_by_loops(a[i], b[j]) for i, j in drawn])
    assert kernel_distance(a, b, seed=7) == pytest.approx(expected, rel=1e-4)
    assert kernel_distance(a, b, seed=7 + 2**32) == kernel_distance(a, b, seed=7)
    assert kernel_distance(a, b, seed=8) != kernel_distance(a, b, seed=7)


def test_one_image_has_no_covariance():
    one, many = sample(1, 1), sample(40, 2)
    for a, b in ((one, many), (many, one), (one, one)):
        assert math.isnan(distance(a, b))
        assert math.isnan(frechet_of_few(a, b))
    assert math.isnan(distance(many[:0], many))


def test_kid_of_one_image_is_nan():
    pytest.importorskip("torch_fidelity")
    assert math.isnan(kernel_distance(sample(1, 1), sample(40, 2), seed=0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("measure", [distance, frechet_of_few, partial(kernel_distance, seed=0)])
@pytest.mark.parametrize("is_first", [True, False])
def test_features_must_be_finite(bad, measure, is_first):
    if isinstance(measure, partial):
        pytest.importorskip("torch_fidelity")
    rows, broken = sample(20, 1, dtype=np.float16), sample(20, 1, dtype=np.float16)
    broken[[4, 9], 2] = bad
    sets = (broken, rows) if is_first else (rows, broken)
    with pytest.raises(ValueError, match=r"NaN or infinity at position 4 \(2 in all\)") as error:
        measure(*sets)
    assert "\n" not in str(error.value)


def test_features_that_are_not_finite_leave_moments_as_they_were():
    moments, rows = Moments.of(sample(30, 1)), sample(5, 2)
    rows[3, 0] = math.nan
    with pytest.raises(ValueError, match="position 3"):
        moments.add(rows)
    same_moments(moments, Moments.of(sample(30, 1)))


@pytest.mark.parametrize("measure", [distance, frechet_of_few, partial(kernel_distance, seed=0)])
def test_both_sets_must_have_one_width(measure):
    if isinstance(measure, partial):
        pytest.importorskip("torch_fidelity")
    with pytest.raises(ValueError, match="one width, got 24 and 23"):
        measure(sample(30, 1), sample(30, 2)[:, 1:])


def test_moments_of_another_width_are_refused():
    with pytest.raises(ValueError, match="one width"):
        Moments.of(sample(30, 1)).add(sample(30, 2)[:, :1])


def test_a_nan_in_moments_is_not_taken_for_no_distance():
    moments = gaussian([math.nan, 0.0], np.eye(2))
    assert math.isnan(frechet_distance(moments, gaussian([0.0, 0.0], np.eye(2))))
