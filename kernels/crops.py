"""Boxes of random resized crops, as a pure function of a seed and an image's id and size.

The distribution is that of torchvision's ``RandomResizedCrop.get_params``. The random numbers come
from splitmix64 by counter, so that a box depends neither on the batch nor on the process.

Shape suffixes: b = images, t = tries, 2 = horizontal and vertical.
"""

import math

import numpy as np
from numpy.typing import NDArray

from coreset.kernels.seeds import GOLDEN_GAMMA, splitmix64

TRIES = 10
_DRAWS = 2 * TRIES + 2  # of an image: areas, aspect ratios, then the position of the crop


def crop_boxes(  # noqa: PLR0917 - three columns, then the distribution
    ids: NDArray[np.int64],
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
    seed: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> NDArray[np.int64]:
    """Draw one box per image; a row depends on ``seed`` and its own id and size alone.

    The area is uniform in ``scale``, a range of shares of the image's area, and the logarithm of
    width over height uniform in ``ratio``. The first of ten tries that fits is placed uniformly; if
    none fits, the box is the largest central one within ``ratio``. Unlike torchvision's, it has at
    least one pixel a side. Rows are left, top, right, bottom in pixels, int64 of shape (b, 4). An
    image without pixels is a ValueError.
    """
    empty = np.flatnonzero(np.minimum(widths, heights) < 1)
    if empty.size:
        raise ValueError(
            f"widths and heights must be at least 1 pixel, got {widths[empty[0]]} x "
            f"{heights[empty[0]]} at position {empty[0]}; leave this image out"
        )
    start = splitmix64(np.array([seed % 2**64], dtype=np.uint64))
    streams = splitmix64(start ^ ids.astype(np.uint64))[:, None]
    keys = splitmix64(streams + np.arange(_DRAWS, dtype=np.uint64) * GOLDEN_GAMMA)
    uniforms = (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return boxes_from(uniforms, widths, heights, scale, ratio)


def boxes_from(
    uniforms: NDArray[np.float64],
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> NDArray[np.int64]:
    """Compute the boxes of `crop_boxes` from 2 * ``TRIES`` + 2 numbers in [0, 1) an image."""
    images_2b = np.stack([widths, heights])
    areas_bt = _between(*scale, uniforms[:, :TRIES]) * images_2b.prod(axis=0)[:, None]
    aspects_bt = np.exp(_between(math.log(ratio[0]), math.log(ratio[1]), uniforms[:, TRIES:-2]))
    tries_2bt = np.rint(np.sqrt(np.stack([areas_bt * aspects_bt, areas_bt / aspects_bt])))
    fits_bt = ((tries_2bt > 0) & (tries_2bt <= images_2b[:, :, None])).all(axis=0)
    drawn_2b = tries_2bt[:, np.arange(len(widths)), fits_bt.argmax(axis=1)]
    places_2b = np.floor(uniforms[:, -2:].T * (images_2b - drawn_2b + 1))
    longest_2b = np.rint(np.stack([heights * ratio[1], widths / ratio[0]]))
    central_2b = np.minimum(images_2b, np.maximum(longest_2b, 1))
    fits_b = np.any(fits_bt, axis=1)
    sizes_2b = np.where(fits_b, drawn_2b, central_2b)
    starts_2b = np.where(fits_b, places_2b, (images_2b - central_2b) // 2)
    return np.stack([*starts_2b, *(starts_2b + sizes_2b)], axis=1).astype(np.int64)


def _between(low: float, high: float, uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
    return low + (high - low) * uniforms
