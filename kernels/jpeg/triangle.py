"""Triangle filter of Pillow's bilinear resize along one axis, in integers with an exact sum."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coreset.kernels.jpeg.simd import inner

SHORT_ONE, LONG_ONE = 65535, 1 << 24  # sums of weights of 16 and of 24 bits
_MOST_SHORT_SCALE = 15
"""Up to this scale (31 taps) the errors of 16-bit weights and sums stay below a quarter level."""


class Axis(NamedTuple):
    """Integer weights of the input positions in each output position of one axis."""

    starts: NDArray[np.int64]
    """First input position of each output."""
    weights: NDArray[np.uint32]
    """Shape (outputs, taps)."""


def is_short(n_in: int, n_out: int) -> bool:
    """Test whether weights of 16 bits are exact enough for an axis."""
    return n_in >= 3 and n_in <= _MOST_SHORT_SCALE * n_out


@inner
def _window(at: int, scale: float, n_in: int) -> tuple[int, int]:
    """Return the first and one past the last input of output ``at``, rounded as in Pillow."""
    centre, support = (at + 0.5) * scale, max(scale, 1.0)
    return max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), n_in)


def span_of(n_in: int, n_out: int, begin: int, end: int) -> tuple[int, int]:
    """Return the inputs that the outputs begin .. end-1 of `axis_of` need, and up to two more."""
    scale = n_in / n_out
    support = max(scale, 1.0)
    taps = min(n_in, max(3, int(2 * support) + 2))
    first, last = (max(int((at + 0.5) * scale - support + 0.5), 0) for at in (begin, end - 1))
    return min(first, n_in - taps), min(last + taps, n_in)


@inner
def axis_of(n_in: int, n_out: int, begin: int, end: int, one: int) -> Axis:
    """Compute the weights of the outputs begin .. end-1 of an axis; each sum is ``one``.

    Every output has the same number of taps, whatever the box: windows that the border cuts are
    moved inside and get weights of 0.
    """
    scale, taps = n_in / n_out, min(3, n_in)
    for at in range(n_out):
        first, stop = _window(at, scale, n_in)
        taps = max(taps, stop - first)
    starts = np.empty(end - begin, np.int64)
    weights = np.zeros((end - begin, taps), np.uint32)
    for at in range(begin, end):
        first, stop = _window(at, scale, n_in)
        start = min(first, n_in - taps)
        starts[at - begin] = start
        offset = first + 0.5 - (at + 0.5) * scale
        _fill_triangle(weights[at - begin, first - start : stop - start], offset, scale, one)
    return Axis(starts, weights)


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
