"""Benchmark of misratios: what a cut removes, against plain loops."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from coreset.bench.misratio import CUT_IPC, RANDOM, TRUTH, Noisy, coresets, cut_shares


@pytest.fixture
def noisy():
    """Two classes of 400 and 200 images, of which a quarter and a half are flipped."""
    labels = np.repeat([0, 1, 0], [200, 200, 200])
    draws = np.random.default_rng(0)
    flipped = draws.random(600) < np.where(labels == 1, 0.5, 0.25)
    easiness = (draws.random(600) - 0.4 * flipped).astype(np.float32)
    dataset = SimpleNamespace(labels=labels, classes=("a", "b"))
    scored: Any = SimpleNamespace(dataset=dataset, easiness=lambda _, ids: easiness[ids])
    features = draws.normal(size=(600, 8)).astype(np.float16)
    return Noisy(scored=scored, features=features, flipped=flipped)


@pytest.mark.parametrize("misratio", [0.0, 0.3, 0.7])
def test_shares_removed_are_those_of_the_hardest_of_each_class(noisy, misratio):
    easiness, labels = noisy.candidates("aum").easiness, noisy.scored.dataset.labels
    shares: list[float] = []
    for c in range(2):
        members = sorted(np.flatnonzero(labels == c), key=lambda i: easiness[i])
        cut = members[: round(misratio * len(members))]
        shares.append(sum(noisy.flipped[cut]) / sum(noisy.flipped[members]))
    found = cut_shares(noisy, "aum", misratio)
    assert found["removed"] == pytest.approx(np.mean(shares))
    assert found["removed_worst"] == pytest.approx(min(shares))


def test_no_cut_removes_more_than_the_truth_which_leaves_nothing_flipped(noisy):
    found = cut_shares(noisy, TRUTH, 0.6)
    assert found["removed"] == 1
    assert found["left"] == found["left_worst"] == 0
    assert cut_shares(noisy, "aum", 0.6)["removed"] < 1


def test_a_random_cut_removes_its_share_and_leaves_the_classes_as_they_are(noisy):
    found = cut_shares(noisy, RANDOM, 0.5)
    assert found["removed"] == pytest.approx(0.5, abs=0.1)
    assert found["left"] == pytest.approx((0.25 + 0.5) / 2, abs=0.1)


def test_coresets_hold_their_budget_and_only_draws_are_repeated(noisy):
    ways = coresets(noisy.candidates("aum"), CUT_IPC)
    labels = noisy.scored.dataset.labels
    for drawn in ways.values():
        assert all((np.bincount(labels[ids]) == CUT_IPC).all() for ids in drawn)
    repeated = {way for way, drawn in ways.items() if len(drawn) > 1}
    assert repeated == {way for way in ways if way.startswith(("ccs", "random"))}
