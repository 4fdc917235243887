"""Samplers of scores: a budget of every class at random, from one end, or by CCS.

Each takes columns of n samples and a budget per class, and returns a `Selection`. Scores are
finite, and low is hard (`coreset.kernels.scores.easiness`). What is drawn of a class depends on the
seed, the class index and the class's own samples alone.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coreset.kernels.seeds import class_seeds

Ints = NDArray[np.int64]
Scores = NDArray[np.floating]


class ClassTooSmallError(ValueError):
    """A class has fewer samples than its budget."""

    def __init__(self, class_index: int, size: int) -> None:
        super().__init__(f"class {class_index} has {size} samples")
        self.class_index, self.size = class_index, size


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A coreset: exactly its budget of each class."""

    positions: Ints
    """Positions in the columns, ascending, without repeats."""
    ranks: Ints
    """When each was chosen among those of its class, from 0."""
    bins: Ints | None = None
    """Bin of each, where a sampler has bins."""
    lowered: tuple[int, ...] = ()
    """Classes in which fewer samples were cut than asked, to leave the budget."""


def random_coreset(labels: Ints, budgets: Ints, seed: int) -> Selection:
    """Draw the budget of each class uniformly, or raise `ClassTooSmallError`."""
    scores = np.zeros(labels.size, np.float32)
    drawn = ccs_coreset(scores, labels, budgets, seed, misratio=0.0, n_bins=1)
    return replace(drawn, bins=None)


def ccs_coreset(
    scores: Scores,
    labels: Ints,
    budgets: Ints,
    seed: int,
    *,
    misratio: float,
    n_bins: int,
    published: bool = False,
) -> Selection:
    """Draw the budget of each class so that it covers the range of its scores but the hard end.

    Algorithm 1 of "Rethinking dataset distillation for classification", 2026: each class is cut and
    binned on its own, where CCS (Zheng et al., ICLR 2023) cuts and bins the whole data set at once.
    The `n_hardest` lowest are cut, of ties the lower position first, but at least the budget is
    kept. Bins of equal width lie over the rest, the last one closed; the authors' code has 50. The
    budget is shared smallest bin first, each at most its even part of what is left, of equal bins
    the earlier first. Each bin is drawn uniformly without replacement: the smallest `random_keys`.

    Args:
        scores: Shape (n,).
        labels: Class of each sample, shape (n,).
        budgets: Samples to draw of each class, shape (c,).
        seed: Of the draw.
        misratio: Share of each class to cut.
        n_bins: Bins of each class.
        published: Bins of the authors' code: float32, half open, the last one up to 1.0001 times
            the highest score. Equal bins are funded in our order, theirs is that of an unstable
            sort.

    Raises:
        ClassTooSmallError: A class has fewer samples than its budget.
        ValueError: A score is not finite, or lies in no published bin.

    """
    from coreset.kernels.strata import draw_strata  # compiles; to read scores nobody needs it

    sizes = _sizes(labels, budgets)
    if not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite, got {scores[~np.isfinite(scores)][0]}")
    n_cut, lowered = _n_cut(sizes, sizes - budgets, misratio)
    seeds = class_seeds(seed, budgets.size)
    draws = draw_strata(
        scores, labels, sizes, n_cut, budgets, seeds, n_bins=n_bins, published=published
    )
    if draws.n_outside.any():
        c = int(draws.n_outside.argmax())
        raise ValueError(
            f"{draws.n_outside.sum()} samples lie in no bin of the published rule, "
            f"{draws.n_outside[c]} of them in class {c}, whose scores it loses where the highest "
            "is not above 0; leave out the published dialect"
        )
    order = np.argsort(draws.positions)
    positions = draws.positions[order]
    ranks = _ranks(labels[positions], draws.keys[order])
    lowered_classes = tuple(np.flatnonzero(lowered).tolist())
    return Selection(
        positions=positions, ranks=ranks, bins=draws.bins[order], lowered=lowered_classes
    )


def extreme_coreset(scores: Scores, labels: Ints, budgets: Ints, *, easy: bool) -> Selection:
    """Take the hardest of each class, or the easiest; of ties the lower position first."""
    _sizes(labels, budgets)
    ranks = _ranks(labels, -scores if easy else scores)
    positions = np.flatnonzero(ranks < budgets[labels])
    return Selection(positions=positions, ranks=ranks[positions])


def double_end_coreset(
    scores: Scores, labels: Ints, budgets: Ints, seed: int, *, misratio: float, cut_easy: float
) -> Selection:
    """Draw uniformly from what is left when a share is cut at both ends of each class.

    The double-end pruning of ELFS (Zheng et al., ICLR 2025), which takes all that is left. Where
    the budget would not be left, less is cut of the easy end, then of the hard one.
    """
    sizes = _sizes(labels, budgets)
    n_hard, too_hard = _n_cut(sizes, sizes - budgets, misratio)
    n_easy, too_easy = _n_cut(sizes, sizes - budgets - n_hard, cut_easy)
    ranks = _ranks(labels, scores)
    kept = np.flatnonzero((ranks >= n_hard[labels]) & (ranks < (sizes - n_easy)[labels]))
    drawn = random_coreset(labels[kept], budgets, seed)
    lowered = tuple(np.flatnonzero(too_hard | too_easy).tolist())
    return replace(drawn, positions=kept[drawn.positions], lowered=lowered)


def _sizes(labels: Ints, budgets: Ints) -> Ints:
    sizes = np.bincount(labels, minlength=budgets.size)
    if (small := np.flatnonzero(sizes < budgets)).size:
        raise ClassTooSmallError(int(small[0]), int(sizes[small[0]]))
    return sizes


def n_hardest(n: int, misratio: float) -> int:
    """Return how many of n samples a misratio cuts, rounded down.

    A first rounding to a millionth of a sample makes 29 of 0.29 * 100 = 28.999999999999996.
    """
    return math.floor(round(misratio * n, 6))


def _n_cut(sizes: Ints, spare: Ints, share: float) -> tuple[Ints, NDArray[np.bool_]]:
    """Return how many to cut of each class, at most ``spare``, and where that is fewer."""
    asked = np.array([n_hardest(size, share) for size in sizes.tolist()], np.int64)
    return np.minimum(asked, spare), asked > spare


def _ranks(labels: Ints, keys: NDArray[np.generic]) -> Ints:
    """Return the rank of each key within its class, from 0; of ties the lower position first."""
    order = np.lexsort((keys, labels))
    sizes = np.bincount(labels)
    ranks = np.empty(labels.size, np.int64)
    ranks[order] = np.arange(labels.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks


def positions_by_class(labels: Ints, n_classes: int) -> tuple[Ints, ...]:
    """Return the positions of each class 0 .. n_classes-1, ascending; empty for absent classes."""
    order = np.argsort(labels, kind="stable").astype(np.int64)
    ends = np.cumsum(np.bincount(labels, minlength=n_classes))
    return tuple(np.split(order, ends[:-1]))
