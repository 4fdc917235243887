"""Draws of all classes in one compiled call, by the rule of `coreset.kernels.samplers.ccs_coreset`.

Nothing is sorted: classes are told apart by a counting sort, and whatever asks for the k smallest
looks for the k-th alone.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coreset.kernels.jit import kernel
from coreset.kernels.seeds import GOLDEN_GAMMA, splitmix64

_random: Any = kernel(splitmix64)
_NO_BIN = -1
_HALF = np.uint64(32)


class Draws(NamedTuple):
    """Samples that were drawn, class after class, in no particular order within a class."""

    positions: NDArray[np.int64]
    bins: NDArray[np.int64]
    keys: NDArray[np.uint64]
    """Random keys: of a class and bin, the samples with the smallest were drawn."""
    n_outside: NDArray[np.int64]
    """Samples of each class that were not cut, but lie in no bin, shape (c,)."""


def draw_strata(  # noqa: PLR0917 - columns first
    scores: NDArray[np.floating],
    labels: NDArray[np.int64],
    sizes: NDArray[np.int64],
    n_cut: NDArray[np.int64],
    budgets: NDArray[np.int64],
    seeds: NDArray[np.uint64],
    *,
    n_bins: int,
    published: bool = False,
) -> Draws:
    """Draw ``budgets[c]`` samples of each class from equal-width bins of its scores.

    Scores (finite) and labels are of shape (n,); of shape (c,) are the samples of each class, how
    many of its lowest scores to cut, its budget (at most what is left) and its seed. Releases the
    interpreter. The first call compiles. Takes 8 n bytes, and little more.
    """
    positions, bins, keys = np.empty((3, int(budgets.sum())), np.int64)
    drawn = Draws(positions, bins, keys.view(np.uint64), np.zeros_like(sizes))
    order, starts = _by_class(labels, sizes), np.append(0, np.cumsum(sizes))
    starts_of_keys = splitmix64(seeds)  # as `coreset.kernels.seeds.random_keys` begins
    _draw(scores, order, starts, n_cut, budgets, starts_of_keys, n_bins, published, drawn)
    return drawn


@kernel
def _by_class(labels: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return positions class by class, ascending within each."""
    order, place = np.empty(labels.size, np.int64), np.cumsum(sizes) - sizes
    for position in range(labels.size):
        label = labels[position]
        order[place[label]] = position
        place[label] += 1
    return order


@kernel
def _draw(  # noqa: PLR0917 - a kernel's
    scores: NDArray[np.floating],
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
    n_cut: NDArray[np.int64],
    budgets: NDArray[np.int64],
    starts_of_keys: NDArray[np.uint64],
    n_bins: int,
    published: bool,  # noqa: FBT001 - a kernel's
    drawn: Draws,
) -> None:
    done = 0
    for c in range(budgets.size):
        members = order[starts[c] : starts[c + 1]]
        if budgets[c] == 0 or members.size == 0:
            continue
        values = scores[members].astype(np.float64)
        uncut = _uncut(values, n_cut[c])
        bins = _bins(values[uncut], n_bins, published)
        sizes = np.zeros(n_bins, np.int64)
        for b in bins:
            if b != _NO_BIN:
                sizes[b] += 1
        drawn.n_outside[c] = uncut.size - sizes.sum()
        keys = _keys(uncut, starts_of_keys[c])
        counts = _shares(sizes, min(budgets[c], sizes.sum()))
        largest = _largest_keys(keys, bins, sizes, counts)
        for i, b in enumerate(bins):
            if b != _NO_BIN and counts[b] > 0 and keys[i] <= largest[b]:
                drawn.positions[done] = members[uncut[i]]
                drawn.bins[done], drawn.keys[done] = b, keys[i]
                done += 1


@kernel
def _uncut(values: NDArray[np.float64], n_cut: int) -> NDArray[np.int64]:
    """Return the positions, ascending, that are left when the lowest values are cut."""
    lowest = _kth_smallest(values.copy(), n_cut)
    n_equal_cut = n_cut - (values < lowest).sum()
    kept, n = np.empty(values.size + 1, np.int64), 0
    for i, value in enumerate(values):
        is_cut = value < lowest or (value == lowest and n_equal_cut > 0)
        n_equal_cut -= value == lowest
        kept[n] = i  # again by the next one, if this one is cut: branches would be guessed wrong
        n += not is_cut
    return kept[:n]


@kernel
def _bins(
    values: NDArray[np.float64],
    n_bins: int,
    published: bool,  # noqa: FBT001 - a kernel's
) -> NDArray[np.int64]:
    """Return bins of equal width over the range of the values, the last one closed."""
    low, high, bins = values.min(), values.max(), np.zeros(values.size, np.int64)
    for i, value in enumerate(values):
        if published:
            bins[i] = _published_bin(value, low, high, n_bins)
        elif low < high:
            number: Any = np.int64((value - low) / (high - low) * n_bins)
            bins[i] = min(max(number, 0), n_bins - 1)  # also where the range overflows
    return bins


@kernel
def _published_bin(value: float, low: float, high: float, n_bins: int) -> int:
    """Return the bin as the authors' code does in float32, or -1 for a value outside of all.

    Edges are ``low + k * step``, bins half open, and the last one ends at 1.0001 times the highest
    value: below that, if it is negative.
    """
    score, first = np.float32(value), np.float32(low)
    step = (np.float32(high) * np.float32(1.0001) - first) / np.float32(n_bins)
    for k in range(n_bins):
        if first + np.float32(k) * step <= score < first + np.float32(k + 1) * step:
            return k
    return _NO_BIN


@kernel
def _shares(sizes: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """Share a budget: every bin gives up to a level, then the fullest, or latest, one more each."""
    low, high = 0, budget
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(sizes, middle).sum() <= budget:
            low = middle
        else:
            high = middle - 1
    counts = np.minimum(sizes, low)
    n_left = budget - counts.sum()
    if n_left > 0:
        order = sizes * sizes.size + np.arange(sizes.size)
        counts += order >= _kth_smallest(order.copy(), sizes.size - n_left)
    return counts


@kernel
def _keys(positions: NDArray[np.int64], start: np.uint64) -> NDArray[np.uint64]:
    """Return the keys that `coreset.kernels.seeds.random_keys` gives some positions."""
    keys = np.empty(positions.size, np.uint64)
    for i, position in enumerate(positions):
        keys[i] = _random(start + np.uint64(position) * GOLDEN_GAMMA)
    return keys


@kernel
def _largest_keys(
    keys: NDArray[np.uint64],
    bins: NDArray[np.int64],
    sizes: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> NDArray[np.uint64]:
    """Return the largest key to draw of each bin; keys of a class all differ."""
    ends = np.cumsum(sizes)
    grouped, place = np.empty(ends[-1], np.uint64), ends - sizes
    for i, b in enumerate(bins):
        if b != _NO_BIN:
            grouped[place[b]] = keys[i]
            place[b] += 1
    largest = np.zeros(sizes.size, np.uint64)
    for b in range(sizes.size):
        if counts[b] > 0:
            largest[b] = _kth_smallest(grouped[ends[b] - sizes[b] : ends[b]], counts[b] - 1)
    return largest


@kernel
def _kth_smallest(values: NDArray[Any], k: int) -> Any:  # noqa: ANN401 - an item
    """Return the k-th smallest value, from 0, of an array to be overwritten.

    A pivot at random, so that no order is slow; then those on its side are moved to the front,
    without a branch, which would be guessed wrong every other time.
    """
    size, state = values.size, np.uint64(k)
    while True:
        state = _random(state)
        pivot = values[np.int64((state >> _HALF) * np.uint64(size) >> _HALF)]
        n_less, n_equal = 0, 0
        for value in values[:size]:
            n_less += value < pivot
            n_equal += value == pivot
        if n_less <= k < n_less + n_equal:
            return pivot
        is_less, n = k < n_less, 0
        k -= 0 if is_less else n_less + n_equal
        for value in values[:size]:
            values[n] = value
            n += value < pivot if is_less else value > pivot
        size = n
