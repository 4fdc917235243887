"""A box of an enlarged image, computed without the rest: Pillow's arithmetic, bit by bit.

A crop from an image in extreme proportions is a small part of what the whole becomes when its short
side is resized: 224 x 224 of 256 x 1,536,000 pixels for one of 1 x 6,000. ``Image.resize`` takes a
box of the source in single precision only, and so would give other pixels.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coreset.engine.data.geometry import Box

_PRECISION_BITS = 22
"""Of weights: ``PRECISION_BITS`` of Pillow's ``src/libImaging/Resample.c``."""


class _Taps(NamedTuple):
    """Return the input positions of n outputs, and the weight of each, k = taps."""

    positions_nk: NDArray[np.int64]
    weights_nk: NDArray[np.int64]


def enlarged_box(
    image_hwc: NDArray[np.uint8], width: int, height: int, box: Box
) -> NDArray[np.uint8]:
    """Compute a box of ``Image.resize((width, height), BILINEAR)``.

    Args:
        image_hwc: uint8 of shape (h, w, c).
        width: Columns of the enlarged image, at least w.
        height: Rows of the enlarged image, at least h.
        box: Left, top, right, bottom of what is computed, in pixels of the enlarged image.

    Returns:
        uint8 of shape (bottom - top, right - left, c).
    """
    left, top, right, bottom = box
    rows = _taps(image_hwc.shape[0], height, top, bottom)
    first, stop = int(rows.positions_nk.min()), int(rows.positions_nk.max()) + 1
    wide_whc = _weighted(
        image_hwc[first:stop].swapaxes(0, 1), _taps(image_hwc.shape[1], width, left, right)
    )
    return _weighted(wide_whc.swapaxes(0, 1), rows._replace(positions_nk=rows.positions_nk - first))


def _taps(n_in: int, n_out: int, first: int, stop: int) -> _Taps:
    """Weigh the inputs of outputs first .. stop - 1 as ``precompute_coeffs`` does."""
    centres_n = (np.arange(first, stop) + 0.5) * (n_in / n_out)
    starts_n = np.maximum((centres_n - 0.5).astype(np.int64), 0)
    stops_n = np.minimum((centres_n + 1.5).astype(np.int64), n_in)
    positions_nk = starts_n[:, None] + np.arange((stops_n - starts_n).max())
    distances_nk = np.abs(positions_nk - centres_n[:, None] + 0.5)
    shares_nk = np.where(positions_nk < stops_n[:, None], np.maximum(1 - distances_nk, 0), 0)
    shares_nk /= shares_nk.sum(axis=1, keepdims=True)
    weights_nk = (shares_nk * (1 << _PRECISION_BITS) + 0.5).astype(np.int64)
    return _Taps(np.minimum(positions_nk, n_in - 1), weights_nk)


def _weighted(lines: NDArray[np.uint8], taps: _Taps) -> NDArray[np.uint8]:
    """Add weighted lines (the first axis) and round to whole levels."""
    total = np.full((len(taps.positions_nk), *lines.shape[1:]), 1 << (_PRECISION_BITS - 1))
    for position_n, weight_n in zip(taps.positions_nk.T, taps.weights_nk.T, strict=True):
        total += lines[position_n] * weight_n[:, None, None]
    return (total >> _PRECISION_BITS).clip(0, 255).astype(np.uint8)
