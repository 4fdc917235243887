"""Write decoded pixels to a batch: as uint8, or normalised to float32 planes per channel."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coreset.kernels.jit import kernel
from coreset.kernels.jpeg.ffi import address_of, load_at, store_at
from coreset.kernels.jpeg.simd import LANES, fence, inner, stream_bytes, stream_planes

PLANE_ALIGNMENT = 64
"""Alignment in bytes with which planes are written past the caches."""
BYTES_ALIGNMENT = LANES
"""Alignment in bytes with which rows of uint8 are written past the caches."""


def normalised_planes(
    image_hwc: NDArray[np.uint8], factors: NDArray[np.float32], out_chw: NDArray[np.float32]
) -> None:
    """Write ``pixel * factors[0, c] + factors[1, c]`` of an image to planes.

    Thread safe; releases the interpreter. The first call compiles.

    Args:
        image_hwc: uint8 of shape (h, w, 3), C-contiguous.
        factors: float32 of shape (2, 3), from `factors_of`.
        out_chw: float32 of shape (3, h, w), C-contiguous.
    """
    flat, planes = image_hwc.reshape(-1), out_chw.reshape(3, -1)
    aligned = planes.ctypes.data % PLANE_ALIGNMENT == planes[0].nbytes % PLANE_ALIGNMENT == 0
    _normalise(flat, planes.shape[1], aligned, factors, planes)


def factors_of(mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Return the factors that turn uint8 into ``(pixel / 255 - mean) / std``, float32 (2, 3)."""
    spread = np.asarray(std, np.float64)
    return np.stack([1 / (255 * spread), -np.asarray(mean) / spread]).astype(np.float32)


def warm_up() -> None:
    """Compile before the first image needs it."""
    image, planes = np.zeros((1, 1, 3), np.uint8), np.empty((3, 1, 1), np.float32)
    normalised_planes(image, factors_of((0, 0, 0), (1, 1, 1)), planes)


class Rows(NamedTuple):
    """Rows of RGB pixels in uint8, and their place in an image of a batch."""

    source: int
    """Address of the first pixel that is read."""
    stride: int
    """Bytes from one row to the next."""
    to: int
    """Number of the first pixel that is written; rows follow each other without gaps."""
    n_rows: int
    n_columns: int
    stream: bool
    """Write past the caches: all targets must be aligned, and a `fence` must follow."""


@kernel
def _normalise(
    pixels: NDArray[np.uint8],
    n_pixels: int,
    stream: bool,  # noqa: FBT001 - a kernel's
    factors: NDArray[np.float32],
    planes: NDArray[np.float32],
) -> None:
    rows = Rows(address_of(pixels), 0, 0, 1, n_pixels, stream)
    write_planes(rows, address_of(factors), address_of(planes), 4 * n_pixels)
    fence()


@inner
def write_planes(rows: Rows, factors: int, planes: int, plane: int) -> None:
    """Normalise rows by the factors at an address to planes of ``plane`` bytes at another."""
    scales, shifts = _load_triple(factors), _load_triple(factors + 12)
    for row in range(rows.n_rows):
        source = rows.source + row * rows.stride
        target = planes + 4 * (rows.to + row * rows.n_columns)
        if rows.stream:
            for i in range(0, rows.n_columns, 16):
                stream_planes(source + 3 * i, factors, target + 4 * i, plane)
        else:
            for channel in range(3):
                scale, shift = scales[channel], shifts[channel]
                for i in range(rows.n_columns):
                    pixel = np.float32(load_at(source + 3 * i + channel, np.uint8))
                    store_at(target + channel * plane + 4 * i, pixel * scale + shift)


@inner
def _load_triple(address: int) -> tuple[np.float32, np.float32, np.float32]:
    """Read three float32 at an address."""
    return (
        load_at(address, np.float32),
        load_at(address + 4, np.float32),
        load_at(address + 8, np.float32),
    )


@inner
def write_bytes(rows: Rows, out: int) -> None:
    """Copy rows to the image at an address; streaming needs `BYTES_ALIGNMENT`."""
    n = 3 * rows.n_columns
    for row in range(rows.n_rows):
        source, target = rows.source + row * rows.stride, out + 3 * rows.to + row * n
        if rows.stream:
            for i in range(0, n, BYTES_ALIGNMENT):
                stream_bytes(source + i, target + i)
        else:
            for i in range(n):
                store_at(target + i, load_at(source + i, np.uint8))
