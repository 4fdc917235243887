"""Coverage-centric selection (CCS): cut the hardest, bin the rest by score, draw from each bin.

Zheng, Liu, Lai and Prakash, "Coverage-centric coreset selection for high pruning rates", ICLR 2023,
algorithm 1; the authors' code is haizhongzheng/Coverage-centric-coreset-selection,
``core/data/Coreset.py``. Written from the algorithm, with these deliberate differences:

- the last bin is closed, where theirs ends at 1.0001 times the maximum, which lies below the
  maximum when all scores are negative (the easiest sample could never be drawn), and equal scores
  that are zero or negative left every bin empty;
- where the cut would leave fewer samples than the budget it is lowered, where theirs returns fewer;
- a score that is not finite is refused, where theirs returns an empty set for NaN;
- ties are stable, and the draw depends on a seed alone.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from kernels.compiling import kernel
from kernels.seeds import random_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What `ccs_draw` picked."""

    positions: NDArray[np.int64]
    """Positions into the scores, ascending, without repeats."""
    n_cut: int
    """Hardest samples that were left out; less than misratio asks where the budget needed them."""


def positions_by_class(
    labels: Int[np.ndarray, " n"], n_classes: int
) -> tuple[NDArray[np.int64], ...]:
    """Positions of each class 0 .. n_classes-1, ascending; empty arrays for absent classes.

    Raises:
        ValueError: A label outside 0 .. n_classes-1.
    """
    foreign = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if foreign.size:
        raise ValueError(
            f"labels must be in 0 .. {n_classes - 1}, got {labels[foreign[0]]} "
            f"at position {foreign[0]}; check the class list"
        )
    order = np.argsort(labels, kind="stable").astype(np.int64)
    ends = np.cumsum(np.bincount(labels, minlength=n_classes))
    return tuple(np.split(order, ends[:-1]))


def require_finite(scores: Float[np.ndarray, " n"]) -> None:
    """Raise a ValueError that names the first position whose score is NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise ValueError(
            f"scores must be finite, got {scores[bad[0]]} at position {bad[0]} "
            f"({bad.size} in all); score every sample before selecting"
        )


def bin_of(scores: Float[np.ndarray, " n"], n_bins: int) -> Int[np.ndarray, " n"]:
    """Bin 0 .. n_bins-1 of each score: equal widths over [min, max], the last bin closed.

    Every score lies in exactly one bin, whatever its sign or magnitude; the bin grows with the
    score; equal scores share bin 0. Arithmetic in float64.

    Raises:
        ValueError: n_bins below 1, no scores, or a score that is not finite.
    """
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, got {n_bins}")
    if scores.size == 0:
        raise ValueError("scores must not be empty; there is nothing to stratify")
    require_finite(scores)
    values = scores.astype(np.float64)
    low, high = values.min(), values.max()
    # Scores of both signs near the largest float64 would overflow the range; halving is exact.
    if math.isinf(float(high) - float(low)):
        values, low, high = values / 2, low / 2, high / 2
    if low == high:
        return np.zeros(scores.size, dtype=np.int64)
    fractions = (values - low) / (high - low)
    return np.minimum((fractions * n_bins).astype(np.int64), n_bins - 1)


@kernel
def _fill_smallest_first(
    sizes: NDArray[np.int64], order: NDArray[np.int64], budget: int
) -> NDArray[np.int64]:
    counts = np.zeros_like(sizes)
    remaining = budget
    for rank in range(order.size):
        stratum = order[rank]
        fair_share = remaining // (order.size - rank)
        counts[stratum] = min(sizes[stratum], fair_share)
        remaining -= counts[stratum]
    return counts


def stratum_counts(sizes: Int[np.ndarray, " strata"], budget: int) -> Int[np.ndarray, " strata"]:
    """Share a budget of samples over strata: smallest first, each at most an even part of the rest.

    Equal sizes keep their order. The counts sum to ``budget`` exactly. With fewer samples than
    strata the even part is 0 until ``budget`` strata are left: the most populated get one each.

    Raises:
        ValueError: ``budget`` is not in 0 .. sum of sizes, or a size is negative.
    """
    sizes = sizes.astype(np.int64)
    if sizes.size and sizes.min() < 0:
        raise ValueError(f"sizes must be at least 0, got {sizes.min()}")
    total = int(sizes.sum())
    if not 0 <= budget <= total:
        raise ValueError(f"budget must be in [0, {total}] (all samples), got {budget}")
    # NumPy sorts: a sort inside the jitted body takes its compilation from 1 s to 5 s.
    return _fill_smallest_first(sizes, np.argsort(sizes, kind="stable").astype(np.int64), budget)


def n_hardest(n: int, misratio: float) -> int:
    """Samples of n that a misratio cuts: rounded down, after rounding to a millionth of a sample.

    The second rounding keeps 0.29 * 100 = 28.999999999999996 at 29, where a bare int() gives 28.

    Raises:
        ValueError: misratio outside [0, 1).
    """
    if not 0 <= misratio < 1:
        raise ValueError(f"misratio must be in [0, 1), got {misratio}")
    return math.floor(round(misratio * n, 6))


def ccs_draw(
    scores: Float[np.ndarray, " n"], budget: int, *, misratio: float, n_bins: int, seed: int
) -> Draw:
    """Pick exactly ``budget`` samples that cover the range of scores but for its hard end.

    The ``n_hardest`` lowest scores are cut (ties: the lower position goes first), but never so many
    that fewer than ``budget`` remain; the rest is binned by `bin_of`, shared by `stratum_counts`
    and drawn uniformly without replacement in each bin (the smallest `random_keys`).

    Args:
        scores: Low is hard (`kernels.scores.easiness`); unit-free.
        budget: Samples to pick, 1 .. n.
        misratio: Share of the hardest samples to cut, in [0, 1).
        n_bins: Equal-width bins over the range of what remains (50 in the authors' code).
        seed: The only source of randomness.

    Raises:
        ValueError: An argument outside its range, or a score that is not finite.
    """
    n = scores.size
    if not 1 <= budget <= n:
        raise ValueError(f"budget must be in [1, {n}] (all samples), got {budget}")
    require_finite(scores)
    n_cut = min(n_hardest(n, misratio), n - budget)
    kept = np.sort(np.argsort(scores, kind="stable")[n_cut:])
    bins = bin_of(scores[kept], n_bins)
    sizes = np.bincount(bins, minlength=n_bins)
    # By bin, and within a bin by key; a key belongs to a position, so the cut does not change it.
    order = np.lexsort((random_keys(n, seed)[kept], bins))
    rank_in_bin = np.arange(kept.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    drawn = order[rank_in_bin < np.repeat(stratum_counts(sizes, budget), sizes)]
    return Draw(positions=np.sort(kept[drawn]).astype(np.int64), n_cut=n_cut)
