"""Antialiased bilinear resampling of uint8 images, as Pillow defines it, six times as fast.

The filter is that of Pillow's ``Image.resize(size, BILINEAR)`` (``src/libImaging/Resample.c``,
``precompute_coeffs``): output x is a triangle of half-width ``support = max(scale, 1)`` around
``centre = (x + 0.5) * scale`` with ``scale = input / output``, cut at the borders and normalised.

Deliberate differences from Pillow, which together move a pixel by at most 1 level:

- vertical pass first, over the columns that are needed, and 8 fraction bits between the passes,
  where Pillow goes horizontally first and rounds to whole levels between;
- integer weights of 16 bits (24 for more than 32 taps and for inputs of a few pixels) with an exact
  sum: constants stay constant.

Both passes add contiguous runs of numbers, which is what SIMD units are fast at: columns in the
vertical pass and, after a transposition of 32 output rows, rows in the horizontal pass. Integers
only: the same bytes on every machine and for every box. Measured in turns on one thread of a Xeon
with AVX-512, 500x375 to 341x256: 0.16 ms, Pillow 0.98 ms, ``torch.nn.functional.interpolate`` on
uint8 0.36 ms.
"""

from typing import NamedTuple, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

from kernels.simd import fixed, high_product, inner, transpose_square, truncated
from kernels.triangle import Axis, axis_of, is_short

Samples: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]

_LANES = 32
"""Output rows per block: the vector of the horizontal pass."""
_STRIP = 384
"""Samples of a row that the vertical pass filters at a time; a block of them stays in the L1."""
_STRIP_STRIDE = _STRIP + 24
"""Off a power of two, where the rows of a block would share cache sets."""
_TILE = 16
"""Output pixels of the horizontal pass between two transpositions."""


class _Runs(NamedTuple):
    """Where the runs of samples that are weighted and added lie in a flat array."""

    base: int
    """Index of the run of input position 0."""
    stride: int
    """From the run of one input position to that of the next."""
    n: int
    """Samples of a run."""


def resize(
    image_hwc: NDArray[np.uint8],
    width: int,
    height: int,
    *,
    box: tuple[int, int, int, int] | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Resize an image, or compute a box of the resized image only.

    Thread safe; other Python threads run meanwhile. The first call compiles (`warm_up`).

    Args:
        image_hwc: uint8 of shape (h, w, c) with any number of channels; copied if not contiguous.
        width: Columns of the resized image.
        height: Rows of the resized image.
        box: (left, top, right, bottom) of the output pixels to compute, right and bottom excluded;
            the same values as this crop of the full result. None: all.
        out: C-contiguous uint8 buffer of the result's shape to write to; a new array if None.

    Returns:
        uint8 of shape (bottom - top, right - left, c), within 1 level of Pillow.

    Raises:
        ValueError: An argument of another type or shape, or a box outside the resized image.
    """
    _require_image(image_hwc)
    left, top, right, bottom = _checked_box(width, height, box)
    channels = image_hwc.shape[2]
    shape = (bottom - top, right - left, channels)
    if out is None:
        out = np.empty(shape, np.uint8)
    _require_buffer(out, shape)
    # Read-only views of a plain array: one type, so one compilation, for whatever the caller has.
    rows = np.ascontiguousarray(image_hwc).reshape(image_hwc.shape[0], -1)
    rows.flags.writeable = False
    _resample(
        rows, channels, (width, height), (left, top, right, bottom), out.reshape(len(out), -1)
    )
    return out


def warm_up() -> None:
    """Compile (3 to 4 s), so that the first image does not wait for it."""
    resize(np.zeros((1, 1, 1), np.uint8), 1, 1)


def _require_image(image_hwc: NDArray[np.uint8]) -> None:
    if image_hwc.dtype != np.uint8 or image_hwc.ndim != 3 or image_hwc.size == 0:
        raise ValueError(
            "image_hwc must be uint8 of shape (h, w, c) without a zero, "
            f"got {image_hwc.dtype} of shape {image_hwc.shape}"
        )


def _checked_box(
    width: int, height: int, box: tuple[int, int, int, int] | None
) -> tuple[int, int, int, int]:
    if width < 1 or height < 1:
        raise ValueError(f"width and height must be at least 1, got {width} x {height}")
    left, top, right, bottom = box or (0, 0, width, height)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(
            f"box must be (left, top, right, bottom) with pixels in {width} x {height}, got {box}"
        )
    return left, top, right, bottom


def _require_buffer(out: NDArray[np.uint8], shape: tuple[int, int, int]) -> None:
    if out.dtype != np.uint8 or out.shape != shape:
        raise ValueError(f"out must be uint8 of shape {shape}, got {out.dtype} of {out.shape}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("out must be C-contiguous and writeable; pass a whole array or batch[i]")


@njit(nogil=True)
def _resample(
    image: NDArray[np.uint8], channels: int, size: tuple[int, int], box: tuple[int, int, int, int],
    out: NDArray[np.uint8],
) -> None:  # fmt: skip
    """Rows of ``image`` and ``out`` are pixels times channels; ``size`` is (width, height)."""
    horizontal = axis_of(image.shape[1] // channels, size[0], box[0], box[2])
    vertical = axis_of(image.shape[0], size[1], box[1], box[3])
    lanes, first = channels * _LANES, horizontal.starts[0] * channels
    n_pixels, n_taps = horizontal.weights.shape
    n_samples = (horizontal.starts[-1] + n_taps) * channels - first
    strip = np.empty(_LANES * _STRIP_STRIDE, np.uint16)
    columns = np.empty((n_samples + 7) // 8 * 8 * _LANES, np.uint16)
    tile = np.empty(_TILE * lanes, np.uint8)
    samples = image.reshape(-1)
    for top in range(0, out.shape[0], _LANES):
        block = out[top : min(top + _LANES, out.shape[0])]
        rows = _part(vertical, top, _LANES)
        for at in range(0, n_samples, _STRIP):
            runs = _Runs(first + at, image.shape[1], min(_STRIP, n_samples - at))
            _filter(samples, runs, rows, strip, _STRIP_STRIDE)
            _transpose_strip(strip, runs.n, rows.starts.size, columns, at)
        for left in range(0, n_pixels, _TILE):
            pixels = _part(horizontal, left, _TILE)
            runs = _Runs(-horizontal.starts[0] * lanes, lanes, lanes)
            _filter(columns, runs, pixels, tile, lanes)
            _store_tile(tile, pixels.starts.size * channels, block, left * channels)


@inner
def _part(axis: Axis, begin: int, n: int) -> Axis:
    end = min(begin + n, axis.starts.size)
    return Axis(axis.starts[begin:end], axis.weights[begin:end])


@inner
def _filter(source: Samples, runs: _Runs, axis: Axis, target: Samples, to_stride: int) -> None:
    """Add weighted runs: parts of rows in the vertical pass, of columns in the horizontal pass.

    target[j * to_stride + i] = sum over k of
    weights[j, k] * source[base + (starts[j] + k) * stride + i], for i = 0 .. n-1.
    Sums have 8 fraction bits, which a uint16 target keeps and a uint8 target rounds away.
    """
    n_taps = axis.weights.shape[1]
    if n_taps == 3:
        _filter_3(source, runs, axis, target, to_stride)
    elif is_short(n_taps):
        _filter_by_4(source, runs, axis, target, to_stride)
    else:
        _filter_long(source, runs, axis, target, to_stride)


@inner
def _filter_3(source: Samples, runs: _Runs, axis: Axis, target: Samples, to_stride: int) -> None:
    """`_filter` unrolled, for images that shrink to 2/3 or more and all that grow."""
    rounding, stride, n = _rounding(3, target), runs.stride, runs.n
    for j in range(axis.starts.size):
        at, to = runs.base + axis.starts[j] * stride, j * to_stride
        a, b = source[at : at + n], source[at + stride : at + stride + n]
        c, into = source[at + 2 * stride : at + 2 * stride + n], target[to : to + n]
        w_a, w_b = np.uint16(axis.weights[j, 0]), np.uint16(axis.weights[j, 1])
        w_c = np.uint16(axis.weights[j, 2])
        for i in range(n):
            total = high_product(fixed(a[i]), w_a) + high_product(fixed(b[i]), w_b)
            total += high_product(fixed(c[i]), w_c) + rounding
            into[i] = truncated(np.uint16(total), target)


@inner
def _filter_by_4(source: Samples, runs: _Runs, axis: Axis, target: Samples, to_stride: int) -> None:
    """`_filter` with 16-bit sums, four taps at a time."""
    n_taps, stride, n = axis.weights.shape[1], runs.stride, runs.n
    rounding, totals = _rounding(n_taps, target), np.empty(n, np.uint16)
    for j in range(axis.starts.size):
        totals[:] = rounding
        for k in range(0, n_taps, 4):
            at, w = runs.base + (axis.starts[j] + k) * stride, axis.weights[j]
            a, b = source[at : at + n], source[at + stride : at + stride + n]
            at += 2 * stride
            c, d = source[at : at + n], source[at + stride : at + stride + n]
            w_a, w_b = np.uint16(w[k]), np.uint16(w[k + 1])
            w_c, w_d = np.uint16(w[k + 2]), np.uint16(w[k + 3])
            for i in range(n):
                total = high_product(fixed(a[i]), w_a) + high_product(fixed(b[i]), w_b)
                total += high_product(fixed(c[i]), w_c) + high_product(fixed(d[i]), w_d)
                totals[i] += np.uint16(total)
        into = target[j * to_stride : j * to_stride + n]
        for i in range(n):
            into[i] = truncated(totals[i], target)


@inner
def _filter_long(source: Samples, runs: _Runs, axis: Axis, target: Samples, to_stride: int) -> None:
    """`_filter` with 24-bit weights and 64-bit sums: many taps, or inputs of a few pixels."""
    n, totals = runs.n, np.empty(runs.n, np.uint64)
    half = np.uint64(1 << 31 if target.itemsize == 1 else 1 << 23)
    for j in range(axis.starts.size):
        totals[:] = half
        for k in range(axis.weights.shape[1]):
            at = runs.base + (axis.starts[j] + k) * runs.stride
            run, weight = source[at : at + n], np.uint64(axis.weights[j, k])
            for i in range(n):
                totals[i] += np.uint64(fixed(run[i])) * weight
        into = target[j * to_stride : j * to_stride + n]
        for i in range(n):
            into[i] = truncated(np.uint16(totals[i] >> np.uint64(24)), target)


@inner
def _rounding(n_taps: int, target: Samples) -> np.uint16:
    """Half a level if a fraction is cut off, and what ``n_taps`` high products lose on average."""
    return np.uint16(n_taps // 2 + (128 if target.itemsize == 1 else 0))


@inner
def _transpose_strip(
    strip: NDArray[np.uint16], n: int, n_rows: int, columns: NDArray[np.uint16], to: int
) -> None:
    """Rows of ``strip`` become lanes of ``columns``; up to 7 of either beyond the end are junk."""
    for at in range(0, n, 8):
        for row in range(0, n_rows, 8):
            transpose_square(
                strip, row * _STRIP_STRIDE + at, _STRIP_STRIDE,
                columns, (to + at) * _LANES + row, _LANES,
            )  # fmt: skip


@inner
def _store_tile(tile: NDArray[np.uint8], n: int, block: NDArray[np.uint8], left: int) -> None:
    """Lanes of ``tile`` become rows of ``block``: squares of 16, then what is left beside them."""
    n_rows, stride = block.shape
    square_rows, square_samples = n_rows // 16 * 16, n // 16 * 16
    flat = block.reshape(-1)
    for row in range(0, square_rows, 16):
        for at in range(0, square_samples, 16):
            to = row * stride + left + at
            transpose_square(tile, at * _LANES + row, _LANES, flat, to, stride)
    for row in range(n_rows):
        for at in range(square_samples if row < square_rows else 0, n):
            block[row, left + at] = tile[at * _LANES + row]
