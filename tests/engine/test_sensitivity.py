"""Sensitivity to protocol, student, data set and chance, against scipy and the study's tables."""

import math
import re
from decimal import Decimal
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from coreset.engine.evaluation import published
from coreset.engine.evaluation.cells import Accuracy, Cell, published_cells
from coreset.engine.evaluation.claims import read_claims
from coreset.engine.evaluation.sensitivity import (
    holm,
    kendall_tau_b,
    label_gains,
    label_robust_score,
    mean_ranks,
    pairwise,
    rank_agreements,
    reversals,
    standard_errors,
    winner,
)

oracle: Any = stats
"""Its results have no types."""
PUBLISHED = published_cells().accuracies
SHARED = {cell: row for cell, row in PUBLISHED.items() if cell.student != "ResNetAP-10"}


def row(**means):
    return {name: Accuracy(Decimal(str(mean)), Decimal(1)) for name, mean in means.items()}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12))
def test_tau_b_is_that_of_scipy(pairs):
    first, second = zip(*pairs, strict=True)
    ours, theirs = kendall_tau_b(first, second), oracle.kendalltau(first, second)
    assert ours == pytest.approx(theirs.statistic, abs=1e-12, nan_ok=True)
    assert math.isnan(ours) == (len(set(first)) == 1 or len(set(second)) == 1)


def test_published_rankings_agree_as_published():
    found = rank_agreements(SHARED, "protocol")
    assert len(found) == 36
    means = {
        pair: fmean(e.tau for e in found if (e.first.protocol, e.second.protocol) == pair)
        for pair in {(each.first.protocol, each.second.protocol) for each in found}
    }
    assert {pair: round(tau, 2) for pair, tau in means.items()} == {
        ("hard", "rded"): 0.19, ("hard", "edc"): 0.42, ("rded", "edc"): 0.63,
    }  # fmt: skip
    by_student, by_ipc = (rank_agreements(SHARED, column) for column in ("student", "ipc"))
    assert [len(by_student), len(by_ipc)] == [18, 18]
    assert fmean(each.tau for each in by_student) == pytest.approx(0.772, abs=5e-4)
    assert fmean(each.tau for each in by_ipc) == pytest.approx(0.355, abs=5e-4)
    assert len(rank_agreements(PUBLISHED, "dataset")) == 38  # 12 cells of three data sets, 2 of two


def test_published_reversals_are_those_noted():
    noted = [each for each in read_claims().values() if each.id.startswith("tau-")]
    assert len(noted) == 36
    for claim in noted:
        columns = claim.columns
        first, second = (
            Cell(columns["dataset"][0], protocol, columns["student"][0], columns["ipc"][0])
            for protocol in columns["protocol"]
        )
        found = re.match(r"reversals (\d+)/45", claim.note)
        assert found, claim.note
        assert len(reversals(PUBLISHED[first], PUBLISHED[second])) == int(found[1])


def test_a_reversal_needs_both_differences_over_their_noise_which_is_root_two():
    assert reversals(row(a=1, b=3, c=0), row(a=3, b=1, c=0)) == [("a", "b")]
    assert reversals(row(a=1, b=2.4), row(a=3, b=1)) == []
    assert reversals(row(a=3, b=1), row(a=3, b=1)) == []
    unknown = {"a": Accuracy(Decimal(1), Decimal("NaN")), "b": Accuracy(Decimal(9), Decimal(1))}
    assert reversals(unknown, row(a=9, b=1)) == []


def test_methods_of_one_cell_alone_are_left_out_of_an_agreement():
    first, second = Cell("D", "hard", "S", 10), Cell("D", "hard", "T", 10)
    other = Cell("E", "hard", "U", 10)
    table = {first: row(a=1, b=5, c=9), second: row(b=5, a=1, d=0), other: row(a=1, b=5)}
    ((one, two, tau, swapped),) = rank_agreements(table, "student")
    assert (one, two, tau, swapped) == (first, second, 1, [])
    assert rank_agreements(table, "dataset") == []


def test_published_gains_by_soft_labels_shrink_with_the_data_set():
    gains = label_gains(SHARED)
    assert len(gains) == 24
    for data, mean in (("ImageNet-1K", 31.2), ("ImageNet-100", 18.8), ("ImageNette", 11.4)):
        found = [fmean(each.values()) for cell, each in gains.items() if cell.dataset == data]
        assert fmean(found) == pytest.approx(mean, abs=0.05)
    soft = Cell("D", "rded", "S", 10)
    table = {soft: row(a=3, b=4), soft._replace(protocol="hard"): row(a=1.5)}
    assert label_gains(table) == {soft: {"a": 1.5}}
    assert label_gains({soft: row(a=3)}) == {}


def test_the_winner_leads_the_best_of_the_others():
    assert winner(row(a=1, b=5, c=3)) == (("b",), 2, pytest.approx(math.sqrt(2)))
    assert winner(row(a=5, b=5, c=3))[:2] == (("a", "b"), 2)
    names, lead, noise = winner(row(a=5))
    assert names == ("a",)
    assert math.isnan(lead)
    assert math.isnan(noise)
    wins = [winner(each).methods for each in PUBLISHED.values()]
    assert sum("Random" in names for names in wins) == 3  # as the study's tables have it


@pytest.mark.parametrize("seeds", [[1, 2, 3], [1, 2, 4], [4, 5, 6, 7]])
def test_standard_errors_are_the_statistic_of_the_t_test(seeds):
    rng = np.random.default_rng(0)
    first = dict(zip([3, 1, 2], rng.normal(50, 2, 3).tolist(), strict=True))
    second = dict(zip(seeds, rng.normal(48, 1, len(seeds)).tolist(), strict=True))
    a, b = ([each[seed] for seed in sorted(each)] for each in (first, second))
    test = oracle.ttest_rel(a, b) if seeds == [1, 2, 3] else oracle.ttest_ind(a, b, equal_var=False)
    assert standard_errors(first, second) == pytest.approx(test.statistic)
    assert math.isnan(standard_errors({1: 50.0}, second))
    assert math.isnan(standard_errors(first, first))


def test_methods_are_compared_pair_by_pair():
    table = {
        Cell("D", "hard", "S", ipc): row(a=10 + lead, b=10, c=12, **extra)
        for ipc, (lead, extra) in enumerate(
            [(1, {}), (2, {}), (-3.5, {}), (0, {"d": 1}), (5, {}), (6, {}), (7, {})]
        )
    }
    found = {(each.first, each.second): each for each in pairwise(table)}
    assert found.keys() == {("a", "b"), ("a", "c"), ("b", "c"), ("a", "d"), ("b", "d"), ("c", "d")}
    one = found["a", "b"]
    assert (one.wins, one.ties, one.losses) == (5, 1, 1)
    leads = [1, 2, -3.5, 0, 5, 6, 7]
    assert one.difference == pytest.approx(fmean(leads))
    assert one.p == pytest.approx(oracle.wilcoxon(leads).pvalue)
    assert found["a", "d"].wins == 1  # of the one cell that has both
    ps = [each.p for each in found.values()]
    assert [each.p_holm for each in found.values()] == pytest.approx(holm(ps))
    (equal,) = pairwise({Cell("D", "hard", "S", 1): row(a=1, b=1)})
    assert math.isnan(equal.p)
    assert math.isnan(equal.p_holm)


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_rejects_what_its_steps_reject(ps):
    """At every level the corrected p is below it where the steps of Holm 1979 reject."""
    corrected = holm(ps)
    for level in (0.01, 0.05, 0.3, 0.9):
        rejected = set[int]()
        for rank, at in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
            if min(1.0, ps[at] * (len(ps) - rank)) > level:
                break
            rejected.add(at)
        assert {at for at, p in enumerate(corrected) if p <= level} == rejected


def test_holm_of_a_worked_example():
    corrected = holm([0.01, 0.04, math.nan, 0.03, 0.005])
    assert corrected == pytest.approx([0.03, 0.06, math.nan, 0.06, 0.02], nan_ok=True)
    assert holm([]) == []


def test_ranks_have_intervals_over_cells():
    table = {
        Cell("D", "hard", "S", ipc): row(a=9, b=5 + ipc % 2, c=5, d=6 - ipc % 2) for ipc in range(8)
    }
    table[Cell("D", "hard", "S", 0)] |= row(once=1)
    ranks = mean_ranks(table)
    assert ranks["a"] == (1, 1, 1)
    assert ranks["b"][0] == (2 + 3.5) / 2  # alone the second in one half, tied third in the other
    means = np.array([[row[name].mean for name in "abcd"] for row in table.values()], float)
    expected = stats.rankdata(-means, axis=1).mean(axis=0)
    assert [rank for rank, _, _ in ranks.values()] == pytest.approx(expected.tolist())
    assert list(ranks) == ["a", "b", "c", "d"]
    assert all(low <= rank <= high for rank, low, high in ranks.values())
    assert ranks == mean_ranks(table)
    low, high = mean_ranks(PUBLISHED)["AUM"][1:]
    assert 1 < low < high < 4
    assert mean_ranks(PUBLISHED, seed=1)["AUM"][1:] != (low, high)


def test_the_interval_of_a_rank_is_that_of_scipys_bootstrap():
    rank, low, high = mean_ranks(PUBLISHED)["ManifoldGD"]
    means = np.array([[row[name].mean for name in published.ALL] for row in PUBLISHED.values()])
    values = stats.rankdata(-means.astype(float), axis=1)[:, published.ALL.index("ManifoldGD")]
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(5))
    assert rank == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.06)


def test_the_label_robust_score_runs_from_0_to_1():
    assert label_robust_score(full_hard=60, hard=60, soft=50, random_soft=50) == pytest.approx(
        (0, 0, (1 - math.exp(-1)) / (math.e - math.exp(-1)))
    )
    best = label_robust_score(full_hard=0, hard=100, soft=100, random_soft=0)
    assert best == pytest.approx((-100, 100, 1))
    worst = label_robust_score(full_hard=100, hard=0, soft=0, random_soft=100)
    assert worst == pytest.approx((100, -100, 0))
    given_all = label_robust_score(full_hard=90, hard=40, soft=70, random_soft=60, weight=1)
    assert given_all[:2] == (50, 10)
    assert given_all[2] == pytest.approx((math.exp(0.1) - math.exp(-1)) / (math.e - 1 / math.e))
