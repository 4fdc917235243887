"""libjpeg-turbo: the fastest decoder on a CPU.

Decoded pixels equal Pillow's; after the resize the largest difference is 1. Where a crop needs less
than the image, only that is decoded, by the libjpeg-turbo that Pillow brings; damage below it is
not noticed. The fast way decodes at 1/2, 1/4 or 1/8 of the size where that is large enough.
"""

import ctypes
import os
from functools import cache
from threading import local

import numpy as np
import simplejpeg
from PIL import _imaging

from coreset.engine.data.geometry import Box, Pixels, Placement
from coreset.kernels.jpeg import pixel_memory
from coreset.kernels.jpeg.libjpeg import MOST_ADDED, VERSIONS, RegionDecoder
from coreset.kernels.jpeg.resize import reach, resize
from coreset.shards.images.flags import Refusal, read_header

SWITCH = "CORESET_OWN_JPEG"
"""Environment variable; 0 decodes every image whole by simplejpeg, with the same pixels."""
_COLOURS = frozenset({"Gray", "YCbCr", "RGB"})
_SAMPLINGS = frozenset({"Gray", "444", "422", "440", "420", "411"})
_FACTORS = (8, 4, 2)
"""Reductions while decoding for which libjpeg-turbo has SIMD code."""
_LEAST_PIXELS = 16_000
"""Pixels of an image from which on decoding a part gains anything."""
_MOST_TAKEN = 0.8
"""Largest share of an image that is decoded as a part."""
_of_thread = local()  # holds the `decoder` of each thread


def is_plain_jpeg(data: bytes | Pixels, size: tuple[int, int]) -> bool:
    """Test for a grey or colour JPEG of ``size`` (width, height), which fast decoders take.

    Reads the header, so that one that was damaged into a decompression bomb is never decoded.
    """
    try:
        height, width, colours, sampling = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # KeyError: 4:4:1, which libjpeg-turbo knows and simplejpeg not
        return False
    return colours in _COLOURS and sampling in _SAMPLINGS and (width, height) == size


def decode_jpeg(
    data: bytes,
    stored_size: tuple[int, int],
    placement: Placement,
    into: Pixels,
    *,
    fast: bool = False,
) -> bool:
    """Decode a JPEG of ``stored_size`` (width, height) into ``into``, uint8 of shape (s, s, 3).

    Returns False for another kind or size, or where libjpeg-turbo warns: Pillow has to decide.
    """
    if not is_plain_jpeg(data, stored_size):
        return False
    try:
        _decode(data, stored_size, placement, into, fast=fast)
    except ValueError:
        return False
    return True


def _decode(
    data: bytes, stored_size: tuple[int, int], placement: Placement, into: Pixels, *, fast: bool
) -> None:
    region, width, height, box = placement
    if region == box == (0, 0, *stored_size) and (width, height) == stored_size:
        simplejpeg.decode_jpeg(data, fastdct=fast, fastupsample=fast, buffer=into)
        return
    factor = _reduction(data, placement) if fast else 1
    if factor == 1 and worth_cropping(stored_size, part := reach(*placement)):
        decoded = decode_region(data, part, coarse=fast)
        if decoded is not None:
            image, left = decoded
            _fit(image, placement.within(left, part[1]), into)
            return
    least_width, least_height = (-(-side // factor) for side in stored_size)
    image = simplejpeg.decode_jpeg(
        data,
        fastdct=fast,
        fastupsample=fast,
        min_width=least_width,
        min_height=least_height,
        buffer=pixel_memory(3 * stored_size[0] * stored_size[1]),
    )
    if factor > 1:  # the region in the reduced image, to the nearest pixel and never empty
        left, top, right, bottom = (round(edge / factor) for edge in region)
        region = left, top, max(right, left + 1), max(bottom, top + 1)
    _fit(image, placement._replace(region=region), into)


def _fit(image: Pixels, placement: Placement, into: Pixels) -> None:
    (left, top, right, bottom), width, height, box = placement
    if (right - left, bottom - top) == (width, height):
        into[...] = image[top + box[1] : top + box[3], left + box[0] : left + box[2]]
    else:
        resize(image, width, height, region=placement.region, box=box, out=into)


def _reduction(data: bytes, placement: Placement) -> int:
    """Return how many times smaller a JPEG is decoded: 1 where its header forbids to reduce it.

    simplejpeg writes the pixels of a lossless one in full, whatever memory it took for fewer.
    """
    left, top, right, bottom = placement.region
    for factor in _FACTORS:
        if right - left >= factor * placement.width and bottom - top >= factor * placement.height:
            try:
                read_header(data)
            except Refusal:
                return 1
            return factor
    return 1


def worth_cropping(stored_size: tuple[int, int], part: Box) -> bool:
    """Test whether a part of an image of ``stored_size`` is decoded faster alone."""
    left, top, right, bottom = part
    n_pixels, n_taken = stored_size[0] * stored_size[1], (right - left) * (bottom - top)
    small_enough = n_pixels >= _LEAST_PIXELS and n_taken <= _MOST_TAKEN * n_pixels
    return small_enough and decoder_of_thread() is not None


def decode_region(data: bytes, part: Box, *, coarse: bool = False) -> tuple[Pixels, int] | None:
    """Decode a part of a grey or colour JPEG, whose rotation flag is ignored. Thread safe.

    Returns:
        The rows of the part with its columns and some beside them, uint8, until this thread decodes
        again; and which column is the first. None if it cannot be decoded.
    """
    decoder = decoder_of_thread()
    if decoder is None:
        return None
    left, top, right, bottom = part
    n_rows = bottom - top
    memory = pixel_memory(3 * n_rows * (right - left + MOST_ADDED))
    first, n_columns = decoder.decode(data, part, memory, coarse=coarse)
    if n_columns == 0:
        return None
    return memory[: 3 * n_rows * n_columns].reshape(n_rows, n_columns, 3), first


def decoder_of_thread() -> RegionDecoder | None:
    """Return this thread's decoder of regions; None where libjpeg cannot be called, or differs."""
    if (version := _version()) is None:
        return None
    if not hasattr(_of_thread, "decoder"):
        _of_thread.decoder = RegionDecoder(_library(), version)
    return _of_thread.decoder


@cache
def _version() -> int | None:
    """Return the version of libjpeg that decodes a part as simplejpeg does, if it is here."""
    if os.environ.get(SWITCH) == "0":
        return None
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    data, region = simplejpeg.encode_jpeg(noise, colorsubsampling="420"), (39, 37, 61, 80)
    expected = simplejpeg.decode_jpeg(data)[37:80]
    try:
        library = _library()
        for version in VERSIONS:
            memory = np.empty(expected.size, np.uint8)
            first, n = RegionDecoder(library, version).decode(data, region, memory)
            found = memory[: n * 3 * 43].reshape(43, n, 3)[:, 39 - first : 61 - first]
            if np.array_equal(found, expected[:, 39:61]):
                return version
    except (AttributeError, OSError):  # Pillow was built in another way
        return None
    return None


def _library() -> ctypes.CDLL:
    """Open Pillow's own library: a look-up of a function also searches those that it links."""
    return ctypes.CDLL(_imaging.__file__)
