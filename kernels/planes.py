"""Pixels as networks take them: normalised float32, a plane per channel."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.compiling import kernel


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
    _to_planes(image_hwc.reshape(-1), factors, out_chw.reshape(3, -1))


def factors_of(mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Factors by which uint8 pixels become ``(pixel / 255 - mean) / std``: float32 (2, 3)."""
    spread = np.asarray(std, np.float64)
    return np.stack([1 / (255 * spread), -np.asarray(mean) / spread]).astype(np.float32)


@kernel
def _to_planes(
    pixels: NDArray[np.uint8], factors: NDArray[np.float32], planes: NDArray[np.float32]
) -> None:
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(red.size):
        red[i] = np.float32(pixels[3 * i]) * factors[0, 0] + factors[1, 0]
        green[i] = np.float32(pixels[3 * i + 1]) * factors[0, 1] + factors[1, 1]
        blue[i] = np.float32(pixels[3 * i + 2]) * factors[0, 2] + factors[1, 2]
