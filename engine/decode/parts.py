"""Part of a JPEG, decoded without the rest, where nvImageCodec is installed (DALI brings it).

libjpeg-turbo can pass over the rows above a region, stop below it and leave out the columns beside
it (``jpeg_skip_scanlines``, ``jpeg_crop_scanline``). simplejpeg does not offer that;
nvImageCodec's decoder for CPUs, the same libjpeg-turbo, does, with the same pixels. The rows above
are still unpacked (Huffman), everything below is not. What is damaged below the region is not
noticed.
"""

import os
from functools import cache
from threading import local
from typing import Any, TypeAlias

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from engine.decode.geometry import Box

_Codec: TypeAlias = Any
"""The module nvimgcodec, which has no types."""
_Object: TypeAlias = Any
"""One of its objects."""
_LEAST_PIXELS = 120_000
"""Of an image; packings at 256 px lost up to 7 % (by hand)."""
_MOST_TAKEN = 0.5
"""Of an image by a part: the central square of a photograph, 0.58 of it, gained nothing, as what
lies beside and above a part, and its start, cost time too; random crops gained 13 % (by hand)."""
LEAST_SIDE = 16
"""Pixels: a part of one column at the left border differs from the whole image by several levels,
as smoothing of the colours has no neighbour there. From 2 on none was found that does."""
_CPU = -99999
"""``NVIMGCODEC_DEVICE_CPU_ONLY``."""
_of_thread = local()


def pays(stored_size: tuple[int, int], part: Box) -> bool:
    """Whether a part of an image of ``stored_size`` (width, height) is decoded faster alone."""
    left, top, right, bottom = part
    width, height, n_pixels = right - left, bottom - top, stored_size[0] * stored_size[1]
    if n_pixels < _LEAST_PIXELS or width * height > _MOST_TAKEN * n_pixels:
        return False
    return min(width, height) >= LEAST_SIDE and _codec() is not None


def decode_part(data: bytes, part: Box, into: NDArray[np.uint8]) -> bool:
    """Decode ``part`` of a grey or colour JPEG, whose rotation flag is ignored. Thread safe.

    Args:
        data: The file.
        part: What to decode; inside the image, `LEAST_SIDE` pixels or more a side.
        into: C-contiguous uint8 of shape (bottom - top, right - left, 3), written to.

    Returns:
        Whether it could be decoded; if not, ``into`` is undefined and a complete decoder says why.
    """
    codec = _codec()
    return codec is not None and _decode(codec, data, part, into)


def warm_up() -> None:
    """Load the decoder, so that the first image does not wait for it."""
    _codec()


@cache
def _codec() -> _Codec | None:
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # damaged images are told by us
    try:
        from nvidia import nvimgcodec

        works = _is_exact(nvimgcodec)
    except (ImportError, AttributeError, TypeError, RuntimeError, OSError):
        return None  # not here, or a version that lacks what is used
    return nvimgcodec if works else None


def _is_exact(codec: _Codec) -> bool:
    """Whether this version decodes parts as simplejpeg decodes the whole."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    data = simplejpeg.encode_jpeg(noise, colorsubsampling="420")
    left, top, right, bottom = part = (19, 37, 61, 80)
    into = np.zeros((bottom - top, right - left, 3), np.uint8)
    whole = simplejpeg.decode_jpeg(data)
    return _decode(codec, data, part, into) and bool(
        np.array_equal(into, whole[top:bottom, left:right])
    )


def _decode(codec: _Codec, data: bytes, part: Box, into: NDArray[np.uint8]) -> bool:
    left, top, right, bottom = part
    stream = codec.CodeStream(data).get_sub_code_stream(0, codec.Region(top, left, bottom, right))
    image = _decoder(codec).decode(stream, image=codec.as_image(into), params=_parameters(codec))
    if image is None:
        return False
    pixels = np.asarray(image)
    if pixels.ctypes.data != into.ctypes.data:  # it may prefer memory of its own
        into[...] = pixels
    return True


def _decoder(codec: _Codec) -> _Object:
    """The decoder of this thread: made in 0.1 ms, works in the thread that asks, on the CPU."""
    there = getattr(_of_thread, "decoder", None)
    if there is None:
        backends = [codec.Backend(codec.CPU_ONLY)]
        there = codec.Decoder(device_id=_CPU, max_num_cpu_threads=1, backends=backends)
        _of_thread.decoder = there
    return there


@cache
def _parameters(codec: _Codec) -> _Object:
    return codec.DecodeParams(apply_exif_orientation=False)
