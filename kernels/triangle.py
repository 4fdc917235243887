"""The triangle filter of Pillow's bilinear resize along one axis, in integers with an exact sum."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.simd import inner

MOST_SHORT_TAPS = 32
"""Up to here the errors of 16-bit weights and sums stay within a quarter of a level."""
_SHORT_ONE = 65535
_LONG_ONE = 1 << 24


class Axis(NamedTuple):
    """How output positions of one axis are made of input positions."""

    starts: NDArray[np.int64]
    """First input position of each output."""
    weights: NDArray[np.uint32]
    """Integer weights, (outputs, taps)."""


@inner
def _window(at: int, scale: float, n_in: int) -> tuple[int, int]:
    """First and one past the last input that output ``at`` is made of, as Pillow rounds them."""
    centre, support = (at + 0.5) * scale, max(scale, 1.0)
    return max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), n_in)


@inner
def axis_of(n_in: int, n_out: int, begin: int, end: int) -> Axis:
    """The outputs begin .. end-1 of an axis.

    Every output has the same number of taps, whatever the box: windows that the border cuts are
    moved inside and get weights of 0, as do taps that are added to reach the 3 or the multiple of 4
    of the fast filters.
    """
    scale, taps = n_in / n_out, min(3, n_in)
    for at in range(n_out):
        first, stop = _window(at, scale, n_in)
        taps = max(taps, stop - first)
    if 3 < taps <= MOST_SHORT_TAPS:
        taps = min((taps + 3) // 4 * 4, n_in)
    starts = np.empty(end - begin, np.int64)
    weights = np.zeros((end - begin, taps), np.uint32)
    one = _SHORT_ONE if is_short(taps) else _LONG_ONE
    for at in range(begin, end):
        first, stop = _window(at, scale, n_in)
        start = min(first, n_in - taps)
        starts[at - begin] = start
        offset = first + 0.5 - (at + 0.5) * scale
        _fill_triangle(weights[at - begin, first - start : stop - start], offset, scale, one)
    return Axis(starts, weights)


@inner
def is_short(n_taps: int) -> bool:
    """Whether there is a fast filter, of 16 bits, for this many taps."""
    return n_taps == 3 or (n_taps % 4 == 0 and n_taps <= MOST_SHORT_TAPS)


@inner
def _fill_triangle(weights: NDArray[np.uint32], offset: float, scale: float, one: int) -> None:
    """Round the running sum of the weights instead of each, so that their total is exact."""
    support, total = max(scale, 1.0), 0.0
    for k in range(weights.size):
        total += 1.0 - abs(k + offset) / support
    running, given = 0.0, 0
    for k in range(weights.size):
        running += 1.0 - abs(k + offset) / support
        up_to_here = int(running / total * one + 0.5)
        weights[k] = up_to_here - given
        given = up_to_here
