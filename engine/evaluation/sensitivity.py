"""Sensitivity of comparisons to protocol, student, data set and chance.

Accuracies are those of `Cells`, in percent. Unlike `noise` of published comparisons, the root of
two population variances, standard errors are of differences of means, paired over seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import combinations
from math import exp, isnan, nan, sqrt
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.engine.evaluation.cells import Accuracy, Cell

RESAMPLES, CONFIDENCE = 2000, 0.95
LABEL_WEIGHT = 0.5
Row: TypeAlias = Mapping[str, Accuracy]
"""Methods of a cell."""
Table: TypeAlias = Mapping[Cell, Row]


class Agreement(NamedTuple):
    """Two cells that differ in one column, by the methods that both have."""

    first: Cell
    second: Cell
    tau: float
    reversals: list[tuple[str, str]]


class Winner(NamedTuple):
    """Best methods of a cell and, in points, their lead and its noise; NaN without a second."""

    methods: tuple[str, ...]
    lead: float
    noise: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One method against another over the cells that have both."""

    first: str
    second: str
    difference: float
    """Mean, in points."""
    wins: int
    ties: int
    losses: int
    p: float
    """Wilcoxon signed rank test, two-sided; NaN where no cell differs."""
    p_holm: float
    """The same, corrected for all pairs."""


def kendall_tau_b(first: Sequence[Any], second: Sequence[Any]) -> float:
    """Rank correlation with ties, -1 to 1 (Kendall 1945); NaN where all of one are equal."""
    a, b = (_signs(np.array(values, np.float64)) for values in (first, second))
    norm = sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm else nan


def _signs(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(np.subtract.outer(values, values))


def combined_std(first: Accuracy, second: Accuracy) -> Decimal:
    """Root of the sum of two variances, in points: the study's noise of a difference."""
    return (first.std * first.std + second.std * second.std).sqrt()


def reversals(first: Row, second: Row) -> list[tuple[str, str]]:
    """List the pairs of methods that swap, both differences being over their combined std."""
    common = [name for name in first if name in second]
    return [
        (a, b) for a, b in combinations(common, 2)
        if _sign_beyond_noise(first[a], first[b]) * _sign_beyond_noise(second[a], second[b]) < 0
    ]  # fmt: skip


def _sign_beyond_noise(a: Accuracy, b: Accuracy) -> int:
    difference, noise = a.mean - b.mean, combined_std(a, b)
    clear = not noise.is_nan() and abs(difference) > noise
    return (1 if difference > 0 else -1) if clear else 0


def rank_agreements(table: Table, column: str) -> list[Agreement]:
    """Compare the rankings of every two cells that differ in one column alone."""
    found: list[Agreement] = []
    for first, second in combinations(table, 2):
        if {name for name in Cell._fields if getattr(first, name) != getattr(second, name)} == {
            column
        }:
            a, b = table[first], table[second]
            common = [name for name in a if name in b]
            tau = kendall_tau_b([a[n].mean for n in common], [b[n].mean for n in common])
            found.append(Agreement(first, second, tau, reversals(a, b)))
    return found


def label_gains(table: Table) -> dict[Cell, dict[str, float]]:
    """Return what soft labels add to hard ones, in points, by soft-label cell and method."""
    hard = {cell: cell._replace(protocol="hard") for cell in table if cell.protocol != "hard"}
    return {
        cell: {
            name: float(accuracy.mean - table[other][name].mean)
            for name, accuracy in table[cell].items()
            if name in table[other]
        }
        for cell, other in hard.items()
        if other in table
    }


def winner(row: Row) -> Winner:
    """Return the best methods of a cell; their lead is over the best of the others."""
    top = max(accuracy.mean for accuracy in row.values())
    best = tuple(name for name, accuracy in row.items() if accuracy.mean == top)
    others = [accuracy for name, accuracy in row.items() if name not in best]
    if not others:
        return Winner(best, nan, nan)
    second = max(others, key=lambda each: each.mean)
    return Winner(best, float(top - second.mean), float(combined_std(row[best[0]], second)))


def standard_errors(first: Mapping[Any, float], second: Mapping[Any, float]) -> float:
    """Return the difference of two means in its standard errors, by accuracies of seeds.

    Paired where both have the same seeds, else as of independent samples (Welch 1947). NaN with
    fewer than two of either, or where the error is zero.
    """
    a, b = (np.array([each[seed] for seed in sorted(each)]) for each in (first, second))
    if min(a.size, b.size) < 2:
        return nan
    samples = [a - b] if first.keys() == second.keys() else [a, b]
    error = sqrt(sum(float(values.var(ddof=1)) / values.size for values in samples))
    return float(a.mean() - b.mean()) / error if error else nan


def pairwise(table: Table) -> list[Pair]:
    """Compare every two methods over the cells that have both (Wilcoxon 1945, Holm 1979)."""
    from scipy.stats import wilcoxon  # takes a second to import

    names = list(dict.fromkeys(name for row in table.values() for name in row))
    found = dict[tuple[str, str], NDArray[np.float64]]()
    for a, b in combinations(names, 2):
        leads = [row[a].mean - row[b].mean for row in table.values() if a in row and b in row]
        if leads:
            found[a, b] = np.array(leads, np.float64)
    tests: list[Any] = [wilcoxon(each) if each.any() else None for each in found.values()]
    ps = [float(test.pvalue) if test else nan for test in tests]
    return [
        Pair(
            first=a, second=b, difference=float(leads.mean()), wins=int((leads > 0).sum()),
            ties=int((leads == 0).sum()), losses=int((leads < 0).sum()), p=p, p_holm=corrected,
        )
        for ((a, b), leads), p, corrected in zip(found.items(), ps, holm(ps), strict=True)
    ]  # fmt: skip


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p-values for their number, step down (Holm 1979); NaN stays and does not count."""
    corrected, largest = [nan] * len(ps), 0.0
    order = sorted((at for at, p in enumerate(ps) if not isnan(p)), key=ps.__getitem__)
    for rank, at in enumerate(order):
        largest = corrected[at] = max(largest, min(1.0, (len(order) - rank) * ps[at]))
    return corrected


def mean_ranks(table: Table, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Return the mean rank of each method over cells, 1 the best, and bounds of its interval.

    Methods are those that every cell has; tied ones share their mean rank. The bounds are
    percentiles over resampled cells.
    """
    from scipy.stats import rankdata

    first, *others = table.values()
    names = [name for name in first if all(name in row for row in others)]
    means = np.array([[row[name].mean for name in names] for row in table.values()], np.float64)
    ranks = rankdata(-means, axis=1)
    draws = np.random.default_rng(seed).integers(len(ranks), size=(RESAMPLES, len(ranks)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(ranks[draws].mean(axis=1), (tail, 100 - tail), axis=0)
    columns = zip(ranks.mean(axis=0), low, high, strict=True)
    return {
        name: (float(a), float(b), float(c)) for name, (a, b, c) in zip(names, columns, strict=True)
    }


def label_robust_score(
    *, full_hard: float, hard: float, soft: float, random_soft: float, weight: float = LABEL_WEIGHT
) -> tuple[float, float, float]:
    """Return HLR, IOR (points) and LRS (0 to 1) of DD-Ranking (2025) from accuracies in percent.

    HLR = full data - set, both under hard labels; IOR = set - random images, both under the
    protocol of the set. LRS = (e^a - e^-1) / (e - e^-1), a = w IOR - (1 - w) HLR as fractions.
    """
    hlr, ior = full_hard - hard, soft - random_soft
    score = exp((weight * ior - (1 - weight) * hlr) / 100)
    return hlr, ior, (score - exp(-1)) / (exp(1) - exp(-1))
