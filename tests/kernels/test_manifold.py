"""Precision, recall, density and coverage beside their definitions and the package ``prdc``."""

import contextlib
import io

import numpy as np
import prdc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreset.kernels import manifold
from coreset.kernels.manifold import precision_recall_density_coverage

NAMES = ("precision", "recall", "density", "coverage")
seeds, sides = st.integers(0, 2**32), st.integers(7, 40)


def by_package(real, fake, k):
    real, fake = real.astype(np.float64), fake.astype(np.float64)  # or it rounds to float32
    with contextlib.redirect_stdout(io.StringIO()):  # it prints sizes
        return prdc.compute_prdc(real_features=real, fake_features=fake, nearest_k=k)


def squared_radii(rows, k):
    """Of integers, exactly: the first of the sorted distances is that of the row to itself."""
    return [sorted(((rows - row) ** 2).sum(axis=1))[k] for row in rows]


def by_loops(chosen, real, k):
    chosen_radii, real_radii = squared_radii(chosen, k), squared_radii(real, k)
    apart = [[((s - v) ** 2).sum() for s in chosen] for v in real]
    m, n = range(len(chosen)), range(len(real))
    balls = [sum(apart[i][j] < real_radii[i] for i in n) for j in m]
    return {
        "precision": np.mean([count > 0 for count in balls]),
        "recall": np.mean([any(apart[i][j] < chosen_radii[j] for j in m) for i in n]),
        "density": np.mean(balls) / k,
        "coverage": np.mean([any(apart[i][j] < real_radii[i] for j in m) for i in n]),
    }


def normal(seed, n, width, scale=1.0):
    rows = np.random.default_rng(seed).normal(size=(n, width)) * scale
    return rows.astype(np.float32)


def check_equal(measured, expected, c=0):
    for name in NAMES:
        assert measured[name][c] == pytest.approx(expected[name], abs=1e-9), name


@settings(max_examples=30)
@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=3), st.integers(2, 64), seeds)
def test_every_class_is_that_of_the_package(sizes, width, seed):
    chosen = [normal((seed, 0, c), m, width, 0.9) for c, (m, _) in enumerate(sizes)]
    real = [normal((seed, 1, c), n, width) + 3 for c, (_, n) in enumerate(sizes)]
    chosen = [rows + np.float32(3) for rows in chosen]
    labels = [np.repeat(np.arange(len(sizes)), of_side) for of_side in zip(*sizes, strict=True)]
    shuffled = np.random.default_rng(seed).permutation(len(labels[0]))
    columns = np.concatenate(chosen)[shuffled], labels[0][shuffled]
    measured = precision_recall_density_coverage(
        *columns, np.concatenate(real), labels[1], len(sizes)
    )
    for c in range(len(sizes)):
        check_equal(measured, by_package(real[c], chosen[c], 5), c)


@settings(max_examples=60)
@given(st.tuples(sides, sides), st.integers(1, 6), st.integers(1, 3), seeds, st.booleans())
def test_with_images_on_surfaces_it_is_the_definition(sizes, k, width, seed, shared):
    m, n = sizes
    rng = np.random.default_rng(seed)  # few distinct rows: copies and equal distances everywhere
    chosen, real = rng.integers(-3, 4, (m, width)), rng.integers(-3, 4, (n, width))
    if shared:
        chosen[: min(m, n)] = real[: min(m, n)]
    zeros = np.zeros(max(m, n), np.int64)
    columns = chosen.astype(np.float32), zeros[:m], real.astype(np.float32), zeros[:n]
    check_equal(precision_recall_density_coverage(*columns, 1, k=k), by_loops(chosen, real, k))


def test_a_surface_far_from_the_origin_is_no_matter_of_rounding():
    chosen, real = (np.random.default_rng(i).integers(-9, 10, (50, 8)) for i in range(2))
    chosen[:20] = real[:20]
    labels, far = np.zeros(50, np.int64), 2**17
    measured = precision_recall_density_coverage(
        (chosen + far).astype(np.float32), labels, (real + far).astype(np.float32), labels, 1
    )
    check_equal(measured, by_loops(chosen, real, 5))


def test_blocks_of_rows_count_as_the_whole(monkeypatch):
    chosen, real = normal(0, 90, 6), normal(1, 130, 6)
    columns = chosen, np.zeros(90, np.int64), real, np.zeros(130, np.int64)
    whole = precision_recall_density_coverage(*columns, 1)
    monkeypatch.setattr(manifold, "_PAIRS_AT_ONCE", 700)
    assert precision_recall_density_coverage(*columns, 1) == whole
    check_equal(whole, by_package(real, chosen, 5))


def test_a_class_of_k_images_has_no_numbers_and_one_more_is_enough():
    rows = normal(0, 12, 4)
    sizes = [(5, 12), (12, 5), (6, 6), (0, 12), (12, 0)]
    labels = [np.repeat(np.arange(5), of_side) for of_side in zip(*sizes, strict=True)]
    features = [np.concatenate([rows[:n] for n in of_side]) for of_side in zip(*sizes, strict=True)]
    measured = precision_recall_density_coverage(features[0], labels[0], features[1], labels[1], 6)
    for name in NAMES:
        assert measured[name].dtype == np.float64
        assert np.isnan(measured[name]).tolist() == [True, True, False, True, True, True]
    assert measured["recall"][2] == measured["coverage"][2] == 1, "every image is its own copy"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["set", "reference"])
def test_bad_input_is_refused(bad, side):
    rows, labels = normal(0, 9, 3), np.zeros(9, np.int64)
    broken = rows.copy()
    broken[4, 1] = bad
    first, second = (broken, rows) if side == "set" else (rows, broken)
    with pytest.raises(ValueError, match=f"features of the {side} must be finite"):
        precision_recall_density_coverage(first, labels, second, labels, 1)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        precision_recall_density_coverage(rows, labels, rows, labels, 1, k=0)
