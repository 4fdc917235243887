"""Pixels as networks take them: normalised float32, a plane per channel."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.compiling import kernel
from kernels.simd import fence, stream_planes

PLANE_ALIGNMENT = 64
"""Bytes on whose multiples planes are written past the caches, at twice the speed."""


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
    (_stream if aligned else _store)(flat, factors, planes)


def factors_of(mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Factors by which uint8 pixels become ``(pixel / 255 - mean) / std``: float32 (2, 3)."""
    spread = np.asarray(std, np.float64)
    return np.stack([1 / (255 * spread), -np.asarray(mean) / spread]).astype(np.float32)


def warm_up() -> None:
    """Compile both ways, so that the first image does not wait for it."""
    image, memory = np.zeros((4, 4, 3), np.uint8), np.empty(3 * 16 + 16, np.float32)
    start = -memory.ctypes.data % PLANE_ALIGNMENT // memory.itemsize
    for first in (start, (start + 1) % 16):
        normalised_planes(
            image, factors_of((0, 0, 0), (1, 1, 1)), memory[first : first + 48].reshape(3, 4, 4)
        )


@kernel
def _stream(
    pixels: NDArray[np.uint8], factors: NDArray[np.float32], planes: NDArray[np.float32]
) -> None:
    for i in range(0, planes.shape[1], 16):
        stream_planes(pixels, 3 * i, factors, planes, i)
    fence()


@kernel
def _store(
    pixels: NDArray[np.uint8], factors: NDArray[np.float32], planes: NDArray[np.float32]
) -> None:
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(red.size):
        red[i] = np.float32(pixels[3 * i]) * factors[0, 0] + factors[1, 0]
        green[i] = np.float32(pixels[3 * i + 1]) * factors[0, 1] + factors[1, 1]
        blue[i] = np.float32(pixels[3 * i + 2]) * factors[0, 2] + factors[1, 2]
