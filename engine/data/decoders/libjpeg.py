"""The libjpeg-turbo that Pillow brings, for kernels that call it; checked before it is used."""

import ctypes
import os
from functools import cache
from threading import local

import numpy as np
import simplejpeg
from PIL import _imaging

from coreset.kernels.jpeg.libjpeg import VERSIONS, RegionDecoder

SWITCH = "CORESET_OWN_JPEG"
"""Environment variable; 0 decodes every image whole by simplejpeg, with the same pixels."""
_of_thread = local()


def decoder_of_thread() -> RegionDecoder | None:
    """The decoder of this thread; None where libjpeg is not to be had, or decodes otherwise."""
    version = _version()
    if version is None:
        return None
    there: RegionDecoder | None = getattr(_of_thread, "decoder", None)
    if there is None:
        there = _of_thread.decoder = RegionDecoder(_library(), version)
    return there


@cache
def _version() -> int | None:
    """The version of libjpeg that decodes parts as simplejpeg decodes the whole, if it is here."""
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
    """Pillow's own library: looking up a function in it also searches those that it links."""
    return ctypes.CDLL(_imaging.__file__)
