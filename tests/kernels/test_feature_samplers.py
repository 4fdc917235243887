"""Samplers of features, beside slow versions from their definitions, and apricot."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coreset.kernels.feature_samplers import (
    d2,
    dedup_random,
    facility_location,
    herding,
    k_center,
    moderate,
    prototypes,
)
from coreset.kernels.neighbours import neighbours_of, unit_rows
from coreset.kernels.seeds import permutation

seeds, sizes = st.integers(0, 2**32), st.integers(1, 40)
whole = partial(np.random.default_rng)


def sample(n, seed, d=6):
    """Features whose sums are exact in float32: the order of ties is that of the definition."""
    return whole(seed).integers(-8, 9, (n, d)).astype(np.float32)


def distances_to(rows, point):
    return np.sqrt(((rows.astype(np.float64) - point) ** 2).sum(axis=1))


def moderate_slowly(rows, budget):
    distances = distances_to(rows, rows.mean(axis=0, dtype=np.float64))
    away = np.abs(distances - np.median(distances))
    return away, sorted(range(len(rows)), key=away.__getitem__)[:budget]


@given(sizes, seeds, st.data())
def test_moderate_takes_those_nearest_to_the_median_distance(n, seed, data):
    rows, budget = sample(n, seed), data.draw(st.integers(1, n))
    away, expected = moderate_slowly(rows, budget)
    np.testing.assert_allclose(away[moderate(rows, budget)], away[expected], atol=1e-5)


def greedy_cover(rows, chosen):
    """Largest distance of a sample to the nearest of those chosen, before each choice but one."""
    nearest, radii = np.full(len(rows), np.inf), []
    for last in chosen:
        nearest = np.minimum(nearest, distances_to(rows, rows[last]))
        radii.append(nearest.copy())
    return radii


@given(sizes, seeds, st.data())
def test_every_centre_is_the_farthest_sample_and_the_first_the_medoid(n, seed, data):
    rows, budget = sample(n, seed), data.draw(st.integers(1, n))
    chosen = k_center(rows, budget)
    assert len(set(chosen)) == budget
    sums = [(distances_to(rows, row) ** 2).sum() for row in rows]
    assert sums[chosen[0]] == pytest.approx(min(sums), rel=1e-5, abs=1e-3)
    for radii, following in zip(greedy_cover(rows, chosen), chosen[1:], strict=False):
        assert radii[following] == pytest.approx(radii.max(), rel=1e-4, abs=1e-2)


def test_centres_cover_each_of_as_many_clusters_once():
    rng = np.random.default_rng(0)
    clusters = rng.permutation(np.repeat(np.arange(10), 20))
    rows = (50 * np.eye(10)[clusters] + rng.normal(size=(200, 10))).astype(np.float32)
    for chosen in (k_center(rows, 10), facility_location(rows, 10)):
        assert sorted(clusters[chosen]) == list(range(10))


@given(sizes, seeds, st.data())
def test_herding_keeps_the_mean_of_those_taken_nearest_to_the_mean(n, seed, data):
    rows, budget = sample(n, seed), data.draw(st.integers(1, n))
    mean, taken = rows.mean(axis=0, dtype=np.float64), []
    for position in herding(rows, budget).tolist():
        rest = [i for i in range(n) if i not in taken]
        misses = {
            i: np.linalg.norm(rows[[*taken, i]].mean(axis=0, dtype=np.float64) - mean) for i in rest
        }
        assert misses[position] == pytest.approx(min(misses.values()), abs=1e-4)
        taken.append(position)


@given(sizes, seeds, st.data())
def test_facility_location_adds_the_largest_gain_each_time(n, seed, data):
    rows, budget = whole(seed).normal(size=(n, 3)).astype(np.float32), data.draw(st.integers(1, n))
    unit = unit_rows(rows).astype(np.float64)
    cosines, covered, taken = np.maximum(unit @ unit.T, 0), np.zeros(n), []
    for position in facility_location(rows, budget).tolist():
        assert position not in taken
        gains = np.maximum(cosines - covered, 0).sum(axis=1)
        assert gains[position] == pytest.approx(gains.max(), abs=1e-5)
        covered = np.maximum(covered, cosines[position])
        taken.append(position)


@pytest.mark.parametrize("seed", range(2))
def test_facility_location_takes_what_apricot_takes_in_its_order(seed):
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from apricot import FacilityLocationSelection

    rows = whole(seed).normal(size=(150, 16)).astype(np.float32)
    unit = unit_rows(rows).astype(np.float64)
    cosines = np.maximum(unit @ unit.T, 0)
    peer = FacilityLocationSelection(20, metric="precomputed", optimizer="naive").fit(cosines)
    torch.set_num_threads(threads)  # apricot's parallel kernels set those of OpenMP, and so torch's
    assert facility_location(rows, 20).tolist() == np.asarray(peer.ranking).tolist()


def d2_slowly(rows, easiness, budget):
    """D2 pruning as its authors' code does it (graph-mode sum, sampling weighted), restated."""
    n, k = len(rows), min(5, len(rows) - 1)
    apart = np.stack([distances_to(rows, row) for row in rows])
    difficulty = (easiness.max() - easiness) / max(np.ptp(easiness), 1e-300)
    difficulty = np.maximum(difficulty if np.ptp(easiness) > 0 else np.ones(n), 1e-7)
    linked = np.zeros((n, n), bool)
    for i in range(n):
        others = [j for j in np.argsort(apart[i], kind="stable") if j != i][:k]
        linked[i, others] = linked[others, i] = True
    sums = difficulty + (linked * np.exp(-apart) * difficulty).sum(axis=1)
    chosen = []
    while len(chosen) < budget:
        best = max((i for i in range(n) if i not in chosen), key=lambda i: sums[i])
        near = linked[best]
        sums[near] -= np.exp(-0.1 * apart[best, near]) * sums[best]
        chosen.append(best)
    return chosen


@given(st.integers(1, 30), seeds, st.data())
def test_messages_go_as_in_the_published_code(n, seed, data):
    budget, rng = data.draw(st.integers(1, n)), whole(seed)
    rows = rng.normal(size=(n, 5)).astype(np.float32)
    easiness = rng.normal(size=n) if data.draw(st.booleans()) else np.zeros(n)
    assert d2(rows, easiness, budget).tolist() == d2_slowly(rows, easiness, budget)


def test_neighbours_leave_out_the_row_itself_also_among_many_copies():
    found, distances = neighbours_of(np.zeros((9, 3), np.float32), 3)
    assert found.shape == distances.shape == (9, 3)
    assert not (found == np.arange(9)[:, None]).any()
    assert not distances.any()
    line = np.array([0, 1, 3, 7, 15, 31], np.float32)[:, None]
    found, distances = neighbours_of(line, 1)
    assert found[:, 0].tolist() == [1, 0, 1, 2, 3, 4]
    assert distances[:, 0].tolist() == [1, 1, 2, 4, 8, 16]
    assert neighbours_of(line[:1], 0)[0].shape == (1, 0)


@given(st.integers(1, 40), seeds, st.data())
def test_prototypes_differ_and_repeat_with_the_seed(n, seed, data):
    rows, budget = sample(n, seed), data.draw(st.integers(1, n))
    chosen = prototypes(rows, budget, seed)
    assert len(set(chosen.tolist())) == budget
    assert chosen.tolist() == prototypes(rows, budget, seed).tolist()


def test_the_largest_cluster_comes_first_and_its_prototype_is_in_the_middle():
    line = np.array([0, 1, 2, 3, 4, 100, 101, 102.0], np.float32)[:, None]
    assert prototypes(line, 2, 0).tolist() == [2, 6]


@given(st.integers(1, 30), seeds, st.sampled_from([0.0, 0.5, 0.9]))
def test_no_two_that_are_drawn_are_nearer_than_allowed(n, seed, near):
    rows = whole(seed).normal(size=(n, 3)).astype(np.float32)
    unit = unit_rows(rows).astype(np.float64)
    kept = []
    for candidate in permutation(n, seed).tolist():
        if all(unit[candidate] @ unit[earlier] <= near for earlier in kept):
            kept.append(candidate)
    assert dedup_random(rows, len(kept), seed, near).tolist() == kept
    with pytest.raises(ValueError, match=rf"only {len(kept)} of {n} images differ by more than"):
        dedup_random(rows, len(kept) + 1, seed, near)


def test_a_row_without_direction_has_no_cosine():
    rows = np.eye(3, dtype=np.float32) - np.eye(1, 3, dtype=np.float32)
    for sampler in (facility_location, partial(dedup_random, seed=0, near=0.9)):
        with pytest.raises(ValueError, match=r"length 0\.0 at position 0 \(1 in all\)"):
            sampler(rows, 2)
