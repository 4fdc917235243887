"""Reference decoder: Pillow, with torchvision's semantics, for every stored format.

It also decodes what the fast decoders do not take. EXIF orientation is ignored, as in torchvision.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coreset.engine.data.geometry import Box, Geometry, Ints, Pixels
from coreset.shards.images.probe import as_rgb, opened

_MOST_RESIZED = 4
"""Pixels that may be resized to cut a crop out of them, to those of the image and of the crop."""
_PRECISION_BITS = 22
"""Bits of weights: ``PRECISION_BITS`` of Pillow's ``src/libImaging/Resample.c``."""


def decode_with_pillow(
    data: bytes,
    geometry: Geometry,
    stored_size: tuple[int, int] | None = None,
    crop: Box | None = None,
) -> Pixels:
    """Decode one image to RGB and bring it to ``geometry``, or its region ``crop`` to the square.

    Takes memory in proportion to the image and the output. Returns uint8 of shape (s, s, 3).

    Raises:
        ValueError: Pillow cannot decode ``data``, or it has another size than ``stored_size``.
    """
    with opened(data, stored_size) as stored:
        image = as_rgb(stored)
    region, width, height, box = geometry.place(*image.size, crop)
    if region != (0, 0, *image.size):
        image = image.crop(region)
    left, top, right, bottom = box
    n_needed = image.width * image.height + (right - left) * (bottom - top)
    if width * height > _MOST_RESIZED * n_needed:
        return enlarged_box(np.asarray(image), width, height, box, bicubic=geometry.bicubic)
    if image.size != (width, height):
        filters = Image.Resampling
        kind = filters.BICUBIC if geometry.bicubic else filters.BILINEAR
        image = image.resize((width, height), kind)
    return np.array(image.crop(box))


def enlarged_box(
    image_hwc: Pixels, width: int, height: int, box: Box, *, bicubic: bool = False
) -> Pixels:
    """Compute a box of ``Image.resize((width, height))`` without the rest, bit by bit.

    The crop of an image in extreme proportions is a small part of what the whole becomes: 224 x 224
    of 256 x 1,536,000 pixels for one of 1 x 6,000. ``Image.resize`` takes a box of the source in
    single precision only, and so would give other pixels. Both sides must not shrink.
    """
    left, top, right, bottom = box
    rows_nk, weights_nk = _taps(image_hwc.shape[0], height, top, bottom, bicubic=bicubic)
    first, stop = int(rows_nk.min()), int(rows_nk.max()) + 1
    columns = _taps(image_hwc.shape[1], width, left, right, bicubic=bicubic)
    wide_whc = _weighted(image_hwc[first:stop].swapaxes(0, 1), *columns)
    return _weighted(wide_whc.swapaxes(0, 1), rows_nk - first, weights_nk)


def _taps(n_in: int, n_out: int, first: int, stop: int, *, bicubic: bool) -> tuple[Ints, Ints]:
    """Return the k inputs of each of n outputs and their weights, as ``precompute_coeffs`` does."""
    support, kernel = (2, _cubic) if bicubic else (1, _triangle)
    centres_n = (np.arange(first, stop) + 0.5) * (n_in / n_out)
    starts_n = np.maximum((centres_n - support + 0.5).astype(np.int64), 0)
    stops_n = np.minimum((centres_n + support + 0.5).astype(np.int64), n_in)
    positions_nk = starts_n[:, None] + np.arange((stops_n - starts_n).max())
    distances_nk = np.abs(positions_nk - centres_n[:, None] + 0.5)
    shares_nk = np.where(positions_nk < stops_n[:, None], kernel(distances_nk), 0)
    shares_nk /= shares_nk.sum(axis=1, keepdims=True)
    # Halves away from zero: weights of the cubic filter may be negative.
    weights_nk = shares_nk * (1 << _PRECISION_BITS) + np.copysign(0.5, shares_nk)
    return np.minimum(positions_nk, n_in - 1), weights_nk.astype(np.int64)


def _triangle(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1 - distances, 0)


def _cubic(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Evaluate the cubic convolution of Keys (1981) with a = -0.5, in Pillow's order of sums."""
    d = distances
    near, far = (1.5 * d - 2.5) * d * d + 1, (((d - 5) * d + 8) * d - 4) * -0.5
    return np.where(d < 1, near, np.where(d < 2, far, 0))


def _weighted(lines: Pixels, positions_nk: Ints, weights_nk: Ints) -> Pixels:
    """Add weighted lines (the first axis) and round to whole levels."""
    total = np.full((len(positions_nk), *lines.shape[1:]), 1 << (_PRECISION_BITS - 1))
    for position_n, weight_n in zip(positions_nk.T, weights_nk.T, strict=True):
        total += lines[position_n] * weight_n[:, None, None]
    return (total >> _PRECISION_BITS).clip(0, 255).astype(np.uint8)
