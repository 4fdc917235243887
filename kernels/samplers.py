"""Samplers of class-balanced coresets: exactly IPC images of every class, at random or by CCS.

Every sampler is a function ``(values, labels, n_classes, ipc, seed, *, parameters) -> Selection``.
The draw of a class depends on the seed, the class index and the class's own samples alone.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coreset.kernels.seeds import derived_seed, permutation, random_keys


class ClassTooSmallError(ValueError):
    """A class has fewer samples than were asked for per class."""

    def __init__(self, class_index: int, size: int) -> None:
        super().__init__(f"class {class_index} has {size} samples")
        self.class_index, self.size = class_index, size


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A class-balanced coreset."""

    ids: NDArray[np.int64]
    """Sample ids, ascending, without repeats: exactly IPC of each class."""
    lowered: tuple[int, ...] = ()
    """Classes in which fewer samples were cut than misratio asks, to leave IPC samples."""


def random_coreset(labels: NDArray[np.int64], n_classes: int, ipc: int, seed: int) -> Selection:
    """Draw IPC samples of each class uniformly, or raise `ClassTooSmallError`."""
    ids = [
        members[permutation(members.size, derived_seed(seed, c))[:ipc]]
        for c, members in enumerate(_classes(labels, n_classes, ipc))
    ]
    return Selection(ids=np.sort(np.concatenate(ids)))


def ccs_coreset(
    scores: NDArray[np.floating],
    labels: NDArray[np.int64],
    n_classes: int,
    ipc: int,
    seed: int,
    *,
    misratio: float,
    n_bins: int,
) -> Selection:
    """Draw IPC samples of each class by `ccs_draw`, or raise `ClassTooSmallError`.

    Each class is cut and binned on its own (algorithm 1 of "Rethinking dataset distillation for
    classification", 2026), where CCS cuts and bins the whole data set at once.
    """
    ids: list[NDArray[np.int64]] = []
    lowered: list[int] = []
    for c, members in enumerate(_classes(labels, n_classes, ipc)):
        positions, n_cut = ccs_draw(
            scores[members], ipc, misratio=misratio, n_bins=n_bins, seed=derived_seed(seed, c)
        )
        ids.append(members[positions])
        if n_cut < n_hardest(members.size, misratio):
            lowered.append(c)
    return Selection(ids=np.sort(np.concatenate(ids)), lowered=tuple(lowered))


def _classes(labels: NDArray[np.int64], n_classes: int, ipc: int) -> tuple[NDArray[np.int64], ...]:
    classes = positions_by_class(labels, n_classes)
    for class_index, members in enumerate(classes):
        if members.size < ipc:
            raise ClassTooSmallError(class_index, members.size)
    return classes


def positions_by_class(labels: NDArray[np.int64], n_classes: int) -> tuple[NDArray[np.int64], ...]:
    """Return the positions of each class 0 .. n_classes-1, ascending; empty for absent classes."""
    order = np.argsort(labels, kind="stable").astype(np.int64)
    ends = np.cumsum(np.bincount(labels, minlength=n_classes))
    return tuple(np.split(order, ends[:-1]))


def bin_of(scores: NDArray[np.floating], n_bins: int) -> NDArray[np.int64]:
    """Return the bin 0 .. n_bins-1 of each score: equal widths over [min, max], last bin closed.

    If all scores are equal, they lie in bin 0. Arithmetic is float64.
    """
    values = scores.astype(np.float64)
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros(scores.size, dtype=np.int64)
    fractions = (values - low) / (high - low)
    return np.minimum((fractions * n_bins).astype(np.int64), n_bins - 1)


def stratum_counts(sizes: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """Share a budget, at most the sum of sizes: smallest first, each at most its part of the rest.

    Equal sizes keep their order. With fewer samples than strata, the most populated get one each.
    """
    counts = [0] * sizes.size
    remaining = budget
    for rank, stratum in enumerate(np.argsort(sizes, kind="stable").tolist()):
        counts[stratum] = min(int(sizes[stratum]), remaining // (sizes.size - rank))
        remaining -= counts[stratum]
    return np.array(counts)


def n_hardest(n: int, misratio: float) -> int:
    """Return how many of n samples a misratio cuts, rounded down.

    A first rounding to a millionth of a sample makes 29 of 0.29 * 100 = 28.999999999999996.
    """
    return math.floor(round(misratio * n, 6))


def ccs_draw(
    scores: NDArray[np.floating], budget: int, *, misratio: float, n_bins: int, seed: int
) -> tuple[NDArray[np.int64], int]:
    """Draw exactly ``budget`` of n samples, covering the range of scores except its hard end.

    Scores are finite, and low is hard (`coreset.kernels.scores.easiness`). The `n_hardest` lowest
    are cut (of ties, the lower position first), but at least ``budget`` samples are kept. These are
    binned by `bin_of`, with 50 bins in the authors' code; `stratum_counts` shares the budget over
    the bins, and each bin is drawn uniformly without replacement (smallest `random_keys`).

    Returns:
        Positions into the scores, ascending; and how many of the hardest were cut.
    """
    n = scores.size
    n_cut = min(n_hardest(n, misratio), n - budget)
    kept = np.sort(np.argsort(scores, kind="stable")[n_cut:])
    bins = bin_of(scores[kept], n_bins)
    sizes = np.bincount(bins, minlength=n_bins)
    # By bin, and within a bin by key; a key belongs to a position, so the cut does not change it.
    order = np.lexsort((random_keys(n, seed)[kept], bins))
    rank_in_bin = np.arange(kept.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    drawn = order[rank_in_bin < np.repeat(stratum_counts(sizes, budget), sizes)]
    return np.sort(kept[drawn]).astype(np.int64), n_cut
