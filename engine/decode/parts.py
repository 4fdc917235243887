"""Part of a JPEG, decoded without the rest, by the libjpeg-turbo that Pillow brings.

The rows above a part are still unpacked (Huffman), and so is what lies beside it; its rows alone
are transformed, upsampled and converted, and everything below is left out. Same pixels as decoding
the whole. What is damaged below the part is not noticed.
"""

import ctypes
from functools import cache
from threading import local

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import _imaging

from engine.decode.geometry import Box
from kernels.libjpeg import MOST_ADDED, VERSIONS, PartDecoder
from shards.scratch import pixel_memory

_LEAST_PIXELS = 16_000
"""Of an image; up to there nothing was gained (by hand)."""
_MOST_TAKEN = 0.8
"""Of an image by a part: 0.77 of it took 86 % of the time at 224 px, 0.58 took 83 % of it for
photographs (by hand, one thread)."""
_of_thread = local()


def pays(stored_size: tuple[int, int], part: Box) -> bool:
    """Whether a part of an image of ``stored_size`` (width, height) is decoded faster alone."""
    left, top, right, bottom = part
    n_pixels, n_taken = stored_size[0] * stored_size[1], (right - left) * (bottom - top)
    return n_pixels >= _LEAST_PIXELS and n_taken <= _MOST_TAKEN * n_pixels and warm_up()


def decode_part(
    data: bytes, part: Box, *, coarse: bool = False
) -> tuple[NDArray[np.uint8], int] | None:
    """Decode ``part`` of a grey or colour JPEG, whose rotation flag is ignored. Thread safe.

    Args:
        data: The file.
        part: What is needed.
        coarse: By libjpeg-turbo's faster transform and upsampling.

    Returns:
        The rows of the part with its columns and some beside them, uint8 of shape (bottom - top,
        columns, 3), which hold until this thread decodes again; and which column is the first.
        None if it cannot be decoded: a complete decoder says why.
    """
    decoder = _decoder()
    if decoder is None:
        return None
    left, top, right, bottom = part
    memory = pixel_memory(3 * (bottom - top) * (right - left + MOST_ADDED))
    first, n_columns = decoder.decode(data, part, memory, coarse=coarse)
    if n_columns == 0:
        return None
    n_rows = bottom - top
    return memory[: 3 * n_rows * n_columns].reshape(n_rows, n_columns, 3), first


def warm_up() -> bool:
    """Compile, so that the first image does not wait for it; whether parts can be decoded here."""
    return _version() is not None


def _decoder() -> PartDecoder | None:
    """The decoder of this thread."""
    version = _version()
    if version is None:
        return None
    there: PartDecoder | None = getattr(_of_thread, "decoder", None)
    if there is None:
        there = _of_thread.decoder = PartDecoder(_library(), version)
    return there


@cache
def _version() -> int | None:
    """The version of libjpeg that decodes parts as simplejpeg decodes the whole, if it is here."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    data, part = simplejpeg.encode_jpeg(noise, colorsubsampling="420"), (39, 37, 61, 80)
    expected = simplejpeg.decode_jpeg(data)[37:80]
    try:
        library = _library()
        for version in VERSIONS:
            memory = np.empty(expected.size, np.uint8)
            first, n = PartDecoder(library, version).decode(data, part, memory)
            found = memory[: n * 3 * 43].reshape(43, n, 3)[:, 39 - first : 61 - first]
            if np.array_equal(found, expected[:, 39:61]):
                return version
    except (AttributeError, OSError):  # Pillow was built in another way
        return None
    return None


def _library() -> ctypes.CDLL:
    """Pillow's own library: looking up a function in it also searches those that it links."""
    return ctypes.CDLL(_imaging.__file__)
