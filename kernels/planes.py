"""Pixels as batches hold them: uint8, or normalised float32 with a plane per channel."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.compiling import kernel
from kernels.simd import LANES, fence, inner, stream_bytes, stream_planes

PLANE_ALIGNMENT = 64
"""Bytes on whose multiples planes are written past the caches, at twice the speed."""
BYTES_ALIGNMENT = LANES
"""The same of rows of uint8."""


def normalised_planes(
    image_hwc: NDArray[np.uint8], factors: NDArray[np.float32], out_chw: NDArray[np.float32]
) -> None:
    """Write ``pixel * factors[0, c] + factors[1, c]`` of an image to planes.

    Thread safe; other Python threads run meanwhile. The first call compiles.

    Args:
        image_hwc: uint8 of shape (h, w, 3), C-contiguous.
        factors: float32 of shape (2, 3), from `factors_of`.
        out_chw: float32 of shape (3, h, w), C-contiguous.
    """
    flat, planes = image_hwc.reshape(-1), out_chw.reshape(3, -1)
    aligned = planes.ctypes.data % PLANE_ALIGNMENT == planes[0].nbytes % PLANE_ALIGNMENT == 0
    _normalise(flat, Rows(0, 0, 0, 1, planes.shape[1], aligned), factors, planes)


def factors_of(mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Factors by which uint8 pixels become ``(pixel / 255 - mean) / std``: float32 (2, 3)."""
    spread = np.asarray(std, np.float64)
    return np.stack([1 / (255 * spread), -np.asarray(mean) / spread]).astype(np.float32)


def warm_up() -> None:
    """Compile, so that the first image does not wait for it."""
    image, planes = np.zeros((1, 1, 3), np.uint8), np.empty((3, 1, 1), np.float32)
    normalised_planes(image, factors_of((0, 0, 0), (1, 1, 1)), planes)


class Rows(NamedTuple):
    """Rows of pixels that become rows of planes."""

    at: int
    """First number that is read, and from one row to the next."""
    stride: int
    to: int
    """First pixel that is written; rows follow each other without gaps."""
    n_rows: int
    n_columns: int
    stream: bool
    """Past the caches: all places must lie on multiples of 16 numbers, and a `fence` follow."""


@kernel
def _normalise(
    pixels: NDArray[np.uint8], rows: Rows, factors: NDArray[np.float32], planes: NDArray[np.float32]
) -> None:
    keep_planes(pixels, rows, factors, planes)
    fence()


@inner
def keep_planes(
    pixels: NDArray[np.uint8], rows: Rows, factors: NDArray[np.float32], planes: NDArray[np.float32]
) -> None:
    """Write RGB pixels, normalised, to planes of shape (3, h * w)."""
    red, green, blue = planes[0], planes[1], planes[2]
    for row in range(rows.n_rows):
        at, to = rows.at + row * rows.stride, rows.to + row * rows.n_columns
        if rows.stream:
            for i in range(0, rows.n_columns, 16):
                stream_planes(pixels, at + 3 * i, factors, planes, to + i)
        else:
            for i in range(rows.n_columns):
                red[to + i] = np.float32(pixels[at + 3 * i]) * factors[0, 0] + factors[1, 0]
                green[to + i] = np.float32(pixels[at + 3 * i + 1]) * factors[0, 1] + factors[1, 1]
                blue[to + i] = np.float32(pixels[at + 3 * i + 2]) * factors[0, 2] + factors[1, 2]


@inner
def keep_bytes(pixels: NDArray[np.uint8], rows: Rows, out: NDArray[np.uint8]) -> None:
    """Write RGB pixels as they are; to stream, rows must lie on multiples of `BYTES_ALIGNMENT`."""
    n = 3 * rows.n_columns
    for row in range(rows.n_rows):
        at, to = rows.at + row * rows.stride, 3 * rows.to + row * n
        if rows.stream:
            for i in range(0, n, BYTES_ALIGNMENT):
                stream_bytes(pixels, at + i, out, to + i)
        else:
            for i in range(n):
                out[to + i] = pixels[at + i]
