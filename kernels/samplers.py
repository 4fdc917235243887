"""Samplers of class-balanced coresets: exactly IPC images of every class, at random or by CCS.

Every sampler is a function ``(values, labels, n_classes, ipc, seed, *, parameters) -> Selection``;
``values`` (scores, features) are missing where it needs none. The draw of a class depends on the
seed, the class index and the class's own samples alone. `ccs_draw` is CCS within one class: cut the
hardest, stratify the rest, share the budget over the strata.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from coreset.kernels.jit import kernel
from coreset.kernels.seeds import derived_seed, permutation, random_keys


class ClassTooSmallError(ValueError):
    """A class has fewer samples than were asked for per class."""

    def __init__(self, class_index: int, size: int, ipc: int) -> None:
        """Keep the numbers for callers that name the class."""
        super().__init__(
            f"ipc must be at most the size of every class, got {ipc}, "
            f"but class {class_index} has {size} samples; lower ipc or leave the class out"
        )
        self.class_index = class_index
        self.size = size
        self.ipc = ipc


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A class-balanced coreset."""

    ids: NDArray[np.int64]
    """Sample ids, ascending, without repeats: exactly IPC of each class."""
    n_cut: NDArray[np.int64]
    """Hardest samples left out, per class (zeros for a random coreset)."""
    lowered: tuple[int, ...]
    """Classes in which fewer samples were cut than misratio asks, to leave IPC samples."""


def random_coreset(labels: Int[np.ndarray, " n"], n_classes: int, ipc: int, seed: int) -> Selection:
    """Draw IPC samples of each class uniformly, without replacement.

    Args:
        labels: Class 0 .. n_classes-1 of each sample id.
        n_classes: Classes to draw from; every one must have IPC samples.
        ipc: Images per class, at least 1.
        seed: The only source of randomness.

    Raises:
        ClassTooSmallError: A class has fewer than ``ipc`` samples.
        ValueError: A label or ``ipc`` outside its range.
    """
    ids = [
        members[permutation(members.size, derived_seed(seed, c))[:ipc]]
        for c, members in enumerate(_classes(labels, n_classes, ipc))
    ]
    return Selection(
        ids=np.sort(np.concatenate(ids)), n_cut=np.zeros(n_classes, dtype=np.int64), lowered=()
    )


def ccs_coreset(
    scores: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    n_classes: int,
    ipc: int,
    seed: int,
    *,
    misratio: float,
    n_bins: int,
) -> Selection:
    """Draw IPC samples of each class by CCS.

    Each class is cut and binned on its own (algorithm 1 of "Rethinking dataset distillation for
    classification", 2026), where CCS cuts and bins the whole data set at once.

    Args:
        scores: Score of each sample id, low = hard (`coreset.kernels.scores.easiness`).
        labels: Class 0 .. n_classes-1 of each sample id.
        n_classes: Classes to draw from; every one must have IPC samples.
        ipc: Images per class, at least 1.
        seed: The only source of randomness.
        misratio: Share of the hardest samples of a class to cut, in [0, 1).
        n_bins: Equal-width bins over the remaining scores of a class.

    Raises:
        ClassTooSmallError: A class has fewer than ``ipc`` samples.
        ValueError: Scores that are not finite or not one per label, or an argument out of range.
    """
    if scores.shape != labels.shape:
        raise ValueError(
            f"scores must be one per label, got {scores.size} scores and {labels.size} labels; "
            "they belong to different data sets"
        )
    require_finite(scores)
    classes = _classes(labels, n_classes, ipc)
    draws = [
        ccs_draw(scores[members], ipc, misratio=misratio, n_bins=n_bins, seed=derived_seed(seed, c))
        for c, members in enumerate(classes)
    ]
    ids = [members[draw.positions] for members, draw in zip(classes, draws, strict=True)]
    full_cuts = [n_hardest(members.size, misratio) for members in classes]
    return Selection(
        ids=np.sort(np.concatenate(ids)),
        n_cut=np.array([draw.n_cut for draw in draws], dtype=np.int64),
        lowered=tuple(c for c, draw in enumerate(draws) if draw.n_cut < full_cuts[c]),
    )


def _classes(
    labels: Int[np.ndarray, " n"], n_classes: int, ipc: int
) -> tuple[NDArray[np.int64], ...]:
    """Return the sample ids of each class, or raise if a class has fewer than IPC."""
    if n_classes < 1:
        raise ValueError(f"n_classes must be at least 1, got {n_classes}")
    if ipc < 1:
        raise ValueError(f"ipc must be at least 1, got {ipc}")
    classes = positions_by_class(labels, n_classes)
    for class_index, members in enumerate(classes):
        if members.size < ipc:
            raise ClassTooSmallError(class_index, members.size, ipc)
    return classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Result of `ccs_draw`."""

    positions: NDArray[np.int64]
    """Positions into the scores, ascending, without repeats."""
    n_cut: int
    """Hardest samples that were cut; fewer than misratio asks where the budget needs them."""


def positions_by_class(
    labels: Int[np.ndarray, " n"], n_classes: int
) -> tuple[NDArray[np.int64], ...]:
    """Return the positions of each class 0 .. n_classes-1, ascending; empty for absent classes.

    Raises:
        ValueError: A label outside 0 .. n_classes-1.
    """
    unknown = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if unknown.size:
        raise ValueError(
            f"labels must be in 0 .. {n_classes - 1}, got {labels[unknown[0]]} "
            f"at position {unknown[0]}; check the class list"
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
    """Return the bin 0 .. n_bins-1 of each score: equal widths over [min, max], last bin closed.

    Every score lies in one bin, whatever its sign or magnitude. If all scores are equal, they lie
    in bin 0. Arithmetic is float64.

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
    """Share a budget over strata: smallest first, each at most an even part of the rest.

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
    """Return how many of n samples a misratio cuts, rounded down.

    A first rounding to a millionth of a sample makes 29 of 0.29 * 100 = 28.999999999999996.

    Raises:
        ValueError: misratio outside [0, 1).
    """
    if not 0 <= misratio < 1:
        raise ValueError(f"misratio must be in [0, 1), got {misratio}")
    return math.floor(round(misratio * n, 6))


def ccs_draw(
    scores: Float[np.ndarray, " n"], budget: int, *, misratio: float, n_bins: int, seed: int
) -> Draw:
    """Draw exactly ``budget`` samples that cover the range of scores except its hard end.

    The `n_hardest` lowest scores are cut (of ties, the lower position first), but at least
    ``budget`` samples are kept. These are binned by `bin_of`; `stratum_counts` shares the budget
    over the bins, and each bin is drawn uniformly without replacement (smallest `random_keys`).

    Args:
        scores: Low is hard (`coreset.kernels.scores.easiness`); unit-free.
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
