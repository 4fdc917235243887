"""Antialiased bilinear resizing of uint8 images, within 1 level of Pillow.

The filter is that of Pillow's ``Image.resize(size, BILINEAR)`` (``precompute_coeffs``): output x is
a triangle of half-width ``support = max(scale, 1)`` around ``centre = (x + 0.5) * scale`` with
``scale = input / output``, cut at the borders and normalised. Unlike in Pillow, the vertical pass
comes first and keeps 8 fraction bits. Weights are integers of 16 bits with an exact sum, so
constants stay constant; where more than about 30 pixels become one, and for inputs of 1 or 2
pixels, they have 24 bits. All arithmetic is integer: the same bytes on every machine and for every
box.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.kernels.jit import kernel
from coreset.kernels.jpeg.simd import (
    LANES,
    add_product,
    inner,
    splat,
    store,
    transpose_in,
    transpose_out,
)
from coreset.kernels.jpeg.triangle import LONG_ONE, SHORT_ONE, Axis, axis_of, is_short, span_of

Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom excluded."""
_Samples: TypeAlias = NDArray[np.uint8 | np.uint16]

_OUTPUTS = np.dtype(np.uint8), np.dtype(np.uint16)
_STRIP = 384  # samples of a row that are filtered at a time: 32 such rows fit in the L1 cache
_STRIP_STRIDE = _STRIP + LANES  # no power of two, or the rows would share cache sets
_TILE = 64  # output pixels of the horizontal pass between two transpositions
_GROUP = 3 * LANES  # samples that are summed at once, in three independent sums


class _Job(NamedTuple):
    """One resize: a region of the image to a size, of which a box is computed."""

    channels: int
    region: Box
    size: tuple[int, int]
    box: Box


class _Runs(NamedTuple):
    """Runs of samples in a flat array that are weighted and added."""

    base: int
    """Index of the run of input position 0."""
    stride: int
    """Distance from the run of one input position to the next."""
    n: int


def resize(
    image_hwc: NDArray[np.uint8],
    width: int,
    height: int,
    *,
    box: Box | None = None,
    region: Box | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Resize an image or a region of it, or compute a box of the resized image only.

    Thread safe; releases the interpreter. The first call compiles (`warm_up`).

    Args:
        image_hwc: With any number of channels; copied if not contiguous.
        width: Columns of the resized image.
        height: Rows of the resized image.
        box: Output pixels to compute, equal to this crop of the full result. None: all.
        region: Part of the image to resize as if it were a copy. None: the whole image. Where
            ``image_hwc`` is itself the `reach` of a larger image, the region may go beyond it.
        out: C-contiguous buffer of the result's shape to write to: uint8, or uint16 for 256 times
            the levels with their fractions. A new array of uint8 if None.

    Raises:
        ValueError: An argument of another type or shape, or a box or region outside its image.
    """
    if image_hwc.dtype != np.uint8 or image_hwc.ndim != 3 or image_hwc.size == 0:
        raise ValueError(
            "image_hwc must be uint8 of shape (h, w, c) without a zero, "
            f"got {image_hwc.dtype} of shape {image_hwc.shape}"
        )
    from_height, from_width, channels = image_hwc.shape
    box = box or (0, 0, width, height)
    _require_inside("box", box, width, height)
    x_0, y_0, x_1, y_1 = region = region or (0, 0, from_width, from_height)
    if not _is_inside(region, from_width, from_height):
        _require_inside("region", reach(region, width, height, box), from_width, from_height)
    shape = (box[3] - box[1], box[2] - box[0], channels)
    if out is None:
        out = np.empty(shape, np.uint8)
    if out.dtype not in _OUTPUTS or out.shape != shape or not out.flags.carray:
        raise ValueError(
            f"out must be C-contiguous, writeable uint8 or uint16 of shape {shape}, got "
            f"{out.dtype} of {out.shape}; pass a whole array or batch[i]"
        )
    # Read-only views of a plain array: one type, so one compilation, for whatever the caller has.
    rows = _wide_rows(image_hwc)
    rows.flags.writeable = False
    short = is_short(y_1 - y_0, height) and is_short(x_1 - x_0, width)
    job = _Job(channels, region, (width, height), box)
    (_resample if short else _resample_long)(rows, job, out.reshape(len(out), -1))
    return out


def reach(region: Box, width: int, height: int, box: Box) -> Box:
    """Return the box of pixels from which ``box`` of the resized ``region`` is computed."""
    left, top, right, bottom = region
    n_columns, n_rows = right - left, bottom - top
    if not (is_short(n_columns, width) and is_short(n_rows, height)):
        return region
    first, stop = span_of(n_columns, width, box[0], box[2])
    above, below = span_of(n_rows, height, box[1], box[3])
    return left + first, top + above, left + stop, top + below


def warm_up(*, long: bool = True) -> None:
    """Compile before the first image needs it; ``long`` also for 24-bit weights, which few need."""
    for side in (3, 1) if long else (3,):  # a side of 1 needs 24 bits
        resize(np.zeros((side, side, 1), np.uint8), side, side)


def _wide_rows(image_hwc: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rows = np.ascontiguousarray(image_hwc).reshape(image_hwc.shape[0], -1)
    missing = LANES - rows.shape[1]
    return np.pad(rows, ((0, 0), (0, missing))) if missing > 0 else rows


def _is_inside(box: Box, width: int, height: int) -> bool:
    left, top, right, bottom = box
    return 0 <= left < right <= width and 0 <= top < bottom <= height


def _require_inside(name: str, box: Box, width: int, height: int) -> None:
    if not _is_inside(box, width, height):
        raise ValueError(
            f"{name} must be (left, top, right, bottom) in {width} x {height} pixels, got {box}"
        )


@kernel
def _resample(image: NDArray[np.uint8], job: _Job, out: _Samples) -> None:
    """Resize with 16-bit weights; rows of ``image`` and ``out`` are pixels times channels."""
    channels, region, size, box = job
    horizontal = axis_of(region[2] - region[0], size[0], box[0], box[2], SHORT_ONE)
    vertical = axis_of(region[3] - region[1], size[1], box[1], box[3], SHORT_ONE)
    begin = region[0] * channels
    first = min(begin + horizontal.starts[0] * channels, image.shape[1] - LANES)
    stop = begin + (horizontal.starts[-1] + horizontal.weights.shape[1]) * channels
    n_samples = max(stop - first, LANES)
    strip = np.empty(LANES * _STRIP_STRIDE, np.uint16)
    columns = np.empty((n_samples + 7) * LANES, np.uint16)
    spare = np.empty((LANES if out.shape[0] % LANES else 0, out.shape[1]), out.dtype)
    for top in range(0, out.shape[0], LANES):
        rows = _slice_axis(vertical, top, LANES)
        for left in range(0, n_samples, _STRIP):
            at = max(0, min(left, n_samples - _STRIP))
            base = region[1] * image.shape[1] + first + at
            runs = _Runs(base, image.shape[1], min(_STRIP, n_samples))
            _filter(image.reshape(-1), runs, rows, strip, _STRIP_STRIDE)
            for i in range(0, runs.n, 8):
                transpose_in(strip, i, _STRIP_STRIDE, columns, (at + i) * LANES)
        n_rows = rows.starts.size
        block = out[top : top + LANES] if n_rows == LANES else spare
        _filter_columns(columns, (begin - first) * LANES, channels, horizontal, block)
        for row in range(n_rows if n_rows < LANES else 0):
            for i in range(out.shape[1]):
                out[top + row, i] = spare[row, i]


@inner
def _filter_columns(
    columns: NDArray[np.uint16], base: int, channels: int, axis: Axis, block: _Samples
) -> None:
    """Run the horizontal pass over 32 rows, which lie side by side in ``columns``."""
    stride, n_pixels = channels * LANES, axis.starts.size
    tile = np.empty(_TILE * stride, block.dtype)
    for left in range(0, n_pixels, _TILE):
        at = max(0, min(left, n_pixels - _TILE))
        pixels = _slice_axis(axis, at, _TILE)
        _filter(columns, _Runs(base, stride, stride), pixels, tile, stride)
        _store_tile(tile, pixels.starts.size * channels, block, at * channels)


@inner
def _slice_axis(axis: Axis, begin: int, n: int) -> Axis:
    end = min(begin + n, axis.starts.size)
    return Axis(axis.starts[begin:end], axis.weights[begin:end])


@inner
def _filter(source: _Samples, runs: _Runs, axis: Axis, target: _Samples, to_stride: int) -> None:
    """Add weighted runs: parts of rows in the vertical pass, of columns in the horizontal pass.

    target[j * to_stride + i] = sum over k of weights[j, k] * source[base + (starts[j] + k) * stride
    + i]. A uint16 target keeps 8 fraction bits. The last vector of a run overlaps the one before.
    """
    # What truncation loses: half a level, and the mean loss of the products.
    rounding = splat(axis.weights.shape[1] // 2 + (128 if target.itemsize == 1 else 0))
    for j in range(axis.starts.size):
        weights, to = axis.weights[j], j * to_stride
        at, i = runs.base + axis.starts[j] * runs.stride, 0
        while i + _GROUP <= runs.n:
            a, b, c = rounding, rounding, rounding
            for k in range(weights.size):
                weight, sample = splat(weights[k]), at + k * runs.stride + i
                a = add_product(a, source, sample, weight)
                b = add_product(b, source, sample + LANES, weight)
                c = add_product(c, source, sample + 2 * LANES, weight)
            store(a, target, to + i)
            store(b, target, to + i + LANES)
            store(c, target, to + i + 2 * LANES)
            i += _GROUP
        while i < runs.n:
            i, total = min(i, runs.n - LANES), rounding
            for k in range(weights.size):
                total = add_product(total, source, at + k * runs.stride + i, splat(weights[k]))
            store(total, target, to + i)
            i += LANES


@inner
def _store_tile(tile: _Samples, n: int, block: _Samples, left: int) -> None:
    """Transpose vectors of ``tile`` to 32 rows of ``block``, 16 bytes of each at a time."""
    step = 16 // block.itemsize
    for i in range(0, n if n >= step else 0, step):
        at = min(i, n - step)
        transpose_out(tile, at * LANES, block.reshape(-1), left + at, block.shape[1])
    for i in range(n if n < step else 0):
        for row in range(LANES):
            block[row, left + i] = tile[i * LANES + row]


@kernel
def _resample_long(image: NDArray[np.uint8], job: _Job, out: _Samples) -> None:
    """Resize with 24-bit weights and 64-bit sums, row by row."""
    channels, region, size, box = job
    horizontal = axis_of(region[2] - region[0], size[0], box[0], box[2], LONG_ONE)
    vertical = axis_of(region[3] - region[1], size[1], box[1], box[3], LONG_ONE)
    dropped = np.uint64(32 if out.itemsize == 1 else 24)  # fraction bits
    begin, sums = region[0] * channels, np.empty((region[2] - region[0]) * channels, np.uint64)
    for j in range(out.shape[0]):
        sums[:] = 1 << 15  # rounds at the shift, which leaves 8 fraction bits
        for k in range(vertical.weights.shape[1]):
            row = image[region[1] + vertical.starts[j] + k]
            weight = np.uint64(vertical.weights[j, k])
            for i in range(sums.size):
                sums[i] += np.uint64(row[begin + i]) * weight
        sums >>= np.uint64(16)
        for i in range(out.shape[1]):
            total = np.uint64(1) << (dropped - np.uint64(1))
            for k in range(horizontal.weights.shape[1]):
                at = (horizontal.starts[i // channels] + k) * channels + i % channels
                total += sums[at] * np.uint64(horizontal.weights[i // channels, k])
            out[j, i] = total >> dropped
