"""libjpeg-turbo: the fastest decoder on a CPU.

Against torchvision on Pillow images (`docs/pixels.md`) decoded pixels are equal; after the resize
(``kernels.jpeg.resize``, which computes only the crop) the largest difference is 1. Where a crop
needs less than the image, only that is decoded (`engine.data.decoders.regions`). The fast way
decodes at 1/2, 1/4 or 1/8 of the size where that still is as large as what is wanted, and with
libjpeg-turbo's faster transform and upsampling.
"""

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from coreset.engine.data.decoders.base import EncodedBatch, is_plain_jpeg
from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.decoders.regions import decode_region, worth_cropping
from coreset.engine.data.geometry import Box, Geometry, Placement
from coreset.kernels.jpeg import pixel_memory
from coreset.kernels.jpeg.resize import reach, resize
from coreset.shards.images.flags import Refusal
from coreset.shards.images.jpeg_header import read_header

_FACTORS = (8, 4, 2)
"""Reductions while decoding for which libjpeg-turbo has SIMD code."""


def decode_exactly(
    batch: EncodedBatch, position: int, geometry: Geometry, into: NDArray[np.uint8]
) -> None:
    """Decode one image of a batch into ``into``, uint8 of shape (s, s, 3).

    Raises:
        ValueError: It cannot be decoded.
    """
    _decode(batch, position, geometry, into, fast=False)


def decode_fast(
    batch: EncodedBatch, position: int, geometry: Geometry, into: NDArray[np.uint8]
) -> None:
    """`decode_exactly` with coarser arithmetic."""
    _decode(batch, position, geometry, into, fast=True)


def _decode(
    batch: EncodedBatch, position: int, geometry: Geometry, into: NDArray[np.uint8], *, fast: bool
) -> None:
    data, size = batch.data[position], batch.stored_size(position)
    placement = batch.placement(geometry, position)
    if is_plain_jpeg(data, size):
        try:
            decode_jpeg(data, size, placement, into, fast=fast)
        except ValueError:  # libjpeg-turbo is strict: Pillow decides what can still be read
            pass
        else:
            return
    crop = None if batch.crops is None else placement.region
    into[...] = decode_with_pillow(data, geometry, size, crop)


def decode_jpeg(
    data: bytes,
    stored_size: tuple[int, int],
    placement: Placement,
    into: NDArray[np.uint8],
    *,
    fast: bool = False,
) -> None:
    """Decode a JPEG of ``stored_size`` (width, height) into ``into``, uint8 of shape (s, s, 3).

    Raises:
        ValueError: libjpeg-turbo cannot decode it, or only with warnings.
    """
    region, width, height, box = placement
    if region == box == (0, 0, *stored_size) and (width, height) == stored_size:
        simplejpeg.decode_jpeg(data, fastdct=fast, fastupsample=fast, buffer=into)
        return
    factor = _reduction(placement) if fast else 1
    if factor > 1 and not _is_reducible(data):
        factor = 1
    if factor == 1 and _decode_part(data, stored_size, placement, into, coarse=fast):
        return
    least = (-(-side // factor) for side in stored_size)
    image = simplejpeg.decode_jpeg(
        data,
        fastdct=fast,
        fastupsample=fast,
        **dict(zip(("min_width", "min_height"), least, strict=True)),
        buffer=pixel_memory(3 * stored_size[0] * stored_size[1]),
    )
    if factor > 1:
        region = _reduced(region, factor)
    _fit(image, Placement(region, width, height, box), into)


def _decode_part(
    data: bytes,
    stored_size: tuple[int, int],
    placement: Placement,
    into: NDArray[np.uint8],
    *,
    coarse: bool,
) -> bool:
    """Whether ``into`` was made out of a part of the image."""
    part = reach(*placement)
    if not worth_cropping(stored_size, part):
        return False
    decoded = decode_region(data, part, coarse=coarse)
    if decoded is None:
        return False
    image, left = decoded
    _fit(image, placement.within(left, part[1]), into)
    return True


def _fit(image: NDArray[np.uint8], placement: Placement, into: NDArray[np.uint8]) -> None:
    (left, top, right, bottom), width, height, box = placement
    if (right - left, bottom - top) == (width, height):
        into[...] = image[top + box[1] : top + box[3], left + box[0] : left + box[2]]
    else:
        resize(image, width, height, region=placement.region, box=box, out=into)


def _reduction(placement: Placement) -> int:
    left, top, right, bottom = placement.region
    for factor in _FACTORS:
        if right - left >= factor * placement.width and bottom - top >= factor * placement.height:
            return factor
    return 1


def _is_reducible(data: bytes) -> bool:
    """Tell whether a JPEG can be reduced while decoding, and was not damaged since it was packed.

    simplejpeg writes the pixels of a lossless one in full, whatever memory it took for fewer.
    """
    try:
        read_header(data)
    except Refusal:
        return False
    return True


def _reduced(region: Box, factor: int) -> Box:
    """The region in the reduced image, to the nearest pixel and never empty."""
    left, top, right, bottom = (round(edge / factor) for edge in region)
    return left, top, max(right, left + 1), max(bottom, top + 1)
